"""Whether a source is well: what a few looks at it, seconds apart, say together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gridscore.grid.heap import HEAP_ADVICE, MEASURE_ADVICE
from gridscore.operations.health import Finding, Level
from gridscore.sources.status import FAILED
from gridscore.texts import count_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gridscore.sources.status import SourceStatus


def examine_source(looks: Sequence[SourceStatus]) -> list[Finding]:
    """What there is to say of a source, problems first.

    Args:
        looks: At the same source, the latest last. What is over at one of them is not a problem.
    """
    now, found = looks[-1], []
    states = {look.state for look in looks}
    if now.failure is not None:
        where = f"{now.failure.host}, process {now.failure.pid}" if now.failure.host else "somewhere"
        advice, level, what = "Fix the cause, then start it again.", Level.PROBLEM, "It has failed"
        if now.state == FAILED:
            advice = f"{advice} `gridscore source forget {now.name}` takes it off the list."
        else:
            level, what = Level.NOTE, "One of its processes has failed"
        found.append(Finding(level, "failed", f"{what} ({where}): {now.failure.error}", advice))
    if states == {"interrupted"}:
        text = f"It cannot read now: {now.error}"
        found.append(Finding(Level.PROBLEM, "interrupted", text, "It tries again by itself, for as long as it takes."))
    elif states == {"paused"}:
        advice = (
            f"Fix the cause, for example by starting it with the right format. It goes on once dead letters are gone: "
            f"`gridscore dead-letters list {now.name}` says why each is, `purge` or `replay` makes room."
        )
        found.append(Finding(Level.PROBLEM, "paused", f"It reads nothing. Paused: {now.waiting}.", advice))
    elif states == {"waiting"} and all(look.waiting.startswith("waiting for memory") for look in looks):
        # Only a collection that has left the heap as full makes it wait so.
        advice = f"Nothing is lost: it goes on when the member has room. {HEAP_ADVICE}"
        found.append(Finding(Level.PROBLEM, "heap", f"It puts nothing: {now.waiting}.", advice))
    elif states == {"waiting"}:
        advice = f"Nothing is lost: {_outlook(now.waiting)}"
        found.append(Finding(Level.NOTE, "waiting", f"It waits for room: {now.waiting}.", advice))
    if now.dead_letters:
        text = f"{count_text(now.dead_letters, 'dead letter')}: what it read and could not take as an event."
        found.append(
            Finding(Level.NOTE, "dead_letters", text, f"`gridscore dead-letters list {now.name}` says why each is.")
        )
    return sorted(found, key=lambda finding: finding.level is Level.NOTE)


def _outlook(waiting: str) -> str:
    if waiting.startswith("waiting for job"):
        return "it goes on when the events before have been scored. More workers would help."
    if waiting.startswith("waiting for member"):
        return f"it goes on with the next measurement. {MEASURE_ADVICE}"
    return f"it goes on when the member has room. {HEAP_ADVICE}"
