"""What commands say while one of several members is stopped: its address, what to do, and soon."""

import asyncio
import sys
from contextlib import asynccontextmanager

import pytest
from typer.testing import CliRunner

from gridscore.cli import _commands, options
from gridscore.dead_letters.letters import map_of
from gridscore.errors import GridError
from gridscore.grid import management
from gridscore.grid.transport import to_data
from gridscore.grid.writer import partition_of
from gridscore.operations import watcher as watching
from gridscore.operations.watcher import Watcher
from gridscore.testing import StubCluster, VirtualTime


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(watching, "ANSWER_SECONDS", 0.4)
    monkeypatch.setattr(management, "_PING_SECONDS", 1.0)  # or, on a busy machine, others seem to be silent


class Stopped:
    """One of the members of a cluster, which every command finds, and which answers that command no more."""

    @asynccontextmanager
    async def connected(self, _):
        async with StubCluster(members=3, partitions=9) as self.cluster:
            client = await self.cluster.client("user")
            await client.put_events(map_of("flights"), {f"k{n}": {} for n in range(30)})
            self.member = self.cluster.members[1]
            record = partition_of(to_data(client.grid.client, "flights"), 9)
            assert self.cluster.owner(record) is self.member  # commands that look only at the job ask it
            self.cluster.hang("user", self.member)
            yield client.grid

    def named_in(self, text):
        """Whether a text has its address, and no other's."""
        return [each for each in self.cluster.members if f"{each.address.host}:{each.address.port}" in text] == [
            self.member
        ]


@pytest.fixture
def stopped(monkeypatch):
    """In virtual time: nobody waits, and on a busy machine no other member seems to be silent."""
    found, clock = Stopped(), VirtualTime()
    monkeypatch.setattr(options, "connected", found.connected)
    monkeypatch.setitem(sys.modules, "uvloop", None)
    monkeypatch.setattr(asyncio, "run", lambda main: clock.run(main, clock.loop("command")))
    with clock.patched():
        yield found
    clock.close()


@pytest.mark.parametrize(
    "words",
    [
        ("doctor",),
        ("top", "--once"),
        ("status", "--for", "0"),
        ("jobs",),
        ("dead-letters", "list", "flights"),
        ("model", "list"),
        ("model", "show", "flights"),
        ("source", "list"),
        ("sink", "list"),
        ("repair", "--dry-run"),
        ("audit", "flights"),
        ("explain", "flights", "k1"),
        ("wipe", "flights", "--dry-run"),
    ],
    ids=" ".join,
)
def test_the_member_is_named_by_every_command_that_asks(words, stopped):
    error = CliRunner().invoke(_commands(words[0]), list(words)).exception
    assert isinstance(error, GridError), error
    assert str(error).startswith("The cluster did not answer in ")
    assert "there is no answer from " in str(error)
    assert stopped.named_in(str(error))
    assert "let it go on, or end it" in error.hint


@pytest.mark.parametrize(
    "words",
    [("cancel", "flights"), ("dead-letters", "purge", "flights", "--all", "--dry-run")],
    ids=" ".join,
)
def test_work_that_waits_for_a_member_says_so_and_goes_on_once_it_answers(words, stopped, monkeypatch):
    told = []

    def say(text, _style=None):
        told.append(text)
        stopped.cluster.heal()

    monkeypatch.setattr(options, "say", say)
    CliRunner().invoke(_commands(words[0]), list(words))
    assert told[0].startswith("There is no answer from ")
    assert stopped.named_in(told[0])
    assert "let it go on, or end it" in told[0]


def test_which_cluster_was_found_is_said_once_however_often_a_command_connects(monkeypatch, capsys):
    monkeypatch.setattr("gridscore.grid.or_local_cluster", lambda settings: settings)
    for name in ("GRIDSCORE_MEMBERS", "GRIDSCORE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    options._tell.cache_clear()
    for _ in range(2):
        options.grid_settings(options.Connection(cluster_name="once"))
    assert capsys.readouterr().err.count("the default") == 1


async def test_who_watches_is_told_which_member_until_it_goes_on(monkeypatch, request):
    async with StubCluster(members=3, partitions=9) as cluster:
        watcher, stopped = Watcher(await cluster.connect("user")), cluster.members[1]
        await watcher.first_look()
        assert watcher.silence == ""
        cluster.hang("user", stopped)
        request.getfixturevalue("impatient")
        while f"{stopped.address.host}:{stopped.address.port} for " not in watcher.silence:
            await watcher.look(0.2)
        assert "No answer from " in watcher.silence
        cluster.heal()
        monkeypatch.undo()
        while watcher.silence:
            await watcher.look(0.2)
