"""The work "card": small payments, two lookups, twelve features, a hundred trees of depth six."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from gridscore.job import parse_job

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gridscore.job import Job

USERS = 1_000
MERCHANTS = 100
FEATURES = 12
TREES = 100
DEPTH = 6

_JOB = """\
job: {name}
events: events.bench
schema:
  id: int
  amount: float
  user: string
  merchant: string
  ts: {{type: timestamp, unit: ms}}
lookups:
  customer:
    map: lookups.bench-users
    key: user
    fields: {{age: float, mean_amount: float, tenure: float, risk: float}}
  shop:
    map: lookups.bench-merchants
    key: merchant
    fields: {{category: float, fraud_rate: float, mean_amount: float, days: float}}
features:
  amount: amount
  log_amount: log1p(amount)
  hour: hour(ts)
  dayofweek: dayofweek(ts)
  age: customer.age
  relative_amount: amount / customer.mean_amount
  tenure: customer.tenure
  risk: customer.risk
  category: shop.category
  fraud_rate: shop.fraud_rate
  relative_to_shop: amount / shop.mean_amount
  shop_days: shop.days
model: {{name: {model}, alias: champion}}
results: {results}
"""


def job_text(name: str, results: str, model: str = "bench-card") -> str:
    """The job file of this work, in YAML."""
    return _JOB.format(name=name, results=results, model=model)


def card_job(name: str, results: str, model: str = "bench-card") -> Job:
    return parse_job(job_text(name, results, model), "the benchmark's job")


def users(count: int = USERS) -> dict[str, dict[str, float]]:
    """The entries of the first lookup map."""
    draw = random.Random(1)  # noqa: S311 -- the same data in every run
    return {
        f"u{i}": {
            "age": float(draw.randint(18, 90)),
            "mean_amount": round(draw.lognormvariate(3, 1), 2),
            "tenure": float(draw.randint(0, 4000)),
            "risk": round(draw.random(), 4),
        }
        for i in range(count)
    }


def merchants() -> dict[str, dict[str, float]]:
    """The entries of the second lookup map."""
    draw = random.Random(2)  # noqa: S311 -- the same data in every run
    return {
        f"m{i}": {
            "category": float(draw.randint(0, 20)),
            "fraud_rate": round(draw.random() / 20, 5),
            "mean_amount": round(draw.lognormvariate(3, 1), 2),
            "days": float(draw.randint(0, 3000)),
        }
        for i in range(MERCHANTS)
    }


def events(count: int, first: int = 0, users: int = USERS) -> Iterator[tuple[str, bytes]]:
    """Keys and JSON texts of about 90 bytes.

    `count`: how many; `first`: number of the first; its key is `e` and the number; `users`: entries of the first lookup
    map.
    """
    draw = random.Random(3 + first)  # noqa: S311 -- the same data in every run
    encode = msgspec.json.encode
    for i in range(first, first + count):
        yield (
            f"e{i}",
            encode(
                {
                    "id": 10_000_000 + i,
                    "amount": round(draw.lognormvariate(3, 1), 2),
                    "user": f"u{draw.randrange(users)}",
                    "merchant": f"m{draw.randrange(MERCHANTS)}",
                    "ts": 1_700_000_000_000 + i * 37,
                }
            ),
        )


def booster(job: Job, trees: int = TREES) -> Any:
    """A model for the job's features: its size is that of a real one, its opinions are noise."""
    import xgboost as xgb

    draw = np.random.default_rng(4)
    rows = draw.normal(size=(20_000, len(job.feature_names))).astype(np.float32)
    rows *= 50
    labels = (rows[:, 0] * rows[:, 5] + rows[:, 7] * 40 + draw.normal(size=len(rows)) * 500 > 0).astype(int)
    matrix = xgb.DMatrix(rows, labels, feature_names=list(job.feature_names))
    parameters = {"max_depth": DEPTH, "objective": "binary:logistic", "nthread": 2, "seed": 5}
    return xgb.train(parameters, matrix, num_boost_round=trees)
