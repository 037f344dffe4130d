"""Windows in the grid, in virtual time: whoever dies, each event counts once, and scores are those of a history."""

import json
import logging
from collections import Counter, defaultdict

import pytest
import xgboost as xgb
from world import BOOSTER, World, _data, _text

from gridscore.errors import JobError
from gridscore.features import EventDecoder, FeaturePlan
from gridscore.features.windows import Windows
from gridscore.job import parse_job
from gridscore.operations.window_state import state_of
from gridscore.scoring import window_states
from gridscore.testing import Fault

JOB = """\
job: sim
events: events.sim
event_key: card
order_by: time
lateness: 10s
schema: {card: string, amount: float, time: {type: timestamp, unit: s}}
windows: {card: card}
features:
  amount: amount + sum(amount, card, "1h")
  log_amount: seconds_since_last(card)
model: {name: sim, alias: champion}
results: results.sim
"""
PARTITIONS = 4
BAD = 666_666.0
CARDS = [f"card{number}" for number in range(12)]


@pytest.fixture(autouse=True)
def _quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


class WindowWorld(World):
    """A world whose events are of cards, which come again and again."""

    def __init__(self, ring=4_096):
        super().__init__(PARTITIONS, ring=ring, job=JOB)
        self.spec = parse_job(JOB, "simulation")
        self.scores = defaultdict(set)
        self.changes = defaultdict(int)  # of maps
        self.clock = 1_700_000_000.0
        self.paid = Counter()
        watch = self.ledger.changed

        def changed(name, partition, change):
            watch(name, partition, change)
            self.changes[name] += 1
            if name == "results.sim" and change.value is not None:
                result = json.loads(_text(change.value))
                self.scores[partition, result["sequence"]].add(result["score"])

        self.cluster.on_change = changed

    def payment(self):
        """One of the cards and its next payment."""
        self.clock += 7.0
        return self.payment_of(CARDS[self.random.randrange(len(CARDS))])

    def payment_of(self, card):
        """A card and its next payment."""
        amount = float(self.random.randint(1, 900))
        self.paid[card] += amount
        return card, {"card": card, "amount": amount, "time": self.clock}

    def pay(self, count):
        """So many payments, one after the other."""
        for _ in range(count):
            self.ask(self.client.put_events("events.sim", dict([self.payment()])))

    def pay_at_once(self, count):
        """So many payments that nobody waits for: many are scored in one batch."""
        events = [self.payment() for _ in range(count)]

        async def put():
            for event in events:
                await self.client.put_events("events.sim", dict([event]))

        return self.user.create_task(put())

    def expected(self):
        """Score of each event by partition and sequence, and the state of each card: of a history in journal order."""
        windows, decoder, plan = Windows(self.spec), EventDecoder(self.spec), FeaturePlan(self.spec, {}, {})
        scores, states = {}, {}
        for partition in range(self.partitions):
            ring = self.cluster.partition("events.sim", partition).ring
            texts = [_text(change.value).encode() for change in ring.read(ring.oldest, ring.capacity)]
            numbered = [(s, text) for s, text in enumerate(texts, ring.oldest) if json.loads(text)["amount"] != BAD]
            if not numbered:
                continue
            sequences, texts = map(list, zip(*numbered, strict=True))
            events = decoder.decode_all(texts)
            events, (after,) = windows.apply(events, windows.inputs(events), [{}], sequences)
            matrix = xgb.DMatrix(plan.matrix(events), feature_names=["amount", "log_amount"])
            scores |= {
                (partition, s): float(score) for s, score in zip(sequences, BOOSTER.predict(matrix), strict=True)
            }
            states |= {_data(card): state for card, state in after.items()}
        return scores, states

    def wrong(self):
        scores, _ = self.expected()
        return [where for where in scores if where not in self.scores]

    def sums(self):
        """What the window of each card holds."""
        record = self.ask(self.client.jobs.get("sim"))
        found = {card: self.ask(state_of(self.grid, record, card)).values for card in CARDS if self.paid[card]}
        return {card: values["sum(amount, card, '1h')"] for card, values in found.items()}

    def states(self):
        found = {}
        for partition in range(self.partitions):
            for key, value in self.cluster.partition("windows.sim", partition):
                found[key] = window_states._decode(_text(value).encode()).state
        return found

    def settled(self):
        self.settle()
        self.advance(3.0)
        self.check()
        self.check_unhandled()
        scores, states = self.expected()
        assert {where: self.scores[where] for where in scores} == {where: {score} for where, score in scores.items()}
        assert self.states() == states

    def after_the_next(self, name, count=1):
        """Return when a map has changed so many times more."""
        wanted = self.changes[name] + count
        assert self.time.run_until(lambda: self.changes[name] >= wanted, seconds=30.0)


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
    put = world.pay_at_once(40)
    world.after_the_next(step, count)
    world.kill(first)
    world.start()
    world.settled()
    assert put.done()
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


def test_an_event_that_lies_under_another_key_than_it_says_becomes_a_dead_letter(world):
    world.start()
    world.pay(10)
    card = CARDS[0]
    world.ask(world.client.put_events("events.sim", {card: {"card": "another", "amount": 1.0, "time": world.clock}}))
    world.advance(5.0)
    assert world.ledger.rejected() == {card}


def test_an_event_that_becomes_a_dead_letter_is_in_no_window_not_even_of_its_batch(world, monkeypatch):
    compute, note = FeaturePlan.inputs, world.ledger._event

    def inputs(self, events):
        if (events.column("amount") == BAD).any():
            raise ValueError("it cannot be computed")
        return compute(self, events)

    def noted(partition, change):
        note(partition, change)
        for event in world.ledger.lives[partition].events.values():
            event.amount = None if event.amount == BAD else event.amount

    monkeypatch.setattr(FeaturePlan, "inputs", inputs)
    monkeypatch.setattr(world.ledger, "_event", noted)
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


def test_states_that_the_grid_has_are_let_go_where_there_is_too_much_of_them(world, monkeypatch):
    monkeypatch.setattr(window_states, "KEPT_BYTES", 0)
    world.start()
    world.pay(60)
    world.settled()


def test_a_state_that_cannot_be_read_begins_anew_and_harms_no_other(world):
    first = world.start()
    world.pay(40)
    world.settled()
    world.stop(first)
    world.advance(10.0)
    for partition in range(PARTITIONS):
        entries = world.cluster.partition("windows.sim", partition)
        for key, value in list(entries):
            if key == _data(CARDS[0]):
                entry = window_states._decode(_text(value).encode())
                entry.state = entry.state[:-3]
                text = window_states._encode(entry)
                entries.put(
                    key, bytes(4) + (-130).to_bytes(4, "big", signed=True) + len(text).to_bytes(4, "big") + text
                )
    world.start()
    before = dict(world.states())
    world.pay(20)
    world.settle()
    world.advance(3.0)
    _, expected = world.expected()
    now = world.states()
    assert {key for key in expected if now[key] != expected[key]} == {_data(CARDS[0])}
    assert now[_data(CARDS[0])] != before[_data(CARDS[0])]
