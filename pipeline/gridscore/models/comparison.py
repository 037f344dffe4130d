"""Two versions of a model side by side: what they were made of, what they cost, and how their scores differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from gridscore.errors import ModelError
from gridscore.features.encodings import Encoding
from gridscore.models.metrics import measure, microseconds_a_row, psi

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gridscore.features.encodings import Learnt
    from gridscore.models.loaded import LoadedModel
    from gridscore.models.metrics import Name
    from gridscore.models.sample import Rows
    from gridscore.models.version import ModelVersion

_SHOWN = 20


class Fact(msgspec.Struct, frozen=True):
    """Something that two versions have, or differ in."""

    what: str
    before: Any
    after: Any

    @property
    def differs(self) -> bool:
        return bool(self.before != self.after)


class Scores(msgspec.Struct, frozen=True):
    """How the scores of two versions differ on the same rows."""

    rows: int
    of: str  # where they are from
    equal: int  # how many have the same bits
    mean_before: float
    mean_after: float
    mean_difference: float  # mean of the absolute differences
    largest_difference: float  # the largest of them
    psi: float  # population stability index, of several outputs the largest
    metrics: dict[str, tuple[float, float]] = {}  # by name the values of both, if the rows have labels


class Comparison(msgspec.Struct, frozen=True):
    """Two versions of a model."""

    name: str
    before: int
    after: int
    facts: tuple[Fact, ...]  # what is known of both; those that are the same, too
    scores: Scores | None = None  # None if there were no rows to score

    def to_json(self) -> dict[str, Any]:
        plain: dict[str, Any] = msgspec.to_builtins(self)
        for fact, each in zip(self.facts, plain["facts"], strict=True):
            each["differs"] = fact.differs
        return plain


def compare(before: LoadedModel, after: LoadedModel, rows: Rows | None = None, of: str = "") -> Comparison:
    """Compare two versions. Takes a while: not for the event loop.

    Raises ModelError if the rows cannot be scored by both.
    """
    old, new = before.version, after.version
    facts = [
        *(Fact(what, getattr(old, what), getattr(new, what)) for what in _PLAIN),
        Fact("µs a row", *(round(microseconds_a_row(each), 3) for each in (before, after))),
        *_of_mappings("metric", old.metrics, new.metrics),
        *_of_mappings("parameter", _parameters(old), _parameters(new)),
        *_features(old, new),
        Fact("training rows", *(each.training.rows if each.training else None for each in (old, new))),
        Fact("training data", *(each.training.sha256[:16] or None if each.training else None for each in (old, new))),
    ]
    return Comparison(
        old.name, old.version, new.version, tuple(facts), None if rows is None else _scores(before, after, rows, of)
    )


_PLAIN = ("objective", "outputs", "trees", "rounds", "size", "xgboost_version")


def _parameters(version: ModelVersion) -> Mapping[str, str]:
    return version.training.parameters if version.training is not None else {}


def _of_mappings(what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Fact]:
    return [Fact(f"{what} {key}", old.get(key), new.get(key)) for key in sorted(old.keys() | new.keys())]


def _features(old: ModelVersion, new: ModelVersion) -> list[Fact]:
    """The number of features, then those that differ: each by its place, type, categories and definition."""
    facts = [Fact("features", len(old.features), len(new.features))]
    for name in dict.fromkeys([*old.features, *new.features]):
        fact = Fact(f"feature {name}", _made(old, name), _made(new, name))
        if fact.differs:
            facts.append(fact)
        learnt = [each.learnt.get(name) for each in (old, new)]
        if learnt[0] != learnt[1]:
            what = "encoding" if any(isinstance(each, Encoding) for each in learnt) else "categories"
            facts.append(Fact(f"{what} {name}", *map(_shown, learnt)))
    return facts


def _made(version: ModelVersion, name: str) -> str | None:
    if name not in version.features:
        return None
    place = version.features.index(name)
    kind = version.feature_types[place] if version.feature_types else ""
    made = version.definitions.features.get(name, "") if version.definitions is not None else ""
    return " ".join(filter(None, (f"{place + 1}.", kind, made)))


def _shown(learnt: Learnt | None) -> str | None:
    if learnt is None:
        return None
    texts = learnt.texts if isinstance(learnt, Encoding) else learnt
    return ", ".join(texts[:_SHOWN]) + (f", … ({len(texts):,})" if len(texts) > _SHOWN else "")


def _scores(before: LoadedModel, after: LoadedModel, rows: Rows, of: str) -> Scores:
    old, new = (each.predict(*rows.inputs(each.version)) for each in (before, after))
    if old.shape != new.shape:
        raise ModelError(
            f"{before.version} and {after.version} do not give as many scores a row: these cannot be compared."
        )
    if not (np.isfinite(old).all() and np.isfinite(new).all()):
        raise ModelError(f"A score of {before.version} or {after.version} is not a finite number: see `model check`.")
    difference = np.abs(new.astype(np.float64) - old)
    return Scores(
        rows=len(old),
        of=of,
        equal=int(np.count_nonzero((old == new).reshape(len(old), -1).all(axis=1))),
        mean_before=float(old.mean(dtype=np.float64)),
        mean_after=float(new.mean(dtype=np.float64)),
        mean_difference=float(difference.mean()),
        largest_difference=float(difference.max()),
        psi=psi(old, new),
        metrics=_metrics(getattr(rows, "labels", None), old, new),
    )


def _metrics(labels: np.ndarray[Any, Any] | None, old: Any, new: Any) -> dict[str, tuple[float, float]]:
    """Those metrics that such labels and scores have."""
    found: dict[str, tuple[float, float]] = {}
    if labels is None:
        return found
    names: tuple[Name, ...] = ("auc", "log_loss", "brier", "accuracy")
    if not np.isin(labels, (0, 1)).all() and old.ndim == 1:
        names = ("rmse", "mae")
    for name in names:
        try:
            found[name] = (measure(name, labels, old)(None), measure(name, labels, new)(None))
        except ModelError:
            continue
    return found
