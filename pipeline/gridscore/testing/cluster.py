"""The stub cluster: members, maps and clients in this process, and what may go wrong between them."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from contextlib import asynccontextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Self

from hazelcast.asyncio import HazelcastClient

from gridscore.client import Client
from gridscore.grid import Grid, GridSettings
from gridscore.grid.connection import _client_config
from gridscore.grid.transport import _look_through_rarely, _refuse_pickle, check_client_version
from gridscore.scoring import Worker
from gridscore.scoring.window_messages import ANSWER_RING, REQUEST_RING
from gridscore.testing.member import Member, Read
from gridscore.testing.network import Link, StubReactor
from gridscore.testing.store import Partition, Ring
from gridscore.testing.virtual_time import VirtualLoop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from hazelcast.core import Address

    from gridscore.testing.faults import Fault
    from gridscore.testing.messages import Request
    from gridscore.testing.store import Change

JOURNALS = {"events.*": 1_000, "results.*": 1_000, "window-requests.*": REQUEST_RING, "window-answers.*": ANSWER_RING}
_FIRST_PORT = 5701


def no_latency() -> float:
    """A network that takes no time."""
    return 0.0


class StubCluster:
    """A Hazelcast cluster in this process, for the real client and everything above it.

    An asynchronous context manager, which closes every connection that was made to it.

    Args:
        partitions: How many; fewer than a real cluster's 271 make small tests quick.
        journals: Events that the journal of *a partition* keeps, by map name or pattern; other maps have none.
        unsafe: Names or patterns of maps without a backup: a killed member takes its partitions of them along.
        members: How many.
        latency: Gives the seconds that the next message takes.
        loop: On whose time the members work; on that of each client if None.
        seed: Of what is drawn at random: identities.

    Attributes:
        faults: What is to go wrong; the first that matches a request is used up by it.
        requests: How many requests of each name there were.
        on_change: Called with map, partition and change whenever an entry has changed.
    """

    def __init__(
        self,
        partitions: int = 13,
        *,
        journals: Mapping[str, int] | None = None,
        unsafe: tuple[str, ...] = (),
        members: int = 1,
        latency: Callable[[], float] = no_latency,
        loop: asyncio.AbstractEventLoop | None = None,
        seed: int = 0,
    ) -> None:
        self.random = random.Random(seed)  # noqa: S311 -- identities of a test
        self.name = "stub"
        self.id = self.new_uuid()
        self.partitions, self.latency, self.loop = partitions, latency, loop
        self.view = 1
        self.names: set[str] = set()
        self.links: list[Link] = []
        self.faults: list[Fault] = []
        self.requests: Counter[str] = Counter()
        self.on_change: Callable[[str, int, Change], None] = lambda _map_name, _partition, _change: None
        self._journals = dict(JOURNALS if journals is None else journals)
        self._unsafe = unsafe
        self._maps: dict[str, list[Partition]] = {}
        self._refused: set[tuple[str, Member | None]] = set()
        self._ports = iter(range(_FIRST_PORT, 2**16))
        self.parked: dict[tuple[str, int], list[Read]] = {}
        self.members = [Member(self, next(self._ports)) for _ in range(members)]
        self._owners = [self.members[p % members] for p in range(partitions)]
        self._grids: list[Grid] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for grid in self._grids:
            await grid.close()
        self._grids.clear()

    # ------------------------------------------------------------------ for tests of jobs

    async def client(self, name: str = "test") -> Client:
        """The Python door to this cluster."""
        return Client(await self.connect(name))

    @asynccontextmanager
    async def worker(self, name: str = "worker", **options: Any) -> AsyncIterator[Worker]:
        """A worker that scores for the submitted jobs while this is entered.

        Args:
            name: Of its connection, for faults to name it.
            options: Of `Worker`.
        """
        async with Worker(await self.connect(name), **options) as worker:
            yield worker

    async def results(self, map_name: str, count: int, *, seconds: float = 10.0) -> dict[Any, dict[str, Any]]:
        """Results by key, once there are so many.

        Args:
            map_name: The job's result map.
            count: How many to wait for.
            seconds: How long.

        Raises:
            TimeoutError: There were fewer in that time.
        """
        proxy = await (await self.connect("results")).map(map_name)
        changed = asyncio.Event()
        await proxy.add_entry_listener(added_func=lambda _event: changed.set())
        async with asyncio.timeout(seconds):
            while await proxy.size() < count:
                await changed.wait()
                changed.clear()
        return {key: value.loads() for key, value in await proxy.entry_set()}

    # ------------------------------------------------------------------ clients

    async def connect(self, name: str = "stub-client") -> Grid:
        """Connect a client of that name, on the running event loop."""
        check_client_version()
        addresses = [f"{member.address.host}:{member.address.port}" for member in self.members]
        settings = GridSettings(members=addresses, cluster_name=self.name)
        client = HazelcastClient(_client_config(settings, addresses, name))
        _refuse_pickle(client)
        client._connection_manager._reactor = StubReactor(self, name)  # noqa: SLF001
        _look_through_rarely(client)
        await client._start()  # noqa: SLF001
        grid = Grid(client, settings)
        if isinstance(loop := asyncio.get_running_loop(), VirtualLoop):
            grid.clock = loop.time
        self._grids.append(grid)
        return grid

    def cut(self, client: str = "*", member: Member | None = None) -> None:
        """Break the connections of the clients of that name or pattern, and refuse new ones until `heal`.

        Args:
            client: Name or pattern.
            member: Only those to this one.
        """
        self._refused.add((client, member))
        for link in self._links_of(client):
            if member in (None, link.member):
                link.cut()

    def hang(self, client: str = "*", member: Member | None = None) -> None:
        """Deliver nothing to or from the clients of that name or pattern until `heal`, without telling them.

        New connections of theirs are not made either.

        Args:
            client: Name or pattern.
            member: Only what goes to or from this one.
        """
        self._refused.add((client, member))
        for link in self._links_of(client):
            if member in (None, link.member):
                link.hang()

    def heal(self) -> None:
        """End every cut and every silence of the network."""
        self._refused.clear()
        for link in list(self.links):
            link.heal()

    def kill_client(self, client: str) -> None:
        """The process of a client is gone. What it has sent still arrives; nothing is delivered to it any more."""
        for link in self._links_of(client):
            link.die()

    def listening(self, address: Address, client: str) -> Member:
        """The member at an address, for a client that wants to connect.

        Raises:
            ConnectionRefusedError: There is none, or the client is cut off.
        """
        for member in self.members:
            if member.address == address:
                if any(fnmatchcase(client, pattern) and at in (None, member) for pattern, at in self._refused):
                    break
                return member
        raise ConnectionRefusedError(f"{client} cannot reach {address}")

    def disconnected(self, link: Link) -> None:
        """A connection has ended."""
        if link in self.links:
            self.links.remove(link)
        link.member.disconnected(link)

    def _links_of(self, client: str) -> list[Link]:
        return [link for link in self.links if fnmatchcase(link.client, client)]

    # ------------------------------------------------------------------ faults

    def fault_for(self, request: Request, map_name: str, link: Link) -> Fault | None:
        """The fault that a request meets, used up by it."""
        self.requests[request.name] += 1
        for fault in self.faults:
            if fault.matches(request.name, map_name, request.partition, link.client):
                fault.times -= 1
                if not fault.times:
                    self.faults.remove(fault)
                return fault
        return None

    def regress(self, map_name: str, partition: int, changes: int | None = None) -> None:
        """The owner of a partition died: a map loses its newest changes there, or everything, and its journal too.

        Args:
            map_name: The map.
            partition: The partition.
            changes: How many; everything if None, and the journal begins at 0 again.
        """
        self.partition(map_name, partition).lose(changes)
        self.owner(partition).send_away(map_name, partition)

    def kill_member(self, index: int = 0) -> None:
        """A member dies, and others take over what it owned, less the maps without a backup."""
        dead = self.members.pop(index)
        lost = [p for p, owner in enumerate(self._owners) if owner is dead]
        for turn, number in enumerate(lost):
            self._owners[number] = self.members[turn % len(self.members)]
            for name, partitions in self._maps.items():
                if any(fnmatchcase(name, pattern) for pattern in self._unsafe):
                    partitions[number].lose()
        for link in [link for link in self.links if link.member is dead]:
            link.cut()
        self._publish_views()

    def start_member(self) -> None:
        """Another member joins, and takes over its share of the partitions."""
        member = Member(self, next(self._ports))
        self.members.append(member)
        for number in range(len(self.members) - 1, self.partitions, len(self.members)):
            for name in self._maps:
                self._owners[number].send_away(name, number)
            self._owners[number] = member
        self._publish_views()

    def _publish_views(self) -> None:
        self.view += 1
        for member in self.members:
            member.publish_views()

    # ------------------------------------------------------------------ maps, for members and for tests

    def owner(self, partition: int) -> Member:
        """The member that serves a partition."""
        return self._owners[partition]

    def partition(self, map_name: str, number: int) -> Partition:
        """A partition of a map, which comes to be."""
        if map_name not in self._maps:
            capacity = self._capacity(map_name)
            self._maps[map_name] = [
                Partition(None if capacity is None else Ring(capacity), self._announcer(map_name, p))
                for p in range(self.partitions)
            ]
        return self._maps[map_name][number]

    def destroy(self, map_name: str) -> None:
        """Forget a map."""
        self._maps.pop(map_name, None)
        self.names.discard(map_name)

    def new_uuid(self) -> uuid.UUID:
        """An identity."""
        return uuid.UUID(int=self.random.getrandbits(128))

    def _capacity(self, map_name: str) -> int | None:
        for pattern, capacity in self._journals.items():
            if fnmatchcase(map_name, pattern):
                return capacity
        return None

    def _announcer(self, map_name: str, number: int) -> Callable[[Change], None]:
        def announce(change: Change) -> None:
            self.on_change(map_name, number, change)
            self._owners[number].changed(map_name, number, change)

        return announce
