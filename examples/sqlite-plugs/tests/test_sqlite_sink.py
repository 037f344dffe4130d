"""What the sink promises, on a cluster in the test's own process: `pytest` needs no server."""

import asyncio
import json
import sqlite3
import time

import pytest

from gridscore.errors import GridscoreError
from gridscore.sinks.base import Delivered, Delivery, SinkInterruptedError
from gridscore.sinks.runner import SinkRunner
from gridscore.testing import StubCluster
from gridscore_sqlite.settings import SqliteSinkSettings
from gridscore_sqlite.sink import SqliteSink


def scores(path):
    database = sqlite3.connect(path)
    try:
        return dict(database.execute("SELECT key, result FROM scores"))
    except sqlite3.OperationalError:  # not there yet
        return {}
    finally:
        database.close()


def sink_of(path):
    return SqliteSink(None, "shop", SqliteSinkSettings(results="results.payments", path=str(path), table="scores"))


async def test_results_become_rows(tmp_path):
    path = tmp_path / "scores.db"
    settings = SqliteSinkSettings(results="results.payments", path=str(path), table="scores")
    async with StubCluster() as cluster:
        client = await cluster.client()
        await client.put_events("results.payments", {f"p{n}": {"score": n} for n in range(100)})
        runner = SinkRunner(await cluster.connect("sink"), "shop", "sqlite", settings, lambda: sink_of(path))
        running = asyncio.create_task(runner.run())
        try:
            async with asyncio.timeout(60):
                while len(found := scores(path)) < 100:
                    await asyncio.sleep(0.05)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    assert json.loads(found["p42"]) == {"score": 42}


async def test_a_file_that_is_no_database_is_said(tmp_path):
    notes = tmp_path / "notes.txt"
    notes.write_text("not rows\n" * 1_000)
    with pytest.raises(GridscoreError, match=r"notes.txt.* cannot be written: file is not a database"):
        await sink_of(notes).open()


async def test_an_older_result_changes_nothing_and_a_late_one_is_not_written(tmp_path):
    path = tmp_path / "scores.db"
    sink = sink_of(path)
    await sink.open()

    async def deliver(text, epoch, sequence, until):
        result = Delivered("p1", text, json.loads(text), 0, sequence, epoch)
        await sink.deliver(Delivery([result], {0: sequence + 1}, until))

    later = time.monotonic() + 600
    await deliver(b"2", 5, 2, later)
    await deliver(b"1", 5, 1, later)
    await deliver(b"0", 4, 9, later)
    assert scores(path) == {"p1": "2"}
    with pytest.raises(SinkInterruptedError, match="takes too long"):
        await deliver(b"3", 6, 3, time.monotonic() - 1)
    assert scores(path) == {"p1": "2"}
