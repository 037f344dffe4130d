"""Worker and source touch the file of a health check when the cluster has noted that they live, and only then."""

import asyncio

import pytest
from hazelcast.errors import HazelcastError

from gridscore.group.members import Members
from gridscore.health_file import VARIABLE
from gridscore.sources.status import Publisher, SourceStats
from gridscore.testing import StubCluster


@pytest.fixture
def file(monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "healthy"))
    return tmp_path / "healthy"


async def test_a_worker_touches_it(file):
    async with StubCluster(partitions=5) as cluster, cluster.worker("w"), asyncio.timeout(10):
        while not file.exists():
            await asyncio.sleep(0.01)


async def test_a_worker_does_not_when_the_cluster_does_not_answer(monkeypatch, file):
    asked = asyncio.Event()

    async def refuse(*_):
        asked.set()
        raise HazelcastError("as if no member answered")

    monkeypatch.setattr(Members, "say", refuse)
    async with StubCluster(partitions=5) as cluster, cluster.worker("w"), asyncio.timeout(10):
        await asked.wait()
    assert not file.exists()


async def test_a_source_touches_it(file):
    async with StubCluster(partitions=5) as cluster:
        client = await cluster.client()
        await Publisher(client.grid, SourceStats("till", "http", "events.till"))._publish()
    assert file.exists()


async def test_a_file_that_cannot_be_written_harms_nobody(monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "no folder" / "healthy"))
    async with StubCluster(partitions=5) as cluster:
        client = await cluster.client()
        await Publisher(client.grid, SourceStats("till", "http", "events.till"))._publish()
