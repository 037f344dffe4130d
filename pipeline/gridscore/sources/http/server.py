"""The server: listens, with TLS if wished, and bounds the connections of whatever application it serves."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn

from gridscore.errors import SettingsError, UsageError
from gridscore.sources.http.connections import Connections
from gridscore.sources.http.gate import Guard, gated
from gridscore.sources.http.protocol import BoundedHeads
from gridscore.sources.http.tls import Certificate, TlsServer

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from starlette.types import ASGIApp

    from gridscore.grid import Grid
    from gridscore.job.plugs.http import PostSettings

LISTENERS = 500  # those for whom there is always room among the requests
OTHER_FILES = 200  # of the process: connections to members, models, logs
CLOSE_SECONDS = 3  # time for answers to leave when the server is closed


class HttpServer:
    """Serves one application, behind the gate.

    `listeners`: requests that may last; `guard`: knows who comes; `address`: where it listens, once it is open: `http://127.0.0.1:8080`.
    """

    def __init__(self, grid: Grid, settings: PostSettings, *, listeners: int = 0) -> None:
        self._settings, self.guard, self._listeners = settings, Guard(grid, settings), listeners
        self.connections = Connections(settings.max_per_address, max(0, listeners - LISTENERS))
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self.address = ""

    def open(
        self,
        app: ASGIApp,
        guards_itself: Callable[[str], bool] = lambda _path: False,
        *,
        takes_sockets: bool = False,
    ) -> None:
        """Begin to listen.

        Args:
            guards_itself: As of the gate.
            takes_sockets: Whether the application answers WebSockets, too.

        Raises SettingsError if the certificate or its key cannot be used; UsageError if the address cannot be listened
        on, strangers would reach it, or the process may open too few files.
        """
        _allow_files(self.connections.most, self._listeners)
        sockets: dict[str, Any] = {"ws": "none"}
        if takes_sockets:
            from gridscore.sources.http.sockets import MAX_MESSAGE, BoundedSocket

            sockets = {"ws": BoundedSocket, "ws_max_size": MAX_MESSAGE, "ws_per_message_deflate": False}
        config = uvicorn.Config(
            gated(app, self.guard, self._settings.allow_origin, guards_itself),
            http=partial(BoundedHeads, connections=self.connections),  # type: ignore[arg-type]  # a factory
            **sockets,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=CLOSE_SECONDS,
            ssl_certfile=self._settings.certificate,
            ssl_keyfile=self._settings.private_key,
        )
        certificate = _load(config, self._settings)
        listening = self._listen(config)
        host, port = listening.getsockname()[:2]
        if not (self.guard.asks or self._settings.public or ipaddress.ip_address(host).is_loopback):
            listening.close()
            raise UsageError(
                f"Anybody who reaches {host}:{port} could do all that is offered there.",
                "Ask for keys (`--keys`), a token (`--token '${NAME}'`), tokens of an issuer (`--oidc-issuer`) or "
                "certificates (`--client-grant`); or say `--public`, if you want that.",
            )
        self.address = f"http{'s' if config.is_ssl else ''}://{f'[{host}]' if ':' in host else host}:{port}"
        self._server = _Server(config, self.connections, certificate)
        self._serving = asyncio.get_running_loop().create_task(self._server.serve([listening]))

    async def close(self) -> None:
        """Stop listening; answers under way have `CLOSE_SECONDS`."""
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await asyncio.gather(self._serving, return_exceptions=True)
            self._server = self._serving = None
        await self.guard.close()

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
                f"Gridscore cannot listen on {host}:{port}: {error.strerror}.",
                "Is something else listening there? --port names another port, --host another address.",
            ) from None
        return listening


def _allow_files(connections: int, listeners: int) -> None:
    """Let the process open a file for each connection, if it may; one for each listener it must."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if listeners and hard != unlimited and hard < listeners + OTHER_FILES:
        raise UsageError(
            f"For {listeners:,} listeners this process must be let open {listeners + OTHER_FILES:,} files; "
            f"its limit is {hard:,}.",
            "Raise it (`ulimit -Hn`, `LimitNOFILE=` of systemd, `--ulimit nofile=` of containers), or name fewer.",
        )
    wanted = connections + OTHER_FILES
    if soft != unlimited and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == unlimited else min(wanted, hard), hard))


def _load(config: uvicorn.Config, settings: PostSettings) -> Certificate | None:
    files = [each for each in (settings.certificate, settings.private_key, settings.client_ca) if each is not None]
    for path in files:
        if not Path(path).is_file():
            raise SettingsError(f"For TLS: there is no file {path}.")
    try:
        certificate = Certificate(*files) if files else None
    except OSError as error:  # ssl.SSLError is one; of others the system does not say which file it refuses
        why = getattr(error, "reason", None) or error.strerror or error
        what = f" with the authorities of {settings.client_ca}" if settings.client_ca else ""
        raise SettingsError(
            f"The certificate {files[0]} and the key {files[1]}{what} cannot be used: {why}.",
            "All are PEM files that can be read here, and the key is the one that the certificate was made for.",
        ) from None
    config.load()
    return certificate


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, connections: Connections, certificate: Certificate | None) -> None:
        super().__init__(config)
        self._connections, self._certificate = connections, certificate

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        certificate = self._certificate
        if certificate is None or not sockets:
            await super().startup(sockets)
            return
        # As uvicorn does, but with our own server.
        options = {"config": self.config, "server_state": self.server_state, "app_state": self.lifespan.state}
        make = partial(BoundedHeads, connections=self._connections, **options)
        self.servers = [TlsServer(each, certificate, self._connections, make) for each in sockets]  # type: ignore[misc]  # alike
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        # Signals belong to the program that runs the source.
        yield
