"""Windows with other keys than the events', in virtual time: whoever dies at whatever step, each event counts once."""

import asyncio
import json
from collections import Counter

import pytest
import xgboost as xgb
from routed_world import ANSWERS, REQUESTS, ROUTED, RoutedWorld
from window_world import BAD, CARDS, PARTITIONS
from world import BOOSTER, _data, _text

from gridscore.features import FeaturePlan
from gridscore.grid.wire import json_data
from gridscore.grid.writer import partition_of
from gridscore.group.lease_records import LEASES_MAP, lease_key
from gridscore.operations.flow import FlowObserver
from gridscore.operations.health import Look, examine
from gridscore.operations.window_state import state_of
from gridscore.scoring import window_messages
from gridscore.testing import Fault

pytestmark = pytest.mark.usefixtures("quiet")

MORE = ROUTED.replace('"1h")', '"1h") + 0 * sum(2 * amount, card, "2h")')
"""With one window feature more, and the same scores."""
BIG = MORE.replace("windows: {", "windows: {big: lower(card), ").replace("+ 0", '+ 0 * count(big, "2h") + 0')
"""And with one of another window, before the other."""


@pytest.fixture
def world():
    world = RoutedWorld()
    yield world
    world.close()


def partition_of_key(key):
    return partition_of(_data(key), PARTITIONS)


def home_of(card):
    """The partition of a card's windows."""
    return partition_of(window_messages.entity_key("card", card), PARTITIONS)


def kept_by(world, name):
    """A card whose windows this worker keeps, and their partition."""
    return next((c, home_of(c)) for c in CARDS if world.stage_leases[home_of(c)]["owner"] == name)


def keys_scored_by(world, name, count):
    """Keys of events of one partition that this worker scores."""
    return world.keys_of(next(p for p, lease in world.ledger.leases.items() if lease["owner"] == name), count)


def test_scores_are_those_of_a_history_in_the_order_in_which_entities_had_their_events(world):
    world.start()
    world.pay(30)
    world.pay_at_once(60)
    world.advance(1.0)
    world.settled()
    assert len(world.scores) == 90
    assert not world.ledger.duplicates()
    assert world.sums() == dict(world.paid)
    # A message a batch and partition, and no more.
    assert world.changes[REQUESTS] <= 90
    assert world.changes["windows.sim"] <= 90 * 2


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("step", [REQUESTS, ANSWERS, "windows.sim", "results.sim", "gridscore.leases"])
def test_a_worker_may_die_after_each_step_of_both_stages(world, step, workers):
    names = [world.start() for _ in range(workers)]
    world.pay(10)
    world.settled()
    world.take_over_after(step, 3, names[0])
    world.pay(10)
    world.settled()


@pytest.mark.parametrize("more", [MORE, BIG])
def test_one_window_more_leaves_the_others_as_they_are(world, more):
    world.start()
    world.pay(30)
    world.settled()
    counts, paid = Counter(world.counts), Counter(world.paid)
    (told,) = world.update(more)
    call = "sum(2 * amount, card, '2h')" if more is MORE else "count(big, '2h')"
    assert "these begin anew, empty: " in told
    assert f"`{call}`" in told
    world.advance(10.0)
    world.pay(20)
    world.settled()
    seen = world.seen_by(call)
    if more is MORE:
        assert seen == {card: 2 * (world.paid - paid)[card] for card in world.paid}
    else:
        assert seen == {card: (world.counts - counts)[card] or None for card in world.counts}


@pytest.mark.parametrize("step", [REQUESTS, ANSWERS, "windows.sim", "results.sim", "gridscore.leases"])
def test_a_worker_may_die_while_a_window_is_added(world, step):
    first = world.start()
    world.pay(10)
    world.settled()
    put = world.pay_at_once(40)
    world.after_the_next(step, 3)
    world.update(BIG)
    world.kill(first)
    world.start()
    world.settle()
    world.advance(5.0)
    world.check()
    assert put.done()
    # Events that were being asked for may see themselves; each is in its windows, once.
    assert world.states() == world.expected()[1]
    world.pay(10)
    world.settle()
    world.advance(3.0)
    assert world.states() == world.expected()[1]


@pytest.mark.parametrize("more", [MORE, BIG])
def test_events_of_the_revision_before_are_added_whose_worker_died_before_it_wrote_their_states(world, more):
    first = world.start()
    world.pay(10)
    world.settled()
    unwritten = Fault("timeout", applied=False, request="Map.PutAll", map="windows.*", client="w1", times=100_000)
    world.cluster.faults.append(unwritten)
    before, put = world.states(), world.pay_at_once(20)
    world.after_the_next("results.sim", 10)
    world.update(more)
    world.kill(first)
    assert world.states() == before
    world.start()
    world.settle()
    world.advance(5.0)
    world.check()
    assert put.done()
    assert world.states() == world.expected()[1]


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("outcome", ["timeout", "disconnect"])
@pytest.mark.parametrize("target", ["window-requests.*", "window-answers.*", "windows.*", "results.*"])
def test_writes_whose_fate_is_unknown_count_once(world, target, outcome, applied):
    world.start()
    world.pay(10)
    world.settled()
    world.cluster.faults.append(Fault(outcome, applied=applied, request="Map.PutAll", map=target, client="w*", times=4))
    world.pay_at_once(40)
    world.advance(5.0)
    world.settled()
    assert not world.ledger.duplicates()


@pytest.mark.parametrize("again", [True, False])
def test_requests_that_come_a_second_time_and_late_change_neither_states_nor_answers(world, again):
    first = world.start()
    world.pay(30)
    world.settled()
    answers = world.entries(ANSWERS)
    for partition in range(PARTITIONS):
        requests = world.cluster.partition(REQUESTS, partition)
        for change in requests.ring.read(0, 100):
            request = json.loads(_text(change.value))
            request[2] = again
            requests.put(change.key, json_data(json.dumps(request).encode()))
    world.advance(5.0)
    world.check_windows()
    assert world.entries(ANSWERS) == answers
    world.kill(first)
    world.start()
    world.settled()
    assert world.entries(ANSWERS) == answers


def test_a_worker_that_leaves_hands_both_stages_over(world):
    first = world.start()
    world.pay(20)
    world.settled()
    world.pay_at_once(30)
    world.start()
    world.stop(first)
    world.settled()
    world.pay(10)
    world.settled()
    assert not world.ledger.duplicates()


@pytest.mark.parametrize("step", [REQUESTS, ANSWERS, "results.sim"])
def test_a_worker_that_was_paused_past_its_lease_changes_no_window(world, step):
    first = world.start()
    world.pay(10)
    world.settled()
    world.pay_at_once(30)
    world.after_the_next(step)
    world.pause(first)
    world.start()
    world.settled()
    world.resume(first)
    world.pay(10)
    world.settled()


def test_of_two_events_of_a_key_with_different_entities_the_newer_ones_result_stands(world):
    """The card of the first lies with a worker that hangs; the second's card does not."""
    first, _ = world.start(), world.start()
    world.pay(20)
    world.settled()
    owners = {partition: lease["owner"] for partition, lease in world.stage_leases.items()}

    def card_of(mine):
        return next(card for card in CARDS if (owners[home_of(card)] == first) is mine)

    partition = next(p for p, lease in world.ledger.leases.items() if lease["owner"] != first)
    (key,) = world.keys_of(partition, 1)
    world.pause(first)
    for card in (card_of(mine=True), card_of(mine=False)):
        _, event = world.payment_of(card)
        world.ask(world.client.put_events("events.sim", {key: event}))
    world.settled()
    world.resume(first)
    world.settled()
    found = world.cluster.partition("results.sim", partition).get(_data(key))
    newest = max(sequence for there, sequence in world.events() if there == partition)
    assert json.loads(_text(found))["sequence"] == newest


def test_an_event_that_is_put_a_second_time_counts_twice_as_everywhere(world):
    world.start()
    key, event = world.payment_of(CARDS[0])
    for _ in range(2):
        world.ask(world.client.put_events("events.sim", {key: event}))
    world.settled()
    assert world.sums() == {CARDS[0]: 2 * world.paid[CARDS[0]]}


def test_events_that_a_rescan_finds_count_once_though_a_worker_dies():
    world = RoutedWorld(ring=32)
    try:
        first = world.start()
        world.pay(5)
        world.settled()
        world.stop(first)
        world.advance(10.0)
        partition = 1
        for key in world.keys_of(partition, 60):
            _, event = world.payment_of(CARDS[0])
            world.ask(world.client.put_events("events.sim", {key: event}))
        second = world.start()
        world.after_the_next(ANSWERS, 20)
        world.kill(second)
        world.start()
        world.settle()
        world.advance(30.0)
        assert world.ledger.leases[partition]["lost"] > 0
        results = world.cluster.partition("results.sim", partition)
        assert sum(1 for _ in results) >= 60
        assert world.sums()[CARDS[0]] == world.paid[CARDS[0]]
    finally:
        world.close()


def test_requests_that_were_overwritten_before_they_were_read_are_put_again(world):
    for partition in range(PARTITIONS):
        world.cluster.partition(REQUESTS, partition).ring.capacity = 2
    names = [world.start() for _ in range(3)]
    world.pay(10)
    world.settle()
    for name in names[:2]:
        world.pause(name)
    world.pay_at_once(60)
    world.advance(3.0)
    for name in names[:2]:
        world.resume(name)
    world.settle()
    world.advance(3.0)
    world.check()
    assert world.sums() == dict(world.paid)


def test_requests_of_workers_that_wait_overwrite_none_that_was_answered_and_not_added(world):
    """The request of an answered event is all that is left of it until its state is written."""
    for partition in range(PARTITIONS):
        world.cluster.partition(REQUESTS, partition).ring.capacity = 6
    names = [world.start() for _ in range(3)]
    world.pay(20)
    world.settle()
    world.advance(5.0)
    scoring = {lease["owner"]: partition for partition, lease in world.ledger.leases.items()}
    stage = {partition: lease["owner"] for partition, lease in world.stage_leases.items()}
    home, dead = next((p, owner) for p, owner in stage.items() if len(scoring.keys() - {owner}) > 1)
    alive = [name for name in names if name != dead and name in scoring]
    card = next(c for c in CARDS if home_of(c) == home)

    def put(name):
        (key,) = world.keys_of(scoring[name], 1)
        world.user.create_task(world.client.put_events("events.sim", {key: world.payment_of(card)[1]}))

    put(alive[0])
    world.after_the_next(ANSWERS)
    world.kill(dead)
    world.advance(0.2)
    for name in alive:
        put(name)
    world.advance(30.0)
    world.settle()
    assert world.sums()[card] == world.paid[card]
    assert not any(lease["lost"] for lease in world.stage_leases.values())


@pytest.mark.parametrize("asks", ["the other", "the same", "the same, and one more", "the same, and one more, twice"])
def test_an_event_counts_whose_request_a_member_took_with_it_after_it_was_answered(world, asks):
    """A host goes, with a member and the worker that has answered; which may be the one that had asked.

    Its successor may ask for what stands together with what does not, and its first request may be lost.
    """
    names = [world.start() for _ in range(2)]
    world.pay(20)
    world.settled()
    card, home = kept_by(world, names[0])
    asking = names[asks == "the other"]
    key, another = keys_scored_by(world, asking, 2)
    requests = {"request": "Map.PutAll", "map": "window-requests.*"}
    world.cluster.faults.append(Fault("unacknowledged", **requests, client=asking))
    world.user.create_task(world.client.put_events("events.sim", {key: world.payment_of(card)[1]}))
    world.after_the_next(ANSWERS)
    world.kill(names[0])
    world.cluster.regress(REQUESTS, home, 1)
    if asks.endswith("more"):
        world.pay_at_once(20)
    if asks.endswith("twice"):
        lost = Fault("timeout", applied=False, **requests, partition=home, client=names[1])
        world.cluster.faults.append(lost)
        world.user.create_task(world.client.put_events("events.sim", {another: world.payment_of(card)[1]}))
    world.advance(40.0)
    world.settle()
    assert not asks.endswith("twice") or not lost.times
    assert world.sums()[card] == world.paid[card]


def test_what_stands_answered_is_asked_for_again_only_when_it_was_added(world):
    """Else those whose results are refused ask again and again, and overwrite what was answered and not added."""
    names = [world.start() for _ in range(2)]
    world.pay(20)
    world.settled()
    card, home = kept_by(world, names[0])
    (key,) = keys_scored_by(world, names[1], 1)
    refused = Fault("timeout", applied=False, request="Map.PutAll", map="results.sim", client=names[1], times=1_000)
    world.cluster.faults.append(refused)
    ring = world.cluster.partition(REQUESTS, home).ring
    newest = ring.newest
    world.user.create_task(world.client.put_events("events.sim", {key: world.payment_of(card)[1]}))
    world.after_the_next(ANSWERS)
    world.kill(names[0])
    assert world.time.run_until(lambda: world.stage_leases[home]["owner"] != names[0], seconds=30.0)
    assert refused.times < 1_000
    assert ring.newest - newest == 2
    refused.times = 0
    world.settled()


def test_a_request_is_put_again_that_a_member_took_with_it_while_it_waited(world):
    names = [world.start() for _ in range(2)]
    world.pay(20)
    world.settled()
    card, home = kept_by(world, names[0])
    (key,) = keys_scored_by(world, names[1], 1)
    world.kill(names[0])
    world.user.create_task(world.client.put_events("events.sim", {key: world.payment_of(card)[1]}))
    world.after_the_next(REQUESTS)
    world.advance(2.5)  # it is overdue
    world.cluster.regress(REQUESTS, home, 1)
    world.settled()
    assert world.sums()[card] == world.paid[card]


def test_a_request_is_kept_for_the_events_of_a_partition_though_those_of_another_are_lost(world):
    names = [world.start() for _ in range(2)]
    world.settle()
    world.pay(30)  # each worker remembers some of its partitions
    world.settled()
    card, home = kept_by(world, names[0])
    other = next(c for c in CARDS if home_of(c) == home and c != card)
    left, kept = (p for p, lease in world.ledger.leases.items() if lease["owner"] == names[1])
    lost, ours = world.keys_of(left, 1), world.keys_of(kept, 1)
    paid = world.paid[other]
    world.cluster.faults.append(Fault("unacknowledged", request="Map.PutAll", map="window-requests.*", client=names[1]))
    both = {lost[0]: world.payment_of(other)[1], ours[0]: world.payment_of(card)[1]}
    world.user.create_task(world.client.put_events("events.sim", both))
    world.after_the_next(ANSWERS)
    assert len(world.asked()) == 32
    world.kill(names[0])
    world.cluster.regress(REQUESTS, home, 1)
    world.regress(left, 1)  # the same member had it
    world.advance(40.0)
    world.settle()
    assert world.sums()[card] == world.paid[card]
    assert world.sums()[other] == paid


def test_a_bad_lease_of_a_partition_of_entities_is_named(world):
    world.start()
    world.pay(20)
    world.settled()
    leases = world.cluster.partition(LEASES_MAP, 2)
    watch, world.cluster.on_change = world.cluster.on_change, lambda *_: None  # it cannot be read here either
    leases.put(lease_key("windows:sim", 2, PARTITIONS), json_data(b'{"owner": 3'))
    world.cluster.on_change = watch

    async def looks():
        observer, flows = FlowObserver(world.grid), []
        for _ in range(4):
            flows.append(await observer.look())
            await asyncio.sleep(1.0)
        return flows

    flows = world.ask(looks())
    (found,) = [
        each
        for each in examine([Look(each.overview.at, each.overview.jobs[0]) for each in flows])
        if each.code == "no_owner"
    ]
    assert "1 partition of `windows:sim` has no living owner, the first of them 2" in found.text
    assert [each.key for each in flows[-1].bad_records] == ["windows:sim/2"]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("seconds", [0.0, 30.0])
def test_an_event_that_gets_the_sequence_of_one_that_a_member_took_with_it_gets_no_answer_of_that(
    world, count, seconds
):
    first, second = world.start(), world.start()
    world.pay(20)
    world.settled()
    partition = next(p for p, lease in world.ledger.leases.items() if lease["owner"] == first)
    stage = {p for p, lease in world.stage_leases.items() if lease["owner"] == second}
    cards = [card for card in CARDS if home_of(card) in stage and world.paid[card]]
    keys = world.keys_of(partition, 2 * count)
    paid = dict(world.paid)
    gone = {key: world.payment_of(cards[0])[1] for key in keys[:count]}
    world.clock += 7.0
    world.user.create_task(world.client.put_events("events.sim", gone))
    world.after_the_next(ANSWERS if seconds else REQUESTS)
    world.kill(first)  # a host goes, with the one member that had the events, and a worker
    world.regress(partition, count)
    world.advance(seconds)  # the answers may stand before the next events are read, or come meanwhile
    others = {key: world.payment_of(card)[1] for key, card in zip(keys[count:], cards[1:], strict=False)}
    world.ask(world.client.put_events("events.sim", others))
    world.start()
    world.settle()
    world.advance(5.0)
    found = world.sums()
    texts = {place: json.loads(text) for place, text in world.events().items()}
    for event in others.values():
        card, amount = event["card"], event["amount"]
        assert found[card] == paid.get(card, 0) + amount
        before = max(each["time"] for each in texts.values() if each["card"] == card and each != event)
        matrix = xgb.DMatrix([[found[card], event["time"] - before]], feature_names=["amount", "log_amount"])
        place = next(place for place, each in texts.items() if each == event)
        assert world.scores[place] == {float(BOOSTER.predict(matrix)[0])}


@pytest.mark.parametrize("lost", [REQUESTS, ANSWERS])
def test_whatever_is_lost_between_the_stages_is_asked_for_again(world, lost):
    world.start()
    world.pay(10)
    world.settled()
    world.pay_at_once(40)
    world.after_the_next(lost, 2)
    for partition in range(PARTITIONS):
        world.cluster.regress(lost, partition)
    world.settle()
    world.pay(10)
    world.settle()
    world.advance(3.0)
    world.check()
    assert set(world.events()) <= set(world.scores)
    if lost == REQUESTS:
        assert world.sums() == dict(world.paid)


def test_an_event_that_becomes_a_dead_letter_after_its_windows_were_asked_is_in_them(world, monkeypatch):
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
    world.start()
    key, event = world.payment_of(CARDS[0])
    world.ask(world.client.put_events("events.sim", {key: event | {"amount": BAD}}))
    world.ask(world.client.put_events("events.sim", {"text": event | {"amount": "much"}}))
    world.advance(5.0)
    assert world.ledger.rejected() == {key, "text"}
    record = world.ask(world.client.jobs.get("sim"))
    assert world.ask(state_of(world.grid, record, CARDS[0])).values["sum(amount, card, '1h')"] == BAD


def test_windows_begin_anew_when_a_job_is_restarted_from_its_oldest_event(world):
    world.start()
    world.pay(20)
    world.settled()
    record = world.ask(world.client.jobs.restart("sim", "oldest"))
    world.advance(15.0)
    world.settle()
    assert record.restarts == 1
    assert world.sums() == dict(world.paid)


def test_windows_with_different_keys_are_asked_side_by_side():
    job = (
        ROUTED.replace("card: string,", "card: string, shop: int, wing: string,")
        .replace("{card: card}", "{card: card, shop: {key: [shop, wing]}}")
        .replace("seconds_since_last(card)", "count(shop, '1h') + seconds_since_last(card)")
    )
    world = RoutedWorld(job=job)
    pay = world.payment_of

    def payment_of(card):
        key, event = pay(card)
        return key, event | {"shop": world.random.randrange(4), "wing": world.random.choice("ab")}

    world.payment_of = payment_of
    try:
        first = world.start()
        world.pay(10)
        world.take_over_after("windows.sim", 5, first)
        assert world.sums() == dict(world.paid)
    finally:
        world.close()


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_in_whatever_order_each_event_counts_once(seed):
    world = RoutedWorld(seed=seed)
    draw, faults = world.random, ("timeout", "indeterminate", "unacknowledged", "disconnect", "move", "delay")
    try:
        for _ in range(3):
            world.start()
        world.pay(10)
        for _ in range(12):
            world.pay_at_once(draw.randrange(30))
            match draw.randrange(5):
                case 0 if len(world.workers) > 1:
                    world.kill(draw.choice(sorted(world.workers)))
                    world.start()
                case 1:
                    name = draw.choice(sorted(world.workers))
                    world.pause(name)
                    world.advance(draw.uniform(0.1, 12.0))
                    world.resume(name)
                case 2:
                    world.start()
                    world.stop(draw.choice(world.living()))
                case _:
                    target = draw.choice(
                        ("window-requests.*", "window-answers.*", "windows.*", "results.*", "gridscore.*")
                    )
                    times, seconds = draw.randrange(1, 6), draw.uniform(0.1, 6.0)
                    world.cluster.faults.append(
                        Fault(draw.choice(faults), map=target, client="w*", times=times, seconds=seconds)
                    )
            world.advance(draw.uniform(0.01, 2.0))
        world.cluster.faults.clear()
        world.settle()
        world.advance(20.0)  # writes of unknown fate are waited for
        world.settled()
        world.pay(10)
        world.settled()
    finally:
        world.close()
