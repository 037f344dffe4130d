"""Loss is counted, never silent: a ring that overflows while nobody reads, and while somebody does."""

import pytest
import scoring
import yaml

from pipeline.grid import connect
from pipeline.grid.member import Cluster
from pipeline.grid.settings import GridSettings
from pipeline.grid.template import template_file
from pipeline.grid.writer import MapWriter
from pipeline.worker.reader import JournalReader


@pytest.fixture(scope="module")
def small_ring(tmp_path_factory):
    """A cluster whose journals hold four events a partition."""
    config = yaml.safe_load(template_file().read_text())
    config["hazelcast"]["map"]["events.*"]["event-journal"]["capacity"] = 271 * 4
    path = tmp_path_factory.mktemp("small") / "hazelcast.yaml"
    path.write_text(yaml.safe_dump(config))
    with Cluster.start(1, port=0, heap="256m", config=path) as cluster:
        yield cluster


async def test_events_overwritten_before_anybody_read_are_counted(small_ring, unique, caplog):
    name = f"job-{unique}"
    async with scoring.scoring(small_ring, name) as (client, worker):
        await client.put_events(f"events.{name}", scoring.events(50))
        await scoring.all_results(client, name, 50)
        await client.jobs.suspend(name)
        await scoring.until(lambda: not worker.runners)
        another = MapWriter(client.grid, f"events.{name}")  # a producer that is not ours, and does not wait
        for number in range(11):
            await another.put([("one-key", b'{"amount": %d, "user": "u1"}' % number)])
        await client.jobs.resume(name)
        stats = await scoring.until(
            lambda: name in worker.runners and worker.runners[name].stats.lost and worker.runners[name].stats
        )
        assert stats.lost == 7
    assert "lost 7 events, overwritten while nobody read" in caplog.text


async def test_a_gap_between_two_reads_is_counted(small_ring, unique, caplog):
    settings = GridSettings.load(members=small_ring.addresses, cluster_name=small_ring.cluster_name)
    async with await connect(settings) as grid:
        writer = MapWriter(grid, f"events.{unique}")
        for number in range(9):
            await writer.put([("key", b"%d" % number)])
        (partition,) = [
            p
            for p in range(grid.partition_count)
            if (await JournalReader(grid, writer.map_name, print).bounds(p))[1] >= 0
        ]
        reader = JournalReader(grid, writer.map_name, print)
        reader.start(partition, 2)
        await reader.wait()
        ((_, page, _),) = reader.take(100)
        assert page.sequences == [5, 6, 7, 8]
        assert page.values == [b"5", b"6", b"7", b"8"]
        assert reader.losses.lost == 3
        reader.close()
    assert "3 events were overwritten before they were read (expected sequence 2, got 5)" in caplog.text


async def test_a_journal_that_begins_again_is_noticed_by_a_parked_reader(small_ring, unique, caplog):
    settings = GridSettings.load(members=small_ring.addresses, cluster_name=small_ring.cluster_name)
    async with await connect(settings) as grid:
        writer = MapWriter(grid, f"events.{unique}")
        await writer.put([("key", b"1")])
        regressions = []
        reader = JournalReader(grid, writer.map_name, lambda partition, oldest: regressions.append((partition, oldest)))
        (partition,) = [p for p in range(grid.partition_count) if (await reader.bounds(p))[1] >= 0]

        reader.start(partition, 50)  # as if 50 events had been read from a journal that has died since
        await reader.check(partition)

        assert regressions == [(partition, 0)]
        assert reader.losses.regressions == 1
        reader.close()
    assert "its journal begins again at 0" in caplog.text
