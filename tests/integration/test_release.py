"""A job's features and its model go live in one step, and back: no event is scored by the one without the other."""

import asyncio
import json

import numpy as np
import pytest
import scoring

from gridscore.client import connect
from gridscore.errors import GridError, JobError, ModelMismatchError, UsageError
from gridscore.grid import transport
from gridscore.job import parse_job
from gridscore.models import Registry
from gridscore.scoring.live_model import LiveModel
from gridscore.scoring.stats import JobStats

NAMES = ("amount", "log_amount", "age", "share", "home")


def squared(name):
    """The next job: another feature of the same name, and one more."""
    text = scoring.JOB.format(name=name, mode="copy").replace("  amount: amount\n", "  amount: amount ** 2\n")
    return parse_job(text.replace("  age: customer.age\n", "  age: customer.age\n  flat: amount * 0\n"), "test")


def expected(model, events, *, after):
    rows = scoring.expected_rows(events)
    if after:
        rows[:, 0] = rows[:, 0].astype(np.float64) ** 2
        rows = np.insert(rows, 3, 0, axis=1)
    return scoring.predict(model, rows)


async def results_by_revision(client, name, model, after, events):
    """Revisions and versions that made results, all of which are right."""
    found = await scoring.all_results(client, name, len(events))
    by = {}
    for key, result in found.items():
        by.setdefault((result["revision"], result["version"]), []).append(key)
    for (_, version), keys in by.items():
        booster = after if version == 2 else model
        scores = expected(booster, [events[key] for key in keys], after=version == 2)
        got = np.array([found[key]["score"] for key in keys], np.float32)
        assert got.tobytes() == scores.astype(np.float32).tobytes()
    return set(by)


async def champion(client, name):
    return (await client.models.resolve(name)).version


async def test_job_and_model_go_live_together_under_load_and_back(cluster, unique):
    name, model = f"job-{unique}", scoring.booster()
    after = scoring.booster(("amount", "log_amount", "age", "flat", "share", "home"), seed=1)
    async with scoring.scoring(cluster, name, model=model) as (client, _):
        events = scoring.events(500)

        async def load():
            while True:
                for begin in range(0, 500, 50):
                    await client.put_events(f"events.{name}", scoring.events(50, begin))
                    await asyncio.sleep(0.02)

        async def scored_by(revision, version):
            found = await results_by_revision(client, name, model, after, events)
            assert found <= {(1, 1), (2, 2), (3, 1)}
            return (revision, version) in found

        loading = asyncio.create_task(load())
        try:
            await scoring.until(lambda: scored_by(1, 1))
            record = await client.submit(squared(name), update=True, model=after)
            assert (record.revision, record.release.version, await champion(client, name)) == (2, 2, 2)
            await scoring.until(lambda: scored_by(2, 2))
            record = await client.rollback(name)
            assert (record.revision, record.release.version, await champion(client, name)) == (3, 1, 1)
            await scoring.until(lambda: scored_by(3, 1))
        finally:
            loading.cancel()
        assert record.job == scoring.job(name)
        (status,) = [job for job in await client.jobs.all() if job.name == name]
        assert status.previous.version == 2


async def test_a_release_that_was_killed_after_its_commit_is_live_and_goes_on(cluster, unique, monkeypatch):
    name, model = f"job-{unique}", scoring.booster()
    after = scoring.booster(("amount", "log_amount", "age", "flat", "share", "home"), seed=1)
    events = scoring.events(200)

    async def killed(*_arguments, **_options):
        raise GridError("killed")

    async with connect(members=cluster.addresses, cluster_name=cluster.cluster_name) as client:
        await client.put_events(f"lookups.{name}", scoring.customers())
        await client.push_model(model, name, alias="champion")
        await client.submit(scoring.job(name))
        with monkeypatch.context() as patched:
            patched.setattr(Registry, "complete", killed)
            with pytest.raises(GridError, match="killed"):
                await client.submit(squared(name), update=True, model=after)
        assert await champion(client, name) == 1
        # Submitted once more without the model, it is the same release.
        again = await client.submit(squared(name))
        assert (again.revision, again.release.version) == (2, 2)

        async with client.worker([name]):
            await client.put_events(f"events.{name}", events)
            assert await results_by_revision(client, name, model, after, events) == {(2, 2)}

            async def follows():
                return await champion(client, name) == 2

            await scoring.until(follows)
        again = await client.submit(squared(name), update=True, model=after)
        assert (again.revision, [v.version for v in (await client.models.get(name)).versions]) == (2, [2, 1])


async def test_a_worker_of_the_revision_before_does_not_take_the_model_of_the_next(cluster, unique):
    name = f"job-{unique}"
    text = scoring.JOB.format(name=name, mode="copy").replace("  amount: amount\n", "  amount: amount ** 2\n")
    async with connect(members=cluster.addresses, cluster_name=cluster.cluster_name) as client:
        await client.put_events(f"lookups.{name}", scoring.customers())
        await client.push_model(scoring.booster(), name, alias="champion")
        record = await client.submit(scoring.job(name))
        tables = {"customer": pipeline_table(record.job)}
        old = LiveModel(client.grid, record, tables, JobStats())
        await old.start()
        record = await client.submit(parse_job(text, "test"), update=True, model=scoring.booster(seed=3))
        assert await champion(client, name) == 2

        await old._exchange()
        assert old.active.model.version.version == 1
        new = LiveModel(client.grid, record, tables, JobStats())
        await new.start()
        assert new.active.model.version.version == 2
        await client.models.promote(name, 1)
        await new._exchange()
        assert new.active.model.version.version == 1, "the alias has moved on, and says it all"
        await old.close()
        await new.close()


def pipeline_table(job):
    from gridscore.features import LookupTable

    return LookupTable(job.lookups["customer"])


async def test_what_cannot_go_live_is_refused_before_anything_is_pushed(cluster, unique):
    name = f"job-{unique}"
    async with connect(members=cluster.addresses, cluster_name=cluster.cluster_name) as client:
        await client.put_events(f"lookups.{name}", scoring.customers())
        first = await client.submit(scoring.job(name), model=scoring.booster())
        assert (first.revision, await champion(client, name)) == (1, 1)
        with pytest.raises(JobError, match="Replace it with --update"):
            await client.submit(squared(name), model=scoring.booster(seed=2))
        with pytest.raises(ModelMismatchError, match="only in the job: flat"):
            await client.submit(squared(name), update=True, model=scoring.booster(seed=2))
        fixed = json.loads(json.dumps(scoring.job(name).to_json())) | {"model": {"name": name, "version": 1}}
        with pytest.raises(UsageError, match="always scores with version 1 of its model"):
            await client.submit(type(first.job).from_json(fixed), update=True, model=scoring.booster(seed=2))
        with pytest.raises(JobError, match="nothing to go back to"):
            await client.rollback(name)
        assert [v.version for v in (await client.models.get(name)).versions] == [1]
        assert await transport.map_size(client.grid.client, f"results.{name}") == 0


async def test_commands_say_what_went_live_and_how_to_undo_it(cluster, unique, tmp_path):
    name = f"job-{unique}"
    text = scoring.JOB.format(name=name, mode="copy")
    file, model = tmp_path / "job.yaml", tmp_path / "model.ubj"
    file.write_text(text.replace("  amount: amount\n", "  amount: amount ** 2\n"))
    scoring.booster(seed=2).save_model(model)
    submit = ("submit", str(file), "--update", "--model", str(model))

    async def said(*words):
        done = await scoring.command(cluster, *words)
        assert done.exit_code == 0, done.exception or done.output
        return done.stdout

    async with connect(members=cluster.addresses, cluster_name=cluster.cluster_name) as client:
        await client.put_events(f"lookups.{name}", scoring.customers())
        await client.submit(scoring.job(name), model=scoring.booster())
        assert await said(*submit) == (
            f"Job {name} submitted: WAITING, revision 2.\n"
            f"Workers pick it up with version 2 of the model {name} within a second: `gridscore jobs`.\n"
            f"Undo it: `gridscore rollback {name}`.\n"
        )
        assert await said(*submit) == (
            f"Job {name} is submitted already, unchanged: WAITING, revision 2. Version 2 of the model {name} is live.\n"
        )
        assert await said("rollback", name) == (
            f"Job {name} is as it was before its last update: WAITING, revision 3.\n"
            f"It scores with version 1 of the model {name} within a second.\n"
        )
        await client.jobs.suspend(name)
        back = json.loads(await said("rollback", name, "--json"))
        moved = {"name": name, "state": "SUSPENDED", "revision": 4, "changed": True}
        assert back == {**moved, "version": 2, "model": name}
        assert f"\nIt is suspended: `gridscore resume {name}` starts it.\n" in await said("rollback", name)
        await client.cancel(name)
        refused = await scoring.command(cluster, "rollback", name)
        assert "is CANCELLED" in str(refused.exception)
