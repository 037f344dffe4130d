"""What a batch takes while its features are computed: it is bounded for all rows together, and not only for each."""

from __future__ import annotations

import json
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from gridscore.features import EventDecoder, FeaturePlan, LookupTable, offline_matrix, operations
from gridscore.features.windows import History, Windows
from gridscore.job import Job

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20


def job_of(features: dict[str, str], **more: Any) -> Job:
    schema = {"s": "string", "a": "float", "n": "int", "at": {"type": "timestamp", "unit": "s"}}
    return Job.model_validate(
        {"job": "j", "events": "e", "results": "r", "model": "m", "schema": schema, "features": features, **more}
    )


def events_of(count: int, text: str) -> list[bytes]:
    return [json.dumps({"s": f"{text}{n % 7}", "a": n / 7, "n": n, "at": n}).encode() for n in range(count)]


def peak_of(compute: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        compute()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "expression",
    [
        "len(" + " + ".join(f'replace(s, "a", "{chr(98 + n) * 64}")' for n in range(8)) + ")",
        "category(" + " + ".join(f'replace(s, "a", "{chr(98 + n) * 64}")' for n in range(8)) + ")",
    ],
)
def test_texts_of_many_events_that_grow_take_bounded_memory(expression):
    job = job_of({"v": expression})
    plan = FeaturePlan(job, {}, {"v": ()})
    events = EventDecoder(job).decode_all(events_of(200, "a" * 1_000))
    assert peak_of(lambda: plan.matrix(events)) < 150 * MIB  # at once they are 550 MB


def test_categories_of_long_texts_take_bounded_memory_together():
    job = job_of({f"v{n}": f'category(replace(s, "a", "{n:064}"))' for n in range(12)})
    plan = FeaturePlan(job, {}, dict.fromkeys(job.features, ()))
    events = EventDecoder(job).decode_all(events_of(400, "a" * 1_000))
    assert peak_of(lambda: plan.matrix(events)) < 100 * MIB  # at once they are 300 MB


def test_numbers_are_let_go_after_their_last_use():
    job = job_of({"v": " + ".join(f"sqrt(a + {n})" for n in range(80))})
    plan = FeaturePlan(job, {}, {})
    events = EventDecoder(job).decode_all(events_of(20_000, "a"))
    assert peak_of(lambda: plan.matrix(events)) < 8 * MIB  # all of them are 38 MB


def all_that_is_computed(job: Job, payloads: list[bytes]) -> list[Any]:
    """Features, keys, decisions and inputs of windows; and the matrix of a history with the categories that it has."""
    events = EventDecoder(job).decode_all(payloads)
    matrix = offline_matrix(
        job, pd.DataFrame(map(json.loads, payloads)), lookups={"l": pd.DataFrame({"key": [], "x": []})}
    )
    plan = FeaturePlan(job, {"l": LookupTable(job.lookups["l"])}, matrix.categories)
    assert plan.decider is not None
    events = History(job).add(events)
    (inputs,) = Windows(job).inputs(events)
    decided = plan.decider.decide(events, np.linspace(0, 1, len(payloads), dtype=np.float32))
    found = [plan.matrix(events).tobytes(), np.asarray(matrix.values).tobytes(), matrix.categories, plan.keys(events)]
    return [*found, decided.tolist(), inputs.keys, inputs.columns.tobytes(), plan.looked_up, plan.missed]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 97])
def test_a_batch_that_is_computed_in_parts_gives_the_same(monkeypatch, count):
    job = job_of(
        {
            "c": 'category(s + "-" + s)',
            "x": "l.x",
            "p": 'len(replace(s, "a", "bcd")) ** 0.3',
            "w": "sum(len(s + s), card, last=3)",
        },
        lookups={
            "l": {"map": "l", "key": 's + "!"', "columns": ["key"], "fields": {"x": {"type": "float", "default": 3}}}
        },
        windows={"card": {"key": 's + "?"'}},
        order_by="at",
        decisions=[{"decision": "yes", "when": 'score > 0.5 and len(s + "12") == 14'}, {"decision": "no"}],
    )
    payloads = events_of(count, "aXa" * 4) + events_of(count // 5, "b")
    whole = all_that_is_computed(job, payloads)
    monkeypatch.setattr(operations, "MAX_TEXTS", 150)
    assert all_that_is_computed(job, payloads) == whole
