"""Heartbeats of processes, as somebody outside of them sees them: of workers, sources and sinks."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol, TypeVar

from gridscore.group.members import GONE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Sequence


class Heartbeat(Protocol):
    """What a process says of itself, again and again."""

    @property
    def id(self) -> str:
        """Of the process."""

    @property
    def seen_at(self) -> int:
        """When it said so, in milliseconds of its clock."""


_Beat = TypeVar("_Beat", bound=Heartbeat)


class Heartbeats:
    """Tells which processes live, for someone who looks again and again: those whose records change.

    At the first look, clocks must do.
    """

    def __init__(self) -> None:
        self._changed: dict[str, tuple[int, float]] = {}  # what each record said, and since when

    def living(self, beats: Sequence[_Beat]) -> list[_Beat]:
        """Those that live, of all that were seen at one look."""
        now = time.monotonic()
        before, self._changed = self._changed, {}
        living = []
        for each in beats:
            seen_at, since = before.get(each.id, (each.seen_at, now if is_recent(each) else float("-inf")))
            self._changed[each.id] = (each.seen_at, now if each.seen_at != seen_at else since)
            if now - self._changed[each.id][1] < GONE_SECONDS:
                living.append(each)
        return living


def is_recent(beat: Heartbeat) -> bool:
    """Whether the process lives, as far as one look at its record can tell."""
    # Its clock and ours may differ by seconds, so a record from the future is as good as one of this moment.
    return time.time() * 1000 - beat.seen_at < GONE_SECONDS * 1000
