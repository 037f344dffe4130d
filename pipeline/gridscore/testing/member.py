"""A member of the stub cluster: executes requests on the maps, as a member of Hazelcast would.

What it knows is in `messages.NAMES`; anything else is answered with UnsupportedOperationException. Operations of a
partition happen in the order in which they arrive, and at once.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hazelcast.core import Address, DistributedObjectInfo, MemberInfo, MemberVersion
from hazelcast.protocol.builtin import EntryListUUIDListIntegerCodec, ListMultiFrameCodec, StringCodec
from hazelcast.protocol.codec.custom.address_codec import AddressCodec
from hazelcast.protocol.codec.custom.distributed_object_info_codec import DistributedObjectInfoCodec
from hazelcast.protocol.codec.custom.member_info_codec import MemberInfoCodec

from gridscore.testing.faults import ANSWERED
from gridscore.testing.messages import Reply, Request, boolean, done, error, uuid_bytes
from gridscore.testing.operations import OPERATIONS
from gridscore.testing.store import CLEAR_ALL, Change, Ring

if TYPE_CHECKING:
    import asyncio

    from gridscore.testing.cluster import StubCluster
    from gridscore.testing.faults import Fault
    from gridscore.testing.network import Link

MAP_SERVICE = "hz:impl:mapService"
_VERSION = "5.6.0"
_ENTRY_EVENT = 0x011902
_OBJECT_EVENT = 0x000902
_MEMBERS_VIEW, _PARTITIONS_VIEW = 0x000302, 0x000303
_RETRY_SECONDS = 0.5
# What is answered while a partition moves.
_READS = frozenset(
    f"Map.{name}" for name in ("Get", "GetAll", "FetchEntries", "EventJournalRead", "EventJournalSubscribe")
)
_AUTHENTICATED, _CREDENTIALS_FAILED = 0, 1


@dataclass(slots=True)
class Read:
    """A journal read that waits for its minimum."""

    link: Link
    request: Request
    sequence: int
    minimum: int
    maximum: int
    items: list[Change] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Listener:
    link: Link
    correlation: int
    map_name: str
    include_value: bool
    flags: int


_Answer = Callable[["Member", "Link", Request, str], "Reply | None"]

_ANSWERS: dict[int, _Answer] = {}


def _answers(kind: int) -> Callable[[_Answer], _Answer]:
    """What answers requests of a type."""

    def note(answer: _Answer) -> _Answer:
        _ANSWERS[kind] = answer
        return answer

    return note


class Member:
    """One member. Members share the maps; each serves the partitions that it owns."""

    def __init__(self, cluster: StubCluster, port: int) -> None:
        self._cluster = cluster
        self.address = Address("127.0.0.1", port)
        self.uuid = uuid.UUID(int=cluster.random.getrandbits(128))
        self._listeners: dict[uuid.UUID, _Listener] = {}
        self._object_listeners: dict[uuid.UUID, tuple[Link, int]] = {}
        self._views: list[tuple[Link, int]] = []
        self._parked = cluster.parked  # a member that is not the owner passes a read on
        self._stalled: dict[int, deque[Callable[[], None]]] = {}
        self._moving: dict[int, float] = {}  # until when, of the loop's clock
        self._measurements: list[bytes] = []
        self._metrics_parked: list[tuple[Link, Request]] = []

    # ------------------------------------------------------------------ in and out

    def receive(self, link: Link, body: bytes) -> None:
        """Execute a request, unless a fault wants it otherwise."""
        request = Request(body)
        map_name = request.text() if request.name.startswith("Map.") else ""
        fault = self._cluster.fault_for(request, map_name, link)

        def execute() -> None:
            self._execute(link, request, map_name, fault)

        if fault is not None and fault.outcome == "delay":
            self._stall(link, request.partition, fault.seconds)
        if fault is not None and fault.outcome == "move":
            self._moving[request.partition] = self._loop(link).time() + fault.seconds
        if request.partition in self._stalled:
            self._stalled[request.partition].append(execute)
        elif request.name in _READS:
            execute()
        else:
            self._try(link, request.partition, execute)

    def _try(self, link: Link, partition: int, execute: Callable[[], None]) -> None:
        """Execute a write, unless its partition is moving: then again in a while, whatever has come in between."""
        loop = self._loop(link)
        if loop.time() < self._moving.get(partition, 0.0):
            loop.call_later(_RETRY_SECONDS, self._try, link, partition, execute)
        elif self in self._cluster.members:  # what a dead one had not done, nobody does
            execute()

    def _loop(self, link: Link) -> asyncio.AbstractEventLoop:
        return self._cluster.loop or link._loop  # noqa: SLF001

    def _stall(self, link: Link, partition: int, seconds: float) -> None:
        """Let a partition's operations wait, as behind one that takes long."""
        if partition in self._stalled:
            return
        self._stalled[partition] = deque()

        def go_on() -> None:
            for execute in self._stalled.pop(partition):
                if self in self._cluster.members:
                    execute()

        self._loop(link).call_later(seconds, go_on)

    def _execute(self, link: Link, request: Request, map_name: str, fault: Fault | None) -> None:
        outcome = fault.outcome if fault is not None else ""
        applied = fault is None or fault.applied or outcome in ANSWERED
        reply = self._answer(link, request, map_name) if applied else None
        match outcome:
            case "timeout":
                link.answer(error(request.correlation, "OperationTimeout", "a fault of the stub"))
            case "indeterminate":
                link.answer(error(request.correlation, "IndeterminateOperationState", "a fault of the stub"))
            case "disconnect":
                link.cut()
            case "silence":
                pass
            case _ if reply is not None:
                if outcome == "unacknowledged":
                    reply.wait_for_backups(1)
                link.answer(reply.encode())
                if outcome == "duplicate":
                    link.answer(reply.encode())

    def _answer(self, link: Link, request: Request, map_name: str) -> Reply | None:
        """Execute a request; None if it is answered already, or will be later."""
        if request.type in OPERATIONS:
            return OPERATIONS[request.type](self._cluster, request, map_name)
        if request.type in _ANSWERS:
            return _ANSWERS[request.type](self, link, request, map_name)
        link.answer(error(request.correlation, "UnsupportedOperation", f"the stub does not know {request.name}"))
        return None

    def disconnected(self, link: Link) -> None:
        """Forget what belonged to a connection."""
        self._listeners = {key: each for key, each in self._listeners.items() if each.link is not link}
        self._views = [view for view in self._views if view[0] is not link]
        for reads in self._parked.values():
            reads[:] = [read for read in reads if read.link is not link]
        self._metrics_parked = [each for each in self._metrics_parked if each[0] is not link]

    def publish_views(self) -> None:
        """Tell every client who is there and who owns what."""
        for link, correlation in self._views:
            self._publish_view(link, correlation)

    def _publish_view(self, link: Link, correlation: int) -> None:
        version = struct.pack("<i", self._cluster.view)
        infos = [member.info() for member in self._cluster.members]
        event = Reply(_MEMBERS_VIEW, correlation, version, event=True)
        link.answer(event.encoded(ListMultiFrameCodec.encode, infos, MemberInfoCodec.encode).encode())
        owned = [
            (member.uuid, [p for p in range(self._cluster.partitions) if self._cluster.owner(p) is member])
            for member in self._cluster.members
        ]
        event = Reply(_PARTITIONS_VIEW, correlation, version, event=True)
        link.answer(event.encoded(EntryListUUIDListIntegerCodec.encode, owned).encode())

    def info(self) -> MemberInfo:
        """What clients learn of this member."""
        return MemberInfo(self.address, self.uuid, {}, False, MemberVersion(*map(int, _VERSION.split("."))), True, {})

    def changed(self, map_name: str, partition: int, change: Change) -> None:
        """Wake the reads that wait for it, and tell the listeners."""
        self.notify(map_name, change, 1)
        self.wake(map_name, partition)

    def notify(self, map_name: str, change: Change, count: int) -> None:
        """Tell the listeners of a map."""
        for listener in list(self._listeners.values()):
            if listener.map_name == map_name and listener.flags & change.kind:
                include = listener.include_value
                event = Reply(
                    _ENTRY_EVENT,
                    listener.correlation,
                    struct.pack("<i", change.kind) + uuid_bytes(self.uuid) + struct.pack("<i", count),
                    event=True,
                )
                event.data(change.key or None).data(change.value if include else None)
                event.data(change.old if include else None).data(None)
                listener.link.answer(event.encode())

    def notify_destroyed(self, map_name: str) -> None:
        """Tell who listens for objects that a map is gone."""
        for link, correlation in list(self._object_listeners.values()):
            event = Reply(_OBJECT_EVENT, correlation, uuid_bytes(self.uuid), event=True)
            for text in (map_name, MAP_SERVICE, "DESTROYED"):
                event.encoded(StringCodec.encode, text)
            link.answer(event.encode())

    # ------------------------------------------------------------------ the client's own requests

    @_answers(0x000100)
    def _authenticate(self, link: Link, request: Request, _name: str) -> Reply:
        cluster_name = request.text()
        request.nullable_text()
        request.nullable_text()
        request.text()
        request.text()
        link.client = request.text()
        cluster = self._cluster
        status = _AUTHENTICATED if cluster_name == cluster.name else _CREDENTIALS_FAILED
        fixed = struct.pack("<b", status) + uuid_bytes(self.uuid) + struct.pack("<bi", 1, cluster.partitions)
        reply = Reply(request.type + 1, request.correlation, fixed + uuid_bytes(cluster.id) + b"\0")
        return reply.encoded(AddressCodec.encode, self.address).data(_VERSION.encode())

    @_answers(0x000300)
    def _view(self, link: Link, request: Request, _name: str) -> None:
        self._views.append((link, request.correlation))
        link.answer(done(request).encode())
        self._publish_view(link, request.correlation)

    @_answers(0x000400)
    def _create_proxy(self, _link: Link, request: Request, _name: str) -> Reply:
        name, service = request.text(), request.text()
        if service == MAP_SERVICE:
            self._cluster.names.add(name)
        return done(request)

    @_answers(0x000500)
    def _destroy_proxy(self, _link: Link, request: Request, _name: str) -> Reply:
        name = request.text()
        self._cluster.destroy(name)
        for member in self._cluster.members:
            member.notify_destroyed(name)
        return done(request)

    @_answers(0x000800)
    def _objects(self, _link: Link, request: Request, _name: str) -> Reply:
        objects = [DistributedObjectInfo(MAP_SERVICE, name) for name in sorted(self._cluster.names)]
        return done(request).encoded(ListMultiFrameCodec.encode, objects, DistributedObjectInfoCodec.encode)

    @_answers(0x000900)
    def _add_object_listener(self, link: Link, request: Request, _name: str) -> Reply:
        identity = self._cluster.new_uuid()
        self._object_listeners[identity] = link, request.correlation
        return Reply(request.type + 1, request.correlation, uuid_bytes(identity))

    @_answers(0x000A00)
    def _remove_object_listener(self, _link: Link, request: Request, _name: str) -> Reply:
        return boolean(request, self._object_listeners.pop(request.uuid(), None) is not None)

    @_answers(0x000B00)
    @_answers(0x000C00)
    def _ping(self, _link: Link, request: Request, _name: str) -> Reply:
        return done(request)

    @_answers(0x000F00)
    def _backup_listener(self, _link: Link, request: Request, _name: str) -> Reply:
        return Reply(request.type + 1, request.correlation, uuid_bytes(self._cluster.new_uuid()))

    # ------------------------------------------------------------------ what it measures

    def measure(self, used: int, most: int, collections: int = 1) -> None:
        """Measure the heap now: that is what clients are told. Without it, nothing was measured yet."""
        self._measurements.append(heap_blob(used, most, collections))
        parked, self._metrics_parked = self._metrics_parked, []
        for link, request in parked:
            link.answer(self._metrics(request).encode())

    @_answers(0x200100)
    def _read_metrics(self, link: Link, request: Request, _name: str) -> Reply | None:
        (since,) = request.fixed("q", 17)
        if not self._measurements and not since:
            link.answer(error(request.correlation, "UnsupportedOperation", "nothing is measured"))
        elif since >= len(self._measurements):
            self._metrics_parked.append((link, request))
        else:
            return self._metrics(request)
        return None

    def _metrics(self, request: Request) -> Reply:
        after = struct.pack("<q", len(self._measurements))
        return Reply(request.type + 1, request.correlation, after).list(self._measurements[-1:]).data(bytes(8))

    # ------------------------------------------------------------------ maps

    @_answers(0x012D00)
    def _clear(self, _link: Link, request: Request, name: str) -> Reply:
        count = 0
        for number in range(self._cluster.partitions):
            partition = self._cluster.partition(name, number)
            for key, _ in partition:
                partition.remove(key, silently=True)
                count += 1
            self._cluster.owner(number).wake(name, number)
        if count:
            for member in self._cluster.members:
                member.notify(name, Change(CLEAR_ALL, b"", None, None), count)
        return done(request)

    @_answers(0x011900)
    def _add_listener(self, link: Link, request: Request, name: str) -> Reply:
        include_value, flags, _local_only = request.fixed("?i?")
        identity = self._cluster.new_uuid()
        self._listeners[identity] = _Listener(link, request.correlation, name, include_value, flags)
        return Reply(request.type + 1, request.correlation, uuid_bytes(identity))

    @_answers(0x011A00)
    def _remove_listener(self, _link: Link, request: Request, _name: str) -> Reply:
        return boolean(request, self._listeners.pop(request.uuid(), None) is not None)

    # ------------------------------------------------------------------ journals

    @_answers(0x014100)
    def _subscribe(self, link: Link, request: Request, name: str) -> Reply | None:
        ring = self._ring(link, request, name)
        if ring is None:
            return None
        return Reply(request.type + 1, request.correlation, struct.pack("<qq", ring.oldest, ring.newest))

    @_answers(0x014200)
    def _read(self, link: Link, request: Request, name: str) -> Reply | None:
        ring = self._ring(link, request, name)
        if ring is None:
            return None
        read = Read(link, request, *request.fixed("qii"))
        if read.minimum == 0:
            begin = ring.clamp(read.sequence)
            read.items = ring.read(begin, read.maximum)
            # With nothing to read, the member answers that the next sequence is 0.
            read.sequence = begin + len(read.items) if read.items else 0
            return _page(read)
        if _fill(read, ring):
            return _page(read)
        self._parked.setdefault((name, request.partition), []).append(read)
        return None

    def _ring(self, link: Link, request: Request, name: str) -> Ring | None:
        ring = self._cluster.partition(name, request.partition).ring
        if ring is None:
            text = f"Cannot subscribe to event journal because it is either not configured or disabled for {name}"
            link.answer(error(request.correlation, "UnsupportedOperation", text))
        return ring

    def wake(self, map_name: str, partition: int) -> None:
        """Answer the waiting reads that have their minimum now."""
        reads = self._parked.get((map_name, partition))
        ring = self._cluster.partition(map_name, partition).ring
        # In their order, and no further than to the first that must go on waiting: so do members.
        while reads and ring is not None and _fill(reads[0], ring):
            read = reads.pop(0)
            read.link.answer(_page(read).encode())

    def send_away(self, map_name: str, partition: int) -> None:
        """Let the clients send their waiting reads again, as when the partition has another owner now."""
        for read in self._parked.pop((map_name, partition), []):
            read.link.answer(error(read.request.correlation, "PartitionMigrating", "a fault of the stub"))


def _fill(read: Read, ring: Ring) -> bool:
    """Read on; whether the minimum is there."""
    read.sequence = ring.clamp(read.sequence)
    got = ring.read(read.sequence, read.maximum - len(read.items))
    read.items += got
    read.sequence += len(got)
    return len(read.items) >= read.minimum


def _page(read: Read) -> Reply:
    count, sequence = len(read.items), read.sequence
    reply = Reply(read.request.type + 1, read.request.correlation, struct.pack("<iq", count, sequence))
    reply.list(change.item() for change in read.items)
    return reply.data(struct.pack(f"<{count}q", *range(sequence - count, sequence)))


def heap_blob(used: int, most: int, collections: int = 1) -> bytes:
    """What a member packs its metrics into, with those of its heap only."""
    words, metrics, last = bytearray(struct.pack(">i", 6)), bytearray(), ""
    for number, word in enumerate(("gc", "majorCount", "maxHeap", "memory", "minorCount", "usedHeap")):
        common = int(last[:1] == word[:1])  # it might be more: what counts is that it is not always 0
        words += struct.pack(">iBB", number, common, len(word) - common) + word[common:].encode("utf-16-be")
        last = word
    for prefix, metric, value in ((3, 2, most), (3, 5, used), (0, 1, 0), (0, 4, collections)):
        # Nothing is said to be as in the metric before: prefix, metric, two discriminators, unit, targets, no tags.
        metrics += struct.pack(">BiiiibBBBq", 0, prefix, metric, -1, -1, -1, 0, 0, 0, value)
    packed, rest = zlib.compress(bytes(words)), zlib.compress(bytes(metrics))
    return struct.pack(">hi", 1, len(packed)) + packed + struct.pack(">i", 4) + rest
