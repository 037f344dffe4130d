"""What a group reads, and how: all that the machinery of groups knows of those who use it, be it a job or a sink."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from gridscore.grid.journal import Page
    from gridscore.group.leases import Lease
    from gridscore.job import JobRecord


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
        dated: Whether epochs begin with the time, in seconds since 1970, and not with 1: for what outlives the grid.
    """

    group: str
    map: str
    start: Literal["oldest", "latest"]
    on_loss: Literal["rescan", "continue", "halt"]
    begin: str = ""
    restarts: int = 0
    again: str = ""
    dated: bool = False

    @property
    def rescans(self) -> bool:
        """Whether loss is made good by a rescan: it cannot tell what was put before a late beginning, so not then."""
        return self.on_loss == "rescan" and self.beginning == "oldest"

    @property
    def beginning(self) -> str:
        """Where a partition begins that has no offset yet: `oldest`, `latest` or, after a restart, an RFC 3339 time."""
        return self.begin or self.start


def subscription_of(record: JobRecord) -> Subscription:
    """What the group of a job reads."""
    job = record.job
    return Subscription(
        job.name,
        job.events,
        job.start,
        job.on_loss,
        begin=record.begin,
        restarts=record.restarts,
        again=f"`gridscore resume {job.name}`",
    )


class Subscriber(Protocol):
    """What differs between those who read: what they do with what was taken over, restarted, or is in doubt."""

    async def position_at(self, partition: int, oldest: int, newest: int) -> int:
        """Sequence at which a restart begins with a partition whose journal has these bounds.

        Raises:
            HazelcastError: The cluster did not answer.
        """
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
