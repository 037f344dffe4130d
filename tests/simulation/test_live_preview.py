"""A preview of live events, in virtual time: what it shows is what the worker writes, and it changes nothing."""

import json
from contextlib import aclosing, nullcontext

import pytest
from window_world import WindowWorld
from world import World, _text

from gridscore.errors import UsageError
from gridscore.operations.preview import of_journal
from gridscore.operations.subject import subject_of

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture
def world():
    world = World()
    yield world
    world.close()


@pytest.fixture
def cards():
    world = WindowWorld()
    yield world
    world.close()


def begin(world, count, **options):
    """The preview of so many events, as a task."""

    async def look():
        passed = []
        async with (
            subject_of(lambda: nullcontext(world.grid), "sim", [None], None) as subject,
            aclosing(of_journal(subject, **options)) as events,
        ):
            async for event in events:
                passed.append(event)
                if len(passed) == count:
                    break
        return passed

    return world.user.create_task(look())


async def outcome(task):
    return await task


def contents(world):
    """All entries of all maps."""
    return {
        name: [list(world.cluster.partition(name, partition)) for partition in range(world.partitions)]
        for name in world.cluster.names
    }


def results(world):
    """The results by key, without what only a worker can say."""
    found = {}
    for partition in range(world.partitions):
        for key, value in world.cluster.partition("results.sim", partition):
            found[_text(key)] = known(json.loads(_text(value)))
    return found


def known(result):
    return {name: value for name, value in result.items() if name not in ("epoch", "scored_at")}


def test_a_preview_shows_what_a_worker_writes_and_writes_nothing(world):
    world.put({f"e{number}": float(number) for number in range(20)})
    world.put({"bad": None})
    before = contents(world)

    passed = world.ask(outcome(begin(world, 21, oldest=True)))

    assert contents(world) == before
    world.start()
    world.settle()
    assert {each.key: known(each.result) for each in passed if each.result} == results(world)
    (bad,) = (each for each in passed if each.rejected)
    assert (bad.key, bad.rejected["stage"], bad.decoded) == ("bad", "decode", None)
    one = next(each for each in passed if each.key == "e7")
    assert (one.decoded, one.features["amount"]) == ({"amount": 7.0}, 7.0)


def test_it_begins_with_the_next_event_and_can_look_at_one_key(world):
    world.put({"old": 1.0})
    look = begin(world, 2, key="e5")
    world.advance(1.0)
    world.put({f"e{number}": float(number) for number in range(20)})
    world.put({"e5": 55.0})
    assert [each.decoded["amount"] for each in world.ask(outcome(look))] == [5.0, 55.0]


@pytest.mark.parametrize("key", [None, "card3"])
def test_windows_are_as_the_worker_sees_them_though_it_lags_at_the_beginning(cards, key):
    first = cards.start()
    cards.pay(40)
    cards.settled()
    cards.kill(first)
    cards.pay(40)  # nobody scores these yet
    look = begin(cards, 30 if key is None else 4, key=key)
    cards.advance(2.0)
    cards.start()
    for _ in range(50):
        cards.pay(10)
        cards.advance(1.0)
        if look.done():
            break
    cards.settled()
    passed = cards.ask(outcome(look))
    for each in passed:
        assert cards.scores[each.partition, each.sequence] == {each.result["score"]}
    assert key is None or {each.key for each in passed} == {key}


def test_what_windows_held_before_is_not_claimed_to_be_known(cards):
    cards.pay(1)
    with pytest.raises(UsageError, match="not known any more"):
        cards.ask(outcome(begin(cards, 1, oldest=True)))
