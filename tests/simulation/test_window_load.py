"""States of windows from a history, in virtual time: scores go on as if the stream had begun with it, bit for bit."""

import asyncio
import json
import time

import numpy as np
import pandas as pd
import pytest
from routed_world import ANSWERS, RoutedWorld
from window_world import CARDS, JOB, WindowWorld
from world import BOOSTER, _text

from gridscore.errors import JobError, TableError
from gridscore.features import offline_matrix
from gridscore.job import JobState, parse_job
from gridscore.operations import window_load
from gridscore.operations.window_load import load_states
from gridscore.operations.window_state import state_of
from gridscore.testing import Fault

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture(params=[WindowWorld, RoutedWorld], ids=["own keys", "other keys"])
def world(request):
    world = request.param()
    yield world
    world.close()


@pytest.fixture
def file(tmp_path):
    return tmp_path / "history.jsonl"


def write(world, file, count=150):
    """A history of so many payments, an hour and less before the first of the stream."""
    draw = np.random.default_rng(5)
    begin = world.clock - count * 10
    world.history = [
        {
            "card": CARDS[draw.integers(0, 11)],  # the last has none
            "amount": round(float(draw.gamma(2, 20)), 2),
            "time": begin + number * 10.0 + draw.integers(0, 9),
        }
        for number in range(count)
    ]
    for event in world.history:
        world.paid[event["card"]] += event["amount"]
        world.counts[event["card"]] += 1
    return keep(world, file)


def keep(world, file):
    file.write_text("".join(json.dumps(event) + "\n" for event in world.history))
    world.until = np.nextafter(max(event["time"] for event in world.history), np.inf)
    return file


def load(world, file, **options):
    record = world.ask(world.client.jobs.get("sim"))
    return world.ask(load_states(world.grid, record, file, **options))


def suspend(world):
    world.ask(world.client.jobs.suspend("sim"))
    world.advance(5.0)


def streamed(world):
    """Place and event of each that was put, in the order of its partition."""
    return [
        ((partition, sequence), json.loads(_text(change.value)))
        for partition in range(world.partitions)
        for ring in [world.cluster.partition("events.sim", partition).ring]
        for sequence, change in enumerate(ring.read(ring.oldest, ring.capacity), ring.oldest)
    ]


@pytest.mark.parametrize("most", [1 << 30, 4_000])
def test_scores_after_a_load_are_those_of_history_and_stream_bit_for_bit(world, file, most, monkeypatch):
    monkeypatch.setattr(window_load, "MOST_BYTES", most)
    monkeypatch.setattr(window_load, "_CHUNK", 32)
    found = load(world, write(world, file))
    assert (found.states, found.written, found.kept) == (11, 11, 0)
    assert (found.readings > 1) is (most < 1 << 30)
    world.start()
    world.pay(60)
    world.settled()
    # Another way to the same: the matrix that a model is trained on.
    events = streamed(world)
    if isinstance(world, RoutedWorld):
        events = [(place, dict(events)[place]) for place in world.asked()]  # of two partitions, either may be the first
    rows = pd.DataFrame(world.history + [event for _, event in events])
    matrix = offline_matrix(parse_job(world.job, "simulation"), rows)
    wanted = matrix.predict(BOOSTER)[len(world.history) :]
    assert {place: world.scores[place] for place, _ in events} == {
        place: {float(score)} for (place, _), score in zip(events, wanted, strict=True)
    }


@pytest.mark.parametrize("step", ["results.sim", "windows.sim", "gridscore.leases", ANSWERS])
def test_events_that_are_in_the_history_too_count_once_whoever_dies(world, file, step):
    if step == ANSWERS and type(world) is WindowWorld:
        step = "results.sim"
    world.pay(30)  # of which the history has all
    world.history = [event for _, event in streamed(world)]
    world.history.sort(key=lambda event: event["time"])
    assert load(world, keep(world, file)).written == len(world.counts)
    first = world.start()
    world.advance(1.0)
    world.take_over_after(step, 2, first)
    assert world.sums() == dict(world.paid)


def test_a_second_time_changes_nothing_and_entities_keep_what_came_after(world, file):
    write(world, file)
    first = load(world, file)
    changes = world.changes["windows.sim"]
    again = load(world, file)
    assert (again.states, again.written, again.kept) == (first.states, 0, 0)
    assert world.changes["windows.sim"] == changes
    world.start()
    world.pay(10)
    world.settled()
    suspend(world)
    states = world.states()
    paid = {event["card"] for _, event in streamed(world)}
    found = load(world, file)
    assert (found.written, found.kept) == (0, len(paid - {CARDS[-1]}))
    assert world.states() == states
    world.ask(world.client.jobs.resume("sim"))
    world.pay(10)
    world.settled()


def test_a_window_that_an_update_adds_is_filled_before_the_job_goes_on(world, file):
    world.start()
    world.pay(40)
    world.settled()
    world.update(world.job.replace('"1h")', '"1h") + 0 * count(card, "2h")'), suspended=True)
    assert world.ask(world.client.jobs.get("sim")).state is JobState.SUSPENDED
    world.advance(5.0)
    world.pay(10)  # waits
    world.history = [event for _, event in streamed(world)]
    world.history.sort(key=lambda event: event["time"])
    world.clock += 7.0
    load(world, keep(world, file), until=world.clock)
    world.until = world.clock
    world.ask(world.client.jobs.resume("sim"))
    world.advance(10.0)
    world.pay(20)
    world.settle()
    world.advance(3.0)
    assert world.seen_by("count(card, '2h')") == dict(world.counts)
    assert world.sums() == dict(world.paid)


def test_rows_from_the_moment_on_are_left_to_the_journal_and_a_dry_run_writes_nothing(world, file):
    write(world, file)
    moment = world.history[100]["time"]
    found = load(world, file, until=moment, dry_run=True)
    assert (found.rows, found.after, found.written) == (150, 50, 0)
    assert not world.states()
    load(world, file, until=moment)
    for event in world.history[100:]:
        world.paid[event["card"]] -= event["amount"]
    assert world.sums() == pytest.approx({card: world.paid[card] for card in world.sums()})


def test_what_is_shown_of_a_whole_number_is_what_came_after_its_history(gridscore_lab, file):
    lab, client = gridscore_lab, gridscore_lab.client
    lab.submit(JOB.replace("card: string", "card: int"), model=BOOSTER)
    lab.run(client.jobs.suspend("sim"))
    lab.run(asyncio.sleep(5.0))
    now = int(time.time())
    file.write_text(json.dumps({"card": 7, "amount": 5.0, "time": now - 60}))
    lab.run(load_states(client.grid, lab.run(client.jobs.get("sim")), file))
    lab.run(client.jobs.resume("sim"))
    lab.put({7: {"card": 7, "amount": 3.0, "time": now}})
    lab.run(asyncio.sleep(5.0))
    found = lab.run(state_of(client.grid, lab.run(client.jobs.get("sim")), "7"))
    assert found.values == {"sum(amount, card, '1h')": 8.0, "seconds_since_last(card)": 0.0}  # noqa: PD011


def test_a_job_that_scores_is_refused_and_so_is_one_that_has_begun_meanwhile(world, file, monkeypatch):
    write(world, file)
    values_of = window_load.values_of

    async def begun(grid, *rest):
        await world.client.jobs.restart("sim")
        return await values_of(grid, *rest)

    with monkeypatch.context() as now:
        now.setattr(window_load, "values_of", begun)
        with pytest.raises(JobError, match="has begun, or was changed, while its states were loaded"):
            load(world, file)
    world.start()
    world.advance(10.0)
    with pytest.raises(JobError, match="The job `sim` is RUNNING: windows are loaded before it begins") as refused:
        load(world, file)
    assert "gridscore suspend sim" in refused.value.hint


def test_what_a_worker_has_written_meanwhile_stays(world, file, monkeypatch):
    write(world, file)
    load(world, file)
    before = world.states()

    async def unseen(*_):
        return {}

    monkeypatch.setattr(window_load, "values_of", unseen)
    found = load(world, file, until=world.history[50]["time"])
    assert found.written == 0
    assert found.kept == found.states > 0
    assert world.states() == before


def test_a_worker_that_begins_meanwhile_is_noticed_though_it_cannot_say_so(world, file, monkeypatch):
    write(world, file)
    # The state of the job cannot be noted.
    world.cluster.faults.append(
        Fault("timeout", applied=False, request="Map.ReplaceIfSame", map="gridscore.jobs", times=10_000)
    )
    values_of = window_load.values_of

    async def begun(grid, *rest):
        if not world.workers:
            world.start()
            await asyncio.sleep(10.0)
        return await values_of(grid, *rest)

    monkeypatch.setattr(window_load, "values_of", begun)
    with pytest.raises(JobError, match="has begun, or was changed, while its states were loaded"):
        load(world, file)


@pytest.mark.parametrize(
    ("row", "change", "why"),
    [
        (3, {"amount": "much"}, r"row 4: .*amount"),
        (3, {"time": 0.0}, "is older than a row of its entity"),
        (19, {"time": 4e9}, "of this computer's clock"),
    ],
)
def test_a_history_that_cannot_be_right_is_refused(world, file, row, change, why):
    write(world, file, 20)
    world.history[row] |= {"card": world.history[0]["card"]} | change
    keep(world, file)
    with pytest.raises(TableError, match=why):
        load(world, file)
    assert not world.changes["windows.sim"]


def test_bad_rows_are_left_out_if_so_asked(world, file):
    write(world, file, 20)
    file.write_text(file.read_text() + '{"card": "c", "amount": "much", "time": 1700000000}\n')
    assert load(world, file, skip_bad=True).skipped == 1
