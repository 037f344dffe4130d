"""The network that can fail does to connections what it says."""

import asyncio
import socket

import pytest

from gridscore.proving.soak.proxy import Backbone, Network


@pytest.fixture
async def echo():
    """A server that answers with what it gets; the connections it had, and what came through each."""
    came = []

    async def serve(reader, writer):
        got = bytearray()
        came.append(got)
        try:
            while data := await reader.read(65536):
                got += data
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    yield f"127.0.0.1:{port}", came
    server.close()


async def connect(network, member=0):
    return await asyncio.open_connection("127.0.0.1", list(network.detours.values())[member])


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_bytes_go_through_both_ways_and_so_does_the_end(echo):
    address, came = echo
    async with Network([address]) as network:
        reader, writer = await connect(network)
        payload = bytes(range(256)) * 4_000
        writer.write(payload)
        assert await reader.readexactly(len(payload)) == payload
        writer.write(b"last words")
        writer.close()
        await until(lambda: came[0].endswith(b"last words"))


async def test_what_is_held_goes_on_afterwards(echo):
    address, came = echo
    async with Network([address]) as network:
        reader, writer = await connect(network)
        writer.write(b"a")
        assert await reader.readexactly(1) == b"a"
        holding = asyncio.create_task(network.hold(0.3))
        await asyncio.sleep(0)
        writer.write(b"b")
        late_reader, late_writer = await connect(network)
        late_writer.write(b"c")
        await asyncio.wait((holding,), timeout=0.1)
        assert [bytes(got) for got in came] == [b"a"]
        await holding
        assert await reader.readexactly(1) == b"b"
        assert await late_reader.readexactly(1) == b"c"
        writer.close()
        late_writer.close()


async def test_what_is_sent_into_a_cut_never_arrives(echo):
    address, came = echo
    async with Network([address]) as network:
        reader, writer = await connect(network)
        writer.write(b"a")
        assert await reader.readexactly(1) == b"a"
        cutting = asyncio.create_task(network.cut(0.2))
        await asyncio.sleep(0)
        writer.write(b"late")
        await cutting
        with pytest.raises(ConnectionError):
            await reader.readexactly(4)
        writer.close()
        again, writer = await connect(network)
        writer.write(b"d")
        assert await again.readexactly(1) == b"d"
        writer.close()
    assert [bytes(got) for got in came] == [b"a", b"d"]


async def test_last_words_sent_into_a_cut_are_lost_and_into_a_hold_are_not(echo):
    address, came = echo
    async with Network([address]) as network:
        for fault in (network.hold, network.cut):
            reader, writer = await connect(network)
            writer.write(b"a")
            assert await reader.readexactly(1) == b"a"
            suffering = asyncio.create_task(fault(0.2))
            await asyncio.sleep(0)
            writer.write(b"late")
            writer.close()
            await suffering
        await until(lambda: came[0] == b"alate")
    assert bytes(came[1]) == b"a"


async def test_one_member_can_be_cut_off_alone(echo):
    address, _ = echo
    async with Network([address, address.replace("127.0.0.1", "localhost")]) as network:
        cutting = asyncio.create_task(network.cut(0.3, 1))
        await asyncio.sleep(0)
        reader, writer = await connect(network)
        writer.write(b"a")
        assert await reader.readexactly(1) == b"a"
        assert not cutting.done()
        writer.close()
        await cutting


async def test_a_member_is_cut_from_another_and_not_from_clients_and_what_was_sent_arrives_afterwards(echo):
    """The other member is known by the port that it connects from."""
    address, came = echo
    with socket.socket() as member:
        member.bind(("127.0.0.1", 0))
        source = member.getsockname()[1]
        member.setblocking(False)
        async with Backbone([int(address.rpartition(":")[2])] * 2, [range(0), range(source, source + 1)]) as backbone:
            await asyncio.get_running_loop().sock_connect(member, ("127.0.0.1", backbone.ports[0]))
            reader, writer = await asyncio.open_connection(sock=member)
            writer.write(b"a")
            assert await reader.readexactly(1) == b"a"
            client, to_client = await asyncio.open_connection("127.0.0.1", backbone.ports[0])
            cutting = asyncio.create_task(backbone.cut(0.3, 1))
            await asyncio.sleep(0)
            writer.write(b"late")
            to_client.write(b"c")
            assert await client.readexactly(1) == b"c"
            assert [bytes(got) for got in came] == [b"a", b"c"]
            assert not cutting.done()
            await cutting
            assert await reader.readexactly(4) == b"late"
            writer.close()
            to_client.close()


async def test_a_member_that_is_down_refuses(unused_port):
    async with Network([f"127.0.0.1:{unused_port}"]) as network:
        reader, writer = await connect(network)
        with pytest.raises(ConnectionError):
            await reader.readexactly(1)
        writer.close()


@pytest.fixture
def unused_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
