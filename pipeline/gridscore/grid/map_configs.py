"""Adds the configuration of a map to a running cluster, as a client: no file changes, nothing is restarted.

Open-source members pass it on to each other and to members that join later, and keep it in memory: it is gone once the
whole cluster has stopped. It holds for maps that are created afterwards; an existing one silently keeps its own.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hazelcast.errors import HazelcastError
from hazelcast.protocol.builtin import CodecUtil, StringCodec
from hazelcast.protocol.client_message import (
    BEGIN_FRAME_BUF,
    END_FRAME_BUF,
    NULL_FINAL_FRAME_BUF,
    NULL_FRAME_BUF,
    REQUEST_HEADER_SIZE,
    OutboundMessage,
    create_initial_buffer,
)

from gridscore.errors import GridError
from gridscore.grid import transport

if TYPE_CHECKING:
    from gridscore.grid.connection import Grid

_ADD_MAP_CONFIG = 0x1B0C00
# backups, asynchronous backups, time to live, idle time; read backups; merge batch; statistics; metadata policy; and
# statistics per entry
_FIXED = struct.Struct("<iiii?i?i?")
_MERGE_BATCH = 100
_METADATA_OFF = 1
_MERGE_POLICY = "com.hazelcast.spi.merge.PutIfAbsentMergePolicy"  # Hazelcast's default
# an uncompressed frame: int32 length of the whole, uint16 flags; then enabled, capacity, time to live
_JOURNAL_FRAME = struct.Struct("<iH?ii")


@dataclass(frozen=True)
class NewMapConfig:
    """A configuration to add."""

    pattern: str  # the name of a map, or a pattern with one `*`
    journal_capacity: int | None = None  # entries that its event journal holds, over all partitions; None: no journal
    backups: int = 1
    protection: str | None = None  # name of a rule of split-brain protection that the members know
    seconds: int = 0  # after which an entry goes that was not written; 0: never


async def add_map_config(grid: Grid, config: NewMapConfig) -> None:
    """Add a configuration to all members. Adding it again changes nothing.

    Raises GridError if the members refuse it: the name has another configuration, or they let no client add any.
    """
    connections = transport.member_connections(grid.client)
    connection = next(iter(connections.values()), None)
    if connection is None:
        raise GridError("No member is connected.")
    try:
        await transport.ask(grid.client, _request(config), connection, lambda _: None)
    except HazelcastError as error:
        raise GridError(
            f"The members refuse a configuration for the map {config.pattern}: {' '.join(str(error).split())}",
            "Add it to their hazelcast.yaml and restart them, one after the other.",
        ) from error


def _request(config: NewMapConfig) -> OutboundMessage:
    buffer = create_initial_buffer(REQUEST_HEADER_SIZE + _FIXED.size, _ADD_MAP_CONFIG)
    _FIXED.pack_into(
        buffer,
        REQUEST_HEADER_SIZE,
        config.backups,
        0,
        config.seconds,
        0,
        False,
        _MERGE_BATCH,
        True,
        _METADATA_OFF,
        False,
    )
    StringCodec.encode(buffer, config.pattern)
    buffer += NULL_FRAME_BUF  # eviction
    for text in ("INDEX_ONLY", _MERGE_POLICY, "BINARY"):
        StringCodec.encode(buffer, text)
    buffer += NULL_FRAME_BUF * 2  # listeners
    CodecUtil.encode_nullable(buffer, config.protection, StringCodec.encode)
    # map store, near cache, WAN, indexes, attributes, query caches, partitioning class and strategy, hot restart
    buffer += NULL_FRAME_BUF * 9
    if config.journal_capacity is None:
        buffer += NULL_FRAME_BUF
    else:
        buffer += BEGIN_FRAME_BUF
        buffer += _JOURNAL_FRAME.pack(_JOURNAL_FRAME.size, 0, True, config.journal_capacity, 0)
        buffer += END_FRAME_BUF
    buffer += NULL_FINAL_FRAME_BUF  # merkle tree
    return OutboundMessage(buffer, True)
