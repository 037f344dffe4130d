"""Types: of the fields of events and lookup entries, and of what an expression gives."""

from __future__ import annotations

import keyword
import re
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    field_validator,
    model_validator,
)

MAX_NAME = 64
MAX_FEATURES = 1_000  # features of a job, and fields of an event
MAX_ITEM_FIELDS = 64  # fields of an array's items


class Type(StrEnum):
    """Type of the value of an expression."""

    NUMBER = "number"
    STRING = "string"
    BOOL = "bool"
    TIMESTAMP = "timestamp"
    UNKNOWN = "unknown"  # something that has been reported as wrong already; everything accepts it


FieldKind = Literal["float", "int", "string", "bool", "timestamp", "array"]
KINDS: tuple[str, ...] = ("float", "int", "string", "bool", "timestamp")
VALUE_TYPES = {
    "float": Type.NUMBER,
    "int": Type.NUMBER,
    "string": Type.STRING,
    "bool": Type.BOOL,
    "timestamp": Type.TIMESTAMP,
}


def shown(value: Any) -> str:
    """A value of a job file, for a message."""
    if value is None:
        return "empty"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text}`" if len(text) <= 60 else f"`{text[:57]}...`"


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value) or value.startswith("__") or keyword.iskeyword(value):
        raise ValueError(
            f"`{value}` cannot be a name in expressions: use letters, digits and `_`, no digit first, no Python keyword"
        )
    return value


_OWN_MAPS = ("gridscore.", "dead-letters.", "windows.")


def _map_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*", value):
        raise ValueError(f"`{value}` cannot be the name of a map: use letters, digits and `_ . : -`")
    if own := next(filter(value.startswith, _OWN_MAPS), ""):
        raise ValueError(f"`{value}`: maps called `{own}*` are kept for Gridscore itself")
    return value


def _feature_name(value: str) -> str:
    # XGBoost refuses the brackets.
    if value != value.strip() or not value.isprintable() or re.search(r"[\[\]<>\"'`]", value):
        raise ValueError(f"`{value}` cannot be the name of a feature: use no brackets, quotes, or spaces at its ends")
    return value


def _job_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", value):
        raise ValueError(f"`{value}` cannot be a name here: use letters, digits and `_ . -`, a letter or digit first")
    return value


_MAX_SECONDS = 36_525 * 86_400.0
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _duration(value: Any) -> Any:
    if not isinstance(value, str) or not re.fullmatch(r"[1-9][0-9]{0,8}[smhd]", value):
        hint = "write a whole number and a unit, as `90s`, `15m`, `1h` or `2d`"
        raise ValueError(f"{shown(value)} is not a time span: {hint}")
    if seconds_of(value) > _MAX_SECONDS:
        raise ValueError(f"{shown(value)} is longer than 100 years")
    return value


def seconds_of(duration: str) -> float:
    """Seconds of a :data:`Duration`."""
    return int(duration[:-1]) * _SECONDS[duration[-1]]


# A name that expressions can use.
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME), AfterValidator(_name)]
# The name of a feature; those that are a :data:`Name` as well can be used in expressions.
FeatureName = Annotated[str, Field(min_length=1, max_length=MAX_NAME), AfterValidator(_feature_name)]
MODULE = r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*"
ModuleName = Annotated[str, Field(min_length=1, max_length=200, pattern=rf"^{MODULE}$")]
# The name of a map in the cluster.
MapName = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_map_name)]
# The name of a job or a model.
JobName = Annotated[str, Field(min_length=1, max_length=MAX_NAME), AfterValidator(_job_name)]
# A time span: a whole number and `s`, `m`, `h` or `d`; see :func:`seconds_of`.
Duration = Annotated[str, BeforeValidator(_duration)]


MaxDeadLetters = Annotated[int, Field(ge=1, le=10_000_000)]  # how many dead letters there may be
# How many bytes of them: at least the largest one, which keeps a mebibyte of its event.
MaxDeadLetterBytes = Annotated[int, Field(ge=1 << 21, le=1 << 40)]
DEAD_LETTERS, DEAD_LETTER_BYTES = 10_000, 64 << 20  # defaults of these


_NESTED, _MAX_LEVELS = "$.", 16  # what the place of a field in nested objects begins with, and how deep it may be


_ARRAY = "an array is a list with the type of its items, as `[float]`, or with a mapping of their fields"


class Strict(BaseModel):
    """A part of the job file: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FieldType(Strict):
    """Type of a field of an event.

    The short form is the name of the type, with a `?` if the field may be null or absent: `float?`. That of an array is
    a list with the type of its items: `[float]`, or `[{price: float, sku: string?}]`.
    """

    type: FieldKind
    optional: bool = Field(default=False, description="The field may be null or absent.")
    unit: Literal["iso", "s", "ms"] = Field(
        default="iso",
        description="How a timestamp is written: an RFC 3339 string, or seconds or milliseconds since 1970.",
    )
    json_name: str = Field(
        default="",
        max_length=200,
        alias="json",
        description="Name of the field in the JSON, if it is another; `$.device.os` is `os` in the object `device`.",
    )

    of: dict[str, FieldType] = Field(
        default={},
        max_length=MAX_ITEM_FIELDS,
        description="Of an array: the fields of its items, which are objects; or the type of the items, under no name.",
    )

    model_config = ConfigDict(populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        listed = value["type"] if isinstance(value, dict) and isinstance(value.get("type"), list) else value
        if isinstance(listed, list):
            if len(listed) != 1 or not isinstance(listed[0], str | dict):
                raise ValueError(_ARRAY)
            value = {**(value if isinstance(value, dict) else {}), "type": "array", "of": listed[0]}
        if isinstance(value, str):
            return {"type": value.removesuffix("?").rstrip(), "optional": value.endswith("?")}
        if isinstance(value, dict) and isinstance(value.get("of"), str):
            value = {**value, "of": {"": value["of"]}}
        if isinstance(value, dict) and isinstance(value.get("type"), str) and value["type"].endswith("?"):
            return {**value, "type": value["type"].removesuffix("?").rstrip(), "optional": True}
        return value

    @field_validator("json_name")
    @classmethod
    def _json_name_that_can_be_read(cls, value: str) -> str:
        if re.search(r'["\\\x00-\x1f]', value):
            raise ValueError("the `json` name can have no double quotes, backslashes or control characters")
        if value.startswith(_NESTED) and not (all(value.split(".")) and value.count(".") <= _MAX_LEVELS):
            raise ValueError(
                f"`{value}` is not the place of a field: write `$.device.os`, with at most {_MAX_LEVELS} names"
            )
        return value

    @model_validator(mode="after")
    def _array_of_values(self) -> FieldType:
        if (self.type == "array") != bool(self.of):
            raise ValueError(_ARRAY)
        for name, kind in self.of.items():
            if name:
                _name(name)
            if kind.type == "array" or kind.json_name.startswith(_NESTED) or (not name and len(self.of) > 1):
                raise ValueError(f"`{name}`: an item of an array is a value, or an object of values")
        return self

    @model_validator(mode="after")
    def _unit_of_timestamps(self) -> FieldType:
        if self.unit != "iso" and self.type != "timestamp":
            raise ValueError(f"`unit` is for timestamps, this is {'an' if self.type == 'array' else 'a'} {self.type}")
        return self

    @property
    def value_type(self) -> Type:
        """What an expression sees."""
        return VALUE_TYPES[self.type]

    def path(self, name: str) -> tuple[str, ...]:
        """Where it is in the JSON: its name there, or the names of the objects around it, and its own.

        `name`: of the field in the job.
        """
        if not self.json_name.startswith(_NESTED):
            return (self.json_name or name,)
        return tuple(self.json_name.split(".")[1:])

    def key(self, name: str) -> str:
        """What it is called in the JSON and in tables: its path, with dots."""
        return ".".join(self.path(name))

    def __str__(self) -> str:
        if self.type != "array":
            return f"{self.type}{'?' if self.optional else ''}"
        items = ", ".join(f"{name}: {kind}" if name else str(kind) for name, kind in self.of.items())
        return f"[{items}]" if "" in self.of else f"[{{{items}}}]"


class LookupField(FieldType):
    """Type of a field of a lookup's entries.

    As that of an event's field, and with the value to take if there is no entry, or the entry has none.
    """

    default: StrictBool | StrictInt | StrictFloat | StrictStr | None = Field(
        default=None, union_mode="left_to_right", description="What to take if there is no entry or no value."
    )

    @model_validator(mode="before")
    @classmethod
    def _exact_default(cls, value: Any) -> Any:
        if isinstance(value, dict) and not isinstance(value.get("default"), (int, float, str, type(None))):
            raise ValueError("`default` must be a number, a string, true or false")  # noqa: TRY004 -- pydantic's way
        return value

    @model_validator(mode="after")
    def _default_of_type(self) -> LookupField:
        if self.type == "array":
            raise ValueError("an array cannot be a field of a lookup")
        default = self.default
        if default is None:
            return self
        if self.type == "timestamp":
            raise ValueError("a timestamp cannot have a default: use `coalesce` or `is None` in the expression")
        fits = {
            "float": isinstance(default, int | float) and not isinstance(default, bool) and abs(default) < 1.8e308,
            "int": isinstance(default, int | float)
            and not isinstance(default, bool)
            and -(2**63) <= default < 2**63
            and default == int(default),
            "string": isinstance(default, str),
            "bool": isinstance(default, bool),
        }[self.type]
        if not fits:
            raise ValueError(f"`default: {shown(default)[1:-1]}` is not of the type {self.type}")
        return self
