"""The event journal of a map: what was put into each partition, in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hazelcast.errors import HazelcastError, UnsupportedOperationError

from pipeline.errors import GridError, JournalMissingError
from pipeline.grid import transport, wire
from pipeline.grid.wire import Page

if TYPE_CHECKING:
    import asyncio

    from pipeline.grid.connection import Grid


class Journal:
    """Reads the journal of one map.

    It does not promise that nothing was overwritten: compare `Page.first` with what you asked for.
    """

    def __init__(self, grid: Grid, map_name: str) -> None:
        self._client = grid.client
        self.map_name = map_name

    async def bounds(self, partition: int) -> tuple[int, int]:
        """Oldest and newest sequence of a partition; the newest is one less than the oldest if it is empty.

        Raises:
            JournalMissingError: The map has no journal.
            GridError: The cluster did not answer.
        """
        try:
            oldest, newest = await transport.invoke(
                self._client, wire.encode_subscribe(self.map_name), partition, wire.decode_subscribe
            )
        except UnsupportedOperationError:
            raise journal_missing(self.map_name) from None
        except HazelcastError as error:
            raise GridError(f"The journal of `{self.map_name}` could not be read: {error}") from error
        return oldest, newest

    def read(self, partition: int, start: int, max_size: int) -> asyncio.Future[Page | None]:
        """Read from a sequence on; waits at the member until there is something to read.

        The member keeps a waiting read until something is put: it ends only with the connection. The answer's first
        sequence is `start`, unless that has been overwritten (then it is later) or was never written (then earlier).

        Args:
            partition: To read.
            start: First sequence wanted.
            max_size: Events at most. There is no limit in bytes, so keep it modest.
        """
        message = wire.encode_read(self.map_name, start, 1, max_size)
        return transport.invoke(self._client, message, partition, wire.decode_read)


def journal_missing(map_name: str) -> JournalMissingError:
    """The error for a map without a journal."""
    return JournalMissingError(
        f"The map `{map_name}` has no event journal, so nothing that is put into it can be seen in order.",
        "Give it one in the members' hazelcast.yaml (see `events.*` in ours, or name the map `events.…`) and restart "
        "them; `gridscore doctor` checks it.",
    )


__all__ = ["Journal", "Page", "journal_missing"]
