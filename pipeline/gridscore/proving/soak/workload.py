"""What is scored in a soak: a small job, its lookup, its model and its events, all made from the seed."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from gridscore.job import parse_job

if TYPE_CHECKING:
    from gridscore.job import Job

USERS = 500
MODEL_TREES = 30
UPDATE_SHARE = 0.15  # part of the events that replace an earlier one under its key: the result must follow
UPDATE_DISTANCE = 10_000  # how many events earlier the replaced one was put
BLOCK = 1_000
_COUNTRIES = ("DE", "FR", "US", None)

_JOB = """\
job: {name}
events: events.{name}
schema:
  n: int
  amount: float
  user: string
  country: string?
lookups:
  customer:
    map: lookups.{name}
    key: user
    fields: {{age: float?, limit: float?}}
features:
  amount: amount
  log_amount: log1p(amount)
  age: customer.age
  share: amount / customer.limit
  home: country == "DE"
model: {{name: {name}, version: 1}}
results: results.{name}
result: {{include: [n]}}
"""


class Event(NamedTuple):
    """One event."""

    number: int  # counts the events from 0; the field `n`, which the result repeats
    key: str  # under which it is put
    text: bytes  # its JSON


def soak_job(name: str) -> Job:
    return parse_job(_JOB.format(name=name), "the soak's job")


def customers(seed: int) -> dict[str, dict[str, float]]:
    """The entries of the lookup map. Some users of the events have none."""
    import numpy as np

    draw = np.random.default_rng([seed, 1])
    ages, limits = draw.integers(18, 90, USERS).tolist(), draw.integers(1, 90, USERS).tolist()
    return {f"u{i}": {"age": float(ages[i]), "limit": 50.0 * limits[i]} for i in range(USERS)}


def booster(seed: int, names: tuple[str, ...]) -> Any:
    """A model for the job's features; what it thinks of them is noise, but always the same for a seed."""
    import numpy as np
    import xgboost as xgb

    draw = np.random.default_rng([seed, 2])
    rows = (draw.normal(size=(2_000, len(names))) * 60).astype(np.float32)
    labels = (rows[:, 0] + rows[:, 2] + draw.normal(size=len(rows)) * 30 > 0).astype(int)
    matrix = xgb.DMatrix(rows, labels, feature_names=list(names), nthread=1)
    parameters = {"objective": "binary:logistic", "max_depth": 5, "nthread": 1, "seed": seed % (1 << 31)}
    return xgb.train(parameters, matrix, MODEL_TREES)


@functools.lru_cache(maxsize=4)
def block(seed: int, index: int) -> tuple[Event, ...]:
    """Events `index * BLOCK` to `(index + 1) * BLOCK`, the same for a seed whoever asks and whenever."""
    import numpy as np

    draw = np.random.default_rng([seed, 3, index])
    amounts = draw.lognormal(3, 1, BLOCK).round(2).tolist()
    users = draw.integers(0, USERS + USERS // 20, BLOCK).tolist()
    countries = draw.integers(0, len(_COUNTRIES), BLOCK).tolist()
    encode = msgspec.json.encode
    events = []
    for offset in range(BLOCK):
        number = index * BLOCK + offset
        value = {
            "n": number,
            "amount": amounts[offset],
            "user": f"u{users[offset]}",
            "country": _COUNTRIES[countries[offset]],
        }
        events.append(Event(number, f"e{_origin(seed, number)}", encode(value)))
    return tuple(events)


@functools.lru_cache(maxsize=UPDATE_DISTANCE // BLOCK + 4)
def _updates(seed: int, index: int) -> tuple[bool, ...]:
    """Which events of a block replace earlier ones."""
    import numpy as np

    return tuple((np.random.default_rng([seed, 4, index]).random(BLOCK) < UPDATE_SHARE).tolist())


def _origin(seed: int, number: int) -> int:
    """The first event of this one's key."""
    while number >= UPDATE_DISTANCE and _updates(seed, number // BLOCK)[number % BLOCK]:
        number -= UPDATE_DISTANCE
    return number


def event(seed: int, number: int) -> Event:
    return block(seed, number // BLOCK)[number % BLOCK]
