"""The PostgreSQL sink on a real server: tables, the newest of each key, bad rows, and a server that is killed."""

import asyncio
import contextlib
import random
import socket
import ssl
import subprocess
import threading
import time

import msgspec
import psycopg
import pytest

from gridscore.errors import UsageError
from gridscore.grid import connect
from gridscore.operations.sink_status import forget
from gridscore.postgres import PostgresError
from gridscore.producer.producer import Producer
from gridscore.sinks.base import Delivered, Delivery, SinkInterruptedError
from gridscore.sinks.postgres.settings import PostgresSinkSettings
from gridscore.sinks.postgres.sink import ERAS_MAP, PostgresSink
from gridscore.sinks.runner import runner_of
from gridscore.testing import StubCluster


def result(key, sequence=0, *, epoch=1, partition=0, **fields):
    value = {
        "score": 0.5,
        "decision": "approve",
        "sequence": sequence,
        "epoch": 3,
        "version": 2,
        "model": "fraud",
        "scored_at": 1_700_000_000_123 + sequence,
        **fields,
    }
    return Delivered(key, msgspec.json.encode(value), value, partition, sequence, epoch)


def delivery(*results, seconds=30.0):
    return Delivery(results, {0: 1}, time.monotonic() + seconds)


def settings(database, **more):
    return PostgresSinkSettings(**{"results": "results.x", "database": database, "table": "scores", **more})


@pytest.fixture
async def grid(grid_settings):
    async with await connect(grid_settings) as connected:
        yield connected


@pytest.fixture
async def opened(grid):
    """Opens sinks, and closes them."""
    sinks = []

    async def open_sink(settings):
        sinks.append(PostgresSink(grid, "to-sql", settings))
        await sinks[-1].open()
        return sinks[-1]

    yield open_sink
    for sink in sinks:
        await sink.close()


def rows(postgres, database, statement):
    return postgres.execute(statement, database.rpartition("/")[2])


async def test_a_process_that_is_paused_within_a_delivery_locks_out_its_successor_for_the_lease_at_most(database):
    """The event loop of the first stands still, as all of a stopped process does, between its rows and the commit."""
    begun, go_on = threading.Event(), threading.Event()

    async def pause():
        sink = PostgresSink(None, "to-sql", settings(database))
        sink._era = 1
        connection = await sink._connected()
        transaction = connection.transaction

        @contextlib.asynccontextmanager
        async def paused():
            async with transaction():
                yield
                begun.set()
                go_on.wait()

        connection.transaction = paused
        try:
            await sink._write([("ann", result("ann"))], time.monotonic() + 1.0, [])
        finally:
            await sink.close()

    async with StubCluster(partitions=5) as stub:
        successor = PostgresSink(await stub.connect(), "to-sql", settings(database))
        await successor.open()
        first = asyncio.create_task(asyncio.to_thread(asyncio.run, pause()))
        try:
            await asyncio.to_thread(begun.wait, 20.0)
            assert await successor.deliver(delivery(result("ann", 1), seconds=10.0)) == []
        finally:
            go_on.set()
            await successor.close()
        with pytest.raises((psycopg.Error, SinkInterruptedError)):
            await first


class TestTables:
    async def test_a_database_without_an_encoding_takes_results_as_any_other(self, opened, postgres, unique):
        name = f"bytes_{unique}"
        postgres.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'")
        sink = await opened(settings(postgres.url(name), columns="typed"))

        assert await sink.deliver(delivery(result("ann", decision="geprüft"))) == []

        found = postgres.execute("SELECT key, decision FROM scores", name)
        assert [[bytes(each).decode() for each in row] for row in found] == [["ann", "geprüft"]]

    async def test_json_results_are_kept_whole(self, opened, postgres, database):
        sink = await opened(settings(database))

        assert await sink.deliver(delivery(result("ann", score=0.25, country="DE"), result(7, 1))) == []

        found = rows(postgres, database, "SELECT key, result->>'country', result->'score', scored_at FROM scores")
        assert {(key, country, score) for key, country, score, _ in found} == {("ann", "DE", 0.25), ("7", None, 0.5)}
        assert {round(at.timestamp() * 1_000) for *_, at in found} == {1_700_000_000_123, 1_700_000_000_124}

    async def test_typed_results_have_a_column_for_each_field(self, opened, postgres, database):
        more = {"amount": "numeric(12,2)", "tags": "text[]", "seen": "timestamptz", "reasons": "jsonb", "old": "bool"}
        sink = await opened(settings(database, columns="typed", key_type="bigint", column=more))
        extra = {"amount": 12.345, "tags": ["a", 'b"'], "seen": "2026-01-01T00:00:00Z", "reasons": {"x": [1]}}

        assert await sink.deliver(delivery(result(7, **extra))) == []

        (row,) = rows(
            postgres,
            database,
            "SELECT key, score, decision, model, version, amount::text, tags, seen, reasons, old FROM scores",
        )
        assert row[:7] == (7, 0.5, "approve", "fraud", 2, "12.35", ["a", 'b"'])
        assert (row[7].timestamp(), row[8], row[9]) == (1767225600.0, {"x": [1]}, None)

    async def test_a_table_that_has_drifted_is_reported_with_what_mends_it(self, opened, postgres, database):
        wanted = settings(database, columns="typed", column={"amount": "numeric(12,2)", "note": "varchar(10)"})
        sink = await opened(wanted)
        rows(postgres, database, "ALTER TABLE scores DROP COLUMN amount, ALTER COLUMN decision TYPE bytea USING NULL")
        rows(postgres, database, "ALTER TABLE scores ADD COLUMN branch int NOT NULL, DROP CONSTRAINT scores_pkey")

        with pytest.raises(PostgresError) as caught:
            await sink.deliver(delivery(result("ann")))

        assert "no column `amount`" in caught.value.message
        assert "`decision` is of the type bytea, not text" in caught.value.message
        assert "`branch` must have a value" in caught.value.message
        assert "`key` is not unique" in caught.value.message
        rows(postgres, database, caught.value.hint.removeprefix("Correct it with: "))
        await opened(wanted)
        assert await sink.deliver(delivery(result("ann", amount=1.5))) == []

    async def test_a_table_of_the_users_own_is_used_as_it_is(self, opened, postgres, database):
        rows(
            postgres,
            database,
            "CREATE TABLE scores (key varchar(20) UNIQUE, score real, decision text, model text, version int, "
            "scored_at timestamptz, sink_era bigint, sink_epoch bigint, sink_sequence bigint, note text DEFAULT 'x')",
        )
        rows(postgres, database, "INSERT INTO scores (key, score) VALUES ('ann', 1)")
        sink = await opened(settings(database, columns="typed", create=False))

        refused = await sink.deliver(delivery(result("ann"), result("x" * 21)))

        assert [each.result.key for each in refused] == ["x" * 21]
        assert rows(postgres, database, "SELECT key, score, note FROM scores") == [("ann", 0.5, "x")]

    async def test_a_table_that_is_gone_is_waited_for(self, opened, postgres, database):
        sink = await opened(settings(database))
        assert await sink.deliver(delivery(result("ann"))) == []
        await sink.look()
        rows(postgres, database, "ALTER TABLE scores RENAME TO kept")
        for _ in range(2):
            with pytest.raises(SinkInterruptedError, match=r"`scores` at .* is gone") as caught:
                await sink.deliver(delivery(result("bob", 1)))
            assert "sink forget to-sql" in caught.value.hint
            with pytest.raises(SinkInterruptedError, match="is gone"):
                await sink.look()
        rows(postgres, database, "ALTER TABLE kept RENAME TO scores")
        assert await sink.deliver(delivery(result("bob", 1))) == []
        assert {key for (key,) in rows(postgres, database, "SELECT key FROM scores")} == {"ann", "bob"}

    async def test_two_processes_may_make_the_table_at_once(self, opened, database):
        for number in range(5):
            await asyncio.gather(*(opened(settings(database, table=f"scores_{number}")) for _ in range(8)))

    async def test_a_type_of_the_name_is_in_the_way(self, opened, postgres, database):
        rows(postgres, database, "CREATE TYPE scores AS ENUM ('a')")
        with pytest.raises(PostgresError, match="`scores` cannot be made") as caught:
            await opened(settings(database))
        assert "another name" in caught.value.hint


class TestWhatIsRefused:
    async def test_a_wrong_password(self, opened, postgres):
        wrong = "wrong-secret"
        with pytest.raises(PostgresError, match="refuses the user or the password") as caught:
            await opened(settings(postgres.url(password=wrong)))
        assert wrong not in str(caught.value)

    async def test_an_unknown_database(self, opened, postgres):
        with pytest.raises(PostgresError, match="no such database"):
            await opened(settings(postgres.url("nowhere")))

    async def test_no_address(self, opened):
        with pytest.raises(UsageError, match="not an address"):
            await opened(settings("shop.example.com:5432"))

    async def test_a_table_that_must_exist(self, opened, database):
        with pytest.raises(PostgresError, match="no table `scores`"):
            await opened(settings(database, create=False))

    async def test_an_unknown_type_and_schema(self, opened, database):
        with pytest.raises(PostgresError, match="cannot be made"):
            await opened(settings(database, columns="typed", column={"amount": "monies"}))
        with pytest.raises(PostgresError, match="cannot be made"):
            await opened(settings(database, table="nowhere.scores"))

    async def test_no_permission(self, opened, postgres, database, unique):
        await opened(settings(database))
        name = f"reader_{unique}"
        postgres.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{name}'")
        theirs = postgres.url(database.rpartition("/")[2], user=name, password=name)
        with pytest.raises(PostgresError, match="may not INSERT or UPDATE or SELECT on the table `scores`"):
            await opened(settings(theirs))
        with pytest.raises(PostgresError, match="does not let this user make it"):
            await opened(settings(theirs, table="others"))

    async def test_an_unlogged_table_and_a_view(self, opened, postgres, database):
        await opened(settings(database))
        rows(postgres, database, "ALTER TABLE scores SET UNLOGGED")
        rows(postgres, database, "CREATE VIEW seen AS SELECT * FROM scores")
        with pytest.raises(PostgresError, match="unlogged"):
            await opened(settings(database))
        with pytest.raises(PostgresError, match="is not a table, but a view"):
            await opened(settings(database, table="seen"))

    async def test_a_server_that_is_away_may_come_back(self, opened):
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            with pytest.raises(SinkInterruptedError, match="cannot be reached"):
                await opened(settings(f"postgresql://a@127.0.0.1:{nobody.getsockname()[1]}/x"))

    async def test_a_server_without_tls(self, opened, database):
        with pytest.raises(PostgresError, match="does not speak TLS"):
            await opened(settings(f"{database}?sslmode=require"))

    async def test_a_certificate_of_nobody_known(self, opened, tmp_path):
        certificate, key = tmp_path / "server.pem", tmp_path / "server.key"
        make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "1"]
        make += ["-keyout", key, "-out", certificate]
        await asyncio.to_thread(subprocess.run, make, check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        with socket.create_server(("127.0.0.1", 0)) as door:
            # PostgreSQL of the wheel has no TLS; its first step is a word and an answer of one letter.
            threading.Thread(target=_greet, args=(door, context), daemon=True).start()
            address = f"postgresql://a@127.0.0.1:{door.getsockname()[1]}/x?sslmode=verify-full&sslrootcert=system"
            with pytest.raises(PostgresError, match=r"is not trusted: .*certificate verify failed"):
                await opened(settings(address))


def _greet(door, context):
    connection, _ = door.accept()
    with connection:
        connection.recv(8)
        connection.sendall(b"S")
        with contextlib.suppress(OSError):
            context.wrap_socket(connection, server_side=True).close()


class TestNewest:
    async def test_an_older_result_replaces_none_that_is_newer(self, opened, postgres, database):
        sink = await opened(settings(database, columns="typed"))

        async def after(*results):
            assert await sink.deliver(delivery(*results)) == []
            ((score,),) = rows(postgres, database, "SELECT score FROM scores")
            return score

        assert await after(result("k", 5, score=5)) == 5
        assert await after(result("k", 4, score=4)) == 5, "an older one of the same owner"
        assert await after(result("k", 5, score=5.5)) == 5.5, "the same again"
        assert await after(result("k", 6, score=6), result("k", 7, score=7), result("k", 3, score=3)) == 7
        assert await after(result("k", 6, epoch=2, score=6)) == 7, "read again by the next owner"
        assert await after(result("k", 8, epoch=2, score=8)) == 8
        assert await after(result("k", 9, epoch=1, score=9)) == 8, "by one that has lost its lease"
        assert await after(result("k", 0, epoch=3, score=0, scored_at=1_800_000_000_000)) == 0, "a journal from new"

    async def test_a_cluster_that_has_lost_everything_begins_a_new_era(self, opened, postgres, database, grid):
        sink = await opened(settings(database, columns="typed"))
        await sink.deliver(delivery(result("k", 500, epoch=57, score=0.1)))

        await (await grid.map(ERAS_MAP)).clear()
        sink = await opened(settings(database, columns="typed"))
        await sink.deliver(delivery(result("k", 0, epoch=1, score=0.9, scored_at=None)))

        assert rows(postgres, database, "SELECT score, sink_epoch FROM scores") == [(0.9, 1)]


class TestBadRows:
    @pytest.mark.parametrize("columns", ["json", "typed"])
    async def test_one_that_postgres_does_not_take_harms_no_other(self, opened, postgres, database, columns):
        sink = await opened(settings(database, columns=columns))
        results = [result(f"k{number}", number) for number in range(300)]
        results[17] = result("nul", 17, decision="a\0b")
        results[123] = result("n\0l", 123)
        results[299] = result("long", 299, decision="fine, but \\u0000 spelled out")

        refused = await sink.deliver(delivery(*results))

        assert {each.result.key for each in refused} == {"nul", "n\0l"}
        assert all("does not take it" in each.error for each in refused)
        assert rows(postgres, database, "SELECT count(*) FROM scores") == [(298,)]

    async def test_keys_and_values_that_do_not_fit_their_columns(self, opened, postgres, database):
        sink = await opened(settings(database, columns="typed", key_type="bigint", column={"amount": "int"}))
        await sink.deliver(delivery(result(1, amount=3)))
        refused = await sink.deliver(
            delivery(result("one"), result(2**70), result(2, amount=2**40), result(3, score=[1, 2]), result(4, 1))
        )
        assert {each.result.key for each in refused} == {"one", 2**70, 2, 3}
        assert rows(postgres, database, "SELECT key FROM scores ORDER BY key") == [(1,), (4,)]

    async def test_a_key_that_no_index_takes(self, opened, postgres, database):
        sink = await opened(settings(database))
        refused = await sink.deliver(delivery(result("a"), result(random.randbytes(5_000).hex())))
        assert ["index" in each.error for each in refused] == [True]
        assert rows(postgres, database, "SELECT key FROM scores") == [("a",)]

    async def test_a_trigger_of_the_users(self, opened, postgres, database):
        sink = await opened(settings(database))
        rows(
            postgres,
            database,
            "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "IF NEW.key = 'b' THEN RAISE 'not b'; ELSIF NEW.key = 'c' THEN PERFORM nothing; END IF; RETURN NEW; "
            "END $$; CREATE TRIGGER t BEFORE INSERT ON scores FOR EACH ROW EXECUTE FUNCTION f()",
        )
        refused = await sink.deliver(delivery(result("a"), result("b")))
        assert [(each.result.key, "not b" in each.error) for each in refused] == [("b", True)]
        with pytest.raises(SinkInterruptedError, match="has changed"):
            await sink.deliver(delivery(result("c")))
        with pytest.raises(PostgresError, match="nothing"):
            await sink.deliver(delivery(result("c")))

    async def test_a_constraint_of_the_users(self, opened, postgres, database):
        sink = await opened(settings(database, columns="typed"))
        rows(postgres, database, "ALTER TABLE scores ADD CHECK (score < 1)")
        refused = await sink.deliver(delivery(result("a"), result("b", score=2)))
        assert [(each.result.key, "check constraint" in each.error) for each in refused] == [("b", True)]


class TestTrouble:
    async def test_a_locked_table_is_not_waited_for_longer_than_the_lease(self, opened, database):
        sink = await opened(settings(database))
        async with await psycopg.AsyncConnection.connect(database) as other:
            await other.execute("LOCK TABLE scores")
            until = time.monotonic() + 1
            with pytest.raises(SinkInterruptedError):
                await sink.deliver(delivery(result("ann"), seconds=1))
            assert time.monotonic() - until < 5
            await other.rollback()
        with pytest.raises(SinkInterruptedError, match="too slow for the leases"):
            await sink.deliver(delivery(result("ann"), seconds=0))
        assert await sink.deliver(delivery(result("ann"))) == []

    async def test_a_connection_that_was_cut_is_made_again(self, opened, postgres, database):
        sink = await opened(settings(database))
        postgres.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name ~ 'to-sql'")
        with pytest.raises(SinkInterruptedError):
            await sink.deliver(delivery(result("ann")))
        assert await sink.deliver(delivery(result("ann"))) == []

    async def test_every_result_is_there_once_though_the_server_is_killed_twice(self, opened, postgres, database):
        sink = await opened(settings(database, columns="typed"))
        scores = {f"customer-{number}": random.random() for number in range(20_000)}
        deliveries = []
        for begin in range(0, len(scores), 500):
            part = list(scores.items())[begin : begin + 500]
            old = [result(key, begin * 2 + at, score=-1) for at, (key, _) in enumerate(part)]
            new = [result(key, begin * 2 + 500 + at, score=score) for at, (key, score) in enumerate(part)]
            deliveries.append([*old, *new])
        begun, interrupted = asyncio.Event(), 0

        async def deliver_all():
            nonlocal interrupted
            for number, results in enumerate(deliveries):
                if number in (8, 22):
                    begun.set()
                while True:
                    try:
                        assert await sink.deliver(delivery(*results)) == []
                        break
                    except SinkInterruptedError:
                        interrupted += 1
                        await asyncio.sleep(0.05)

        delivering = asyncio.create_task(deliver_all())
        for _ in range(2):
            await begun.wait()
            begun.clear()
            await asyncio.to_thread(postgres.kill)
            await asyncio.to_thread(postgres.restart)
        await delivering

        assert interrupted
        assert dict(rows(postgres, database, "SELECT key, score FROM scores")) == scores


class TestProcesses:
    async def test_a_start_makes_no_table_in_the_place_of_one_that_is_gone(self, grid, postgres, database, unique):
        wanted = settings(database, results=f"results.{unique}")

        async def until(ready):
            runner = runner_of(grid, wanted)
            task = asyncio.create_task(runner.run())
            async with asyncio.timeout(30):
                while not ready(runner.stats):
                    assert not task.done(), task.exception()
                    await asyncio.sleep(0.02)
            task.cancel()
            await asyncio.wait({task})

        await Producer(grid, wanted.results).put([("ann", result("ann").text)])
        await until(lambda stats: stats.events == 1)
        rows(postgres, database, "ALTER TABLE scores RENAME TO kept")
        await until(lambda stats: stats.state == "waiting" and "is gone" in stats.error)
        assert rows(postgres, database, "SELECT to_regclass('scores')") == [(None,)]
        await forget(grid, f"postgres-results.{unique}")
        await until(lambda stats: stats.events == 1)
        assert rows(postgres, database, "SELECT key FROM scores") == [("ann",)]

    async def test_two_share_the_work_while_one_is_stopped_and_the_server_is_killed(
        self, grid, grid_settings, postgres, database, unique
    ):
        name = f"results.{unique}"
        wanted = settings(database, results=name, columns="typed", batch=200)
        async with await connect(grid_settings) as other:
            runners = [asyncio.create_task(runner_of(each, wanted).run()) for each in (grid, other)]
            producer, expected = Producer(grid, name), {}
            for turn in range(10):
                for key in (f"customer-{number}" for number in range(500)):
                    expected[key] = random.random()
                texts = [(key, result(key, turn, score=score).text) for key, score in expected.items()]
                await producer.put(texts)
                if turn in (2, 6):
                    await asyncio.to_thread(postgres.kill)
                    await asyncio.to_thread(postgres.restart)
                if turn == 4:
                    runners.pop().cancel()
            async with asyncio.timeout(60):
                found = {}
                while found != expected:
                    assert not runners[0].done(), runners[0].exception()
                    await asyncio.sleep(0.1)
                    if rows(postgres, database, "SELECT to_regclass('scores') IS NOT NULL") == [(True,)]:
                        found = dict(rows(postgres, database, "SELECT key, score FROM scores"))
            runners[0].cancel()
            await asyncio.wait(runners)
