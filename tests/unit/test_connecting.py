"""Connecting to a cluster of which members hang."""

import asyncio

import pytest
from hazelcast.config import Config

from gridscore.client import connection as module
from gridscore.client.connection import Connection
from gridscore.errors import ConnectionFailedError, UsageError
from gridscore.grid import GridSettings, connect, transport
from gridscore.testing import Fault, StubCluster
from gridscore.testing.network import StubReactor


async def test_a_connection_is_open_once_and_may_be_opened_again(monkeypatch):
    async with StubCluster(partitions=3) as cluster:
        monkeypatch.setattr(module, "connect_grid", lambda _: cluster.connect())
        connection = Connection({"members": ["stub:1"]})
        for _ in range(2):
            async with connection as client:
                with pytest.raises(UsageError, match="open already"):
                    await connection.__aenter__()
                with pytest.raises(UsageError, match="open already"), connection:
                    pass
                assert await client.put_events("m", {"a": {"n": 1}}) == 1
            assert not client.grid.is_running


async def test_a_member_that_accepts_but_never_answers_does_not_stop_clients_from_trying_the_next():
    asked, serving, all_asked = set(), set(), asyncio.Event()

    def hang(name):
        async def serve(reader, writer):
            serving.add(asyncio.current_task())
            await reader.read(3)
            asked.add(name)
            if len(asked) == 2:
                all_asked.set()
            await reader.read()
            writer.close()
            await writer.wait_closed()

        return serve

    servers = [await asyncio.start_server(hang(name), "127.0.0.1", 0) for name in ("first", "second")]
    config = Config()
    config.cluster_members = [f"127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in servers]
    config.cluster_connect_timeout = -1
    config.connection_timeout = 0.1
    connecting = asyncio.create_task(transport.start_client(config, 60))
    async with asyncio.timeout(30):
        await all_asked.wait()
    connecting.cancel()
    await asyncio.gather(connecting, return_exceptions=True)
    for server in servers:
        server.close()
    async with asyncio.timeout(30):
        await asyncio.gather(*serving)


async def test_a_member_that_accepts_but_never_answers_is_named(unused_tcp_port):
    async def hang(reader, writer):
        await reader.read()
        writer.close()

    async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
        silent = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        members = [silent, f"127.0.0.1:{unused_tcp_port}"]
        with pytest.raises(ConnectionFailedError) as told:
            await connect(GridSettings.load(members=members, connect_timeout=0.9))
    assert f": {silent} took a connection, but did not answer." in told.value.message
    assert "let it go on, or end it" in told.value.hint


async def test_a_member_that_goes_while_it_is_told_of_a_client_does_not_end_its_start(monkeypatch):
    async with StubCluster(members=2) as cluster:
        monkeypatch.setattr(transport, "_Reactor", lambda: StubReactor(cluster, "worker"))
        monkeypatch.setattr(transport, "_AGAIN_SECONDS", 0.01)
        settings = GridSettings.load(members=["127.0.0.1:5701"], cluster_name=cluster.name)
        cluster.faults.append(Fault("disconnect", applied=False, request="Client.LocalBackupListener", times=2))
        async with await connect(settings) as grid:
            assert grid.is_running
        assert not cluster.faults or cluster.faults[0].times == 0
