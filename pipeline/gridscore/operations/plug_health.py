"""Whether a source or a sink is well: what a few looks at it, seconds apart, say together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gridscore.grid.heap import HEAP_ADVICE, MEASURE_ADVICE
from gridscore.operations.health import (
    LATE_SECONDS,
    NEARLY_FULL,
    TREND_SECONDS,
    Finding,
    Look,
    committed_between,
    fullest,
    grows,
    note,
    problem,
    problems_first,
    runs_out,
)
from gridscore.sources.status import FAILED
from gridscore.texts import count_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gridscore.operations.sink_status import SinkStatus
    from gridscore.sources.status import SourceStatus


def examine_source(looks: Sequence[SourceStatus]) -> list[Finding]:
    """What is to be said of a source, problems first.

    Args:
        looks: At the same source, the latest last. A state counts if all looks show it.
    """
    now, found = looks[-1], []
    states = {look.state for look in looks}
    if now.failure is not None:
        where = f"{now.failure.host}, process {now.failure.pid}" if now.failure.host else "somewhere"
        forget = f"`gridscore source forget {now.name}` takes it off the list." if now.state == FAILED else ""
        found.append(_failed(f" ({where}): {now.failure.error}", forget))
    if states == {"interrupted"}:
        text = f"It cannot read now: {now.error}"
        found.append(problem("interrupted", text, "It tries again by itself, for as long as it takes."))
    elif states == {"paused"}:
        advice = (
            f"Fix the cause, for example by starting it with the right format. It goes on once dead letters are gone: "
            f"`gridscore dead-letters list {now.name}` says why each is, `purge` or `replay` makes room."
        )
        found.append(problem("paused", f"It reads nothing. Paused: {now.waiting}.", advice))
    elif states == {"waiting"} and all(look.waiting.startswith("waiting for memory") for look in looks):
        # It waits like this only after a collection that has left the heap as full.
        advice = f"Nothing is lost: it goes on when the member has room. {HEAP_ADVICE}"
        found.append(problem("heap", f"It puts nothing: {now.waiting}.", advice))
    elif states == {"waiting"}:
        advice = f"Nothing is lost: {_outlook(now.waiting)}"
        found.append(note("waiting", f"It waits for room: {now.waiting}.", advice))
    if now.dead_letters:
        text = f"{count_text(now.dead_letters, 'dead letter')}: what it read and could not take as an event."
        found.append(note("dead_letters", text, _says_why(now.name)))
    return problems_first(found)


def _failed(what: str, forget: str) -> Finding:
    """A failure of the last process, with how to forget it; or of another process than those that run."""
    advice = "Fix the cause, then start it again."
    if not forget:
        return note("failed", f"One of its processes has failed{what}", advice)
    return problem("failed", f"It has failed{what}", f"{advice} {forget}")


def _says_why(name: str) -> str:
    return f"`gridscore dead-letters list {name}` says why each is."


def _outlook(waiting: str) -> str:
    if waiting.startswith("waiting for job"):
        return "it goes on when the events before have been scored. More workers would help."
    if waiting.startswith("waiting for member"):
        return f"it goes on with the next measurement. {MEASURE_ADVICE}"
    return f"it goes on when the member has room. {HEAP_ADVICE}"


def examine_sink(looks: Sequence[Look[SinkStatus]], *, late_seconds: float = LATE_SECONDS) -> list[Finding]:
    """What is to be said of a sink, problems first.

    Args:
        looks: At the same sink, the latest last. A state counts if all looks show it; trends need `TREND_SECONDS`.
        late_seconds: Growing lag is a problem if working it off, at the present rate, would take longer.
    """
    now = looks[-1].status
    name, found = now.record.name, []
    if now.record.error:
        forget = f"`gridscore sink forget {name}` takes it off the list, and its offsets with it."
        found.append(_failed(f": {now.record.error}", "" if now.processes else forget))
    if now.lag is None:
        text = f"The journal of `{now.record.map}` cannot be read."
        found.append(problem("no_journal", text, "Does the map have one? See `gridscore doctor`."))
    elif all(not look.status.processes for look in looks):
        found += _stopped(looks)
    else:
        found += _keeps_up(looks, late_seconds)
    if now.lost:
        text = (
            f"{count_text(now.lost, 'result')} {'was' if now.lost == 1 else 'were'} overwritten before they were read"
        )
        found.append(note("loss", f"{text}; `on_loss` says what was done.", "A larger journal has more room."))
    if now.dead_letters:
        text = f"{count_text(now.dead_letters, 'dead letter')}: results that its destination refuses."
        found.append(note("dead_letters", text, _says_why(name)))
    return problems_first(found)


def _stopped(looks: Sequence[Look[SinkStatus]]) -> list[Finding]:
    now = looks[-1].status
    waiting = f"; {count_text(now.lag or 0, 'result')} {'waits' if now.lag == 1 else 'wait'}" if now.lag else ""
    if forecast := runs_out(looks, "result", "It is not running: start it, by the same command again."):
        return [forecast]
    if (full := fullest(now.positions)) >= NEARLY_FULL:
        text = f"It is not running, and what waits fills {full:.0%} of a partition's journal: the oldest results are "
        return [problem("journal_full", f"{text}overwritten next.", "Start it: the same command, again.")]
    if now.record.error:
        return []  # said already
    return [note("stopped", f"It is not running{waiting}.", "The same command, given again, continues.")]


def _keeps_up(looks: Sequence[Look[SinkStatus]], late_seconds: float) -> list[Finding]:
    first, last = looks[0], looks[-1]
    now, found = last.status, []
    if all(look.status.state == "paused" for look in looks):
        advice = f"Fix the cause; `gridscore dead-letters replay {now.record.name} --all`, or `purge`, makes room."
        found.append(problem("paused", f"It delivers nothing. {now.error}", advice))
    if all(look.status.state == "waiting" for look in looks):
        advice = "Bring it back. The sink tries again by itself; results wait in the journal meanwhile."
        found.append(problem("away", f"It waits for its destination: {now.error}", advice))
    more = "More processes, or a larger journal."
    if forecast := runs_out(looks, "result", more):
        found.append(forecast)
    elif (full := fullest(now.positions)) >= NEARLY_FULL:
        text = f"What waits fills {full:.0%} of a partition's journal: the oldest results are overwritten next."
        found.append(note("journal_nearly_full", text, more))
    seconds = last.at - first.at
    if found or seconds < TREND_SECONDS or any(not look.status.lag for look in looks):
        return found
    lags = [look.status.lag or 0 for look in looks]
    rate = committed_between(first.status.positions, now.positions) / seconds
    if not rate:
        waiting = count_text(lags[-1], "result waits", "results wait")
        advice = "Does its destination answer? The log of its processes says what they wait for."
        return [problem("stuck", f"Nothing was committed in {seconds:.0f} s, though {waiting}.", advice)]
    if grows(lags) and lags[-1] / rate > late_seconds:
        text = (
            f"Lag grows: {lags[0]:,} to {lags[-1]:,} results in {seconds:.0f} s, while {rate:,.0f} a second were "
            f"delivered; working it off would take {lags[-1] / rate:,.0f} s."
        )
        return [problem("lag", text, "Start another process of it, if its destination can take more.")]
    return []
