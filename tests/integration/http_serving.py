"""What tests of the HTTP source share: one that runs, and that is held when a test wants it."""

import asyncio
from contextlib import aclosing, asynccontextmanager

from gridscore.sources.http.settings import HttpSourceSettings
from gridscore.sources.http.source import HttpSource
from gridscore.sources.runner import SourceRunner


class Held(HttpSource):
    """A source of which the runner gets batches only as long as `go` is set."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.go = asyncio.Event()
        self.go.set()
        self.opened = asyncio.Event()

    async def open(self):
        await super().open()
        self.opened.set()

    def streams(self):
        return [self._held(stream) for stream in super().streams()]

    async def _held(self, stream):
        async with aclosing(stream):
            async for batch in stream:
                await self.go.wait()
                yield batch


class Serving:
    """A source with its grid and its runner."""

    def __init__(self, grid, settings):
        self.grid = grid
        self.source = Held(grid, "test", settings)
        self.runner = SourceRunner(grid, "test-http", lambda: self.source, kind="http", to=settings.to)

    @property
    def address(self):
        return self.source.address

    @property
    def go(self):
        return self.source.go

    async def get(self, map_name, key):
        value = await (await self.grid.map(map_name)).get(key)
        return None if value is None else value.to_string()

    async def size(self, map_name):
        return await (await self.grid.map(map_name)).size()


@asynccontextmanager
async def serving(grid, **settings):
    """A source on a free port that puts into the maps of its settings."""
    served = Serving(grid, HttpSourceSettings(port=0, **settings))
    task = asyncio.create_task(served.runner.run())
    try:
        async with asyncio.timeout(20):
            await served.source.opened.wait()
        yield served
    finally:
        served.runner.stop()
        await task
