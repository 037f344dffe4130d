"""A small world in virtual time: a stub cluster, a user, workers as processes, and a ledger that watches all of it.

The ledger sees every change of every map at the moment at which a member applies it. What must hold at all times it
checks there and then; the rest is checked when everything has been healed and time has passed.
"""

import asyncio
import functools
import gc
import json
import struct
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np
import xgboost as xgb
from hazelcast.errors import HazelcastError

from gridscore.client import Client
from gridscore.grid.writer import partition_of
from gridscore.group.members import FORMAT
from gridscore.job import parse_job
from gridscore.scoring import Worker
from gridscore.testing import StubCluster
from gridscore.testing.virtual_time import VirtualTime

LEASE_SECONDS = 5.0
JOB = """\
job: sim
events: events.sim
schema: {amount: float}
features: {amount: amount, log_amount: log1p(amount)}
model: {name: sim, alias: champion}
results: results.sim
"""


def _booster():
    draw = np.random.default_rng(0)
    rows = draw.uniform(0, 1000, size=(400, 2)).astype(np.float32)
    matrix = xgb.DMatrix(rows, rows[:, 0] * 3 + rows[:, 1], feature_names=["amount", "log_amount"])
    return xgb.train({"objective": "reg:squarederror", "max_depth": 5, "eta": 1.0, "nthread": 1}, matrix, 3)


BOOSTER = _booster()


gc.freeze()  # what is there now need not be looked through for every world that ends


@functools.cache
def score_of(amount):
    row = np.array([[amount, np.log1p(amount)]], dtype=np.float32)
    return float(BOOSTER.predict(xgb.DMatrix(row, feature_names=["amount", "log_amount"]))[0])


def _text(data):
    return data[12:].decode()


@dataclass
class Event:
    """An event as the journal has it."""

    key: str
    amount: float


@dataclass
class Life:
    """One life of a partition's journal, from one regression to the next."""

    events: dict[int, Event] = field(default_factory=dict)


class Ledger:
    """What happened, and what of it must not have."""

    def __init__(self, cluster):
        self._cluster = cluster
        self.lives = defaultdict(Life)
        self.leases = {}
        self.epochs = defaultdict(int)
        self.amounts = defaultdict(set)  # every acknowledged or possible amount of a key
        self.writes = Counter()  # of results, by partition, life, run, key and sequence
        self.unseen = set()  # partitions whose journal has begun again, and no worker has said so yet
        self.disturbed = set()  # partitions whose map or ring has lost something
        self.broken = []
        self.moves = Counter()

    def changed(self, map_name, partition, change):
        if map_name == "events.sim":
            self._event(partition, change)
        elif map_name == "results.sim":
            self._result(partition, change)
        elif map_name == "gridscore.leases" and _text(change.key).startswith("sim/"):
            self._lease(partition, change)

    def regressed(self, partition):
        """Its journal is about to begin again, or has lost its newest."""
        self.lives[partition] = Life()
        self.disturbed.add(partition)
        self.unseen.add(partition)

    def _say(self, what):
        self.broken.append(what)

    def _event(self, partition, change):
        ring = self._cluster.partition("events.sim", partition).ring
        if change.value is not None:
            amount = json.loads(_text(change.value))["amount"]
            self.lives[partition].events[ring.newest] = Event(_text(change.key), amount)

    def _result(self, partition, change):
        if change.value is None:
            return
        result, key = json.loads(_text(change.value)), _text(change.key)
        if "amended_at" in result:
            return  # the result that stood there, with reasons: a compare-and-set, which nothing fences
        epoch, sequence = result["epoch"], result["sequence"]
        lease = self.leases.get(partition)
        if epoch < self.epochs[partition]:
            self._say(f"{partition}: a result of epoch {epoch} after one of {self.epochs[partition]} ({key})")
        if lease is None or epoch != lease["epoch"] or not lease["owner"]:
            self._say(f"{partition}: a result of epoch {epoch} while the lease is {lease} ({key})")
        self.epochs[partition] = max(epoch, self.epochs[partition])
        if sequence >= 0 and lease is not None:
            self.writes[partition, lease["origin"], lease["run"], key, sequence] += 1

    def _lease(self, partition, change):
        if change.value is None:
            self._say(f"{partition}: the lease record was removed")
            return
        new, old = json.loads(_text(change.value)), self.leases.get(partition)
        self.leases[partition] = new
        if new["owner"] and (old is None or new["owner"] != old["owner"]):
            self.moves[partition] += 1
        if old is None:
            return
        if new["epoch"] < old["epoch"]:
            self._say(f"{partition}: the epoch went back: {old} -> {new}")
        if new["owner"] not in ("", old["owner"]) and new["epoch"] == old["epoch"]:
            self._say(f"{partition}: another owner in the same epoch: {old} -> {new}")
        if new["origin"] != old["origin"]:
            self.unseen.discard(partition)
        if new["origin"] == old["origin"] and new["run"] == old["run"] and old["offset"] >= 0:
            if new["offset"] < old["offset"]:
                self._say(f"{partition}: the offset went back: {old} -> {new}")
            if partition not in self.unseen:
                self._check_commit(partition, old, new)

    def _check_commit(self, partition, old, new):
        """What a commit covers has results, or is counted as lost."""
        life = self.lives[partition]
        results = self._cluster.partition("results.sim", partition)
        missing = []
        for sequence in range(old["offset"], new["offset"]):
            event = life.events.get(sequence)
            if event is None:
                continue
            if event.amount is None:
                if event.key not in self.rejected():
                    missing.append((sequence, event.key))
                continue
            found = results.get(_data(event.key))
            result = json.loads(_text(found)) if found is not None else None
            if result is None or not (result["epoch"] >= new["origin"] and result["sequence"] >= sequence):
                missing.append((sequence, event.key))
        if len(missing) > new["lost"] - old["lost"]:
            self._say(f"{partition}: committed without a result: {missing} by {old} -> {new}")

    def rejected(self):
        """Keys of the events that are dead letters."""
        return {json.loads(_text(value))["key"] for _, value in _entries(self._cluster, "dead-letters.sim")}

    def duplicates(self):
        return {which: count for which, count in self.writes.items() if count > 1}


def _entries(cluster, name):
    return [entry for partition in range(cluster.partitions) for entry in cluster.partition(name, partition)]


def _data(key):
    text = key.encode()
    return struct.pack(">iii", 0, -11, len(text)) + text


class Process:
    """A worker and its event loop."""

    def __init__(self, world, name, number):
        self.world = world
        self.name = name
        self.format = number
        self.loop = world.time.loop(name, skew=world.draw_skew())
        self.stopping = False
        self._stop = asyncio.Event()
        self.task = self.loop.create_task(self._main())

    @property
    def paused(self):
        return self.loop.paused

    async def _main(self):
        while True:
            try:
                grid = await self.world.cluster.connect(self.name)
                break
            except HazelcastError:
                await asyncio.sleep(1.0)  # the network broke just then
        stop = self.loop.create_task(self._stop.wait())
        while not self.stopping:
            worker = self.worker = Worker(grid, self.world.jobs, lease_seconds=self.world.lease)
            worker.id = worker._members.worker = self.name
            worker._members.format = self.format
            run = self.loop.create_task(worker.run())
            await asyncio.wait((run, stop), return_when=asyncio.FIRST_COMPLETED)
            run.cancel()
            await asyncio.wait((run,))
            if not run.cancelled() and isinstance(run.exception(), HazelcastError):
                # Whoever runs workers starts one that has ended anew.
                self.world.restarts += 1
                await asyncio.sleep(1.0)
        stop.cancel()
        await grid.close()

    def stop(self):
        self.stopping = True
        self.loop.call_soon(self._stop.set)


class World:
    """All of it."""

    def __init__(self, partitions=8, ring=64, latency=0.001, seed=0, lease=LEASE_SECONDS, members=1, job=JOB):
        self.lease = lease
        self.job = job
        self.jobs = ["sim"]
        self.time = VirtualTime()
        self._patch = self.time.patched()
        self._patch.__enter__()
        self.cluster = StubCluster(
            partitions,
            journals={"events.*": ring, "results.*": 1_000_000, "window-*": 4_096},
            loop=self.time.loop("members"),
            members=members,
            latency=lambda: latency,
            seed=seed,
        )
        self.partitions = partitions
        self.ledger = Ledger(self.cluster)
        self.cluster.on_change = self.ledger.changed
        self.random = self.cluster.random
        self.workers = {}
        self.started = 0
        self.restarts = 0
        self.acknowledged = {}
        self.user = self.time.loop("user")
        self.grid = self.ask(self.cluster.connect("user"))
        self.client = Client(self.grid)
        self.ask(self._prepare())

    async def _prepare(self):
        await self.client.push_model(BOOSTER, "sim", alias="champion")
        await self.client.submit(parse_job(self.job, "simulation"))

    def draw_skew(self):
        return self.random.uniform(-30.0, 30.0)

    def ask(self, coroutine, seconds=600.0):
        return self.time.run(coroutine, self.user, seconds=seconds)

    # ---------------------------------------------------------------- what a rule does

    def put(self, events):
        for key, amount in events.items():
            self.ledger.amounts[key].add(amount)
        self.ask(self.client.put_events("events.sim", {key: {"amount": amount} for key, amount in events.items()}))
        self.acknowledged.update(events)

    def keys_of(self, partition, count):
        """So many new keys of one partition."""
        keys, number = [], 0
        while len(keys) < count:
            number += 1
            if partition_of(_data(key := f"f{self.time.now:.4f}-{number}"), self.partitions) == partition:
                keys.append(key)
        return keys

    def flood(self, partition, amount, count):
        """So many events for one partition."""
        self.put(dict.fromkeys(self.keys_of(partition, count), amount))

    def start(self, number=FORMAT):
        self.started += 1
        name = f"w{self.started}"
        self.workers[name] = Process(self, name, number)
        return name

    def stop(self, name):
        self.workers[name].stop()

    def kill(self, name):
        process = self.workers.pop(name)
        self.time.abandon(process.loop)
        self.cluster.kill_client(name)

    def pause(self, name):
        self.workers[name].loop.paused = True

    def resume(self, name):
        self.workers[name].loop.paused = False

    def regress(self, partition, changes=None):
        self.ledger.regressed(partition)
        ring = self.cluster.partition("events.sim", partition).ring
        if changes is not None:
            # What the ring keeps after a partial regression is of the old life still.
            keep = {s: e for s, e in self._events_of(partition).items() if s <= ring.newest - changes}
            self.cluster.regress("events.sim", partition, changes)
            self.ledger.lives[partition].events.update(keep)
        else:
            self.cluster.regress("events.sim", partition)

    def _events_of(self, partition):
        ring = self.cluster.partition("events.sim", partition).ring
        found = {}
        for sequence, change in enumerate(ring.read(ring.oldest, ring.capacity), ring.oldest):
            if change.value is not None:
                found[sequence] = Event(_text(change.key), json.loads(_text(change.value))["amount"])
        return found

    def advance(self, seconds):
        self.time.advance(seconds)
        self.reap()

    def reap(self):
        for name, process in list(self.workers.items()):
            if process.task.done():
                process.task.result()
                assert process.stopping, f"{name} has ended by itself"
                del self.workers[name]
                self.time.abandon(process.loop)

    # ---------------------------------------------------------------- what must hold

    def check(self):
        assert not self.ledger.broken, "\n".join(self.ledger.broken)

    def check_unhandled(self):
        """Exceptions that nobody took; the interpreter tells of some only when it clears up."""
        gc.collect()
        unhandled = [
            f"{name}: {context['message']} {context.get('exception')!r}"
            for name, context in self.time.unhandled
            # The client leaves a future behind, with an exception, when it fails to make a proxy or a listener.
            if not isinstance(context.get("exception"), (asyncio.CancelledError, HazelcastError))
        ]
        assert not unhandled, "\n".join(unhandled)

    def living(self):
        return [name for name, process in self.workers.items() if not process.stopping and not process.paused]

    def owners(self):
        return {partition: lease["owner"] for partition, lease in self.ledger.leases.items()}

    def is_balanced(self):
        living, owners = self.living(), self.owners()
        shares = Counter(owners.values())
        low, high = self.partitions // len(living), -(-self.partitions // len(living))
        return (
            len(owners) == self.partitions
            and set(shares) <= set(living)
            and all(low <= shares[name] <= high for name in living)
        )

    def wrong(self):
        """Entries of the event map without the right result."""
        found = []
        for partition in range(self.partitions):
            results = self.cluster.partition("results.sim", partition)
            for key_data, value in self.cluster.partition("events.sim", partition):
                key, amount = _text(key_data), json.loads(_text(value))["amount"]
                if amount is None:
                    if key not in self.ledger.rejected():
                        found.append((partition, key, amount, None))
                    continue
                result = results.get(key_data)
                got = None if result is None else json.loads(_text(result))
                if self._begun_again_unseen(partition):
                    continue  # sequences do not show that it began again and went on: the audit does
                # Where the grid or the ring has lost events of a key, the result of another of its events may stand.
                right = self.ledger.amounts[key] if self.is_disturbed(partition) else {amount}
                if got is None or not any(np.isclose(got["score"], score_of(each)) for each in right):
                    found.append((partition, key, amount, got))
        return found

    def _begun_again_unseen(self, partition):
        lease = self.ledger.leases.get(partition)
        newest = self.cluster.partition("events.sim", partition).ring.newest
        return partition in self.ledger.unseen and lease is not None and newest + 1 >= lease["offset"]

    def is_disturbed(self, partition):
        lease = self.ledger.leases.get(partition)
        return partition in self.ledger.disturbed or (lease is not None and lease["lost"] > 0)

    def settle(self, seconds=200.0):
        """Let time pass until all is scored and balanced; what is not in that time is what is wrong."""
        until = self.time.now + seconds
        while self.time.now < until:
            self.advance(1.0)
            if self.is_balanced() and not self.wrong() and not self._rescans():
                return
        owners = Counter(self.owners().values())
        job = self.ask(self.client.jobs.get("sim"))
        assert job.state == "RUNNING", f"the job is {job.state}: {job.error}"
        assert self.is_balanced(), f"unbalanced: {owners}, living: {self.living()}, {self.time.unhandled}"
        assert not self._rescans(), f"rescans are left: {self._rescans()}"
        wrong = self.wrong()
        assert not wrong, f"{len(wrong)} results are wrong or missing, of partition, key, amount: {wrong[:5]}"

    def _rescans(self):
        return [
            _text(key)
            for partition in range(self.partitions)
            for key, _ in self.cluster.partition("gridscore.rescans", partition)
        ]

    def close(self):
        try:
            self.ask(self.grid.close())
            self.time.close()
        finally:
            self._patch.__exit__(None, None, None)
