"""What unit tests of the HTTP source share: one that listens, over a cluster in this process."""

import asyncio
from contextlib import asynccontextmanager

import httpx

from gridscore.sources.http.settings import HttpSourceSettings
from gridscore.sources.http.source import HttpSource
from gridscore.sources.runner import SourceRunner
from gridscore.testing import StubCluster

EVENTS = "events.x"
SECONDS = 60


@asynccontextmanager
async def listening(cluster=None, **settings):
    """A source that listens on a free port, with a cluster of its own if none is given."""
    if cluster is None:
        async with StubCluster() as own, listening(own, **settings) as source:
            yield source
        return
    opened = asyncio.Event()

    class Source(HttpSource):
        async def open(self):
            await super().open()
            opened.set()

    grid = await cluster.connect("source")
    source = Source(grid, "test", HttpSourceSettings(**{"to": EVENTS, "port": 0} | settings))
    runner = source.runner = SourceRunner(grid, "test", lambda: source, kind="http", to=EVENTS)
    task = asyncio.create_task(runner.run())
    try:
        async with asyncio.timeout(SECONDS):
            await opened.wait()
            yield source
    finally:
        runner.stop()
        await task


@asynccontextmanager
async def connected(source):
    host, _, port = source.address.partition("://")[2].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()


def client(source, **options):
    return httpx.AsyncClient(base_url=source.address, timeout=SECONDS, **options)
