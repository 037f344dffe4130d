"""Results: what is written to the result map for each event, as JSON that any client reads."""

from __future__ import annotations

import time
from functools import cached_property
from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from gridscore.compiled import compiled
from gridscore.features import class_numbers
from gridscore.models.variants import VARIANTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from gridscore.features import EventColumns
    from gridscore.job import Job
    from gridscore.models import ModelVersion

    _Named = tuple[tuple[str, ...], NDArray[np.intp]]
    """Texts, and which of them each event has."""

_fast = compiled("gridscore.scoring._results")
_VARIANT_TEXTS = tuple(name.encode() for name in VARIANTS)


class MadeBy(NamedTuple):
    """What made the results of a batch."""

    versions: Sequence[ModelVersion]  # one; or that of each variant
    variants: NDArray[np.int64] | None = None  # which of them made each result, as int64; None if there is one version


class _Columns(NamedTuple):
    """What the results of a batch are made of: a value a result, of `served` features also by name."""

    scores: NDArray[np.float32]
    named: Mapping[str, _Named]
    sequences: list[int]
    epochs: list[int]
    made_by: MadeBy
    now: int
    included: list[list[Any]]
    served: Mapping[str, list[float]]


class ResultEncoder:
    """Encodes results of one job.

    A result is a JSON object: `score` (a number, or a list for a model with several outputs), `label` (the class, if
    the job names them), `decision` (if it has decisions), `sequence` (of the event in its journal; -1 if a rescan found
    it in the map), `epoch` (of the lease under which it was written), `variant` (while there is an experiment),
    `version` and `model` (that made it), `revision` (of the job), `scored_at` (milliseconds since 1970), the event
    fields that the job includes, and `features` (an object), if it logs any.
    """

    def __init__(self, job: Job, revision: int) -> None:
        self._revision = revision
        self._include = tuple(job.result.include)
        fields: list[Any] = ["score", "sequence", "epoch"]
        thresholds, self._decisions = job.decision_steps
        self._has_conditions = job.has_conditions
        if self._has_conditions:
            self._decisions = tuple(decision.decision for decision in job.decisions)
        # Scores are float32: compared as such, a score that prints like the threshold reaches it.
        self._thresholds = np.array(thresholds, dtype=np.float32)
        self._classes = job.classes
        fields[1:1] = ["label"] * bool(self._classes) + ["decision"] * bool(self._decisions)
        places = {name: position for position, name in enumerate(job.feature_names)}
        self._served = {name: places[name] for name in job.served_features}
        served = ["features"] * bool(self._served)
        self._fields = fields, ["version", "model", "revision", "scored_at", *self._include, *served]
        self._type = msgspec.defstruct("Result", [*self._fields[0], *self._fields[1]], gc=False)
        self._encode = msgspec.json.Encoder().encode
        self._encoded = {texts: tuple(map(self._encode, texts)) for texts in (self._classes, self._decisions)}

    def encode(
        self,
        events: EventColumns,
        scores: NDArray[np.float32],  # shape (n,) or (n, outputs), finite
        sequences: list[int],
        epochs: list[int],
        version: ModelVersion | MadeBy,  # that made them; or which of several made each
        decisions: NDArray[np.intp] | None = None,  # the number of each event's decision, if the job has conditions
        matrix: NDArray[np.float32] | None = None,  # what was scored; needed if the job logs features
        named: Mapping[str, _Named] | None = None,  # what `named` gave of scores and decisions; default: it is asked
    ) -> list[bytes]:
        """JSON texts of the results of a batch.

        Raises ValueError if there are thresholds, but not one score an event; or conditions, but no decisions; or
        features to log, but no matrix.
        """
        now = time.time_ns() // 1_000_000
        included = [events.objects(field) for field in self._include]
        if self._served and matrix is None:
            raise ValueError("the job logs features, but there is no matrix")
        served: dict[str, list[float]] = {}
        if self._served and matrix is not None:
            columns = as_short(matrix[:, list(self._served.values())].T)
            served = dict(zip(self._served, columns.tolist(), strict=True))
        encode = self._zip if _fast else self._encode_each
        made_by = version if isinstance(version, MadeBy) else MadeBy((version,))
        named = self.named(scores, decisions) if named is None else named
        return encode(_Columns(scores, named, sequences, epochs, made_by, now, included, served))

    def named(self, scores: NDArray[np.float32], decisions: NDArray[np.intp] | None = None) -> dict[str, _Named]:
        """The label and the decision, if results have any: texts, and which of them each event gets.

        Raises ValueError if there are thresholds, but not one score an event; or conditions, but no decisions.
        """
        steps = decisions if self._has_conditions else None
        if self._has_conditions and steps is None:
            raise ValueError("the job has conditions, but there are no decisions")
        if self._decisions and not self._has_conditions:
            if scores.ndim != 1:
                raise ValueError(f"decisions need one score per event, not scores of the shape {scores.shape}")
            steps = np.searchsorted(self._thresholds, scores, side="right")
        named: dict[str, _Named] = {}
        if self._classes:
            named["label"] = self._classes, class_numbers(scores, len(self._classes))
        if steps is not None:
            named["decision"] = self._decisions, steps
        return named

    @cached_property
    def _type_with_variant(self) -> Any:
        """Of a result during an experiment. A job that includes a field of that name has none."""
        before, after = self._fields
        return msgspec.defstruct("Result", [*before, "variant", *after], gc=False)

    def _encode_each(self, of: _Columns) -> list[bytes]:
        scores, named, sequences, epochs, made_by, now, included, served = of
        columns: list[Iterable[Any]] = [scores.tolist()]
        columns += [map(texts.__getitem__, numbers.tolist()) for texts, numbers in named.values()]
        columns += [sequences, epochs]
        versions, kind = made_by.versions, self._type
        if made_by.variants is None:
            columns += [repeat(versions[0].version), repeat(versions[0].name)]
        else:
            kind = self._type_with_variant
            numbers = made_by.variants.tolist()
            of_variants = VARIANTS, [each.version for each in versions], [each.name for each in versions]
            columns += [map(each.__getitem__, numbers) for each in of_variants]
        columns += [repeat(self._revision), repeat(now), *included]
        if served:
            columns.append([dict(zip(served, row, strict=True)) for row in zip(*served.values(), strict=True)])
        # A pass for each field is faster than a tuple for each event.
        return list(map(self._encode, map(kind, *columns)))

    def _zip(self, of: _Columns) -> list[bytes]:
        """The same, by the compiled loop: encodes each column as one JSON array, and cuts it."""
        scores, named, sequences, epochs, made_by, now, included, served = of
        encode = self._encode
        columns: list[Any] = [encode(scores.tolist())]
        literals = [b'{"score":']
        for name, (texts, numbers) in named.items():
            columns.append((self._encoded[texts], np.ascontiguousarray(numbers, np.int64)))
            literals.append(b",%b:" % encode(name))
        columns += [sequences, epochs]
        literals += [b',"sequence":', b',"epoch":']
        ends = [
            b',"version":%d,"model":%b,"revision":%d,"scored_at":%d' % (v.version, encode(v.name), self._revision, now)
            for v in made_by.versions
        ]
        end = ends[0]
        if made_by.variants is not None:
            tails = tuple(b',"variant":"%b"%b' % each for each in zip(_VARIANT_TEXTS, ends, strict=False))
            columns.append((tails, made_by.variants))
            literals.append(b"")
            end = b""
        for name, values in zip(self._include, included, strict=True):
            columns.append(encode(values))
            literals.append(b"%b,%b:" % (end, encode(name)))
            end = b""
        opening = b'%b,"features":{' % end
        for name, values in served.items():
            columns.append(encode(values))
            literals.append(b"%b%b:" % (opening, encode(name)))
            opening, end = b",", b"}"
        literals.append(end + b"}")
        return _fast.zip_objects(len(scores), tuple(literals), tuple(columns))  # type: ignore[no-any-return, union-attr]


def as_short(numbers: NDArray[np.float32]) -> NDArray[np.float64]:
    """For each number the float64 with the fewest decimals, to 15, that is the same as a float32: 0.1 of 0.1.

    What reads it as a float64, as readers of JSON do, and makes a float32 of that, gets the same bits.
    """
    given = numbers.ravel()
    found = given.astype(np.float64)
    left = np.flatnonzero(np.isfinite(given))
    for decimals in range(16):
        scale = 10.0**decimals
        short = np.rint(found[left] * scale) / scale
        fits = short.astype(np.float32) == given[left]
        found[left[fits]] = short[fits]
        left = left[~fits]
        if not left.size:
            break
    return found.reshape(numbers.shape)
