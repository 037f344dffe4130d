"""What coordination costs in a large cluster, in counts: 100 workers, 50 jobs, 1,999 partitions, 20 members.

One worker of the hundred is real. The others are what it sees of them: heartbeats that go on, holdings, and of the one
that dies its sessions and leases. What all of them do together, when one dies and when one comes, is told of fewer, all
of them real.
"""

import json
import logging
import sys
import tracemalloc
from collections import Counter
from types import SimpleNamespace

import pytest
from msgspec.structs import replace
from world import World

from gridscore.grid.writer import partition_of
from gridscore.group import rescan
from gridscore.group.lease_records import LEASES_MAP, NOBODY, encode, lease_key
from gridscore.group.members import FORMAT, HEARTBEATS_MAP, HOLDINGS_MAP, packed, unpacked
from gridscore.group.sessions import SESSIONS_MAP
from gridscore.scoring.audit import share_of
from gridscore.testing.network import Link

WORKERS, JOBS, PARTITIONS, MEMBERS = 100, 50, 1_999, 20
SHARE = PARTITIONS // WORKERS + 1
IDLE_SECONDS = 60.0

CALLS_A_SECOND_OF_CPU = 4_000_000
"""Calls from Python, of both kinds, that one core makes in a second, at the least: 4.6 million were measured."""


@pytest.fixture(autouse=True, scope="module")
def _quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def serialized(value):
    data = (value if isinstance(value, str) else json.dumps(value)).encode()
    kind = -11 if isinstance(value, str) else -130
    return b"\0\0\0\0" + kind.to_bytes(4, "big", signed=True) + len(data).to_bytes(4, "big") + data


def put(world, map_name, key, value):
    data = serialized(key)
    world.cluster.partition(map_name, partition_of(data, world.partitions)).put(data, serialized(value))


def more_jobs(world, count):
    """Submit the world's job under other names, too: as records, to submit them one by one would take long."""
    world.advance(0.1)
    (text,) = [
        value[12:].decode()
        for p in range(world.partitions)
        for _, value in world.cluster.partition("gridscore.jobs", p)
    ]
    for number in range(1, count):
        name = f"sim{number}"
        world.jobs.append(name)
        put(world, "gridscore.jobs", name, json.loads(text.replace('"sim"', f'"{name}"').replace(".sim", f".{name}")))
    # The model keeps its name.
    for name in world.jobs[1:]:
        record = json.loads(text.replace(".sim", f".{name}"))
        record["name"] = record["spec"]["job"] = name
        put(world, "gridscore.jobs", name, record)


class Crowd:
    """The other workers, as the maps show them."""

    def __init__(self, world):
        self._world = world
        self._beat = 0
        first = PARTITIONS - SHARE
        bounds = [first * number // (WORKERS - 1) for number in range(WORKERS)]
        self._names = [f"somewhere.example.com-12345-{number:06}" for number in range(WORKERS - 1)]
        for number, name in enumerate(self._names):
            held = packed(range(bounds[number], bounds[number + 1]))
            put(world, HOLDINGS_MAP, name, {"version": 1, "groups": dict.fromkeys(world.jobs, held)})
        self._mortal = range(bounds[0], bounds[1])
        self.go_on()

    def kill(self):
        """Kill the first: it has sessions and leases, and no heartbeat any more."""
        name, world = self._names.pop(0), self._world
        for home in self._mortal:
            owned = replace(NOBODY, owner=name, epoch=1, offset=0, renewals=7, lease=5_000)
            self._write(SESSIONS_MAP, lease_key("nonce", home, PARTITIONS), home, owned)
            for job in world.jobs:
                lease = replace(owned, session=f"nonce/{home}")
                self._write(LEASES_MAP, lease_key(job, home, PARTITIONS), home, lease)

    def _write(self, map_name, key, partition, record):
        self._world.cluster.partition(map_name, partition).put(key, serialized(json.loads(encode(record))))

    def go_on(self):
        self._beat += 1
        for name in self._names:
            put(self._world, HEARTBEATS_MAP, name, {"beat": self._beat, "holds": 1, "format": FORMAT})
        self._world.user.call_later(1.0, self.go_on)


class Counts:
    """What workers ask for and get, the bytes of it by member, and how many calls one makes, while this is entered."""

    def __init__(self, monkeypatch, world):
        self.requests, self.asked, self.answered, self.calls = Counter(), Counter(), Counter(), 0
        fault_for, received, answered = world.cluster.fault_for, Link._received, Link._answered

        def asked(request, map_name, link):
            if link.client.startswith("w"):
                self.requests[request.name, map_name.split(".sim")[0]] += 1
            return fault_for(request, map_name, link)

        def counted(counts, deliver):
            def count(link, body):
                if link.client.startswith("w"):
                    counts[link.member, int(world.time.now)] += len(body)
                deliver(link, body)

            return count

        monkeypatch.setattr(world.cluster, "fault_for", asked)
        monkeypatch.setattr(Link, "_received", counted(self.asked, received))
        monkeypatch.setattr(Link, "_answered", counted(self.answered, answered))

    def clear(self):
        for counts in (self.requests, self.asked, self.answered):
            counts.clear()

    def of_a_member(self, seconds):
        """Bytes a second that a member gets from all workers, and sends to them.

        The mean; that of the one with most; the mean in the worst second, as if all workers had theirs in the same one;
        and the most that one worker and one member exchange in a second.
        """
        found = []
        for counts in (self.asked, self.answered):
            members, moments = Counter(), Counter()
            for (member, second), count in counts.items():
                members[member] += count * WORKERS / seconds
                moments[second] += count * WORKERS / MEMBERS
            worst = max(moments.values()), max(counts.values())
            found.append((sum(members.values()) / MEMBERS, max(members.values()), *worst))
        return found

    def profile(self, loop, monkeypatch):
        step = loop.step

        def called(_frame, kind, _argument):
            self.calls += kind in {"call", "c_call"}

        def profiled():
            sys.setprofile(called)
            try:
                step()
            finally:
                sys.setprofile(None)

        monkeypatch.setattr(loop, "step", profiled)


def memory():
    """Bytes that Python has allocated since `tracemalloc` began and still holds; what members hold is not counted."""
    found = tracemalloc.take_snapshot().statistics("filename")
    tracemalloc.stop()
    return sum(
        each.size for each in found if "/testing/" not in (name := each.traceback[0].filename) and name != __file__
    )


@pytest.fixture(scope="module")
def idle():
    """Requests, bytes and calls a second of a worker that has its share of all jobs, the time to that, and its memory.

    And what it asks for when another one dies, and how long it takes until it has its part of that one's leases.
    """
    world = World(PARTITIONS, members=MEMBERS)
    with pytest.MonkeyPatch.context() as patch:
        try:
            counts = Counts(patch, world)
            more_jobs(world, JOBS)
            crowd = Crowd(world)
            tracemalloc.start()
            name, began = world.start(), world.time.now

            def groups():
                worker = getattr(world.workers[name], "worker", None)
                return [runner.group for runner in worker.runners.values()] if worker is not None else []

            def has_its_share():
                return len(groups()) == JOBS and all(len(group.held) == SHARE for group in groups())

            while not has_its_share():
                assert world.time.now - began < 60.0
                world.time.advance(0.5)
            took, begun = world.time.now - began, Counter(counts.requests)
            world.time.advance(5.0)
            kept = memory()
            counts.clear()
            world.time.advance(IDLE_SECONDS)
            requests = {what: count / IDLE_SECONDS for what, count in counts.requests.items()}
            at_rest = counts.of_a_member(IDLE_SECONDS)
            counts.profile(world.workers[name].loop, patch)
            world.time.advance(2.0)
            calls = counts.calls / 2.0
            counts.clear()
            crowd.kill()
            died = world.time.now
            while any(len(group.held) == SHARE for group in groups()):
                assert world.time.now - died < 60.0
                world.time.advance(0.1)
            seconds = world.time.now - died
            # Left before other tests make worlds of their own.
            taking = counts.of_a_member(seconds)
            return SimpleNamespace(
                requests=requests,
                bytes=at_rest,
                calls=calls,
                took=took,
                begun=begun,
                kept=kept,
                taking=SimpleNamespace(seconds=seconds, requests=Counter(counts.requests), bytes=taking),
            )
        finally:
            tracemalloc.stop()
            world.close()


def test_an_idle_cluster_takes_no_more_than_two_thousand_requests_a_second(idle):
    assert sum(idle.requests.values()) * WORKERS <= 2_000, idle.requests


def test_no_lease_of_those_who_live_is_read_and_only_few_of_ones_own(idle):
    # Each one that is held, once in ten minutes.
    assert idle.requests["Map.GetAll", "gridscore.leases"] <= SHARE * JOBS / 590
    assert ("Map.ReplaceIfSame", "gridscore.leases") not in idle.requests
    assert idle.requests["Map.ReplaceIfSame", "gridscore.sessions"] <= MEMBERS / 2


def test_rescans_jobs_and_aliases_are_read_when_they_change_and_once_a_minute(idle):
    assert idle.requests.get(("Map.EntrySet", "gridscore.rescans"), 0) <= 2 / IDLE_SECONDS
    assert idle.requests.get(("Map.EntrySet", "gridscore.jobs"), 0) <= 2 / IDLE_SECONDS
    assert idle.requests["Map.GetAll", "gridscore.models"] <= JOBS / IDLE_SECONDS


def test_a_member_gets_and_sends_no_more_than_a_megabyte_of_control_data_a_second(idle):
    for (got, _, *bursts), (sent, most_sent, *more) in (idle.bytes, idle.taking.bytes):
        assert 0 < got + sent <= 1_000_000
        # What a worker writes under its own name lies with another member for each; what it reads does not.
        assert most_sent <= 1_000_000
        for of_all, of_one in (bursts, more):
            assert of_all <= 2_500_000
            assert of_one <= 100_000


def test_an_idle_worker_takes_five_percent_of_a_core_and_a_job_a_thousandth(idle):
    assert idle.calls <= 0.05 * CALLS_A_SECOND_OF_CPU
    assert idle.calls / JOBS <= 0.001 * CALLS_A_SECOND_OF_CPU


def test_fifty_jobs_with_their_leases_take_no_more_memory_than_a_worker_has_left_of_its_150_megabytes(idle):
    assert 0 < idle.kept <= 47_000_000


def test_a_new_worker_has_its_share_within_fifteen_seconds(idle):
    assert idle.took <= 15.0


def test_a_new_worker_asks_for_what_it_takes_and_not_for_all_partitions_of_all_jobs(idle):
    # Of each job 32 rings, to learn their size, and of each lease that it takes its record, its journal and its place.
    assert idle.begun["Map.EventJournalSubscribe", "events"] <= JOBS * (32 + 2 * SHARE)
    assert sum(count for (_, name), count in idle.begun.items() if name == "gridscore.leases") <= 6 * JOBS * SHARE


def test_a_worker_of_a_hundred_has_its_part_of_those_of_a_killed_one_within_ten_seconds(idle):
    taking = idle.taking
    assert taking.seconds <= 10.0
    # All of them look at its thousand leases and twenty sessions, and each takes ten.
    assert sum(taking.requests.values()) / taking.seconds * WORKERS / MEMBERS <= 2_000, taking.requests
    assert taking.requests["Map.ReplaceIfSame", "gridscore.leases"] <= 10 * JOBS


def test_many_workers_take_over_from_one_that_is_killed_and_make_room_for_a_new_one(monkeypatch):
    world = World(61, members=4)
    try:
        counts = Counts(monkeypatch, world)
        more_jobs(world, 2)
        names = [world.start() for _ in range(6)]
        world.settle()
        shares = Counter(world.owners().values())
        counts.clear()
        world.kill(names[0])
        assert world.time.run_until(lambda: names[0] not in world.owners().values(), seconds=10.0)
        world.settle()
        # Each is marked, taken and begun, and looked for a few times by each of those who may take it; one of each
        # member by all others, who watch its session.
        moved = shares[names[0]] * len(world.jobs)
        assert sum(n for (_, name), n in counts.requests.items() if name == "gridscore.leases") <= 16 * moved
        new = world.start()
        assert world.time.run_until(
            lambda: Counter(world.owners().values())[new] >= 61 // 7 and world.is_balanced(), seconds=15.0
        )
        world.check()
    finally:
        world.close()


def test_a_rescan_of_all_partitions_is_read_about_once_a_process_and_not_once_a_partition(monkeypatch):
    world = World(61, members=4)
    try:
        counts = Counts(monkeypatch, world)
        more_jobs(world, 6)
        for _ in range(3):
            world.start()
        world.put({f"e{number}": float(number) for number in range(200)})
        world.settle()
        counts.clear()
        for job in world.jobs:
            world.ask(rescan.request(world.grid, job, range(61), "test"))
        began = world.time.now
        assert world.time.run_until(lambda: not world._rescans(), seconds=120.0)
        # Each process looks every two seconds, for all of its jobs, as long as something changes.
        assert counts.requests["Map.EntrySet", "gridscore.rescans"] <= 3 * ((world.time.now - began) / 1.8 + 2)
        assert counts.requests["Map.FetchEntries", "events"] <= 2 * len(world.jobs) * 61
        world.check()
    finally:
        world.close()


def test_audits_of_jobs_that_were_submitted_together_are_spread():
    tenths = Counter(int(share_of(f"job{number}") * 10) for number in range(JOBS))
    assert max(tenths.values()) <= JOBS / 4


@pytest.mark.parametrize("held", [[], [0], range(PARTITIONS), range(0, PARTITIONS, 97)])
def test_what_a_worker_holds_is_few_bytes(held):
    assert unpacked(packed(held)) == sum(1 << partition for partition in held)
    assert len(packed(held)) <= 110
