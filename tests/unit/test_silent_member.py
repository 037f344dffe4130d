"""What commands say while one of several members is stopped: its address, what to do, and soon."""

from contextlib import asynccontextmanager

import pytest
from typer.testing import CliRunner

from gridscore.cli import _commands, options
from gridscore.dead_letters.letters import map_of
from gridscore.errors import GridError
from gridscore.grid import management
from gridscore.operations import watcher as watching
from gridscore.operations.watcher import Watcher
from gridscore.testing import StubCluster


@pytest.fixture
def impatient(monkeypatch):
    for module, name in ((options, "_ANSWER_SECONDS"), (watching, "ANSWER_SECONDS"), (management, "_PING_SECONDS")):
        monkeypatch.setattr(module, name, 0.4)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "words",
    [
        ("doctor",),
        ("top", "--once"),
        ("status", "--for", "0"),
        ("jobs",),
        ("dead-letters", "list", "payments"),
        ("model", "list"),
        ("model", "show", "payments"),
        ("source", "list"),
        ("sink", "list"),
        ("repair", "--dry-run"),
    ],
    ids=" ".join,
)
def test_the_member_is_named_by_every_command_that_asks(words, monkeypatch):
    named, addresses = [], []

    @asynccontextmanager
    async def connected(_):
        async with StubCluster(members=3, partitions=9) as cluster:
            client = await cluster.client("user")
            await client.put_events(map_of("payments"), {f"k{n}": {} for n in range(30)})
            stopped = cluster.members[1]
            named.append(f"{stopped.address.host}:{stopped.address.port}")
            addresses.extend(f"{each.address.host}:{each.address.port}" for each in cluster.members)
            cluster.hang("user", stopped)
            yield client.grid

    monkeypatch.setattr(options, "connected", connected)
    error = CliRunner().invoke(_commands(words[0]), list(words)).exception
    assert isinstance(error, GridError), error
    assert str(error).startswith("The cluster did not answer in ")
    assert "there is no answer from " in str(error)
    assert [each for each in addresses if each in str(error)] == named
    assert "let it go on, or end it" in error.hint


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
