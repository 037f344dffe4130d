"""Preview, parity and backtest of a submitted job, on a real member."""

import asyncio
import json
from contextlib import aclosing, nullcontext

import pandas as pd
import pytest
import scoring
from hazelcast.core import HazelcastJsonValue

from gridscore.operations.preview import of_journal
from gridscore.operations.subject import subject_of


@pytest.mark.parametrize("mode", ["copy", "fetch"])
async def test_a_preview_shows_what_the_worker_writes(cluster, unique, mode):
    name = f"job-{unique}"
    async with scoring.scoring(cluster, name, mode=mode) as (client, _):
        await client.put_events(f"events.{name}", {"first": scoring.events(1)["e0"]})

        async def look():
            passed = {}
            async with (
                subject_of(lambda: nullcontext(client.grid), name, [None], None) as subject,
                aclosing(of_journal(subject, oldest=True)) as events,
            ):
                async for event in events:
                    passed[event.key] = event
                    if len(passed) == 51:
                        break
            return passed

        looking = asyncio.create_task(look())
        await client.put_events(f"events.{name}", scoring.events(50))
        passed = await asyncio.wait_for(looking, 60)
        results = await scoring.all_results(client, name, 51)
    for key, event in passed.items():
        written = {**results[key], "epoch": None, "scored_at": None}
        assert {**event.result, "epoch": None, "scored_at": None} == written
    one = passed["e7"]
    assert one.lookups["customer"] == {"key": "u7", "entry": {"age": 27.0, "limit": 800.0}}
    assert ("fetch" in one.micros) is (mode == "fetch")


async def test_parity_is_shown_and_kept_and_a_history_is_scored_with_a_version_of_the_cluster(
    cluster, unique, tmp_path
):
    name, events = f"job-{unique}", scoring.events(2000)
    async with scoring.scoring(cluster, name) as (client, _):
        await client.put_events(f"events.{name}", events)
        results = await scoring.all_results(client, name, 2000)
        ended = await scoring.command(cluster, "parity", name)
        assert ended.stdout.startswith("2,000 of 2,000 equal"), ended.output

        wrong = HazelcastJsonValue(json.dumps({**results["e7"], "user": "somebody"}))
        await (await client.grid.map(f"results.{name}")).put("e7", wrong)
        await client.put_events(f"events.{name}", {"bad": {"user": 7}})
        ended = await scoring.command(cluster, "parity", name, "--json")
        assert ended.exit_code == 10
        found = json.loads(ended.stdout)
        assert (found["equal"], found["different"]) == (1999, 1)
        assert found["first"]["values"] == {"user": ["somebody", "u7"]}
        assert found["unjudged"] == {"cannot be scored": 1}

        status = await scoring.command(cluster, "status", name, "--for", "0")
        assert "1,999 of 2,000 equal" in status.stdout
        shown = json.loads((await scoring.command(cluster, "model", "show", name, "--json")).stdout)
        assert shown["parity"][0]["different"] == 1

        scoring.booster(seed=1).save_model(tmp_path / "next.ubj")
        words = ("model", "push", str(tmp_path / "next.ubj"), "--name", name, "--json")
        (pushed,) = json.loads((await scoring.command(cluster, *words)).stdout)["parity"]
        assert (pushed["version"], pushed["served"], pushed["different"]) == (2, "here", 0)
        assert 1_500 < pushed["equal"] <= 2_000
        shown = json.loads((await scoring.command(cluster, "model", "show", name, "--version", "2", "--json")).stdout)
        assert shown["parity"] == [pushed]
        again = await scoring.command(cluster, *words, "--again", "--no-parity")
        assert json.loads(again.stdout)["parity"] == []

        pd.DataFrame(events.values()).to_parquet(tmp_path / "history.parquet")
        history = str(tmp_path / "history.parquet")
        report = json.loads(
            (await scoring.command(cluster, "backtest", name, history, "--model", "1", "--json")).stdout
        )
    assert report["rows"] == 2000
    assert report["versions"][0]["name"] == f"{name} v1"
