"""A request per event to a web server that scores. No grid, no topic: who asks gets the result in the answer."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import httptools
import msgspec

from benchmarks.features import Result
from benchmarks.systems.base import System
from gridscore.errors import GridscoreError
from gridscore.grid.ports import HOST
from gridscore.leash import LeashedProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from benchmarks.systems.base import Bed

CONNECTIONS = 64

_WAIT_SECONDS = 60.0
_LOOK_SECONDS = 0.02
_WARM_UP = -1
"""Number of requests that only show that a connection is there."""


class FastApi(System):
    """FastAPI and uvicorn; see `http_server`.

    The client is this process: 64 connections that are kept, each with one request at a time; further events wait for a
    connection, which counts for their latency. It writes bytes to sockets and has the answers parsed by httptools, as a
    client library would cost as much as the server. Its CPU is not counted: it is the load generator.
    """

    name = "fastapi"
    title = "FastAPI, a request per event"
    tuning = (
        "One uvicorn worker with uvloop and httptools, without access log and date and server headers; connections "
        "are kept. The handler takes and returns bytes, without pydantic, and runs in the event loop, without a "
        "thread; one XGBoost thread. It cannot take batches: each event is a request and a prediction."
    )
    share = 0.005
    in_grid = False
    takes_backlog = False

    def __init__(self, bed: Bed) -> None:
        super().__init__(bed)
        self._server: LeashedProcess | None = None
        self._connections: list[_Connection] = []
        self._idle: deque[_Connection] = deque()
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._answers: dict[int, bytes] = {}
        self._seen: Callable[[int], None] | None = None
        self._error = ""

    async def prepare(self) -> None:
        """Nothing: a run is a process."""

    async def start(self, *, backlog: bool) -> None:
        """Start the server, connect to it, and have an event answered over each connection.

        Raises:
            GridscoreError: It does not come up, or is asked for a backlog.
        """
        if backlog:
            raise GridscoreError("A web server has no backlog.")
        self._error = ""
        self._server = LeashedProcess(
            "benchmarks.systems.http_server", [str(self.bed.files)], self.bed.folder / f"{self.name}.log"
        )
        deadline = time.monotonic() + _WAIT_SECONDS
        while (words := self._server.log_file.read_text(encoding="utf-8").partition("port ")[2]).count("\n") == 0:
            await self._pause(deadline)
        port = int(words.splitlines()[0])
        loop = asyncio.get_running_loop()
        [(_, text)] = self.bed.work.events(1)
        for _ in range(CONNECTIONS):
            _, connection = await loop.create_connection(lambda: _Connection(self._answered, self._lost), HOST, port)
            self._connections.append(connection)
            connection.send(_WARM_UP, text)
        while len(self._idle) < CONNECTIONS:
            await self._pause(deadline)

    async def _pause(self, deadline: float) -> None:
        await self.check()
        if time.monotonic() > deadline:
            lines = self._server.last_lines() if self._server is not None else ""
            raise GridscoreError(
                f"The web server does not answer after {_WAIT_SECONDS:.0f} s. Its last lines:\n{lines}"
            )
        await asyncio.sleep(_LOOK_SECONDS)

    async def results(self) -> int:
        """Answers."""
        return len(self._answers)

    async def scores(self, numbers: Collection[int]) -> dict[int, float]:
        """From the answers."""
        decode = msgspec.json.Decoder(Result).decode
        return {number: decode(self._answers[number]).score for number in numbers if number in self._answers}

    async def stop(self) -> None:
        """Close the connections and end the server."""
        self._seen = None
        while self._connections:
            self._connections.pop().close()
        self._idle.clear()
        self._waiting.clear()
        self._answers.clear()
        if self._server is not None:
            server, self._server = self._server, None
            await asyncio.to_thread(server.stop)

    async def close(self) -> None:
        """As `stop`."""
        await self.stop()

    def pids(self) -> list[int]:
        """The server."""
        return [self._server.pid] if self._server is not None else []

    def service_pids(self) -> list[int]:
        """None: there are no members and no broker."""
        return []

    async def watch(self, seen: Callable[[int], None]) -> None:
        """`seen` is called as an answer comes."""
        self._seen = seen

    def send(self, number: int, text: bytes) -> None:
        """One request, over a connection that has none."""
        if self._idle:
            self._idle.popleft().send(number, text)
        else:
            self._waiting.append((number, text))

    async def check(self) -> None:
        """Raise if the server has ended, or has answered anything but a result.

        Raises:
            GridscoreError: With the last lines, or the answer.
        """
        if self._server is not None and self._server.exit_code is not None:
            raise GridscoreError(f"The web server ended. Its last lines:\n{self._server.last_lines()}")
        if self._error:
            raise GridscoreError(f"The web server: {self._error}")

    def _answered(self, connection: _Connection, number: int, status: int, body: bytes) -> None:
        if self._waiting:
            connection.send(*self._waiting.popleft())
        else:
            self._idle.append(connection)
        if status != 200:  # OK
            self._error = self._error or f"answered with {status}: {body.decode(errors='replace')}"
        elif number != _WARM_UP:
            self._answers[number] = body
            if self._seen is not None:
                self._seen(number)

    def _lost(self) -> None:
        if self._connections:  # we have not closed it ourselves
            self._error = self._error or "closed a connection"


class _Connection(asyncio.Protocol):
    """A connection with one request at a time. What httptools calls has the names that it wants."""

    def __init__(self, answered: Callable[[_Connection, int, int, bytes], None], lost: Callable[[], None]) -> None:
        self._answered, self._lost = answered, lost
        self._parser: Any = httptools.HttpResponseParser(self)
        self._transport: Any = None
        self._number = 0
        self._body = b""

    def send(self, number: int, text: bytes) -> None:
        """Ask for the score of an event."""
        self._number, self._body = number, b""
        self._transport.write(
            b"POST /score HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (len(text), text)
        )

    def close(self) -> None:
        """Close it."""
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what to write to."""
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- a name of asyncio's
        """Say so."""
        self._lost()

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """Keep a part of the answer."""
        self._body += body

    def on_message_complete(self) -> None:
        """Hand the answer over."""
        self._answered(self, self._number, self._parser.get_status_code(), self._body)
