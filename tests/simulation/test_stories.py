"""What is promised of a worker group, a story each, in virtual time: who takes over, when, and what does not move."""

import asyncio
import json
import logging
from collections import Counter

import pytest
from world import World, _data, score_of

from gridscore.dead_letters.letters import letter_id
from gridscore.grid.writer import partition_of
from gridscore.group import rescan
from gridscore.group.lease_records import lease_key
from gridscore.group.members import FORMAT
from gridscore.scoring.scorer import Scorer
from gridscore.testing import Fault
from gridscore.testing.member import Member
from gridscore.testing.messages import Request

PARTITIONS = 24

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture
def world():
    world = World(PARTITIONS, ring=256)
    yield world
    world.close()


def put(world, name, count=240):
    world.put({f"{name}{i}": float(i % 1000) for i in range(count)})


def settled(world):
    world.settle()
    world.check()
    world.check_unhandled()


def moved(before, after):
    return {partition for partition in after if before.get(partition) != after[partition]}


def seconds_until(world, condition, most=60.0):
    began = world.time.now
    assert world.time.run_until(condition, seconds=most)
    return world.time.now - began


def score_slowly(monkeypatch):
    """Let a batch take five seconds, as if its lookups were fetched for so long; gives the batches."""
    score, began = Scorer.score, []

    async def slowly(self, arrivals, model):
        began.append(arrivals)
        await asyncio.sleep(5.0)
        return await score(self, arrivals, model)

    monkeypatch.setattr(Scorer, "score", slowly)
    return began


def test_a_worker_that_joins_gets_its_share_and_nothing_else_moves(world):
    world.start()
    settled(world)
    for workers in (2, 3, 4, 5):
        before = world.owners()
        name = world.start()
        put(world, name)
        settled(world)
        after = world.owners()
        changed = moved(before, after)
        assert {after[partition] for partition in changed} == {name}
        assert len(changed) == PARTITIONS // workers
    assert not world.ledger.duplicates()


def test_a_worker_that_leaves_gives_its_share_away_and_nothing_else_moves(world):
    names = [world.start() for _ in range(4)]
    settled(world)
    for name in names[:3]:
        before = world.owners()
        put(world, name)
        world.stop(name)
        settled(world)
        assert moved(before, world.owners()) == {p for p, owner in before.items() if owner == name}
    assert not world.ledger.duplicates()


def test_partitions_of_a_worker_that_left_are_taken_at_once(world):
    first, second = world.start(), world.start()
    settled(world)
    world.stop(first)
    assert seconds_until(world, lambda: set(world.owners().values()) == {second}) < 2.0


def test_a_worker_that_is_stopped_while_it_gives_back_gives_all_of_it_back(world):
    first = world.start()
    settled(world)
    group = world.workers[first].worker.runners["sim"].group
    # What was taken last goes first. A write of it is never answered, and is waited for.
    last = list(group.held)[-1]
    world.cluster.faults.append(Fault("silence", request="Map.PutAll", map="results.*", partition=last))
    put(world, "busy")
    second = world.start()
    assert world.time.run_until(lambda: last in group._giving, seconds=30.0)
    rest = group._giving - {last}
    assert rest
    world.stop(first)
    assert seconds_until(world, lambda: {world.owners()[partition] for partition in rest} == {second}) < 4.0
    settled(world)
    assert not world.ledger.duplicates()


def test_a_lease_that_cannot_be_read_does_not_block_takeovers_of_others():
    world = World(8, ring=256)
    try:
        # Given a partition whose lease nobody can read, of three workers
        world.cluster.on_change = lambda *_: None  # the ledger reads leases, too
        unreadable = json.dumps({"what": "ever"}).encode()
        data = bytes(4) + (-130).to_bytes(4, "big", signed=True) + len(unreadable).to_bytes(4, "big") + unreadable
        world.cluster.partition("gridscore.leases", 0).put(lease_key("sim", 0, 8), data)
        names = [world.start() for _ in range(3)]
        groups = [world.workers[name].worker.runners["sim"].group for name in names if world.advance(20.0) is None]
        assert sum(len(group.held) for group in groups) == 7
        # When one leaves, so that there is little room at each of the others
        world.stop(names[2])
        # Then these have all that can be read
        assert world.time.run_until(lambda: sum(len(group.held) for group in groups[:2]) == 7, seconds=20.0)
    finally:
        world.close()


@pytest.mark.parametrize("seed", range(4))
def test_partitions_on_many_members_are_taken_within_ten_seconds_though_two_workers_die_at_once(seed):
    world = World(64, members=3, seed=seed)
    try:
        world.random.shuffle(world.cluster._owners)
        names = [world.start() for _ in range(4)]
        world.settle()
        for name in names[:2]:
            world.kill(name)
        assert seconds_until(world, lambda: set(world.owners().values()) == set(names[2:])) < 10.0
        world.check()
    finally:
        world.close()


@pytest.mark.parametrize("how", ["kill", "pause"])
def test_partitions_of_a_worker_that_died_are_taken_within_ten_seconds(world, how):
    first, second = world.start(), world.start()
    settled(world)
    put(world, "before")
    getattr(world, how)(first)
    put(world, "after")
    assert seconds_until(world, lambda: set(world.owners().values()) == {second}) < 10.0
    settled(world)
    assert not world.ledger.duplicates()


def test_a_worker_that_was_paused_past_its_lease_writes_nothing_more_of_before(world):
    first, _second = world.start(), world.start()
    settled(world)
    put(world, "before")
    world.pause(first)
    put(world, "meanwhile")
    world.advance(30.0)
    put(world, "more")
    world.resume(first)
    settled(world)  # the ledger has compared every result with the lease of its moment
    assert not world.ledger.duplicates()


def test_all_workers_at_once_may_die(world):
    for _ in range(3):
        world.start()
    settled(world)
    put(world, "before")
    for name in list(world.workers):
        world.kill(name)
    put(world, "meanwhile")
    world.start()
    settled(world)
    assert not world.ledger.duplicates()


def test_what_was_overwritten_unread_is_counted_and_scored_all_the_same(world):
    name = world.start()
    settled(world)
    world.stop(name)
    world.advance(10.0)
    put(world, "flood", PARTITIONS * 256 * 2)
    world.start()
    settled(world)
    lost = sum(lease["lost"] for lease in world.ledger.leases.values())
    gone = sum(max(0, world.cluster.partition("events.sim", p).ring.oldest) for p in range(PARTITIONS))
    assert lost == gone > 0


def test_a_gap_is_counted_once_however_often_what_it_asks_for_is_tried(world):
    name = world.start()
    settled(world)
    world.stop(name)
    world.advance(10.0)
    put(world, "flood", PARTITIONS * 256 * 2)
    world.cluster.faults.append(Fault("timeout", applied=False, map="gridscore.rescans", request="Map.Set", times=90))
    name = world.start()
    world.time.run_until(lambda: sum(lease["lost"] for lease in world.ledger.leases.values()) > 0, seconds=30.0)
    world.advance(30.0)
    assert not world.cluster.faults
    stats = world.workers[name].worker.runners["sim"].stats
    assert stats.lost == sum(lease["lost"] for lease in world.ledger.leases.values()) > 0
    settled(world)


def test_journals_that_began_again_while_nobody_read_them_are_told_in_few_lines(world, caplog):
    name = world.start()
    settled(world)
    put(world, "before")
    settled(world)
    world.stop(name)
    world.advance(10.0)
    for partition in range(PARTITIONS):
        world.regress(partition)
    logging.disable(logging.NOTSET)
    world.start()
    assert world.time.run_until(
        lambda: all(lease["regressions"] == 1 for lease in world.ledger.leases.values()), seconds=30.0
    )
    world.advance(2.0)
    told = [record for record in caplog.records if getattr(record, "action", "") == "regression"]
    assert sum(1 + record.others for record in told) == PARTITIONS
    assert len(told) <= 3


def test_what_a_worker_claims_while_its_job_ends_is_free_again_at_once(world):
    first, second = world.start(), world.start()
    settled(world)
    put(world, "before")
    world.kill(first)
    put(world, "after")
    worker = world.workers[second].worker
    assert world.time.run_until(lambda: worker.runners["sim"].group._leases.claiming, seconds=30.0)
    # Given another job would go on in that process, its loop does not end with this one.
    world.ask(world.client.jobs.suspend("sim"))
    assert seconds_until(world, lambda: not worker._running and not worker._ending) < 5.0
    assert second not in world.owners().values()
    world.ask(world.client.jobs.resume("sim"))
    settled(world)
    assert not world.ledger.duplicates()


def test_a_partition_that_is_lost_and_taken_again_while_it_is_given_back_is_not_given_back_then(world):
    name = world.start()
    settled(world)
    process, lost = world.workers[name], 4
    group = process.worker.runners["sim"].group
    # Given that all are given back, which takes all its time, as some writes are slow
    for partition in range(1, PARTITIONS, 2):
        fault = Fault("delay", request="Map.PutAll", map="results.sim", partition=partition, seconds=2.0)
        world.cluster.faults.append(fault)
    put(world, "slow")
    assert world.time.run_until(lambda: not world.cluster.faults, seconds=1.0)
    process.loop.call_soon(group.give_back, list(group.held))
    # When one is lost meanwhile, and taken again
    process.loop.call_soon(group.drop, lost)
    assert world.time.run_until(lambda: lost not in group.held, seconds=1.0)
    assert world.time.run_until(lambda: group.acknowledged_to(lost) is not None, seconds=2.0)
    epoch = world.ledger.leases[lost]["epoch"]
    for i in range(20):
        put(world, f"more{i}-", PARTITIONS)
        world.advance(0.1)
    # Then it is held still, and nothing comes twice
    assert world.ledger.leases[lost]["epoch"] == epoch
    settled(world)
    assert not world.ledger.duplicates()


def test_what_a_worker_is_about_to_begin_when_it_leaves_is_free_again_at_once(world):
    first = world.start()
    leases = world.ledger.leases
    assert world.time.run_until(lambda: len(leases) == PARTITIONS, seconds=30.0)
    # Given a first offset that is written while it leaves
    world.cluster.faults.append(Fault("delay", map="gridscore.leases", partition=7, seconds=0.5))
    assert world.time.run_until(lambda: any(each["offset"] >= 0 for each in leases.values()), seconds=30.0)
    world.stop(first)
    # Then none is left to run out, which takes five seconds
    assert seconds_until(world, lambda: set(world.owners().values()) == {""}) < 2.0


def test_results_that_may_stand_are_looked_for_though_who_took_over_left_before_it_began(world):
    first, second = world.start(), world.start()
    settled(world)
    held = next(p for p, owner in world.owners().items() if owner == first)
    commits = Fault("silence", applied=False, map="gridscore.leases", client=first, times=1_000)
    world.cluster.faults.append(commits)
    (key,) = world.keys_of(held, 1)
    world.put({key: 1.0})
    assert world.time.run_until(lambda: held not in {p for p, *_ in world.wrong()}, seconds=1.0)
    world.kill(first)
    world.cluster.faults.remove(commits)
    leases = world.workers[second].worker.runners["sim"].group._leases
    world.cluster.faults.append(Fault("silence", request="Map.EventJournalSubscribe", partition=held, client=second))
    assert world.time.run_until(lambda: held in leases.held, seconds=30.0)
    world.stop(second)
    world.start()
    settled(world)
    assert not world.ledger.duplicates()


def test_a_journal_that_began_again_is_counted_and_read_from_its_beginning(world):
    world.start()
    put(world, "before")
    settled(world)
    world.regress(3)
    put(world, "after", 48)
    settled(world)
    assert world.ledger.leases[3]["regressions"] == 1
    assert Counter(lease["regressions"] for lease in world.ledger.leases.values())[1] == 1


def test_entries_that_a_dead_member_alone_had_are_read_again_and_no_others(world):
    first = world.start()
    keys = world.keys_of(3, 8)
    world.put(dict.fromkeys(keys[:5], 1.0))
    settled(world)
    world.advance(3.0)  # all five are committed
    before = world.ledger.writes.copy()
    world.pause(first)
    world.regress(3, 2)
    world.put(dict.fromkeys(keys[3:], 2.0))  # in their place
    world.resume(first)
    world.advance(70.0)  # a round of looks at all partitions
    settled(world)
    results = world.cluster.partition("results.sim", 3)
    scores = [json.loads(results.get(_data(key))[12:])["score"] for key in keys]
    assert scores == pytest.approx([score_of(1.0)] * 3 + [score_of(2.0)] * 5)
    assert {which[3] for which in world.ledger.writes - before} == set(keys[3:])


def test_a_map_that_was_destroyed_is_noticed_within_seconds_however_many_partitions_it_has():
    world = World(120, ring=64)
    try:
        for _ in range(2):
            world.start()
        put(world, "before", 600)
        settled(world)
        has = {partition for partition, lease in world.ledger.leases.items() if lease["offset"] > 0}
        for partition in sorted(has):
            world.regress(partition)

        def all_say_so():
            return all(world.ledger.leases[partition]["regressions"] == 1 for partition in has)

        # One that is found has all the worker's others checked at once.
        assert seconds_until(world, all_say_so) < 10.0
    finally:
        world.close()


def test_a_map_that_is_being_destroyed_begins_again_when_it_is_gone_though_somebody_looks_before(world):
    name = world.start()
    put(world, "before", 100)
    settled(world)
    has = {partition for partition, lease in world.ledger.leases.items() if lease["offset"] > 0}
    for member in world.cluster.members:
        member.notify_destroyed("events.sim")
    world.advance(0.1)
    world.workers[name].worker.runners["sim"].group._doubt.set()  # as when a member leaves just then
    world.advance(0.3)
    assert {world.ledger.leases[partition]["regressions"] for partition in has} == {0}
    for partition in has:
        world.regress(partition)
    settled(world)
    assert {world.ledger.leases[partition]["regressions"] for partition in has} == {1}


def test_a_rescan_that_is_asked_for_late_shows_nothing_twice(world):
    """Requests have no bound in time: one may come when it was done long ago, and the partition has another owner."""
    first = world.start()
    put(world, "before")
    settled(world)
    world.stop(first)
    world.start()
    settled(world)
    before = world.ledger.writes.copy()
    world.ask(rescan.request(world.grid, "sim", range(PARTITIONS), "gap"))
    settled(world)
    assert world.ledger.writes == before


def test_a_rescan_scores_nothing_that_only_waits_in_the_journal(world, monkeypatch):
    first = world.start()
    settled(world)
    world.stop(first)
    keys = world.keys_of(3, 20)
    world.put(dict.fromkeys(keys, 1.0))
    world.ask(rescan.request(world.grid, "sim", [3], "gap"))
    written, watch = Counter(), world.cluster.on_change

    def changed(name, partition, change):
        watch(name, partition, change)
        if name == "results.sim":
            written[change.key] += 1

    world.cluster.on_change = changed
    score_slowly(monkeypatch)
    world.start()
    settled(world)
    assert written == {_data(key): 1 for key in keys}


def test_a_rescan_puts_no_event_behind_a_newer_one_of_its_key(world, monkeypatch):
    world.start()
    (key,) = world.keys_of(3, 1)
    world.put({key: 1.0})
    settled(world)
    world.advance(3.0)  # it is committed
    events, put, receive = world.cluster.partition("events.sim", 3), [], Member.receive

    def put_behind(member, link, body):
        """The newer one comes right before the answer with the older one."""
        request = Request(body)
        if request.name != "Map.GetAll" or request.text() != "events.sim" or request.partition != 3 or put:
            receive(member, link, body)
            return
        link.answer = put.append
        receive(member, link, body)
        del link.answer
        events.put(_data(key), events.get(_data(key)).replace(b"1.0", b"2.0"))
        world.cluster.loop.call_later(0.01, link.answer, *put)

    monkeypatch.setattr(Member, "receive", put_behind)
    world.ledger.amounts[key].add(2.0)
    world.cluster.partition("results.sim", 3).remove(_data(key))
    world.ask(rescan.request(world.grid, "sim", [3], "gap"))
    assert world.time.run_until(lambda: put, seconds=10.0)
    world.advance(5.0)
    settled(world)


def test_a_network_that_is_silent_for_longer_than_the_lease_costs_nothing_but_time(world):
    first, second = world.start(), world.start()
    settled(world)
    put(world, "before")
    world.cluster.hang(first)
    put(world, "meanwhile")
    assert seconds_until(world, lambda: set(world.owners().values()) == {second}) < 10.0
    world.advance(20.0)
    world.cluster.heal()
    settled(world)
    assert not world.ledger.duplicates()


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("outcome", ["timeout", "indeterminate", "unacknowledged", "disconnect"])
def test_writes_whose_fate_is_unknown_are_looked_up_and_not_guessed(world, outcome, applied):
    world.start()
    settled(world)
    world.cluster.faults.append(
        Fault(outcome, applied=applied, request="Map.PutAll", map="results.*", client="w*", times=10)
    )
    put(world, "events")
    settled(world)
    assert not world.ledger.duplicates()


def test_a_write_that_a_member_holds_while_its_connection_breaks_is_waited_for(world):
    first = world.start()
    settled(world)
    move = Fault("move", request="Map.PutAll", map="results.*", partition=3, client="w*", seconds=3.0)
    world.cluster.faults.append(move)
    world.put(dict.fromkeys(world.keys_of(3, 1), 1.0))
    assert world.time.run_until(lambda: not move.times, seconds=5.0)
    world.cluster.cut(first)
    world.cluster.heal()
    world.advance(5.0)
    settled(world)
    assert not world.ledger.duplicates()


def test_results_from_before_a_journal_began_again_say_nothing_of_what_it_has_now(world):
    first = world.start()
    keys = world.keys_of(3, 20)
    world.put(dict.fromkeys(keys, 1.0))
    settled(world)
    world.regress(3)
    assert world.time.run_until(lambda: world.ledger.leases[3]["regressions"] == 1, seconds=90.0)
    world.pause(first)
    world.put(dict.fromkeys(keys[:10], 2.0))
    world.kill(first)
    world.start()
    settled(world)
    results = world.cluster.partition("results.sim", 3)
    scores = [json.loads(results.get(_data(key))[12:])["score"] for key in keys[:10]]
    assert scores == pytest.approx([score_of(2.0)] * 10)


def test_what_is_scored_while_its_journal_begins_again_is_not_written(world, monkeypatch):
    world.start()
    settled(world)
    began = score_slowly(monkeypatch)
    world.put(dict.fromkeys(world.keys_of(3, 4), 1.0))
    assert world.time.run_until(lambda: began, seconds=5.0)
    world.regress(3)
    world.put(dict.fromkeys(world.keys_of(3, 2), 2.0))
    assert world.time.run_until(lambda: world.ledger.leases[3]["regressions"] == 1, seconds=4.0)
    monkeypatch.undo()
    settled(world)  # the ledger has compared every result with the lease of its moment


def test_a_dead_letter_that_is_not_answered_holds_up_its_own_partition_and_no_other(world, monkeypatch):
    monkeypatch.setattr("gridscore.scoring.runner.UNACKNOWLEDGED_EVENTS", 64)
    name = world.start()
    settled(world)
    world.cluster.faults.append(Fault("silence", applied=False, request="Map.PutAll", map="dead-letters.*"))
    (bad,) = world.keys_of(3, 1)
    world.put({bad: None, **{f"beside{i}": float(i) for i in range(240)}})
    # More than may be unacknowledged, and all of the partition that waits.
    world.put(dict.fromkeys(world.keys_of(3, 128), 1.0))
    put(world, "after")

    def unread():
        rings = {p: world.cluster.partition("events.sim", p).ring.newest for p in range(PARTITIONS)}
        return {p for p, newest in rings.items() if world.ledger.leases[p]["offset"] <= newest}

    assert seconds_until(world, lambda: unread() == {3}) < 3.0
    assert [wrong[1] for wrong in world.wrong()] == [bad]  # what came behind it is scored, and not committed
    world.cluster.cut(name)  # as the client does, in time
    world.cluster.heal()
    settled(world)
    assert seconds_until(world, lambda: not unread()) < 3.0
    assert not world.ledger.duplicates()


def test_dead_letters_of_two_partitions_do_not_wait_for_each_other(world):
    def place_of_letter(partition, key):
        return partition_of(_data(letter_id(partition, _data(key), b'{"amount":null}')), PARTITIONS)

    world.start()
    settled(world)
    # Given two events of two partitions whose dead letters lie in two others, of which one does not answer
    (slow,) = world.keys_of(3, 1)
    quick = next(key for key in world.keys_of(5, 30) if place_of_letter(5, key) != place_of_letter(3, slow))
    silent = Fault(
        "silence",
        applied=False,
        request="Map.PutAll",
        map="dead-letters.*",
        partition=place_of_letter(3, slow),
    )
    world.cluster.faults.append(silent)
    world.put({slow: None, quick: None})

    def unread():
        rings = {p: world.cluster.partition("events.sim", p).ring.newest for p in range(PARTITIONS)}
        return {p for p, newest in rings.items() if world.ledger.leases[p]["offset"] <= newest}

    assert seconds_until(world, lambda: unread() == {3}) < 3.0


def test_a_worker_that_stops_waits_for_its_dead_letters_no_longer_than_they_take(world):
    world.cluster.latency = lambda: 0.02
    name = world.start()
    settled(world)
    world.put({f"bad{number}": None for number in range(200)})
    offsets = world.workers[name].worker.runners["sim"].group._offsets
    while not any(each.pending for each in offsets._partitions.values()):
        world.time.advance(0.005)
    world.stop(name)
    assert seconds_until(world, lambda: not any(world.owners().values())) < 1.0


def test_a_dead_letter_is_not_written_by_a_worker_whose_lease_has_passed_on(world):
    first, second = world.start(), world.start()
    settled(world)
    partition = next(p for p, owner in world.owners().items() if owner == first)
    watch, owners = world.cluster.on_change, []

    def changed(name, number, change):
        watch(name, number, change)
        if name == "dead-letters.sim":
            owners.append(world.owners()[partition])

    world.cluster.on_change = changed
    stats = world.workers[first].worker.runners["sim"].stats
    before = stats.batches
    (bad,) = world.keys_of(partition, 1)
    world.put({bad: None})
    assert world.time.run_until(lambda: stats.batches > before, seconds=5.0)
    # It has seen that the letter is not there, and asks whether there is room: it would be sent next.
    asked = world.cluster.requests["Map.Size"]
    assert world.time.run_until(lambda: world.cluster.requests["Map.Size"] > asked, seconds=0.1)
    world.pause(first)
    assert seconds_until(world, lambda: owners == [second]) < 10.0
    world.resume(first)
    settled(world)
    world.advance(30.0)
    assert owners == [second]  # a late one would bring back what somebody may have dealt with


def owning(world):
    return {owner for owner in world.owners().values() if owner}


def test_workers_of_a_newer_format_wait_until_the_older_have_gone(world):
    """An upgrade, as a rollout makes it, under load: one starts, one stops, and so on."""
    old = [world.start(), world.start()]
    put(world, "a")
    settled(world)
    new = [world.start(FORMAT + 1), world.start(FORMAT + 1)]
    put(world, "b")
    world.advance(8.0)
    assert owning(world) == set(old)
    assert set(world.owners().values()) == set(old)  # nothing has moved to nobody
    world.stop(old[0])
    put(world, "c")
    for _ in range(40):
        world.advance(0.2)
        assert not owning(world) & set(new)
    assert set(world.owners().values()) == {old[1]}
    world.stop(old[1])
    put(world, "d")
    assert seconds_until(world, lambda: owning(world) == set(new)) < 3.0
    put(world, "e")
    settled(world)
    assert world.ledger.duplicates() == {}


def test_workers_of_a_newer_format_give_way_to_older_ones(world):
    """A downgrade, under load."""
    new = [world.start(FORMAT + 1), world.start(FORMAT + 1)]
    put(world, "a")
    settled(world)
    old = world.start()
    put(world, "b")
    assert seconds_until(world, lambda: owning(world) == {old}) < 5.0
    put(world, "c")
    world.advance(8.0)
    assert owning(world) == {old}
    for each in new:
        world.stop(each)
    settled(world)
    assert world.ledger.duplicates() == {}


def test_workers_of_a_newer_format_take_over_from_older_ones_that_were_killed(world):
    old, new = world.start(), world.start(FORMAT + 1)
    put(world, "a")
    seconds_until(world, lambda: owning(world) == {old})
    world.kill(old)
    put(world, "b")
    settled(world)
    assert owning(world) == {new}
