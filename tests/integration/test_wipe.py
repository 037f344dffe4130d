"""What a job has left can be removed: all that is asked for and nothing else, never while anybody uses it."""

import asyncio
import json
import os
import subprocess
import sys
from contextlib import asynccontextmanager

import pytest
import scoring
from scoring import command

from gridscore.dead_letters.letters import map_of
from gridscore.errors import JobError, ModelError
from gridscore.grid import transport
from gridscore.group.lease_records import read_records
from gridscore.group.rescan import RESCANS_MAP, request
from gridscore.operations.status import acknowledge, job_status


@asynccontextmanager
async def ended(cluster, name):
    """A job that has scored, has a dead letter, and was cancelled."""
    async with scoring.scoring(cluster, name) as (client, _):
        await client.put_events(f"events.{name}", scoring.events(50) | {"bad": {"amount": "x"}})
        await scoring.all_results(client, name, 50)

        async def letter():
            return await transport.map_size(client.grid.client, map_of(name))

        await scoring.until(letter)
        record = await client.jobs.get(name)
        await acknowledge(client.grid, await job_status(client.grid, record))
        with pytest.raises(JobError, match=rf"is RUNNING\.\nEnd it first: `gridscore cancel {name}`"):
            await client.wipe(name, results=True)
        await client.cancel(name)

        async def free():
            return not (await job_status(client.grid, record)).workers

        await scoring.until(free)
        yield client


async def sizes(client, name):
    maps = (f"results.{name}", f"events.{name}", map_of(name))
    return [await transport.map_size(client.grid.client, each) for each in maps]


def answered(cluster, answer, *words):
    """Exit code of a command at a terminal, where its question is answered, and what it says there."""
    ours, its = os.openpty()
    where = ["--members", cluster.addresses[0], "--cluster-name", cluster.cluster_name]
    with os.fdopen(ours, "r+b", buffering=0) as terminal:
        terminal.write(f"{answer}\n".encode())
        process = subprocess.Popen(
            [sys.executable, "-m", "gridscore.cli", *words, *where],
            stdin=its,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        os.close(its)
        said, _ = process.communicate(timeout=60)
    return process.returncode, said


async def test_what_a_job_has_left_is_shown_and_removed(cluster, unique):
    name = f"job-{unique}"
    async with ended(cluster, name) as client:
        epochs = {partition: lease.epoch for partition, lease in (await read_records(client.grid, name)).items()}
        shown = await command(cluster, "wipe", name, "--results", "--dead-letters", "--dry-run", "--json")
        what = json.loads(shown.stdout)
        assert [(each["what"], each["entries"]) for each in what["what"][:2]] == [("results", 50), ("dead letters", 1)]
        assert what["removed"] is False
        for words in ([], ["--json"]):
            asked = await command(cluster, "wipe", name, "--results", *words)
            assert "This needs confirmation, and there is no terminal.\nGive --yes, or --dry-run" in str(
                asked.exception
            )
        code, said = await asyncio.to_thread(answered, cluster, "n", "wipe", name, "--results")
        assert (code, "Remove all of this for good? [y/N]" in said, f"results.{name}" in said) == (1, True, True), said
        assert await sizes(client, name) == [50, 51, 1]

        done = await command(cluster, "wipe", name, "--results", "--dead-letters", "--yes")
        assert (done.exit_code, "50 entries" in done.stdout) == (0, True), done.output
        assert await sizes(client, name) == [0, 51, 0]
        with pytest.raises(JobError, match="There is no job"):
            await client.jobs.get(name)
        assert (await client.models.resolve(name)).version == 1

        # It begins anew, under later epochs: nothing of before is taken for something of now.
        await client.submit(scoring.job(name))
        await scoring.all_results(client, name, 50)
        leases = await read_records(client.grid, name)
        assert all(leases[partition].epoch > epoch for partition, epoch in epochs.items())
        await client.cancel(name)


async def test_events_and_model_go_with_everything_that_the_cluster_knew(cluster, unique):
    name = f"job-{unique}"
    async with ended(cluster, name) as client:
        missing = await command(cluster, "wipe", f"{name}-x", "--yes")
        assert f"There is no job `{name}-x`" in str(missing.exception)
        await request(client.grid, name, [3], "test")
        found = await client.wipe(name, results=True, events=True, model=True, dead_letters=True)

        assert [(each.what, each.entries) for each in found[:4]] == [
            ("results", 50),
            ("events", 51),
            ("dead letters", 1),
            ("model", 1),
        ]
        assert await sizes(client, name) == [0, 0, 0]
        for control in ("gridscore.jobs", "gridscore.acknowledged", "gridscore.audits", RESCANS_MAP):
            keys = await (await client.grid.map(control)).key_set()
            assert not [key for key in keys if name in str(key)], control
        chunks = await (await client.grid.map("gridscore.model-chunks")).key_set()
        assert not [key for key in chunks if key.startswith(f"{name}/")]
        with pytest.raises(ModelError, match="There is no model"):
            await client.models.resolve(name)

        # What was in the journal is gone, too; and a number is never given twice.
        assert (await client.push_model(scoring.booster(), name, alias="champion")).version == 2
        await client.put_events(f"events.{name}", scoring.events(5))
        await client.submit(scoring.job(name))
        assert len(await scoring.all_results(client, name, 5)) == 5
        await client.cancel(name)


async def test_what_others_use_stays(cluster, unique):
    name, other = f"job-{unique}", f"other-{unique}"
    async with ended(cluster, name) as client:
        spec = scoring.job(name).to_json() | {"job": other, "results": f"results.{other}"}
        await client.submit(type(scoring.job(name)).from_json(spec))
        for what in ("events", "model"):
            with pytest.raises(JobError, match=f"The job `{other}` (uses `events|scores with the model)"):
                await client.wipe(name, **{what: True})
            refused = await command(cluster, "wipe", name, f"--{what}", "--yes")
            assert f"The job `{other}`" in str(refused.exception)
        assert await sizes(client, name) == [50, 51, 1]
        await client.cancel(other)
        await client.wipe(other)
        await client.wipe(name, events=True, results=True, dead_letters=True, model=True)
