"""Late events in a map of their own, in virtual time: whoever dies, each that was late is there, and no other."""

import json
import math
from contextlib import closing

import pytest
from routed_world import ROUTED, RoutedWorld
from window_world import JOB, WindowWorld
from world import _entries, _text

from gridscore.features import EventDecoder
from gridscore.features.windows import Windows
from gridscore.operations.status import Observer
from gridscore.testing import Fault

pytestmark = pytest.mark.usefixtures("quiet")

LATE = "late.sim"


class _Late:
    """Every fourth payment is too late; `expected_late` says by how much, by partition and sequence, of a history."""

    def payment_of(self, card):
        key, event = super().payment_of(card)
        self.paid[card] -= event["amount"] * (late := self.random.random() < 0.25)
        return key, event | {"time": event["time"] - late * 5_000.0}

    def entries_of(self, name):
        pairs = [each for partition in range(self.partitions) for each in self.cluster.partition(name, partition)]
        return [json.loads(_text(value)) for _, value in pairs]

    def found_late(self):
        found = self.entries_of(LATE)
        texts = self.events()
        for each in found:
            assert each["event"] == json.loads(texts[each["partition"], each["sequence"]])
        by = {(each["partition"], each["sequence"]): each["late"] for each in found}
        assert len(by) == len(found)
        return by

    def expected_late(self):
        windows, decoder, texts = Windows(self.spec), EventDecoder(self.spec), self.events()
        order = self.order()
        events = decoder.decode_all([texts[place] for place in order])
        told, _ = windows.apply(events, windows.inputs(events), [{}])
        late = windows.late_in(0, told).tolist()
        return {place: {"card": by} for place, by in zip(order, late, strict=True) if not math.isnan(by)}

    def check_late(self):
        self.settled()
        expected = self.expected_late()
        assert expected
        assert self.found_late() == expected


class OwnLate(_Late, WindowWorld):
    """Windows with the events' own key."""

    def __init__(self, more="", **options):
        super().__init__(job=f"{JOB}late: {LATE}\n{more}", **options)

    events = RoutedWorld.events

    def order(self):
        return sorted(self.events())


class RoutedLate(_Late, RoutedWorld):
    """Windows with another key."""

    def __init__(self, **options):
        super().__init__(job=f"{ROUTED}late: {LATE}\n".replace("lateness: 1h", "lateness: 10s"), **options)

    def order(self):
        return [place for place in self.asked() if place in self.events()]


@pytest.fixture(params=[OwnLate, RoutedLate])
def world(request):
    world = request.param()
    yield world
    world.close()


def test_late_events_are_scored_and_noted_with_how_late_they_are(world):
    world.start()
    world.pay(40)
    world.check_late()
    late = world.entries_of(LATE)[0]
    assert late["key"] == (late["event"]["card"] if isinstance(world, OwnLate) else late["key"])
    assert set(late) == {"late", "key", "partition", "sequence", "noted_at", "event"}


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("step", [LATE, "results.sim", "windows.sim", "gridscore.leases"])
def test_a_worker_may_die_after_each_step(world, step, count):
    first = world.start()
    world.pay(20)
    world.settled()
    world.take_over_after(step, count, first)
    world.pay(20)
    world.check_late()


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("outcome", ["timeout", "unacknowledged"])
@pytest.mark.parametrize("target", ["late.*", "results.*", "windows.*"])
def test_writes_whose_fate_is_unknown_leave_each_late_event_once(world, target, outcome, applied):
    world.start()
    world.pay(20)
    world.settled()
    world.cluster.faults.append(Fault(outcome, applied=applied, request="Map.PutAll", map=target, client="w*", times=4))
    world.pay_at_once(40)
    world.advance(5.0)
    world.check_late()


@pytest.mark.parametrize("target", ["late.*", "results.*"])
def test_a_worker_may_die_while_it_does_not_know_whether_late_events_were_written(world, target):
    first = world.start()
    world.pay(20)
    world.settled()
    world.cluster.faults.append(Fault("timeout", applied=True, request="Map.PutAll", map=target, client="w*", times=2))
    world.take_over_after(LATE, 1, first)
    world.check_late()


def test_no_more_are_kept_than_there_is_room_for_and_the_rest_are_counted():
    with closing(OwnLate("max_dead_letters: 3\n")) as world:
        world.start()
        world.pay(40)
        world.settled()
        late = world.expected_late()
        assert len(late) > 4
        assert world.found_late().items() <= late.items()
        assert len(world.found_late()) == 3
        (status,) = world.ask(Observer(world.grid, "sim").look()).jobs
        assert status.totals["late"] == len(late)


def test_after_one_large_event_there_is_room_for_small_ones():
    with closing(OwnLate(f"max_dead_letter_bytes: {1 << 21}\n")) as world:
        world.start()
        world.pay(20)
        card, event = world.payment()
        large = event | {"time": world.clock - 50_000.0, "note": "x" * 1_000_000}
        world.ask(world.client.put_events("events.sim", {card: large}))
        world.pay(40)
        world.check_late()
        assert max(len(_text(value)) for _, value in _entries(world.cluster, LATE)) > 1_000_000


@pytest.mark.parametrize(("request_name", "partition", "times"), [("Map.Size", None, 1), ("Map.PutAll", 2, 1_000)])
def test_no_partition_waits_for_a_member_that_only_others_need(request_name, partition, times):
    with closing(OwnLate()) as world:
        world.start()
        world.pay(40)
        world.settled()
        world.advance(3.0)
        fault = Fault(
            "silence", applied=False, request=request_name, map="late.*", partition=partition, client="w*", times=times
        )
        world.cluster.faults.append(fault)
        put = world.pay_at_once(60)
        world.advance(5.0)
        assert put.done()
        assert fault.times < times
        assert {where for where in world.events() if where[0] != partition} <= world.scores.keys()
