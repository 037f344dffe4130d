"""`gridscore explain`, on a real member: contributions are XGBoost's, of the features that were scored."""

import asyncio
import json

import numpy as np
import pytest
import scoring
import xgboost as xgb
from hazelcast.core import HazelcastJsonValue


def contributions(model, events):
    """By XGBoost itself, of features that were computed by hand: by name, and the base value."""
    rows = scoring.expected_rows(events)
    data = xgb.DMatrix(rows, feature_names=model.feature_names)
    return [
        dict(zip([*model.feature_names, None], row, strict=True)) for row in model.predict(data, pred_contribs=True)
    ]


@pytest.mark.parametrize("logged", [False, True])
async def test_a_result_is_explained_by_what_was_scored(cluster, unique, logged):
    name, model, events = f"job-{unique}", scoring.booster(), scoring.events(20)
    text = scoring.JOB.format(name=name, mode="copy")
    if logged:
        text = text.replace("result: {include: [user, country]}", "result: {features: all, reasons: {top: 2}}")
    async with scoring.scoring(cluster, name, model=model, file=text) as (client, _):
        await client.put_events(f"events.{name}", events)
        results = await scoring.all_results(client, name, 20)
        if logged:

            async def amended():
                found = await scoring.all_results(client, name, 20)
                return found if all("amended_at" in each for each in found.values()) else None

            results = await scoring.until(amended)
        # Another version scores by now: a result is explained by its own.
        await client.push_model(scoring.booster(seed=1), name, alias="champion")

        found = json.loads((await scoring.command(cluster, "explain", name, "e7", "--json")).stdout)
        (expected,) = contributions(model, [events["e7"]])
        by_xgboost = {name: float(value) for name, value in expected.items() if name}
        assert found["contributions"] == pytest.approx(by_xgboost, rel=1e-5, abs=1e-5)
        if logged:
            given = {each["feature"]: each["adds"] for each in results["e7"]["reasons"]}
            ranked = sorted(found["contributions"].items(), key=lambda each: -abs(each[1]))
            assert given == {feature: pytest.approx(adds, abs=1e-5) for feature, adds in ranked[:2]}
        assert found["base"] == pytest.approx(float(expected[None]), abs=1e-5)
        assert found["margin"] == pytest.approx(float(sum(expected.values())), abs=1e-5)
        assert 1 / (1 + np.exp(-found["margin"])) == pytest.approx(results["e7"]["score"], abs=1e-6)
        assert (found["is_exact"], found["notes"]) == (True, [])
        assert found["event"]["amount"] == events["e7"]["amount"]
        assert found["lookups"]["customer"] == {"key": "u7", "entry": {"age": 27.0, "limit": 800.0}}

        shown = await scoring.command(cluster, "explain", name, "e7", "--top", "2")
        assert "e7 has the score" in shown.stdout
        assert "3 others" in shown.stdout

        # The customer is another one since.
        await client.put_events(f"lookups.{name}", {"u7": {"age": -500.0, "limit": 1e-9}})

        async def later():
            ended = json.loads((await scoring.command(cluster, "explain", name, "e7", "--json")).stdout)
            return ended if ended["lookups"]["customer"]["entry"]["age"] == -500.0 else None

        found = await scoring.until(later)
        assert found["is_exact"] is logged
        assert (found["features"]["age"] == 27.0) is logged
        assert bool(found["notes"]) is not logged

        # The journal has begun again, as after a restart of the cluster: it is not waited for.
        result = HazelcastJsonValue(json.dumps({**results["e7"], "sequence": 1_000_000}))
        await (await client.grid.map(f"results.{name}")).put("e7", result)
        async with asyncio.timeout(60):
            found = json.loads((await scoring.command(cluster, "explain", name, "e7", "--json")).stdout)
        assert "The journal does not hold the event any more" in found["notes"][0]

        missing = await scoring.command(cluster, "explain", name, "nobody")
        assert "has no result for the key `nobody`" in str(missing.exception)
        assert f"`gridscore audit {name}`" in missing.exception.hint
