"""A version of a model: what the grid knows of it beside its bytes, checked whenever it is read."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from gridscore.errors import ModelError, UsageError
from gridscore.features.definitions import ATTRIBUTE, Attribute, Definitions, Training, learnt_of
from gridscore.models.description import MAX_FEATURES, NAMES_HINT
from gridscore.texts import did_you_mean, html_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gridscore.features.baseline import Baseline
    from gridscore.features.encodings import Learnt
    from gridscore.models.description import Description

# Bytes of a model in one entry of the grid: values of many megabytes are read slowly (python-client#434).
CHUNK = 1 << 20

MAX_SIZE = 1 << 30  # bytes of the largest model taken
MAX_CATEGORIES = 100_000

SHOWN = 10  # features that a message names
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

Text = Annotated[str, Meta(max_length=1000)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Positive = Annotated[int, Meta(ge=1, le=2**31)]


class ModelVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a model. It never changes."""

    name: Annotated[str, Meta(max_length=100)]
    version: Positive  # 1, 2, 3, …
    sha256: Sha256  # of the whole file, in hexadecimal digits
    size: Annotated[int, Meta(ge=1, le=MAX_SIZE)]
    chunks: Positive  # entries of the grid that hold it
    # Names in the order of the columns.
    features: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=MAX_FEATURES)]
    # As XGBoost names them (`float`, `int`, `i`, `q`, `c`); empty if it was trained without.
    feature_types: Annotated[tuple[Text, ...], Meta(max_length=MAX_FEATURES)] = ()
    # Texts in the order of their codes, by feature.
    categories: dict[str, Annotated[tuple[Text, ...], Meta(max_length=MAX_CATEGORIES)]] = {}
    definitions: Definitions | None = None  # how training made the features; None if nobody attached it
    objective: Text  # as XGBoost names it
    # Scores that it gives a row; None in what was pushed before this was noted and cannot be read.
    outputs: Positive | None = None
    # Classes that it tells apart, 0 if it names none; None in what was pushed before this was noted.
    classes: Annotated[int, Meta(ge=0, le=2**31)] | None = None
    trees: Annotated[int, Meta(ge=0, le=2**31)]  # number of trees; 0 of a linear model
    rounds: Positive
    # Where early stopping found the best round; scoring uses all rounds nevertheless.
    best_iteration: Annotated[int, Meta(ge=0)] | None = None
    xgboost_version: Text
    metrics: dict[str, float] = {}  # what its maker said of its quality
    training: Training | None = None  # what it learnt from and how, as far as the model or its maker told
    source: Text = ""  # where it was taken from, `mlflow` for instance; empty if from a file or a program
    created_at: Text  # when it was pushed, RFC 3339 in UTC
    signature: Text = ""  # of `signing.statement`, base64; empty if nobody has signed it

    def __post_init__(self) -> None:
        if self.chunks != -(-self.size // CHUNK):
            raise ValueError(f"{self.chunks} chunks cannot hold {self.size} bytes")
        if len(set(self.features)) != len(self.features):
            raise ValueError("two features have the same name")
        if self.feature_types and len(self.feature_types) != len(self.features):
            raise ValueError("it has not one type a feature")
        if unknown := self.categories.keys() - set(self.features):
            raise ValueError(f"categories of `{min(unknown)}`, which is not a feature")
        if self.baseline is not None and (unknown := self.baseline.features.keys() - set(self.features)):
            raise ValueError(f"a baseline of `{min(unknown)}`, which is not a feature")
        if any(len(set(values)) != len(values) for values in self.categories.values()):
            raise ValueError("a category is listed twice")

    def __str__(self) -> str:
        return f"{self.name} v{self.version}"

    @property
    def figures(self) -> dict[str, Any]:
        """What a notebook shows of it."""
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
        made = {"features": len(self.features), "trees": self.trees, "pushed": self.created_at, "metrics": metrics}
        return {"model": self.name, "version": self.version, **made}

    def _repr_html_(self) -> str:
        return html_table(self.figures)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes in the order of their numbers; empty if nobody attached them."""
        return self.training.labels if self.training is not None else ()

    @property
    def baseline(self) -> Baseline | None:
        """What training has seen; None if nobody attached it."""
        return self.training.baseline if self.training is not None else None

    @property
    def learnt(self) -> dict[str, Learnt]:
        """Categories and encodings, by feature."""
        return learnt_of(self.categories, self.definitions)

    @property
    def margin(self) -> str | None:
        """The expression of the margin that scores begin with; empty if there is none, None if training did not say."""
        return None if self.definitions is None else self.definitions.margin

    def to_json(self) -> dict[str, Any]:
        """For scripts, and for the grid."""
        return dict(msgspec.to_builtins(self))

    @classmethod
    def from_json(cls, value: Any, name: str, version: int) -> ModelVersion:
        """The version that a record of the grid describes.

        Raises ModelError if the record does not hold what it should.
        """
        try:
            return msgspec.convert({**value, "name": name, "version": version}, cls)
        except (msgspec.ValidationError, TypeError) as error:  # TypeError: it is not even an object
            raise ModelError(
                f"What the grid holds of version {version} of the model `{name}` is not valid: {error}.",
                "Push the model again, as a new version.",
            ) from None


class Signature(NamedTuple):
    """What the columns of a model mean: names in their order, texts by feature, and how training made them."""

    features: tuple[str, ...]
    categories: dict[str, tuple[str, ...]]
    definitions: Definitions | None


def early_stopping(version: ModelVersion) -> str | None:
    """What to say of a version with rounds after the best one."""
    if version.best_iteration is None or version.best_iteration + 1 >= version.rounds:
        return None
    return (
        f"Early stopping found round {version.best_iteration + 1} of {version.rounds} the best. As Booster.predict "
        "does, scoring uses all; to push the best only: booster[: booster.best_iteration + 1].save_model(…)"
    )


def check_name(name: str, what: str = "model name") -> str:
    """Refuse a name that could not be typed in a job file or on a command line. Raises UsageError with the rule."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(
            f"`{name}` is not a {what}.",
            "Take letters, digits, `.`, `_` and `-`, at most 100, a letter or digit first.",
        )
    return name


def signature(description: Description, categories: Mapping[str, Sequence[str]] | None, source: str) -> Signature:
    """What a model's columns mean: from the file, its `gridscore` attribute, or what was given.

    `categories`: what the user gives; it wins; `source`: what to call the file in messages. Raises ModelError if it has
    no feature names, or these sources contradict each other or the trees.
    """
    names, recorded, definitions = description.features, description.categories, None
    if (text := description.attributes.get(ATTRIBUTE)) is not None:
        try:
            attribute = msgspec.json.decode(text, type=Attribute)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise ModelError(
                f"The attribute `gridscore` of {source} is not valid: {error}.",
                "Let `OfflineMatrix.attach(booster)` write it.",
            ) from None
        if names and attribute.features != names:
            raise ModelError(
                f"{source} was attached to other features than it was trained on.\n"
                + difference(attribute.features, names, ours="attached", theirs="the model's"),
                "Attach it to the matrix that it was trained on, and save it again.",
            )
        for name, texts in attribute.categories.items():
            if name not in (categories or {}) and recorded.get(name, texts) != texts:
                trained = recorded[name]
                same = next((at for at, pair in enumerate(zip(trained, texts, strict=False)) if pair[0] != pair[1]), 0)
                raise ModelError(
                    f"{source} was trained with other categories of `{name}` than those attached to it, from number "
                    f"{same + 1} on: trained with {listed(trained[same:])}; attached {listed(texts[same:])}.",
                    "Attach the matrix that it was trained on, or say which are right: "
                    "`gridscore model push --categories FILE`.",
                )
        names, recorded = attribute.features, {**recorded, **attribute.categories}
        definitions = attribute.definitions
    if not names:
        raise ModelError(f"{source} has no feature names, so nobody can tell which column is which.", NAMES_HINT)
    if len(names) != description.feature_count:
        raise ModelError(
            f"{source} has {description.feature_count} columns, and {len(names)} names for them.", NAMES_HINT
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ModelError(f"{source} has two features called `{twice[0]}`.", NAMES_HINT)
    chosen = {**recorded, **{name: tuple(values) for name, values in (categories or {}).items()}}
    _check_categories(description, names, chosen, source)
    return Signature(names, chosen, definitions)


def _check_categories(
    description: Description, names: tuple[str, ...], categories: dict[str, tuple[str, ...]], source: str
) -> None:
    for name, values in categories.items():
        if name not in names:
            meant = did_you_mean(name, names, as_sentence=True)
            raise ModelError(f"There are categories for `{name}`, which is not a feature of {source}.{meant}")
        if not all(isinstance(value, str) for value in values):
            raise ModelError(f"The categories of `{name}` are not a list of texts, in the order of their codes.")
        if len(set(values)) != len(values) or len(values) > MAX_CATEGORIES:
            raise ModelError(f"The categories of `{name}` hold a text twice, or are more than {MAX_CATEGORIES:,}.")
        highest = description.highest_category.get(names.index(name), -1)
        if highest >= len(values):
            raise ModelError(
                f"{source} splits on category {highest} of `{name}`, but only {len(values)} categories are named "
                f"(codes 0 to {len(values) - 1}).",
                "Give the categories of the matrix that it was trained on.",
            )
    for column in description.unreadable:
        if names[column] not in categories:
            raise ModelError(
                f"The categories of `{names[column]}` are not all ASCII, and XGBoost {description.xgboost_version} "
                f"has cut their texts short in {source}: which code is which text cannot be told.",
                "Name them: `OfflineMatrix.attach(booster)` before the model is saved, or "
                "`gridscore model push --categories FILE`.",
            )


def listed(texts: Sequence[str]) -> str:
    """The first of some texts, and how many there are if that is not all."""
    shown = ", ".join(map(short, texts[:3]))
    return f"{shown}, … {len(texts):,} in all" if len(texts) > 3 else shown


def difference(wanted: Sequence[str], found: Sequence[str], *, ours: str = "the job", theirs: str = "the model") -> str:
    """Lines that say how two lists of features differ."""
    lines = []
    missing = [name for name in wanted if name not in set(found)]
    unexpected = [name for name in found if name not in set(wanted)]
    if missing:
        lines.append(f"  only in {ours}: {_names(missing, unexpected)}")
    if unexpected:
        lines.append(f"  only in {theirs}: {_names(unexpected, ())}")
    if not missing and not unexpected and len(wanted) != len(found):
        lines.append(f"  {ours} has {len(wanted)} names, {theirs} {len(found)}: one is there twice")
    elif not missing and not unexpected:
        places = [(i, a, b) for i, (a, b) in enumerate(zip(wanted, found, strict=False), 1) if a != b]
        lines.append("  the names are the same, the order is not:")
        lines += [f"  {i:>4}. {ours}: {short(a)}   {theirs}: {short(b)}" for i, a, b in places[:SHOWN]]
        if len(places) > SHOWN:
            lines.append(f"  … and {len(places) - SHOWN:,} more places")
    return "\n".join(lines)


def _names(names: Sequence[str], others: Sequence[str]) -> str:
    shown = []
    for name in names[:SHOWN]:
        close = difflib.get_close_matches(name, others, n=1)
        shown.append(f"{short(name)} (is it `{short(close[0])}`?)" if close else short(name))
    more = f" … and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(shown) + more


def short(text: str, most: int = 80) -> str:
    """Names and expressions may be of any length; a message may not."""
    return text if len(text) <= most else f"{text[:most]}…"
