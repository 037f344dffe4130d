"""A model or lookup that cannot be loaded: who has it goes on, who has not takes nothing, and no job fails."""

import asyncio
import logging
import re

import pytest
from test_bad_records import JOB, submitted
from test_stub_grid import booster

from gridscore.errors import ModelMismatchError
from gridscore.grid.records import Records
from gridscore.job import JobState, parse_job
from gridscore.models.registry import MODELS_MAP
from gridscore.operations.flow import FlowObserver, History
from gridscore.operations.status import job_status
from gridscore.testing import StubCluster


@pytest.fixture
async def stub():
    async with StubCluster(partitions=5) as made:
        yield made


async def findings(grid):
    flow, history = await FlowObserver(grid, "payments").look(), History()
    history.add(flow)
    return flow.overview.jobs[0], {each.code: each for _, found in history.findings() for each in found}


async def found(grid, text, code="model"):
    """The finding, once it says that."""
    async with asyncio.timeout(20):
        while True:
            status, said = await findings(grid)
            if code in said and text in said[code].text:
                return status, said[code]
            await asyncio.sleep(0.05)


async def test_a_new_worker_does_not_stop_a_job_whose_model_only_others_have(stub):
    client = await submitted(stub)
    async with stub.worker("first"):
        await client.put_events("events.payments", {f"a{i}": {"amount": i} for i in range(20)})
        await stub.results("results.payments", 20)
        await Records(client.grid, MODELS_MAP).delete("payments")
        _, said = await found(client.grid, "v1 stays in use: There is no model `payments`.")
        assert said.level == "problem"
        async with stub.worker("second") as second:
            await found(client.grid, "1 worker cannot load the model and scores nothing; others use v1")
            await client.put_events("events.payments", {f"b{i}": {"amount": i} for i in range(20)})
            await stub.results("results.payments", 40)
            assert (await client.jobs.get("payments")).state is JobState.RUNNING
            (runner,) = second.runners.values()
            assert not runner.has_joined
            assert not runner.group.held


async def test_a_job_whose_model_nobody_can_load_says_so_and_begins_when_it_is_there(stub, caplog):
    caplog.set_level(logging.INFO, "gridscore.scoring")
    client = await submitted(stub)
    records = Records(client.grid, MODELS_MAP)
    record = await records.get("payments")
    await records.delete("payments")
    async with stub.worker("only"):
        await client.put_events("events.payments", {"a": {"amount": 1}})
        await found(client.grid, "No worker can load the model, so no event is scored: There is no model `payments`.")
        assert (await client.jobs.get("payments")).state is JobState.STARTING
        await records.create("payments", record.value)
        await stub.results("results.payments", 1)
    assert "payments: the model cannot be loaded, so no partition is taken; it will be tried again" in caplog.text
    assert "payments: starting revision 1" in caplog.text
    assert "payments: revision 1 scores with version 1 of `payments`" in caplog.text


async def test_a_job_is_not_shown_as_running_while_nobody_has_its_model(stub):
    client = await submitted(stub)
    async with stub.worker("first"):
        await client.put_events("events.payments", {"a": {"amount": 1}})
        await stub.results("results.payments", 1)
    await Records(client.grid, MODELS_MAP).delete("payments")
    async with stub.worker("second"):
        status, _ = await found(client.grid, "No worker can load the model, so no event is scored")
        assert (await client.jobs.get("payments")).state is JobState.RUNNING
        assert status.state is JobState.STARTING
        _, said = await findings(client.grid)
        assert [code for code, each in said.items() if each.level == "problem"] == ["model"]


async def test_a_new_worker_does_not_stop_a_job_whose_lookup_map_is_gone(stub, caplog):
    client = await stub.client()
    lookups = (
        "lookups:\n"
        "  shop: {map: lookups.shops, key: user, fields: {size: float?}}\n"
        "  user: {map: lookups.users, key: user, fields: {age: float?}}\n"
    )
    schema = "schema: {amount: float, user: string?}\n"
    text = re.sub(r"schema: .*\n", schema + lookups, JOB)
    for name in ("lookups.users", "lookups.shops"):
        await client.put_events(name, {"u1": {"age": 30.0}})
    await client.push_model(booster(), "payments", alias="champion")
    await client.submit(parse_job(text, "test"))
    async with stub.worker("first"):
        await client.put_events("events.payments", {f"a{i}": {"amount": i, "user": "u1"} for i in range(20)})
        await stub.results("results.payments", 20)
        async with asyncio.timeout(20):  # until the others see it
            while not any(each.partitions for each in (await findings(client.grid))[0].figures.values()):
                await asyncio.sleep(0.05)
        await (await client.grid.map("lookups.users")).destroy()
        async with stub.worker("second") as second:
            _, said = await found(client.grid, "1 worker cannot load a lookup and scores nothing: The lookup", "lookup")
            assert said.level == "problem"
            await client.put_events("events.payments", {f"b{i}": {"amount": i, "user": "u1"} for i in range(20)})
            await stub.results("results.payments", 40)
            assert (await client.jobs.get("payments")).state is JobState.RUNNING
            assert not second.runners["payments"].has_joined
            # It is over once the map is there again.
            await client.put_events("lookups.users", {"u1": {"age": 30.0}})
            async with asyncio.timeout(20):
                while "lookup" in (await findings(client.grid))[1] or not second.runners["payments"].stats.copies:
                    await asyncio.sleep(0.05)
            # The other lookup was not loaded again each time.
            assert second.runners["payments"].stats.copies["shop"]["loads"] == 1
    assert caplog.text.count("payments: a lookup cannot be loaded, so no partition is taken") == 1


async def test_partitions_of_a_worker_that_is_gone_are_not_owned(stub):
    client = await submitted(stub)
    async with stub.worker("first"):
        await client.put_events("events.payments", {f"a{i}": {"amount": i} for i in range(20)})
        await stub.results("results.payments", 20)
        status = await job_status(client.grid, await client.jobs.get("payments"), [])
        assert all(each.owner for each in status.positions)
        assert (status.workers, status.partitions) == (0, 0)


async def test_a_model_that_is_refused_at_its_push_is_not_called_by_the_number_of_another(stub, tmp_path):
    client = await submitted(stub)
    other = booster()
    other.feature_names = ["other"]
    other.save_model(tmp_path / "other.ubj")
    with pytest.raises(ModelMismatchError) as refused:
        await client.push_model(tmp_path / "other.ubj", "payments", alias="champion")
    assert str(refused.value).startswith(f"{tmp_path}/other.ubj would not score as it was trained.")
