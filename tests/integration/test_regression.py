"""A journal that begins again on purpose: an event map without a backup, and the owner of some partitions killed."""

import asyncio

import numpy as np
import pytest
import scoring
import yaml

from gridscore.grid.member import Cluster
from gridscore.grid.template import template_file
from gridscore.group.lease_records import read_records
from gridscore.group.rescan import pending


@pytest.fixture(scope="module")
def no_backup(tmp_path_factory):
    """Three members whose event maps have no backup; all else has."""
    config = yaml.safe_load(template_file().read_text())
    config["hazelcast"]["map"]["events.*"]["backup-count"] = 0
    path = tmp_path_factory.mktemp("no-backup") / "hazelcast.yaml"
    path.write_text(yaml.safe_dump(config))
    with Cluster.start(3, port=0, heap="256m", config=path) as cluster:
        yield cluster


async def test_a_journal_that_begins_again_is_counted_and_what_comes_after_is_scored(no_backup, unique, caplog):
    name, model = f"job-{unique}", scoring.booster()
    async with scoring.scoring(no_backup, name, model=model) as (client, worker):
        before = scoring.events(2_000)
        await client.put_events(f"events.{name}", before)
        await scoring.all_results(client, name, 2_000)

        async def committed():
            records = await read_records(client.grid, name)
            return sum(max(record.offset, 0) for record in records.values()) == 2_000

        await scoring.until(committed)
        await asyncio.to_thread(no_backup.kill, 2)
        after = scoring.events(1_000, begin=2_000)
        await client.put_events(f"events.{name}", after)
        results = await scoring.all_results(client, name, 3_000, seconds=120)

        async def settled():
            records = await read_records(client.grid, name)
            counted = sum(record.regressions for record in records.values())
            return counted if counted and not await pending(client.grid, name) else None

        # A third of the partitions, more or less.
        assert 20 < await scoring.until(settled, seconds=120) < 200
        assert worker.runners[name].stats.regressions > 0
        lost = await (await client.grid.map(f"events.{name}")).size()
        assert lost < 3_000
    both = {**before, **after}
    expected = scoring.predict(model, scoring.expected_rows(both.values()))
    got = np.array([results[key]["score"] for key in both], dtype=np.float32)
    assert got.tobytes() == expected.tobytes()
    assert "begins again" in caplog.text or "begun again" in caplog.text
