"""The server: scores requests, and takes events and gives results beside it, on one port until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
from functools import partial
from typing import TYPE_CHECKING, Any

from gridscore.errors import first_of, missing_extra
from gridscore.health_file import VARIABLE, touch_health_file
from gridscore.job.life import JOBS_MAP
from gridscore.job.plugs.environment import from_environment
from gridscore.scoring.live_model import LoadedModels
from gridscore.serve.acting import Acting
from gridscore.serve.app import Application
from gridscore.serve.control import Control
from gridscore.serve.dashboard.app import Dashboard, is_page
from gridscore.serve.inference import Inference
from gridscore.serve.live_jobs import LiveJobs
from gridscore.serve.live_models import LiveModels
from gridscore.serve.micro_batches import BATCH_BYTES
from gridscore.serve.observation import Observation
from gridscore.serve.scores import Scores
from gridscore.serve.streams import Streams
from gridscore.sources.http.gate import gated
from gridscore.sources.http.health import GridHealth
from gridscore.sources.http.requests import Bodies
from gridscore.sources.http.server import HttpServer
from gridscore.sources.http.source import HttpSource
from gridscore.sources.runner import runner_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from gridscore.grid import Grid
    from gridscore.serve.grpc_server import GrpcServer
    from gridscore.serve.settings import ServeSettings
    from gridscore.sources.runner import SourceRunner

PULSE_SECONDS = 1.0

_log = logging.getLogger(__name__)


class Server:
    """One process of `gridscore serve`.

    `settings`: as they are written; `${NAME}` is taken from the environment here. `jobs`: that score requests;
    `source`: what posts of events become, if they are taken; `opened`: set when it listens.
    """

    def __init__(self, grid: Grid, settings: ServeSettings) -> None:
        self._grid = grid
        self._settings, _ = from_environment(settings)
        loaded, most = LoadedModels(grid), (settings.max_scoring, 2 * BATCH_BYTES)
        self.jobs = LiveJobs(grid, loaded, settings.jobs, most, settings.allow_python)
        self._models = LiveModels(grid, loaded, most)
        self._health = GridHealth(grid, JOBS_MAP)
        bodies = Bodies(settings.max_body, settings.max_waiting_bytes)
        self._scores = Scores(grid, self._settings, self.jobs, bodies)
        inference = Inference(self._models, self._problem, bodies)
        self.http = HttpServer(grid, self._settings, listeners=settings.listeners)
        guard, acting, self._observation = self.http.guard, Acting(grid), Observation(grid)
        self._streams = Streams(grid, self.jobs, guard, settings.listeners)
        self._dashboard = None
        if settings.dashboard:
            self._dashboard = Dashboard(grid, self._settings, guard, acting, self._observation, self._describe)
        control = Control(grid, guard, acting, self._observation, bodies)
        answering = self.jobs, self._scores, self._streams, inference, control
        self.app = Application(*answering, self._problem, self._dashboard)
        self.grpc: GrpcServer | None = None
        if settings.grpc is not None:
            self.grpc = _grpc_server(gated(self.app, self.http.guard, ()), self._settings)
        self.source: SourceRunner | None = None
        if (source := settings.source()) is not None:
            self.source = runner_of(grid, source, make=partial(HttpSource, attach=self.app.attach))
        self.opened = asyncio.Event()
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Take nothing new; `run` returns when what is under way is answered."""
        self._stopping.set()

    async def run(self) -> None:
        """Serve until told to stop. Raises GridscoreError if it cannot go on, and a retry would not help."""
        try:
            guards_itself = lambda path: self._dashboard is not None and is_page(path)  # noqa: E731
            self.http.open(self.app, guards_itself, takes_sockets=True)
            if self.grpc is not None:
                await self.grpc.open()
            _log.info("Serving at %s", self.http.address, extra={"action": "listening"})
            self.opened.set()
            await self._grid.while_same(self._serve())
        except ExceptionGroup as failures:
            raise first_of(failures) from None
        finally:
            self._streams.close()
            await self._close()
            self._scores.close()
            self._health.close()
            await self._observation.close()

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            following = [tasks.create_task(work()) for work in (self.jobs.run, self._models.run, self._live)]
            taking = None if self.source is None else tasks.create_task(self.source.run())
            await self._stopping.wait()
            if self.source is not None and taking is not None:
                self.source.stop()  # its senders are answered while the server still listens
                await asyncio.wait({taking})
            self._streams.close()
            await self._close()
            for task in following:
                task.cancel()

    async def _close(self) -> None:
        await asyncio.gather(self.http.close(), *([] if self.grpc is None else [self.grpc.close()]))

    async def _live(self) -> None:
        """Touch the file of health checks, where there is one, as long as the cluster answers."""
        while VARIABLE in os.environ:
            if not await self._health.problem():
                touch_health_file()
            await asyncio.sleep(PULSE_SECONDS)

    def _describe(self) -> dict[str, Any]:
        return self.app.describe()

    async def _problem(self) -> str:
        """Why nothing can be scored now; empty if it can."""
        return await self._health.problem() or ("" if self.jobs.is_known else "the jobs are not known yet")


def _grpc_server(app: ASGIApp, settings: ServeSettings) -> GrpcServer:
    try:
        from gridscore.serve.grpc_server import GrpcServer
    except ModuleNotFoundError as error:
        raise missing_extra("--grpc", "grpc", error) from None
    return GrpcServer(app, settings)
