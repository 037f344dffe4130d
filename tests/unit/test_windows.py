"""Windows over the events of an entity: what they give, against an oracle that shares no code; the same bits and the same
state however events are cut, in whatever order they come within the lateness, and from wherever they are read again."""

# ruff: noqa: E501 -- messages are compared as a person reads them, in one line

from __future__ import annotations

import json
import math
import struct
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridscore.cli.source import _check_keys
from gridscore.compiled import compiled
from gridscore.errors import JobFileError, TableError, UsageError
from gridscore.features import EventDecoder, FeaturePlan, offline_matrix, window_kernel, windows
from gridscore.features.definitions import definitions_of
from gridscore.features.tables import event_keys
from gridscore.features.windows import Windows
from gridscore.job import Job, Jobs, parse_job
from gridscore.scoring import window_states
from gridscore.sources.http.settings import HttpSourceSettings
from gridscore.testing import StubCluster

FEATURES = {
    "count": 'count(card, "10m")',
    "manual": 'count(card, "1h", where=entry == "manual")',
    "sum": 'sum(amount, card, "1h")',
    "mean": 'mean(amount, card, "10m")',
    "min": 'min(amount, card, "1h")',
    "max": 'max(amount, card, "1h", where=amount < 50)',
    "std": 'std(amount, card, "1h")',
    "first": 'first(amount, card, "1h")',
    "last": "last(amount, card)",
    "lag": "lag(amount, card, 2)",
    "last_sum": "sum(amount, card, last=3)",
    "last_count": 'count(card, last=3, where=entry == "manual")',
    "last_distinct": "distinct(merchant, card, last=3)",
    "distinct": 'distinct(merchant, card, "1h")',
    "seen": 'seen(merchant, card, "1h")',
    "since": "seconds_since_last(card)",
    "decayed": 'decayed(amount, card, "10m")',
    "other": 'sum(amount, merchant, "1h")',
}
"""All functions, over two keys."""

VALUES = {
    "job": "j",
    "events": "e",
    "results": "r",
    "model": "m",
    "schema": {
        "card": "string?",
        "merchant": "string",
        "amount": "float?",
        "entry": "string",
        "time": {"type": "timestamp", "unit": "s"},
    },
    "order_by": "time",
    "lateness": "5m",
    "windows": {"card": "card", "merchant": {"key": ["merchant"]}},
}


def job_of(features: dict[str, str] = FEATURES, **changed: object) -> Job:
    return Job.model_validate(VALUES | {"features": features} | changed)


@pytest.fixture(params=["python", "compiled"])
def kernel(request, monkeypatch):
    """Both kernels, one after the other."""
    fast = compiled("gridscore.features._windows")
    if request.param == "compiled" and fast is None:
        pytest.skip("the inner loops are not compiled")
    monkeypatch.setattr(windows, "_run", (window_kernel if request.param == "python" else fast).run)


def event(
    time: float, amount: float | None = 1.0, card: str | None = "a", merchant: str = "m", entry: str = "chip"
) -> dict:
    return {"card": card, "merchant": merchant, "amount": amount, "entry": entry, "time": time}


def frame(events: list[dict]) -> pd.DataFrame:
    return pd.DataFrame(events, columns=list(VALUES["schema"]), dtype=object)


class Stream:
    """A job's windows as events come."""

    def __init__(self, job: Job) -> None:
        self.job, self.windows, self.decoder = job, Windows(job), EventDecoder(job)
        self.plan = FeaturePlan(job, {}, {})
        self.states = [{} for _ in self.windows.layouts]

    def add(self, events: list[dict], sequences: list[int] | None = None) -> list[bytes]:
        """The features of the next events, as bytes."""
        columns = self.decoder.decode_all([json.dumps(each).encode() for each in events])
        columns, after = self.windows.apply(columns, self.windows.inputs(columns), self.states, sequences)
        for states, changed in zip(self.states, after, strict=True):
            states.update(changed)
        return [row.tobytes() for row in self.plan.matrix(columns)]


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("order", [1, -1])
def test_events_of_the_same_time_have_an_order_by_their_values_and_not_by_when_they_came(order):
    asked = {f"{entry}": f'count(card, last=5, where=entry == "{entry}")' for entry in ("manual", "chip")}
    stream = Stream(job_of({**asked, "last": "last(amount, card)"}))
    payments = [event(1.7e9, 100.0 - number, entry="manual" if number < 5 else "chip") for number in range(10)]
    stream.add(payments[::order])
    (seen,) = stream.add([event(1.7e9 + 1)])
    assert np.frombuffer(seen, np.float32).tolist() == [5, 5, 100]


# ---------------------------------------------------------------------- the oracle


def naive(features: list[str], events: list[dict]) -> dict[str, list[float]]:
    """What each event sees, from a table of all that came before it: nothing is kept from one to the next."""
    found: dict[str, list[float]] = {name: [] for name in features}
    for row in range(len(events)):
        now, before = events[row], pd.DataFrame(events[:row], columns=list(events[0]))
        t = now["time"]
        mine = before[before["card"] == now["card"]].sort_values("time", kind="stable")
        hour, ten = mine[mine["time"] > t - 3600], mine[mine["time"] > t - 600]
        amount = hour["amount"].astype(float).dropna()
        known = mine["amount"].astype(float).dropna()
        small = amount[amount < 50]
        age = t - mine["time"].astype(float)
        shop = before[(before["merchant"] == now["merchant"]) & (before["time"] > t - 3600)]
        nan = math.nan
        values = {
            "count": len(ten),
            "manual": (hour["entry"] == "manual").sum(),
            "sum": amount.sum(),
            "mean": ten["amount"].astype(float).mean(),
            "min": amount.min(),
            "max": small.max(),
            "std": amount.std(),
            "first": amount.iloc[0] if len(amount) else nan,
            "last": known.iloc[-1] if len(known) else nan,
            "lag": known.iloc[-2] if len(known) > 1 else nan,
            "last_sum": mine["amount"].iloc[-3:].astype(float).sum(),
            "last_count": (mine["entry"].iloc[-3:] == "manual").sum(),
            "last_distinct": mine["merchant"].iloc[-3:].nunique(),
            "distinct": hour["merchant"].nunique(),
            "seen": float(now["merchant"] in set(hour["merchant"])),
            "since": t - mine["time"].iloc[-1] if len(mine) else nan,
            "decayed": (mine["amount"].astype(float) * 0.5 ** (age / 600)).sum(),
            "other": shop["amount"].astype(float).sum(),
        }
        if now["card"] is None:
            values |= dict.fromkeys(set(values) - {"other"}, nan)
        for name in features:
            found[name].append(float(values[name]))
    return found


amounts = st.none() | st.floats(0.01, 100).map(lambda value: round(value, 2))
rows = st.lists(
    st.tuples(
        st.floats(0, 900),
        amounts,
        st.sampled_from(["a", "b", None]),
        st.sampled_from("mno"),
        st.sampled_from(["chip", "manual"]),
    ),
    min_size=1,
    max_size=40,
)


def in_order(rows: list[tuple], least: float = 0.001) -> list[dict]:
    """Events one after the other, each so much later than the one before."""
    time, events = 1_700_000_000.0, []
    for step, *rest in rows:
        time += max(round(step, 3), least)
        events.append(event(time, *rest))
    return events


@given(rows)
@settings(max_examples=30)
@pytest.mark.usefixtures("kernel")
def test_windows_are_those_of_a_table_of_all_that_came_before(rows):
    events = in_order(rows)
    found = offline_matrix(job_of(), frame(events))
    expected = naive(list(found.names), events)
    for column, name in enumerate(found.names):
        np.testing.assert_allclose(
            np.asarray(found.values)[:, column], expected[name], rtol=2e-6, atol=1e-5, err_msg=name
        )


@given(rows, st.data())
@settings(max_examples=100)
@pytest.mark.usefixtures("kernel")
def test_however_events_are_cut_into_batches_they_get_the_same_bits(rows, data):
    events = in_order(rows)
    whole, cut = Stream(job_of()), Stream(job_of())
    expected = whole.add(events)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(events)), max_size=10)) | {0, len(events)})
    assert [bits for a, b in pairwise(cuts) for bits in cut.add(events[a:b])] == expected
    assert cut.states == whole.states
    offline = offline_matrix(job_of(), frame(events))
    assert [row.tobytes() for row in np.asarray(offline.values)] == expected


@given(rows, st.data())
@settings(max_examples=100)
@pytest.mark.usefixtures("kernel")
def test_in_whatever_order_events_come_within_the_lateness_the_state_is_the_same(rows, data):
    events = in_order(rows, least=0)  # some at the same time
    late = [data.draw(st.floats(0, 290)) for _ in events]
    arrived = [each for _, each in sorted(zip(late, events, strict=True), key=lambda pair: pair[0] + pair[1]["time"])]
    sorted_, shuffled = Stream(job_of()), Stream(job_of())
    sorted_.add(events)
    shuffled.add(arrived)
    assert shuffled.windows.late == 0
    assert shuffled.states == sorted_.states


@given(rows, st.integers(0, 59), st.integers(0, 59))
@settings(max_examples=60)
@pytest.mark.usefixtures("kernel")
def test_events_that_are_read_again_change_nothing(rows, begin, end):
    events = in_order(rows)
    sequences = list(range(100, 100 + len(events)))
    once, again = Stream(job_of()), Stream(job_of())
    expected = once.add(events, sequences)
    begin, end = min(begin, len(events)), min(end, len(events))
    assert again.add(events[:end], sequences[:end]) == expected[:end]
    again.add(events[begin:end], sequences[begin:end]) if begin < end else None
    assert (again.add(events[end:], sequences[end:]) if events[end:] else []) == expected[end:]
    assert again.states == once.states


# ---------------------------------------------------------------------- many events


def busy(count: int, step: float, seed: int = 1) -> list[dict]:
    draw = np.random.default_rng(seed)
    amounts = draw.gamma(2, 20, count).round(2).tolist()
    return [event(1.7e9 + row * step, amounts[row], "a", f"m{draw.integers(0, 400)}") for row in range(count)]


@pytest.mark.usefixtures("kernel")
def test_a_busy_entity_is_told_by_parts_of_its_window_and_takes_no_more_room():
    events = busy(3_000, 2.0)
    features = {name: FEATURES[name] for name in ("sum", "count", "mean", "std", "max", "min", "distinct", "decayed")}
    job = job_of(features)
    stream = Stream(job)
    found = np.array(
        [np.frombuffer(bits, np.float32) for a in range(0, 3_000, 100) for bits in stream.add(events[a : a + 100])]
    )
    amount = np.array([each["amount"] for each in events])
    for row in (1_900, 2_345, 2_999):
        # A part of a window is seen as long as the newest event in it is.
        window, longer = amount[row - 1_800 : row], amount[row - 1_800 - 3_600 // 64 : row]
        total = found[row, list(features).index("sum")]
        assert window[1:].sum() * 0.999 <= total <= longer.sum() * 1.001
        assert found[row, list(features).index("std")] == pytest.approx(window.std(ddof=1), rel=0.05)
    layout = stream.windows.layouts[0]
    assert len(stream.states[0]["a"]) < layout.most_bytes < 40_000
    cut = Stream(job)
    assert [bits for a in range(0, 3_000, 41) for bits in cut.add(events[a : a + 41])][-1] == found[-1].tobytes()
    assert cut.states == stream.states


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("amount", [800.0, -800.0])
def test_a_decayed_sum_ends_with_the_state_that_holds_it(amount):
    job = job_of({"decayed": 'decayed(amount, card, "10m")'}, retain="1h")
    end = 32 * 600.0
    assert window_states.look_back_seconds(job) == end + 300
    assert window_states.keep_seconds(job) > end + 7 * 86_400
    for later, left in ((end - 1, amount * 0.5 ** ((end - 1) / 600)), (end, 0.0)):
        stream, removed = Stream(job), Stream(job)
        stream.add([event(1.7e9, amount)])
        following = [event(1.7e9 + later + seconds, 1.0) for seconds in (0, 301, 302)]
        bits = stream.add(following)
        assert np.frombuffer(bits[0], np.float32).tolist() == [np.float32(left)]
        # Who finds no state, because it was removed meanwhile, sees the same from then on.
        assert (bits == removed.add(following)) is (later == end)


@pytest.mark.usefixtures("kernel")
def test_where_many_events_come_at_once_the_lateness_is_shorter_and_the_room_bounded():
    events = [event(1.7e9, float(row)) for row in range(1_000)]
    stream = Stream(job_of())
    found = np.frombuffer(b"".join(stream.add(events)), np.float32).reshape(1_000, -1)
    assert found[-1, list(FEATURES).index("count")] == 999
    assert found[-1, list(FEATURES).index("sum")] == pytest.approx(sum(range(999)))
    assert all(
        len(states[key]) <= layout.most_bytes
        for layout, states in zip(stream.windows.layouts, stream.states, strict=True)
        for key in states
    )


@pytest.mark.usefixtures("kernel")
def test_a_late_event_is_scored_and_counted_and_changes_nothing():
    stream = Stream(job_of({"count": FEATURES["count"], "since": FEATURES["since"]}))
    stream.add([event(1_700_000_000.0 + at) for at in (0, 100, 400)])
    before = stream.states[0]["a"]
    (bits,) = stream.add([event(1_700_000_050.0)])
    # Its windows are those of the oldest moment that still counts: 400 - 300.
    assert np.frombuffer(bits, np.float32).tolist() == [2.0, 0.0]
    assert stream.windows.late == 1
    assert stream.states[0]["a"] != before  # it is counted there as well
    assert np.frombuffer(stream.add([event(1_700_000_401.0)])[0], np.float32).tolist() == [3.0, 1.0]


@pytest.mark.usefixtures("kernel")
def test_a_job_that_wants_late_events_hears_by_how_much_each_is_behind_in_which_window():
    asked = {"count": FEATURES["count"], "other": FEATURES["other"]}
    plain, stream = Stream(job_of(asked)), Stream(job_of(asked, late="late.j"))
    events = [
        event(1.7e9 + at, merchant=shop) for at, shop in ((0, "m"), (400, "m"), (50, "new"), (99, "m"), (100, "m"))
    ]
    assert stream.add(events) == plain.add(events)
    assert stream.states == plain.states  # so an update may add `late`, or drop it
    columns = stream.decoder.decode_all([json.dumps(each).encode() for each in events])
    told, after = stream.windows.apply(columns, stream.windows.inputs(columns), [{}, {}], list(range(5)))
    late = [stream.windows.late_in(number, told).tolist() for number in range(2)]
    np.testing.assert_array_equal(late, [[np.nan, np.nan, 350, 301, np.nan], [np.nan, np.nan, np.nan, 301, np.nan]])
    # Read again, an event that its state has is not late anew, whatever came since.
    told, _ = stream.windows.apply(columns, stream.windows.inputs(columns), after, list(range(5)))
    assert np.isnan([stream.windows.late_in(number, told) for number in range(2)]).all()
    assert plain.windows.late == 3


@pytest.mark.usefixtures("kernel")
def test_an_event_within_the_lateness_sees_what_is_not_newer():
    stream = Stream(job_of({"count": FEATURES["count"], "last": FEATURES["last"]}))
    stream.add([event(1_700_000_000.0 + at, at) for at in (0, 100, 200)])
    assert np.frombuffer(stream.add([event(1_700_000_150.0, 7)])[0], np.float32).tolist() == [2.0, 100.0]
    assert np.frombuffer(stream.add([event(1_700_000_160.0, 7)])[0], np.float32).tolist() == [3.0, 7.0]


def test_a_history_with_a_row_of_no_time_that_can_be_is_refused_or_goes_without_it():
    rows = [event(1_700_000_000.0), event(1_700_000_000_000.0), event(1_700_000_001.0)]
    why = "its `time` is 1700000000000 s after 1970 (is its unit `ms`, not `s`?), which no window can hold"
    with pytest.raises(TableError) as caught:
        offline_matrix(job_of(), frame(rows))
    assert f"row 2: {why}." in caught.value.message
    matrix = offline_matrix(job_of(), frame(rows), skip_bad=True)
    assert np.asarray(matrix.values)[:, list(FEATURES).index("count")].tolist() == [0.0, 1.0]


def test_a_history_with_a_row_that_is_too_late_is_refused():
    history = frame([event(1_700_001_000.0), event(1_700_000_000.0)])
    with pytest.raises(
        TableError, match="older than a row of its entity before it by more than the job's `lateness`"
    ) as caught:
        offline_matrix(job_of(), history)
    assert caught.value.hint == "Sort the history by `time`."
    busy = [event(1_700_000_000.0 + second) for second in (*range(200), 10)]
    with pytest.raises(TableError, match="or more than 128 of those rows are newer"):
        offline_matrix(job_of(), frame(busy))


# ---------------------------------------------------------------------- states that are not ours

NEWEST = 1_700_000_000.0
KINDS = {
    window_kernel.Kind.SPAN: ("sum", window_kernel.MAX_CLOSED),
    window_kernel.Kind.LAST: ("lag", 2),
    window_kernel.Kind.ROWS: ("last_sum", 3),
    window_kernel.Kind.VALUES: ("distinct", window_kernel.MAX_VALUES),
    window_kernel.Kind.DECAY: ("decayed", 1),
}
"""A feature with a series of each kind, and how many closed elements that may have."""
WRONG = {"sequence": -2, "newest": math.nan, "floor": math.nan, "until": math.inf}
"""The head of a state; what it may not hold."""


def state_of(
    closed: int, elements: list[tuple], *, sequence=5, newest=NEWEST, floor=NEWEST - 300, until=-math.inf, late=0
) -> bytes:
    """A state of two series of which the first has these elements: time, count, numbers."""
    parts = [struct.pack("<qdddIHH", sequence, newest, floor, until, late, closed, len(elements))]
    parts += [struct.pack(f"<dI{len(rest)}d", time, count, *rest) for time, count, *rest in elements]
    return b"".join([*parts, struct.pack("<HHdId", 0, 1, NEWEST, 1, 7.0)])


def elements_of(closed: int, count: int, draw: np.random.Generator, *, many: bool = False) -> list[tuple]:
    """Elements as a state may have them, of any numbers that it may have."""
    times = [*np.sort(NEWEST - 300 - draw.random(closed) * 2_000), *np.sort(NEWEST - draw.random(count - closed) * 300)]
    numbers = [0.0, -0.0, 1e308, -1e308, 5e-324, 7.0, 7.5]
    return [
        (t, 4_294_967_295, *draw.choice([*numbers, math.inf], 6))
        if many and draw.random() < 0.3
        else (t, 1, draw.choice(numbers))
        for t in times
    ]


def run_on(kernel, kind: window_kernel.Kind, state: bytes, count: int) -> tuple[list, bytes]:
    """What so many events see on top of a state, and the state afterwards."""
    job = job_of({"it": FEATURES[KINDS[kind][0]], "neighbour": 'min(amount, card, "2h")'})
    (layout,) = Windows(job).layouts
    assert layout.series[0].kind == kind
    numbers, times = np.arange(10, 10 + count), NEWEST + np.arange(count) % 250
    columns = np.tile(np.arange(count) % 300.0, (len(layout.columns), 1))
    out = np.full((len(layout.calls), count), math.nan)
    specs = np.array(layout.series, np.float64), np.array(layout.calls, np.float64)
    (after,), _ = kernel.run(*specs, 300.0, [state], np.zeros(count, np.int64), numbers, times, columns, out)
    assert len(after) <= layout.most_bytes
    return out.tolist(), after


def kernels() -> list:
    fast = compiled("gridscore.features._windows")
    return [window_kernel] if fast is None else [window_kernel, fast]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@given(data=st.data())
@settings(max_examples=15)
def test_a_state_of_any_numbers_stays_within_its_bounds_and_the_kernels_agree(kind, data):
    closed = data.draw(st.sampled_from([0, 1, KINDS[kind][1]]))
    count = closed + data.draw(st.sampled_from([0, 1, window_kernel.MAX_OPEN]))
    draw = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    many = kind == window_kernel.Kind.SPAN
    state = state_of(closed, elements_of(closed, count, draw, many=many), late=2**32 - 1)
    found = [run_on(kernel, kind, state, 20) for kernel in kernels()]
    assert str(found[0][0]) == str(found[-1][0])
    assert len(found[0][1]) == len(found[-1][1])
    _, after = run_on(kernels()[-1], kind, state, 5_000)
    run_on(kernels()[-1], kind, after, 20)


WHATS = ("closed", "much", "open", "nan", "falls", "infinite", "newer", "old", "none", "several", "value", "floor")


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        pytest.param(kind, wrong, id=f"{wrong}-{kind.name}")
        for wrong in (*WHATS, *WRONG)
        for kind in KINDS
        if (kind, wrong) != (window_kernel.Kind.DECAY, "value")  # its sum may be infinite
    ],
)
def test_a_state_that_no_events_can_make_is_refused(kind, wrong):
    most, several = KINDS[kind][1], (NEWEST - 400, 2, *[1.0] * 6)
    good = elements_of(most, most + 5, np.random.default_rng(3))
    closed, elements, head = most, list(good), {}
    first, last = good[0], good[-1]
    match wrong:
        case "closed":
            closed += 1
        case "much":  # nothing of it ever ends
            closed, elements = 1_000, [(math.nan, 1, -99.0)] * 1_128
        case "open":
            elements += [last] * window_kernel.MAX_OPEN
        case "nan":
            elements[-1] = (math.nan, *last[1:])
        case "falls":
            elements[-1] = (NEWEST - 301, *last[1:])
        case "infinite":
            elements[0] = (-math.inf, *first[1:])
        case "newer":
            elements[-1] = (NEWEST + 1, *last[1:])
        case "old":
            elements[0] = (-1e12, *first[1:])
        case "none":
            elements[0] = (first[0], 0, *first[2:])
        case "several":
            elements[0] = several if kind != window_kernel.Kind.SPAN else (math.nan, *several[1:])
        case "value":
            elements[-1] = (*last[:2], math.inf)
        case "floor":
            head = {"floor": NEWEST + 1}
        case _:
            head = {wrong: WRONG[wrong]}
    for kernel in kernels():
        run_on(kernel, kind, state_of(most, good), 1)
        with pytest.raises(ValueError, match="a state is not one of these windows"):
            run_on(kernel, kind, state_of(closed, elements, **head), 3_000)


@pytest.mark.usefixtures("kernel")
@given(
    st.binary(max_size=80), st.lists(st.tuples(st.integers(0, 2**16), st.binary(min_size=1, max_size=8)), max_size=5)
)
@settings(max_examples=100)
def test_bytes_that_are_not_a_state_are_refused_or_read_within_their_bounds(junk, changes):
    job = job_of()
    stream = Stream(job)
    stream.add(busy(30, 100.0))
    good = bytearray(stream.states[0]["a"])
    for place, value in changes:
        begin = place % (len(good) - 8)
        good[begin : begin + len(value)] = value
    for state in (junk, bytes(good), bytes(good[: len(changes) * 97 % len(good)])):
        broken = Stream(job)
        broken.states[0]["a"] = state
        try:
            broken.add([event(1_700_000_000.0)])
        except ValueError:
            continue


def test_both_kernels_give_the_same_bits():
    fast = compiled("gridscore.features._windows")
    if fast is None:
        pytest.skip("the inner loops are not compiled")
    draw = np.random.default_rng(7)
    events = in_order(
        [
            (
                float(draw.exponential(20)),
                None if draw.random() < 0.1 else round(float(draw.gamma(2, 20)), 2),
                [None, "a", "b", "c"][draw.integers(0, 4)],
                f"m{draw.integers(0, 300)}",
                ["chip", "manual"][draw.integers(0, 2)],
            )
            for _ in range(4_000)
        ]
    )
    for a, b in pairwise(range(0, 4_000, 3)):  # some out of order
        if draw.random() < 0.2:
            events[a], events[b] = events[b], events[a]
    streams = [Stream(job_of(late="late.j")), Stream(job_of(late="late.j"))]
    found = []
    for stream, run in zip(streams, (window_kernel.run, fast.run), strict=True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(windows, "_run", run)
            found.append([stream.add(events[a : a + 50]) for a in range(0, 4_000, 50)])
    assert found[0] == found[1]
    assert streams[0].states == streams[1].states
    assert streams[0].windows.late == streams[1].windows.late > 0


# ---------------------------------------------------------------------- the job file

FILE = """\
job: j
events: e
order_by: time
schema: {card: string, merchant: string, amount: float, time: timestamp, seen_at: timestamp?, n: int}
lookups: {limits: {map: l, key: card, fields: {limit: float}}}
windows: {card: {key: card}}
features:
  amount: amount
  it: EXPRESSION
model: m
results: r
"""


def problem(text: str) -> str:
    with pytest.raises(JobFileError) as caught:
        parse_job(text, "job.yaml")
    (line,) = caught.value.message.splitlines()
    return line.partition(": ")[2]


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ('sum(amount, crd, "1h")', "there is no window `crd`, did you mean `card`?"),
        ("sum(amount, card)", '`sum` needs how far back it looks, as `"90s"`, `"15m"`, `"1h"`, `"2d"` or `last=10`'),
        ('count("1h")', "`count` needs the name of a window: `'1h'` is not one, as in `count(card, \"1h\")`"),
        ('count(card, "91d")', '`count`: a window looks back 90 days at most, not `91d`, as in `count(card, "1h")`'),
        ('sum(merchant, card, "1h")', "`merchant` is a string: `sum` needs a number"),
        (
            "sum(amount, card, last=101)",
            '`sum`: the number of events must be a whole number from 1 to 100, written out, as in `sum(amount, card, "1h")`',
        ),
        (
            'sum(amount, card, "1h", when=n > 1)',
            '`sum` takes no argument `when`, only `where` and `last`, as in `sum(amount, card, "1h")`',
        ),
        ('sum(amount, card, "1h", where=amount)', "`amount` is a number: `where` needs true or false; write `!= 0`"),
        (
            'sum(sum(amount, card, "1h"), card, "1h")',
            "`sum(amount, card, '1h')`: windows can only be used in a feature, and not within one another",
        ),
        ('sum(limits.limit, card, "1h")', "`limits`: a window holds what is made of fields of the event alone"),
        ('sm(amount, card, "1h")', "there is no function `sm`, did you mean `sum`?"),
        ("count", '`count` is a function: call it, as in `count(card, "1h")`'),
    ],
)
def test_what_cannot_be_asked_of_a_window_is_said_with_what_can(expression, said):
    assert (
        problem(FILE.replace("EXPRESSION", f"'{expression}'" if '"' not in expression else expression))
        == f"feature `it`: {said}"
    )


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("order_by: time\n", "", "`windows`: windows need the time of an event: name its field with `order_by`"),
        ("order_by: time", "order_by: tim", "`order_by`: there is no event field `tim`"),
        (
            "order_by: time",
            "order_by: seen_at",
            "`order_by`: `seen_at` is of the type timestamp?: it must be timestamp, without `?`",
        ),
        (
            "order_by: time",
            "order_by: time\nevent_key: amount",
            "`event_key`: `amount` is of the type float: it must be string or int, without `?`",
        ),
        (
            "{key: card}}",
            "{key: crd}}",
            "window `card`: key: there is no event field or earlier feature `crd`, did you mean `card`?",
        ),
        ("{key: card}}", "{keys: card}}", "unknown key `keys` in `windows.card`, did you mean `key`?"),
        (
            "model: m",
            "margin: amount\nmodel: m",
            "`margin`: a job with windows needs a `default` here: an event without a margin is not scored",
        ),
    ],
)
def test_what_is_wrong_with_the_windows_of_a_job_is_said(old, new, said):
    text = FILE.replace("EXPRESSION", 'count(card, "1h")').replace(old, new)
    with pytest.raises(JobFileError) as caught:
        parse_job(text, "job.yaml")
    assert said in caught.value.message


NUMBERED = {
    "events": "events.n",
    "event_key": "n",
    "schema": {"n": "int", "time": {"type": "timestamp", "unit": "s"}},
    "windows": {"it": {"key": "n"}},
}


def test_sources_that_make_strings_of_keys_are_refused_where_windows_need_numbers():
    features, source = {"a": 'count(it, "1h")'}, {"kind": "http"}
    with pytest.raises(
        ValueError, match="source `till` makes strings of all keys, and the `event_key` of `j`, `n`, is an int"
    ):
        job_of(features, **NUMBERED, sources={"till": source})
    job_of(features, **NUMBERED, sources={"till": {"kind": "http", "to": "events.others"}})
    recorded = VALUES | NUMBERED | {"features": features, "sources": {"till": source}}
    assert Job.from_json(recorded).sources  # one that was submitted before goes on
    job_of(features, **NUMBERED, sources={"till": {"kind": "redis", "stream": "n", "key": ["n"]}})
    job_of(features, **NUMBERED | {"event_key": None}, sources={"till": source})
    # A source that the job does not name
    with pytest.raises(UsageError, match="source `till` makes strings"):
        _check_keys(job_of(features, **NUMBERED), HttpSourceSettings(to="events.n"), "till")
    _check_keys(job_of(features, **NUMBERED), HttpSourceSettings(to="events.others"), "till")


def test_keys_of_tables_are_whole_numbers_where_windows_need_them():
    job, frame = job_of({"a": 'count(it, "1h")'}, **NUMBERED), pd.DataFrame({"n": [7, 2**40], "m": ["7", "x"]})
    assert event_keys(frame, ["n"], "the history", job) == [7, 2**40]
    assert event_keys(frame, ["n"], "the history") == ["7", str(2**40)]
    assert event_keys(frame, ["n", "m"], "the history", job) == ["7|7", f"{2**40}|x"]
    with pytest.raises(TableError, match="the history: its `n`, which makes the key, is not a whole number"):
        event_keys(frame[["m"]].rename(columns={"m": "n"}), ["n"], "the history", job)


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        (struct.pack(">iii", 0, -7, 7), 8, "not its"),
        (struct.pack(">iii1s", 0, -11, 1, b"7"), 7, "a string, unlike its"),
        (struct.pack(">iii", 0, -7, 7), "7", "not a string, unlike its"),
        (struct.pack(">iii1s", 0, -11, 1, b"7"), "8", "not its"),
    ],
)
def test_an_event_under_a_wrong_key_is_told_how_the_key_differs(key, value, what):
    assert not window_states._is_key(key, value)
    assert f"{window_states._what(key, value)} its" == what


@pytest.mark.parametrize(
    ("changes", "routed"),
    [
        ({}, True),
        ({"event_key": "merchant", "windows": {"card": "merchant"}}, False),
        ({"event_key": "merchant"}, True),
        ({"event_key": "merchant", "windows": {"shop": "merchant", "card": "card"}}, True),
        ({"event_key": "merchant", "windows": {"card": "merchant", "shop": "merchant"}}, True),
    ],
)
async def test_every_job_with_windows_can_be_submitted_and_one_whose_key_is_the_events_needs_no_second_stage(
    changes, routed
):
    features = {"a": 'count(card, "1h")'} | ({"b": 'count(shop, "1h")'} if "shop" in changes.get("windows", {}) else {})
    job = job_of(features, **changes)
    assert job.routes_windows is routed
    async with StubCluster(partitions=3) as cluster:
        jobs = Jobs(await cluster.connect("user"))
        await jobs.check(job)
        await jobs.submit(job)
    # Windows that no feature uses are nobody's business.
    assert not job_of({"amount": "amount"}, **changes).routes_windows


def test_a_change_of_a_window_is_told_as_one_of_the_features_is():
    before, after = definitions_of(job_of()), definitions_of(job_of(lateness="1m"))
    assert before.windows["card"] == "card, ordered by time, lateness 300 s"
    assert before.windows != after.windows
    assert before.features == after.features
    assert "maths library" in before.machine  # `decayed`


@pytest.mark.parametrize(
    ("key", "value", "same"),
    [
        (struct.pack(">iii", 0, -11, 3) + b"abc", "abc", True),
        (struct.pack(">iii", 0, -11, 3) + b"abd", "abc", False),
        (struct.pack(">iiq", 0, -8, 7), 7, True),
        (struct.pack(">iii", 0, -7, -7), -7, True),
        (struct.pack(">iii", 0, -7, 8), 7, False),
        (struct.pack(">iii", 0, -11, 1) + b"7", 7, False),
    ],
)
def test_a_key_is_compared_with_its_field_as_it_is_serialized(key, value, same):
    assert window_states._is_key(key, value) is same


def test_a_minimum_of_values_is_no_window():
    parse_job(FILE.replace("EXPRESSION", "min(amount, n, 3)"), "job.yaml")


def test_a_job_comes_back_from_the_grid_as_it_was():
    job = job_of()
    assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job
