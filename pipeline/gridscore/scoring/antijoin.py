"""Events that have no result, found by the cluster's own SQL: the members compare keys, and send only missing ones.

The query is an anti-join, written as a union of both maps' keys grouped by key. Hazelcast would run the textbook form,
`LEFT JOIN … WHERE r.__key IS NULL`, as one look-up in the result map per event, at 120 µs of the members' CPU. Grouped,
it takes 2 µs, while each member holds its part of the distinct keys in memory.

SQL has names for some types of keys only, and takes one type for a whole map. With keys of other or mixed types, or
without SQL, `NotBySqlError` is raised, and the maps are walked from here (see `missing`).
"""

from __future__ import annotations

import contextlib
import struct
import time
import uuid
from typing import TYPE_CHECKING, Any

from hazelcast.errors import HazelcastError

from gridscore.grid import transport, wire
from gridscore.grid.writer import partition_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from gridscore.grid import Grid

MAX_ENTRIES = 10_000_000  # entries of both maps above which the members are not asked to hold their keys
_MAPPING = "gridscore_audit_"
_LEFT_OVER_SECONDS = 24 * 3600.0
_SAMPLED_PARTITIONS = 32

# Hazelcast's type of a serialized key: SQL's name for it, and how a value of it is serialized.
_FORMATS = {-11: "varchar", -8: "bigint", -7: "int", -6: "smallint", -3: "tinyint"}
_PACK = {-8: struct.Struct(">iiq"), -7: struct.Struct(">iii"), -6: struct.Struct(">iih"), -3: struct.Struct(">iib")}


class NotBySqlError(Exception):
    """SQL cannot say what is missing; the message says why."""


async def keys_without_result(grid: Grid, events: str, results: str) -> AsyncGenerator[tuple[int, bytes], None]:
    """Partition and serialized key of each event without an entry in the result map.

    Both maps change while they are read, so check each again. Close the iterator (`aclosing`) if you leave it early.

    Raises NotBySqlError if SQL cannot do it here.
    """
    kind = await _kind_of_keys(grid, events)
    if kind is None:
        return
    serialize = _serializer(grid, kind)
    name = f"{_MAPPING}{int(time.time())}_{uuid.uuid4().hex[:8]}"
    mappings = {f"{name}_events": events, f"{name}_results": results}
    try:
        await _drop_left_over(grid)
        for mapping, map_name in mappings.items():
            # Nobody parses JSON values unless a query names a part of them; this one names only keys.
            await _execute(
                grid,
                f'CREATE OR REPLACE EXTERNAL MAPPING "{mapping}" EXTERNAL NAME "{_quoted(map_name)}" TYPE IMap '
                f"OPTIONS ('keyFormat'='{_FORMATS[kind]}', 'valueFormat'='json')",
            )
        query = (
            f'SELECT k FROM (SELECT __key AS k, 1 AS missing FROM "{name}_events" '  # noqa: S608 -- names are ours
            f'UNION ALL SELECT __key, 0 FROM "{name}_results") GROUP BY k HAVING MIN(missing) = 1'
        )
        async with await grid.client.sql.execute(query) as rows:
            async for row in rows:
                key = serialize(row.get_object_with_index(0))
                yield partition_of(key, grid.partition_count), key
    except HazelcastError as error:
        raise NotBySqlError(_reason(error)) from error
    finally:
        for mapping in mappings:
            with contextlib.suppress(HazelcastError):
                await _execute(grid, f'DROP MAPPING IF EXISTS "{mapping}"')


async def _kind_of_keys(grid: Grid, map_name: str) -> int | None:
    """Type of the keys in a sample; None if the map is empty. The query fails if it meets a key of another type."""
    kinds: set[int] = set()
    for sampled, partition in enumerate(range(grid.partition_count)):
        if kinds and sampled >= _SAMPLED_PARTITIONS:
            break
        message = wire.encode_fetch_entries(map_name, [wire.FIRST_ENTRY], 1)
        _, entries = await transport.invoke(grid.client, message, partition, wire.decode_fetch_entries)
        for key, _ in entries:
            if key[:4] != bytes(4):
                raise NotBySqlError("keys have a partition of their own choice")
            kinds.add(wire.type_of(key))
    if len(kinds) > 1:
        raise NotBySqlError("keys are of mixed types")
    kind = next(iter(kinds), None)
    if kind is not None and kind not in _FORMATS:
        raise NotBySqlError(f"keys are of a type without a name in SQL ({kind})")
    return kind


def _serializer(grid: Grid, kind: int) -> Callable[[Any], bytes]:
    if kind == -11:
        return lambda key: transport.key_data(grid.client, key)
    pack = _PACK[kind].pack
    return lambda key: pack(0, kind, key)


async def _execute(grid: Grid, statement: str) -> list[Any]:
    result = await grid.client.sql.execute(statement)
    return [row.get_object_with_index(0) async for row in result] if result.is_row_set() else []


async def _drop_left_over(grid: Grid) -> None:
    """Drop the mappings of audits that were killed long ago."""
    for mapping in await _execute(grid, "SHOW MAPPINGS"):
        began = str(mapping).removeprefix(_MAPPING).partition("_")[0]
        if str(mapping).startswith(_MAPPING) and began.isdecimal() and time.time() - int(began) > _LEFT_OVER_SECONDS:
            await _execute(grid, f'DROP MAPPING IF EXISTS "{mapping}"')


def _quoted(name: str) -> str:
    return name.replace('"', '""')


def _reason(error: HazelcastError) -> str:
    text = " ".join(str(error).split())
    if "type mismatch" in text or "Failed to extract map entry key" in text:
        return "keys are of mixed types"
    return f"SQL is not available: {text[:200]}"
