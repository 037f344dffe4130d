"""The serialized entries of a map: those of a partition page by page, or those of some keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gridscore.grid import transport, wire
from gridscore.grid.writer import partition_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from gridscore.grid.connection import Grid


async def walk(grid: Grid, name: str, partition: int, page: int) -> AsyncGenerator[list[tuple[bytes, bytes]], None]:
    """Keys and values of a partition of a map, about `page` at a time.

    Entries that stay are all yielded, some perhaps twice; those that are put or removed meanwhile may be.
    """
    pointers = [wire.FIRST_ENTRY]
    while pointers[-1][0] >= 0:
        message = wire.encode_fetch_entries(name, pointers, page)
        pointers, entries = await transport.invoke(grid.client, message, partition, wire.decode_fetch_entries)
        yield entries


async def values_of(grid: Grid, name: str, partition: int, keys: Iterable[bytes]) -> dict[bytes, bytes]:
    """Values by key, of the keys that have one; all must lie in that partition."""
    wanted = list(dict.fromkeys(keys))
    if not wanted:
        return {}
    message = wire.encode_get_all(name, wanted)
    return dict(await transport.invoke(grid.client, message, partition, wire.decode_get_all))


async def value_of(grid: Grid, name: str, key: bytes) -> bytes | None:
    """The value under a key; None if there is none."""
    return (await values_of(grid, name, partition_of(key, grid.partition_count), [key])).get(key)


async def put_absent(grid: Grid, name: str, key: bytes, text: bytes, *, until: float | None = None) -> bool:
    """Write a JSON text where there is no value; whether there was none. `until`: as in `transport.invoke`."""
    message, partition = wire.encode_put_if_absent(name, key, text), partition_of(key, grid.partition_count)
    return bool(await transport.invoke(grid.client, message, partition, wire.decode_put_if_absent, until=until))


async def replace_same(
    grid: Grid, name: str, key: bytes, before: bytes, after: bytes, *, until: float | None = None
) -> bool:
    """Replace a value if it has not changed; whether it had not.

    Args:
        before, after: Serialized.
        until: As in `transport.invoke`.
    """
    message = wire.encode_replace_if_same(wire.replace_if_same_prefix(name, key), before, after)
    partition = partition_of(key, grid.partition_count)
    return bool(await transport.invoke(grid.client, message, partition, wire.decode_replace_if_same, until=until))


async def remove_same(grid: Grid, name: str, key: bytes, value: bytes) -> bool:
    """Remove an entry if its value has not changed; whether it had not."""
    message = wire.encode_remove_if_same(name, key, value)
    partition = partition_of(key, grid.partition_count)
    return bool(await transport.invoke(grid.client, message, partition, wire.decode_remove_if_same))
