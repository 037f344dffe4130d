"""The connection to the cluster: one client, one event loop, its maps and partitions."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, TypeVar

from hazelcast.config import Config, ReconnectMode
from hazelcast.core import DistributedObjectEventType
from hazelcast.errors import AuthenticationError, ClientNotAllowedInClusterError, HazelcastError, IllegalStateError
from hazelcast.lifecycle import LifecycleState
from hazelcast.security import BasicTokenProvider

from gridscore.errors import ClusterReplacedError, ConnectionFailedError, GridError, MapNotFoundError
from gridscore.grid import transport

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Iterable

    from hazelcast.asyncio import HazelcastClient
    from hazelcast.core import DistributedObjectEvent

    from gridscore.errors import BadRecord
    from gridscore.grid.settings import GridSettings

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

DEFAULT_ADDRESS = "127.0.0.1:5701"

_LOGGED = 1_000

# How long members may take to destroy a map, with its listeners, from the first word of it.
DESTROYED_SECONDS = 0.5

SEARCHES = 4  # how many reads that look for events that were just put may be under way at once


class BadRecords:
    """The bad records that one connection met last; each is logged once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, bytes], BadRecord] = {}
        self._logged: dict[tuple[str, bytes, int], None] = {}

    def all(self) -> list[BadRecord]:
        """Those that the last read of their map met, by map and key."""
        return sorted(self._known.values(), key=lambda bad: (bad.map_name, bad.key))

    def note(self, found: Iterable[BadRecord]) -> None:
        for bad in found:
            self._known[bad.map_name, bad.key_data] = bad
            if self.is_new(bad.map_name, bad.key_data, bad.value_data):
                _log.error("%s. `gridscore repair` repairs or removes it.", bad, extra={"action": "bad_record"})

    def is_new(self, map_name: str, key: bytes, value: bytes) -> bool:
        """Whether this is the first call for an entry, as far as that is remembered."""
        place = (map_name, key, hash(value))
        if place in self._logged:
            return False
        while len(self._logged) >= _LOGGED:
            self._logged.pop(next(iter(self._logged)))
        self._logged[place] = None
        return True

    def replace(
        self, map_name: str, found: Iterable[BadRecord], *, prefix: str = "", keys: Collection[str] | None = None
    ) -> None:
        """Note all that a map holds now under keys with that prefix, or under those keys."""
        for place, bad in list(self._known.items()):
            if bad.map_name == map_name and bad.key.startswith(prefix) and (keys is None or bad.key in keys):
                del self._known[place]
        self.note(found)


@dataclass(slots=True, eq=False)
class _Watch:
    proxy: Any
    updates: bool
    callbacks: list[Callable[[], None]] = field(default_factory=list)
    registering: asyncio.Future[Any] | None = None
    unheard: Callable[[], None] | None = None  # ends the watch for a map that is destroyed
    is_deaf: bool = False  # whether the map was destroyed, and its listeners with it
    again: asyncio.Task[None] | None = None

    def call(self) -> None:
        for callback in list(self.callbacks):
            callback()

    async def begin(self, grid: Grid) -> Any:
        self.unheard = await grid.on_destroyed(self.proxy.name, self._destroyed)
        try:
            return await self._listen()
        except BaseException:
            self.unheard()
            raise

    async def end(self) -> None:
        if self.unheard is not None:
            self.unheard()
        if self.again is not None:
            self.again.cancel()
        if self.registering is not None:
            await self.proxy.remove_entry_listener(await self.registering)

    async def _listen(self) -> Any:
        return await transport.listen(self.proxy, self.call, updates=self.updates)

    def _destroyed(self) -> None:
        self.is_deaf = True
        if self.again is None or self.again.done():
            self.again = asyncio.get_running_loop().create_task(self._listen_again())

    async def _listen_again(self) -> None:
        while self.is_deaf and self.callbacks:
            await asyncio.sleep(DESTROYED_SECONDS)
            self.is_deaf, before = False, self.registering
            try:
                self.registering = asyncio.ensure_future(self._listen())
                await self.registering
                self.call()
                if before is not None:
                    await self.proxy.remove_entry_listener(await before)
            except HazelcastError as error:
                _log.debug("%s: listening again failed: %s", self.proxy.name, error)
                self.registering, self.is_deaf = before, True


class Watches:
    """The listeners of one connection, one for each control map, however many want to hear of its changes."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._watches: dict[tuple[str, bool], _Watch] = {}
        grid.on_reconnect(self._reconnected)

    async def add(self, proxy: Any, callback: Callable[[], None], *, updates: bool) -> Callable[[], Any]:
        """Call back when an entry has come, gone or, if wanted, changed, and after a reconnect; see `Records.watch`."""
        place = (proxy.name, updates)
        watch = self._watches.setdefault(place, _Watch(proxy, updates))
        watch.callbacks.append(callback)
        if watch.registering is None:
            watch.registering = asyncio.ensure_future(watch.begin(self._grid))

        async def stop() -> None:
            watch.callbacks.remove(callback)
            if not watch.callbacks and self._watches.get(place) is watch:
                del self._watches[place]
                if self._grid.is_running:
                    await watch.end()

        registering = watch.registering
        try:
            await asyncio.shield(registering)
        except BaseException:
            if self._watches.get(place) is watch and registering.done():
                del self._watches[place]
            watch.callbacks.remove(callback)
            raise
        return stop

    def _reconnected(self) -> None:
        for watch in list(self._watches.values()):
            watch.call()


class Grid:
    """A connected client. Use it from the event loop that made it, as an asynchronous context manager."""

    def __init__(self, client: HazelcastClient, settings: GridSettings) -> None:
        self.client = client  # the Hazelcast client underneath, for what this class does not offer
        self.settings = settings
        self.name: str = client.name  # what this client is called in the cluster's own views
        self.parked_reads: dict[Any, Any] = {}  # of journals, see `journal`
        self.journalled: dict[str, int | None] = {}  # maps that have a journal, and what it holds over all partitions
        self.config_look: asyncio.Future[Any] | None = None  # the look at the members' configuration under way
        self.searches = asyncio.Semaphore(SEARCHES)  # of journals, see `sequences`
        # Monotonic seconds, by which leases are timed; a stub of a cluster has its own clock.
        self.clock: Callable[[], float] = time.monotonic
        self.bad_records = BadRecords()
        self.shared: dict[object, Any] = {}  # what users of this connection share, by whatever they know it by
        self._maps: dict[str, Any] = {}
        self._on_reconnect: list[Callable[[], None]] = []
        self.watches = Watches(self)
        self._on_member_change: list[Callable[[], None]] = []
        self._was_disconnected = False
        self._closing = False
        self._on_replaced: list[Callable[[], None]] = []
        self._on_close: list[Callable[[], None]] = []
        self._on_destroyed: dict[str, list[Callable[[], None]]] = {}
        self._listening: asyncio.Future[Any] | None = None  # for maps that are destroyed
        self._replaced = asyncio.Event()
        self._cluster_id = transport.cluster_id(client)
        client.lifecycle_service.add_listener(self._lifecycle_changed)
        # Events that a member had not delivered are lost when it leaves, even if others stay connected.
        transport.on_connection_opened(client, self._connection_opened)
        client.cluster_service.add_listener(self._members_changed, self._members_changed)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def partition_count(self) -> int:
        """Number of partitions of the cluster, fixed for its life."""
        return int(self.client.partition_service.get_partition_count())

    @property
    def members(self) -> list[Any]:
        """The members that the client knows now."""
        return list(self.client.cluster_service.get_members())

    @property
    def is_running(self) -> bool:
        """Whether the client has neither been closed nor given up on the cluster."""
        return bool(self.client.lifecycle_service.is_running())

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection to the cluster now, as far as the client knows."""
        return self.is_running and not self._was_disconnected

    def may_recover_from(self, error: Exception) -> bool:
        """Whether a retry may help: the cluster did not answer. Other errors of the grid have their own classes."""
        of_the_grid = isinstance(error, HazelcastError) or type(error) in (GridError, ConnectionFailedError)
        return of_the_grid and self.is_running

    async def map(self, name: str) -> Any:
        """The map of that name. Creating the proxy creates the map in the cluster if it does not exist."""
        if name not in self._maps:
            # If we were cancelled, the client would cancel everybody who waits for the same proxy.
            self._maps[name] = await asyncio.shield(self.client.get_map(name))
        return self._maps[name]

    async def destroy(self, name: str) -> None:
        """Destroy a map: its entries, its journal and its listeners. One that does not exist is no error."""
        self._maps.pop(name, None)  # a proxy that was destroyed once does nothing the second time
        await (await asyncio.shield(self.client.get_map(name))).destroy()

    async def on_destroyed(self, name: str, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back when somebody destroys a map, once or more often; returns a function that ends it.

        Members are about to do it then: what looks at the map, or listens to it, waits for `DESTROYED_SECONDS` first.
        """
        if self._listening is None:
            self._listening = asyncio.ensure_future(self.client.add_distributed_object_listener(self._object_changed))
        listening = self._listening
        try:
            await asyncio.shield(listening)
        except HazelcastError:
            self._listening = None if self._listening is listening else self._listening
            raise
        callbacks = self._on_destroyed.setdefault(name, [])
        callbacks.append(callback)
        return lambda: callbacks.remove(callback)

    def _object_changed(self, event: DistributedObjectEvent) -> None:
        if event.event_type == DistributedObjectEventType.DESTROYED:
            for callback in list(self._on_destroyed.get(event.name, ())):
                callback()

    async def has_map(self, name: str) -> bool:
        """Whether a map of that name exists in the cluster, without creating it."""
        # A map that was destroyed, and then filled by a client that still knew it, has entries but no name.
        return name in await transport.map_names(self.client) or await transport.map_size(self.client, name) > 0

    async def require_map(self, name: str) -> None:
        """Refuse a lookup map that does not exist. Raises MapNotFoundError if there is no such map."""
        if not await self.has_map(name):
            raise MapNotFoundError(
                f"The lookup map `{name}` does not exist in the cluster.",
                "Put the reference data into it first, or correct the name in the job file.",
            )

    def on_reconnect(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back whenever a connection to a member was opened; returns a function that ends it."""
        self._on_reconnect.append(callback)
        return lambda: self._on_reconnect.remove(callback)

    def on_member_change(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back whenever a member has joined or left; returns a function that ends it."""
        self._on_member_change.append(callback)
        return lambda: self._on_member_change.remove(callback)

    def on_replaced(self, callback: Callable[[], None]) -> None:
        """Call back when another cluster has replaced this one, before anything is read from it."""
        self._on_replaced.append(callback)

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call back when this connection is being closed."""
        self._on_close.append(callback)

    async def close(self) -> None:
        """Close the connection. A second call does nothing."""
        self._closing = True
        for callback in self._on_close:
            callback()
        await self.client.shutdown()

    def _lifecycle_changed(self, state: str) -> None:
        if state == LifecycleState.DISCONNECTED and not self._closing:
            self._was_disconnected = True
            _log.warning("The connection to the cluster is lost, trying again", extra={"action": "disconnected"})
        elif state == LifecycleState.CONNECTED and self._was_disconnected:
            self._was_disconnected = False
            _log.warning("Connected to the cluster again", extra={"action": "reconnected"})
            self.journalled.clear()
            before, self._cluster_id = self._cluster_id, transport.cluster_id(self.client)
            if self._cluster_id != before:
                _log.error("%s", self._replaced_error(), extra={"action": "cluster_replaced"})
                self._replaced.set()
                for callback in list(self._on_replaced):
                    callback()

    def _replaced_error(self) -> ClusterReplacedError:
        return ClusterReplacedError(
            f"The cluster `{self.settings.cluster_name}` was replaced by another one: the events, jobs, models and "
            "offsets that it kept in memory are gone.",
            "Submit the jobs and push the models again, then restart what has ended.",
        )

    async def while_same(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run something that relies on what the cluster keeps; cancel it when another cluster replaces this one.

        Raises ClusterReplacedError if one has.
        """
        task = asyncio.ensure_future(work)
        replaced = asyncio.ensure_future(self._replaced.wait())
        try:
            await asyncio.wait({task, replaced}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise self._replaced_error()
        finally:
            for each in (task, replaced):
                each.cancel()
            await asyncio.gather(task, replaced, return_exceptions=True)

    def _members_changed(self, _member: object) -> None:
        for callback in list(self._on_member_change):
            callback()

    def _connection_opened(self, _connection: object) -> None:
        for callback in list(self._on_reconnect):
            callback()


def or_local_cluster(settings: GridSettings) -> GridSettings:
    """The settings; if they name no members, those of the cluster that `gridscore up` runs on this machine."""
    if settings.members:
        return settings
    from gridscore.grid.member import running_cluster

    named = "cluster_name" in settings.model_fields_set
    local = (running_cluster(settings.cluster_name) if named else None) or running_cluster()
    if local is None:
        return settings
    names = {} if named else {"cluster_name": local["cluster_name"]}
    return settings.model_copy(update={"members": list(local["members"]), **names})


async def connect(settings: GridSettings, *, name: str | None = None) -> Grid:
    """Connect to the cluster that the settings name.

    `name`: what this client is called in the cluster's own views. Raises ConnectionFailedError if no member answered
    within `connect_timeout`, or the cluster refused this client; UnsupportedClientError if the journal protocol needs
    another version of the client.
    """
    transport.check_client_version()
    addresses = list(settings.members) or [DEFAULT_ADDRESS]
    config = _client_config(settings, addresses, name or f"gridscore-{uuid.uuid4().hex[:8]}")
    where = f"cluster `{settings.cluster_name}` at {', '.join(addresses)}"
    try:
        return Grid(await transport.start_client(config, settings.connect_timeout), settings)
    except transport.SilentMembersError as error:
        raise ConnectionFailedError(
            f"No connection to the {where}: {', '.join(error.addresses)} took a connection, but did not answer.",
            transport.SILENT_HINT,
        ) from None
    except (TimeoutError, IllegalStateError, OSError):
        _log.debug("connecting failed", exc_info=True)
        raise ConnectionFailedError(
            f"No connection to the {where}.",
            "Is a member running there, and is that the cluster's name? `gridscore up` starts one on this machine; "
            "--members and --cluster-name (or GRIDSCORE_MEMBERS and GRIDSCORE_CLUSTER_NAME) name another.",
        ) from None
    except (AuthenticationError, ClientNotAllowedInClusterError) as error:
        raise ConnectionFailedError(f"The {where} refused this client: {error}", _refusal_hint(settings)) from None
    except HazelcastError as error:
        raise GridError(f"Connecting to the {where} failed: {error}") from error


def _refusal_hint(settings: GridSettings) -> str:
    if settings.username or settings.token:
        return "Open-source Hazelcast accepts no credentials; with Enterprise, check the user name and password."
    return "Check the cluster's name and, with Enterprise, the credentials."


def _client_config(settings: GridSettings, addresses: list[str], name: str) -> Config:
    config = Config()
    config.client_name = name
    config.cluster_name = settings.cluster_name
    config.cluster_members = addresses
    # A worker waits for a lost cluster for as long as it takes; only the first search is bounded.
    config.cluster_connect_timeout = -1
    # One that hangs costs this twice: when it is the first that is asked, and when all others are.
    config.connection_timeout = min(5.0, settings.connect_timeout / 3)
    config.retry_initial_backoff = 0.2
    config.retry_max_backoff = 2.0
    config.reconnect_mode = ReconnectMode.ON
    config.invocation_timeout = settings.invocation_timeout
    # A write whose backup did not answer is not a success, and one of unknown fate is not sent twice: both are
    # reported, and the writer reads back what happened.
    config.fail_on_indeterminate_operation_state = True
    config.redo_operation = False
    if settings.username is not None:
        config.creds_username = settings.username
        config.creds_password = settings.password.get_secret_value() if settings.password else None
    if settings.token is not None:
        config.token_provider = BasicTokenProvider(settings.token.get_secret_value())
    if settings.tls:
        config.ssl_enabled = True
        config.ssl_cafile = str(settings.tls_ca_file) if settings.tls_ca_file else None
        config.ssl_certfile = str(settings.tls_cert_file) if settings.tls_cert_file else None
        config.ssl_keyfile = str(settings.tls_key_file) if settings.tls_key_file else None
        config.ssl_password = settings.tls_key_password.get_secret_value() if settings.tls_key_password else None
        config.ssl_check_hostname = settings.tls_check_hostname
    return config
