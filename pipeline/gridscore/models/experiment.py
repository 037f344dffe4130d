"""An experiment: which version scores which entities of a job, what came of it, and what is to be done next.

Whether an entity is the challenger's is a matter of arithmetic, the same in every process and every language:

    number = CRC-32 of the entity's UTF-8 bytes, xor CRC-32 of the experiment's id
    number = the finalizer of MurmurHash3 (32 bit) of that
    place = number * 10,000 / 2**32, rounded down; share = that of a challenger in hundredths of a percent
    the challenger number place / share, rounded down, scores it; or the champion, if there are not so many

So who is the challenger's at 5 % is so at 25 %, too; and of several challengers, one that ends leaves its entities to
the champion, and all others stay with whom they are. One record a job, in `gridscore.experiments`, has all of it.
"""

from __future__ import annotations

import datetime as dt
import math
import time
import zlib
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta

from gridscore.grid.records import Count, Records
from gridscore.models.outcomes import Bound, Outcome, Outcomes
from gridscore.models.variants import COUNTS_MAP, VARIANTS, Compared, Counts, Variant, compared, shift_of
from gridscore.models.version import Positive, Text  # noqa: TC001 -- msgspec reads the annotations
from gridscore.texts import html_table, moment_seconds, moment_text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from numpy.typing import NDArray

    from gridscore.grid import Grid
    from gridscore.grid.records import Record
    from gridscore.job import Job, JobRecord

EXPERIMENTS_MAP = "gridscore.experiments"
SHARES = 10_000  # parts into which the entities are divided
MOST_CHALLENGERS = len(VARIANTS) - 1
# Measures of alerts, as applications see them.
ENDED = "experiment"  # a challenger has ended by itself
LABELS = "labels"  # no outcome can be judged
ALERTS = (ENDED, LABELS)

Share = Annotated[float, Meta(ge=0.01, le=100)]
Reason = Annotated[str, Meta(max_length=500)]


class Limits(msgspec.Struct, frozen=True, omit_defaults=True):
    """What ends a challenger by itself; None: nothing."""

    # Part of the challenger's events without a score, beyond the champion's part.
    errors: Annotated[float, Meta(ge=0, le=1)] | None = None
    us_per_row: Annotated[float, Meta(gt=0, le=1e9)] | None = None  # CPU microseconds that it takes to predict a row
    # Population stability index of its scores against the champion's.
    psi: Annotated[float, Meta(gt=0, le=1e3)] | None = None
    # Events of the challenger, and of the champion, before it is judged; also for each step.
    least: Annotated[int, Meta(ge=1, le=10**9)] = 500
    outcomes: Annotated[tuple[Bound, ...], Meta(max_length=10)] = ()  # of metrics that labels tell
    # Labels of the challenger, and of the champion, before these are judged; also for each step.
    least_labels: Annotated[int, Meta(ge=0, le=10**9)] = 0


class Challenger(msgspec.Struct, frozen=True, omit_defaults=True):
    """A version that is tried."""

    version: Positive
    state: Literal["running", "ended"] = "running"  # `ended` by the limits, or by somebody
    why: Reason = ""  # it ended
    ended_at: Text = ""  # RFC 3339 in UTC; empty if it has not
    told: bool = True  # whether there is nothing to tell of its end, or all has been told


class Experiment(msgspec.Struct, frozen=True, kw_only=True):
    """The record of an experiment."""

    id: Annotated[str, Meta(min_length=1, max_length=40)]  # what tells it from all others; it decides who is whose
    job: Text
    submitted_at: Text  # when that was submitted: an experiment does not outlive its job
    model: Annotated[str, Meta(max_length=100)]
    challengers: Annotated[tuple[Challenger, ...], Meta(min_length=1, max_length=MOST_CHALLENGERS)]  # a canary has one
    # `canary` (in steps), `split` (for good), or `shadow` (the champion answers, the challengers score beside).
    kind: Literal["canary", "split", "shadow"]
    key: Text = ""  # expression over event fields that tells entities apart; empty: the event's key
    # Percent of the entities, ascending, for each challenger; none of a shadow.
    steps: Annotated[tuple[Share, ...], Meta(max_length=20)] = ()
    every: Annotated[float, Meta(ge=0, le=1e8)] = 0.0  # seconds that a step lasts; 0: until somebody ends it
    step: Annotated[int, Meta(ge=0)] = 0  # which it is at
    since: Text  # when that began, RFC 3339 in UTC
    begun: Text = ""  # when the experiment began
    seen: Count = 0  # events that the challenger had scored by `since`
    limits: Limits = Limits()
    outcomes: Outcomes = Outcomes()  # what labels say, if it asks for them
    by: Annotated[str, Meta(max_length=200)]  # who began it, as that process says

    def __post_init__(self) -> None:
        if (self.kind == "shadow") is bool(self.steps):
            raise ValueError("a shadow has no steps, all else has some")
        if any(after <= before for before, after in zip(self.steps, self.steps[1:], strict=False)):
            raise ValueError("the steps do not ascend")
        if self.steps and self.step >= len(self.steps):
            raise ValueError("there is no such step")
        count = len(self.challengers)
        if self.kind == "canary" and count > 1:
            raise ValueError("a canary has one challenger")
        if len({each.version for each in self.challengers}) < count:
            raise ValueError("a version is named twice")
        if any(each.bound >= len(self.limits.outcomes) for each in self.outcomes.found):
            raise ValueError("there is no such bound")
        if self.steps and self._size * count > SHARES:
            raise ValueError(f"{count} challengers with {self.steps[self.step]:g} % each are more than all entities")

    @property
    def state(self) -> Literal["running", "ended"]:
        """Whether a challenger is still tried."""
        return "running" if any(each.state == "running" for each in self.challengers) else "ended"

    @property
    def why(self) -> str:
        """It has ended; or, of several, those that have."""
        ended = [(name, each) for name, each in self.named if each.state == "ended"]
        if len(self.challengers) == 1:
            return ended[0][1].why if ended else ""
        return "; ".join(f"{name} v{each.version}: {each.why}" for name, each in ended)

    @property
    def named(self) -> list[tuple[Variant, Challenger]]:
        """The challengers by what results call them."""
        return list(zip(VARIANTS[1:], self.challengers, strict=False))

    @property
    def versions(self) -> str:
        """Those that are tried, for people: `v2, v3`."""
        return ", ".join(f"v{each.version}" for each in self.challengers)

    @property
    def share(self) -> float:
        """Percent of the entities that each challenger scores now."""
        return self.steps[self.step] if self.steps and self.state == "running" else 0.0

    @property
    def _size(self) -> int:
        return round(self.steps[self.step] * SHARES / 100)

    @property
    def has_next(self) -> bool:
        """Whether it goes on to another step by itself."""
        return self.state == "running" and bool(self.every) and self.step + 1 < len(self.steps)

    def is_due(self, now: float) -> bool:
        """Whether the time of the step is over, at this time in seconds since 1970."""
        return now - moment_seconds(self.since) >= self.every

    def variants(self, draws: NDArray[np.int64]) -> NDArray[np.int64]:
        """Whose the entities drawn are now: the number of the challenger; 0: the champion's."""
        if not self.share:
            return np.zeros(len(draws), np.int64)
        numbers = np.where(draws < 0, 0, (draws * SHARES >> 32) // self._size + 1)
        whose = np.array([0, *(n * (each.state == "running") for n, each in enumerate(self.challengers, 1)), 0])
        taken: NDArray[np.int64] = whose[np.minimum(numbers, len(self.challengers) + 1)]
        return taken

    def ended(self, number: int, why: str, now: str, *, told: bool) -> Experiment:
        """With a challenger that has ended."""
        fresh = msgspec.structs.replace(self.challengers[number], state="ended", why=why[:500], ended_at=now, told=told)
        kept = self.challengers
        found = msgspec.structs.replace(self, challengers=(*kept[:number], fresh, *kept[number + 1 :]))
        return found if found.state == "running" else msgspec.structs.replace(found, since=now)

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
        """For scripts, and for the grid: also what a worker of an earlier release asks."""
        of_first = {"version": self.challengers[0].version, "state": self.state, "why": self.why[:500]}
        return {**msgspec.to_builtins(self), **of_first}

    def _repr_html_(self) -> str:
        names = ("job", "model", "versions", "kind", "share", "state", "why")
        return html_table({name: getattr(self, name) for name in names})


# ---------------------------------------------------------------------- what is to be done


def judged(experiment: Experiment, total: Counts, recent: Counts, elapsed: float, now: float) -> Experiment:
    """The experiment as it should go on: as it is, at its next step, or with challengers that end, and the reasons.

    `total`: what was counted since it began; `recent`: what was counted lately: a fault of today is not made up for by
    good weeks; `elapsed`: seconds since its step began; `now`: seconds since 1970.
    """
    limits, found, at = experiment.limits, experiment, moment_text(dt.datetime.fromtimestamp(now, dt.UTC))
    for number, (name, each) in enumerate(experiment.named):
        if each.state == "running":
            why = _broken(limits, recent, name) or _broken(limits, total, name) or _failed(experiment, name)
            found = found.ended(number, why, at, told=False) if why else found
    if found != experiment or elapsed < experiment.every or not experiment.has_next or waits_for(found, total, now):
        return found
    seen = total.of("challenger").events
    return msgspec.structs.replace(experiment, step=experiment.step + 1, since=at, seen=seen)


def _broken(limits: Limits, counts: Counts, variant: Variant) -> str:
    """Which limit is broken, and by how much; empty if none is, or too little was counted."""
    champion, challenger = counts.of("champion"), counts.of(variant)
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
    if limits.psi is not None and (shift := shift_of(counts, variant, limits.least)) is not None and shift > limits.psi:
        return f"shift: the PSI of {challenger.events:,} scores is {shift:,.4g}; the limit is {limits.psi:g}"
    return ""


def _failed(experiment: Experiment, variant: Variant) -> str:
    """Which bound of an outcome is not kept, whatever chance may do; empty if none."""
    for each in experiment.outcomes.found:
        if each.variant != variant or each.low is None or each.high is None or each.value is None:
            continue
        bound = experiment.limits.outcomes[each.bound]
        if max(bound.room(each.low), bound.room(each.high)) < 0:
            labels = experiment.outcomes.labelled(variant).all
            said = f"{bound.metric}: {each.value:.4g} by {labels:,} labels"
            if each.champion is not None:
                said += f", the champion's {each.champion:.4g}: worse by {each.worse:.4g}"
            return f"{said} (95 %: {each.low:.4g} to {each.high:.4g}); the bound is {bound.text}"
    return ""


def waits_for(experiment: Experiment, total: Counts, now: float) -> str:
    """What the next step needs but for its time, for people: events, labels that are looked at, outcomes within bounds.

    Empty if all is there.
    """
    limits, outcomes = experiment.limits, experiment.outcomes
    waits, events = [], max(0, total.of("challenger").events - experiment.seen)
    if events < limits.least:
        waits.append(f"{limits.least:,} events of the challenger in this step, of which it has {events:,}")
    if not limits.least_labels:
        return "; ".join(waits)
    labels = outcomes.labelled("challenger").of_step
    if outcomes.problem:
        waits.append(f"labels: {outcomes.problem}")
    elif outcomes.step != experiment.step or outcomes.is_old(now):
        waits.append("a look at the labels")  # not one from before the step, nor one that nobody has repeated since
    elif labels < limits.least_labels:
        waits.append(f"{limits.least_labels:,} labels of events of this step, of which there are {labels:,}")
    else:
        known = {each.bound: each for each in outcomes.found}
        for place, bound in enumerate(limits.outcomes):
            found = known.get(place)
            if found is None or found.value is None:
                waits.append(f"`{bound.metric}`: {'too few labels' if found is None else found.problem}")
            elif not bound.room(_of(found)) >= 0:  # be it by chance
                waits.append(f"`{bound.metric}`, which is {_of(found):.4g}, to be {bound.text}")
    return "; ".join(waits)


def _of(outcome: Outcome) -> float:
    value = outcome.value if outcome.worse is None else outcome.worse
    return math.nan if value is None else value


# ---------------------------------------------------------------------- in the grid


def experiment_in(record: Record) -> Experiment:
    """Of a control record; raises `msgspec.ValidationError`."""
    value = record.value
    if "challengers" not in value:  # by an earlier release
        of_first = {what: value[what] for what in ("version", "state", "why") if what in value}
        value = {**value, "challengers": [of_first]}
    found = msgspec.convert(value, Experiment)
    if found.job != record.key:
        raise ValueError(f"it is of the job `{found.job}`")
    return found


async def experiment_of(grid: Grid, job: JobRecord) -> Experiment | None:
    """The experiment of a job, running or ended; None if it has none. Records that cannot be read are noted."""
    found = (await Records(grid, EXPERIMENTS_MAP).read(experiment_in, [job.name])).get(job.name)
    return found if found is not None and found.submitted_at == job.submitted_at else None


async def counts_of(grid: Grid, experiment: Experiment, keys: Collection[str] | None = None) -> Counts:
    """What all workers have counted of an experiment, under the keys of its job; `keys`: these, if they are known."""
    records = Records(grid, COUNTS_MAP)
    keys = await records.keys(f"{experiment.job}/") if keys is None else keys
    return together(experiment, (await records.read(Counts.of_record, keys)).values())


def together(experiment: Experiment, counts: Iterable[Counts]) -> Counts:
    """The sum of those that are of an experiment."""
    total = Counts(id=experiment.id)
    for each in counts:
        if each.id == experiment.id:
            total = total.plus(each)
    return total


async def tell_alert(
    grid: Grid, job: Job, experiment: Experiment, measure: str, why: str, variant: Variant = "challenger"
) -> None:
    """Put an alert where applications listen: a challenger has ended by itself, or no outcome can be judged.

    An alert that is there stays, but one of labels that has ended starts again.
    """
    alerts, each = Records(grid, job.alerts_map), dict(experiment.named)[variant]
    version = f"{experiment.model} v{each.version}"
    entry: dict[str, Any] = {"job": job.name, "version": version, "feature": "", "measure": measure}
    entry |= {
        "state": "started",
        "value": None,
        "threshold": None,
        "since": each.ended_at or moment_text(),
        "until": None,
        "why": why,
    }
    name = f"{job.name}/{version}/{measure}/{experiment.id}"
    there = await alerts.get(name)
    if there is None or (measure == LABELS and there.value.get("state") == "ended"):
        await alerts.put(name, entry)


async def end_alerts(grid: Grid, job: Job, experiment: Experiment, *measures: str) -> None:
    """End those of these alerts that have started."""
    alerts = Records(grid, job.alerts_map)
    for each in experiment.challengers:
        for measure in measures:
            there = await alerts.get(f"{job.name}/{experiment.model} v{each.version}/{measure}/{experiment.id}")
            if there is not None and there.value.get("state") != "ended":
                await alerts.put(there.key, {**there.value, "state": "ended", "until": moment_text()})


async def forget(grid: Grid, job: str, results: str | None = None) -> None:
    """Remove the experiment of a job and what was counted of it; and what shadows have scored, beside those results."""
    for name in [] if results is None else [shadow_map(results, each) for each in VARIANTS[1:]]:
        if await grid.has_map(name):
            await grid.destroy(name)
    counts = Records(grid, COUNTS_MAP)
    for key in await counts.keys(f"{job}/"):
        await counts.delete(key)
    await Records(grid, EXPERIMENTS_MAP).delete(job)


def shadow_map(results: str, variant: Variant = "challenger") -> str:
    """The map with what a shadow has scored: not a `results.*`, which have journals."""
    return f"shadow.{results}" + ("" if variant == "challenger" else f".{variant}")


class Standing(NamedTuple):
    """An experiment, and what all workers have counted of it."""

    experiment: Experiment
    counts: Counts

    @property
    def text(self) -> str:
        """A line for people."""
        experiment, counts = self
        at = "every event, beside the champion"
        if experiment.kind != "shadow":
            at = f"{experiment.share:g} % of entities" + (" each" if len(experiment.challengers) > 1 else "")
        if len(experiment.steps) > 1:
            at += f" (step {experiment.step + 1} of {len(experiment.steps)})"
        ended = f"ended: {experiment.why}" if experiment.why else ""
        at = ended if experiment.state == "ended" else f"{at}; {ended}" if ended else at
        at += f"; the next step waits for {self.waits}" if self.waits else ""
        figures = [f"champion {counts.of('champion').events:,} events"]
        for name, _ in experiment.named:
            figures.append(f"{name} {counts.of(name).events:,} and {counts.of(name).errors:,} errors")
        return f"{experiment.kind} of {experiment.model} {experiment.versions}, {at}; {', '.join(figures)}"

    @property
    def waits(self) -> str:
        """What the next step waits for, now that its time is over; empty if nothing, or there is none."""
        experiment, now = self.experiment, time.time()
        is_due = experiment.has_next and experiment.is_due(now)
        return waits_for(experiment, self.counts, now) if is_due else ""

    @property
    def variants(self) -> list[dict[str, Any]]:
        """Each variant with its figures, plain."""
        limits, outcomes = self.experiment.limits, self.experiment.outcomes
        found = []
        tried: list[tuple[Variant, Challenger | None]] = [("champion", None), *self.experiment.named]
        for name, each in tried:
            counted = self.counts.of(name)
            row: dict[str, Any] = {"variant": name, "version": None if each is None else each.version}
            row |= {"state": "running" if each is None else each.state, "why": "" if each is None else each.why}
            row |= {"events": counted.events, "errors": counted.errors, "us_per_row": round(counted.us_per_row, 3)}
            row["psi"] = None if each is None else shift_of(self.counts, name)
            row |= {"behind": counted.behind, "error": counted.error}
            if limits.least_labels:
                row["labels"] = outcomes.labelled(name).all
            found.append(row)
        return found

    @property
    def outcomes(self) -> list[dict[str, Any]]:
        """What labels say of each bound, plain."""
        bounds = self.experiment.limits.outcomes
        return [
            {**msgspec.structs.asdict(each), "metric": bounds[each.bound].metric, "bound": bounds[each.bound].text}
            for each in self.experiment.outcomes.found
            if each.bound < len(bounds)
        ]

    def _repr_html_(self) -> str:
        return self.experiment._repr_html_() + html_table(*self.variants)

    def compared(self) -> list[Compared]:
        """How the challengers differ from the champion."""
        return compared(self.counts, paired=self.experiment.kind == "shadow")

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        made: dict[str, Any] = {**self.experiment.to_json(), "share": self.experiment.share}
        made |= {"variants": self.variants, "nobodys": self.counts.nobodys, "unseen": self.counts.unseen}
        made |= {"waits": self.waits, "text": self.text}
        made["labels"] = msgspec.to_builtins(self.experiment.outcomes)
        return {**made, "outcomes": self.outcomes, "compared": [each._asdict() for each in self.compared()]}
