"""The work without Gridscore: events to scores and result texts, as an engineer would write it by hand for one model.

All systems beside ours score with this, so they differ in how events reach it and results leave, and in nothing else.
It needs msgspec, numpy and xgboost, and none of this project.
"""

from __future__ import annotations

from itertools import repeat
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

MODEL = "bench-card"
VERSION = 1

_CUSTOMER = ("age", "mean_amount", "tenure", "risk")
_SHOP = ("category", "fraud_rate", "mean_amount", "days")
_NAMED = 12
"""Features that have a name of their own; those of the work `wide` follow as `more_0`, `more_1`, …"""

_DAY = 86_400.0
_amount, _user, _merchant, _ts = (attrgetter(name) for name in ("amount", "user", "merchant", "ts"))


class Event(msgspec.Struct, gc=False):
    """What the model needs of an event; `ts` is in milliseconds since 1970."""

    amount: float
    user: str
    merchant: str
    ts: int


class Result(msgspec.Struct, gc=False):
    """What is written for an event."""

    score: float
    version: int
    model: str


class _Table:
    """A lookup in memory: row numbers by key, and a float64 array, whose row 0 is what unknown keys get (NaN)."""

    def __init__(self, file: Path, fields: Sequence[str]) -> None:
        entries: dict[str, dict[str, float]] = msgspec.json.decode(file.read_bytes())
        self._row = {key: number for number, key in enumerate(entries, start=1)}.get
        self._columns = np.full((len(fields), len(entries) + 1), np.nan)
        for column, field in zip(self._columns, fields, strict=True):
            column[1:] = [entry[field] for entry in entries.values()]

    def gather(self, keys: Iterable[str], count: int) -> NDArray[np.float64]:
        """The fields of these keys; shape (fields, count)."""
        rows = np.fromiter(map(self._row, keys, repeat(0)), np.intp, count)
        return self._columns[:, rows]


class Work:
    """The model and its lookups, loaded.

    Args:
        folder: As written by `benchmarks.work.Work.save`.
        threads: For XGBoost.
    """

    def __init__(self, folder: Path, threads: int = 1) -> None:
        import xgboost as xgb

        booster = xgb.Booster(model_file=str(folder / "model.ubj"))
        booster.set_param({"nthread": threads})
        self._predict = booster.inplace_predict
        self._width = len(msgspec.json.decode((folder / "features.json").read_bytes()))
        self._factors = np.arange(1, self._width - _NAMED + 1, dtype=np.float64)
        self._customers = _Table(folder / "customer.json", _CUSTOMER)
        self._shops = _Table(folder / "shop.json", _SHOP)
        self._decode = msgspec.json.Decoder(list[Event]).decode
        self._encode = msgspec.json.Encoder().encode

    def matrix(self, texts: Sequence[bytes]) -> NDArray[np.float32]:
        """The features of these events; shape (events, features).

        Raises:
            msgspec.DecodeError: One of them is not what it should be.
        """
        events = self._decode(b"[%b]" % b",".join(texts))  # half the cost of one by one
        count = len(events)
        amount = np.fromiter(map(_amount, events), np.float64, count)
        seconds = np.fromiter(map(_ts, events), np.float64, count) / 1000.0
        age, mean_amount, tenure, risk = self._customers.gather(map(_user, events), count)
        category, fraud_rate, shop_mean_amount, days = self._shops.gather(map(_merchant, events), count)
        out = np.empty((count, self._width), np.float32)
        with np.errstate(all="ignore"):
            columns = (
                amount,
                np.log1p(amount),
                np.floor(np.mod(seconds, _DAY) / 3600.0),
                np.mod(np.floor(seconds / _DAY) + 3.0, 7.0),
                age,
                amount / mean_amount,
                tenure,
                risk,
                category,
                fraud_rate,
                amount / shop_mean_amount,
                days,
            )
            for number, column in enumerate(columns):
                out[:, number] = column
            if len(self._factors):
                out[:, _NAMED:] = amount[:, None] * self._factors + age[:, None]
        np.copyto(out, np.nan, where=~np.isfinite(out))
        return out

    def scores(self, texts: Sequence[bytes]) -> NDArray[np.float32]:
        """The scores of these events; shape (events,).

        Raises:
            msgspec.DecodeError: One of them is not what it should be.
        """
        scores: NDArray[np.float32] = self._predict(self.matrix(texts), validate_features=False)
        return scores

    def results(self, texts: Sequence[bytes]) -> list[bytes]:
        """The JSON texts of the results of these events.

        Raises:
            msgspec.DecodeError: One of them is not what it should be.
        """
        encode: Any = self._encode
        return [encode(Result(score, VERSION, MODEL)) for score in self.scores(texts).tolist()]
