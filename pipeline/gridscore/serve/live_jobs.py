"""Live jobs: what it takes to score requests as the stream scores events, kept current, for every job that is served.

It is the workers' own code: decoder, copies of lookups, features, model, decisions and results. So the same event gets
the same bits. What is left out is the stream: no journal, no lease, nothing is written.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hazelcast.errors import HazelcastError

from gridscore.errors import GridError, GridscoreError, JobError
from gridscore.features.function_process import FunctionProcess
from gridscore.grid.wire import Page, string_data
from gridscore.group.reader import Arrival, Cursor
from gridscore.job import Jobs
from gridscore.job.life import WANTED
from gridscore.scoring.live_experiment import LiveExperiment
from gridscore.scoring.live_model import LiveModel
from gridscore.scoring.lookups import JobLookups, Lookups
from gridscore.scoring.scorer import Scorer
from gridscore.scoring.stats import JobStats
from gridscore.serve.micro_batches import BATCH, MicroBatches, answer
from gridscore.serve.tasks import RETRY_SECONDS, follow

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from gridscore.dead_letters.letters import Rejected
    from gridscore.grid import Grid
    from gridscore.job import JobRecord
    from gridscore.scoring.live_model import LoadedModels

_log = logging.getLogger(__name__)

_Work = tuple[Sequence[bytes], Sequence["str | None"]]
Answers = list["bytes | Rejected"]  # for each event of a request, in order: its result as JSON text, or why it has none
# Places of events in a batch, each as a serialized key that has this number instead of its hash, and no text.
_NUMBERS = [struct.pack(">ii", number, 0) for number in range(2 * BATCH)]


class UnservedError(JobError):
    """A job does not score requests. `status`: of HTTP, that says so."""

    def __init__(self, status: int, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.status = status


class LiveJob:
    """Scores requests of one revision of a job, until `run` is cancelled.

    `lookups`: copies of lookup maps that the jobs of the process share; `models`: models that they share; `most`:
    events that may wait, and their bytes; `allow_python`: modules whose functions the job's features may call.
    `is_ready`: whether it scores.
    """

    def __init__(
        self,
        grid: Grid,
        record: JobRecord,
        lookups: Lookups,
        models: LoadedModels,
        most: tuple[int, int],
        allow_python: Collection[str] = (),
    ) -> None:
        job = record.job
        self.record = record
        self.stats = JobStats()
        self.is_ready = False
        self._lookups = JobLookups(grid, job, lookups)
        tables, fetchers = self._lookups.tables, self._lookups.fetchers
        functions = self._functions = FunctionProcess(job, tables, allow_python) if job.has_functions else None
        self._scorer = Scorer(job, record.revision, tables, fetchers, self.stats, functions=functions)
        self._model = LiveModel(grid, record, tables, self.stats, models, functions)
        self._experiment = LiveExperiment(grid, record, tables, self._model, self.stats)
        self._batches: MicroBatches[_Work, Answers] = MicroBatches(*most)
        self._cursor = Cursor(0, 0)

    @property
    def problem(self) -> str:
        """Why it does not score; empty if it does."""
        if self.is_ready:
            return ""
        stats = self.stats
        return stats.lookup_error or stats.function_error or stats.model_error or "it is being loaded"

    @property
    def trouble(self) -> str:
        """Why its Python functions cannot be called, though it is asked; empty if they can."""
        return "" if self._functions is None else self._functions.trouble

    @property
    def waiting(self) -> int:
        """Events that wait to be scored."""
        return self._batches.waiting

    async def run(self, ready: Callable[[], None]) -> None:
        """Load everything, then score. `ready`: called once, when it scores."""
        try:
            await self._load()
            self.is_ready = True
            ready()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._model.follow())
                tasks.create_task(self._experiment.follow())
                tasks.create_task(self._score())
        finally:
            self._batches.close(GridError(f"The job `{self.record.name}` is no longer scored here.", "Ask again."))
            await asyncio.shield(self._close())

    @property
    def needs_keys(self) -> bool:
        """Whether an experiment tells entities apart by the keys of events."""
        trial = self._experiment.trial
        return trial is not None and not trial.experiment.key

    async def score(
        self,
        texts: Sequence[bytes],
        has_left: Callable[[], bool],
        seconds: float,
        keys: Sequence[str | None] | None = None,
    ) -> Answers:
        """Score the events of a request, in one micro-batch with those of others; errors are those of `ask`.

        `keys`: that they would have in the event map, as far as that is known.
        """
        work = texts, keys or [None] * len(texts)
        return await self._batches.ask(work, len(texts), sum(map(len, texts)), has_left, seconds)

    async def _load(self) -> None:
        while True:
            try:
                await self._lookups.start()
                break
            except (GridscoreError, HazelcastError) as error:
                if str(error) != self.stats.lookup_error:
                    _log.error("%s: a lookup cannot be loaded, trying again: %s", self.record.name, error)
                self.stats.lookup_error = str(error) or type(error).__name__
                await asyncio.sleep(RETRY_SECONDS)
        self.stats.lookup_error = ""
        await self._model.start()  # which tries again by itself
        await self._experiment.start()

    async def _score(self) -> None:
        while True:
            questions = await self._batches.take()
            try:
                texts = [text for each in questions for text in each.work[0]]
                answer(questions, await self._answers(texts, [key for each in questions for key in each.work[1]]))
            except Exception as error:  # noqa: BLE001 -- whatever it is, it must not end the job
                if isinstance(error, HazelcastError):
                    error = GridError(f"What the events look up could not be fetched: {error}", "Ask again.")
                for each in questions:
                    each.fail(error)
            await asyncio.sleep(0)  # let answers leave and requests come

    async def _answers(self, texts: list[bytes], keys: list[str | None]) -> Answers:
        count = len(texts)
        page = Page(0, count, [-1] * count, _numbered(keys), texts, {}, 0)  # -1: it is in no journal
        scored = await self._scorer.score([Arrival(0, page, self._cursor, 0, 0.0)], self._model.active)
        self.stats.events += scored.events
        self.stats.batches += 1
        answers: list[Any] = [None] * count
        for batch in scored.partitions:
            for key, text in zip(batch.keys, batch.texts, strict=True):
                answers[_number_in(key)] = text
        for rejected in scored.rejected:
            answers[_number_in(rejected.key)] = rejected
        return answers

    async def _close(self) -> None:
        if self._functions is not None:
            await self._functions.close()
        await self._experiment.close()
        await self._model.close()
        await self._lookups.close()


def _numbered(keys: Sequence[str | None]) -> list[bytes]:
    """Serialized keys with the number of each event in the place of their hash, which nobody here looks at."""
    if not any(keys):
        return _NUMBERS[: len(keys)]
    texts = ((number, key, (key or "").encode(errors="surrogatepass")) for number, key in enumerate(keys))
    return [_NUMBERS[number] if key is None else string_data(text, number) for number, key, text in texts]


def _number_in(key: bytes) -> int:
    return int.from_bytes(key[:4], "big")


@dataclass(slots=True)
class _Running:
    live: LiveJob
    task: asyncio.Task[None]


class LiveJobs:
    """The jobs that are served, as the cluster has them.

    `models`: loaded models, shared with others of this process; `only`: names of those to serve; all if empty; `most`:
    events of a job that may wait, and their bytes; `allow_python`: modules whose functions their features may call.
    """

    def __init__(
        self,
        grid: Grid,
        models: LoadedModels,
        only: Collection[str],
        most: tuple[int, int],
        allow_python: Collection[str] = (),
    ) -> None:
        self._grid, self._only, self._most, self._allow_python = grid, frozenset(only), most, allow_python
        self._jobs = Jobs(grid)
        self._lookups, self._models = Lookups(grid), models
        self._changed = asyncio.Event()
        self._running: dict[str, _Running] = {}
        self._next: dict[str, _Running] = {}  # revisions that are being loaded, while those before them go on
        self.records: dict[str, JobRecord] = {}
        self.is_known = False  # whether the cluster has said which jobs there are

    def get(self, name: str) -> LiveJob:
        """A job that scores. Raises UnservedError if it does not score now, or cannot score requests."""
        running = self._running.get(name) or self._next.get(name)
        if running is not None and not running.live.problem:
            return running.live
        record = self.record(name)
        if record.job.used_windows:
            raise UnservedError(
                409,
                f"The job `{name}` has windows: what they hold is the workers', and changes with every event.",
                "Ask with `record=true`, so that the stream scores the event.",
            )
        problem = "it is being loaded" if running is None else running.live.problem
        raise UnservedError(503, f"The job `{name}` cannot score yet: {problem}.", "Ask again.")

    def record(self, name: str) -> JobRecord:
        """A job that workers score for. Raises UnservedError if there is none of that name here, or it does not run."""
        record = self.records.get(name)
        if record is None:
            raise UnservedError(404, f"There is no job `{name}` here.", "GET /jobs lists those that there are.")
        if record.state not in WANTED:
            raise UnservedError(409, f"The job `{name}` is {record.state}: nothing is scored for it.")
        return record

    def problem(self, name: str) -> str:
        """Why a job does not score requests; empty if it does."""
        try:
            return self.get(name).trouble
        except UnservedError as error:
            return error.message

    def live(self, name: str) -> LiveJob | None:
        """A job that scores, as `get`; None if it does not."""
        running = self._running.get(name)
        return None if running is None else running.live

    async def run(self) -> None:
        """Follow the jobs until cancelled."""
        await follow(self._grid, self._jobs.watch, self._changed, self._look, self._tasks)

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [each.task for running in (self._next, self._running) for each in running.values()]

    async def _look(self) -> bool:
        """See which jobs there are; start and end what is missing or not wanted any more."""
        found = await self._jobs.all()
        self.records = {each.name: each for each in found if not self._only or each.name in self._only}
        self.is_known = True
        wanted = {n: r for n, r in self.records.items() if r.state in WANTED and not r.job.used_windows}
        for running in (self._next, self._running):
            for name in [name for name in running if name not in wanted]:
                running.pop(name).task.cancel()
        for name, record in wanted.items():
            newest = self._next.get(name) or self._running.get(name)
            if newest is None or not newest.live.record.is_same_run(record):
                self._start(record)
        return True

    def _start(self, record: JobRecord) -> None:
        name = record.name
        if name in self._next:
            self._next.pop(name).task.cancel()
        live = LiveJob(self._grid, record, self._lookups, self._models, self._most, self._allow_python)

        def ready() -> None:
            if (mine := self._next.get(name)) is not None and mine.live is live:
                if name in self._running:
                    self._running[name].task.cancel()
                self._running[name] = self._next.pop(name)

        task = asyncio.create_task(self._run(live, ready), name=f"serve {name}")
        self._next[name] = _Running(live, task)

    async def _run(self, live: LiveJob, ready: Callable[[], None]) -> None:
        name = live.record.name
        try:
            await live.run(ready)
        except Exception:  # noqa: BLE001 -- whatever it is, it ends this job and not the others
            _log.exception("%s: scoring requests has failed, trying again", name, extra={"action": "serve_failed"})
            await asyncio.sleep(RETRY_SECONDS)
        finally:
            for running in (self._next, self._running):
                if (mine := running.get(name)) is not None and mine.live is live:
                    del running[name]
                    self._changed.set()
