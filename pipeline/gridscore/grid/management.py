"""What members report about themselves: their effective configuration, their clock, their heap.

The Python client cannot ask for any of it. Management Center can, by requests of the client protocol that open-source
members answer to any client (unless `management-center.trusted-interfaces` is set). They only read.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from hazelcast.errors import HazelcastError, TargetDisconnectedError
from hazelcast.protocol.builtin import ByteArrayCodec, CodecUtil, FixSizedTypesCodec, ListMultiFrameCodec, StringCodec
from hazelcast.protocol.client_message import (
    REQUEST_HEADER_SIZE,
    RESPONSE_HEADER_SIZE,
    InboundMessage,
    OutboundMessage,
    create_initial_buffer,
)
from hazelcast.protocol.codec import client_ping_codec

from gridscore.errors import GridError
from gridscore.grid import transport
from gridscore.grid.metrics import Sample, heap_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from gridscore.grid.connection import Grid

_READ_METRICS = 0x200100
_GET_MEMBER_CONFIG = 0x200500
_GET_TIMED_MEMBER_STATE = 0x200B00
_GET_CLUSTER_METADATA = 0x200E00
_ANSWER_SECONDS = 10.0
_CONNECT_SECONDS = 5.0
_PING_SECONDS = 2.0
_CLOCK_SAMPLES = 3
_REFUSALS = (HazelcastError, ET.ParseError, struct.error, OSError)
_UUID_BYTES = 17


@dataclass(frozen=True)
class MapConfig:
    """How a map is configured; the defaults are Hazelcast's."""

    pattern: str = "default"
    backups: int = 1
    async_backups: int = 0
    journal_capacity: int | None = None
    time_to_live: int = 0
    max_idle: int = 0
    eviction: str = "NONE"
    protection: str | None = None
    # What else sees each entry that is put, in the configuration's words: `map-store`, for one.
    followers: tuple[str, ...] = ()
    parses_json: bool = True  # whether each replica parses every JSON value that is put, to speed up predicates

    @property
    def expiry(self) -> list[str]:
        """What removes entries by itself, in the configuration's words."""
        named = (
            (f"time-to-live-seconds {self.time_to_live}", self.time_to_live > 0),
            (f"max-idle-seconds {self.max_idle}", self.max_idle > 0),
            (f"eviction {self.eviction}", self.eviction != "NONE"),
        )
        return [name for name, is_set in named if is_set]


@dataclass(frozen=True)
class Protection:
    """A rule of split-brain protection."""

    enabled: bool
    minimum_members: int
    protect_on: str


@dataclass(frozen=True)
class MemberConfig:
    """The part of a member's effective configuration that jobs depend on."""

    maps: dict[str, MapConfig] = field(default_factory=dict)
    protections: dict[str, Protection] = field(default_factory=dict)

    def map(self, name: str) -> MapConfig:
        """The configuration that a map of this name has or would get, by Hazelcast's own rules."""
        if name in self.maps:
            return self.maps[name]
        matching = [pattern for pattern in self.maps if _matches(pattern, name)]
        if matching:
            return self.maps[max(matching, key=len)]
        return self.maps.get("default", MapConfig())

    @classmethod
    def parse(cls, text: str) -> MemberConfig:
        """Read the XML that a member gives."""
        # It comes from a connected member, and expat itself refuses entity bombs.
        root = ET.fromstring(text)  # noqa: S314
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
        maps = {each.get("name", ""): _map_config(each) for each in root.findall("map")}
        protections = {each.get("name", ""): _protection(each) for each in root.findall("split-brain-protection")}
        return cls(maps, protections)


@dataclass(frozen=True)
class MemberReport:
    """One member's answers."""

    address: str  # where the cluster says that it is
    config: MemberConfig | None = None  # None if it does not tell
    clock_offset: float | None = None  # seconds by which the cluster's clock, as this member keeps it, is ahead of ours
    uncertainty: float = 0.0  # seconds by which that may be wrong: half the time that the answer took
    refusal: str = ""  # why it does not tell


async def ask_members(grid: Grid) -> list[MemberReport]:
    """Ask every member. The report of one that does not answer, or refuses, says why."""
    with contextlib.suppress(TimeoutError):
        # The client connects to all but the first in the background, without an event when it is done.
        async with asyncio.timeout(_CONNECT_SECONDS):
            while any(member.uuid not in transport.member_connections(grid.client) for member in grid.members):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    open_now = transport.member_connections(grid.client)
    connections = {member: open_now.get(member.uuid) for member in grid.members}
    return await asyncio.gather(
        *(_ask(grid, address_of(member), connection) for member, connection in connections.items())
    )


async def silent_members(grid: Grid) -> list[str]:
    """Addresses of the members that do not answer within seconds, as far as can be told from here."""

    async def is_silent(connection: Any) -> bool:
        if connection is None:
            return True
        try:
            async with asyncio.timeout(_PING_SECONDS):
                await transport.ask(grid.client, client_ping_codec.encode_request(), connection, bool)
        except (HazelcastError, OSError, TimeoutError):
            return True
        return False

    members, open_now = grid.members, transport.member_connections(grid.client)
    silent = await asyncio.gather(*(is_silent(open_now.get(member.uuid)) for member in members))
    return [address_of(member) for member, each in zip(members, silent, strict=True) if each]


def unanswered(silent: Sequence[str], seconds: float) -> GridError:
    """The error that the cluster has not answered for so long; it names the members that are silent."""
    text = f"The cluster did not answer in {seconds:.0f} seconds"
    if silent:
        return GridError(f"{text}: there is no answer from {', '.join(silent)}.", transport.SILENT_HINT)
    return GridError(f"{text}.", "Its members answer, but slowly: their logs, and their heap, may say why.")


async def first_config(grid: Grid) -> MemberConfig | None:
    """The configuration that the first connected member tells; None if no member does."""
    for connection in transport.member_connections(grid.client).values():
        with contextlib.suppress(TimeoutError, *_REFUSALS):
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await _config(grid, connection)
    return None


async def is_safe(grid: Grid, members: int) -> bool:
    """Whether this many members are in the cluster, and each says that its partitions have all their backups.

    They look once a second. A member that cannot be asked is not safe.
    """
    # A member that has merged has a new identity; the connection to the old one may stay for a minute.
    open_now = transport.member_connections(grid.client)
    connections = [open_now[member.uuid] for member in grid.members if member.uuid in open_now]
    if len(connections) != members:
        return False
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            states = await asyncio.gather(
                *(_request(grid, connection, _GET_TIMED_MEMBER_STATE, _decode_state) for connection in connections)
            )
    except (HazelcastError, OSError, TimeoutError):
        return False
    return all(state and _says_safe(json.loads(state), members) for state in states)


async def read_heap(grid: Grid, member: UUID, since: int) -> tuple[Sample, int]:
    """The heap of a member as it was last measured, and the `since` that waits for its next measurement.

    `since`: 0 for the last measurement. Raises GridError if it does not tell, or not in a way that we understand.
    """
    connection = transport.member_connections(grid.client).get(member)
    if connection is None:
        raise TargetDisconnectedError(f"no connection to the member {member}")
    request = create_initial_buffer(REQUEST_HEADER_SIZE + _UUID_BYTES + 8, _READ_METRICS, True)
    FixSizedTypesCodec.encode_uuid(request, REQUEST_HEADER_SIZE, member)
    FixSizedTypesCodec.encode_long(request, REQUEST_HEADER_SIZE + _UUID_BYTES, since)
    message = OutboundMessage(request, True)
    blobs, after = await transport.ask(grid.client, message, connection, _decode_metrics)
    if not blobs:
        raise GridError("The member has measured nothing yet.")
    return heap_of(bytes(blobs[-1])), after


def _says_safe(state: dict[str, Any], members: int) -> bool:
    timed = state["timedMemberState"]
    partitions: dict[str, Any] = timed["memberState"]["memberPartitionState"]
    return len(timed["memberList"]) == members and bool(partitions["memberStateSafe"])


def address_of(member: Any) -> str:
    """Where the cluster says that a member is."""
    return f"{member.address.host}:{member.address.port}"


async def _ask(grid: Grid, address: str, connection: Any) -> MemberReport:
    if connection is None:
        return MemberReport(address, refusal="no connection from here")
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            config = await _config(grid, connection)
            samples = [await _clock(grid, connection) for _ in range(_CLOCK_SAMPLES)]
    except TimeoutError:
        return MemberReport(address, refusal=f"no answer in {_ANSWER_SECONDS:.0f} seconds")
    except _REFUSALS as error:
        return MemberReport(address, refusal=str(error) or type(error).__name__)
    uncertainty, offset = min(samples)  # the quickest answer says most
    return MemberReport(address, config, offset, uncertainty)


async def _config(grid: Grid, connection: Any) -> MemberConfig:
    return MemberConfig.parse(await _request(grid, connection, _GET_MEMBER_CONFIG, _decode_config))


async def _clock(grid: Grid, connection: Any) -> tuple[float, float]:
    asked = time.time()
    member_time = await _request(grid, connection, _GET_CLUSTER_METADATA, _decode_time)
    answered = time.time()
    return (answered - asked) / 2, member_time / 1000 - (asked + answered) / 2


async def _request(grid: Grid, connection: Any, kind: int, decode: Callable[[InboundMessage], Any]) -> Any:
    message = OutboundMessage(create_initial_buffer(REQUEST_HEADER_SIZE, kind, True), True)
    return await transport.ask(grid.client, message, connection, decode)


def _decode_state(message: InboundMessage) -> str | None:
    message.next_frame()
    state: str | None = CodecUtil.decode_nullable(message, StringCodec.decode)
    return state


def _decode_metrics(message: InboundMessage) -> tuple[list[bytes], int]:
    after = int(struct.unpack_from("<q", message.next_frame().buf, RESPONSE_HEADER_SIZE)[0])
    return ListMultiFrameCodec.decode(message, ByteArrayCodec.decode), after


def _decode_config(message: InboundMessage) -> str:
    message.next_frame()
    return str(StringCodec.decode(message))


def _decode_time(message: InboundMessage) -> int:
    # after one byte, the cluster's state
    return int(struct.unpack_from("<q", message.next_frame().buf, RESPONSE_HEADER_SIZE + 1)[0])


def _matches(pattern: str, name: str) -> bool:
    start, star, end = pattern.partition("*")
    return bool(star) and len(name) >= len(start) + len(end) and name.startswith(start) and name.endswith(end)


def _map_config(element: ET.Element) -> MapConfig:
    journal = element.find("event-journal")
    has_journal = journal is not None and journal.get("enabled", "true") == "true"
    eviction = element.find("eviction")
    store = element.find("map-store")
    followers = [name for name in ("wan-replication-ref", "entry-listeners") if element.find(name) is not None]
    if store is not None and store.get("enabled", "true") == "true":
        followers.append("map-store")
    return MapConfig(
        pattern=element.get("name", ""),
        backups=int(element.findtext("backup-count", "1")),
        async_backups=int(element.findtext("async-backup-count", "0")),
        journal_capacity=int(element.findtext("event-journal/capacity", "10000")) if has_journal else None,
        time_to_live=int(element.findtext("time-to-live-seconds", "0")),
        max_idle=int(element.findtext("max-idle-seconds", "0")),
        eviction=eviction.get("eviction-policy", "NONE") if eviction is not None else "NONE",
        protection=element.findtext("split-brain-protection-ref"),
        followers=tuple(followers),
        parses_json=element.findtext("metadata-policy", "CREATE_ON_UPDATE") != "OFF",
    )


def _protection(element: ET.Element) -> Protection:
    return Protection(
        enabled=element.get("enabled", "true") == "true",
        minimum_members=int(element.findtext("minimum-cluster-size", "2")),
        protect_on=element.findtext("protect-on", "READ_WRITE"),
    )
