"""An experiment on a real member: the share is exact by entity, a shadow's map goes, and nothing is left behind."""

import json

import numpy as np
import scoring

from gridscore.grid import transport


async def test_a_split_and_a_shadow_are_right_and_leave_nothing_behind(cluster, unique):
    name, models = f"job-{unique}", {1: scoring.booster(), 2: scoring.booster(seed=1)}
    async with scoring.scoring(cluster, name, model=models[1]) as (client, _):
        await client.push_model(models[2], name)
        events = scoring.events(400)

        async def is_loaded():
            await client.put_events(f"events.{name}", scoring.events(1))
            counts = (await client.experiment(name)).counts
            there = any(counts.of(each).events for each in ("champion", "challenger"))
            return there and not counts.of("challenger").error

        found = await client.start_experiment(name, 2, split=40, key="user")
        await scoring.until(is_loaded)
        await client.put_events(f"events.{name}", events)

        async def results_of(variants):
            made = await scoring.all_results(client, name, len(events))
            return made if {each.get("variant") for each in made.values()} == variants else None

        await scoring.until(lambda: results_of({"champion", "challenger"}))
        made = await results_of({"champion", "challenger"})
        draws = found.draws([event["user"].encode() for event in events.values()])
        theirs = found.variants(draws) == 1
        assert [made[key]["variant"] == "challenger" for key in events] == theirs.tolist()
        for version, rows in ((1, ~theirs), (2, theirs)):
            keys = [key for key, taken in zip(events, rows, strict=True) if taken]
            scores = scoring.predict(models[version], scoring.expected_rows([events[key] for key in keys]))
            assert {made[key]["version"] for key in keys} == {version}
            assert np.array([made[key]["score"] for key in keys], np.float32).tobytes() == scores.tobytes()
        await client.stop_experiment(name)

        begun = await scoring.command(cluster, "experiment", "start", name, "--version", "2", "--shadow", "--why", "x")
        assert (begun.exit_code, "scores every event, beside the champion" in begun.output) == (0, True)
        await scoring.until(is_loaded)
        await client.put_events(f"events.{name}", events)

        async def is_shadowed():
            return (await client.experiment(name)).counts.of("challenger").events > len(events)

        await scoring.until(is_shadowed)
        beside = await (await client.grid.map(f"shadow.results.{name}")).size()
        assert beside == len(events)
        shown = await scoring.command(cluster, "experiment", "status", name)
        assert (shown.exit_code, f"shadow of {name} v2" in shown.output) == (0, True)
        assert {"VARIANT", "score"} <= set(shown.output.split())
        ended = await scoring.command(cluster, "experiment", "stop", name, "--json")
        assert json.loads(ended.stdout)["variants"][1]["events"] > len(events)
        maps = await transport.map_names(client.grid.client)
        assert not any(each.startswith("shadow.") for each in maps)
        for each in ("gridscore.experiments", "gridscore.experiment-counts"):
            assert await (await client.grid.map(each)).size() == 0
