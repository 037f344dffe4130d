"""The faults of a soak, as they are done: to worker processes, to members, to the network between them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING, Self

import msgspec
from hazelcast.errors import HazelcastError

from gridscore.errors import GridError, GridscoreError, MemberError
from gridscore.grid import Records, transport
from gridscore.grid.management import is_safe, read_heap
from gridscore.grid.writer import partition_of
from gridscore.group.lease_records import read_records
from gridscore.group.members import HEARTBEATS_MAP
from gridscore.leash import LeashedProcess
from gridscore.proving.soak import detour
from gridscore.proving.soak.evidence import INCIDENTS, Incident, LineFile, pid_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from pathlib import Path

    from gridscore.grid import Grid
    from gridscore.grid.member import Cluster
    from gridscore.group.lease_records import LeaseRecord
    from gridscore.proving.soak.plan import Fault, Plan
    from gridscore.proving.soak.proxy import Backbone, Network

_log = logging.getLogger(__name__)

SAFE_SECONDS = 120.0  # how long a cluster may take to have every backup again after a member has come back
READY = "is looking for jobs"  # what a worker prints when it has started
_START_SECONDS = 60.0
_STOP_SECONDS = 30.0
_WATCH_SECONDS = 0.1
_BEFORE_SECONDS = 0.05
_SAFE_LOOKS = 2
_RESTARTS = 3
_HEIR_SECONDS = 30.0


class WorkerSlot:
    """A place for one worker: its network, and the process that is there now.

    `index`: counts the slots from 0; `network`: between the worker and the members; `arguments`: of `gridscore`;
    `folder`: of the workers' logs.
    """

    def __init__(self, index: int, network: Network, arguments: Sequence[str], folder: Path) -> None:
        self.index, self.network = index, network
        self.busy = asyncio.Lock()
        self._arguments = list(arguments)
        self._folder = folder
        self._started = 0
        self._process: LeashedProcess | None = None
        self._log = folder
        self._paused = False

    @property
    def pid(self) -> int:
        """Process of the worker that was last started here."""
        return self._running.pid

    @property
    def exit_code(self) -> int | None:
        """What that worker has ended with; None while it runs."""
        return self._running.exit_code

    @property
    def _running(self) -> LeashedProcess:
        if self._process is None:
            raise GridscoreError(f"No worker was started in slot {self.index}.")
        return self._process

    def start(self) -> None:
        """Start a worker, in place of one that has ended.

        Call it from the main thread: on Linux, the worker ends with the thread that has started it.
        """
        self.stop()
        detours = [f"{address}={port}" for address, port in self.network.detours.items()]
        self._log = self._folder / f"worker-{self.index}-{self._started}.log"
        self._process = LeashedProcess(detour.__name__, [*detours, *self._arguments], self._log)
        self._started += 1

    async def until_started(self) -> None:
        """Return when the worker has started, or has ended; it may hold no partition yet."""
        deadline = time.monotonic() + _START_SECONDS
        while self.exit_code is None and READY not in self._log.read_text(encoding="utf-8", errors="replace"):
            if time.monotonic() > deadline:
                raise GridscoreError(
                    f"Worker {self.index} did not start in {_START_SECONDS:.0f} seconds. Its last lines:\n"
                    + self.last_lines()
                )
            await asyncio.sleep(0.1)

    def last_lines(self) -> str:
        """The end of the worker's log."""
        return self._running.last_lines()

    async def kill(self) -> None:
        """Kill the worker with -9, and wait until it is gone."""
        self._signal(signal.SIGKILL)
        await self._gone()

    async def leave(self) -> int:
        """Ask the worker to stop, and wait until it has; returns its exit code."""
        self._signal(signal.SIGTERM)
        return await self._gone()

    async def pause(self, seconds: float) -> None:
        """Stop the worker for so long, in the middle of whatever it does."""
        self._signal(signal.SIGSTOP)
        self._paused = True
        try:
            await asyncio.sleep(seconds)
        finally:
            self._signal(signal.SIGCONT)
            self._paused = False

    def stop(self) -> None:
        """End the worker, whatever its state, and wait. A second call does nothing."""
        if self._process is not None:
            if self._paused:
                self._signal(signal.SIGCONT)
            self._process.stop()

    def _signal(self, number: signal.Signals) -> None:
        # One that has been waited for is gone, and its number may be another's.
        if self._running.exit_code is None:
            os.kill(self._running.pid, number)

    async def _gone(self) -> int:
        deadline = time.monotonic() + _STOP_SECONDS
        while (code := self._running.exit_code) is None:
            if time.monotonic() > deadline:
                raise GridscoreError(
                    f"Worker {self.index} (process {self.pid}) did not end in {_STOP_SECONDS:.0f} seconds. Its last "
                    f"lines:\n{self.last_lines()}"
                )
            await asyncio.sleep(0.02)
        return code


class Faults:
    """Does the faults of a plan and notes what was done. An asynchronous context manager around the workers' time."""

    def __init__(
        self,
        slots: Sequence[WorkerSlot],  # the workers
        cluster: Cluster | None,  # the members, if they are ours to kill
        backbone: Backbone | None,  # the ways between them, if they are ours to cut
        grid: Grid,  # a connection that is not in the way of any fault
        job: str,  # what the workers score
        folder: Path,  # where the note goes
        tell: Callable[[str], None],  # called with a line when something begins or ends
    ) -> None:
        self._slots, self._cluster, self._backbone = slots, cluster, backbone
        self._grid = grid
        self._notes = LineFile(folder / INCIDENTS)
        self._tell, self._job = tell, job
        self._member = asyncio.Lock()
        self._members = len(grid.members)
        self._watching: asyncio.Task[None] | None = None
        self.now: dict[int, str] = {}
        self.done = 0
        self.crashes: list[str] = []

    async def __aenter__(self) -> Self:
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop_watching()
        await asyncio.gather(*(asyncio.to_thread(slot.stop) for slot in self._slots))
        self._notes.close()

    async def end(self) -> None:
        """Ask every worker to stop, and note who does not do it in order."""
        await self._stop_watching()
        await asyncio.gather(*(self._leave(slot) for slot in self._slots))

    async def _leave(self, slot: WorkerSlot) -> None:
        await slot.until_started()
        if (code := await slot.leave()) != 0:
            self._crashed(slot, f"ended with code {code} when it was asked to stop")

    async def _stop_watching(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    async def run(self, plan: Plan) -> None:
        """Do every fault of the plan, each at its time from now on or as soon after as its victim is well.

        Raises GridscoreError if a worker or a member did not end or did not come back.
        """
        began = time.monotonic()
        try:
            for alone in (False, True):
                faults = [fault for fault in plan.faults if fault.alone is alone]
                if alone and faults:
                    began = max(began, time.monotonic() - faults[0].at)
                async with asyncio.TaskGroup() as group:
                    for fault in faults:
                        group.create_task(self._at(began, fault))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def until_safe(self) -> None:
        """Return when every partition has its backup. Raises MemberError if that does not come to be."""
        deadline = time.monotonic() + SAFE_SECONDS
        looks = 0
        while looks < _SAFE_LOOKS:
            # Members look at themselves once a second.
            await asyncio.sleep(1.1)
            looks = looks + 1 if await is_safe(self._grid, self._members) and await self._has_moved() else 0
            if time.monotonic() > deadline:
                raise MemberError(f"The cluster is not in a safe state after {SAFE_SECONDS:.0f} seconds.")

    async def _has_moved(self) -> bool:
        """Whether no partition is to be moved: members may say for seconds that they are safe, and have not looked."""
        try:
            for member in self._grid.members:
                _, after = await read_heap(self._grid, member.uuid, 0)
                if (await read_heap(self._grid, member.uuid, after))[0].migrations:
                    return False
        except (HazelcastError, GridError):
            return False
        return True

    async def _at(self, began: float, fault: Fault) -> None:
        await asyncio.sleep(began + fault.at - time.monotonic())
        async with self._slots[fault.worker].busy if fault.worker is not None else self._member:
            if fault.worker is None:
                await self.until_safe()
            else:
                await self._slots[fault.worker].until_started()
            self.now[fault.number] = str(fault)
            self._tell(str(fault))
            try:
                if fault.worker is not None:
                    await self._harm(self._slots[fault.worker], fault)
                elif fault.kind == "both-kill":
                    await self._kill_both(fault)
                else:
                    await self._harm_member(fault.member or 0, fault.kind, fault)
            finally:
                del self.now[fault.number]
            self.done += 1

    async def _harm(self, slot: WorkerSlot, fault: Fault) -> None:
        if fault.kind in ("worker-kill", "heir-kill"):
            async with asyncio.TaskGroup() as both:
                if fault.kind == "heir-kill":
                    both.create_task(self._kill_heir(slot.pid, fault))
                await self._kill_worker(slot, fault)
            return
        kind, _, after = fault.kind.partition("-")
        with self._noted(fault, kind if after == "cut" else fault.kind, slot):
            if kind == "leave":
                await self._leave(slot)
                await asyncio.sleep(fault.seconds)
                slot.start()
            elif kind == "pause":
                async with asyncio.TaskGroup() as both:
                    both.create_task(slot.pause(fault.seconds))
                    if after:
                        # A moment before, so that nothing passes when it goes on.
                        await asyncio.sleep(fault.seconds - _BEFORE_SECONDS)
                        suffer = slot.network.hold if after == "hold" else slot.network.cut
                        await suffer(_BEFORE_SECONDS + fault.hold)
            elif kind == "cut":
                await slot.network.cut(fault.seconds, fault.member)
            elif kind == "hold":
                await slot.network.hold(fault.seconds)

    async def _kill_worker(self, slot: WorkerSlot, fault: Fault) -> None:
        with self._noted(fault, "worker-kill", slot):
            await slot.kill()
            await asyncio.sleep(fault.seconds)
            slot.start()

    async def _kill_heir(self, pid: int, fault: Fault) -> None:
        """Kill the first worker that is about to take a partition of this one, or has taken it."""
        before = {p for p, lease in (await self._leases()).items() if pid_of(lease.owner) == pid}
        deadline = time.monotonic() + _HEIR_SECONDS
        while before and time.monotonic() < deadline:
            leases = await self._leases(before)
            heirs = {pid_of(lease.heir or lease.owner) for lease in leases.values()} - {None, pid}
            for slot in self._slots:
                if slot.pid in heirs and not slot.busy.locked():
                    async with slot.busy:
                        await self._kill_worker(slot, fault)
                    return
            await asyncio.sleep(_WATCH_SECONDS)

    async def _leases(self, partitions: Collection[int] | None = None) -> dict[int, LeaseRecord]:
        """The lease records, as soon as they can be read: a member that is split off refuses it for a while."""
        async with asyncio.timeout(SAFE_SECONDS):
            while True:
                with contextlib.suppress(HazelcastError):
                    return await read_records(self._grid, self._job, partitions)
                await asyncio.sleep(_WATCH_SECONDS)

    async def _kill_both(self, fault: Fault) -> None:
        """Kill the worker that holds the most of those that are well, and the member that has its heartbeat."""
        owners = Counter(pid_of(lease.owner) for lease in (await self._leases()).values())
        slot = max(self._slots, key=lambda slot: (not slot.busy.locked(), owners[slot.pid]))
        async with slot.busy:
            await slot.until_started()
            names = await Records(self._grid, HEARTBEATS_MAP).all()
            name = next((each for each in names if pid_of(each) == slot.pid), "")
            partition = partition_of(transport.key_data(self._grid.client, name), self._grid.partition_count)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._kill_worker(slot, fault))
                await self._harm_member(self._owner_of(partition), "member-kill", fault)

    def _owner_of(self, partition: int) -> int:
        """Index of the member that owns a partition."""
        owner = self._grid.client.partition_service.get_partition_owner(partition)
        addresses = [f"{each.address.host}:{each.address.port}" for each in self._grid.members if each.uuid == owner]
        return self._cluster.addresses.index(addresses[0]) if self._cluster and addresses else 0

    async def _harm_member(self, index: int, kind: str, fault: Fault) -> None:
        cluster, backbone = self._cluster, self._backbone
        if cluster is None or backbone is None:
            raise GridscoreError("The members are not ours to kill.")
        with self._noted(fault, kind, member=index) as notes:
            if kind == "member-kill":
                notes.append(await self._kill_member(cluster, index, fault.seconds))
            elif kind == "member-cut":
                await backbone.cut(fault.seconds, index)
            else:
                pid = cluster.pids[index]
                os.kill(pid, signal.SIGSTOP)
                try:
                    await asyncio.sleep(fault.seconds)
                finally:
                    os.kill(pid, signal.SIGCONT)
            # If the others have taken it for dead, it comes back by itself. Then its partitions come back to it.
            await self.until_safe()

    async def _kill_member(self, cluster: Cluster, index: int, seconds: float) -> str:
        """Kill it and start it again; says how long that took."""
        await asyncio.to_thread(cluster.kill, index)
        await asyncio.sleep(seconds)
        started = time.monotonic()
        for attempt in range(_RESTARTS):
            try:
                await asyncio.to_thread(cluster.restart, index)
                break
            except MemberError:
                # Its port may have been somebody's for a moment.
                if attempt == _RESTARTS - 1:
                    raise
                await asyncio.sleep(1.0)
        return f"started again in {time.monotonic() - started:.1f} s"

    async def _watch(self) -> None:
        """See workers that end without having been asked to, and start others."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            for slot in self._slots:
                if not slot.busy.locked() and slot.exit_code is not None:
                    at, pid = _now(), slot.pid
                    self._crashed(slot, f"ended by itself with code {slot.exit_code}")
                    slot.start()
                    note = self.crashes[-1]
                    self._note(Incident(-1, "crash", at, _now(), worker=slot.index, pid=pid, note=note))

    def _crashed(self, slot: WorkerSlot, what: str) -> None:
        self.crashes.append(f"Worker {slot.index} (process {slot.pid}) {what}. Its last lines:\n{slot.last_lines()}")
        self._tell(f"worker {slot.index} {what}")
        _log.error("%s", self.crashes[-1])

    @contextlib.contextmanager
    def _noted(
        self, fault: Fault, kind: str, slot: WorkerSlot | None = None, member: int | None = None
    ) -> Iterator[list[str]]:
        """Note what is done inside, with what is put into the list."""
        at, notes = _now(), list[str]()
        worker, pid = (None, None) if slot is None else (slot.index, slot.pid)
        yield notes
        member = fault.member if member is None else member
        self._note(Incident(fault.number, kind, at, _now(), worker, pid, member, " ".join(notes)))

    def _note(self, incident: Incident) -> None:
        self._notes.add(msgspec.json.encode(incident))
        self._notes.flush()


def _now() -> int:
    return time.time_ns() // 1_000_000
