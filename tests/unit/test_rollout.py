"""Versions that come and go while events do: who has what, and whose scores each result holds."""

import asyncio

import numpy as np
import pytest
from test_bad_records import JOB
from test_stub_grid import booster

from gridscore.errors import ModelError
from gridscore.job import parse_job
from gridscore.operations.rollout import rollout
from gridscore.testing import StubCluster

SWAPS = 3


async def until(look, condition):
    async with asyncio.timeout(20):
        while not condition(found := await look()):
            await asyncio.sleep(0.02)
    return found


async def test_versions_are_exchanged_under_load_and_each_result_is_of_the_version_that_it_names():
    boosters = {number: booster(number + 2) for number in (1, 2, 3)}
    async with StubCluster(partitions=7) as stub:
        client = await stub.client()
        for number, model in boosters.items():
            await client.push_model(model, "payments", alias="champion" if number == 1 else None)
        await client.submit(parse_job(JOB, "test"))
        put = {}

        async def produce(done):
            while not done.is_set():
                some = {f"e{len(put) + n}": {"amount": float((len(put) + n) % 200)} for n in range(50)}
                await client.put_events("events.payments", some)
                put.update(some)

        async with stub.worker("first"), stub.worker("second"):
            done = asyncio.Event()
            producing = asyncio.create_task(produce(done))
            await until(lambda: rollout(client.grid, "payments"), lambda found: len(found.workers) == 2)
            for swap in range(SWAPS):
                version = (swap + 1) % 3 + 1
                await client.promote_model("payments", version, why=f"swap {swap}")
                await client.wait_until_live("payments", version)
                found = await rollout(client.grid, "payments")
                assert (found.version, [worker.version for worker in found.workers]) == (version, [version] * 2)
            done.set()
            await producing
            results = await stub.results("results.payments", len(put), seconds=30)

    assert len({result["version"] for result in results.values()}) == 3
    for number, model in boosters.items():
        keys = [key for key, result in results.items() if result["version"] == number]
        rows = np.array([[put[key]["amount"] / 100] for key in keys], np.float32)
        scores = np.array([results[key]["score"] for key in keys], np.float32)
        assert scores.tobytes() == np.ascontiguousarray(model.inplace_predict(rows, validate_features=False)).tobytes()


async def test_a_worker_that_cannot_load_a_version_goes_on_with_the_one_before_and_is_shown_as_behind(monkeypatch):
    async with StubCluster(partitions=7) as stub:
        client = await stub.client()
        await client.push_model(booster(3), "payments", alias="champion")
        await client.push_model(booster(4), "payments")
        await client.submit(parse_job(JOB, "test"))
        assert (await rollout(client.grid, "payments")).to_json() == {
            "job": "payments",
            "model": "payments",
            "version": 1,
            "workers": (),
            "complete": False,
        }
        async with stub.worker("first"), stub.worker("second") as second:
            await until(
                lambda: rollout(client.grid, "payments"), lambda found: len(found.workers) == 2 and found.complete
            )

            async def broken(_version):
                raise ModelError("there is no room here")

            (runner,) = second.runners.values()
            monkeypatch.setattr(runner._model._models, "of", broken)
            await client.promote_model("payments", 2)
            found = await until(
                lambda: rollout(client.grid, "payments"),
                lambda found: (
                    sorted(worker.state for worker in found.workers) == ["behind", "live"]
                    and all(worker.why for worker in found.workers if worker.state == "behind")
                ),
            )
            (behind,) = [worker for worker in found.workers if worker.state == "behind"]
            assert (behind.version, found.version, found.complete) == (1, 2, False)
            assert "there is no room here" in behind.why
            with pytest.raises(ModelError, match=f"Version 2 .* not live after 0 s: {behind.worker} is behind"):
                await client.wait_until_live("payments", seconds=0)
            with pytest.raises(ModelError, match="scores with version 2 of the model `payments`, not 1") as refused:
                await client.wait_until_live("payments", 1)
            assert "`gridscore model promote payments --version 1`" in refused.value.hint
            await client.put_events("events.payments", {f"e{n}": {"amount": float(n)} for n in range(100)})
            results = await stub.results("results.payments", 100)
            assert {result["version"] for result in results.values()} == {1, 2}
