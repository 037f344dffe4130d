"""The sections `sources` and `sinks` of a job file: each entry is checked by the settings of its kind.

They are imported when a file has an entry of that kind.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import BeforeValidator, PlainSerializer, ValidationError, ValidationInfo, create_model
from pydantic_core import InitErrorDetails

from gridscore.errors import UsageError
from gridscore.job.plugs.base import SinkSettings, SourceSettings
from gridscore.job.plugs.kinds import PlugKinds, Side
from gridscore.job.plugs.secrets import plain_secrets
from gridscore.job.types import shown
from gridscore.texts import did_you_mean

if TYPE_CHECKING:
    from pydantic import BaseModel

SECTIONS: dict[str, Side] = {"sources": "source", "sinks": "sink"}

# Which key of an entry names its map, and which key of the job does if the entry has none.
DEFAULT_MAPS: dict[Side, tuple[str, str]] = {"source": ("to", "events"), "sink": ("from", "results")}

# Context of a validation of a job that was submitted, and so checked, before.
RECORDED: dict[str, Any] = {"recorded": True}

_KINDS: dict[Side, PlugKinds[Any, Any]] = {side: PlugKinds(side) for side in SECTIONS.values()}

_log = logging.getLogger(__name__)


def settings_class(side: Side, kind: str) -> type[BaseModel]:
    return cast("type[BaseModel]", _KINDS[side][kind].settings_class())


def class_of(section: str, entry: Any) -> type[BaseModel] | None:
    """The settings of an entry of a section; None if it names no kind that there is."""
    kind = entry.get("kind") if isinstance(entry, dict) else None
    side = SECTIONS[section]
    return settings_class(side, kind) if kind in _KINDS[side].available else None


def with_maps(job: dict[str, Any]) -> dict[str, Any]:
    """A job, each entry of its sections with a map: its own, or the job's."""
    changed: dict[str, Any] = {}
    for section, side in SECTIONS.items():
        key, of_job = DEFAULT_MAPS[side]
        entries = job.get(section)
        if isinstance(entries, dict) and of_job in job:
            changed[section] = {
                name: {key: job[of_job], **entry} if isinstance(entry, dict) else entry
                for name, entry in entries.items()
            }
    return job | changed


def json_schema(section: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """JSON Schema of the entries of a section; what it refers to is added to the definitions."""
    side = SECTIONS[section]
    key, _ = DEFAULT_MAPS[side]
    choices = []
    for kind in _KINDS[side].available:
        try:
            model = settings_class(side, kind)
        except UsageError as error:  # the others are none the worse for it
            _log.warning("%s", error)
            continue
        schema = model.model_json_schema(by_alias=True, mode="validation")
        definitions |= schema.pop("$defs", {})
        required = [name for name in schema.get("required", []) if name != key]
        schema["required"] = ["kind", *(name for name in required if name != "kind")]
        definitions[model.__name__] = schema
        choices.append({"$ref": f"#/$defs/{model.__name__}"})
    return {"oneOf": choices}


def _unknown(base: type[Any]) -> Any:
    return create_model("Unknown", __base__=base, __cls_kwargs__={"extra": "allow"}, kind=(str, ...))


# Entries of submitted jobs, of kinds or with keys that are not known here: kept as they are.
_UNKNOWN: dict[Side, Any] = {"source": _unknown(SourceSettings), "sink": _unknown(SinkSettings)}


def _read(side: Side, value: Any, info: ValidationInfo) -> Any:
    """Settings of the kind that an entry names.

    A submitted job is read by all, so by those, too, where that kind is not installed, or is of another version.
    """
    try:
        return _checked(side, value)
    except (ValidationError, UsageError):
        if info.context is not RECORDED:
            raise
    return _UNKNOWN[side].model_validate(value)


def _checked(side: Side, value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "kind" not in value:
        raise _error(side, InitErrorDetails(type="missing", loc=("kind",), input=value))
    kind, known = value["kind"], _KINDS[side].available
    if kind not in known:
        possible = ", ".join(f"`{each}`" for each in known)
        meant = did_you_mean(str(kind), known) or f"; there are {possible}"
        reason = ValueError(f"{shown(kind)} is not a kind of {side}{meant}")
        raise _error(side, InitErrorDetails(type="value_error", loc=("kind",), input=kind, ctx={"error": reason}))
    plain = ValueError(
        "what is, or may be, a secret is not written here: write `${NAME}`, and set the environment variable NAME"
    )
    details = [
        InitErrorDetails(type="value_error", loc=path, input=None, ctx={"error": plain})
        for path in plain_secrets(value)
    ]
    if details:
        raise _error(side, *details)
    return settings_class(side, kind).model_validate(value)


def _error(side: Side, *details: InitErrorDetails) -> ValidationError:
    return ValidationError.from_exception_data(side, list(details))


def _plain(settings: Any) -> dict[str, Any]:
    """Settings as plain JSON values; the kind is among them, though it is the only one that it can have."""
    return {"kind": settings.kind, **settings.model_dump(mode="json", by_alias=True, exclude_defaults=True)}


AnySource = Annotated[
    SourceSettings, BeforeValidator(lambda value, info: _read("source", value, info)), PlainSerializer(_plain)
]
AnySink = Annotated[
    SinkSettings, BeforeValidator(lambda value, info: _read("sink", value, info)), PlainSerializer(_plain)
]
