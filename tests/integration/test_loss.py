"""Loss is counted, never silent: a ring that overflows while nobody reads, and while somebody does."""

from contextlib import asynccontextmanager

import msgspec
import pytest
import scoring
import yaml

from gridscore.grid import connect
from gridscore.grid.member import Cluster
from gridscore.grid.settings import GridSettings
from gridscore.grid.template import template_file
from gridscore.grid.writer import MapWriter, partition_of
from gridscore.group.lease_records import read_records
from gridscore.group.reader import JournalReader
from gridscore.group.rescan import pending
from gridscore.job import JobState


@pytest.fixture(scope="module")
def small_ring(tmp_path_factory):
    """A cluster whose journals hold four events a partition."""
    config = yaml.safe_load(template_file().read_text())
    config["hazelcast"]["map"]["events.*"]["event-journal"]["capacity"] = 271 * 4
    path = tmp_path_factory.mktemp("small") / "hazelcast.yaml"
    path.write_text(yaml.safe_dump(config))
    with Cluster.start(1, port=0, heap="256m", config=path) as cluster:
        yield cluster


async def as_it_is(_cursor, page, _gap):
    return page


def reader_of(grid, map_name, regressed=print):
    return JournalReader(grid, map_name, regressed, as_it_is)


@asynccontextmanager
async def overrun(cluster, name, on_loss):
    """A job that has scored 50 events and is suspended while more overrun the ring of partition 7; and its worker."""
    text = scoring.JOB.format(name=name, mode="copy") + f"on_loss: {on_loss}\naudit: off\n"
    async with scoring.scoring(cluster, name, file=text) as (client, worker):
        await client.put_events(f"events.{name}", scoring.events(50))
        await scoring.all_results(client, name, 50)
        await client.jobs.suspend(name)
        await scoring.until(lambda: not worker.runners)
        # Past our own back-pressure, as a producer that is not ours would.
        writer, data = MapWriter(client.grid, f"events.{name}"), scoring.events(5_000, begin=50)
        same = [key for key in data if partition_of(writer.serialize_key(key), client.grid.partition_count) == 7]
        for key in same:
            await writer.put([(key, msgspec.json.encode(data[key]))])
        assert len(same) > 5
        yield client, worker, same


async def lost(client, name):
    records = await read_records(client.grid, name)
    return {partition: record.lost for partition, record in records.items() if record.lost}


async def test_events_overwritten_before_anybody_read_are_found_in_the_map_and_scored(small_ring, unique, caplog):
    name = f"job-{unique}"
    async with overrun(small_ring, name, "rescan") as (client, worker, same):
        await client.jobs.resume(name)
        await scoring.all_results(client, name, 50 + len(same))
        assert await scoring.until(lambda: lost(client, name)) == {7: len(same) - 4}

        async def settled():
            return not await pending(client.grid, name)

        await scoring.until(settled)
        assert worker.runners[name].stats.rescued == len(same) - 4
        results = await scoring.all_results(client, name, 50 + len(same))
        assert sorted(results[key]["sequence"] for key in same)[: len(same) - 3] == [-1] * (len(same) - 4) + [
            min(results[key]["sequence"] for key in same if results[key]["sequence"] >= 0)
        ]
    assert f"lost {len(same) - 4} events" in caplog.text


async def test_with_continue_they_are_only_counted(small_ring, unique):
    name = f"job-{unique}"
    async with overrun(small_ring, name, "continue") as (client, worker, same):
        await client.jobs.resume(name)
        assert await scoring.until(lambda: lost(client, name)) == {7: len(same) - 4}
        assert len(await scoring.all_results(client, name, 54)) == 54
        assert await pending(client.grid, name) == {}
        assert worker.runners[name].stats.rescued == 0


async def test_with_halt_the_job_fails_and_goes_on_behind_the_gap_when_resumed(small_ring, unique):
    name = f"job-{unique}"
    async with overrun(small_ring, name, "halt") as (client, _, same):
        await client.jobs.resume(name)

        async def failed():
            record = await client.jobs.get(name)
            return record if record.state == JobState.FAILED else None

        record = await scoring.until(failed)
        assert f"lost {len(same) - 4} events before they were read" in record.error
        await client.jobs.resume(name)
        assert len(await scoring.all_results(client, name, 54)) == 54
        assert await lost(client, name) == {7: len(same) - 4}


async def test_a_gap_between_two_reads_is_counted(small_ring, unique):
    settings = GridSettings.load(members=small_ring.addresses, cluster_name=small_ring.cluster_name)
    async with await connect(settings) as grid:
        writer = MapWriter(grid, f"events.{unique}")
        for number in range(9):
            await writer.put([("key", b"%d" % number)])
        partition = partition_of(writer.serialize_key("key"), grid.partition_count)
        reader = reader_of(grid, writer.map_name)
        reader.start(partition, 2)
        await reader.wait()
        (arrival,) = reader.take(100)
        assert arrival.page.sequences == [5, 6, 7, 8]
        assert arrival.page.values == [b"5", b"6", b"7", b"8"]
        assert arrival.lost == 3
        reader.close()


async def test_a_journal_that_begins_again_is_noticed_by_a_parked_reader(small_ring, unique, caplog):
    settings = GridSettings.load(members=small_ring.addresses, cluster_name=small_ring.cluster_name)
    async with await connect(settings) as grid:
        writer = MapWriter(grid, f"events.{unique}")
        await writer.put([("key", b"1")])
        partition = partition_of(writer.serialize_key("key"), grid.partition_count)
        regressions = []
        reader = reader_of(grid, writer.map_name, lambda partition, oldest: regressions.append((partition, oldest)))

        reader.start(partition, 50)  # as if 50 events had been read from a journal that has died since
        await reader.check(partition)

        assert regressions == [(partition, 0)]
        assert await reader.last_standing(partition) is None
        reader.close()
    assert "its journal begins again at 0" in caplog.text
