"""What a group reads, how, and what it counts: all that it knows of the job or sink that uses it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from gridscore.grid.wire import Page
    from gridscore.group.leases import Lease

MOST_SHOWN = 1_000  # characters of a message in a record; readers take a longer one for a bad record


@dataclass(frozen=True, slots=True)
class Subscription:
    """What a group reads of a map: its whole journal, from some offset on."""

    group: str  # its name, in leases, rescans and members
    map: str  # whose journal is read
    start: Literal["oldest", "latest"]  # where a partition without an offset begins
    on_loss: Literal["rescan", "continue", "halt"]  # what to do when entries were overwritten before they were read
    begin: str = ""  # where the last restart begins: `oldest`, `latest` or an RFC 3339 time; empty if there was none
    restarts: int = 0  # counts the restarts that set the offsets anew
    again: str = ""  # how to go on after a `halt`, for people
    # Whether epochs begin with the seconds since 1970, not with 1: for sinks, which outlive the grid.
    epochs_by_time: bool = False

    @property
    def rescans(self) -> bool:
        """Whether rescans make losses good: only from `oldest`, for they cannot tell what was put before the start."""
        return self.on_loss == "rescan" and self.beginning == "oldest"

    @property
    def beginning(self) -> str:
        """Where a partition without an offset begins: `oldest`, `latest` or, after a restart, an RFC 3339 time."""
        return self.begin or self.start


@dataclass(slots=True)
class GroupStats:
    """Counters of one group in one process, since it began."""

    events: int = 0  # scored or delivered, and acknowledged
    dead: int = 0  # sent to the dead letters
    lost: int = 0  # events that were overwritten before this process read them
    regressions: int = 0  # journals that this process saw begin again
    rescued: int = 0  # events that a rescan found, and that were scored or delivered
    rescans: int = 0  # rescans of held partitions that are still to be done
    partitions: int = 0
    rebalances: int = 0  # how often partitions came or went
    taken: int = 0
    given: int = 0
    committed_at: int = 0  # when offsets were last committed, in milliseconds since 1970; 0 if never
    _window: list[tuple[float, int]] = field(default_factory=list)

    def rate(self) -> float:
        """Events per second over the last few calls; call it once a second."""
        now = time.monotonic()
        self._window.append((now, self.events))
        del self._window[:-6]
        (since, then), (until, last) = self._window[0], self._window[-1]
        return (last - then) / (until - since) if until > since else 0.0


class Subscriber:
    """How a job or sink deals with partitions that were taken over, restarted, or are in doubt. This one reads all."""

    async def offset_at(self, partition: int, oldest: int, newest: int) -> int:  # noqa: ARG002
        """The offset at which a restart begins with a partition whose journal has these bounds."""
        return oldest

    async def take_over(self, lease: Lease, offset: int) -> int:  # noqa: ARG002
        """A partition is about to be read from an offset; returns the same, or another to read from instead.

        This may take time: the lease is renewed meanwhile, and checked afterwards. After a `HazelcastError`, the
        partition is dropped, and taken again.
        """
        return offset

    def dropped(self, partition: int) -> None:
        """A partition is no longer held; it may never have been read."""

    async def look_over(self, partition: int, page: Page, origin: int) -> Page:  # noqa: ARG002
        """The part of a page in doubt that no previous owner has done. After a `HazelcastError`, it is read again.

        `origin`: first epoch of the present journal.
        """
        return page
