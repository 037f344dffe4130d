"""A worker group in a world where everything goes wrong: what is promised holds at every moment, and in the end.

Hypothesis draws what happens: events put, workers started, stopped, killed and paused, the network cut, members that do
not answer or answer wrongly, journals that overflow or begin again. The machine tells of everything that it did when it
finds something, and makes it as short as it can.

`GRIDSCORE_SIMULATION_EXAMPLES` and `GRIDSCORE_SIMULATION_STEPS` set how many such stories are told, and how long they
are: by default, the same few that suit a test run; with the first set, others each time. Making a story short takes
many runs of it; `GRIDSCORE_SIMULATION_SHRINK=0` shows it as it was found.
"""

import logging
import os

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from window_world import WindowWorld
from world import World

from gridscore.testing import Fault

# Hypothesis takes up to five minutes to make a story short: it must come to telling it.
pytestmark = pytest.mark.timeout(900)

EXAMPLES = int(os.environ.get("GRIDSCORE_SIMULATION_EXAMPLES", "40"))
STEPS = int(os.environ.get("GRIDSCORE_SIMULATION_STEPS", "25"))
SHRINK = os.environ.get("GRIDSCORE_SIMULATION_SHRINK", "1") == "1"
PARTITIONS = 8
RING = 32
MOST_WORKERS = 4
MOST_LOSSES = 2
"""Of floods and of lost writes in one story: where events are lost, less can be said of the rest."""


OUTCOMES = st.sampled_from(["timeout", "indeterminate", "unacknowledged", "disconnect", "duplicate"])
REQUESTS = st.sampled_from(
    [
        ("Map.PutAll", "results.*"),
        ("Map.ReplaceIfSame", "gridscore.leases"),
        ("Map.PutIfAbsent", "gridscore.leases"),
        ("Map.GetAll", "gridscore.leases"),
        ("Map.ReplaceIfSame", "gridscore.sessions"),
        ("Map.GetAll", "gridscore.sessions"),
        ("Map.GetAll", "results.*"),
        ("Map.EventJournalRead", "events.*"),
        ("Map.EventJournalSubscribe", "events.*"),
        ("Map.*", "gridscore.*"),
        ("Map.*", "*"),
    ]
)
AMOUNTS = st.integers(0, 999).map(float)
SECONDS = st.sampled_from([0.0, 0.0015, 0.003, 0.01, 0.3, 0.7, 1.5, 4.0, 7.0, 16.0])
"""How long the world goes on after something was done to it; a message takes a millisecond."""


class GroupMachine(RuleBasedStateMachine):
    """Does to a group of workers what Hypothesis thinks of."""

    def __init__(self):
        super().__init__()
        self.world = None
        self.keys = 0
        self.is_cut = False
        self.floods = self.losses = 0

    @initialize(seed=st.integers(0, 2**16), workers=st.integers(1, 3))
    def begin(self, seed, workers):
        self.world = World(PARTITIONS, RING, seed=seed)
        for _ in range(workers):
            self.world.start()
        # Until somebody has begun, there are no offsets, and nobody can tell what is overwritten.
        self.world.settle()

    # ---------------------------------------------------------------- events

    @rule(amounts=st.lists(AMOUNTS, min_size=1, max_size=20), seconds=SECONDS)
    def put_new(self, amounts, seconds):
        self.world.put({f"e{self.keys + i}": amount for i, amount in enumerate(amounts)})
        self.keys += len(amounts)
        self.world.advance(seconds)

    @precondition(lambda self: self.keys)
    @rule(data=st.data(), amounts=st.lists(AMOUNTS, min_size=1, max_size=10), seconds=SECONDS)
    def put_again(self, data, amounts, seconds):
        keys = data.draw(st.lists(st.integers(0, self.keys - 1), min_size=len(amounts), max_size=len(amounts)))
        self.world.put({f"e{key}": amount for key, amount in zip(keys, amounts, strict=True)})
        self.world.advance(seconds)

    @precondition(lambda self: self.floods < MOST_LOSSES)
    @rule(amount=AMOUNTS, partition=st.integers(0, PARTITIONS - 1), seconds=SECONDS)
    def flood(self, amount, partition, seconds):
        """More than a ring holds, at once."""
        self.floods += 1
        self.world.flood(partition, amount, RING + 8)
        self.world.advance(seconds)

    # ---------------------------------------------------------------- workers

    @precondition(lambda self: len(self.world.workers) < MOST_WORKERS)
    @rule(seconds=SECONDS)
    def start_a_worker(self, seconds):
        self.world.start()
        self.world.advance(seconds)

    def _one(self, data, names):
        return data.draw(st.sampled_from(sorted(names)))

    @precondition(lambda self: self.world.living())
    @rule(data=st.data(), seconds=SECONDS)
    def stop_a_worker(self, data, seconds):
        self.world.stop(self._one(data, self.world.living()))
        self.world.advance(seconds)

    @precondition(lambda self: self.world.workers)
    @rule(data=st.data(), seconds=SECONDS)
    def kill_a_worker(self, data, seconds):
        self.world.kill(self._one(data, self.world.workers))
        self.world.advance(seconds)

    @precondition(lambda self: self.world.living())
    @rule(data=st.data(), seconds=SECONDS)
    def pause_a_worker(self, data, seconds):
        self.world.pause(self._one(data, self.world.living()))
        self.world.advance(seconds)

    @precondition(lambda self: any(process.paused for process in self.world.workers.values()))
    @rule(data=st.data(), seconds=SECONDS)
    def resume_a_worker(self, data, seconds):
        self.world.resume(self._one(data, [name for name, p in self.world.workers.items() if p.paused]))
        self.world.advance(seconds)

    # ---------------------------------------------------------------- network and members

    @rule(data=st.data(), quietly=st.booleans(), seconds=SECONDS)
    def cut(self, data, quietly, seconds):
        client = self._one(data, ["w*", *self.world.workers])
        (self.world.cluster.hang if quietly else self.world.cluster.cut)(client)
        self.is_cut = True
        self.world.advance(seconds)

    @precondition(lambda self: self.is_cut)
    @rule(seconds=SECONDS)
    def heal(self, seconds):
        self.world.cluster.heal()
        self.is_cut = False
        self.world.advance(seconds)

    @rule(
        outcome=OUTCOMES,
        applied=st.booleans(),
        request=REQUESTS,
        partition=st.none() | st.integers(0, PARTITIONS - 1),
        times=st.integers(1, 4),
        seconds=SECONDS,
    )
    def fail_requests(self, outcome, applied, request, partition, times, seconds):
        name, map_name = request
        fault = Fault(outcome, applied=applied, request=name, map=map_name, client="w*")
        fault.partition, fault.times = partition, times
        self.world.cluster.faults.append(fault)
        self.world.advance(seconds)

    @rule(
        outcome=st.sampled_from(["delay", "move"]),
        partition=st.integers(0, PARTITIONS - 1),
        stands=st.sampled_from([0.3, 2.0, 7.0]),
        seconds=SECONDS,
    )
    def stall_a_partition(self, outcome, partition, stands, seconds):
        self.world.cluster.faults.append(Fault(outcome, partition=partition, seconds=stands, client="w*"))
        self.world.advance(seconds)

    @precondition(lambda self: self.losses < MOST_LOSSES)
    @rule(partition=st.integers(0, PARTITIONS - 1), changes=st.none() | st.integers(1, 6), seconds=SECONDS)
    def lose_writes(self, partition, changes, seconds):
        self.losses += 1
        self.world.regress(partition, changes)
        self.world.advance(seconds)

    # ---------------------------------------------------------------- what must hold

    @invariant()
    def nothing_is_broken(self):
        if self.world is not None:
            self.world.check()

    def teardown(self):
        world = self.world
        if world is None:
            return
        try:
            world.check()
            world.cluster.heal()
            world.cluster.faults.clear()
            for name, process in world.workers.items():
                if process.paused:
                    world.resume(name)
            if not world.living():
                world.start()
            world.settle()
            world.check()
            world.check_unhandled()
            self.check_in_the_end()
            assert not world.ledger.duplicates(), f"written twice: {world.ledger.duplicates()}"
        finally:
            world.close()

    def check_in_the_end(self):
        """Nothing more."""


class WindowMachine(GroupMachine):
    """Does the same to a group whose job has windows, but loses no events: each counts once, whatever happens."""

    flood = lose_writes = put_new = put_again = None

    @initialize(seed=st.integers(0, 2**16), workers=st.integers(1, 3))
    def begin(self, seed, workers):
        self.world = WindowWorld(partitions=PARTITIONS, seed=seed)
        for _ in range(workers):
            self.world.start()
        self.world.settle()

    @rule(count=st.integers(1, 20), at_once=st.booleans(), seconds=SECONDS)
    def pay(self, count, at_once, seconds):
        (self.world.pay_at_once if at_once else self.world.pay)(count)
        self.world.advance(seconds)

    @rule(
        outcome=OUTCOMES,
        applied=st.booleans(),
        request=st.sampled_from(["Map.PutAll", "Map.GetAll"]),
        times=st.integers(1, 4),
        seconds=SECONDS,
    )
    def fail_states(self, outcome, applied, request, times, seconds):
        fault = Fault(outcome, applied=applied, request=request, map="windows.*", client="w*", times=times)
        self.world.cluster.faults.append(fault)
        self.world.advance(seconds)

    def check_in_the_end(self):
        self.world.advance(3.0)
        self.world.check_windows()


@pytest.fixture(autouse=True)
def _quiet():
    """Nothing but trouble happens here: a log of it is long, and slow.

    What a collected future has to say may come while an expression is parsed. To show a traceback is to parse again,
    and CPython 3.11 answers that with a SystemError.
    """
    before = {name: logging.getLogger(name).level for name in ("hazelcast", "gridscore", "asyncio")}
    for name in before:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


@pytest.mark.parametrize("machine", [GroupMachine, WindowMachine])
def test_a_group_keeps_its_promises_whatever_happens(machine):
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            derandomize="GRIDSCORE_SIMULATION_EXAMPLES" not in os.environ,
            database=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
            report_multiple_bugs=False,
            phases=[Phase.generate, Phase.shrink] if SHRINK else [Phase.generate],
        ),
    )
