"""Parity in virtual time: live results against the same events offline; and what cannot be told is not claimed."""

import asyncio
import json
from contextlib import nullcontext

import pytest
from window_world import WindowWorld
from world import JOB, World, _text

from gridscore.job import parse_job
from gridscore.models.certificates import MOST, certificates_of, keep
from gridscore.operations.health import Look, examine
from gridscore.operations.parity import _share, parity
from gridscore.operations.status import job_status
from gridscore.operations.subject import subject_of

pytestmark = pytest.mark.usefixtures("quiet")

LOOKUPS = """\
job: sim
events: events.sim
schema: {amount: float, card: string}
lookups: {bonus: {map: lookups.bonus, key: card, fields: {points: float?}}}
features:
  amount: amount
  log_amount: bonus.points
model: {name: sim, alias: champion}
results: results.sim
result: {include: [card]}
"""


@pytest.fixture
def made(request):
    world = request.param()
    yield world
    world.close()


def worlds(*kinds):
    return pytest.mark.parametrize("made", kinds, indirect=True, ids=[kind.__name__ for kind in kinds])


def begin(world, **options):
    async def compare():
        async with subject_of(lambda: nullcontext(world.grid), "sim", [None], None) as subject:
            return await parity(subject, **options)

    return world.user.create_task(compare())


async def outcome(task):
    return await task


def find(world, **options):
    return world.ask(outcome(begin(world, **options)))


@pytest.mark.parametrize(
    ("sizes", "events", "each"),
    [([0, 5, 10], 9, 5), ([0, 5, 10], 100, 10), ([4, 4], 3, 2), ([1, 100, 100], 101, 50), ([0, 0], 5, 0)],
)
def test_events_are_of_all_partitions_and_as_many_as_are_wanted(sizes, events, each):
    assert _share(sizes, events) == each


def tamper(world, key, **changes):
    """Write another result under a key, as a wrong worker would have."""
    world.cluster.on_change = lambda *_: None  # the ledger would say so
    for partition in range(world.partitions):
        for data, value in world.cluster.partition("results.sim", partition):
            if _text(data) == key:
                changed = {**json.loads(_text(value)), **changes}
                world.ask(world.client.put_events("results.sim", {key: changed}))


@worlds(World)
def test_all_results_are_equal_those_of_replaced_events_as_well(made):
    made.start()
    made.put({f"e{number}": float(number) for number in range(40)})
    made.settle()
    made.put({f"e{number}": number + 0.5 for number in range(10)})
    made.put({"bad": None})
    made.settle()
    found = find(made)
    assert (found.equal, found.judged) == (50, 50)
    assert dict(found.unjudged) == {"cannot be scored": 1}
    few = find(made, events=8)
    assert 0 < few.equal == few.judged <= 8


def explained_world():
    return World(job=JOB + "result: {reasons: {budget: 1.0}}\n")


@worlds(explained_world)
def test_reasons_make_no_difference(made):
    made.start()
    made.put({f"e{number}": float(number) for number in range(40)})
    made.settle()
    made.advance(10.0)
    assert "reasons" in made.ask(made.client.result("results.sim", "e7"))
    found = find(made)
    assert (found.equal, found.judged) == (40, 40), found.first


@worlds(World)
def test_a_result_with_another_bit_is_found_stored_and_makes_the_job_unwell_until_it_is_gone(made):
    made.start()
    made.put({f"e{number}": float(number) for number in range(40)})
    made.settle()
    right = find(made)
    score = made.ask(made.client.result("results.sim", "e7"))["score"]
    tamper(made, "e7", score=score + 1e-5)

    found = find(made)

    assert (found.equal, found.different, found.unclear) == (39, 1, 0)
    assert (found.first.key, found.first.values) == ("e7", {"score": (score + 1e-5, score)})
    assert json.loads(found.first.event) == {"amount": 7.0}
    assert found.first.features["amount"] == 7.0

    made.ask(keep(made.grid, found.certificate))
    status = made.ask(look(made))
    (problem,) = [each for each in examine([Look(0.0, status)]) if each.code == "parity"]
    assert "39 of 40 equal" in problem.text
    assert "Event e7 (partition" in problem.text

    # Anybody may write into the result map.
    tamper(made, "e8", epoch="x")
    tamper(made, "e9", score=[None, {}], features={"amount": "x", "log_amount": 10**40, "other": 1.0})
    found = find(made)
    assert (found.equal, found.different, dict(found.unjudged)) == (37, 2, {"no result": 1})
    assert set(found.features) == {"amount", "log_amount"}

    made.ask(keep(made.grid, right.certificate))
    assert not [each for each in examine([Look(0.0, made.ask(look(made)))]) if each.code == "parity"]


async def look(world):
    return await job_status(world.grid, await world.client.jobs.get("sim"))


@worlds(World)
def test_certificates_are_bounded_and_a_version_has_the_last_of_each_job(made):
    made.put({"e1": 1.0})
    made.start()
    made.settle()
    certificate = find(made).certificate

    async def store():
        for version in range(1, MOST + 5):
            await keep(made.grid, replaced(certificate, version=version, at=f"2026-01-01T00:00:{version:02}Z"))
            await asyncio.sleep(0)
        await keep(made.grid, replaced(certificate, version=9, at="2026-02-01T00:00:00Z"))
        return await certificates_of(made.grid)

    kept = made.ask(store())
    assert [each.version for each in kept] == [*range(5, 9), *range(10, MOST + 5), 9]


def replaced(certificate, **changes):
    return type(certificate)(**{**certificate.to_json(), **changes})


@worlds(WindowWorld)
def test_windows_are_judged_from_the_first_event_on_whoever_dies(made):
    first = made.start()
    made.pay(40)
    made.settled()
    made.pay_at_once(40)
    made.after_the_next("windows.sim")
    made.kill(first)
    made.start()
    made.settled()
    found = find(made)
    assert (found.equal, found.judged, dict(found.unjudged)) == (80, 80, {})
    few = find(made, events=8)
    assert 0 < few.equal == few.judged <= 8


@worlds(WindowWorld)
def test_windows_are_not_judged_from_a_journal_that_has_begun_again(made):
    made.start()
    made.pay(20)
    made.settled()
    for partition in range(made.partitions):
        made.regress(partition)
    made.advance(30.0)
    made.pay(40)
    made.advance(10.0)
    assert made.ledger.leases[0]["regressions"] == 1
    found = find(made, wait=0.5)
    assert (found.different, found.judged) == (0, 0)


@worlds(WindowWorld)
def test_windows_that_are_older_than_the_journal_are_judged_by_what_comes_meanwhile(made):
    made.start()
    made.pay(30)
    made.settled()
    made.ask(made.client.jobs.restart("sim", "committed"))
    made.advance(10.0)
    assert find(made, wait=0.5).judged == 0

    comparing = begin(made, wait=20.0)
    made.advance(2.0)
    made.pay(30)
    made.advance(25.0)
    found = made.ask(outcome(comparing))
    assert (found.equal, found.judged) == (30, 30)


@worlds(World)
def test_a_lookup_that_has_changed_since_is_not_called_a_difference(made):
    def events(begin, end):
        return {f"e{number}": {"amount": float(number), "card": f"c{number % 4}"} for number in range(begin, end)}

    def put(entries, name="events.sim"):
        made.ask(made.client.put_events(name, entries))
        made.advance(2.0)

    put({f"c{number}": {"points": 100.0 * number} for number in range(4)}, "lookups.bonus")
    made.ask(made.client.submit(parse_job(LOOKUPS, "simulation"), update=True))
    made.start()
    made.advance(10.0)
    put(events(0, 40))
    assert find(made).equal == 40

    put({"c3": {"points": 900.0}}, "lookups.bonus")
    found = find(made)
    assert (found.different, found.judged) == (0, 40)
    assert found.unclear == 10
    assert found.first is None
    assert json.loads(found.first_unclear.event)["card"] == "c3"
    assert found.first_unclear.features["log_amount"] == 900.0

    # What no lookup can have changed is a difference all the same.
    tamper(made, "e3", card="c2")
    found = find(made)
    assert (found.different, found.unclear) == (1, 9)


@worlds(World)
def test_features_that_results_carry_are_compared_each_and_tell_a_score_from_its_lookups(made):
    def put(entries, name="events.sim"):
        made.ask(made.client.put_events(name, entries))
        made.advance(2.0)

    put({"c1": {"points": 100.0}}, "lookups.bonus")
    text = LOOKUPS.replace("include: [card]", "features: all")
    made.ask(made.client.submit(parse_job(text, "simulation"), update=True))
    made.start()
    made.advance(10.0)
    put({f"e{number}": {"amount": number + 0.1, "card": "c1"} for number in range(20)})
    assert find(made).features == {"amount": [20, 20], "log_amount": [20, 20]}

    put({"c1": {"points": 900.0}}, "lookups.bonus")
    result = made.ask(made.client.result("results.sim", "e3"))
    tamper(made, "e3", score=result["score"] + 1.0)
    found = find(made)
    # The entry has changed, but a score is always that of the features beside it.
    assert (found.different, found.unclear) == (1, 19)
    assert found.features == {"amount": [20, 20], "log_amount": [0, 20]}
    assert found.first.key == "e3"


@worlds(World)
def test_before_a_version_has_results_the_workers_code_is_compared_here(made):
    made.put({f"e{number}": float(number) for number in range(20)})
    assert find(made).unjudged == {"no result": 20}
    found = find(made, served="here")
    assert (found.equal, found.judged) == (20, 20)
    assert found.certificate.served == "here"
