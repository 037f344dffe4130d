"""The PostgreSQL source on a real server: types, mirrors, notifications, polling, and a server that is killed."""

import asyncio
import json
import logging
from contextlib import aclosing, asynccontextmanager

import psycopg
import pytest
from pydantic import ValidationError

from gridscore.grid import connect
from gridscore.postgres import PostgresError
from gridscore.sources.base import SourceInterruptedError
from gridscore.sources.postgres.settings import PostgresSourceSettings
from gridscore.sources.postgres.source import PostgresSource
from gridscore.sources.runner import SourceRunner


@pytest.fixture
async def grid(grid_settings):
    async with await connect(grid_settings) as connected:
        yield connected


@pytest.fixture
def settings(database, unique):
    def make(**more):
        where = {} if "query" in more else {"table": "customers"}
        return PostgresSourceSettings(
            **{"to": f"lookups.{unique}", "database": database, "key": ("id",), **where, **more}
        )

    return make


@pytest.fixture
async def sql(database):
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        await connection.execute("CREATE TABLE customers (id text PRIMARY KEY, age int, updated_at timestamptz)")
        await connection.execute("INSERT INTO customers VALUES ('ann', 59, '2026-01-01Z'), ('bob', 30, '2026-01-02Z')")
        yield connection.execute


@asynccontextmanager
async def running(grid, settings):
    """A source that runs; ended when the block is left."""
    runner = SourceRunner(
        grid, "sql", lambda: PostgresSource(grid, settings.to, settings), kind="postgres", to=settings.to
    )
    task = asyncio.create_task(runner.run())
    try:
        yield runner
    finally:
        runner.stop()
        await asyncio.wait_for(task, 20)


async def entries(grid, name):
    return {key: json.loads(value.to_string()) for key, value in await (await grid.map(name)).entry_set()}


async def becomes(grid, name, expected):
    """Wait until the map holds these ages by key."""
    found = None
    for _ in range(600):
        found = {key: value["age"] for key, value in (await entries(grid, name)).items()}
        if found == expected:
            return
        await asyncio.sleep(0.02)
    assert found == expected


async def load(grid, settings):
    """Run a source that ends."""
    made = SourceRunner(
        grid, "sql", lambda: PostgresSource(grid, settings.to, settings), kind="postgres", to=settings.to
    )
    await made.run()
    return made.stats


class TestRows:
    async def test_every_type_becomes_the_json_that_a_reader_expects(self, grid, settings, unique):
        query = """
            SELECT 7::bigint AS id, 12.50::numeric AS amount, 'NaN'::float8 AS broken, 'infinity'::timestamptz AS never,
                '-Infinity'::numeric AS least, '2026-01-31 12:00:00.5+02'::timestamptz AS at, '2026-01-31'::date AS day,
                'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid AS uid, '{"a": [1, null]}'::jsonb AS doc, true AS flag,
                decode(repeat('ff', 60), 'hex') AS bytes, ARRAY[1, 2] AS list, NULL::int AS none, 'ü%"' AS "a text";
        """
        await load(grid, settings(query=query))
        assert await entries(grid, f"lookups.{unique}") == {
            7: {
                "id": 7,
                "amount": 12.50,
                "broken": None,
                "never": None,
                "least": None,
                "at": "2026-01-31T10:00:00.5+00:00",
                "day": "2026-01-31",
                "uid": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
                "doc": {"a": [1, None]},
                "flag": True,
                "bytes": "/" * 80,
                "list": [1, 2],
                "none": None,
                "a text": 'ü%"',
            }
        }

    async def test_keys_of_several_columns_and_rows_without_one(self, grid, settings, unique):
        query = """SELECT * FROM (VALUES (1, '2026-01-31T00:00:00Z'::timestamptz), (2, NULL)) AS v(shop, day)"""
        stats = await load(grid, settings(query=query, key=("shop", "day")))
        assert set(await entries(grid, f"lookups.{unique}")) == {"1|2026-01-31T00:00:00Z"}
        assert (stats.events, stats.poison) == (1, 1)

    async def test_a_row_that_is_too_long_harms_no_other(self, grid, settings, unique):
        query = "SELECT n AS id, repeat('x', n * 100) AS t FROM generate_series(1, 3) n"
        stats = await load(grid, settings(query=query, max_event=250))
        assert set(await entries(grid, f"lookups.{unique}")) == {1, 2}
        assert stats.poison == 1

    async def test_a_mirror_removes_what_has_no_row(self, grid, settings, sql, unique):
        await load(grid, settings())
        await sql("DELETE FROM customers WHERE id = 'ann'")
        await load(grid, settings())
        assert set(await entries(grid, f"lookups.{unique}")) == {"ann", "bob"}
        await load(grid, settings(mirror=True))
        assert set(await entries(grid, f"lookups.{unique}")) == {"bob"}

    async def test_a_mirror_keeps_the_entry_of_a_row_that_is_refused(self, grid, settings, sql, unique):
        await load(grid, settings())
        await sql("ALTER TABLE customers ADD note text")
        await sql("UPDATE customers SET note = repeat('x', 500) WHERE id = 'ann'")
        stats = await load(grid, settings(mirror=True, max_event=400))
        assert stats.poison == 1
        assert set(await entries(grid, f"lookups.{unique}")) == {"ann", "bob"}

    @pytest.mark.parametrize("more", [{}, {"poll_column": "updated_at"}])
    async def test_no_transaction_is_held_while_there_is_no_room(self, grid, settings, sql, more):
        await sql("DO $$ BEGIN EXECUTE 'ALTER DATABASE ' || quote_ident(current_database()) || "
                  "' SET idle_in_transaction_session_timeout = 12345'; END $$")  # fmt: skip
        source = PostgresSource(grid, "sql", settings(batch=1, **more))
        try:
            await source.open()
            async with aclosing(source.batches()) as batches:
                keys = [key for key, _ in (await anext(batches)).entries]
                # Until the next batch is asked for, which may take days.
                cursor = await sql(
                    "SELECT state, xact_start IS NULL, backend_xmin IS NULL FROM pg_stat_activity "
                    "WHERE application_name = 'gridscore source sql'"
                )
                assert await cursor.fetchall() == [("idle", True, True)]
                cursor = await source._reader.execute("SHOW idle_in_transaction_session_timeout")
                assert await cursor.fetchone() == ("12345ms",)
                await sql("DELETE FROM customers")
                keys += [key for key, _ in (await anext(batches)).entries]
            assert sorted(keys) == ["ann", "bob"]  # as of the moment at which the load began
        finally:
            await source.close()


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("more", "message"),
        [
            ({"key": ("name",)}, "has no column `name`"),
            ({"poll_column": "changed"}, "has no column `changed`"),
            ({"table": "nobody"}, 'relation "nobody" does not exist'),
            ({"query": "SELEC 1"}, "syntax error"),
            ({"query": "SELECT 1 AS id, 2 AS id"}, "two columns of one name"),
        ],
    )
    async def test_what_the_database_does_not_have(self, grid, settings, sql, more, message):  # noqa: ARG002
        with pytest.raises(PostgresError, match=message):
            await load(grid, settings(**more))

    async def test_a_wrong_password(self, grid, settings, postgres):
        wrong = "wrong-secret"
        with pytest.raises(PostgresError, match="refuses the user or the password"):
            await load(grid, settings(database=postgres.url(password=wrong)))

    async def test_a_table_that_may_not_be_read(self, grid, settings, sql, postgres, database, unique):
        name = f"nobody_{unique}"
        await sql(f"CREATE ROLE {name} LOGIN PASSWORD '{name}'")
        theirs = postgres.url(database.rpartition("/")[2], user=name, password=name)
        with pytest.raises(PostgresError, match="may not be read by this user"):
            await load(grid, settings(database=theirs))

    async def test_a_server_that_is_away_may_come_back(self, grid, settings):
        source = PostgresSource(grid, "sql", settings(database="postgresql://a@127.0.0.1:1/x"))
        with pytest.raises(SourceInterruptedError, match="cannot be reached"):
            await source.open()

    def test_settings_that_contradict_each_other(self, settings):
        for more in ({"table": None}, {"notify": "a", "poll_column": "b"}, {"install": True}):
            with pytest.raises(ValidationError):
                settings(**more)


class TestNotifications:
    async def test_a_lookup_is_kept_current(self, grid, settings, sql, unique):
        name = f"lookups.{unique}"
        async with running(grid, settings(notify="changes", install=True, mirror=True)):
            await becomes(grid, name, {"ann": 59, "bob": 30})
            await sql("INSERT INTO customers VALUES ('cy', 1), (repeat('d', 7500), 4)")
            await becomes(grid, name, {"ann": 59, "bob": 30, "cy": 1, "d" * 7500: 4})
            await sql("UPDATE customers SET age = age + 1 WHERE id = 'cy'")
            await sql("UPDATE customers SET id = 'eve' WHERE id = 'ann'")
            await sql("DELETE FROM customers WHERE id = 'bob' OR age = 4")
            await becomes(grid, name, {"eve": 59, "cy": 2})
            await sql("TRUNCATE customers")
            await becomes(grid, name, {})

    async def test_several_may_make_the_trigger_at_once(self, grid, settings, sql):  # noqa: ARG002
        sources = [PostgresSource(grid, "sql", settings(notify="changes", install=True)) for _ in range(8)]
        try:
            await asyncio.gather(*(source.open() for source in sources))
        finally:
            await asyncio.gather(*(source.close() for source in sources))

    async def test_notifications_of_the_users_own(self, grid, settings, sql, unique, caplog):
        name = f"lookups.{unique}"
        with caplog.at_level(logging.WARNING):
            async with running(grid, settings(notify="mine")) as runner:
                await becomes(grid, name, {"ann": 59, "bob": 30})
                await sql("UPDATE customers SET age = 1")
                await sql("NOTIFY mine, 'ann'")
                await becomes(grid, name, {"ann": 1, "bob": 30})
                await sql("""NOTIFY mine, '{"id": "bob", "age": 99}'""")
                await becomes(grid, name, {"ann": 1, "bob": 1})
                await sql("DELETE FROM customers")
                await sql("""NOTIFY mine, '{"no": "key"}'""")
                await sql("NOTIFY mine, 'ann'")
                await becomes(grid, name, {"bob": 1})
        assert "CREATE OR REPLACE TRIGGER" in caplog.text
        assert runner.stats.poison == 1

    async def test_a_notification_of_the_wrong_type_harms_no_other(self, grid, settings, sql, unique):
        await sql("CREATE TABLE counts (id int PRIMARY KEY, age int)")
        name = f"lookups.{unique}"
        async with running(grid, settings(table="counts", notify="mine")) as runner:
            async with asyncio.timeout(20):
                while runner.stats.state != "running":
                    await asyncio.sleep(0.02)
            await sql("INSERT INTO counts VALUES (1, 10), (2, 20)")
            await sql("DO $$ BEGIN NOTIFY mine, '1'; NOTIFY mine, 'one'; NOTIFY mine, '2'; END $$")
            await becomes(grid, name, {1: 10, 2: 20})
        assert runner.stats.poison == 1

    async def test_what_was_missed_while_the_server_was_away_is_made_up(self, grid, settings, sql, postgres, unique):  # noqa: ARG002
        name = f"lookups.{unique}"
        async with running(grid, settings(notify="changes", install=True, mirror=True)) as runner:
            await becomes(grid, name, {"ann": 59, "bob": 30})
            await asyncio.to_thread(postgres.kill)
            await asyncio.to_thread(postgres.restart)
            database = settings().database.rpartition("/")[2]
            await asyncio.to_thread(postgres.execute, "DELETE FROM customers WHERE id = 'ann'", database)
            await asyncio.to_thread(postgres.execute, "INSERT INTO customers VALUES ('cy', 7)", database)
            await becomes(grid, name, {"bob": 30, "cy": 7})
            assert runner.stats.interruptions


class TestPolling:
    async def test_changes_are_seen_with_ties_and_late_commits(self, grid, settings, sql, unique):
        name = f"lookups.{unique}"
        async with running(grid, settings(poll_column="updated_at", every="1s", overlap="2d")) as runner:
            await becomes(grid, name, {"ann": 59, "bob": 30})
            # Of the same moment as the newest, and of before it.
            await sql("INSERT INTO customers VALUES ('tie', 1, '2026-01-02Z'), ('late', 2, '2026-01-01Z')")
            await sql("INSERT INTO customers VALUES ('new', 3, '2026-01-05Z'), ('far', 4, 'infinity')")
            await becomes(grid, name, {"ann": 59, "bob": 30, "tie": 1, "late": 2, "new": 3, "far": 4})
            await sql("UPDATE customers SET age = 5 WHERE id = 'new'")
            await becomes(grid, name, {"ann": 59, "bob": 30, "tie": 1, "late": 2, "new": 5, "far": 4})
        assert runner.stats.events < 20, "what lies in the window is not put at every look"

    async def test_a_second_start_goes_on_from_the_position(self, grid, settings, sql, unique):
        name = f"lookups.{unique}"
        wanted = settings(query="SELECT row_number() OVER (ORDER BY id) AS n, * FROM customers", poll_column="n")
        wanted = wanted.model_copy(update={"overlap_count": 0})
        async with running(grid, wanted):
            await becomes(grid, name, {"ann": 59, "bob": 30})
        await (await grid.map(name)).clear()
        await sql("INSERT INTO customers VALUES ('cy', 7)")
        async with running(grid, wanted):
            await becomes(grid, name, {"bob": 30, "cy": 7})

    @pytest.mark.parametrize(
        ("changed", "read"),
        [
            ({}, {"bob"}),
            ({"to": "lookups.other"}, {"ann", "bob"}),
            ({"query": "SELECT id, age, updated_at, 1 AS more FROM customers"}, {"ann", "bob"}),
            ({"query": "SELECT age AS id, updated_at FROM customers"}, {59, 30}),
            ({"max_event": 1_000}, {"ann", "bob"}),
        ],
    )
    async def test_a_position_of_other_rows_or_another_map_is_not_gone_on_from(
        self, grid, settings, sql, unique, caplog, changed, read
    ):
        await sql("SELECT")
        given = {"query": "SELECT * FROM customers", "poll_column": "updated_at"}

        async def keys(**more):
            """The keys of a first look."""
            source, found = PostgresSource(grid, f"rows-{unique}", settings(**given | more)), set()
            try:
                await source.open()
                async for batch in source._load():
                    found |= {key for key, _ in batch.entries}
                    await source.acknowledge(batch)
            finally:
                await source.close()
            return found

        assert await keys() == {"ann", "bob"}
        assert await keys(**changed) == read
        assert ("are read again" in caplog.text) == bool(changed)
        assert await keys(**changed) < read or not changed
