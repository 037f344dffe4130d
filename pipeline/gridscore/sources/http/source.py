"""The HTTP source: web pages, tills and anything else that can post JSON.

A request is answered only when the grid has confirmed its events with their backups: 202 means that they are there. So
nothing is kept here, and nothing is lost when this process dies: without an answer, clients send again, and as events
have keys, that changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import ssl
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from gridscore.errors import SettingsError, UsageError
from gridscore.job.types import seconds_of
from gridscore.sources.http.app import EventsApp
from gridscore.sources.http.connections import Connections
from gridscore.sources.http.intake import Intake
from gridscore.sources.http.protocol import BoundedHeads
from gridscore.sources.http.tls import TlsServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Sequence

    from gridscore.client.room import Waiting
    from gridscore.grid import Grid
    from gridscore.sources.base import Batch
    from gridscore.sources.http.settings import HttpSourceSettings

_log = logging.getLogger(__name__)

CLOSE_SECONDS = 3
"""Time for answers to leave when the source is closed."""


class HttpSource:
    """Listens, and gives what is posted to the runner.

    Attributes:
        address: Where it listens, once it is open: `http://127.0.0.1:8080`.
    """

    def __init__(self, grid: Grid, name: str, settings: HttpSourceSettings) -> None:
        self._grid, self._name, self._settings = grid, name, settings
        maps = dict.fromkeys((settings.to, *settings.also))
        self._intake = Intake(maps, settings.max_waiting, settings.max_waiting_bytes, seconds_of(settings.patience))
        self._connections = Connections(settings.max_per_address)
        self._app: EventsApp | None = None
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self.address = ""

    async def open(self) -> None:
        """Begin to listen.

        Raises:
            SettingsError: The certificate or its key cannot be used.
            UsageError: The address cannot be listened on.
        """
        settings = self._settings
        app = self._app = EventsApp(self._grid, settings, settings.token, self._intake)
        config = uvicorn.Config(
            app.asgi(),
            http=partial(BoundedHeads, connections=self._connections),  # type: ignore[arg-type]  # a factory
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=CLOSE_SECONDS,
            ssl_certfile=settings.certificate,
            ssl_keyfile=settings.private_key,
        )
        self._load(config)
        listening = self._listen(config)
        host, port = listening.getsockname()[:2]
        self.address = f"http{'s' if config.is_ssl else ''}://{f'[{host}]' if ':' in host else host}:{port}"
        self._server = _Server(config, self._connections)
        self._serving = asyncio.get_running_loop().create_task(self._server.serve([listening]))
        _log.info("Events are taken at %s/events/%s", self.address, settings.to, extra={"action": "listening"})
        if not settings.token and not ipaddress.ip_address(host).is_loopback:
            _log.warning("Anybody who reaches %s may send events: there is no token", self.address)

    def batches(self) -> AsyncIterator[Batch]:
        """Not used: see `streams`."""
        raise NotImplementedError

    def streams(self) -> Sequence[AsyncIterator[Batch]]:
        """What is posted, one stream for each map, until the source is closed."""
        return self._intake.streams()

    @property
    def most_held(self) -> tuple[int, int, int]:
        """How much may wait for partitions without room, so that others still have some."""
        return self._intake.most_held

    async def acknowledge(self, batch: Batch) -> None:
        """Answer the request if its events are all in the grid now."""
        self._intake.acknowledge(batch)

    def refuse(self, batch: Batch, error: Exception) -> None:
        """Answer the request that the grid did not confirm."""
        self._intake.refuse(batch, error)

    def waits(self, map_name: str, waiting: Waiting | None) -> None:
        """Note what to tell requests that find no room."""
        self._intake.waits(map_name, waiting)

    async def close(self) -> None:
        """Stop listening; what is not confirmed is answered with 503."""
        self._intake.close()
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await asyncio.gather(self._serving, return_exceptions=True)
            self._server = self._serving = None
        if self._app is not None:
            self._app.close()

    @staticmethod
    def _load(config: uvicorn.Config) -> None:
        certificate, key = config.ssl_certfile, config.ssl_keyfile
        for path in (certificate, key):
            if path is not None and not Path(path).is_file():
                raise SettingsError(f"For TLS: there is no file {path}.")
        try:
            config.load()
        except ssl.SSLError as error:
            raise SettingsError(
                f"The certificate {certificate} and the key {key} cannot be used: {error.reason or error}.",
                "Both are PEM files, and the key is the one that the certificate was made for.",
            ) from None

    def _listen(self, config: uvicorn.Config) -> socket.socket:
        host, port = self._settings.host, self._settings.port
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listening = socket.socket(family, kind, protocol)
            try:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listening.bind(address)
                listening.listen(config.backlog)  # or two could be bound to one port
                listening.setblocking(False)
            except OSError:
                listening.close()
                raise
        except OSError as error:
            raise UsageError(
                f"The source cannot listen on {host}:{port}: {error.strerror}.",
                "Is something else listening there? --port names another port, --host another address.",
            ) from None
        return listening


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, connections: Connections) -> None:
        super().__init__(config)
        self._connections = connections

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        context = self.config.ssl
        if context is None or not sockets:
            await super().startup(sockets)
            return
        # As uvicorn does, but with our own server.
        options = {"config": self.config, "server_state": self.server_state, "app_state": self.lifespan.state}
        make = partial(BoundedHeads, connections=self._connections, **options)
        self.servers = [TlsServer(each, context, self._connections, make) for each in sockets]  # type: ignore[misc]  # alike
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        # Signals belong to the program that runs the source.
        yield
