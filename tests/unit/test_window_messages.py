"""What the two stages of windows write for each other: it comes back as it was, and what is wrong with it is found."""

from contextlib import suppress

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridscore.features.window_parts import Parts
from gridscore.features.windows import Windows
from gridscore.grid.wire import Page
from gridscore.grid.writer import partition_of
from gridscore.group.reader import Arrival, Cursor
from gridscore.job import parse_job
from gridscore.scoring import window_messages
from gridscore.scoring.window_messages import (
    LEDGER_PARTITIONS,
    SLOTS,
    Asked,
    Ledger,
    Request,
    answer_key,
    entity_key,
    key_in,
    mark_of,
    number_of,
)
from gridscore.scoring.window_requests import AT_ONCE, portions

COUNT = 13
JOB = """\
job: j
events: e
order_by: time
schema: {card: string, amount: float, time: {type: timestamp, unit: s}}
windows: {card: card}
features: {a: 'sum(amount, card, "1h", where=amount > 1)'}
model: m
results: r
"""
WINDOWS = Windows(parse_job(JOB, "it"))


def parts_of(text=JOB, run=0):
    job = parse_job(text, "it")
    return Parts(job, Windows(job).layouts, run)


PARTS = parts_of()
KEY = entity_key("card", "c7")
HOME = partition_of(KEY, COUNT)


def asked(**changes):
    found = Asked(
        0,
        False,
        np.array([3, 3, 12], np.int32),
        np.array([0, 0, 2], np.uint32),
        np.array([5, 6, -9], np.int64),
        np.array([70, 80, 90], np.uint32),
        np.array([1.5, 2.5, -1.0]),
        np.full((len(WINDOWS.layouts[0].columns), 3), np.nan),
        [KEY, KEY, KEY],
    )
    return found._replace(**changes)


def read(text, partition=HOME, parts=PARTS):
    return window_messages.read_request(text, parts, partition, COUNT)


def test_a_request_comes_back_as_it_was():
    found = read(window_messages.request_text(PARTS, asked()))
    for one, other in zip(found, asked(), strict=True):
        assert one.tobytes() == other.tobytes() if isinstance(one, np.ndarray) else one == other
    assert read(window_messages.request_text(parts_of(run=1), asked())) is None


def test_a_request_of_another_revision_is_understood_as_far_as_it_says_what_a_window_holds():
    other = parts_of(JOB.replace("{a: '", "{b: 'sum(amount * 2, card, \"2h\")', a: '"))
    sent = asked(columns=np.array([[1.0, 2.0, 3.0]]))
    both = read(window_messages.request_text(PARTS, sent), parts=other).columns
    assert both.shape == (2, 3)
    assert np.isnan(both[0]).all()
    assert both[1].tolist() == [1.0, 2.0, 3.0]
    back = read(window_messages.request_text(other, sent._replace(columns=both))).columns
    assert back.tolist() == [[1.0, 2.0, 3.0]]


@pytest.mark.parametrize(
    "changes",
    [
        {"partitions": np.array([3, 3, 13], np.int32)},
        {"partitions": np.array([3, -1, 12], np.int32)},
        {"partitions": np.array([3, 3], np.int32)},
        {"origins": np.array([0], np.uint32)},
        {"marks": np.zeros(2, np.uint32)},
        {"times": np.zeros(4)},
        {"columns": np.zeros((5, 3))},
        {"keys": [KEY, KEY]},
        {"keys": [KEY, KEY, KEY[:5]]},
        {"keys": [KEY, KEY, entity_key("card", "another")]},
    ],
)
def test_a_request_that_does_not_fit_is_refused(changes):
    with pytest.raises(ValueError, match=r".+"):
        read(window_messages.request_text(PARTS, asked(**changes)))


def test_one_for_another_partition_is_refused():
    with pytest.raises(ValueError, match="another partition"):
        read(window_messages.request_text(PARTS, asked()), (HOME + 1) % COUNT)


@given(st.binary(max_size=300) | st.from_type(Request).map(msgspec.json.encode))
def test_no_text_does_more_than_be_refused(text):
    with suppress(ValueError, RecursionError):
        read(text)


def test_keys_lie_where_they_should():
    for partition in range(COUNT):
        assert partition_of(key_in(partition, COUNT, ":0:"), COUNT) == partition
        assert partition_of(answer_key(partition, COUNT, 1, -7), COUNT) == partition
    numbers = [*range(SLOTS), *range(-SLOTS, 0)]
    places = {answer_key(1, COUNT, window, number) for window in (0, 1) for number in numbers}
    assert len(places) == 4 * SLOTS
    assert answer_key(1, COUNT, 0, 5) == answer_key(1, COUNT, 0, 5 + SLOTS)


def test_an_event_that_was_found_in_the_map_has_the_same_number_each_time():
    assert number_of(7, b"key", b"value") == 7
    found = number_of(-1, b"key", b"value")
    assert found == number_of(-1, b"key", b"value") < 0
    assert found not in {number_of(-1, b"key", b"values"), number_of(-1, b"keyv", b"alue")}
    assert found >= -(2**62)


def test_events_of_one_sequence_are_told_apart_by_key_and_text():
    assert mark_of(b"key", b"value") == mark_of(b"key", b"value") < 2**32
    assert len({mark_of(*each) for each in ((b"key", b"value"), (b"key", b"values"), (b"keys", b"value"))}) == 3


def test_a_ledger_has_what_it_was_told_and_nothing_of_a_journal_that_has_begun_again():
    ledger = Ledger({}, COUNT)
    assert ledger.lacks(7, asked()).tolist() == [True, True, False]
    assert not ledger.changed()
    ledger.note(7, asked(), np.array([0, 1]))
    again = Ledger(ledger.changed(), COUNT)
    assert again.lacks(8, asked()).tolist() == [False, False, False]
    later = asked(numbers=np.array([4, 7, 0], np.int64))
    assert again.lacks(8, later).tolist() == [False, True, True]
    anew = asked(origins=np.array([1, 1, 2], np.uint32), numbers=np.array([0, 1, 2], np.int64))
    assert again.lacks(8, anew).tolist() == [True, True, True]
    assert Ledger({0: b"of an older version"}, COUNT).lacks(8, asked()).tolist() == [True, True, False]


def test_a_ledger_tells_an_event_from_another_that_had_its_sequence_also_when_both_are_read_again():
    one, other = asked(), asked(marks=np.array([70, 81, 90], np.uint32))
    ledger = Ledger({}, COUNT)
    ledger.note(7, one, np.array([0, 1]))
    assert ledger.lacks(9, one).tolist() == [False, False, False]
    assert ledger.lacks(9, other).tolist() == [False, True, False]
    ledger.note(9, other, np.array([1]))
    assert ledger.lacks(7, one).tolist() == [False, False, False]
    assert ledger.lacks(9, other).tolist() == [False, False, False]


def test_a_ledger_is_written_in_parts():
    many = 3 * LEDGER_PARTITIONS - 5
    ledger = Ledger({}, many)
    there = asked(partitions=np.array([1, many - 1, 2], np.int32))
    ledger.note(0, there, np.array([0, 1]))
    assert set(ledger.changed()) == {0, 2}
    assert Ledger(ledger.changed(), many).lacks(1, there).tolist() == [False, False, False]
    assert max(map(len, ledger.changed().values())) < 1_000


def test_a_portion_has_few_events_of_a_partition_and_none_on_both_sides_of_a_gap():
    def arrival(partition, first, count):
        page = Page(first, first + count, [], [], [], {}, 0)
        return Arrival(partition, page, Cursor(partition, 0), 0, 0.0)

    arrivals = [
        arrival(0, 0, AT_ONCE),
        arrival(1, 0, 10),
        arrival(1, 10, 20),
        arrival(1, 90_000, 5),
        arrival(0, AT_ONCE, 5),
        arrival(0, AT_ONCE + 5, AT_ONCE),
    ]
    assert list(portions(arrivals)) == [arrivals[:3], arrivals[3:5], arrivals[5:]]
    assert list(portions(arrivals[:1])) == [arrivals[:1]]
