"""Dead letters of jobs, on real members: what a restart makes of those that there are, and what has no room."""

import asyncio

import scoring

from gridscore.dead_letters import writer as letter_writer
from gridscore.dead_letters.letters import walk_letters
from gridscore.group import rescan
from gridscore.job import Jobs
from gridscore.operations.health import Look, examine
from gridscore.operations.replay import letter_ids, replay
from gridscore.operations.status import Observer, acknowledge
from gridscore.scoring import superseded
from gridscore.scoring.audit import audit


def file(name, **changes):
    text = scoring.JOB.format(name=name, mode="copy")
    for before, after in changes.items():
        text = text.replace(f"{before}: float\n", f"{before}: {after}\n")
    return text


async def letters(client, name):
    return {found: each async for found, each in walk_letters(client.grid, name)}


async def status_of(client, name, condition):
    lookout = Observer(client.grid, name)

    async def look():
        overview = await lookout.look()
        status = overview.jobs[0]
        return (overview, status) if status.lag == 0 and condition(status) else None

    return await scoring.until(look, 60.0)


def codes(found):
    overview, status = found
    return {finding.code for finding in examine([Look(overview.at, status)])}


async def test_a_restart_leaves_what_fails_again_as_it_is_and_removes_what_is_scored_now(cluster, unique, monkeypatch):
    monkeypatch.setattr(superseded, "ROUND_SECONDS", 0.5)
    name = f"job-{unique}"
    async with scoring.scoring(cluster, name) as (client, worker):
        bad = {key: {**event, "amount": None} for key, event in scoring.events(60).items()}
        await client.put_events(f"events.{name}", bad)
        await client.put_events(f"events.{name}", scoring.events(60, 60))
        await status_of(client, name, lambda s: s.totals["dead_letters"] == 60)
        before = await letters(client, name)
        # One has a newer event: it is stale, and told so, and stays for a while.
        await client.put_events(f"events.{name}", {"e7": scoring.events(8)["e7"]})
        await scoring.all_results(client, name, 61)

        async def restart():
            before = worker.runners[name]
            record = await Jobs(client.grid).restart(name, "oldest")
            await scoring.until(lambda: worker.runners.get(name, before) is not before, 60.0)
            await status_of(client, name, lambda s: s.workers)
            return record

        record = await restart()
        await asyncio.sleep(1.0)  # rounds of what must not be removed
        after = await letters(client, name)
        assert after == before
        over = await superseded.superseded(client.grid, record.job, after.values())
        assert {(after[each].key, by) for each, by in over.items()} == {("e7", superseded.By.NEWER)}

        await client.submit(scoring.parse_job(file(name, amount="float?"), "test"), update=True)
        await restart()
        await scoring.all_results(client, name, 120)

        async def left():
            there = {each.key for each in (await letters(client, name)).values()}
            return there if len(there) < 2 else None

        assert await scoring.until(left, 60.0) <= {"e7"}


async def test_what_has_no_room_is_counted_said_and_found_again(cluster, unique):
    name = f"job-{unique}"
    text = file(name) + "max_dead_letters: 5\n"
    async with scoring.scoring(cluster, name, file=text) as (client, _):
        bad = {key: {**event, "amount": None} for key, event in scoring.events(12).items()}
        await client.put_events(f"events.{name}", {**bad, **scoring.events(10, 12)})
        found = await status_of(client, name, lambda s: s.totals["unkept"] == 7)
        assert found[1].totals["dead_letters"] == 5
        assert found[1].to_json()["unkept"] == 7
        assert "dead_letters_full" in codes(found)
        assert len(await scoring.all_results(client, name, 10)) == 10  # the neighbours

        # A repair that cannot help ends: those that fail again are waited for no longer, and counted once more.
        async with asyncio.timeout(120):
            again = await audit(client.grid, await Jobs(client.grid).get(name))
        assert (again.missing, again.dead_letters) == (7, 5)
        assert not await rescan.pending(client.grid, name)

        await acknowledge(client.grid, found[1])
        corrected = text.replace("amount: float\n", "amount: float?\n")
        await client.submit(scoring.parse_job(corrected, "test"), update=True)
        ids = await letter_ids(client.grid, name)
        assert [each.refusal async for each in replay(client.grid, name, ids)] == [""] * 5
        async with asyncio.timeout(120):
            again = await audit(client.grid, await Jobs(client.grid).get(name), repair=True)
        assert again.left == 0
        assert len(await scoring.all_results(client, name, 22)) == 22
        found = await status_of(client, name, lambda s: s.totals["dead_letters"] == 0)
        await acknowledge(client.grid, found[1], ["unkept"])
        found = await status_of(client, name, lambda s: s.totals["dead_letters"] == 0)
        assert "dead_letters_full" not in codes(found)


async def test_an_event_that_comes_again_needs_no_room_for_its_dead_letter(cluster, unique, monkeypatch):
    monkeypatch.setattr(letter_writer, "COUNT_SECONDS", 60.0)
    name = f"job-{unique}"
    async with scoring.scoring(cluster, name, file=file(name) + "max_dead_letters: 5\n") as (client, _):
        bad = {key: {**event, "amount": None} for key, event in scoring.events(8).items()}
        await client.put_events(f"events.{name}", bad)
        await status_of(client, name, lambda s: s.totals["unkept"] == 3)
        before = {each.key: each.sequence for each in (await letters(client, name)).values()}
        await client.put_events(f"events.{name}", {key: bad[key] for key in before})
        await client.put_events(f"events.{name}", scoring.events(10, 12))
        await scoring.all_results(client, name, 10)
        found = await status_of(client, name, lambda s: s.totals["events"] == 10)
        assert (found[1].totals["unkept"], found[1].totals["dead_letters"]) == (3, 5)
        after = {each.key: each.sequence for each in (await letters(client, name)).values()}
        assert all(after[key] > sequence for key, sequence in before.items())  # it is that of the newest
