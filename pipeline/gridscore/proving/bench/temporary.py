"""Maps of a run in a cluster of others: under which names they do no harm, and how nothing of them stays."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

from hazelcast.errors import HazelcastError

from gridscore.dead_letters import letters as dead_letters
from gridscore.errors import GridError, JournalMissingError
from gridscore.grid import transport, wire
from gridscore.grid.capacity import Capacity, journal_capacity
from gridscore.grid.entries import values_of
from gridscore.grid.journal import journal_missing
from gridscore.grid.management import first_config
from gridscore.grid.records import Records
from gridscore.group.lease_records import LEASES_MAP, lease_key
from gridscore.models.drift import DRIFT_MAP

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from gridscore.grid import Grid
    from gridscore.grid.management import MemberConfig
    from gridscore.job import Job

REMOVE_SECONDS = 10.0  # how long removing what was made may take: do not wait for a cluster that is gone
_ATTEMPTS = 5


class Place(NamedTuple):
    """Where a run is made: a name for its job, its maps, and the capacity of its event map's journal."""

    job: str
    events: str
    results: str
    capacity: Capacity


async def place(grid: Grid, job: Job) -> Place:
    """Names for the maps of a run, configured as those of the job if its names leave room for others like them.

    That is, `orders.bench-…` for the event map `orders.card`; else `events.bench-…`.

    Raises JournalMissingError if the job's event map has no journal, or none of these would have one; GridError:
    whatever is put into any of these would also go to a store, another cluster or a listener; HazelcastError if the
    cluster did not answer.
    """
    if await journal_capacity(grid, job.events) is None:
        raise journal_missing(job.events)
    config, name = await first_config(grid), f"bench-{secrets.token_hex(4)}"
    for events in _names(job.events, "events", name):
        capacity = await journal_capacity(grid, events)
        if capacity is not None and not _followers(config, events):
            break
    else:
        raise _no_place(config, _names(job.events, "events", name))
    for results in _names(job.results, "results", name):
        if not _followers(config, results):
            return Place(name, events, results, capacity)
    raise _no_place(config, _names(job.results, "results", name))


def _names(like: str, otherwise: str, name: str) -> list[str]:
    family = like.rpartition(".")[0]
    return [f"{each}.{name}" for each in dict.fromkeys((family, otherwise)) if each]


def _followers(config: MemberConfig | None, map_name: str) -> tuple[str, ...]:
    return () if config is None else config.map(map_name).followers


def _no_place(config: MemberConfig | None, names: list[str]) -> GridError:
    patterns = " nor ".join(f"`{name.rpartition('-')[0]}-…`" for name in names)
    followed = sorted({each for name in names for each in _followers(config, name)})
    if followed:
        return GridError(
            f"What is put into {patterns} would go on from there ({', '.join(followed)}), so nothing is put.",
            "Configure `events.*` and `results.*` without that in the members' hazelcast.yaml, as ours does.",
        )
    return JournalMissingError(
        f"The events to measure with need a map of their own, but neither {patterns} would have an event journal."
        if len(names) > 1
        else f"The events to measure with need a map of their own, but {patterns} would have no event journal.",
        "Configure `events.*` with one in the members' hazelcast.yaml, as ours does, and restart them; "
        "`gridscore doctor` checks it.",
    )


@asynccontextmanager
async def removed_afterwards(grid: Grid, job: Job, say: Callable[[str], None]) -> AsyncIterator[None]:
    """Whatever happens meanwhile: in the end, the maps of a run's job and its control records are removed.

    `grid`: the connection; `job`: the job of the run, which nobody else knows of; `say`: told what is left, if the run
    itself has failed. Raises GridError if not everything could be removed; the message says what is left.
    """
    try:
        yield
    except BaseException:
        if left := await _remove(grid, job):
            say(str(_left_behind(left)))
        raise
    if left := await _remove(grid, job):
        raise _left_behind(left)


def _left_behind(left: list[str]) -> GridError:
    return GridError(
        f"The cluster does not answer, and this may be left in it: {', '.join(left)}.",
        "Destroy these maps with any Hazelcast client; lease records are small and harm nobody.",
    )


async def _remove(grid: Grid, job: Job) -> list[str]:
    """Remove the maps and the lease records of a job; returns what is left."""
    records = f"lease records of {job.name}"
    left = [job.events, job.results, dead_letters.map_of(job.name), records]
    try:
        async with asyncio.timeout(REMOVE_SECONDS):
            for name in left[:-1]:
                # A write that was under way when the run ended may come after the map has gone, and bring it back.
                for _ in range(_ATTEMPTS):
                    if not await grid.has_map(name):
                        left.remove(name)
                        break
                    await grid.destroy(name)
            if job.drift is not None:
                await Records(grid, DRIFT_MAP).delete(job.name)
            await remove_leases(grid, job.name)
            left.remove(records)
    except (HazelcastError, GridError, TimeoutError):
        return left
    return left


async def remove_leases(grid: Grid, job: str) -> None:
    """Remove the lease records of a job that is gone."""
    await asyncio.gather(*(_remove_lease(grid, job, partition) for partition in range(grid.partition_count)))


async def _remove_lease(grid: Grid, job: str, partition: int) -> None:
    key = lease_key(job, partition, grid.partition_count)
    for value in (await values_of(grid, LEASES_MAP, partition, [key])).values():
        message = wire.encode_remove_if_same(LEASES_MAP, key, value)
        await transport.invoke(grid.client, message, partition, wire.decode_remove_if_same, retry_seconds=0)
