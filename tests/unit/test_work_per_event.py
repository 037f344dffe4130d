"""How much work an event makes for a worker, in counts and not in time: a guard that a noisy machine does not disturb.

A backlog is worked off on a stub cluster, and what our code and the client do meanwhile is counted. The bounds are what
was counted when they were written and a tenth or two: whoever lowers a count lowers its bound.
"""

import asyncio
import gc
import sys
import tracemalloc
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import hazelcast
import pytest

import gridscore
from gridscore.compiled import MODULES, compiled
from gridscore.grid import wire
from gridscore.grid.writer import MapWriter
from gridscore.group.members import Members
from gridscore.job import JobRecord, JobState
from gridscore.models import Registry
from gridscore.proving.bench import card
from gridscore.proving.bench.throughput import fill_lookups
from gridscore.scoring.runner import JobRunner
from gridscore.testing import StubCluster

EVENTS = 16_000
OTHER_CALLS = 200
"""Calls that a request besides reads and writes takes, a commit say: the longer it all takes, the more there are."""
PARTITIONS = 8
COUNTED = (str(Path(gridscore.__file__).parent), str(Path(hazelcast.__file__).parent))
STUB = str(Path(gridscore.__file__).parent / "testing")
NETWORK = str(Path(STUB) / "network.py")


async def work_off(cluster, profile):
    """Score a backlog with one worker; returns the requests that it took, and what it left to the garbage collector."""
    grid = await cluster.connect("worker")
    job = card.card_job("bench", "results.bench")
    await Registry(grid).push(card.booster(job, trees=5), job.model.name, alias="champion")
    await fill_lookups(grid)
    await MapWriter(grid, "events.bench").put(card.events(EVENTS))
    started = asyncio.Event()
    record = JobRecord(job, JobState.RUNNING, 1, "", "", "")
    # Counting takes so long on a busy machine that shorter leases ran out.
    members = Members(grid, "worker", seconds=120.0)
    runner = JobRunner(grid, record, members, started=started.set, lease_seconds=120.0)
    task = asyncio.create_task(runner.run())
    await started.wait()
    before = cluster.requests.copy()
    with left_to_the_collector() as left:
        sys.setprofile(profile)
        try:
            while runner.stats.events < EVENTS:
                assert not task.done(), task
                await asyncio.sleep(0.001)
        finally:
            sys.setprofile(None)
    requests = cluster.requests - before
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return requests, left


@contextmanager
def left_to_the_collector():
    """Counts objects of our modules and the client's, by class, that end in circles."""
    left = Counter()
    gc.collect()
    gc.disable()
    try:
        yield left
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        modules = ((type(each).__module__, type(each).__qualname__) for each in gc.garbage)
        left.update(f"{module}.{name}" for module, name in modules if module.startswith(("gridscore.", "hazelcast.")))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.fixture(scope="module")
def counts():
    """Requests by name, calls per event by kind, and circles by class, of a worker that works a backlog off."""
    calls = Counter()

    def called(frame, kind, _argument):
        if kind in {"call", "c_call"} and frame.f_code.co_filename.startswith(COUNTED):
            while frame is not None and not frame.f_code.co_filename.startswith(STUB):
                frame = frame.f_back
            # What the stub does to be a member does not count; what its network delivers to us does.
            if frame is None or frame.f_code.co_filename == NETWORK:
                calls[kind] += 1

    async def main():
        journals = {"events.*": EVENTS, "results.*": EVENTS}
        async with StubCluster(partitions=PARTITIONS, journals=journals) as cluster:
            return await work_off(cluster, called)

    requests, left = asyncio.run(main())
    others = sum(requests.values()) - requests["Map.PutAll"] - requests["Map.EventJournalRead"]
    per_event = {kind: (count - OTHER_CALLS * others) / EVENTS for kind, count in calls.items()}
    return requests, per_event, left


def test_many_events_share_a_request(counts):
    requests, _, _ = counts
    assert requests["Map.PutAll"] / EVENTS <= 1 / 250
    assert requests["Map.EventJournalRead"] / EVENTS <= 1 / 250


def test_no_python_function_is_called_for_each_event(counts):
    _, per_event, _ = counts
    assert per_event["call"] <= 0.48


def test_an_event_takes_few_calls_from_python_to_c(counts):
    _, per_event, _ = counts
    assert per_event["c_call"] <= (5.0 if all(map(compiled, MODULES)) else 12.7)


def test_nothing_is_left_to_the_garbage_collector(counts):
    _, _, left = counts
    assert not left


def test_a_put_all_is_made_without_copies_of_keys_and_texts():
    keys = [b"\0\0\0\0\xff\xff\xff\xf5" + len(key).to_bytes(4, "big") + key.encode() for key, _ in card.events(512)]
    texts = [b'{"score":0.25,"note":"' + b"x" * 2_000 + b'"}' for _ in keys]
    prefix = wire.put_all_prefix("results.bench")
    wire.encode_put_all_json(prefix, keys, texts)
    tracemalloc.start()
    try:
        message = wire.encode_put_all_json(prefix, keys, texts)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    size = len(message.buf)
    assert peak <= 1.25 * size
