"""Windows in the grid, in virtual time: whoever dies, each event counts once, and scores are those of a history."""

import dataclasses
import math
import re
import struct
from collections import Counter

import pytest
from hazelcast.errors import HazelcastError
from window_world import BAD, CARDS, JOB, MORE, PARTITIONS, WindowWorld
from world import _data, _text

from gridscore.dead_letters.letters import list_letters
from gridscore.errors import JobError
from gridscore.features import FeaturePlan
from gridscore.features.windows import Inputs
from gridscore.grid.writer import MapWriter, partition_of
from gridscore.group.reader import Cursor
from gridscore.job import parse_job
from gridscore.operations.replay import letter_ids, replay
from gridscore.operations.window_state import state_of
from gridscore.scoring import retention, window_states
from gridscore.scoring.window_states import WindowStates
from gridscore.testing import Fault

pytestmark = pytest.mark.usefixtures("quiet")

NONE = re.sub(r"(?s)windows: .*(?=model:)", "features: {amount: amount, log_amount: amount}\n", JOB)
"""Without windows."""
OTHER = JOB.replace("windows: {", "windows: {other: lower(card), ").replace('"1h")', '"1h") + 0 * count(other, "2h")')
"""With a second one, whose key is not the events'."""

COUNT = "count(card, '2h')"


@pytest.fixture
def world():
    world = WindowWorld()
    yield world
    world.close()


def test_scores_with_windows_are_those_of_a_history_and_a_state_is_put_once_a_batch(world):
    world.start()
    world.pay(60)
    world.settled()
    assert 0 < world.changes["windows.sim"] <= world.changes["results.sim"] == 60
    assert not world.ledger.duplicates()


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("step", ["results.sim", "windows.sim", "gridscore.leases"])
def test_a_worker_may_die_after_each_step(world, step, count):
    first = world.start()
    world.pay(20)
    world.settled()
    world.take_over_after(step, count, first)
    world.pay(20)
    world.settled()


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("outcome", ["timeout", "indeterminate", "unacknowledged", "disconnect"])
@pytest.mark.parametrize("target", ["results.*", "windows.*"])
def test_writes_whose_fate_is_unknown_count_once(world, target, outcome, applied):
    world.start()
    world.pay(20)
    world.settled()
    world.cluster.faults.append(Fault(outcome, applied=applied, request="Map.PutAll", map=target, client="w*", times=4))
    world.pay_at_once(40)
    world.advance(5.0)
    world.settled()
    assert not world.ledger.duplicates()


def test_a_worker_that_leaves_hands_its_states_over(world):
    first = world.start()
    world.pay(30)
    world.settled()
    world.pay_at_once(30)
    world.start()
    world.stop(first)
    world.settled()
    world.pay(10)
    world.settled()
    assert not world.ledger.duplicates()


def test_a_worker_that_was_paused_past_its_lease_writes_no_state(world):
    first = world.start()
    world.pay(20)
    world.settled()
    world.pay_at_once(30)
    world.after_the_next("results.sim")
    world.pause(first)
    world.start()
    world.settled()
    world.resume(first)
    world.pay(10)
    world.settled()


def test_windows_begin_anew_when_a_job_is_restarted_from_its_oldest_event(world):
    world.start()
    world.pay(30)
    world.settled()
    world.scores.clear()
    world.ask(world.client.jobs.restart("sim", "oldest"))
    world.advance(10.0)
    world.settled()


def test_windows_stay_when_an_update_changes_what_they_do_not_hold(world):
    world.start()
    world.pay(30)
    world.settled()
    changed = JOB.replace("card: string,", "card: string, note: string?,")
    record = world.ask(world.client.submit(parse_job(changed, "simulation"), update=True))
    world.advance(10.0)
    world.pay(20)
    world.settled()  # as a history without an update
    assert record.revision == 2

    longer = parse_job(changed.replace('"1h"', '"2h"'), "simulation")
    with pytest.warns(UserWarning, match=r"these begin anew, empty: `sum\(amount, card, '2h'\)`"):
        world.ask(world.client.submit(longer, update=True))


@pytest.mark.parametrize(
    ("old", "new", "stay"),
    [
        ("job: sim", "description: other\njob: sim", True),
        ("card: string,", "card: string, note: string?,", True),
        ("amount: float,", "amount: float?,", True),
        ("model: {", "decisions: [{decision: a, at_least: 0.5}, {decision: b}]\nmodel: {", True),
        ("log_amount: s", "more: amount\n  log_amount: s", True),
        ("amount: float,", "amount: {type: float, json: sum},", False),
        ("unit: s}", "unit: ms}", False),
        ("lateness: 10s", "lateness: 11s", False),
        ("card: card}", "card: lower(card)}", False),
        ("sum(amount,", "sum(amount + 1,", False),
        ("windows: {", "windows: {shop: card, ", True),
    ],
)
def test_an_update_says_whether_windows_begin_anew(old, new, stay):
    before, after = (parse_job(text, "simulation") for text in (JOB, JOB.replace(old, new)))
    assert before != after
    assert not window_states.emptied_by_update(before, before)
    assert bool(window_states.emptied_by_update(before, after)) is not stay


@pytest.mark.parametrize(
    ("more", "empty"),
    [
        ("count(card, last=2)", ["count(card, last=2)"]),
        ('sum(amount, card, "2h") + sum(amount, card, "1h")', ["sum(amount, card, '2h')"]),
        ('max(amount, card, "1h")', []),  # of the same events
    ],
)
def test_an_update_says_which_windows_begin_anew(more, empty):
    before, after = (parse_job(text, "simulation") for text in (JOB, JOB.replace("log_am", f"more: {more}\n  log_am")))
    told = window_states.emptied_by_update(before, after)
    assert re.findall("`(.*?)`", told)[1:-3] == empty
    assert not window_states.emptied_by_update(after, before)


def test_one_window_more_leaves_the_others_as_they_are(world):
    world.start()
    world.pay(40)
    world.settled()
    before = Counter(world.counts)
    (told,) = world.update(MORE)
    assert f"these begin anew, empty: `{COUNT}`" in told
    world.advance(10.0)
    world.pay(20)
    world.settled()  # of those that stay, scores and states are as without an update
    between = world.counts - before
    assert world.seen_by(COUNT) == {card: between[card] for card in world.counts}
    # One that is dropped begins anew where somebody paid meanwhile, and goes on elsewhere.
    before = Counter(world.counts)
    world.ask(world.client.rollback("sim"))
    world.advance(10.0)
    world.pay(3)
    world.settled()
    back = Counter(world.counts)
    world.update(MORE)
    world.advance(10.0)
    world.pay(10)
    world.settled()
    had = {card: between[card] for card in back if back[card] == before[card]}
    assert had
    assert world.seen_by(COUNT) == {card: (world.counts - back)[card] + had.get(card, 0) for card in world.counts}


@pytest.mark.parametrize("without", [NONE, OTHER])
def test_a_window_that_was_dropped_and_comes_back_lacks_nothing_since(world, without):
    world.start()
    world.pay(30)
    world.settled()
    world.update(without)
    world.advance(10.0)
    world.pay(30)
    world.settle()
    paid = Counter(world.paid)
    with pytest.warns(UserWarning, match="begin anew, empty"):
        world.ask(world.client.rollback("sim"))
    world.advance(10.0)
    world.pay(40)
    world.settle()
    assert world.sums() == dict(world.paid - paid)
    # What stays is kept, as it was since then.
    world.update(MORE)
    world.advance(10.0)
    world.pay(20)
    world.settle()
    assert world.sums() == dict(world.paid - paid)


@pytest.mark.parametrize("step", ["results.sim", "windows.sim", "gridscore.leases"])
def test_a_worker_may_die_while_a_window_is_added(world, step):
    first = world.start()
    world.pay(20)
    world.settled()
    put = world.pay_at_once(40)
    world.after_the_next(step)
    world.update(MORE)
    world.kill(first)
    world.start()
    world.settled()
    assert put.done()


def test_a_state_of_another_revision_is_written_with_the_parts_of_this_one(world):
    world.start()
    world.pay(40)
    world.settled()
    record = world.ask(world.client.jobs.get("sim"))
    record = dataclasses.replace(record, job=parse_job(MORE, "simulation"))
    states, key = WindowStates(world.grid, record, lambda _: 0, lambda _: True, None), _data(CARDS[0])
    cursor = Cursor(partition_of(key, PARTITIONS), 1_000)
    found = world.ask(states.fetch([(cursor, [key])]))
    # An event that changed nothing in these parts may have changed what others had of it.
    assert states.changed(cursor, found).keys() == {key}
    assert not states.changed(cursor, found)


def test_a_worker_of_the_revision_before_leaves_no_hole(world):
    first, _ = world.start(), world.start()
    world.pay(20)
    world.settled()
    # The second does not hear of the update.
    world.cluster.faults.append(Fault("timeout", applied=False, map="gridscore.jobs", client="w2", times=100_000))
    world.update(MORE)
    world.advance(10.0)
    world.pay(20)
    world.kill(first)
    world.advance(15.0)
    before = Counter(world.counts)
    world.pay(20)
    world.settle()
    world.cluster.faults.clear()
    world.advance(15.0)
    dropped = Counter(world.counts)
    world.pay(20)
    world.settled()
    seen, now = world.seen_by(COUNT), world.counts - dropped
    cards = [card for card in seen if dropped[card] > before[card]]
    assert len(cards) > 5
    assert {card: seen[card] for card in cards} == {card: now[card] for card in cards}


def test_an_event_that_lies_under_another_key_than_it_says_becomes_a_dead_letter(world):
    world.start()
    world.pay(10)
    card = CARDS[0]
    world.ask(world.client.put_events("events.sim", {card: {"card": "another", "amount": 1.0, "time": world.clock}}))
    world.advance(5.0)
    assert world.ledger.rejected() == {card}


@pytest.fixture
def bad_events(world, monkeypatch):
    """The ledger expects no results of bad events."""
    note = world.ledger._event

    def noted(partition, change):
        note(partition, change)
        for event in world.ledger.lives[partition].events.values():
            event.amount = None if event.amount == BAD else event.amount

    monkeypatch.setattr(world.ledger, "_event", noted)


@pytest.mark.usefixtures("bad_events")
@pytest.mark.parametrize(
    ("ahead", "why"),
    [
        (lambda now: now * 1000, "its `time` is 1700000000000 s after 1970 (is its unit `ms`, not `s`?)"),
        (
            lambda now: now + 100_000,
            "its `time` is 2023-11-16T02:00:00Z, ahead of this worker's clock (2023-11-14T22:",
        ),
    ],
)
def test_an_event_of_the_future_becomes_a_dead_letter_and_ends_no_window(world, ahead, why):
    world.start()
    world.pay(10)
    event = {"card": CARDS[0], "amount": BAD, "time": ahead(1_700_000_000)}
    world.ask(world.client.put_events("events.sim", {CARDS[0]: event}))
    world.pay(60)
    world.settled()
    _, (dead,) = world.ask(list_letters(world.grid, "sim", 10))
    assert dead.dead.stage == "windows"
    assert why in dead.dead.error
    assert world.paid[CARDS[0]] > 0


def test_an_event_that_has_its_result_counts_whatever_the_clock_of_who_reads_it_again_says(world, monkeypatch):
    monkeypatch.setattr(window_states, "_AHEAD_SECONDS", 150_000)
    first = world.start()
    world.pay(10)
    card, event = world.payment()
    put = world.client.put_events("events.sim", {card: event | {"time": 1_700_100_000.0}})
    task = world.user.create_task(put)
    world.after_the_next("results.sim")
    world.kill(first)
    monkeypatch.setattr(window_states, "_AHEAD_SECONDS", 86_400)
    world.start()
    world.settled()
    assert task.done()
    assert not world.ledger.rejected()


def test_an_event_that_has_its_result_counts_though_its_features_cannot_be_computed_any_more(world, monkeypatch):
    compute = FeaturePlan.inputs

    def inputs(self, events):
        if (events.column("amount") == 777.0).any():
            raise ValueError("what a lookup had is gone")
        return compute(self, events)

    first = world.start()
    world.pay(10)
    card, event = world.payment()
    world.user.create_task(world.client.put_events("events.sim", {card: event | {"amount": 777.0}}))
    world.after_the_next("results.sim")
    world.kill(first)
    with monkeypatch.context() as later:
        later.setattr(FeaturePlan, "inputs", inputs)
        world.start()
        world.advance(15.0)
    assert not world.ledger.rejected()
    world.settled()


@pytest.mark.usefixtures("bad_events")
def test_an_event_that_becomes_a_dead_letter_is_in_no_window_not_even_of_its_batch(world, monkeypatch):
    compute = FeaturePlan.inputs

    def inputs(self, events):
        if (events.column("amount") == BAD).any():
            raise ValueError("it cannot be computed")
        return compute(self, events)

    monkeypatch.setattr(FeaturePlan, "inputs", inputs)
    first = world.start()
    world.pay(10)
    put, cards = world.pay_at_once(20), set()
    for _ in range(3):
        card, event = world.payment()
        cards.add(card)
        world.ask(world.client.put_events("events.sim", {card: event | {"amount": BAD}}))
    world.pay_at_once(20)
    world.after_the_next("windows.sim")
    world.kill(first)
    world.start()
    world.settled()
    assert put.done()
    assert world.ledger.rejected() == cards


def test_an_event_that_a_rescan_finds_counts_and_one_that_is_gone_does_not():
    world = WindowWorld(ring=32)
    try:
        first = world.start()
        world.pay(5)
        world.settled()
        world.stop(first)
        world.advance(10.0)
        lost, last = world.payment_of("seldom"), world.payment_of("seldom")
        for card, event in (lost, last):
            world.ask(world.client.put_events("events.sim", {card: event | {"time": world.clock}}))
        partition = next(
            p for p in range(PARTITIONS) if _data("seldom") in dict(world.cluster.partition("events.sim", p))
        )
        flood = world.keys_of(partition, 200)
        for card in flood:
            world.ask(world.client.put_events("events.sim", dict([world.payment_of(card)])))
        world.start()
        world.settle()
        world.advance(20.0)
        assert world.ledger.leases[partition]["lost"] > 0
        record = world.ask(world.client.jobs.get("sim"))
        found = world.ask(state_of(world.grid, record, "seldom"))
        assert found.sequence == -1
        assert found.values["sum(amount, card, '1h')"] == last[1]["amount"]
    finally:
        world.close()


def test_windows_keep_what_they_had_when_a_journal_begins_again(world):
    world.start()
    world.pay(40)
    world.settled()
    for partition in range(PARTITIONS):
        world.regress(partition)
    world.advance(20.0)
    world.pay(40)
    world.settle()
    world.advance(3.0)
    assert world.sums() == dict(world.paid)


def test_the_state_of_an_entity_is_shown_as_an_event_at_its_newest_would_see_it(world):
    world.start()
    world.pay(40)
    world.settled()
    card = CARDS[3]
    record = world.ask(world.client.jobs.get("sim"))
    found = world.ask(state_of(world.grid, record, card))
    assert found.values.keys() == {"sum(amount, card, '1h')", "seconds_since_last(card)"}
    assert found.values["seconds_since_last(card)"] == 0.0
    assert found.values["sum(amount, card, '1h')"] == world.paid[card]
    assert (found.map, found.late) == ("windows.sim", 0)
    with pytest.raises(JobError, match="has no state of `nobody`"):
        world.ask(state_of(world.grid, record, "nobody"))


@pytest.mark.parametrize("kept", [0, 2_000])
def test_states_that_the_grid_has_are_let_go_where_there_is_too_much_of_them(world, monkeypatch, kept):
    monkeypatch.setattr(window_states, "KEPT_BYTES", kept)
    forget, sizes = WindowStates.forget, []
    monkeypatch.setattr(WindowStates, "forget", lambda self: (forget(self), sizes.append(self._bytes))[0])
    world.start()
    world.pay(60)
    world.pay_at_once(60)  # each batch is of several partitions
    world.settled()
    assert 0 < max(sizes[-60:]) < kept + 5_000
    assert sizes[-1] <= kept


def change_state(world, card, change):
    for partition in range(PARTITIONS):
        entries = world.cluster.partition("windows.sim", partition)
        for key, value in list(entries):
            if key == _data(card):
                entry = window_states._decode(_text(value).encode())
                entry.state = change(entry.state)
                text = window_states.encode_entry(entry)
                entries.put(
                    key, bytes(4) + (-130).to_bytes(4, "big", signed=True) + len(text).to_bytes(4, "big") + text
                )


def head(sequence=None, newest=None, floor=None):
    """A change of a state's head."""

    def change(state):
        old = struct.unpack_from("<qdd", state)
        return (
            struct.pack(
                "<qdd", *(b if b is not None else a for a, b in zip(old, (sequence, newest, floor), strict=True))
            )
            + state[24:]
        )

    return change


@pytest.mark.parametrize(
    ("change", "begins_anew"),
    [
        (lambda state: state[:-3], True),
        (head(newest=math.nan), True),
        (head(newest=1_700_000_000.0 + 200_000, floor=1_700_000_000.0 + 190_000), True),
        (head(floor=1e18), True),
        (head(sequence=2**62), False),
    ],
)
def test_a_state_that_cannot_be_used_begins_anew_and_harms_no_other(world, change, begins_anew):
    first = world.start()
    world.pay(40)
    world.settled()
    world.stop(first)
    world.advance(10.0)
    change_state(world, CARDS[0], change)
    second = world.start()
    before = dict(world.states())
    world.pay(20)
    world.settle()
    world.advance(3.0)
    _, expected = world.expected()
    now = world.states()
    assert {key for key in expected if now[key] != expected[key]} == ({_data(CARDS[0])} if begins_anew else set())
    assert now[_data(CARDS[0])] != before[_data(CARDS[0])]
    assert world.workers[second].worker.runners["sim"].stats.broken_states == 1
    record = world.ask(world.client.jobs.get("sim"))
    assert world.ask(state_of(world.grid, record, CARDS[0])).sequence >= 0


def test_a_state_that_cannot_be_read_is_said_to_whoever_asks_for_it(world):
    world.start()
    world.pay(40)
    world.settled()
    record = world.ask(world.client.jobs.get("sim"))
    change_state(world, CARDS[0], lambda state: state[:-3])
    with pytest.raises(JobError, match="is not one of the job's windows as they are now"):
        world.ask(state_of(world.grid, record, CARDS[0]))


def test_a_large_batch_is_added_in_parts_between_which_others_have_their_turn(world, monkeypatch):
    monkeypatch.setattr(window_states, "CALLS_AT_ONCE", 6)
    turns = []
    monkeypatch.setattr(window_states, "Inputs", lambda keys, columns: turns.append(len(keys)) or Inputs(keys, columns))
    world.start()
    world.pay_at_once(60)
    world.settled()
    assert max(turns) == 3
    assert sum(turns) == 60


def test_a_batch_has_fewer_events_where_their_states_are_large(world, monkeypatch):
    record = world.ask(world.client.jobs.get("sim"))
    states = WindowStates(world.grid, record, lambda _: 0, lambda _: True, None)
    monkeypatch.setattr(window_states, "BATCH_BYTES", 4 * states._most_bytes)
    monkeypatch.setattr(window_states, "MOST_BYTES", 7 * states._most_bytes)
    assert (states.batch_events, states.page_events) == (4, 7)  # as if all were as large as can be
    asked = []
    values_of = window_states.values_of

    async def noted(grid, name, partition, keys):
        asked.append(len(keys))
        return await values_of(grid, name, partition, keys)

    monkeypatch.setattr(window_states, "values_of", noted)
    sizes = []
    monkeypatch.setattr(window_states, "Inputs", lambda keys, columns: sizes.append(len(keys)) or Inputs(keys, columns))
    world.start()
    world.pay_at_once(60)
    world.settled()
    assert sizes[0] <= 4 + 7
    assert max(asked) <= 7
    # These turn out to be larger than those before.
    monkeypatch.setattr(window_states, "MOST_BYTES", 500)
    wanted = {}
    for key in world.states():
        partition = next(p for p in range(PARTITIONS) if key in dict(world.cluster.partition("windows.sim", p)))
        wanted.setdefault(partition, []).append(key)
    cursors = [(Cursor(partition, 1_000), keys) for partition, keys in wanted.items()]
    states._mean_bytes = 1.0
    with pytest.raises(HazelcastError, match="states of windows of over 0 MiB"):
        world.ask(states.fetch(cursors))
    assert states._mean_bytes > 50
    assert all(world.ask(states.fetch(cursors[:1])).values())  # of one partition, no less can be taken


def test_a_dead_letter_is_put_by_one_of_two_though_its_member_holds_that_for_longer_than_a_minute(world, monkeypatch):
    compute, letters = FeaturePlan.inputs, []

    def inputs(self, events):
        if (events.column("amount") == BAD).any():
            raise ValueError("it cannot be computed")
        return compute(self, events)

    async def replayed(grid):
        return [each.refusal async for each in replay(grid, "sim", letters)]

    world.start()
    world.advance(8.0)
    card, event = world.payment_of(CARDS[0])
    with monkeypatch.context() as now:
        now.setattr(FeaturePlan, "inputs", inputs)
        world.ask(world.client.put_events("events.sim", {card: event | {"amount": BAD}}))
        world.advance(3.0)
    letters += world.ask(letter_ids(world.grid, "sim"))
    ring = world.cluster.partition("events.sim", partition_of(_data(card), PARTITIONS)).ring
    before = ring.newest
    other = world.time.loop("other")
    grid = world.time.run(world.cluster.connect("other"), other, seconds=60.0)
    world.cluster.faults.append(
        Fault("delay", request="Map.ReplaceIfSame", map="events.sim", client="user", seconds=70.0)
    )
    first = world.user.create_task(replayed(world.grid))
    world.advance(62.0)
    second = other.create_task(replayed(grid))
    world.advance(60.0)
    assert len(letters) == 1
    assert partition_of(MapWriter(world.grid, "x").serialize_key(letters[0]), PARTITIONS) != partition_of(
        _data(card), PARTITIONS
    )
    assert first.result() == [""]
    assert "somebody else is replaying it" in second.result()[0]
    assert ring.newest == before + 1


@pytest.fixture
def retaining(monkeypatch):
    """A world in which each card has paid, whose windows look back a minute and whose job retains one."""
    monkeypatch.setattr(retention, "MAX_ROUND_SECONDS", 5.0)
    monkeypatch.setattr(retention, "look_back_seconds", lambda _: 60.0)
    world = WindowWorld(job=JOB.replace("model:", "retain: 1m\nmodel:"))
    world.start()
    for card in CARDS:
        world.ask(world.client.put_events("events.sim", dict([world.payment_of(card)])))
    yield world
    world.close()


def test_states_go_with_retention_once_no_window_sees_their_events(retaining):
    retaining.advance(100.0)
    assert set(retaining.states()) == set(map(_data, CARDS))
    stays = CARDS[1]
    retaining.ask(retaining.client.put_events("events.sim", dict([retaining.payment_of(stays)])))
    retaining.advance(50.0)
    assert set(retaining.states()) == {_data(stays)}


def test_a_stream_that_goes_quiet_has_its_last_result_at_once_and_loses_what_is_old(retaining):
    retaining.advance(5.0)
    before = len(retaining.scores)
    retaining.pay(1)
    retaining.advance(1.0)
    assert len(retaining.scores) == before + 1  # no event comes after it, and none is waited for
    retaining.advance(300.0)
    left = [retaining.cluster.partition(name, p) for name in ("events.sim", "windows.sim") for p in range(PARTITIONS)]
    assert not sum(len(list(entries)) for entries in left)


def test_states_stay_while_events_wait_that_they_are_for(retaining):
    retaining.advance(5.0)
    faults = retaining.cluster.faults
    faults.append(Fault("timeout", applied=False, request="Map.PutAll", map="results.*", client="w*", times=10_000))
    for card in CARDS:
        retaining.ask(retaining.client.put_events("events.sim", dict([retaining.payment_of(card)])))
    retaining.advance(200.0)
    faults.clear()
    retaining.advance(20.0)
    assert retaining.sums() == dict(retaining.paid)
