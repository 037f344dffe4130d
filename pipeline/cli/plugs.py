"""Commands made of the settings of sources and sinks: each field is an option, checked by its model."""

from __future__ import annotations

import enum
import inspect
import types
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel, SecretStr, ValidationError

from pipeline.cli.options import ClusterName, Members, SettingsFile
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pydantic.fields import FieldInfo

_NOT_OPTIONS = ("kind",)
_CONNECTION = {"members": Members, "cluster_name": ClusterName, "settings": SettingsFile}


def command_of(
    model: type[BaseModel], run: Callable[[Any, tuple[Any, Any, Any]], None], *, help_text: str, example: str = ""
) -> Callable[..., None]:
    """A function for typer, with an option for each field of a plug's settings, and those of the connection.

    A tuple or list is a repeatable option; a dictionary, a repeatable KEY=VALUE; a bool, a flag and its opposite. What
    is not given is left to the model.

    Args:
        model: The settings.
        run: Called with the settings, and members, cluster name and settings file as `connected` takes them.
        help_text: Of the command.
        example: The words of the command, for an example of it.
    """
    fields = {name: field for name, field in model.model_fields.items() if name not in _NOT_OPTIONS}

    def command(**given: Any) -> None:
        connection = tuple(given.pop(f"connection_{name}") for name in _CONNECTION)
        run(_settings(model, fields, given), (connection[0], connection[1], connection[2]))

    parameters = [_parameter(name, field) for name, field in fields.items()] + [
        inspect.Parameter(f"connection_{name}", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in _CONNECTION.items()
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    command.__doc__ = f"{help_text}\n\nExample: [bold]{_example(example, fields)}[/]" if example else help_text
    return command


def _example(command: str, fields: Mapping[str, FieldInfo]) -> str:
    """The shortest command line that can work, with the names of values for the values."""
    needed = [(option_of(name, field), name) for name, field in fields.items() if field.is_required()]
    return " ".join((command, *(f"{option} {name.upper()}" for option, name in needed)))


def option_of(name: str, field: FieldInfo) -> str:
    """The option of a field: `--max-wait`."""
    return f"--{(field.alias or name).replace('_', '-')}"


def check(model: type[BaseModel], values: Mapping[str, Any], names: Mapping[str, str]) -> Any:
    """Settings of these values.

    Args:
        model: The settings.
        values: By the names of fields, or their aliases.
        names: What people call a field, by its name or alias.

    Raises:
        UsageError: They are not valid; a line for each problem, without the values.
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
        return message
    where = names.get(str(place[0]), str(place[0]))
    return f"{where}: it must be given." if detail["type"] == "missing" else f"{where}: {message}"


def _settings(model: type[BaseModel], fields: Mapping[str, FieldInfo], given: Mapping[str, Any]) -> Any:
    values: dict[str, Any] = {}
    names = {}
    for name, field in fields.items():
        option = option_of(name, field)
        names[name] = names[field.alias or name] = option
        value = given[name]
        if value is None or value == []:
            continue
        values[field.alias or name] = _pairs(option, value) if _form(field) == "pairs" else value
    return check(model, values, names)


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


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    option = option_of(name, field)
    kind, form = _kind(field), _form(field)
    text = (field.description or "") + (" Repeatable." if form == "many" else "")
    more: dict[str, Any] = {}
    annotation: Any = kind
    metavar = None
    if form == "pairs":
        annotation, metavar = list[str], "KEY=VALUE"
    elif form == "many":
        annotation = list[kind]  # type: ignore[valid-type]
    elif kind is bool:
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
    info = typer.Option(option, help=text.strip().replace("[", "\\["), show_default=False, **more)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[annotation | None, info]
    )


def _default_text(field: FieldInfo) -> str:
    """The default, if it is worth being shown."""
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    if default is None or default in ((), [], {}, "", False) or isinstance(default, SecretStr):
        return ""
    if isinstance(default, enum.Enum):
        return str(default.value)
    if isinstance(default, tuple | list):
        return ", ".join(map(str, default))
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
    """The type that typer is told; what is none of its own is a text, which the model reads."""
    kind = _bare(field.annotation)
    if _form(field) == "many":
        arguments = get_args(kind)
        kind = _bare(arguments[0]) if arguments else str
    return kind if kind in (bool, int, float, Path) else str


def _choices(field: FieldInfo) -> list[str]:
    kind = _bare(field.annotation)
    if _form(field) == "many" and get_args(kind):
        kind = _bare(get_args(kind)[0])
    if get_origin(kind) is Literal:
        return [str(each) for each in get_args(kind)]
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return [str(each.value) for each in kind]
    return []


class PlugGroup(typer.core.TyperGroup):
    """A command group with a command for each kind of plug, made when it is asked for.

    Subclasses say which kinds there are, and make their commands.
    """

    def kinds(self) -> list[str]:
        """The kinds."""
        raise NotImplementedError

    def make(self, kind: str) -> Callable[..., None]:
        """The function for a kind's command."""
        raise NotImplementedError

    def list_commands(self, ctx: Any) -> list[str]:
        """Kinds first."""
        return [*self.kinds(), *super().list_commands(ctx)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, or None."""
        if cmd_name not in self.kinds():
            return super().get_command(ctx, cmd_name)
        app = typer.Typer(rich_markup_mode="rich", add_completion=False, pretty_exceptions_enable=False)
        app.command(cmd_name, rich_help_panel="Kinds")(self.make(cmd_name))
        return typer.main.get_command(app)
