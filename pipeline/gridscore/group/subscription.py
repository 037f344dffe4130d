"""What a group reads, how, and what it counts: all that it knows of those who use it, be it a job or a sink."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from gridscore.grid.wire import Page
    from gridscore.group.leases import Lease

MOST_SHOWN = 1_000
"""Characters of a message that a record holds; one that is longer than its readers take would make the record bad."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """A group's part of a map: all of its journal, from some place on.

    Attributes:
        group: Name of the group; its leases, its rescans and its members go by it.
        map: Whose journal is read.
        start: Where a partition begins that has no offset yet.
        on_loss: What to do when entries were overwritten before they were read.
        begin: Where the last restart begins: `oldest`, `latest` or an RFC 3339 time; empty if there was none.
        restarts: Counts the restarts that set the offsets anew.
        again: How one goes on after a `halt`, for people.
        epochs_by_time: Whether epochs begin with the seconds since 1970, and not 1: for what outlives the grid.
    """

    group: str
    map: str
    start: Literal["oldest", "latest"]
    on_loss: Literal["rescan", "continue", "halt"]
    begin: str = ""
    restarts: int = 0
    again: str = ""
    epochs_by_time: bool = False

    @property
    def rescans(self) -> bool:
        """Whether loss is made good by a rescan: it cannot tell what was put before a late beginning, so not then."""
        return self.on_loss == "rescan" and self.beginning == "oldest"

    @property
    def beginning(self) -> str:
        """Where a partition begins that has no offset yet: `oldest`, `latest` or, after a restart, an RFC 3339 time."""
        return self.begin or self.start


@dataclass(slots=True)
class GroupStats:
    """Counters of one group in one process, since it began.

    Attributes:
        events: Scored or delivered, and acknowledged.
        dead: Sent to the dead letters.
        lost: Events that this process found overwritten before they were read.
        regressions: Journals that this process found begun again.
        rescued: Events that a rescan found, and that were scored or delivered.
        rescans: Rescans of held partitions that are to be done.
        rebalances: How often partitions came or went.
        committed_at: When offsets were committed last, in milliseconds since 1970; 0 if never.
    """

    events: int = 0
    dead: int = 0
    lost: int = 0
    regressions: int = 0
    rescued: int = 0
    rescans: int = 0
    partitions: int = 0
    rebalances: int = 0
    taken: int = 0
    given: int = 0
    committed_at: int = 0
    _window: list[tuple[float, int]] = field(default_factory=list)

    def rate(self) -> float:
        """Events per second over the last few calls; call it once a second."""
        now = time.monotonic()
        self._window.append((now, self.events))
        del self._window[:-6]
        (since, then), (until, last) = self._window[0], self._window[-1]
        return (last - then) / (until - since) if until > since else 0.0


class Subscriber(Protocol):
    """What differs between those who read: what they do with what was taken over, restarted, or is in doubt."""

    async def position_at(self, partition: int, oldest: int, newest: int) -> int:
        """Sequence at which a restart begins with a partition whose journal has these bounds."""
        ...

    async def take_over(self, lease: Lease, offset: int) -> int:
        """A partition is about to be read from an offset; returns the one to read from instead, or the same.

        It may take its time: the lease is renewed meanwhile. Whether it is still held is looked at afterwards.

        Raises:
            HazelcastError: The cluster did not answer: the partition is let go, and taken again.
        """
        ...

    def dropped(self, partition: int) -> None:
        """A partition is no longer held; perhaps it never came to be read."""

    async def look_over(self, partition: int, page: Page, origin: int) -> Page:
        """The part of a page that is to be taken, as it may have been done by somebody before us.

        Args:
            partition: Of the page.
            page: In doubt.
            origin: Epoch since which sequences are those of the journal as it is.

        Raises:
            HazelcastError: The cluster did not answer: the page is read again.
        """
        ...
