"""Parts of the states of windows: one that a job has and another one had is taken over as it is, byte for byte."""

import json

import numpy as np
import pytest

from gridscore.features import EventDecoder
from gridscore.features.window_parts import Parts
from gridscore.features.windows import Windows
from gridscore.job import Job

VALUES = {
    "job": "j",
    "events": "e",
    "results": "r",
    "model": "m",
    "schema": {"card": "string", "amount": "float", "time": {"type": "timestamp", "unit": "s"}},
    "order_by": "time",
    "lateness": "30s",
    "windows": {"card": "card"},
}
CALLS = [
    'sum(amount, card, "1h")',
    'count(card, "1h", where=amount > 5)',
    'count(card, "2h")',
    "lag(amount, card, 3)",
    "sum(amount, card, last=4)",
    "count(card, last=2)",
    "count(card, last=6, where=amount > 5)",
    'distinct(amount, card, "1h")',
    'decayed(amount, card, "10m")',
]


def job_of(*calls, **changed):
    return Job.model_validate(VALUES | {"features": {f"f{n}": call for n, call in enumerate(calls)}} | changed)


def made(job):
    """The state of a card that has paid 200 times, and its parts."""
    windows, draw = Windows(job), np.random.default_rng(1)
    times = 1.7e9 + np.cumsum(draw.random(200) * 20)
    rows = [{"card": "c", "amount": round(10 * draw.random(), 1), "time": float(time)} for time in times]
    events = EventDecoder(job).decode_all([json.dumps(row).encode() for row in rows])
    _, (after,) = windows.apply(events, windows.inputs(events), [{}])
    return after["c"], Parts(job, windows.layouts, 0)


@pytest.mark.parametrize("call", CALLS)
def test_a_part_is_the_same_whatever_other_parts_there_are(call):
    alone, own = made(job_of(call))
    among, all_of = made(job_of(*CALLS))
    assert own.tags == all_of.tags
    assert own.fitted(0, among, all_of.series[0]) == alone
    with_empty = all_of.fitted(0, alone, own.series[0])
    assert len(with_empty) < len(among)
    assert own.fitted(0, with_empty, all_of.series[0]) == alone


@pytest.mark.parametrize("call", ["lag(amount, card, {})", "sum(amount, card, last={})", "count(card, last={})"])
def test_of_the_last_events_as_many_are_kept_as_there_are_and_as_are_asked_for(call):
    few, own = made(job_of(call.format(3)))
    many, other = made(job_of(call.format(9)))
    assert own.series == other.series
    assert own.fitted(0, many, other.series[0]) == few
    assert other.fitted(0, few, own.series[0]) == few


@pytest.mark.parametrize(
    "changed",
    [
        {"lateness": "31s"},
        {"windows": {"card": "lower(card)"}},
        {"schema": VALUES["schema"] | {"time": {"type": "timestamp", "unit": "ms"}}},
        {"schema": VALUES["schema"] | {"card": {"type": "string", "json": "c"}}},
    ],
)
def test_what_all_parts_depend_on_makes_other_windows(changed):
    job = job_of(*CALLS)
    one, other = (Parts(each, Windows(each).layouts, 0) for each in (job, job_of(*CALLS, **changed)))
    assert one.tags != other.tags
    assert Parts(job, Windows(job).layouts, 1).tags != one.tags


def test_a_state_that_is_not_one_is_refused():
    state, parts = made(job_of(*CALLS))
    _, other = made(job_of("count(card, last=2)"))
    for end in range(0, len(state), 7):
        with pytest.raises(ValueError, match="a state is"):
            other.fitted(0, state[:end], parts.series[0])
    with pytest.raises(ValueError, match="a state is"):
        other.fitted(0, state + b"x", parts.series[0])
