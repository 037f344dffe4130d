"""Whether a job is well: what a few looks at it, seconds apart, say together.

A rule that may be broken for a moment (a worker is replaced, a spike comes) counts only if it was broken at every look.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from gridscore.job.life import OVER, WANTED, JobState
from gridscore.scoring.window_messages import asks_too_much, group_of
from gridscore.texts import count_text

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from gridscore.operations.status import JobStatus, Position

TREND_SECONDS = 3.5  # looks that are closer together show no trend: offsets and records are written once a second
LATE_SECONDS = 10.0  # growing lag is not a problem while working it off would take less than this
_LATE_PART = 0.2  # nor while p99 is below this part of it
# A copy of a lookup map is loaded every ten minutes at least; if it is older, that has failed.
LOOKUP_OLD_SECONDS = 660.0

NEARLY_FULL = 0.8  # part of a partition's journal that unread events may fill without a finding
_FORECAST_FULL = 0.25  # below this, the events between two commits look like growth
# Unread entries that are overwritten so soon are a finding; and a problem.
_FORECAST_SECONDS, _SOON_SECONDS = 300.0, 60.0

QUALITY_EVENTS = 100  # events that must have been counted before shares of missing values are judged
# Part of the events without an entry in a lookup that is a finding; and a problem, as the lookup is useless.
MANY_MISSES, ALL_MISSES = 0.2, 0.99

# Part of the events with a category that the model does not know: a finding; and a problem.
SOME_UNSEEN, MANY_UNSEEN = 0.05, 0.5

MANY_LATE = 0.01  # part of the events that came too late to count in windows that is a finding
_TAKEN_OVER = "Another worker takes them over once their leases have run out. If none does: `gridscore worker`."

_NAMED = 3  # how many workers a sentence names
_NO_BASELINE = "Attach the matrix that the model was trained on, `matrix.attach(booster)`, and push it again."

MANY_MISSING = 0.5  # part of the events without a value for a feature that is a finding


class Level(StrEnum):
    """How bad it is."""

    PROBLEM = "problem"  # the job is not well
    NOTE = "note"  # worth knowing; the job is well


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to be said of a job."""

    level: Level
    code: str  # for scripts
    text: str  # one sentence
    advice: str = ""  # what to do, one sentence; empty if nothing


problem, note = (partial(Finding, level) for level in Level)


class _Reader(Protocol):
    """A job or sink that reads a journal."""

    @property
    def positions(self) -> Sequence[Position]: ...

    @property
    def living(self) -> Collection[str]: ...

    @property
    def lag(self) -> int | None: ...

    @property
    def journal_error(self) -> str: ...


_Status_co = TypeVar("_Status_co", bound=_Reader, covariant=True)


@dataclass(frozen=True, slots=True)
class Look(Generic[_Status_co]):
    """The status of a job or sink, and when it was taken, in seconds of the monotonic clock."""

    at: float
    status: _Status_co


def is_well(findings: Sequence[Finding]) -> bool:
    """Whether there is no problem among them."""
    return not any(finding.level is Level.PROBLEM for finding in findings)


def problems_first(findings: Iterable[Finding]) -> list[Finding]:
    """The findings, sorted by level."""
    return sorted(findings, key=lambda finding: finding.level is Level.NOTE)


def fullest(positions: Sequence[Position]) -> float:
    """Part of a ring that unread entries fill, of the fullest partition."""
    return max((position.full for position in positions), default=0.0)


def examine(looks: Sequence[Look[JobStatus]], *, late_seconds: float = LATE_SECONDS) -> list[Finding]:
    """What is to be said of a job, problems first.

    Args:
        looks: At the same job, the latest last. Trends need `TREND_SECONDS`.
        late_seconds: Growing lag is a problem if working it off, at the present rate, would take longer; or if p99 is
            above a fifth of this.
    """
    now = looks[-1].status
    # Looks from before an update or a restart say nothing of now.
    looks = [look for look in looks if look.status.record.is_same_run(now.record)]
    if now.record.state == JobState.FAILED:
        found = _failed(now)
    elif now.record.state in WANTED:
        found = [*_scored_for(looks), *_keeps_up(looks, late_seconds), *_losses(looks), *_inputs(now), *_quality(now)]
        found += [*_windows(now), *_drift(now)]
    else:
        found = [*_asleep(looks), *_losses(looks)]
    found += [*_unkept(now), *_parity(now)]
    if now.record.state in OVER:
        # Nothing can be done any more, and if it is submitted again, it starts over.
        found = [
            replace(each, level=Level.NOTE, advice="") if each.level is Level.PROBLEM else each
            for each in found
            if each.code != "rescan"
        ]
    if now.totals["dead_letters"]:
        text = f"{count_text(now.totals['dead_letters'], 'event')} could not be scored."
        then = (
            "`dead-letters purge` removes them"
            if now.record.state in OVER
            else "`dead-letters replay` brings them back"
        )
        found.append(note("dead_letters", text, f"`gridscore dead-letters list {now.record.name}` says why; {then}."))
    return problems_first(found)


def _failed(now: JobStatus) -> list[Finding]:
    name = now.record.name
    back = f"`gridscore rollback {name}` undoes its last update; " if now.record.previous is not None else ""
    advice = f"Fix the cause, then `gridscore resume {name}`; {back}`cancel` ends it for good."
    return [problem("failed", f"The job failed: {now.record.error}", advice)]


def _asleep(looks: Sequence[Look[JobStatus]]) -> list[Finding]:
    now = looks[-1].status
    if now.record.state == JobState.CANCELLED:
        return [note("cancelled", "Cancelled by a user.", "If it is submitted again, it starts over.")]
    if now.record.state != JobState.SUSPENDED:
        return []
    resume = f"`gridscore resume {now.record.name}` goes on from the committed offsets."
    text = "Suspended, and unread events fill {} of a partition's journal: the oldest are overwritten next."
    full = fills(looks, "event", partial(problem, "journal_full"), text, resume)
    return [full or note("suspended", "Suspended by a user.", resume)]


def _scored_for(looks: Sequence[Look[JobStatus]]) -> list[Finding]:
    """Whether there is a worker, and all partitions have a living owner."""
    now = looks[-1].status
    if _always(looks, lambda status: not status.workers):
        if now.idle_workers:
            text = f"No worker scores for it, though {count_text(now.idle_workers, 'worker runs', 'workers run')}."
            return [problem("no_worker", text, "Were they started with --jobs, without this one? See their logs.")]
        text = "No worker is running."
        if owners := _owners(now, range(len(now.positions))):
            text += f" Killed, cut off or hanging: {owners}."
        return [problem("no_worker", text, "Start one, anywhere: `gridscore worker`.")]
    if (now.model_errors or now.lookup_errors or now.function_errors) and not now.versions:
        return []  # `model`, `lookup` or `functions` says why
    if _always(looks, lambda status: status.state != JobState.RUNNING):
        text = "It is starting: models and lookups are being loaded, no event is scored yet."
        return [problem("starting", text, "If this lasts, the worker's log says what it waits for.")]
    orphans = _orphans(looks)
    if orphans:
        have = count_text(
            len(orphans), f"partition of {len(now.positions)} has", f"partitions of {len(now.positions)} have"
        )
        text = f"{have} no living owner: their events wait."
        if owners := _owners(now, orphans):
            text += f" Last held by {owners}."
        return [problem("no_owner", text, _TAKEN_OVER)]
    if waiting := _orphans(looks, lambda status: status.stage):
        text = (
            f"{count_text(len(waiting), 'partition')} of `{group_of(now.record.name)}` "
            f"{'has' if len(waiting) == 1 else 'have'} no living owner, the first of them {waiting[0]}: events with "
            "windows there wait, and all that are read with them."
        )
        return [problem("no_owner", text, f"{_TAKEN_OVER} An invalid record of theirs: `gridscore repair`.")]
    return []


def _owners(now: JobStatus, partitions: Iterable[int]) -> str:
    """Some of the last owners of partitions."""
    owners = sorted({owner for partition in partitions if (owner := now.positions[partition].owner)})
    return ", ".join(owners[:_NAMED]) + (", …" if owners[_NAMED:] else "")


def _orphans(
    looks: Sequence[Look[JobStatus]], of: Callable[[JobStatus], Sequence[Position]] = lambda status: status.positions
) -> list[int]:
    """Partitions without a living owner at any look, whose record nobody has changed meanwhile."""
    orphans = []
    for partition, position in enumerate(of(looks[-1].status)):
        if all(
            partition < len(of(look.status))
            and of(look.status)[partition].owner not in look.status.figures
            and of(look.status)[partition].stamp == position.stamp
            for look in looks
        ):
            orphans.append(partition)
    return orphans


def _keeps_up(looks: Sequence[Look[JobStatus]], late_seconds: float) -> list[Finding]:
    looks = readable(looks)
    if looks[-1].status.lag is None:
        return [no_journal(looks, looks[-1].status.record.job.events)]
    text = "Unread events fill {} of a partition's journal: producers have to wait, or events are lost."
    more = "More workers, or a larger journal, would give it room."
    found = [fills(looks, "event", partial(note, "journal_nearly_full"), text, more)]
    if looks[-1].at - looks[0].at >= TREND_SECONDS:
        running = _always(looks, lambda status: bool(status.workers) and status.state == JobState.RUNNING)
        if running and (text := stands_still(looks, "event")):
            advice = "The workers' logs say what they wait for; `gridscore doctor`, who hangs."
            found.append(problem("stuck", text, advice))
        else:
            advice = "Start more workers: `gridscore worker --processes auto`."
            p99 = min((look.status.latency_ms["p99"] or 0.0) / 1_000 for look in looks)
            found.append(falls_behind(looks, "event", "scored", advice, late_seconds, p99))
    return [each for each in found if each is not None]


def readable(looks: Sequence[Look[_Status_co]]) -> Sequence[Look[_Status_co]]:
    """The looks that could read the journal; the last one if none could."""
    return [look for look in looks if look.status.lag is not None] or looks[-1:]


def no_journal(looks: Sequence[Look[_Reader]], map_name: str) -> Finding:
    """The finding about a journal that could not be read at any look."""
    text = f"The journal of `{map_name}` cannot be read. {looks[-1].status.journal_error}"
    return problem("no_journal", text.rstrip(), "`gridscore doctor` checks the cluster.")


def stands_still(looks: Sequence[Look[_Reader]], what: str) -> str:
    """What to say of partitions of which nothing was committed, though entries waited and their owner had time.

    An owner that works off a backlog comes to a partition when it is its turn. So it counts only once what the owner
    has committed elsewhere is as much as waited there at first.
    """
    rows = [look.status.positions for look in looks]
    first, now = rows[0], rows[-1]
    alive = set(looks[0].status.living).intersection(*(look.status.living for look in looks[1:]))
    still = {
        partition
        for partition, last in enumerate(now)
        if last.owner in alive
        and all(
            partition < len(row)
            and row[partition].unread
            and (row[partition].owner, row[partition].offset) == (last.owner, last.offset)
            for row in rows
        )
    }
    for owner in {now[partition].owner for partition in still}:
        others = [
            each for each in range(len(now)) if now[each].owner == owner and each not in still and each < len(first)
        ]
        done = committed_between([first[each] for each in others], [now[each] for each in others])
        if done < sum(first[each].unread for each in others):
            still = {partition for partition in still if now[partition].owner != owner}
    if not still:
        return ""
    waits = sum(now[partition].unread for partition in still)
    waiting, seconds = count_text(waits, f"{what} waits", f"{what}s wait"), looks[-1].at - looks[0].at
    if committed_between(first, now):
        stand = count_text(len(still), f"partition of {len(now)} stands", f"partitions of {len(now)} stand")
        return f"{stand} still: nothing of {min(still)} was committed in {seconds:.0f} s, though {waiting} there."
    return f"Nothing was committed in {seconds:.0f} s, though {waiting}."


def committed_between(before: Sequence[Position], after: Sequence[Position]) -> int:
    """Entries that were committed between two looks."""
    pairs = zip(before, after, strict=False)
    return sum(later.offset - max(earlier.offset, 0) for earlier, later in pairs if later.offset > earlier.offset)


def fills(
    looks: Sequence[Look[_Reader]], what: str, say: Callable[[str, str], Finding], text: str, advice: str
) -> Finding | None:
    """A journal of which unread entries, called `what`, are overwritten soon, or fill a large part.

    `say`: makes the finding about the part, which is filled into `text`.
    """
    full = fullest(looks[-1].status.positions)
    return runs_out(looks, what, advice) or (say(text.format(f"{full:.0%}"), advice) if full >= NEARLY_FULL else None)


def falls_behind(
    looks: Sequence[Look[_Reader]], what: str, done: str, advice: str, late_seconds: float, p99: float = 0.0
) -> Finding | None:
    """Lag that grows, if working it off, at the present rate, would take longer than `late_seconds`; or p99 is high."""
    lags, seconds = [look.status.lag or 0 for look in looks], looks[-1].at - looks[0].at
    rate, slow = committed_between(looks[0].status.positions, looks[-1].status.positions) / seconds, ""
    if p99 > late_seconds * _LATE_PART:
        slow = f", and p99 is {p99:,.1f} s or more"
    if not rate or not grows(lags) or (lags[-1] / rate <= late_seconds and not slow):
        return None
    text = (
        f"Lag grows: {lags[0]:,} to {lags[-1]:,} {what}s in {seconds:.0f} s, while {rate:,.0f} a second were {done}; "
        f"working it off would take {lags[-1] / rate:,.0f} s{slow}."
    )
    return problem("lag", text, advice)


def runs_out(looks: Sequence[Look[_Reader]], what: str, advice: str) -> Finding | None:
    """When unread entries, called `what`, will be overwritten if they go on growing in number."""
    left = seconds_left([(look.at, dict(enumerate(look.status.positions))) for look in looks])
    found = sorted((seconds, partition) for partition, seconds in left.items() if seconds < _FORECAST_SECONDS)
    if not found:
        return None
    seconds, partition = found[0]
    more = f", and {count_text(len(found) - 1, 'more partition')} within {_FORECAST_SECONDS / 60:.0f} minutes"
    text = f"Partition {partition} loses unread {what}s in {seconds:,.0f} s at this rate{more if found[1:] else ''}."
    return (problem if seconds < _SOON_SECONDS else note)("journal_runs_out", text, advice)


def seconds_left(looks: Sequence[tuple[float, Mapping[int, Position]]]) -> dict[int, float]:
    """Seconds until unread entries are overwritten, of the partitions of which a fair part is full and more come.

    `looks`: at the same group: when each was taken, and what it found, by partition.
    """
    if looks[-1][0] - looks[0][0] < TREND_SECONDS:
        return {}
    half = len(looks) // 2
    between = sum(at for at, _ in looks[-half:]) / half - sum(at for at, _ in looks[:half]) / half
    found = {}
    for partition, now in looks[-1][1].items():
        if now.room is None or now.full < _FORECAST_FULL or any(partition not in row for _, row in looks):
            continue
        unread = [row[partition].unread for _, row in looks]
        if grows(unread):
            rate = (sum(unread[-half:]) - sum(unread[:half])) / half / between
            found[partition] = now.room / rate
    return found


def grows(lags: Sequence[int]) -> bool:
    """Whether all later looks are above all earlier ones: single steps up and down are only sampling."""
    half = len(lags) // 2
    return half > 0 and min(lags[-half:]) > max(lags[:half])


def _losses(looks: Sequence[Look[JobStatus]]) -> list[Finding]:
    """Losses; those that were made good, or acknowledged, are no longer a problem."""
    now = looks[-1].status
    name, rescans = now.record.name, now.record.job.on_loss == "rescan"
    found = []
    waiting = {(rescan.partition, rescan.at) for rescan in now.rescans}
    for look in looks:
        waiting &= {(rescan.partition, rescan.at) for rescan in look.status.rescans}
    if waiting:
        reasons = ", ".join(sorted({rescan.reason for rescan in now.rescans if rescan.reason})) or "unknown reason"
        text = f"{count_text(len(waiting), 'partition')} must be searched for events without a result ({reasons})."
        advice = "Workers do it by themselves, beside scoring."
        if now.record.state not in WANTED:
            advice = "Workers do it once the job runs."
        found.append(problem("rescan", text, advice))
    lost, regressions = (int(now.totals[key]) for key in ("lost", "regressions"))
    news = [lost - now.acknowledged.get("lost", 0), regressions - now.acknowledged.get("regressions", 0)]
    what = _loss_text(lost, regressions)
    if not what:
        return found
    known = f"`gridscore status {name} --acknowledge` notes that you know."
    if max(news) <= 0:
        found.append(note("loss_acknowledged", f"{what}, and somebody has acknowledged it."))
    elif not rescans:
        advice = f"`gridscore audit {name}` finds events without a result; {known}"
        found.append(problem("loss", f"{what}.", advice))
    elif not now.rescans:
        text = f"{what}; the event map was rescanned, and events that it still had were scored."
        found.append(note("loss_settled", text, known))
    return found


def _unkept(now: JobStatus) -> list[Finding]:
    """Rejected events without a dead letter, for lack of room."""
    name, news = now.record.name, int(now.totals["unkept"]) - now.acknowledged.get("unkept", 0)
    if news <= 0:
        return []
    text = (
        f"{count_text(news, 'event')} could not be scored, and {'has' if news == 1 else 'have'} no dead letter: the "
        "limit was reached. They are still in the event map, unless a newer one took their key."
    )
    advice = (
        f"Fix the cause; `gridscore dead-letters replay {name} --all`, or `purge`, makes room; then "
        f"`gridscore audit {name} --repair` has them scored, and `gridscore status {name} --acknowledge` notes it."
    )
    return [problem("dead_letters_full", text, advice)]


def _parity(now: JobStatus) -> list[Finding]:
    """Results that are not what the same events give offline."""
    certificate = now.certificate
    if certificate is None or not certificate.different:
        return []
    text = (
        f"Version {certificate.version} gives other results live than offline ({certificate.text}). "
        f"{certificate.difference[:1].upper()}{certificate.difference[1:]}."
    )
    advice = f"`gridscore parity {now.record.name}` shows it in full; this ends when it finds no difference any more."
    return [problem("parity", text, advice)]


def _drift(now: JobStatus) -> list[Finding]:
    """Features and scores that have moved away from the training."""
    errors = now.drift_errors
    found = [note("no_drift", f"Drift is not told: {error}.", _NO_BASELINE) for error in errors]
    active = [] if now.drift is None else now.drift.active
    if active:
        texts = [f"{each.measure} of `{each.feature}` {each.value:.3g} (over {each.threshold:g})" for each in active]
        more = f", … {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
        text = f"Events are not those of the training any more: {', '.join(texts[:_NAMED])}{more}."
        found.append(problem("drift", text, f"`gridscore drift {now.record.name}` shows it, feature by feature."))
    return found


def overwritten(count: int, what: str) -> str:
    """What to say of entries that were lost."""
    was, they = ("was", "it was") if count == 1 else ("were", "they were")
    return f"{count_text(count, what)} {was} overwritten before {they} read"


def _loss_text(lost: int, regressions: int) -> str:
    parts = []
    if lost:
        parts.append(overwritten(lost, "event"))
    if regressions:
        parts.append(f"journals have begun again {count_text(regressions, 'time')}")
    text = ", and ".join(parts)
    return text[:1].upper() + text[1:]


def _windows(now: JobStatus) -> list[Finding]:
    """Events that windows do not count, and states of theirs that cannot be used."""
    found, name = [], now.record.name
    late, events, broken = (int(now.totals[key]) for key in ("late", "events", "broken_states"))
    if late > events * MANY_LATE:
        text = f"{count_text(late, 'event')} came too late to count in windows, of {events:,}."
        advice = "Is a clock wrong of what sends them? If not, a longer `lateness` in the job file lets them count."
        if now.record.job.late is not None:
            advice += f" `{now.record.job.late}` has those that there was room for."
        found.append(note("late_events", text, advice))
    if now.requests_lost:
        text = f"{count_text(now.requests_lost, 'request')} of windows were overwritten before they were read."
        advice = (
            "What was not answered is asked for again. What a worker had answered just before it was killed may be in "
            "no window: its partition had more requests than fit meanwhile. `docs/scaling.md`: windows with other keys."
        )
        found.append(note("requests_lost", text, advice))
    if text := asks_too_much(now.record.job, now.workers):
        found.append(note("many_requests", text, "Run fewer, larger workers."))
    if broken:
        text = f"{count_text(broken, 'state')} of windows could not be used, and began anew."
        found.append(note("broken_states", text, f"The workers' logs say why; who else writes into `windows.{name}`?"))
    return found


def _models(now: JobStatus) -> list[Finding]:
    """Versions and models that workers cannot use."""
    using = ", ".join(f"v{version}" for version in now.versions)
    advice = "Push a model that fits the job, or promote another version: `gridscore model list`."
    found = []
    for error in now.model_errors:
        without = sum(1 for each in now.figures.values() if each.model_error == error and not each.version)
        if not using:
            text = f"No worker can load the model, so no event is scored: {error}"
        elif without:
            who = count_text(
                without, "worker cannot load the model and scores", "workers cannot load the model and score"
            )
            text = f"{who} nothing; others use {using}: {error}"
        elif error.startswith("version "):
            text = f"A model version is refused, {using} stays in use: {error}"
        else:
            text = f"The model cannot be looked up, {using} stays in use: {error}"
        found.append(problem("model", text, advice))
    return found


def _functions(now: JobStatus) -> list[Finding]:
    """Python functions that workers may not call, or that do not get on."""
    advice = (
        "Workers try again by themselves, and call what --allow-python names. Events that a function was given up for "
        f"are dead letters: `gridscore dead-letters list {now.record.name}`."
    )
    found = []
    for error in now.function_errors:
        mine = [each for each in now.figures.values() if each.function_error == error]
        who = count_text(len(mine), "worker")
        found.append(problem("functions", f"{who} cannot call its Python functions: {error}", advice))
    return found


def _experiment(now: JobStatus) -> list[Finding]:
    """An experiment that has ended by itself, or whose challenger a worker does not score with."""
    if now.experiment is None:
        return []
    found, counts = now.experiment
    advice = (
        f"`gridscore experiment status {found.job}` shows it, `gridscore experiment stop {found.job}` clears it away."
    )
    said = []
    for name, each in found.named:
        counted = counts.of(name)
        if each.state == "ended":
            scores = "the champion scores all events" if found.state == "ended" else "the champion scores its events"
            text = f"The experiment with version {each.version} has ended, and {scores}: {each.why}."
            said.append(note("experiment_ended", text, advice))
        elif counted.error and counted.behind:
            text = f"A worker does not score with the {name}, so {counted.behind:,} events were the champion's: "
            said.append(note("challenger", text + counted.error, advice))
    if waits := now.experiment.waits:
        said.append(note("step_waits", f"The next step of the experiment waits for {waits}.", advice))
    elif found.outcomes.problem:
        said.append(note("outcomes", f"Outcomes of the experiment cannot be judged: {found.outcomes.problem}.", advice))
    return said


def _copies(now: JobStatus) -> list[Finding]:
    """Lookup maps that workers cannot copy, or load again."""
    found = []
    for error in now.lookup_errors:
        text = f"A lookup cannot be loaded again, its old copy stays in use: {error}"
        if without := sum(1 for each in now.figures.values() if each.lookup_error == error and not each.version):
            who = count_text(
                without, "worker cannot load a lookup and scores", "workers cannot load a lookup and score"
            )
            text = f"{who} nothing: {error}"
        found.append(problem("lookup", text, "Workers try again by themselves."))
    return found


def _inputs(now: JobStatus) -> list[Finding]:
    """Models that were refused, and lookups that cannot be loaded, are old or have bad entries."""
    found = [*_models(now), *_functions(now), *_experiment(now), *_copies(now)]
    for name, copy in now.lookups.items():
        age, bad, error = copy.get("age", 0), int(copy.get("bad", 0)), copy.get("error", "")
        if age > LOOKUP_OLD_SECONDS:
            text = f"The copy of the lookup `{name}` was last known to be right {age / 60:,.0f} minutes ago."
            found.append(problem("lookup_old", text, "The worker's log says why it cannot be loaded again."))
        if bad:
            good = copy.get("entries", 0) - bad
            which = count_text(bad, "entry", "entries") if good > 0 else f"All {bad:,} entries"
            text = f"{which} of the lookup `{name}` cannot be read and count as missing"
            say = note if good > 0 else problem
            found.append(
                say("lookup_bad", f"{text}: {error}" if error else f"{text}.", "Correct them and put them again.")
            )
    return found


def _quality(now: JobStatus) -> list[Finding]:
    """Lookups, categories and values that events lack too often."""
    quality = now.quality
    if quality.events < QUALITY_EVENTS:
        return []
    shares, found = quality.shares(), []
    for name, share in shares["lookup_misses"].items():
        if share >= MANY_MISSES:
            say = problem if share >= ALL_MISSES else note
            lookup = now.record.job.lookups.get(name)
            where = f" in `{lookup.map}`" if lookup else ""
            text = f"{share:.0%} of the last events have no entry{where} for the lookup `{name}`."
            found.append(say("lookup_misses", text, "Is the map loaded, and do its keys match the events?"))
    if unseen := {name: share for name, share in shares["unseen_categories"].items() if share >= SOME_UNSEEN}:
        say = problem if max(unseen.values()) >= MANY_UNSEEN else note
        text = f"Of the last events, the model does not know the category: {shares_text(unseen)}."
        found.append(say("unseen_categories", text, "It scores them as missing. Train it on recent events."))
    if missing := {name: share for name, share in shares["missing_values"].items() if share >= MANY_MISSING}:
        text = f"Features have no value for many of the last events: {shares_text(missing)}."
        found.append(note("missing_values", text, "If training had them, look at what sends the events."))
    return found


def shares_text(shares: Mapping[str, float], shown: int = 5) -> str:
    """The first names with their shares: `wind 12%, carrier 0.3%`."""
    more = f", … {len(shares) - shown} more" if len(shares) > shown else ""
    listed = [f"{name} {share:.{0 if share >= 0.0995 else 1}%}" for name, share in list(shares.items())[:shown]]
    return ", ".join(listed) + more


def _always(looks: Sequence[Look[JobStatus]], rule: Callable[[JobStatus], bool]) -> bool:
    return all(rule(look.status) for look in looks)
