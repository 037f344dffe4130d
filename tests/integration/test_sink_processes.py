"""Sinks on a real cluster: processes that share and take over, and the commands around them."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys

import pandas as pd
import pytest
from scoring import until

from gridscore.dead_letters.letters import list_letters
from gridscore.grid import connect
from gridscore.grid.writer import MapWriter
from gridscore.group.leases import LEASE_SECONDS
from gridscore.job.plugs.base import SinkSettings
from gridscore.operations.sink_status import forget, sink_statuses
from gridscore.sinks.runner import SinkRunner
from gridscore.testing.sinks import ABORT, ListSink, Received


def results(count, begin=0, **more):
    return {
        f"k{i}": {"score": i / 8, "decision": "decline" if i % 3 else "approve", **more}
        for i in range(begin, begin + count)
    }


async def put(grid, name, entries):
    await MapWriter(grid, name).put((key, json.dumps(value).encode()) for key, value in entries.items())


@contextlib.asynccontextmanager
async def sinking(settings, name, received, process, lease_seconds=LEASE_SECONDS, **more):
    async with await connect(settings) as grid:
        wanted = SinkSettings(results=f"results.{name}", **more)
        runner = SinkRunner(
            grid, name, "list", wanted, lambda: ListSink(received, process), lease_seconds=lease_seconds
        )
        task = asyncio.create_task(runner.run())
        try:
            yield runner
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def status_of(grid, name):
    return next((status for status in await sink_statuses(grid) if status.record.name == name), None)


async def test_processes_that_come_and_go_deliver_everything_in_order(grid_settings, unique):
    received, long = Received(), 60.0  # on a busy machine a lease may be lost, and what it was about comes twice
    async with await connect(grid_settings) as grid, sinking(grid_settings, unique, received, "one", long) as one:
        await until(lambda: one.stats.partitions == grid.partition_count)
        count, going = 0, True

        async def load():
            nonlocal count
            while going:
                await put(grid, f"results.{unique}", results(200, count))
                count += 200

        loading = asyncio.create_task(load())
        async with sinking(grid_settings, unique, received, "two", long) as two:
            await until(lambda: abs(len(one.group.held) - len(two.group.held)) <= 1)
            received.then(ABORT(after=3))
            await until(lambda: two.stats.events > 200 and not received.faults)
        going = False
        await loading
        await until(lambda: len(received.newest()) == count)

        await until(lambda: _lag_is(grid, unique, 0))
        # What a process says of itself is a second old.
        await until(lambda: _is(grid, unique, "delivering", 1, 0))
    # What was interrupted came again; all else came once, though partitions moved.
    assert len(received.results) <= count + 3
    assert {key: result.value for key, result in received.newest().items()} == results(count)
    epochs = {}
    for result in received.results:
        assert result.epoch >= epochs.get(result.partition, 0)
        epochs[result.partition] = result.epoch


async def _is(grid, name, state, processes, lost):
    status = await status_of(grid, name)
    return (status.state, len(status.processes), status.lost) == (state, processes, lost)


async def _lag_is(grid, name, lag):
    return (await status_of(grid, name)).lag == lag


async def test_a_stopped_sink_has_a_lag_and_can_be_forgotten(grid_settings, unique):
    received = Received(refuses={"k1"})
    async with await connect(grid_settings) as grid:
        async with sinking(grid_settings, unique, received, "one"):
            await put(grid, f"results.{unique}", results(50))
            await until(lambda: len(received.results) == 49)
            await until(lambda: _lag_is(grid, unique, 0))
        await put(grid, f"results.{unique}", results(30, 50))
        status = await status_of(grid, unique)
        assert (status.state, status.lag, status.dead_letters) == ("stopped", 30, 1)
        assert (await list_letters(grid, unique, 5))[1][0].dead.key == "k1"
        await forget(grid, unique)
        assert await status_of(grid, unique) is None
        async with sinking(grid_settings, unique, received, "one", start="oldest"):
            await until(lambda: len(received.results) == 49 + 79)
        epochs = {result.key: result.epoch for result in received.results[:49]}
        assert all(result.epoch > epochs[result.key] for result in received.results[49:] if result.key in epochs)


async def test_a_sink_that_failed_says_why_until_it_runs_again_or_is_forgotten(grid_settings, unique):
    received = Received()
    async with await connect(grid_settings) as grid:
        for _ in range(2):
            received.then(ABORT(for_good=True))
            async with sinking(grid_settings, unique, received, "one"):
                await put(grid, f"results.{unique}", results(5))
                await until(lambda: not received.faults)
                await until(lambda: _state_is(grid, unique, "failed"))
        status = await status_of(grid, unique)
        assert (status.error, status.processes) == ("The list takes nothing any more.", [])
        assert status.to_json()["failed_at"]
        async with sinking(grid_settings, unique, received, "one"):
            await until(lambda: len(received.newest()) == 5)
            await until(lambda: _state_is(grid, unique, "delivering"))
        status = await status_of(grid, unique)
        assert (status.state, status.error) == ("stopped", "")

        received.then(ABORT(for_good=True))
        async with sinking(grid_settings, unique, received, "one"):
            await put(grid, f"results.{unique}", results(1))
            await until(lambda: _state_is(grid, unique, "failed"))
        await forget(grid, unique)
        assert await status_of(grid, unique) is None


async def _state_is(grid, name, state):
    status = await status_of(grid, name)
    return status is not None and status.state == state


@pytest.fixture
def sink_process(cluster):
    """Starts processes of sinks, and ends those that are left."""
    processes = []

    def start(*arguments, log):
        connection = ["--cluster-name", cluster.cluster_name, *(f"--members={member}" for member in cluster.addresses)]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "gridscore.cli", "sink", *arguments, *connection], stdout=output, stderr=output
            )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()


async def test_killed_and_stopped_processes_of_the_command_leave_every_result_in_files(
    grid_settings, unique, tmp_path, sink_process
):
    folder = tmp_path / "out"
    arguments = (
        "files",
        "--from",
        f"results.{unique}",
        "--name",
        unique,
        "--folder",
        str(folder),
        "--max-age",
        "1s",
    )

    def delivered():
        return (
            pd.read_parquet(folder) if folder.exists() and any(folder.glob("*.parquet")) else pd.DataFrame({"key": []})
        )

    async with await connect(grid_settings) as grid:
        await put(grid, f"results.{unique}", results(500))
        killed = sink_process(*arguments, log=tmp_path / "killed.log")
        stopped = sink_process(*arguments, log=tmp_path / "stopped.log")
        await until(lambda: len(delivered()) == 500)

        async def both():
            status = await status_of(grid, unique)
            return status and sorted(process.partitions for process in status.processes) == [135, 136]

        await until(both)
        await put(grid, f"results.{unique}", results(500, 500))
        os.kill(killed.pid, signal.SIGKILL)
        await put(grid, f"results.{unique}", results(500, 1000))
        await until(lambda: delivered()["key"].nunique() == 1500, 40)
        os.kill(stopped.pid, signal.SIGTERM)
        await asyncio.to_thread(stopped.wait, 20)
        assert stopped.returncode == 0, (tmp_path / "stopped.log").read_text()
        assert (await status_of(grid, unique)).lag == 0
    frame = delivered()
    once = frame.drop_duplicates(["key", "json"])
    assert len(once) == 1500
    assert {key: json.loads(text) for key, text in zip(once["key"], once["json"], strict=True)} == results(1500)


async def test_an_error_of_the_command_is_one_message(unique, tmp_path, sink_process):
    (tmp_path / "file").write_text("")
    log = tmp_path / "log"
    process = sink_process("files", "--from", f"results.{unique}", "--folder", str(tmp_path / "file"), log=log)
    await asyncio.to_thread(process.wait, 30)
    assert process.returncode == 2
    assert "cannot be written" in log.read_text()
    assert "Traceback" not in log.read_text()
    process = sink_process("files", "--from", f"without-{unique}", "--folder", str(tmp_path), log=log)
    await asyncio.to_thread(process.wait, 30)
    assert process.returncode == 3
    assert "has no event journal" in log.read_text()
