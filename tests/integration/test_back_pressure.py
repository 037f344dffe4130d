"""Back-pressure end to end: a slow destination slows its sink and not the scores, a slow worker slows its sources."""

import asyncio
import contextlib
import json
import os
import signal
import sys

import psycopg
import scoring
from small_ring import PARTITIONS, RING

from gridscore.client import connect
from gridscore.group.lease_records import read_records
from gridscore.leash import LeashedProcess
from gridscore.sinks.postgres.settings import PostgresSinkSettings
from gridscore.sinks.runner import runner_of as sink_runner_of
from gridscore.sources.kafka.settings import KafkaSourceSettings
from gridscore.sources.runner import runner_of as source_runner_of

SLOW = """
    CREATE FUNCTION take_a_second() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_sleep(1); RETURN NULL; END';
    CREATE TRIGGER slow AFTER INSERT ON scores FOR EACH STATEMENT EXECUTE FUNCTION take_a_second()
"""

SLOW_ROWS = """
    CREATE FUNCTION take_a_while() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_sleep(0.005); RETURN NEW; END';
    CREATE TRIGGER slow BEFORE INSERT ON scores FOR EACH ROW EXECUTE FUNCTION take_a_while()
"""


@contextlib.asynccontextmanager
async def running(runner):
    """A source or a sink, until the end of the block; what it raises is raised."""
    task = asyncio.create_task(runner.run())
    try:
        yield task
        assert not task.done() or task.exception() is None
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def gridscore(cluster, *arguments):
    """What a command says as JSON."""
    where = ("--members", cluster.addresses[0], "--cluster-name", cluster.cluster_name)
    command = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gridscore.cli", *arguments, *where, "--json"), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await command.communicate()
    assert command.returncode == 0
    return json.loads(out)


async def test_a_slow_database_slows_its_sink_and_not_the_scores_and_the_lag_is_seen(cluster, database, unique):
    name, first, more = f"slow-{unique}", 100, 5_000
    settings = PostgresSinkSettings(results=f"results.{name}", database=database, table="scores", batch=100)
    async with scoring.scoring(cluster, name) as (client, worker):
        sink = sink_runner_of(client.grid, settings, f"table-{name}")

        async def seen():
            """As `gridscore sink list` has it."""
            return next(each for each in await gridscore(cluster, "sink", "list") if each["name"] == sink.name)

        async with running(sink), await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
            await client.put_events(f"events.{name}", scoring.events(first))
            await scoring.until(lambda: sink.stats.events == first)
            await connection.execute(SLOW)

            # At a hundred results a second the table would take most of a minute; the scores do not wait for it.
            await client.put_events(f"events.{name}", scoring.events(more, first))
            await scoring.all_results(client, name, first + more)
            assert worker.runners[name].stats.lost == 0
            found = await seen()
            assert (found["state"], found["lost"], found["error"]) == ("delivering", 0, "")
            assert found["lag"] > more // 2

            await connection.execute("DROP TRIGGER slow ON scores")
            await scoring.until(lambda: sink.stats.events == first + more)
            await scoring.until(lambda: _has_no_lag(seen))
            assert await _has_rows(connection, first + more)
            assert (sink.stats.lost, sink.stats.dead, sink.stats.rescans) == (0, 0, 0)


async def test_a_table_that_is_locked_is_waited_for_and_said(cluster, database, unique):
    name, count = f"locked-{unique}", 300
    settings = PostgresSinkSettings(results=f"results.{name}", database=database, table="scores", batch=100)
    async with scoring.scoring(cluster, name) as (client, _):
        sink = sink_runner_of(client.grid, settings, f"table-{name}", lease_seconds=2.0)
        async with running(sink), await psycopg.AsyncConnection.connect(database) as connection:
            await client.put_events(f"events.{name}", scoring.events(1))
            await scoring.until(lambda: sink.stats.events == 1)
            await connection.execute("LOCK TABLE scores")
            await client.put_events(f"events.{name}", scoring.events(count, 1))
            await scoring.all_results(client, name, count + 1)
            await scoring.until(lambda: sink.stats.state == "waiting")
            (found,) = [each for each in await gridscore(cluster, "sink", "list") if each["name"] == sink.name]
            assert found["lag"] >= count
            assert found["lost"] == 0
            await connection.rollback()
            await connection.set_autocommit(True)
            await scoring.until(lambda: _has_rows(connection, count + 1), 30)
            await scoring.until(lambda: sink.stats.state == "delivering")
            assert (sink.stats.lost, sink.stats.dead) == (0, 0)


async def test_a_database_too_slow_for_the_leases_gets_smaller_deliveries(cluster, database, unique):
    name, count = f"slower-{unique}", 600
    settings = PostgresSinkSettings(results=f"results.{name}", database=database, table="scores")

    def sink_of(client):
        return sink_runner_of(client.grid, settings, f"table-{name}", lease_seconds=2.0)

    async with scoring.scoring(cluster, name) as (client, _):
        first = sink_of(client)
        async with running(first), await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
            await client.put_events(f"events.{name}", scoring.events(1))
            await scoring.until(lambda: first.stats.events == 1)
            await connection.execute(SLOW_ROWS)
        await client.put_events(f"events.{name}", scoring.events(count, 1))
        await scoring.all_results(client, name, count + 1)
        sink = sink_of(client)
        async with running(sink), await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
            # All at once would take three seconds, and the leases leave less than two. Where one of them ends before
            # what was delivered is committed, it is delivered again, and counted again.
            await scoring.until(lambda: _has_rows(connection, count + 1), 30)
            await scoring.until(lambda: sink.stats.state == "delivering")
            assert sink.stats.interruptions
            assert (sink.stats.lost, sink.stats.dead) == (0, 0)


async def _has_no_lag(seen):
    return (await seen())["lag"] == 0


async def _has_rows(connection, count):
    return await (await connection.execute("SELECT count(*) FROM scores")).fetchone() == (count,)


async def test_a_slow_worker_slows_its_source_and_nothing_is_overrun(small_ring, kafka, unique, tmp_path):
    name, count = f"back-{unique}", 20_000
    topic = kafka.create(f"events-{unique}", 3)
    kafka.produce(topic, [(None, json.dumps(value)) for value in scoring.events(count).values()])
    settings = KafkaSourceSettings(to=f"events.{name}", brokers=[kafka.address], topic=topic)
    where = ["--members", small_ring.addresses[0], "--cluster-name", small_ring.cluster_name]
    async with connect(members=small_ring.addresses, cluster_name=small_ring.cluster_name) as client:
        await client.put_events(f"lookups.{name}", scoring.customers())
        await client.push_model(scoring.booster(), name, alias="champion")
        await client.submit(scoring.job(name))
        results = await client.grid.map(f"results.{name}")
        source = source_runner_of(client.grid, settings, f"source-{name}")

        async def scored():
            return await results.size()

        async def seen_waiting():
            (found,) = await gridscore(small_ring, "source", "list")
            return (found["name"], found["state"]) == (source.name, "waiting")

        def committed():
            return sum(kafka.committed(topic, source.name).values())

        # The lease outlasts the pauses: nobody else would score meanwhile.
        worker = LeashedProcess("gridscore.cli", ["worker", "--jobs", name, "--lease", "60", *where], tmp_path / "log")
        with worker:
            async with running(source):
                for part in (1, 2, 3):
                    await scoring.until(lambda part=part: _is_at_least(scored, part * count // 5))
                    os.kill(worker.pid, signal.SIGSTOP)
                    try:
                        await scoring.until(lambda: source.stats.state == "waiting")
                        await scoring.until(seen_waiting)  # published once a second
                        # What is in the grid and not scored is no more than the rings hold, less what is kept free; and
                        # Kafka keeps what is not in the grid.
                        assert source.stats.events - await scored() <= PARTITIONS * RING * 3 // 4
                        assert await asyncio.to_thread(committed) <= source.stats.events < count
                    finally:
                        os.kill(worker.pid, signal.SIGCONT)
                await scoring.until(lambda: _is_at_least(scored, count), 60)
                await scoring.until(lambda: source.stats.events == count)
                assert source.stats.waited > 0
            assert await asyncio.to_thread(committed) == count
        assert await (await client.grid.map(f"events.{name}")).size() == count
        assert not any(record.lost for record in (await read_records(client.grid, name)).values())


async def _is_at_least(size, count):
    return await size() >= count
