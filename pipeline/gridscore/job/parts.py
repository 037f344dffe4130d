"""The parts of a job file, each with what makes it right in itself."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from gridscore.job.types import (
    MAX_FEATURES,
    MODULE,
    Duration,
    FeatureName,
    JobName,
    LookupField,
    MapName,
    Name,
    Strict,
    seconds_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

Column = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Class = Annotated[
    str,
    BeforeValidator(lambda value: str(value) if type(value) is int else value),  # `classes: [0, 1, 2]`
    StringConstraints(min_length=1, max_length=200),
]


def _text(value: Any) -> Any:
    """YAML's `3` is the expression `3`, and `true` is `True`."""
    return repr(value) if isinstance(value, int | float) else value


Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1), BeforeValidator(_text)]  # an expression
# Expressions that make a key: a list, also where it is one.
Key = Annotated[
    tuple[Text, ...],
    Field(min_length=1, max_length=8),
    BeforeValidator(lambda value: value if isinstance(value, list | tuple) else [value]),
]


class Lookup(Strict):
    """A reference map in the cluster, and how an event finds its entry there."""

    map: MapName = Field(description="The map.")
    key: Key = Field(
        description="Expression over event fields that gives the key: a string or a whole number. "
        "A list makes a composite key: its parts as strings, joined by `separator`."
    )
    separator: str = Field(default="|", max_length=8, description="What joins the parts of a composite key.")
    columns: tuple[Column, ...] = Field(
        default=(), description="Columns of a table file that make the key, where they are not called as in `key`."
    )
    fields: dict[Name, LookupField] = Field(
        min_length=1, max_length=256, description="Fields of an entry that features use, with their types."
    )
    valid_from: Name | None = Field(
        default=None,
        description="Field, a `timestamp`, with the time from which an entry is valid: an event of a history gets the "
        "entry that was valid at its time (`order_by`).",
    )
    valid_to: Name | None = Field(
        default=None,
        description="Field, a `timestamp`, with the time from which it is no longer valid; missing: never.",
    )
    mode: Literal["copy", "fetch"] = Field(
        default="copy",
        description="`copy` keeps the whole map in each worker, current; `fetch` gets the entries of each micro-batch.",
    )
    max_entries: int = Field(
        default=1_000_000, ge=1, le=100_000_000, description="Entries above which the map is not copied, but an error."
    )

    @model_validator(mode="after")
    def _columns_for_keys(self) -> Lookup:
        if self.columns and len(self.columns) != len(self.key):
            raise ValueError(f"`columns` names {len(self.columns)}, but `key` has {len(self.key)}")
        if self.mode == "fetch" and "max_entries" in self.model_fields_set:
            raise ValueError("`max_entries` is for `mode: copy`")
        for key, name in (("valid_from", self.valid_from), ("valid_to", self.valid_to)):
            kind = self.fields.get(name or "")
            if name is not None and (
                kind is None or kind.type != "timestamp" or (kind.optional and key == "valid_from")
            ):
                sure = ", without `?`" if key == "valid_from" else ""
                raise ValueError(f"`{key}: {name}` must be one of the `fields`, a timestamp{sure}")
        if self.valid_to is not None and self.valid_from is None:
            raise ValueError("`valid_to` needs `valid_from`")
        if len(self.key) == 1 and "separator" in self.model_fields_set and self.separator != "|":
            raise ValueError("`separator` is for a composite key, which is a list")
        return self

    @property
    def key_columns(self) -> tuple[str, ...]:
        """Columns of a table file that make the key."""
        return self.columns or self.key


class Window(Strict):
    """Whose events a window holds: those of an entity, as a card or a machine."""

    key: Key = Field(
        description="Expression over event fields that tells entities apart: a string or a whole number. "
        "A list makes a composite key: its parts as strings, joined by `separator`."
    )
    separator: str = Field(default="|", max_length=8, description="What joins the parts of a composite key.")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"key": value} if isinstance(value, str | list) else value


def _target(value: str) -> str:
    if not _TARGET.fullmatch(value) or value.startswith("__main__:"):
        raise ValueError(f"`{value}` is not a Python function of a module: write `package.module:function`")
    return value


_TARGET = re.compile(rf"{MODULE}:[A-Za-z_]\w*", re.ASCII)
_MOST_SECONDS = 300.0


class Feature(Strict):
    """An expression or a Python function, and what to take where it gives nothing."""

    expression: Text = Field(
        default="", description="Expression over event fields, `lookup.field`, and features further up."
    )
    python: Annotated[str, StringConstraints(max_length=200), AfterValidator(_target)] = Field(
        default="",
        description="Instead: a Python function, `package.module:function`, that whoever starts a worker allows.",
    )
    of: Annotated[
        tuple[Text, ...] | dict[Column, Text],
        Field(max_length=256),
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    ] = Field(
        default=(),
        description="What the function takes: a list of expressions, each a NumPy array; or a mapping, which makes a "
        "DataFrame.",
    )
    column: Column | None = Field(default=None, description="Which column, if it returns a DataFrame.")
    cpu: Duration = Field(default="1s", description="Processor time that a call of the function may use.")
    default: float | None = Field(
        default=None,
        allow_inf_nan=False,
        ge=-3.0e38,
        le=3.0e38,
        strict=True,
        description="What to take where the value is missing or infinite; without it, the model gets a missing value.",
    )

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return value if isinstance(value, dict) else {"expression": value}

    @model_validator(mode="after")
    def _one_of_both(self) -> Feature:
        if not self.python:
            if not self.expression:
                raise ValueError("it needs an `expression`, or a function: `python`")
            if alone := {"of", "column", "cpu"} & self.model_fields_set:
                raise ValueError(f"`{min(alone)}` is for `python`")
        elif self.expression:
            raise ValueError("give an `expression` or `python`, not both")
        elif not self.of:
            raise ValueError("`python` needs what the function takes: `of: [amount, country]`")
        if seconds_of(self.cpu) > _MOST_SECONDS:
            raise ValueError(f"`cpu: {self.cpu}`: a call may use {_MOST_SECONDS:.0f} s at most")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Columns of the DataFrame that its function takes; none if it takes arrays."""
        return tuple(self.of) if isinstance(self.of, dict) else ()

    @property
    def expressions(self) -> tuple[str, ...]:
        """All that is made of expressions: itself, or what its function takes."""
        if not self.python:
            return (self.expression,)
        return tuple(self.of.values()) if isinstance(self.of, dict) else self.of

    def __str__(self) -> str:
        return self.spelled(str)

    def spelled(self, spell: Callable[[str], str]) -> str:
        """How it is made, as Python spells it, with its expressions spelled so."""
        given = [spell(each) for each in self.expressions]
        if not self.python:
            return given[0]
        if self.names:
            given = [f"{name!r}: {each}" for name, each in zip(self.names, given, strict=True)]
            given = [f"{{{', '.join(given)}}}"]
        return f"python({', '.join([repr(self.python), *given])})" + (f"[{self.column!r}]" if self.column else "")


class ModelRef(Strict):
    """Which model scores: a name, and an alias or a fixed version."""

    name: JobName = Field(description="Its name in the registry.")
    alias: JobName | None = Field(default=None, description="The alias to follow; default `champion`.")
    version: int | None = Field(default=None, ge=1, description="A fixed version, instead of an alias.")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"name": value}
        if isinstance(value, dict) and value.get("alias") is None and value.get("version") is None:
            return {**value, "alias": "champion"}
        return value

    @model_validator(mode="after")
    def _one_way(self) -> ModelRef:
        if self.alias is not None and self.version is not None:
            raise ValueError("give an `alias` to follow or a fixed `version`, not both")
        return self


class Reasons(Strict):
    """Which results are given reasons, and how many: the features that add most to the score."""

    decisions: tuple[Annotated[str, StringConstraints(min_length=1, max_length=64)], ...] = Field(
        default=(), max_length=64, description="Only results with one of these decisions."
    )
    when: Text | None = Field(
        default=None,
        description="Only where this is true: an expression over `score`, `label`, event fields, `lookup.field` and "
        "features.",
    )
    share: float = Field(default=1.0, gt=0, le=1, strict=True, description="The part of those that is drawn.")
    top: int = Field(default=3, ge=1, le=100, description="How many features.")
    budget: float = Field(
        default=0.1, gt=0, le=1, strict=True, description="The part of a core of each worker that this may take."
    )
    text: dict[FeatureName, Annotated[str, StringConstraints(min_length=1, max_length=500)]] = Field(
        default={}, max_length=MAX_FEATURES, description="A feature's reason in words; `{value}` is its value."
    )


class ResultSpec(Strict):
    """What a result holds beside score, decision, model, version, sequence and time."""

    include: tuple[str, ...] = Field(default=(), max_length=64, description="Event fields to copy to the result.")
    features: Literal["all"] | tuple[FeatureName, ...] = Field(
        default=(),
        max_length=MAX_FEATURES,
        description="Features that a result repeats as the model got them; or `all`.",
    )
    reasons: Reasons | None = Field(
        default=None, description="Which results are given reasons, after they were written. Default: none."
    )


class Decision(Strict):
    """What to do from a score on, or on a condition."""

    decision: Annotated[str, StringConstraints(min_length=1, max_length=64)] = Field(description="Its name.")
    at_least: float | None = Field(
        default=None,
        allow_inf_nan=False,
        strict=True,
        description="The lowest score for it; the last decision has none and is for all lower scores.",
    )
    when: Text | None = Field(
        default=None,
        description="Expression over `score`, `label`, event fields, `lookup.field` and features, instead: the first "
        "decision whose condition is true is taken.",
    )
