"""What Jet's Python processes run for each batch: decode to columns, features, scores, results.

Jet copies this file to the members, with `settings.json` beside it: `files`, the folder of the work; `version` and
`model`, for the results; `dictionary`, whether lookups are made here; `ready`, an empty folder, and `processes`, how
many there will be.
"""

from __future__ import annotations

import gc
import json
import os
import time
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import xgboost

if TYPE_CHECKING:
    from collections.abc import Iterable

_HOUR, _DAY = 3_600_000, 86_400_000
_TOGETHER_SECONDS = 30.0

_settings = json.loads(Path(__file__).with_name("settings.json").read_text(encoding="utf-8"))
_files = Path(_settings["files"])
_features: list[str] = json.loads((_files / "features.json").read_text(encoding="utf-8"))
_model = xgboost.Booster({"nthread": 1}, model_file=_files / "model.ubj")
_ready = Path(_settings["ready"])
_tail = f',"version":{_settings["version"]},"model":"{_settings["model"]}"}}'


class Event(msgspec.Struct, gc=False):
    """The fields that features are made of; others are skipped."""

    amount: float
    user: str
    merchant: str
    ts: int


class Customer(msgspec.Struct, gc=False):
    """An entry of one lookup."""

    age: float
    mean_amount: float
    tenure: float
    risk: float


class Shop(msgspec.Struct, gc=False):
    """An entry of the other."""

    category: float
    fraud_rate: float
    mean_amount: float
    days: float


class Row(msgspec.Struct, array_like=True, gc=False):
    """A line of input."""

    key: str
    event: Event


class RichRow(msgspec.Struct, array_like=True, gc=False):
    """A line of input with what was looked up."""

    key: str
    event: Event
    customer: Customer | None
    shop: Shop | None


class _Table:
    """A lookup as one array, and the row of each key in it; the last row is for keys that are not there."""

    def __init__(self, name: str, kind: type[Customer | Shop]) -> None:
        entries = json.loads((_files / f"{name}.json").read_text(encoding="utf-8"))
        self._rows = {key: row for row, key in enumerate(entries)}
        fields = kind.__struct_fields__
        values = [[entry[field] for field in fields] for entry in entries.values()]
        self._values = np.array([*values, [np.nan] * len(fields)])

    def columns(self, keys: list[str]) -> Any:
        try:
            rows = list(map(self._rows.__getitem__, keys))
        except KeyError:
            rows = [self._rows.get(key, -1) for key in keys]
        return self._values[rows].T


def _columns(entries: list[Any], kind: type[Customer | Shop]) -> list[Any]:
    """The fields of entries, of which some may be missing."""
    if None in entries:
        missing = kind(*(np.nan for _ in kind.__struct_fields__))
        entries = [missing if entry is None else entry for entry in entries]
    fields = map(attrgetter, kind.__struct_fields__)
    return [np.fromiter(map(field, entries), np.float64, len(entries)) for field in fields]


if _settings["dictionary"]:
    _customers, _shops = _Table("customer", Customer), _Table("shop", Shop)
    _decode: Any = msgspec.json.Decoder(list[Row]).decode
else:
    _decode = msgspec.json.Decoder(list[RichRow]).decode
_encode = msgspec.json.Encoder().encode
_begun = False


def transform_list(lines: Iterable[str]) -> list[str]:
    """Results of a batch, in order."""
    global _begun  # noqa: PLW0603 -- Jet calls a function of a module, and nothing else
    if not _begun:
        _wait_for_others()
        _begun = True
    rows = _decode(f"[{','.join(lines)}]")
    events = [row.event for row in rows]
    amount = np.fromiter([event.amount for event in events], np.float64, len(events))
    ts = np.fromiter([event.ts for event in events], np.int64, len(events))
    if _settings["dictionary"]:
        customer = _customers.columns([event.user for event in events])
        shop = _shops.columns([event.merchant for event in events])
    else:
        customer = _columns([row.customer for row in rows], Customer)
        shop = _columns([row.shop for row in rows], Shop)
    age, customer_mean, tenure, risk = customer
    category, fraud_rate, shop_mean, days = shop
    known = (
        amount,
        np.log1p(amount),
        ts // _HOUR % 24,
        (ts // _DAY + 3) % 7,
        age,
        amount / customer_mean,
        tenure,
        risk,
        category,
        fraud_rate,
        amount / shop_mean,
        days,
    )
    matrix = np.empty((len(rows), len(_features)), np.float32)
    for number, column in enumerate(known):
        matrix[:, number] = column
    more = len(_features) - len(known)
    if more:  # `more_i: amount * (i + 1) + customer.age`
        matrix[:, len(known) :] = amount[:, None] * np.arange(1.0, more + 1) + age[:, None]
    scores = _encode(_model.inplace_predict(matrix, validate_features=False).tolist()).decode()[1:-1].split(",")
    return [f'{row.key}\t{{"score":{score}{_tail}' for row, score in zip(rows, scores, strict=True)]


def _wait_for_others() -> None:
    """Wait until all processes are up: one that starts still would take the cores from those that score already."""
    until = time.monotonic() + _TOGETHER_SECONDS
    while len(list(_ready.iterdir())) < _settings["processes"] and time.monotonic() < until:
        time.sleep(0.01)


(_ready / str(os.getpid())).touch()
# What is here stays: the collector need not look at it again.
gc.freeze()
