"""Dead letters brought back: under the very key, never over a newer event, and gone only when the event is there."""

import base64

import msgspec
import pytest
import scoring
from hazelcast.core import HazelcastJsonValue

from gridscore.dead_letters.letters import list_letters, map_of
from gridscore.errors import JobError
from gridscore.grid import transport, wire
from gridscore.grid.writer import MapWriter, partition_of
from gridscore.operations.replay import letter_ids, replay

GOOD = {"amount": 1.5, "user": "u1", "country": "DE"}


async def replayed(client, name, ids=None, **options):
    ids = await letter_ids(client.grid, name) if ids is None else ids
    return {each.key: each.refusal async for each in replay(client.grid, name, ids, **options)}


async def letters(client, name, count):
    async def found():
        total, some = await list_letters(client.grid, name, 1000)
        return [each.dead for each in some] if total == count else None

    return await scoring.until(found) if count else await scoring.until(lambda: is_empty(client, name))


async def is_empty(client, name):
    return not await letter_ids(client.grid, name)


async def raw_entry(client, map_name, key):
    """The serialized value under a serialized key."""
    partition = partition_of(key, client.grid.partition_count)
    found = await transport.invoke(
        client.grid.client, wire.encode_get_all(map_name, [key]), partition, wire.decode_get_all
    )
    return found[0][1] if found else None


async def test_events_are_scored_once_their_cause_is_fixed(cluster, unique):
    name = f"job-{unique}"
    async with scoring.scoring(cluster, name) as (client, _):
        bad = {key: {**event, "amount": None} for key, event in scoring.events(80).items()}
        await client.put_events(f"events.{name}", bad)
        await letters(client, name, 80)
        again = await replayed(client, name)
        assert set(again.values()) == {""}
        await letters(client, name, 80)  # nothing was fixed: each has failed again

        corrected = scoring.JOB.format(name=name, mode="copy").replace("amount: float", "amount: float?")
        await client.submit(scoring.parse_job(corrected, "test"), update=True)
        assert set((await replayed(client, name)).values()) == {""}
        results = await scoring.all_results(client, name, 80)
        assert results.keys() == bad.keys()
        await letters(client, name, 0)


async def test_the_key_and_the_value_are_the_very_bytes(cluster, unique):
    name = f"job-{unique}"
    async with scoring.scoring(cluster, name) as (client, _):
        proxy = await client.grid.map(f"events.{name}")
        await proxy.put(12, '{"amount": "ten"}')  # an Integer key, and a String that is JSON
        (dead,) = await letters(client, name, 1)
        key = base64.b64decode(dead.key_data)
        before = await raw_entry(client, dead.map, key)
        assert await replayed(client, name, [dead.id]) == {"12": ""}
        assert await raw_entry(client, dead.map, key) == before

        async def renewed():
            some = await letters(client, name, 1)
            return some if some[0].sequence > dead.sequence else None

        (second,) = await scoring.until(renewed)
        assert (second.id, second.key_data, second.raw) == (dead.id, dead.key_data, dead.raw)


async def test_an_event_that_is_gone_is_put_again(cluster, unique):
    name = f"job-{unique}"
    async with scoring.scoring(cluster, name) as (client, _):
        proxy = await client.grid.map(f"events.{name}")
        await proxy.put("e", HazelcastJsonValue('{"amount": "ten"}'))
        await letters(client, name, 1)
        await proxy.delete("e")
        assert await replayed(client, name) == {"e": ""}
        assert (await proxy.get("e")).to_string() == '{"amount": "ten"}'


async def test_a_newer_event_is_not_overwritten(cluster, unique):
    name = f"job-{unique}"
    async with scoring.scoring(cluster, name) as (client, _):
        proxy = await client.grid.map(f"events.{name}")
        await proxy.put("e", HazelcastJsonValue('{"amount": "ten"}'))
        (dead,) = await letters(client, name, 1)
        await client.put_events(f"events.{name}", {"e": GOOD})
        await scoring.all_results(client, name, 1)
        again = await replayed(client, name)
        assert "a newer event has its key" in again["e"]
        assert (await proxy.get("e")).loads() == GOOD
        assert await letter_ids(client.grid, name) == [dead.id]
        assert await replayed(client, name, force=True) == {"e": ""}
        assert (await proxy.get("e")).to_string() == '{"amount": "ten"}'


async def test_what_cannot_be_put_whole_is_refused(cluster, unique):
    name = f"job-{unique}"
    async with scoring.scoring(cluster, name) as (client, _):
        proxy = await client.grid.map(f"events.{name}")
        await proxy.put("number", 42)
        await proxy.put("e", HazelcastJsonValue('{"amount": "ten"}'))
        found = {dead.key: dead for dead in await letters(client, name, 2)}
        cut = msgspec.structs.replace(found["e"], key="cut", size=5_000_000, sequence=10**9)
        no_key = msgspec.structs.replace(found["e"], key="no key", key_data="", sequence=10**9 + 1)
        entries = [(each.id, msgspec.json.encode(each)) for each in (cut, no_key)]
        await MapWriter(client.grid, map_of(name)).put([*entries, ("7-foreign", b'{"a": 1}')])
        again = await replayed(client, name)
        assert again["e"] == ""
        assert "only 17 of the event's 5,000,000 bytes were kept" in again["cut"]
        assert "neither JSON nor a string" in again["number"]
        assert "is not a dead letter" in again[""]  # neither the foreign one nor the one without a key
        kept = {cut.id, no_key.id, found["number"].id, "7-foreign"}
        await scoring.until(lambda: has_letters(client, name, kept))


async def has_letters(client, name, wanted):
    return wanted <= set(await letter_ids(client.grid, name))


async def test_nobody_scores_for_a_job_that_has_ended(cluster, unique):
    name = f"job-{unique}"
    async with scoring.scoring(cluster, name) as (client, _):
        await client.cancel(name)
        with pytest.raises(JobError, match="nobody would score"):
            await replayed(client, name, ["1-2-3"])
        with pytest.raises(JobError, match="There is no job"):
            await replayed(client, f"no-{unique}", ["1-2-3"])
