"""Commands made of the settings of sources and sinks: each field is an option, checked by its model."""

from __future__ import annotations

import enum
import inspect
import re
import types
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer
from pydantic import BaseModel, SecretStr, ValidationError

from gridscore.cli.logs import Format, LogFormat
from gridscore.cli.metrics import Metrics  # noqa: TC001 -- the signature is read
from gridscore.cli.options import Connection, map_names, with_connection
from gridscore.errors import UsageError
from gridscore.job.plugs.base import SinkSettings, SourceSettings
from gridscore.job.types import MAX_NAME, Duration, MapName
from gridscore.texts import nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from pydantic.fields import FieldInfo

    from gridscore.grid import Grid
    from gridscore.job.plugs.kinds import PlugKinds, Side

_NOT_OPTIONS = ("kind",)
_COMMON: dict[type[BaseModel], str] = {SourceSettings: "Every source", SinkSettings: "Every sink"}
_METAVARS = ((get_args(Duration)[-1], "TIME"), (get_args(MapName)[-1], "MAP"))
_FILES = ("path", "certificate", "private_key", "client_ca")

_Entry = TypeVar("_Entry", SourceSettings, SinkSettings)

_TIMES = "A TIME is a whole number and a unit: 90s, 15m, 1h, 2d."
_SECRETS = "A string may hold ${NAME}, an environment variable, whose value is never shown."


def command_of(
    model: type[BaseModel], run: Callable[..., None], *, help_text: str, example: str = ""
) -> Callable[..., None]:
    """A function for typer, with an option for each field of a plug's settings, and those of the connection.

    A tuple or list is a repeatable option; a dictionary, a repeatable KEY=VALUE; a bool, a flag, or a pair of flags if
    it is set by default. Defaults are the model's. Required options come first; those that all plugs have are a panel.

    `run`: called with the settings and the connection; for a source or sink, also with where its metrics are served;
    `example`: a command line that can work.
    """
    fields, common = _in_order(model)
    names = _names(fields)

    is_plug = bool(common)

    def command(*, connection: Connection, log_format: LogFormat, metrics: Metrics = None, **given: Any) -> None:  # noqa: ARG001 -- its callback does it
        run(_settings(model, fields, given), connection, *([metrics] if is_plug else []))

    parameters = [_parameter(name, field, names, common.get(name)) for name, field in fields.items()]
    own = inspect.signature(command, eval_str=True).parameters
    log_format = own["log_format"].replace(default=Format.TEXT)
    parameters += [own["connection"], log_format, *([own["metrics"]] if is_plug else [])]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    shown = example.replace("[", "\\[")
    command.__doc__ = f"{help_text}\n\nExample: [bold]{shown}[/]" if example else help_text
    return with_connection(command)


def _in_order(model: type[BaseModel]) -> tuple[dict[str, FieldInfo], dict[str, str]]:
    """The fields that are options, in the order of the help; and the panels of those that all plugs share."""
    base = next((each for each in _COMMON if issubclass(model, each)), None)
    of_all = {} if base is None else base.model_fields

    def rank(name: str, field: FieldInfo) -> int:
        if field.is_required():
            return 1 + (name == "to") - (name == "results")  # from where, with what, to where
        return 4 if name in of_all else 3

    fields = [(name, field) for name, field in model.model_fields.items() if name not in _NOT_OPTIONS]
    fields.sort(key=lambda each: rank(*each))
    panels = {name: _COMMON[base] for name, field in of_all.items() if base is not None and not field.is_required()}
    return dict(fields), panels


def _names(fields: Mapping[str, FieldInfo]) -> dict[str, str]:
    """Options, by the names of fields and by their aliases."""
    return {called: option_of(name, field) for name, field in fields.items() for called in (name, field.alias or name)}


def _by_options(text: str, names: Mapping[str, str]) -> str:
    """A text with options in place of fields, as `key` or `key: value`, except at its beginning: that is a value."""

    def option(found: re.Match[str]) -> str:
        name, value = found[1], found[2] or ""
        return f"`{names[name]}{value.replace(': ', ' ')}`" if name in names else found[0]

    return re.sub(r"(?!^)`(\w+)(: \w+)?`", option, text)


def option_of(name: str, field: FieldInfo) -> str:
    """The option of a field: `--max-wait`."""
    return f"--{(field.alias or name).replace('_', '-')}"


def check(model: type[BaseModel], values: Mapping[str, Any], names: Mapping[str, str]) -> Any:
    """Settings of these values.

    `values`: by the names of fields, or their aliases; `names`: what people call each field. Raises UsageError if they
    are not valid; a line for each problem, without the values.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [_said(detail, names) for detail in error.errors(include_url=False, include_input=False)]
        raise UsageError("\n".join(dict.fromkeys(lines))) from None


def _said(detail: Any, names: Mapping[str, str]) -> str:
    place = [part for part in detail["loc"] if part != "[key]"]
    message = str(detail.get("ctx", {}).get("error") or detail["msg"][:1].lower() + detail["msg"][1:])
    if not place:
        return _by_options(f" {message}", names)[1:]  # of several options, and may begin with one of them
    message = _by_options(message, names)
    where = names.get(str(place[0]), str(place[0]))
    return f"{where}: it must be given." if detail["type"] == "missing" else f"{where}: {message}"


def _settings(model: type[BaseModel], fields: Mapping[str, FieldInfo], given: Mapping[str, Any]) -> Any:
    values: dict[str, Any] = {}
    for name, field in fields.items():
        value = given[name]
        if value is None or value == []:
            continue
        values[field.alias or name] = _pairs(option_of(name, field), value) if _form(field) == "pairs" else value
    return check(model, values, _names(fields))


def _pairs(option: str, texts: Iterable[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"{option}: `{text}` is not KEY=VALUE.")
        if key in pairs:
            raise UsageError(f"{option}: `{key}` is given twice.")
        pairs[key] = value
    return pairs


def _parameter(name: str, field: FieldInfo, names: Mapping[str, str], panel: str | None) -> inspect.Parameter:
    option = option_of(name, field)
    kind, form = _kind(field), _form(field)
    text = _by_options(f" {field.description or ''}", names)[1:] + (" Repeatable." if form != "one" else "")
    more: dict[str, Any] = {}
    annotation: Any = kind
    metavar = _metavar(name, field, kind)
    if form == "pairs":
        annotation, metavar = list[str], "KEY=VALUE"
        text = re.sub(r"`([\w.]+): ", r"`\1=", text)  # as a job file has them
    elif form == "many":
        annotation = list[kind]  # type: ignore[valid-type]
    elif kind is bool and field.default is True:
        option = f"{option}/--no-{option.removeprefix('--')}"
    choices = _choices(field)
    if choices:
        metavar = f"[{'|'.join(choices)}]"
    default = _default_text(field)
    if default:
        text = f"{text} [default: {default}]"
    if field.is_required():
        text = f"{text} [required]"
    if metavar is not None:
        more["metavar"] = metavar
    if metavar == "MAP":
        more["autocompletion"] = map_names
    if panel is not None:
        more["rich_help_panel"] = panel
    info = typer.Option(option, help=text.strip().replace("[", "\\["), show_default=False, **more)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[annotation | None, info]
    )


def _default_text(field: FieldInfo) -> str:
    """The default, if it is worth showing."""
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    if default is None or default in ((), [], {}, "", False) or isinstance(default, SecretStr):
        return ""
    if isinstance(default, enum.Enum):
        return str(default.value)
    if isinstance(default, tuple | list):
        return ", ".join(map(str, default))
    if isinstance(default, int) and default >= 100_000:
        return f"{default:,}"
    return "yes" if default is True else str(default)


def _bare(annotation: Any) -> Any:
    """An annotation without `Annotated` and `None`."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [each for each in get_args(annotation) if each is not type(None)]
        return _bare(rest[0]) if len(rest) == 1 else str
    return annotation


def _form(field: FieldInfo) -> Literal["one", "many", "pairs"]:
    origin = get_origin(_bare(field.annotation)) or _bare(field.annotation)
    if origin is dict:
        return "pairs"
    return "many" if origin in (tuple, list, set, frozenset) else "one"


def _kind(field: FieldInfo) -> Any:
    """The type for typer; a string, which the model reads, if typer does not know it."""
    kind = _bare(field.annotation)
    if _form(field) == "many":
        arguments = get_args(kind)
        kind = _bare(arguments[0]) if arguments else str
    return kind if kind in (bool, int, float, Path) else str


def _metavar(name: str, field: FieldInfo, kind: Any) -> str | None:
    """The placeholder of the value."""
    if kind is bool:
        return None
    for marker, metavar in _METAVARS:
        if _mentions(field.annotation, field.metadata, marker):
            return metavar
    if name in _FILES or name.endswith("_file"):
        return "FILE"
    return "NUMBER" if kind in (int, float) else "TEXT"


def _mentions(annotation: Any, metadata: Iterable[Any], marker: Any) -> bool:
    """Whether a type, or one within it, is checked by a validator."""
    if any(each is marker or each == marker for each in metadata):
        return True
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return _mentions(arguments[0], arguments[1:], marker)
    return get_origin(annotation) is not Literal and any(_mentions(each, (), marker) for each in arguments)


def _choices(field: FieldInfo) -> list[str]:
    kind = _bare(field.annotation)
    if _form(field) == "many" and get_args(kind):
        kind = _bare(get_args(kind)[0])
    if get_origin(kind) is Literal:
        return [str(each) for each in get_args(kind)]
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return [str(each.value) for each in kind]
    return []


def chosen(
    job_file: Path, job: str, side: Side, entries: Mapping[str, _Entry], names: Iterable[str] | None
) -> dict[str, _Entry]:
    """The named entries of a section of a job file, by default all, each by the name that it runs under.

    `job`: name of the job, a prefix of its entries' names: two jobs may have a source `clicks`. Raises UsageError if
    there is none of that name, or none at all; or it cannot run under its name.
    """
    wanted = list(dict.fromkeys(names or entries))
    unknown = [name for name in wanted if name not in entries]
    if unknown or not entries:
        there = f"There are: {', '.join(entries)}." if entries else f"Its section `{side}s` is empty, or missing."
        raise UsageError(f"{job_file} has no {side}{f' `{unknown[0]}`' if unknown else ''}.", there)
    called = {name: entries[name].name or f"{job}-{name}" for name in wanted}
    for name, text in called.items():
        if len(text) > MAX_NAME:
            raise UsageError(
                f"{job_file}: the {side} `{name}` would be called `{text}`: {MAX_NAME} characters are possible.",
                f"Give it a `name` in the section `{side}s`.",
            )
        if list(called.values()).count(text) > 1:
            raise UsageError(f"{job_file}: two {side}s are called `{text}`.", "Give each a `name` of its own.")
    return {called[name]: entries[name] for name in wanted}


async def note_of_map(grid: Grid, name: str, known: Collection[str]) -> str:
    """A note if a map does not exist but resembles one that jobs have; empty if all is well."""
    meant = "" if name in known else nearest(name, known)
    if not meant or await grid.has_map(name):
        return ""
    return f"No job has the map {name}, and it is not there yet. Did you mean {meant}?"


class PlugGroup(typer.core.TyperGroup):
    """A command group with a command for each kind of plug, made when it is asked for."""

    plugs: PlugKinds[Any, Any]  # the kinds
    help_text: str  # what the help of each command says of running it

    def start(self, settings: Any, connection: Connection, metrics: str | None) -> None:
        raise NotImplementedError

    def list_commands(self, ctx: Any) -> list[str]:
        """Kinds first."""
        own = super().list_commands(ctx)
        return [*(kind for kind in self.plugs.available if kind not in own), *own]

    def make(self, kind: str) -> Callable[..., None]:
        """The function for a kind's command."""
        found = self.plugs[kind]
        return command_of(
            found.settings_class(),
            self.start,
            help_text=f"{found.summary}\n\n{self.help_text} {_SECRETS} {_TIMES}",
            example=f"gridscore {self.plugs.side} {kind} {found.example}",
        )

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        own = super().get_command(ctx, cmd_name)
        if own is not None or cmd_name not in self.plugs.available:
            return own
        app = typer.Typer(rich_markup_mode="rich", add_completion=False, pretty_exceptions_enable=False)
        try:
            command, settings = self.make(cmd_name), {}
        except UsageError as error:  # in a list of all kinds, it must not hide the others
            command, settings = _refusing(error), {"ignore_unknown_options": True, "allow_extra_args": True}
        app.command(cmd_name, rich_help_panel="Kinds", context_settings=settings)(command)
        return typer.main.get_command(app)


def _refusing(error: UsageError) -> Callable[..., None]:
    """A command in place of one that cannot be made, which says why."""

    def command() -> None:
        raise error

    command.__doc__ = str(error)
    return command
