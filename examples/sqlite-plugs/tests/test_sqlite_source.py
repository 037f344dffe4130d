"""What the source promises, on a cluster in the test's own process: `pytest` needs no server."""

import sqlite3

import pytest

from gridscore.errors import GridscoreError
from gridscore.sources.runner import SourceRunner
from gridscore.testing import Fault, StubCluster
from gridscore_sqlite.settings import SqliteSourceSettings
from gridscore_sqlite.source import SqliteSource


@pytest.fixture
def shop(tmp_path):
    """A database with 2,500 payments, one of which no JSON can hold."""
    database = sqlite3.connect(tmp_path / "shop.db")
    database.execute("CREATE TABLE payments (id INTEGER PRIMARY KEY, amount)")
    database.executemany("INSERT INTO payments VALUES (?, ?)", [(n, n / 2) for n in range(1, 2501)])
    database.execute("UPDATE payments SET amount = x'ff' WHERE id = 7")
    database.commit()
    yield database
    database.close()


async def read(cluster, path, table="payments"):
    """Run the source to its end, as a process of its own."""
    settings = SqliteSourceSettings(path=str(path), table=table, to="events.payments")
    grid = await cluster.connect("source")
    runner = SourceRunner(
        grid, "shop", lambda: SqliteSource(grid, "shop", settings), kind="sqlite", to=settings.to, has_end=True
    )
    await runner.run()
    return runner.stats


async def test_every_row_is_an_event_once_and_a_new_process_goes_on(shop, tmp_path):
    async with StubCluster() as cluster:
        # The second batch is not confirmed at first.
        cluster.faults.append(Fault("indeterminate", request="Map.PutAll", map="events.*", times=1))
        stats = await read(cluster, tmp_path / "shop.db")
        assert (stats.events, stats.poison) == (2_499, 1)
        events = await cluster.results("events.payments", 2_499)
        assert events["2500"] == {"id": 2500, "amount": 1250.0}
        assert "7" not in events
        shop.execute("INSERT INTO payments VALUES (9999, 1)")
        shop.commit()
        assert (await read(cluster, tmp_path / "shop.db")).events == 1


async def test_ids_may_be_of_any_kind_that_grows(shop, tmp_path):
    shop.execute("CREATE TABLE visits (id)")
    shop.executemany("INSERT INTO visits VALUES (?)", [(1,), (1.5,), ("x",)])
    shop.commit()
    async with StubCluster() as cluster:
        for count in (3, 0):
            assert (await read(cluster, tmp_path / "shop.db", "visits")).events == count
        assert (await cluster.results("events.payments", 3)).keys() == {"1", "1.5", "x"}


@pytest.mark.usefixtures("shop")
async def test_what_cannot_be_used_is_said(tmp_path):
    notes = tmp_path / "notes.txt"
    notes.write_text("not rows\n" * 1_000)
    async with StubCluster() as cluster:
        with pytest.raises(GridscoreError, match="no such table: nothing"):
            await read(cluster, tmp_path / "shop.db", "nothing")
        with pytest.raises(GridscoreError, match="There is no database"):
            await read(cluster, tmp_path / "nowhere.db")
        with pytest.raises(GridscoreError, match=r"notes.txt.* cannot be read: file is not a database"):
            await read(cluster, notes)
    with pytest.raises(ValueError, match="pattern"):
        SqliteSourceSettings(path="shop.db", table="payments; DROP TABLE payments", to="events.payments")
