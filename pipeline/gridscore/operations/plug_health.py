"""Whether a source or a sink is well: what a few looks at it, seconds apart, say together."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from gridscore.grid.heap import HEAP_ADVICE, MEASURE_ADVICE
from gridscore.job.plugs.base import CLUSTER
from gridscore.operations.health import (
    LATE_SECONDS,
    TREND_SECONDS,
    Finding,
    Look,
    committed_between,
    falls_behind,
    fills,
    no_journal,
    note,
    overwritten,
    problem,
    problems_first,
    readable,
    stands_still,
)
from gridscore.sources.status import FAILED
from gridscore.texts import count_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeVar

    from gridscore.operations.sink_status import SinkProcess, SinkStatus
    from gridscore.sources.status import SourceRecord, SourceStatus

    _Process = TypeVar("_Process", SinkProcess, SourceRecord)


_FILLS = "what waits fills {} of a partition's journal: the oldest results are overwritten next."


def examine_source(looks: Sequence[SourceStatus]) -> list[Finding]:
    """What is to be said of a source, problems first.

    `looks`: at the same source, the latest last. A state counts if all looks show it.
    """
    now, found = looks[-1], []
    states = {look.state for look in looks}
    if now.failure is not None:
        place = f"{now.failure.host}, process {now.failure.pid}" if now.failure.host else "somewhere"
        forget = f"`gridscore source forget {now.name}` takes it off the list." if now.state == FAILED else ""
        found.append(_failed(f" ({place}): {now.failure.error}", forget))
    if states == {"interrupted"}:
        said, where = _of(now.processes, "interrupted", "cannot", "cannot")
        reads = "put anything" if where.waits_for == CLUSTER else "read"
        text = f"{said} {reads} now: {where.error}"
        found.append(problem("interrupted", text, f"{_cause(where.waits_for)}It tries again by itself."))
    elif states == {"starting"}:
        said, _ = _of(now.processes, "starting", "is", "are")
        text = f"{said} starting: nothing is read yet."
        found.append(problem("starting", text, "If this lasts, its log says what it waits for."))
    elif states == {"paused"}:
        advice = (
            f"Fix the cause, for example by starting it with the right format. It goes on once dead letters are gone: "
            f"`gridscore dead-letters list {now.name}` says why each is, `purge` or `replay` makes room."
        )
        said, where = _of(now.processes, "paused", "reads", "read")
        found.append(problem("paused", f"{said} nothing. Paused: {where.waiting}.", advice))
    elif states == {"waiting"} and all(look.waiting.startswith("waiting for memory") for look in looks):
        # It waits like this only after a collection that has left the heap as full.
        advice = f"Nothing is lost: it goes on when the member has room. {HEAP_ADVICE}"
        found.append(problem("heap", f"It puts nothing: {now.waiting}.", advice))
    elif states == {"waiting"}:
        advice = f"Nothing is lost: {_outlook(now.waiting)}"
        found.append(note("waiting", f"It waits for room: {now.waiting}.", advice))
    if now.processes and (unread := set(now.unread).intersection(*(look.unread for look in looks))):
        names = ", ".join(f"`{name}`" for name in sorted(unread))
        text = f"No job or sink reads {names}: what is put there is overwritten in its journal, unread."
        advice = "Submit the job, or submit it again: if the cluster has lost everything, its jobs are gone, too."
        found.append(problem("no_job", text, advice))
    if now.lost:
        them = "was removed before it was" if now.lost == 1 else "were removed before they were"
        text = f"{count_text(now.lost, 'event')} {them} read."
        advice = "A longer retention where it reads keeps more. It stays a problem for a day, or until it is restarted."
        found.append((problem if now.lost_lately else note)("loss", text, advice))
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


def _of(processes: Sequence[_Process], state: str, one: str, several: str) -> tuple[str, _Process]:
    """Who is in a state, with the verb: all of it, or some of its processes; and the first of them."""
    those = [each for each in processes if each.state == state]
    if len(those) == len(processes):
        return f"It {one}", those[0]
    return f"{len(those)} of its {len(processes)} processes {one if len(those) == 1 else several}", those[0]


def _cause(waits_for: str) -> str:
    return "Are all members well? `gridscore doctor` looks. " if waits_for == CLUSTER else ""


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
        found.append(_failed(f": {now.record.error}", "" if now.processes else _forget_sink(name)))
    if all(look.status.lag is None for look in looks):
        found.append(no_journal(looks, now.record.map))
    elif all(not look.status.processes for look in looks):
        found += _stopped(looks)
    else:
        found += _keeps_up(readable(looks), late_seconds)
    if now.lost:
        text = f"{overwritten(now.lost, 'result')}; `on_loss` says what was done."
        found.append(note("loss", text, "A larger journal has more room."))
    if now.dead_letters:
        text = f"{count_text(now.dead_letters, 'dead letter')}: results that its destination refuses."
        found.append(note("dead_letters", text, _says_why(name)))
    return problems_first(found)


def _forget_sink(name: str) -> str:
    return f"`gridscore sink forget {name}` takes it off the list, and its offsets with it."


def _stopped(looks: Sequence[Look[SinkStatus]]) -> list[Finding]:
    now = looks[-1].status
    waiting = f"; {count_text(now.lag or 0, 'result')} {'waits' if now.lag == 1 else 'wait'}" if now.lag else ""
    text = f"It is not running, and {_FILLS}"
    advice = "It is not running: start it, by the same command again."
    if full := fills(looks, "result", partial(problem, "journal_full"), text, advice):
        return [full]
    if now.record.error:
        return []  # said already
    if now.vanished:
        text = f"It did not stop in order{waiting}. Killed, cut off or hanging: {', '.join(now.vanished)}."
        return [problem("failed", text, f"Start it: the same command, again. {_forget_sink(now.record.name)}")]
    return [note("stopped", f"It is not running{waiting}.", "The same command, given again, continues.")]


def _keeps_up(looks: Sequence[Look[SinkStatus]], late_seconds: float) -> list[Finding]:
    first, last = looks[0], looks[-1]
    now, found = last.status, []
    states = {look.status.state for look in looks}
    if states == {"paused"}:
        advice = f"Fix the cause; `gridscore dead-letters replay {now.record.name} --all`, or `purge`, makes room."
        said, where = _of(now.processes, "paused", "delivers", "deliver")
        found.append(problem("paused", f"{said} nothing. {where.error}", advice))
    elif states == {"waiting"}:
        said, where = _of(now.processes, "waiting", "waits", "wait")
        advice = _cause(where.waits_for) or "Bring it back. "
        advice = f"{advice}The sink tries again by itself; results wait in the journal meanwhile."
        found.append(problem("away", f"{said} for {where.waits_for or 'its destination'}: {where.error}", advice))
    elif states == {"starting"}:
        said, _ = _of(now.processes, "starting", "is", "are")
        found.append(
            problem("starting", f"{said} starting: nothing is delivered yet.", "Its log says what it waits for.")
        )
    text = _FILLS.capitalize()
    more = "More processes, or a larger journal."
    if full := fills(looks, "result", partial(note, "journal_nearly_full"), text, more):
        found.append(full)
    seconds = last.at - first.at
    if found or seconds < TREND_SECONDS:
        return found
    text = stands_still(looks, "result")
    lags = [look.status.lag or 0 for look in looks]
    if not text and all(lags) and not committed_between(first.status.positions, now.positions):
        # Those who live own nothing.
        waiting = count_text(lags[-1], "result waits", "results wait")
        text = f"Nothing was committed in {seconds:.0f} s, though {waiting}."
    if text:
        advice = "Does its destination answer? The log of its processes says what they wait for."
        return [problem("stuck", text, advice)]
    advice = "Start another process of it, if its destination can take more."
    late = falls_behind(looks, "result", "delivered", advice, late_seconds)
    return [] if late is None else [late]
