"""A model that cannot be loaded: who has it goes on, who has not takes nothing and says so, and no job fails."""

import asyncio
import logging

import pytest
from test_bad_records import submitted

from gridscore.grid.records import Records
from gridscore.job import JobState
from gridscore.models.registry import MODELS_MAP
from gridscore.operations.flow import FlowLookout, History
from gridscore.testing import StubCluster


@pytest.fixture
async def stub():
    async with StubCluster(partitions=5) as made:
        yield made


async def findings(grid):
    flow, history = await FlowLookout(grid, "payments").look(), History()
    history.add(flow)
    return flow.overview.jobs[0], {each.code: each for _, found in history.findings() for each in found}


async def found(grid, text):
    """The `model` finding, once it says that."""
    async with asyncio.timeout(20):
        while True:
            status, said = await findings(grid)
            if "model" in said and text in said["model"].text:
                return status, said["model"]
            await asyncio.sleep(0.05)


async def test_a_new_worker_does_not_stop_a_job_whose_model_only_others_have(stub):
    client = await submitted(stub)
    async with stub.worker("first"):
        await client.put_events("events.payments", {f"a{i}": {"amount": i} for i in range(20)})
        await stub.results("results.payments", 20)
        await Records(client.grid, MODELS_MAP).delete("payments")
        _, said = await found(client.grid, "v1 goes on as it was loaded: There is no model `payments`.")
        assert said.level == "problem"
        async with stub.worker("second") as second:
            await found(client.grid, "1 worker cannot load the model and scores nothing, v1 goes on")
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
