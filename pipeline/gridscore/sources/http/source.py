"""The HTTP source: web pages, tills and anything else that can post JSON.

A request is answered only when the grid has confirmed its events with their backups: 202 means that they are there. So
nothing is kept here, and nothing is lost when this process dies: without an answer, clients send again, and as events
have keys, that changes nothing.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from gridscore.job.types import seconds_of
from gridscore.sources.http.app import EventsApp
from gridscore.sources.http.intake import Intake
from gridscore.sources.http.server import HttpServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from gridscore.grid import Grid
    from gridscore.producer.room import Waiting
    from gridscore.sources.base import Batch
    from gridscore.sources.http.settings import HttpSourceSettings

_log = logging.getLogger(__name__)


class HttpSource:
    """Listens, and gives what is posted to the runner.

    `attach`: given the application when the source is open, and None when it is closed, by who serves it beside others;
    the source then listens nowhere itself.
    """

    def __init__(
        self,
        grid: Grid,
        name: str,
        settings: HttpSourceSettings,
        attach: Callable[[EventsApp | None], None] | None = None,
    ) -> None:
        self._grid, self._name, self._settings = grid, name, settings
        maps = dict.fromkeys((settings.to, *settings.also))
        self._intake = Intake(maps, settings.max_waiting, settings.max_waiting_bytes, seconds_of(settings.patience))
        self._server, self._attach = HttpServer(grid, settings), attach
        self._app: EventsApp | None = None

    async def open(self) -> None:
        """Begin to listen, unless another serves the application.

        Raises SettingsError if the certificate or its key cannot be used; UsageError if the address cannot be listened
        on, or strangers would reach it.
        """
        app = self._app = EventsApp(self._grid, self._settings, self._intake)
        if self._attach is not None:
            self._attach(app)
            return
        self._server.open(app.asgi())
        _log.info("Events are taken at %s/events/%s", self.address, self._settings.to, extra={"action": "listening"})

    @property
    def address(self) -> str:
        """Where it listens, once it is open: `http://127.0.0.1:8080`."""
        return self._server.address

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
        if self._attach is not None:
            self._attach(None)
        await self._server.close()
        if self._app is not None:
            self._app.close()
