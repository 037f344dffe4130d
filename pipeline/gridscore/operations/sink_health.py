"""Whether a sink is well: what a few looks at it, seconds apart, say together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gridscore.operations.health import (
    LATE_SECONDS,
    NEARLY_FULL,
    TREND_SECONDS,
    Finding,
    Level,
    committed_between,
    grows,
    runs_out,
)
from gridscore.texts import count_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gridscore.operations.sink_status import SinkStatus


@dataclass(frozen=True, slots=True)
class SinkLook:
    """A sink's status, and when it was taken, in seconds of the monotonic clock."""

    at: float
    status: SinkStatus


def examine_sink(looks: Sequence[SinkLook], *, late_seconds: float = LATE_SECONDS) -> list[Finding]:
    """What there is to say of a sink, problems first.

    Args:
        looks: At the same sink, the latest last. Trends need some over `TREND_SECONDS`; what is over at one of them is
            no problem.
        late_seconds: Growing lag is a problem if working it off, at the present rate, would take longer.
    """
    now = looks[-1].status
    name, found = now.record.name, []
    if now.record.error:
        advice, level, what = "Fix the cause, then start it again.", Level.PROBLEM, "It has failed"
        if now.processes:
            level, what = Level.NOTE, "One of its processes has failed"
        else:
            advice = f"{advice} `gridscore sink forget {name}` takes it off the list, and its offsets with it."
        found.append(Finding(level, "failed", f"{what}: {now.record.error}", advice))
    if now.lag is None:
        text = f"The journal of `{now.record.map}` cannot be read."
        found.append(Finding(Level.PROBLEM, "no_journal", text, "Does the map have one? See `gridscore doctor`."))
    elif all(not look.status.processes for look in looks):
        found += _stopped(looks)
    else:
        found += _keeps_up(looks, late_seconds)
    if now.lost:
        text = f"{count_text(now.lost, 'result')} {'was' if now.lost == 1 else 'were'} overwritten before they were "
        found.append(
            Finding(Level.NOTE, "loss", f"{text}read; `on_loss` says what was done.", "A larger journal has more room.")
        )
    if now.dead_letters:
        text = f"{count_text(now.dead_letters, 'dead letter')}: results that its destination refuses."
        found.append(
            Finding(Level.NOTE, "dead_letters", text, f"`gridscore dead-letters list {name}` says why each is.")
        )
    return sorted(found, key=lambda finding: finding.level is Level.NOTE)


def _runs_out(looks: Sequence[SinkLook], advice: str) -> Finding | None:
    return runs_out([(look.at, look.status.positions) for look in looks], "result", advice)


def _full(now: SinkStatus) -> float:
    return max((position.full for position in now.positions), default=0.0)


def _stopped(looks: Sequence[SinkLook]) -> list[Finding]:
    now = looks[-1].status
    waiting = f"; {count_text(now.lag or 0, 'result')} {'waits' if now.lag == 1 else 'wait'}" if now.lag else ""
    if forecast := _runs_out(looks, "It is not running: start it, by the same command again."):
        return [forecast]
    if (full := _full(now)) >= NEARLY_FULL:
        text = f"It is not running, and what waits fills {full:.0%} of a partition's journal: the oldest results are "
        return [
            Finding(Level.PROBLEM, "journal_full", f"{text}overwritten next.", "Start it: the same command, again.")
        ]
    if now.record.error:
        return []  # said already
    return [Finding(Level.NOTE, "stopped", f"It is not running{waiting}.", "The same command, given again, continues.")]


def _keeps_up(looks: Sequence[SinkLook], late_seconds: float) -> list[Finding]:
    first, last = looks[0], looks[-1]
    now, found = last.status, []
    if all(look.status.state == "paused" for look in looks):
        advice = f"Fix the cause; `gridscore dead-letters replay {now.record.name} --all`, or `purge`, makes room."
        found.append(Finding(Level.PROBLEM, "paused", f"It delivers nothing. {now.error}", advice))
    if all(look.status.state == "waiting" for look in looks):
        advice = "Bring it back. The sink tries again by itself; results wait in the journal meanwhile."
        found.append(Finding(Level.PROBLEM, "away", f"It waits for its destination: {now.error}", advice))
    if forecast := _runs_out(looks, "More processes, or a larger journal."):
        found.append(forecast)
    elif (full := _full(now)) >= NEARLY_FULL:
        text = f"What waits fills {full:.0%} of a partition's journal: the oldest results are overwritten next."
        found.append(Finding(Level.NOTE, "journal_nearly_full", text, "More processes, or a larger journal."))
    seconds = last.at - first.at
    if found or seconds < TREND_SECONDS or any(not look.status.lag for look in looks):
        return found
    lags = [look.status.lag or 0 for look in looks]
    rate = committed_between(first.status.positions, now.positions) / seconds
    if not rate:
        text = (
            f"Nothing was committed in {seconds:.0f} s, though {count_text(lags[-1], 'result waits', 'results wait')}."
        )
        advice = "Does its destination answer? The log of its processes says what they wait for."
        return [Finding(Level.PROBLEM, "stuck", text, advice)]
    if grows(lags) and lags[-1] / rate > late_seconds:
        text = (
            f"Lag grows: {lags[0]:,} to {lags[-1]:,} results in {seconds:.0f} s, while {rate:,.0f} a second were "
            f"delivered; working it off would take {lags[-1] / rate:,.0f} s."
        )
        return [Finding(Level.PROBLEM, "lag", text, "Start another process of it, if its destination can take more.")]
    return []
