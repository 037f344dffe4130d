"""Training on a history, and a worker that scores the same events, compute the same bits, from file to score.

The worker is a real one, on a stub cluster in this process.
"""

import numpy as np
import pandas as pd
import xgboost as xgb

from pipeline.features import OfflineMatrix, offline_matrix
from pipeline.features.tables import lookup_entries, rows_as_json
from pipeline.job import parse_job
from pipeline.testing import StubCluster


async def scores_of(job, booster, history, lookups, wanted):
    """The results by row of a history that is put into the grid as a producer would, and the dead letters."""
    async with StubCluster(partitions=3) as cluster:
        client = await cluster.client()
        await client.push_model(booster, job.model.name, alias="champion")
        for name, frame in lookups.items():
            await client.put_events(job.lookups[name].map, dict(lookup_entries(frame, job, name)))
        await client.submit(job)
        await client.put_events(job.events, dict(enumerate(rows_as_json(history, job.schema_))))
        async with cluster.worker():
            results = await cluster.results(job.results, wanted)
            letters = await cluster.results(f"dead-letters.{job.name}", len(history) - wanted)
    return results, letters


MARGIN = parse_job(
    """\
job: prices
events: events.prices
schema: {area: float, rate: float?}
lookups:
  district: {map: lookups.districts, key: area, fields: {level: float?}}
features: {area: area, rate: rate}
margin: coalesce(district.level, rate) * 0.1 + area
model: prices
results: results.prices
""",
    "test",
)


async def test_a_margin_is_added_as_training_added_it(tmp_path):
    draw = np.random.default_rng(1)
    history = pd.DataFrame({"area": draw.integers(0, 9, 200) * 1.0, "rate": draw.normal(size=200)})
    history.loc[draw.integers(0, 200, 40), "rate"] = np.nan
    history.loc[0] = (5.0, np.inf)
    districts = pd.DataFrame({"area": [1, 2, 3], "level": [0.5, -1.5, 2.5]})
    matrix = offline_matrix(MARGIN, history, {"district": districts}, skip_bad=True)
    assert matrix.skipped == len(history) - len(matrix) > 0
    matrix.to_parquet(tmp_path / "m.parquet")
    matrix = OfflineMatrix.from_parquet(tmp_path / "m.parquet")
    data = xgb.DMatrix(matrix.values, draw.integers(0, 2, len(matrix)), base_margin=matrix.margins)
    booster = xgb.train({"objective": "binary:logistic", "max_depth": 3}, data, 10)
    matrix.attach(booster)
    data.feature_names = list(matrix.names)
    expected = booster.predict(data)
    assert (expected != booster.predict(xgb.DMatrix(matrix.values, feature_names=list(matrix.names)))).all()

    lacking = history["rate"].isna() & ~history["area"].isin([1, 2, 3])
    lacking[0] = True
    results, letters = await scores_of(MARGIN, booster, history, {"district": districts}, len(matrix))
    scores = np.float32([results[row]["score"] for row in range(len(history)) if row in results])
    assert scores.tobytes() == expected.tobytes()
    assert sorted(results) == np.flatnonzero(~lacking).tolist()
    assert {letter["error"] for letter in letters.values()} == {
        "the job's `margin` gives no number, and has no default"
    }
