"""Writing JSON entries into a map: one put-all a partition, many partitions at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import mmh3
from hazelcast.protocol.codec import map_delete_codec
from hazelcast.serialization.data import Data

from gridscore.grid import transport, wire

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gridscore.grid.connection import Grid

HASH_SEED = 0x01000193
_HASH_OFFSET = 8  # the hash and the type that precede a serialized key are not hashed


def partition_of(key: bytes, partition_count: int) -> int:
    """Partition of a serialized key: Murmur3 (x86, 32 bit) as in Hazelcast's `HashUtil`."""
    explicit = int.from_bytes(key[:4], "big", signed=True)
    value = explicit or mmh3.hash(key[_HASH_OFFSET:], HASH_SEED)
    return 0 if value == -(2**31) else abs(value) % partition_count


class MapWriter:
    """Writes JSON texts under serialized keys into one map."""

    def __init__(self, grid: Grid, map_name: str) -> None:
        self._grid, self.map_name = grid, map_name
        self._prefix = wire.put_all_prefix(map_name)

    async def prepare(self) -> None:
        """Make the map known to the cluster by name, which a bare write does not."""
        await self._grid.map(self.map_name)

    def put_partition(
        self, partition: int, keys: list[bytes], texts: list[bytes], *, once: bool = True, until: float | None = None
    ) -> asyncio.Future[None]:
        """Write entries of one partition in one message; messages are applied in the order of the calls.

        The future fails if the member did not confirm the write with its backups; it may have happened all the same.

        Args:
            keys: Serialized, as journals have them.
            once: Never send it again: a retry would come late, after later writes. Without, passing errors are retried,
                and two writes of one key may change places.
            until: Of the monotonic clock: when it must no longer be sent; the future then fails.
        """
        message = wire.encode_put_all_json(self._prefix, keys, texts)
        seconds = 0.0 if once else None
        client = self._grid.client
        return transport.invoke(client, message, partition, wire.decode_nothing, retry_seconds=seconds, until=until)

    def remove(self, partition: int, key: bytes) -> asyncio.Future[None]:
        """Remove an entry; sent once, and otherwise as `put_partition`."""
        message = map_delete_codec.encode_request(self.map_name, Data(key), 0)  # of no thread: nobody locks keys
        return transport.invoke(self._grid.client, message, partition, wire.decode_nothing, retry_seconds=0.0)

    def serialize_key(self, key: Any) -> bytes:
        """A key as the grid stores it."""
        return transport.key_data(self._grid.client, key)

    async def put(self, entries: Iterable[tuple[Any, bytes]], *, until: float | None = None) -> int:
        """Write entries under keys of any type that Hazelcast serializes; returns how many.

        Args:
            entries: Keys, and JSON texts in UTF-8.
            until: As in `put_partition`; with it, each message is sent once. Without, passing errors are retried.

        Raises:
            HazelcastError: At least one partition did not confirm; the entries of others may have been written.
        """
        await self.prepare()
        by_partition: dict[int, tuple[list[bytes], list[bytes]]] = {}
        count, partitions = 0, self._grid.partition_count
        serialize = self.serialize_key
        for key, text in entries:
            data = serialize(key)
            keys, texts = by_partition.setdefault(partition_of(data, partitions), ([], []))
            keys.append(data)
            texts.append(text)
            count += 1
        if by_partition:
            once = until is not None
            writes = [
                self.put_partition(p, keys, texts, once=once, until=until) for p, (keys, texts) in by_partition.items()
            ]
            # Wait for all, so that no write is under way when the caller tries again.
            for outcome in await asyncio.gather(*writes, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome
        return count
