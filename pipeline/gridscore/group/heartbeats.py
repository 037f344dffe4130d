"""Heartbeats of workers, sources and sinks, as another process sees them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol, TypeVar

from gridscore.group.members import GONE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Sequence


class Heartbeat(Protocol):
    """A record that a process keeps writing about itself."""

    @property
    def id(self) -> str:
        """Of the process."""

    @property
    def seen_at(self) -> int:
        """When it was written, in milliseconds of the process's clock."""


_Beat = TypeVar("_Beat", bound=Heartbeat)


class Heartbeats:
    """Tells an observer that looks repeatedly which processes live: those whose records change.

    At the first look, it has to compare clocks.
    """

    def __init__(self) -> None:
        self._changed: dict[str, tuple[int, float]] = {}  # `seen_at` of each record, and since when it is the same

    def living(self, beats: Sequence[_Beat]) -> list[_Beat]:
        """Those that live, of all that one look has found."""
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
    """Whether the process lives, as far as a single look at its record tells."""
    # Its clock and ours may differ by seconds, so a record from the future counts as recent.
    return time.time() * 1000 - beat.seen_at < GONE_SECONDS * 1000
