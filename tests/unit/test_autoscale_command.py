"""`gridscore autoscale` between its looks: what it says, and does, when it cannot change or know anything."""

import asyncio
import dataclasses
import datetime as dt
import itertools
import math
import re
import socket
import time
from types import SimpleNamespace

import pytest
from test_bad_records import submitted

from gridscore.cli import autoscale
from gridscore.containers import Containers
from gridscore.errors import ContainerError, GridError
from gridscore.job import Jobs
from gridscore.operations.autoscale import Decision, Load, Policy, keep, kept
from gridscore.testing import Fault, StubCluster


@pytest.fixture
async def stub():
    async with StubCluster(partitions=5) as made:
        yield made


async def behind(stub):
    """A job that nobody scores for, whose policy asks for a second worker."""
    client = await submitted(stub)
    await client.put_events("events.payments", {f"e{n}": {"amount": n} for n in range(20)})
    return client.grid


def clocked(scaler, monkeypatch):
    """The seconds that it sees: one, to be changed."""
    now, look = [0.0], scaler._observer.look

    async def looked():
        return dataclasses.replace(await look(), at=now[0])

    monkeypatch.setattr(autoscale, "_now", lambda: now[0])
    monkeypatch.setattr(scaler._observer, "look", looked)
    return now


@pytest.mark.parametrize(
    "failure", [autoscale.ScaleError("`false` ended with code 1."), ContainerError("No engine.", "Start it.")]
)
async def test_a_change_that_fails_is_said_once_tried_more_and_more_rarely_and_made_in_the_end(
    stub, monkeypatch, failure, capsys
):
    grid, tried, works = await behind(stub), [], False

    async def scale(target, _overview):
        tried.append((now[0], target))
        if not works:
            raise failure

    scaler = autoscale._Scaler(grid, "payments", Policy(most=2, start_seconds=0.0), scale)
    now = clocked(scaler, monkeypatch)
    for _ in range(60):
        await scaler.step()
        now[0] += 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3, said  # how many there are, what changes, and why it does not
    assert "changes from 1 to 2" in said[1]
    assert said[2].endswith(" ".join(["Trying again:", *str(failure).splitlines()]))
    assert tried == [(at, 2) for at in (0, 2, 6, 14, 30, 62)]
    assert await kept(grid, "payments") == []
    works = True
    now[0] += 60
    await scaler.step()
    assert [each.target for each in await kept(grid, "payments")] == [2]
    assert capsys.readouterr().err.endswith(" The number of workers can be changed again.\n")


async def test_nothing_is_changed_while_the_backlog_is_not_known(stub, capsys):
    grid, asked = await behind(stub), []

    async def scale(target, _overview):
        asked.append(target)

    scaler = autoscale._Scaler(grid, "payments", Policy(least=2), scale)
    stub.faults.append(Fault("indeterminate", request="Map.EventJournalSubscribe", map="events.payments"))
    await scaler.step()
    assert asked == []
    said = capsys.readouterr().err
    assert "The backlog is not known, so nothing is changed: The journal of `events.payments` could not be read" in said
    await scaler.step()
    assert asked == [2]


async def test_a_worker_that_starts_is_waited_for_and_one_that_never_does_is_said(stub, monkeypatch, capsys):
    grid, asked = await behind(stub), []

    async def scale(target, _overview):
        asked.append(target)

    scaler = autoscale._Scaler(grid, "payments", Policy(most=2), scale)
    now = clocked(scaler, monkeypatch)
    while now[0] < 60:
        await scaler.step()
        now[0] += 2
    assert asked == [1] * 30
    (_, waits) = capsys.readouterr().err.splitlines()
    assert "stays at 1: a backlog of 20 events takes for ever at 0 events/s; 0 of 1 worker scores so far." in waits
    while now[0] < 130:
        await scaler.step()
        now[0] += 2
    assert asked[30:] == [2] * 35
    (stayed, waited), (grown, why) = [(each.target, each.why) for each in await kept(grid, "payments")]
    assert (stayed, waited) == (1, waits.partition("1: ")[2].removesuffix("."))
    assert (grown, why.partition("; ")[2]) == (2, "1 of 1 worker still does not score after 60 s")
    (_, late) = capsys.readouterr().err.splitlines()
    assert late.endswith(" 2 of 2 workers still do not score after 60 s.")


async def test_workers_that_come_and_go_are_said_to_be_late_once(stub, monkeypatch, capsys):
    grid = await behind(stub)

    async def scale(_target, _overview):
        pass

    scaler = autoscale._Scaler(grid, "payments", Policy(least=4, most=4), scale)
    now, working = clocked(scaler, monkeypatch), itertools.cycle([1, 3, 2, 4])
    load_of = Load.of
    monkeypatch.setattr(Load, "of", lambda *given: dataclasses.replace(load_of(*given), workers=next(working)))
    while now[0] < 200:
        await scaler.step()
        now[0] += 2
    said = capsys.readouterr().err
    missing = [int(each) for each in re.findall(r"(\d) of 4 workers still do(?:es)? not score after 60 s", said)]
    assert missing == sorted(set(missing)), said  # that more are missing is said, and nothing twice
    assert missing[-1] == 3
    working = itertools.repeat(4)
    while now[0] < 300:
        await scaler.step()
        now[0] += 2
    working = itertools.repeat(3)
    while now[0] < 400:
        await scaler.step()
        now[0] += 2
    assert "1 of 4 workers still does not score after 60 s" in capsys.readouterr().err


async def test_workers_that_could_not_be_asked_for_are_not_late(stub, monkeypatch):
    grid, asked = await behind(stub), []

    async def scale(target, _overview):
        if now[0] < 300:
            raise ContainerError("No engine.")
        asked.append(target)

    scaler = autoscale._Scaler(grid, "payments", Policy(), scale)
    now = clocked(scaler, monkeypatch)
    while now[0] < 400:
        await scaler.step()
        now[0] += 2
    assert asked[0] == 1
    assert asked[-1] == 2


@pytest.mark.parametrize(("ago", "target"), [(0, 4), (50, 4), (61, 1), (-3600, 1)])
async def test_what_a_command_that_ended_had_asked_for_may_be_starting(stub, ago, target):
    grid, asked = await behind(stub), []

    async def scale(target, _overview):
        asked.append(target)

    await keep(grid, "payments", Decision(1, 4, "a backlog", int((time.time() - ago) * 1000)))
    scaler = autoscale._Scaler(grid, "payments", Policy(), scale)
    await scaler.step()
    assert asked == [target]


async def test_a_dry_run_takes_nothing_for_asked_for(stub, capsys):
    grid = await behind(stub)
    await keep(grid, "payments", Decision(1, 4, "a backlog", int(time.time() * 1000) - 1))
    await autoscale._Scaler(grid, "payments", Policy(start_seconds=math.inf), None).step()
    assert "stays at 1: " in capsys.readouterr().err


async def test_a_job_that_was_suspended_goes_on_with_as_many(stub):
    grid, asked = await behind(stub), []

    async def scale(target, _overview):
        asked.append(target)

    await keep(grid, "payments", Decision(1, 4, "a backlog", int(time.time() * 1000)))
    scaler = autoscale._Scaler(grid, "payments", Policy(), scale)
    await scaler.step()
    await keep(grid, "payments", Decision(1, 4, "a backlog"))  # as long ago as can be
    await Jobs(grid).suspend("payments")
    await scaler.step()
    await Jobs(grid).resume("payments")
    await scaler.step()
    assert asked == [4, 4]


def test_only_workers_that_own_partitions_count():
    figures = {"a": SimpleNamespace(partitions=3), "b": SimpleNamespace(partitions=0)}
    status = SimpleNamespace(figures=figures, totals={"rate": 1.0}, latency_ms={"p99": None}, lag=0, positions=())
    assert Load.of(status, 0.0).workers == 1


def overview_of(*workers):
    """What a look shows while these, each a host and a process, have records."""
    records = [SimpleNamespace(id=f"{host}-{pid}", host=host, pid=pid) for host, pid in workers]
    job = SimpleNamespace(figures={each.id: 1 for each in records}, workers=len(records))
    return SimpleNamespace(jobs=[job], workers=records)


def test_a_process_of_ours_that_was_killed_is_nobody_elses_while_its_record_stands():
    here = socket.gethostname()
    killed, running, elsewhere = (here, 100), (here, 101), ("another", 100)
    assert autoscale._elsewhere(overview_of(killed, running), {100, 101}) == 0
    assert autoscale._elsewhere(overview_of(killed, running, elsewhere, (here, 7)), {100, 101}) == 2


def worker(number, status, restarts=0):
    """A container, as the engine tells of it."""
    state = {"StartedAt": dt.datetime.now(dt.UTC).isoformat()}
    attrs = {"RestartCount": int(restarts), "State": state}
    return SimpleNamespace(name=f"worker-{number}", status=status, attrs=attrs, logs=lambda **_: b"no room left\n")


@pytest.fixture
def followed(monkeypatch):
    """`autoscale --docker` over looks that see so many workers: what it asks for, its policy, what it begins with.

    A container has a status, and how often it was restarted, at the beginning and for each look; the last ones stay.
    """

    async def follow_all(looks, statuses, policy=Policy(2, 8), room=8):  # noqa: B008 -- frozen
        wanted, followed_by = [], []

        lives = [each.split(", ") for each in statuses]

        class Fake(Containers):
            def _find(self, _role, _job):
                now = [life.pop(0) if len(life) > 1 else life[0] for life in lives]
                return [worker(number, *status.split()) for number, status in enumerate(now, 1)]

            def scale(self, _job, count, *_):
                wanted.append(count)

        async def follow(_grid, _job, policy, scale, begun):
            followed_by.append((policy, begun))
            for count in looks:
                await scale(2, overview_of(*(("here", pid) for pid in range(count))))

        engine = SimpleNamespace(info=lambda: {"MemTotal": room << 30})
        monkeypatch.setattr("gridscore.containers._engine", lambda: engine)
        monkeypatch.setattr("gridscore.containers.Containers", Fake)
        monkeypatch.setattr(autoscale, "_follow", follow)
        connection = SimpleNamespace(members=(), cluster_name="c", tls=False)
        monkeypatch.setattr(autoscale, "grid_settings", lambda _: connection)
        await autoscale._with_containers(None, "payments", policy, connection, "image")
        return wanted, *followed_by[0]

    return follow_all


async def test_a_container_that_was_killed_and_starts_again_ends_no_other(followed):
    assert (await followed([2, 3, 3, 2, 2], ["running", "restarting"]))[0] == []
    assert (await followed([2, 3, 3, 3], ["running", "running"]))[0] == [1]


@pytest.mark.parametrize("status", ["exited", "created"])
async def test_a_container_that_does_not_go_on_is_started_again(followed, status):
    wanted, _, begun = await followed([1], ["running", status])
    assert (wanted, begun) == ([2], 1)


async def test_a_container_that_ends_again_and_again_is_named_once_and_does_not_count(followed, capsys):
    wanted, _, begun = await followed([1, 1, 1], ["running", "running 7, restarting 9, running 9"])
    assert (wanted, begun) == ([], 2)
    (said,) = capsys.readouterr().err.splitlines()
    assert "worker-2 ends again and again. Its last lines:   no room left `gridscore logs`" in said
    # It has ended once since this command looks.
    assert (await followed([2], ["running", "running 7, restarting 8"]))[2] == 2
    assert not capsys.readouterr().err


async def test_no_more_containers_are_allowed_than_the_engine_has_memory_for(followed, capsys):
    assert (await followed([], [], room=3))[1] == Policy(2, 3)
    assert capsys.readouterr().err == "The container engine has memory for 3 workers: --max is 3, not 8.\n"
    assert (await followed([], [], room=8))[1] == Policy(2, 8)
    # Then each attempt says why it fails.
    assert (await followed([], [], room=1))[1] == Policy(2, 2)


async def test_containers_that_an_earlier_command_left_are_waited_for_however_long_ago_that_was(stub):
    grid, asked = await behind(stub), []

    async def scale(target, _overview):
        asked.append(target)

    await keep(grid, "payments", Decision(1, 2, "a backlog", int(time.time() * 1000)))
    await autoscale._Scaler(grid, "payments", Policy(), scale, begun=4).step()
    await autoscale._Scaler(grid, "payments", Policy(), scale, begun=0).step()
    assert asked == [4, 1]


async def test_a_cluster_that_hangs_is_said(monkeypatch):
    monkeypatch.setattr("gridscore.cli.options._ANSWER_SECONDS", 0.01)
    async with StubCluster(partitions=5) as cluster:
        grid = await cluster.connect()
        with pytest.raises(GridError, match="did not answer"):
            await autoscale.answered(grid, asyncio.Event().wait())
