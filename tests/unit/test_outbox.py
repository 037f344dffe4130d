"""The outbox: what is sent in which order, what is not sent any more, and what a full socket does."""

import asyncio
import socket
import time
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import pytest

from gridscore.grid import outbox as outbox_module
from gridscore.grid.outbox import Outbox


@contextmanager
def opened():
    """An outbox, the other end of its socket, and what it has called."""
    near, far = socket.socketpair()
    far.setblocking(False)
    called = []
    outbox = Outbox(asyncio.get_running_loop(), near.fileno(), lambda: called.append("broken"))
    try:
        yield outbox, far, called
    finally:
        outbox.close()
        near.close()
        far.close()


async def received(far, size):
    data = b""
    async with asyncio.timeout(10):
        while len(data) < size:
            data += await asyncio.get_running_loop().sock_recv(far, 1 << 20)
    return data


async def test_what_is_written_is_sent_in_order_and_in_one_call():
    with opened() as (outbox, far, called):
        outbox.write(b"one ")
        outbox.write_until(b"two ", time.monotonic() + 60, lambda: called.append("expired"))
        outbox.write(b"three")
        assert await received(far, 13) == b"one two three"
        assert called == []


async def test_expired_writes_are_not_sent_and_the_writer_is_told():
    with opened() as (outbox, far, called):
        outbox.write(b"before ")
        outbox.write_until(b"never", time.monotonic(), lambda: called.append("expired"))
        outbox.write(b"after")
        assert await received(far, 12) == b"before after"
        assert called == ["expired"]


async def test_a_pause_between_the_write_and_the_sending_counts(monkeypatch):
    with opened() as (outbox, far, called):
        outbox.write_until(b"late", time.monotonic() + 5, lambda: called.append("expired"))
        outbox.write(b"always")
        paused = time.monotonic() + 6
        monkeypatch.setattr(outbox_module.time, "monotonic", lambda: paused)
        assert await received(far, 6) == b"always"
        assert called == ["expired"]


async def test_a_pause_while_the_pieces_are_joined_counts_too(monkeypatch):
    with opened() as (outbox, far, called):
        times = iter([0.0])
        # A clock of the outbox alone: the event loop would take the first time from it.
        monkeypatch.setattr(outbox_module, "time", SimpleNamespace(monotonic=lambda: next(times, 6.0)))
        outbox.write_until(b"late", 5.0, lambda: called.append("expired"))
        outbox.write(b"always")
        assert await received(far, 6) == b"always"
        assert called == ["expired"]


async def test_a_full_socket_is_waited_for():
    with opened() as (outbox, far, _):
        pieces = [bytes([n % 251]) * 100_000 for n in range(60)]
        for piece in pieces:
            outbox.write(piece)
        assert await received(far, 6_000_000) == b"".join(pieces)


async def test_what_waits_for_a_full_socket_runs_out_as_well():
    with opened() as (outbox, far, called):
        outbox.write(b"x" * 8_000_000)
        outbox.write_until(b"never", time.monotonic() + 0.01, lambda: called.append("expired"))
        outbox.write(b"after")
        await asyncio.sleep(0)
        async with asyncio.timeout(10):
            while time.monotonic() < outbox._pieces[-2].until:
                await asyncio.sleep(0.005)
        assert await received(far, 8_000_005) == b"x" * 8_000_000 + b"after"
        assert called == ["expired"]


async def test_half_a_message_that_has_run_out_costs_the_connection():
    with opened() as (outbox, far, called):
        until = time.monotonic() + 1.0
        outbox.write_until(b"x" * 8_000_000, until, lambda: called.append("expired"))
        async with asyncio.timeout(10):
            assert await asyncio.get_running_loop().sock_recv(far, 1) == b"x"  # it is on its way in time
            while time.monotonic() < until:
                await asyncio.sleep(0.005)
            while not called:
                with suppress(BlockingIOError):
                    far.recv(1 << 16)
                await asyncio.sleep(0)
        assert called == ["broken"]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_connection_that_is_gone_is_reported(when):
    with opened() as (outbox, far, called):
        if when == "before":
            outbox.write(b"x")
        far.close()
        outbox.write(b"y")
        async with asyncio.timeout(10):
            while not called:
                await asyncio.sleep(0)
        assert called == ["broken"]
        outbox.write(b"nothing happens")
        await asyncio.sleep(0)
