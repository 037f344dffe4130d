"""An experiment: which version scores which entities of a job, what came of it, and what is to be done next.

Whether an entity is the challenger's is a matter of arithmetic, the same in every process and every language:

    number = CRC-32 of the entity's UTF-8 bytes, xor CRC-32 of the experiment's id
    number = the finalizer of MurmurHash3 (32 bit) of that
    the challenger scores it if number * 10,000 / 2**32, rounded down, is below the share in hundredths of a percent

So who is the challenger's at 5 % is so at 25 %, too. One record a job defines the experiment, in
`gridscore.experiments`; each worker keeps what it has counted in `gridscore.experiment-counts`, under `job/worker`.
"""

from __future__ import annotations

import math
import zlib
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta

from gridscore.grid.records import Count, Records
from gridscore.models.metrics import psi
from gridscore.models.version import Positive, Text  # noqa: TC001 -- msgspec reads the annotations
from gridscore.texts import html_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from gridscore.grid import Grid
    from gridscore.grid.records import Record
    from gridscore.job import JobRecord

EXPERIMENTS_MAP = "gridscore.experiments"
COUNTS_MAP = "gridscore.experiment-counts"

VARIANTS = ("champion", "challenger")  # what results call who made them
SHARES = 10_000  # parts into which the entities are divided
GROUPS = 64  # groups of entities by which chance is judged: the events of one entity are alike, and all in one group
_BIN_BITS = 18  # of a float32 that a bin does not tell apart: a thirty-second of the number at most
_BINS, _HALF = 1 << (32 - _BIN_BITS), 1 << (31 - _BIN_BITS)
_DRAWN = 10_000

Share = Annotated[float, Meta(ge=0.01, le=100)]
Reason = Annotated[str, Meta(max_length=500)]


class Limits(msgspec.Struct, frozen=True, omit_defaults=True):
    """What ends an experiment by itself; None: nothing."""

    # Part of the challenger's events without a score, beyond the champion's part.
    errors: Annotated[float, Meta(ge=0, le=1)] | None = None
    us_per_row: Annotated[float, Meta(gt=0, le=1e9)] | None = None  # CPU microseconds that it takes to predict a row
    # Population stability index of its scores against the champion's.
    psi: Annotated[float, Meta(gt=0, le=1e3)] | None = None
    # Events of the challenger, and of the champion, before it is judged; also for each step.
    least: Annotated[int, Meta(ge=1, le=10**9)] = 500


class Experiment(msgspec.Struct, frozen=True, kw_only=True):
    """The record of an experiment."""

    id: Annotated[str, Meta(min_length=1, max_length=40)]  # what tells it from all others; it decides who is whose
    job: Text
    submitted_at: Text  # when that was submitted: an experiment does not outlive its job
    model: Annotated[str, Meta(max_length=100)]
    version: Positive  # the challenger
    # `canary` (in steps), `split` (for good), or `shadow` (the champion answers, the challenger scores beside).
    kind: Literal["canary", "split", "shadow"]
    key: Text = ""  # expression over event fields that tells entities apart; empty: the event's key
    # Percent of the entities, ascending; none of a shadow.
    steps: Annotated[tuple[Share, ...], Meta(max_length=20)] = ()
    every: Annotated[float, Meta(ge=0, le=1e8)] = 0.0  # seconds that a step lasts; 0: until somebody ends it
    step: Annotated[int, Meta(ge=0)] = 0  # which it is at
    since: Text  # when that began, RFC 3339 in UTC
    seen: Count = 0  # events that the challenger had scored by then
    limits: Limits = Limits()
    state: Literal["running", "ended"] = "running"  # `ended` by its limits, or while it is cleared away
    why: Reason = ""  # it ended
    by: Annotated[str, Meta(max_length=200)]  # who began it, as that process says

    def __post_init__(self) -> None:
        if (self.kind == "shadow") is bool(self.steps):
            raise ValueError("a shadow has no steps, all else has some")
        if any(after <= before for before, after in zip(self.steps, self.steps[1:], strict=False)):
            raise ValueError("the steps do not ascend")
        if self.steps and self.step >= len(self.steps):
            raise ValueError("there is no such step")

    @property
    def share(self) -> float:
        """Percent of the entities that the challenger scores now."""
        return self.steps[self.step] if self.steps and self.state == "running" else 0.0

    @property
    def has_next(self) -> bool:
        """Whether it goes on to another step by itself."""
        return bool(self.every) and self.step + 1 < len(self.steps)

    def takes(self, draws: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the entities drawn are the challenger's now."""
        return (draws >= 0) & (draws * SHARES >> 32 < round(self.share * SHARES / 100))

    def draws(self, entities: Sequence[bytes | None]) -> NDArray[np.int64]:
        """The numbers of entities, below 2**32; -1 where there is none."""
        if None in entities:
            numbers: Iterable[int] = (-1 if each is None else zlib.crc32(each) for each in entities)
        else:
            numbers = map(zlib.crc32, entities)  # type: ignore[arg-type]
        found = np.fromiter(numbers, np.int64, len(entities))
        mixed = found.astype(np.uint32) ^ np.uint32(zlib.crc32(self.id.encode()))
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            mixed ^= mixed >> np.uint32(shift)
            mixed *= np.uint32(factor)
        mixed ^= mixed >> np.uint32(16)
        return np.where(found < 0, -1, mixed.astype(np.int64))

    def to_json(self) -> dict[str, Any]:
        """For scripts, and for the grid."""
        return dict(msgspec.to_builtins(self))

    def _repr_html_(self) -> str:
        names = ("job", "model", "version", "kind", "share", "state", "why")
        return html_table({name: getattr(self, name) for name in names})


Counts64 = Annotated[tuple[Count, ...], Meta(min_length=GROUPS, max_length=GROUPS)]
Sum = Annotated[float, Meta(ge=-1e100, le=1e100)]
_NONE = (0,) * GROUPS


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """What was counted of a variant."""

    errors: Count = 0  # events that it gave no score
    ns: Count = 0  # CPU nanoseconds of its predictions
    # Events that it scored, by group of entities; sums of their scores, and who was chosen, likewise.
    groups: Counts64 = _NONE
    sums: Annotated[tuple[Sum, ...], Meta(min_length=GROUPS, max_length=GROUPS)] = (0.0,) * GROUPS
    chosen: Annotated[dict[Annotated[str, Meta(max_length=200)], Counts64], Meta(max_length=1_000)] = {}
    # How many scores lay where, see `Tally`.
    bins: Annotated[dict[Annotated[int, Meta(ge=0, lt=_BINS)], Count], Meta(max_length=_BINS)] = {}

    @property
    def events(self) -> int:
        """Events that it scored."""
        return sum(self.groups)

    @property
    def error_share(self) -> float:
        """Part of its events that it gave no score."""
        return self.errors / max(1, self.events + self.errors)

    @property
    def us_per_row(self) -> float:
        """CPU microseconds that a row took."""
        return self.ns / 1_000 / max(1, self.events + self.errors)

    def scores(self) -> NDArray[np.float32]:
        """Scores that lie as those that were counted, ten thousand at most."""
        bins = np.array(sorted(self.bins), np.int64)
        until = np.cumsum([float(self.bins[each]) for each in bins.tolist()])
        count = min(_DRAWN, int(until[-1]))
        drawn = bins[np.searchsorted(until, (np.arange(count) + 0.5) / count * until[-1])] - _HALF
        ordered = ((drawn << _BIN_BITS) + (1 << (_BIN_BITS - 1))).astype(np.int32)
        found: NDArray[np.float32] = np.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).view(np.float32)
        return found


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker, or all of them, counted of an experiment."""

    id: Annotated[str, Meta(max_length=40)]
    champion: Counted = Counted()
    challenger: Counted = Counted()
    nobodys: Count = 0  # events without an entity, which the champion scores
    behind: Count = 0  # events of the challenger that the champion scored, because a worker has not loaded it
    unseen: Count = 0  # events that a shadow has not scored, because its results are not acknowledged fast enough
    error: Annotated[str, Meta(max_length=1_000)] = ""  # why a worker does not use the challenger; empty if it does

    def plus(self, other: Counts, sign: int = 1) -> Counts:
        """What was counted by both; or, with -1, since the other."""
        found: Counts = _sum(self, other, sign)
        return found

    def to_json(self) -> dict[str, Any]:
        return dict(msgspec.to_builtins(self, str_keys=True))

    @classmethod
    def of_record(cls, record: Record) -> Counts:
        """Of a control record; raises `msgspec.ValidationError`."""
        return msgspec.convert(record.value, cls, str_keys=True)


def _sum(one: Any, other: Any, sign: int) -> Any:
    """Numbers added wherever they are; of texts, the first."""
    if one is None or other is None:
        return one if other is None else other
    if isinstance(one, msgspec.Struct):
        names = one.__struct_fields__
        return type(one)(**{name: _sum(getattr(one, name), getattr(other, name), sign) for name in names})
    if isinstance(one, dict):
        return {key: _sum(one.get(key), other.get(key), sign) for key in one | other}
    if isinstance(one, tuple):
        return tuple(_sum(*both, sign) for both in zip(one, other, strict=True))
    return one or other if isinstance(one, str) else one + sign * other


class Tally:
    """Counts a variant, batch by batch. A bin holds the scores whose first 14 bits are alike, in their order."""

    def __init__(self) -> None:
        self.errors = self.ns = 0
        self._groups = np.zeros(GROUPS, np.int64)
        self._sums = np.zeros(GROUPS)
        self._chosen: dict[str, NDArray[np.int64]] = {}
        self._bins = np.zeros(_BINS, np.int64)

    def add(
        self, draws: NDArray[np.int64], scores: NDArray[np.float32], names: Sequence[str], choices: NDArray[np.intp]
    ) -> None:
        """Count events.

        `draws`: the numbers of their entities; `scores`: finite; of several a row, the highest counts; `names`: of
        decisions or classes; empty if there are none; `choices`: which of these each event got.
        """
        values = np.ascontiguousarray(scores if scores.ndim == 1 else scores.max(axis=1), np.float32)
        groups = draws % GROUPS
        self._groups += np.bincount(groups, minlength=GROUPS)
        self._sums += np.bincount(groups, values, GROUPS)
        bits = values.view(np.int32)
        # Of negative numbers, the bits descend.
        self._bins += np.bincount((np.where(bits < 0, bits ^ 0x7FFFFFFF, bits) >> _BIN_BITS) + _HALF, minlength=_BINS)
        for number in np.unique(choices).tolist() if names else ():
            found = np.bincount(groups[choices == number], minlength=GROUPS)
            self._chosen[names[number]] = self._chosen.get(names[number], 0) + found

    def counted(self) -> Counted:
        held = np.flatnonzero(self._bins)
        return Counted(
            errors=self.errors,
            ns=self.ns,
            groups=tuple(self._groups.tolist()),
            sums=tuple(self._sums.tolist()),
            chosen={name: tuple(counts.tolist()) for name, counts in self._chosen.items()},
            bins=dict(zip(held.tolist(), self._bins[held].tolist(), strict=True)),
        )


# ---------------------------------------------------------------------- what is to be done


def judged(experiment: Experiment, total: Counts, recent: Counts, elapsed: float, now: str) -> Experiment:
    """The experiment as it should go on: as it is, at its next step, or ended, with the reason.

    `total`: what was counted since it began; `recent`: what was counted lately: a fault of today is not made up for by
    good weeks; `elapsed`: seconds since its step began; `now`: RFC 3339 in UTC.
    """
    if experiment.state != "running":
        return experiment
    why = _broken(experiment.limits, recent) or _broken(experiment.limits, total)
    if why:
        return msgspec.structs.replace(experiment, state="ended", why=why, since=now)
    seen = total.challenger.events
    if experiment.has_next and elapsed >= experiment.every and seen - experiment.seen >= experiment.limits.least:
        return msgspec.structs.replace(experiment, step=experiment.step + 1, since=now, seen=seen)
    return experiment


def _broken(limits: Limits, counts: Counts) -> str:
    """Which limit is broken, and by how much; empty if none is, or too little was counted."""
    champion, challenger = counts.champion, counts.challenger
    tried = challenger.events + challenger.errors
    if tried < limits.least:
        return ""
    more = challenger.error_share - champion.error_share
    if limits.errors is not None and more > limits.errors:
        return (
            f"errors: {challenger.errors:,} of {tried:,} events got no score, {more:.2%} more than the champion's; the "
            f"limit is {limits.errors:.2%}"
        )
    if limits.us_per_row is not None and challenger.us_per_row > limits.us_per_row:
        return f"latency: a row takes {challenger.us_per_row:,.4g} µs; the limit is {limits.us_per_row:,g}"
    if limits.psi is not None and (shift := shift_of(counts, limits.least)) is not None and shift > limits.psi:
        return f"shift: the PSI of {challenger.events:,} scores is {shift:,.4g}; the limit is {limits.psi:g}"
    return ""


def shift_of(counts: Counts, least: int = 1) -> float | None:
    """The PSI of the challenger's scores against the champion's; None if there are fewer than so many of either."""
    if min(sum(each.bins.values()) for each in (counts.champion, counts.challenger)) < least:
        return None
    return psi(counts.champion.scores(), counts.challenger.scores())


class Compared(NamedTuple):
    """A figure of both variants, and whether they differ by more than chance."""

    what: str  # `score` for its mean, or the decision or class of which this is the share
    champion: float
    challenger: float
    less: float  # the difference, challenger minus champion, at least, with a confidence of 95 %
    most: float  # and at most
    p: float  # how likely so large a difference is if there is none


def compared(counts: Counts, *, paired: bool) -> list[Compared]:
    """The mean score, and the share of each decision, of both variants.

    A two-sample z test of ratios whose variances come from 64 groups of entities (Taylor linearization, as surveys with
    clusters do): an entity with many events does not count as many entities. With one event an entity, that is the
    two-proportion z test.

    `paired`: whether both scored the same events.
    """
    first, second = counts.champion, counts.challenger
    if not (first.events and second.events):
        return []
    rows = [("score", first.sums, second.sums)]
    names = sorted(first.chosen | second.chosen)
    rows += [(name, first.chosen.get(name, _NONE), second.chosen.get(name, _NONE)) for name in names]
    found = []
    for what, *sums in rows:
        ratios, residuals = [], []
        for counted, values in zip((first, second), sums, strict=True):
            events, of = np.array(counted.groups, np.float64), np.array(values, np.float64)
            ratios.append(float(of.sum() / events.sum()))
            residuals.append((of - ratios[-1] * events) / events.sum())
        spread = [residuals[1] - residuals[0]] if paired else residuals
        error = math.sqrt(sum(float((each**2).sum()) for each in spread) * GROUPS / (GROUPS - 1))
        by = ratios[1] - ratios[0]
        p = math.erfc(abs(by) / error / math.sqrt(2)) if error else float(not by)
        found.append(Compared(what, ratios[0], ratios[1], by - 1.96 * error, by + 1.96 * error, p))
    return found


# ---------------------------------------------------------------------- in the grid


def experiment_in(record: Record) -> Experiment:
    """Of a control record; raises `msgspec.ValidationError`."""
    found = msgspec.convert(record.value, Experiment)
    if found.job != record.key:
        raise ValueError(f"it is of the job `{found.job}`")
    return found


async def experiment_of(grid: Grid, job: JobRecord) -> Experiment | None:
    """The experiment of a job, running or ended; None if it has none. Records that cannot be read are noted."""
    found = (await Records(grid, EXPERIMENTS_MAP).read(experiment_in)).get(job.name)
    return found if found is not None and found.submitted_at == job.submitted_at else None


async def counts_of(grid: Grid, experiment: Experiment) -> Counts:
    """What all workers have counted of an experiment."""
    found = await Records(grid, COUNTS_MAP).read(Counts.of_record)
    return together(experiment, found.values())


def together(experiment: Experiment, counts: Iterable[Counts]) -> Counts:
    """The sum of those that are of an experiment."""
    total = Counts(id=experiment.id)
    for each in counts:
        if each.id == experiment.id:
            total = total.plus(each)
    return total


async def forget(grid: Grid, job: str, results: str | None = None) -> None:
    """Remove the experiment of a job and what was counted of it; and what a shadow has scored, beside those results."""
    if results is not None and await grid.has_map(shadow_map(results)):
        await (await grid.map(shadow_map(results))).destroy()
    counts = Records(grid, COUNTS_MAP)
    for key in await counts.all():
        if key.rpartition("/")[0] == job:
            await counts.delete(key)
    await Records(grid, EXPERIMENTS_MAP).delete(job)


def shadow_map(results: str) -> str:
    """The map with what a shadow has scored: not a `results.*`, which have journals."""
    return f"shadow.{results}"


class Standing(NamedTuple):
    """An experiment, and what all workers have counted of it."""

    experiment: Experiment
    counts: Counts

    @property
    def text(self) -> str:
        """A line for people."""
        experiment, counts = self
        at = (
            "every event, beside the champion" if experiment.kind == "shadow" else f"{experiment.share:g} % of entities"
        )
        if len(experiment.steps) > 1:
            at += f" (step {experiment.step + 1} of {len(experiment.steps)})"
        at = f"ended: {experiment.why}" if experiment.state == "ended" else at
        return (
            f"{experiment.kind} of {experiment.model} v{experiment.version}, {at}; champion {counts.champion.events:,} "
            f"events, challenger {counts.challenger.events:,} and {counts.challenger.errors:,} errors"
        )

    def _repr_html_(self) -> str:
        value = self.to_json()
        return self.experiment._repr_html_() + html_table(*({"variant": name, **value[name]} for name in VARIANTS))

    def compared(self) -> list[Compared]:
        """How the variants differ."""
        return compared(self.counts, paired=self.experiment.kind == "shadow")

    def to_json(self) -> dict[str, Any]:
        counts = self.counts
        made: dict[str, Any] = {**self.experiment.to_json(), "share": self.experiment.share, "psi": shift_of(counts)}
        for name, each in zip(VARIANTS, (counts.champion, counts.challenger), strict=True):
            made[name] = {"events": each.events, "errors": each.errors, "us_per_row": round(each.us_per_row, 3)}
        made |= {name: getattr(counts, name) for name in ("nobodys", "behind", "unseen", "error")}
        return {**made, "compared": [each._asdict() for each in self.compared()]}
