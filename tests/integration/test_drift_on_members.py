"""Drift on a real cluster: injected, seen by those who listen and by those who look, and healed again."""

import json

import numpy as np
import pandas as pd
import scoring
import xgboost as xgb

from gridscore.features import offline_matrix
from gridscore.job import parse_job

JOB = """\
job: {name}
events: events.{name}
results: results.{name}
schema: {{amount: float, country: string?}}
features: {{amount: amount, country: category(country)}}
model: {name}
drift: {{psi: 0.5, every: 1s, events: 200, alerts: alerts.{name}}}
"""


def events(draw, count, shift, countries):
    amounts, places = draw.normal(100 + shift, 20, count), draw.choice(countries, count)
    return {f"e{n}": {"amount": float(amounts[n]), "country": str(places[n])} for n in range(count)}


async def test_drift_is_told_when_it_begins_and_when_it_ends(cluster, unique):
    name, draw = f"job-{unique}", np.random.default_rng(0)
    history = pd.DataFrame(events(draw, 4_000, 0, ["DE", "FR"]).values())
    matrix = offline_matrix(parse_job(JOB.format(name=name), "test"), history)
    data = xgb.DMatrix(
        matrix.values,
        history["amount"] > 100,
        feature_names=list(matrix.names),
        feature_types=["q", "c"],
    )
    model = xgb.train({"objective": "binary:logistic", "nthread": 1}, data, 5)
    matrix.attach(model)
    heard = []
    async with scoring.scoring(cluster, name, model=model, file=JOB.format(name=name)) as (client, _):
        alerts = await client.grid.map(f"alerts.{name}")

        def hear(event):
            value = event.value.loads()
            heard.append((value["feature"], value["measure"], value["state"]))

        await alerts.add_entry_listener(include_value=True, added_func=hear, updated_func=hear)

        async def put_until(condition, shift, countries):
            async def look():
                await client.put_events(f"events.{name}", events(draw, 400, shift, countries))
                return await condition()

            return await scoring.until(look)

        async def found():
            done = await scoring.command(cluster, "drift", name, "--json")
            return json.loads(done.stdout), done.exit_code

        async def is_judged():
            value, code = await found()
            return code == 0 and value["versions"] and value["versions"][0]["window"] is not None

        async def is_seen():
            value, code = await found()
            return code == 10 and len(value["alerts"]) >= 4 and value

        await put_until(is_judged, 0, ["DE", "FR"])
        assert heard == []
        value = await put_until(is_seen, 60, ["DE", "FR", "XX"])
        begun = {(alert["feature"], alert["measure"]) for alert in value["alerts"]}
        assert begun == {("amount", "psi"), ("country", "missing"), ("country", "unseen"), ("<score>", "psi")}
        status = await scoring.command(cluster, "status", name, "--json")
        (job,) = json.loads(status.stdout)["jobs"]
        assert (status.exit_code, "drift" in {finding["code"] for finding in job["findings"]}) == (10, True)
        assert "PSI" in (await scoring.command(cluster, "drift", name)).stdout

        await put_until(is_judged, 0, ["DE", "FR"])
        await scoring.until(lambda: len(heard) >= 8)
    assert sorted(heard) == sorted((*each, state) for each in begun for state in ("started", "ended"))
