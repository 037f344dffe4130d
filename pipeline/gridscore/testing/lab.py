"""A lab: a job on a stub cluster in virtual time, by plain calls, for tests of users' own jobs."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hazelcast.errors import HazelcastError

from gridscore.dead_letters.letters import walk_entries
from gridscore.errors import EventRejectedError, UsageError
from gridscore.job import Job, load_job, parse_job
from gridscore.scoring import Worker
from gridscore.testing.cluster import StubCluster
from gridscore.testing.virtual_time import VirtualTime

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from gridscore.client import Client
    from gridscore.testing.virtual_time import VirtualLoop

_T = TypeVar("_T")

SCORE_SECONDS = 60.0
MOST_SECONDS = 3_600.0


class Lab:
    """A job, its workers and a user, in virtual time. A context manager.

    The real client, the real worker and the real job file run on a `StubCluster`; there is no server, nothing sleeps,
    and no call is asynchronous: it returns when what it says has happened.

    Args:
        partitions: Of the cluster.
        journal: Events that the journal of *a partition* keeps.
        members: How many; `cluster.kill_member()` ends one.
        workers: How many.
        began_at: The time of day that it begins with, in seconds since 1970; default: that of the machine.

    Attributes:
        cluster: For faults, see `StubCluster`.
        time: Its clock.
        client: The Python door; `run` waits for what it returns.
        job: The job that was submitted last.
    """

    def __init__(
        self,
        *,
        partitions: int = 13,
        journal: int = 10_000,
        members: int = 1,
        workers: int = 1,
        began_at: float | None = None,
    ) -> None:
        self.time = VirtualTime(time.time() if began_at is None else began_at)
        self._entered = contextlib.ExitStack()
        self._entered.enter_context(self.time.patched())
        journals = {"events.*": journal, "results.*": 1_000_000, "window-*": 4_096}
        self.cluster = StubCluster(partitions, journals=journals, members=members, loop=self.time.loop("members"))
        self._user = self.time.loop("user")
        self._numbers = itertools.count(1)
        self._workers: dict[str, _Process] = {}
        self._job: Job | None = None
        try:
            self.client: Client = self.run(self.cluster.client("user"))
            for _ in range(workers):
                self.add_worker()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End everything."""
        try:
            self.time.close()
        finally:
            self._entered.close()

    @property
    def job(self) -> Job:
        """The job that was submitted last.

        Raises:
            UsageError: None was.
        """
        if self._job is None:
            raise UsageError("There is no job in the lab.", "Call `submit` first.")
        return self._job

    def run(self, coroutine: Coroutine[Any, Any, _T], *, seconds: float = SCORE_SECONDS) -> _T:
        """What a coroutine returns, of the client's for instance, while the workers go on.

        Raises:
            TimeoutError: It took more than so many virtual seconds.
        """
        return self.time.run(coroutine, self._user, seconds=seconds)

    # ------------------------------------------------------------------ the job

    def submit(
        self,
        job: Job | Path | str,
        *,
        model: Any,
        lookups: Mapping[str, Mapping[str, Any]] | None = None,
        log_features: bool = True,
    ) -> None:
        """Submit a job with its model; again, to update it.

        Args:
            job: The job, the path of its file, or the text of one.
            model: A model or its file, as `Client.push_model` takes it.
            lookups: Entries of its lookup maps by key, by the name that the job has for the lookup; others are empty.
            log_features: Whether each result holds its `features`, whatever the job says.

        Raises:
            GridscoreError: Whatever `gridscore submit` would refuse.
        """
        made = job
        if isinstance(made, str) and "\n" in made:
            made = parse_job(made, "the job")
        elif not isinstance(made, Job):
            made = load_job(Path(made))
        if unknown := sorted(set(lookups or {}) - made.lookups.keys()):
            raise UsageError(
                f"The job `{made.name}` has no lookup `{unknown[0]}`.", f"It has {', '.join(made.lookups)}."
            )
        if log_features:
            made = made.model_copy(update={"result": made.result.model_copy(update={"features": "all"})})
        for name, lookup in made.lookups.items():
            self.run(self._fill(lookup.map, (lookups or {}).get(name, {})))
        self.run(self.client.submit(made, model=model, update=self._job is not None))
        self._job = made

    async def _fill(self, map_name: str, entries: Mapping[str, Any]) -> None:
        await self.client.grid.map(map_name)  # it exists, even if it is empty
        await self.client.put_events(map_name, entries)

    def score(self, events: Mapping[Any, Any] | Sequence[Any]) -> dict[Any, dict[str, Any]]:
        """Put events, one after the other, and return their results by key.

        Args:
            events: Objects by key; or a list, for the keys 0, 1, 2 and so on.

        Raises:
            EventRejectedError: One cannot be scored; the rest was put.
            NoResultError: There was none in a virtual minute.
        """
        items = events.items() if hasattr(events, "items") else enumerate(events)
        found: dict[Any, dict[str, Any]] = {}
        rejected: EventRejectedError | None = None
        for key, event in items:
            asked = self.client.score(self.job.events, str(key), event, timeout=SCORE_SECONDS)
            try:
                found[key] = self.run(asked, seconds=2 * SCORE_SECONDS).value
            except EventRejectedError as error:
                rejected = rejected or error
        if rejected is not None:
            raise rejected
        return found

    def put(self, events: Mapping[str, Any]) -> None:
        """Put events, and do not wait for their results: `results` does."""
        self.run(self.client.put_events(self.job.events, events))

    def results(self, count: int) -> dict[str, dict[str, Any]]:
        """The results by key, once there are so many.

        Raises:
            TimeoutError: There are fewer after a virtual minute.
        """
        return self.run(self.cluster.results(self.job.results, count, seconds=SCORE_SECONDS), seconds=2 * SCORE_SECONDS)

    def dead_letters(self) -> dict[str, str]:
        """Why events could not be scored, by key."""
        return self.run(self._dead_letters())

    async def _dead_letters(self) -> dict[str, str]:
        found: dict[str, str] = {}
        async for _, entries in walk_entries(self.client.grid, self.job.name):
            found |= {dead.key: dead.error for *_, dead in entries if dead is not None}
        return found

    def swap(self, model: Any) -> int:
        """Push a version of the model that scores from now on; returns its number when all workers use it.

        Raises:
            ModelError: It is not for this job.
            TimeoutError: A worker does not use it after a virtual minute.
        """
        pushed = self.run(self.client.push_model(model, self.job.model.name, alias=self.job.model.alias or "champion"))
        if not self.time.run_until(lambda: self._all_use(pushed.version), seconds=SCORE_SECONDS):
            raise TimeoutError(f"a worker does not use version {pushed.version} of `{self.job.model.name}`")
        return pushed.version

    def _all_use(self, version: int) -> bool:
        name = self.job.name
        stats = [each.worker.runners[name].stats for each in self._workers.values() if name in each.worker.runners]
        return bool(stats) and all(each.version == version for each in stats)

    # ------------------------------------------------------------------ time, and what may happen

    def advance(self, seconds: float) -> None:
        """Let virtual time pass, an hour at most. Windows go by the times in the events, not by this clock.

        Raises:
            UsageError: It is more.
        """
        if not 0 <= seconds <= MOST_SECONDS:
            raise UsageError(
                f"{seconds:g} s cannot pass at once: 0 to {MOST_SECONDS:g} can.",
                "Windows go by the times in the events: give later events later times.",
            )
        self.time.advance(seconds)

    def add_worker(self) -> str:
        """Start another worker; returns its name, for faults to name it."""
        name = f"worker-{next(self._numbers)}"
        self._workers[name] = _Process(self.cluster, self.time.loop(name), name)
        return name

    def kill_worker(self, name: str | None = None) -> None:
        """Kill a worker as `kill -9` would, by default the oldest; what it held is taken over by the others.

        Raises:
            UsageError: There is no such worker.
        """
        found = next(iter(self._workers), None) if name is None else name
        if found not in self._workers:
            raise UsageError(
                f"There is no worker `{found}` in the lab.", f"There are {', '.join(self._workers) or 'none'}."
            )
        self.time.abandon(self._workers.pop(found).loop)
        self.cluster.kill_client(found)


class _Process:
    """A worker on a loop of its own, started anew if it ends by itself, as whoever runs workers does."""

    worker: Worker

    def __init__(self, cluster: StubCluster, loop: VirtualLoop, name: str) -> None:
        self._cluster, self._name, self.loop = cluster, name, loop
        self._task = loop.create_task(self._run())

    async def _run(self) -> None:
        grid = await self._cluster.connect(self._name)
        while True:
            self.worker = Worker(grid)
            try:
                await self.worker.run()
            except HazelcastError:
                await asyncio.sleep(1.0)
