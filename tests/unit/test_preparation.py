"""What is added to a cluster for a job, and what is left as it is."""

import asyncio
import time

import pytest

from gridscore.grid import Records
from gridscore.grid.journal import Journal
from gridscore.grid.management import MapConfig, MemberConfig, Protection
from gridscore.group.members import WORKERS_MAP
from gridscore.job import parse_job
from gridscore.scoring.preparation import _control, _lacks, prepare, warnings
from gridscore.scoring.window_messages import MOST_ASKING
from gridscore.testing import StubCluster


@pytest.mark.parametrize(
    ("rule", "members", "protection"),
    [
        (Protection(enabled=True, minimum_members=2, protect_on="READ_WRITE"), 3, "majority"),
        (Protection(enabled=False, minimum_members=2, protect_on="READ_WRITE"), 3, None),
        (Protection(enabled=True, minimum_members=2, protect_on="READ_WRITE"), 4, None),  # both halves would go on
        (Protection(enabled=True, minimum_members=5, protect_on="READ_WRITE"), 3, None),  # nothing could be written
        (Protection(enabled=True, minimum_members=2, protect_on="WRITE"), 3, None),
    ],
)
def test_control_maps_get_a_protection_that_the_members_know_and_that_is_a_majority(rule, members, protection):
    addition = _control(MemberConfig(protections={"majority": rule}), "gridscore.*", members)
    assert (addition.config.pattern, addition.config.protection) == ("gridscore.*", protection)


@pytest.mark.parametrize(
    ("has", "why"),
    [
        (MapConfig(), "no journal (`default`)"),
        (MapConfig(journal_capacity=10_000), "a journal of 10,000 (`default`)"),
        (MapConfig(journal_capacity=10**6, backups=0), "no synchronous backup (`default`)"),
        (MapConfig(journal_capacity=10**6, time_to_live=60), "entries expire (`default`)"),
        (MapConfig(journal_capacity=10**6), ""),
        (MapConfig("events.*", followers=("map-store",)), ""),  # ours would drop it
    ],
)
def test_what_is_fit_stays_and_what_its_owner_stores_elsewhere_too(has, why):
    assert _lacks(has, 20_000) == why


async def test_the_configuration_is_asked_for_once_for_all_partitions_of_a_map():
    async with StubCluster(partitions=32) as cluster:
        grid = await cluster.connect("reader")
        journal = Journal(grid, "events.many")
        await asyncio.gather(*(journal.bounds(partition) for partition in range(32)))
        assert cluster.requests["0x200500"] == len(grid.members)


async def test_a_job_that_starts_asks_for_the_configuration_once_before_it_reads():
    async with StubCluster(partitions=8) as cluster:
        grid = await cluster.connect("worker")
        job = parse_job(
            "job: j\nevents: events.j\nschema: {a: float}\nfeatures: {a: a}\nmodel: {name: m}\nresults: r.j\n", "it"
        )
        await prepare(grid, job)
        await Journal(grid, "events.j").bounds(0)
        assert cluster.requests["0x200500"] == len(grid.members)


async def test_who_submits_windows_that_the_workers_are_too_many_for_is_told():
    job = parse_job(
        "job: j\nevents: events.j\nmodel: m\nresults: r.j\norder_by: at\nwindows: {card: card, shop: shop}\n"
        "schema: {card: string, shop: string, at: {type: timestamp, unit: s}}\n"
        "features: {a: 'count(card, \"1h\")', b: 'count(shop, \"1h\")'}\n",
        "it",
    )
    async with StubCluster(partitions=3) as cluster:
        grid = await cluster.connect("user")
        now, workers = int(time.time() * 1000), Records(grid, WORKERS_MAP)
        most = MOST_ASKING // 2
        for number in range(most + 1):
            # One has ended long ago; an hour is longer than any test takes.
            seen_at = 1 if number == 0 else now + 3_600_000
            await workers.create(f"w{number}", {"id": f"w{number}", "seen_at": seen_at, "jobs": {}})
        assert await warnings(grid, job) == []
        await workers.create("more", {"id": "more", "seen_at": now + 3_600_000, "jobs": {}})
        (told,) = await warnings(grid, job)
        assert told.startswith(
            f"Its {most + 1} workers ask for 2 windows, together more than {MOST_ASKING}: if one is killed"
        )
