"""A job whose file names no features: they are its model's, each read from the event as it is."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from gridscore.errors import JobFileError
from gridscore.job.file import Job
from gridscore.job.types import KINDS, MAX_FEATURES, MAX_NAME, FieldType, Name

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

_NAME: TypeAdapter[str] = TypeAdapter(Name)
# Of columns, as XGBoost names them; what has no texts is a category by its code. All others are numbers.
_TYPES = {"int": "int", "c": "int", "i": "bool"}


def complete(
    job: Job, names: Sequence[str], types: Sequence[str], texts: Collection[str], trained: Mapping[str, str]
) -> Job:
    """The job with features, and those fields of the schema that they need and the file does not name.

    Args:
        job: It is returned as it is if it names its features.
        names: Of the model's features, in their order.
        types: As XGBoost names them; empty if it knows none.
        texts: Those features that are categories of texts.
        trained: Types of the fields that training read, as definitions have them.

    Raises:
        JobFileError: The features cannot be those of a job, or something in the file does not fit to them.
    """
    if job.is_complete:
        return job
    if len(names) > MAX_FEATURES:
        raise JobFileError(
            f"The model has {len(names):,} features, a job has at most {MAX_FEATURES:,}.", "Train on fewer columns."
        )
    schema = dict(job.schema_)
    places = {kind.key(field): field for field, kind in schema.items()}
    taken = {*schema, *filter(_is_name, names)}
    features: dict[str, Any] = {}
    kinds = dict(zip(names, types, strict=False))
    for name in names:
        field = places.get(name) or (name if name in schema else None)
        try:
            if field is None:
                _check_meant(name, job, names)
                field = name if _is_name(name) else _free_name(name, taken)
                taken.add(field)
                kind = trained.get(field, "")
                if kind not in KINDS:
                    kind = "string" if name in texts else _TYPES.get(kinds.get(name, ""), "float")
                schema[field] = FieldType.model_validate({"type": kind, "json": _place(name, field, names)})
        except ValidationError as error:
            reason = error.errors(include_input=False)[0]["msg"].removeprefix("Value error, ")
            raise JobFileError(f"The model's feature `{name}` cannot be read from an event: {reason}.", _HINT) from None
        features[name] = {"expression": f"category({field})" if name in texts else field}
    try:
        fields = {field: kind.model_dump(mode="json", by_alias=True) for field, kind in schema.items()}
        return Job.from_json({**job.to_json(), "schema": fields, "features": features})
    except ValidationError as error:
        reason = "; ".join(each["msg"] for each in error.errors(include_input=False)[:5])
        raise JobFileError(
            f"The job `{job.name}` names no features, and with those of its model it is not a job: {reason}.",
            "Correct it there, or write `schema` and `features` into the job file.",
        ) from None


_HINT = "Write `schema` and `features` into the job file."


def _is_name(text: str) -> bool:
    try:
        _NAME.validate_python(text)
    except ValidationError:
        return False
    return True


def _check_meant(name: str, job: Job, names: Sequence[str]) -> None:
    """Refuse a field of the schema that has a feature's name in expressions, and is read from another place."""
    field = _plain(name)
    if field in job.schema_ and not job.schema_[field].json_name and field not in names:
        kind, place = job.schema_[field], _place(name, field, names)
        raise JobFileError(
            f"The field `{field}` in the schema is not the model's feature `{name}`, "
            "which events have under its own name.",
            f"Write `{field}: {{type: {kind}, json: {json.dumps(place, ensure_ascii=False)}}}`; or, if they have both, "
            f"`json: {field}`.",
        )


def _plain(text: str) -> str:
    """A name for expressions that is like this text."""
    plain = re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")[: MAX_NAME - 10]
    return plain if _is_name(plain) else f"f_{plain}"


def _free_name(text: str, taken: Collection[str]) -> str:
    """The same, of those that are not taken."""
    plain = _plain(text)
    number, found = 2, plain
    while found in taken:
        number, found = number + 1, f"{plain}_{number}"
    return found


def _place(name: str, field: str, names: Sequence[str]) -> str:
    """Where a feature lies in the JSON: a dot goes into an object, unless a feature is what would be that object."""
    parts = name.split(".")
    inside = len(parts) > 1 and all(parts) and not any(".".join(parts[:end]) in names for end in range(1, len(parts)))
    return f"$.{name}" if inside else "" if name == field else name
