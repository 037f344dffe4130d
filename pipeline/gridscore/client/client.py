"""The Python API: what an application does with Gridscore, in the words of the command line."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Sized
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gridscore.client.answers import Answers
from gridscore.client.experiments import ExperimentVerbs
from gridscore.client.notebook import counted
from gridscore.errors import (
    EventRejectedError,
    GridscoreError,
    JobError,
    ModelError,
    NoResultError,
    UsageError,
    first_of,
)
from gridscore.grid import transport
from gridscore.grid.copies import Fetcher
from gridscore.grid.journal import Journal
from gridscore.group import rescan
from gridscore.group.lease_records import read_records
from gridscore.group.leases import start_over
from gridscore.job import Job, JobRecord, Jobs, load_job
from gridscore.job.life import ENDED, OVER
from gridscore.job.release import Release
from gridscore.models.fit import check_jobs
from gridscore.models.registry import Approval
from gridscore.producer.producer import Producer
from gridscore.results.stream import ResultStream, Start
from gridscore.scoring import Worker, preparation
from gridscore.scoring.window_states import begun_by_update, emptied_by_update

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    import pandas as pd

    from gridscore.grid import Grid
    from gridscore.models import ModelVersion
    from gridscore.operations.wipe import Remnant
    from gridscore.producer.room import Waiting
    from gridscore.results.stream import Result

MAX_EVENT = 1 << 20  # most bytes of an event
MAX_AT_ONCE = 1_000  # events of a DataFrame that wait for their results at the same time


class Client(ExperimentVerbs):
    """A connection to a cluster, with the verbs of the command line. Get one from `connect`."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.jobs = Jobs(grid)
        self._producers: dict[str, Producer] = {}
        self._answers: dict[tuple[str, str | None], asyncio.Task[Answers]] = {}

    async def put_events(
        self,
        map_name: str,
        events: Mapping[Any, Any] | Iterable[tuple[Any, Any]] | pd.DataFrame,
        *,
        key: str | Sequence[str] | None = None,
        job: Job | Path | str | None = None,
        max_wait: float | None = None,
    ) -> int:
        """Put events, or lookup entries, into a map; returns how many, when the cluster has confirmed all of them.

        If a job reads the map, it waits rather than overwrite events that the job has not scored yet. To confirm single
        events, or to see when it waits, use a `producer`.

        Args:
            map_name: The event map, or a lookup map.
            events: Keys with JSON objects (dictionaries, or JSON text as bytes or str); or a DataFrame, a row an event.
            key: Columns of a DataFrame that make the key, joined by `|`. By default its index, and for a lookup map the
                columns that the job names.
            job: The job or its file that will read the map, if it is not submitted yet: it says what types the cells of
                a DataFrame have, and whether keys are strings or whole numbers.
            max_wait: How many seconds to wait for a job; for ever if None.

        Raises:
            UsageError: An event is not JSON, or is larger than a mebibyte; a DataFrame has no key, or `job` does not
                read the map.
            JobFileError: The file is not a valid job.
            TableError: A DataFrame lacks a column or a part of a key, or has times without a time zone.
            BackPressureError: A job has made no room for `max_wait` seconds; what there was room for has been put.
            GridError: The cluster did not confirm; some may have been put, and putting them again does no harm.
        """
        pairs = await self._pairs(map_name, events, key, job)
        texts: Iterable[tuple[Any, bytes]] = ((name, json_text(name, value)) for name, value in pairs)
        if isinstance(events, Sized):
            texts = counted(texts, len(events))
        if max_wait is not None:
            return await self.producer(map_name, max_wait=max_wait).put(texts)
        if map_name not in self._producers:
            self._producers[map_name] = self.producer(map_name)
        return await self._producers[map_name].put(texts)

    async def _pairs(
        self, map_name: str, events: Any, key: str | Sequence[str] | None, job: Job | Path | str | None = None
    ) -> Iterable[tuple[Any, Any]]:
        if hasattr(events, "columns"):
            from gridscore.results.frames import entries_of

            if job is None:
                return entries_of(events, map_name, key, await self._jobs_now())
            job = job if isinstance(job, Job) else load_job(Path(job))
            if map_name not in {job.events, *(lookup.map for lookup in job.lookups.values())}:
                raise UsageError(
                    f"The job `{job.name}` does not read `{map_name}`.", "Give the job that does, or none."
                )
            return entries_of(events, map_name, key, [job])
        if key is not None or job is not None:
            raise UsageError(
                f"`{'job' if key is None else 'key'}` says how to read a DataFrame.",
                "These events have their keys already, and their types.",
            )
        pairs: Iterable[tuple[Any, Any]] = events.items() if hasattr(events, "items") else events
        return pairs

    async def _jobs_now(self) -> list[Job]:
        return [record.job for record in await self.jobs.all() if record.state not in OVER]

    def producer(
        self, map_name: str, *, max_wait: float | None = None, on_wait: Callable[[Waiting | None], None] | None = None
    ) -> Producer:
        """A producer of events, for programs that put many: see `Producer`."""
        return Producer(self.grid, map_name, max_wait=max_wait, on_wait=on_wait)

    async def submit(
        self,
        job: Job | Path | str,
        *,
        update: bool = False,
        model: Any = None,
        version: int | None = None,
        allow_changed_features: bool = False,
        prepare: bool = True,
        why: str = "",
        override: str = "",
        suspended: bool = False,
    ) -> JobRecord:
        """Submit a job, or the job file at a path.

        A job that could not score is refused at once: its event map must have a journal, its lookup maps must exist,
        and its model must be in the registry and be for its features. A job without features gets those of its model.
        An update after which windows begin anew, empty, comes with a warning.

        Args:
            job: The job or its file.
            update: Replace an active job of that name; it goes on from its committed offsets.
            model: A model to push (see `push_model`) that goes live together with the job: no event is scored by one
                without the other. The alias that the job follows points at it afterwards.
            version: A version of the registry, instead.
            allow_changed_features: Accept a model that was trained with other definitions of features of these names.
            prepare: Give the job's maps the journals that they lack, unless they exist already; workers do so, too.
            why: The reason, for the log of the model.
            override: Why the model goes live even if it does not pass the gates of the job; for the same log.
            suspended: Score nothing with it before `resume`: its windows can be loaded from a history first.

        Raises:
            GateError: The model has not passed the gates.
            JobFileError: The file is not a valid job.
            JournalMissingError: The event map has no journal.
            MapNotFoundError: A lookup map does not exist.
            ModelError: There is no such model, or it would not score as it was trained.
            JobError: A job of that name is active, another one writes to the same result map, or somebody else has
                changed the job at the same time; nothing was submitted.
            UsageError: A model or version is given for a job that names a fixed version.
        """
        return await self._submit(
            job,
            update=update,
            model=model,
            version=version,
            allow_changed=allow_changed_features,
            prepare=prepare,
            why=why,
            override=override,
            suspended=suspended,
        )

    async def _submit(
        self,
        job: Job | Path | str,
        *,
        update: bool,
        model: Any = None,
        version: int | None,
        allow_changed: bool,
        prepare: bool = True,
        why: str,
        override: str | None,
        suspended: bool = False,
    ) -> JobRecord:
        """As `submit`; the gates are not asked if `override` is None."""
        from gridscore.models import check_fit

        if not isinstance(job, Job):
            job = load_job(Path(job))
        if prepare:
            await preparation.prepare(self.grid, job)
        await Journal(self.grid, job.events).bounds(0)
        for lookup in job.lookups.values():
            await self.grid.require_map(lookup.map)
        current = await self.jobs.find(job.name)
        release, replaced = None, None
        if current is not None and current.state not in OVER:
            await self._complete(current)
        job = await self.completed(job, model, version)
        if model is None and version is None:
            found = await self.version_of(job)
            check_fit(job, found, allow_changed=allow_changed)
        else:
            await self.jobs.check(job, update=update)
            if current is not None and current.state not in OVER:
                with suppress(ModelError):  # its model is gone, perhaps why it failed
                    replaced = (await self.version_of(current.job, current.release)).version
            found, release = await self._release(
                job, model, version, allow_changed=allow_changed, why=why, override=override
            )
        _compile(job, found)
        # A failed job goes on where it stopped; one that has ended starts over.
        begins_anew = current is not None and current.state in OVER
        leases = {} if current else await read_records(self.grid, job.name)
        if any(each.offset > 0 for each in leases.values()):
            # Its record was removed; if its results were, too, its offsets are of what is no longer there.
            begins_anew = not await transport.map_size(self.grid.client, job.results)
        if begins_anew:
            await start_over(self.grid, job.name)
            await rescan.forget(self.grid, job.name)
        # Leases outlive the record: a number of a restart that they have seen must not be used again.
        runs = 0 if begins_anew else max((each.run for each in leases.values()), default=0)
        record = await self.jobs.submit(
            job,
            update=update,
            release=release,
            replaced=replaced,
            restarts=runs,
            read=current,
            suspended=suspended,
            begun=begun_by_update(current, job) if current is not None else {},
        )
        is_update = current is not None and current.state not in OVER and record.revision != current.revision
        if is_update and (emptied := emptied_by_update(current.job, job)):  # type: ignore[union-attr]
            warnings.warn(emptied, stacklevel=3)
        if release is not None:
            alias = job.model.alias or "champion"
            # Only from where it was: somebody else may have released on top of this already.
            if not await self.models.complete(job.model.name, alias, release, why=why):
                raise ModelError(
                    f"Somebody else moved the alias `{alias}` of the model `{job.model.name}` at the same time: "
                    f"version {release.version} is not live, but the job `{job.name}` is submitted.",
                    f"`gridscore model show {job.model.name}` says where the alias is; submit again, or promote.",
                )
        return record

    async def completed(self, job: Job, model: Any = None, version: int | None = None) -> Job:
        """The job with its model's features, each read from the event as it is, if it names none itself.

        Args:
            model: A model, or what `push_model` takes, instead of the version that would score now.
            version: A version, instead.

        Raises:
            ModelError: There is no such model.
            JobFileError: Its features cannot be read from an event.
        """
        from gridscore.models import completed, version_in

        if job.is_complete:
            return job
        if model is not None:
            return completed(job, await asyncio.to_thread(version_in, model, job.model.name))
        if version is not None:
            return completed(job, await self.models.resolve(job.model.name, version=version))
        return completed(job, await self.version_of(job))

    async def _complete(self, record: JobRecord) -> None:
        """Finish an interrupted release, on which the next one builds: let the alias follow it."""
        ref = record.job.model
        if record.release is not None and ref.alias is not None:
            with suppress(ModelError):  # the version was deleted: no worker can complete it either
                await self.models.complete(ref.name, ref.alias, record.release)

    async def _release(
        self, job: Job, model: Any, version: int | None, *, allow_changed: bool, why: str, override: str | None
    ) -> tuple[ModelVersion, Release]:
        """The version that is to go live with a job, pushed if needed, and checked for all jobs that will use it.

        The gates are asked unless `override` is None.
        """
        name, alias = job.model.name, job.model.alias
        if alias is None or (model is not None and version is not None):
            raise UsageError(
                f"The job `{job.name}` always scores with version {job.model.version} of its model."
                if alias is None
                else "A model and a version are both given.",
                "Let it follow an alias: `model: NAME`." if alias is None else "Give one of them.",
            )
        jobs = {**await self.following(name, alias), job.name: job}
        models = self.models
        models.entry("release", why=why, override=override or "")  # what the log would not take is refused now
        gates = None if override is None else self._gates(name, alias, jobs, override)
        approval = Approval(await models.last_move(name, alias))
        if model is not None:
            candidate = await models.check(model, name, jobs=jobs, allow_changed=allow_changed)
            if gates:
                approval = await gates(candidate.model, await models.find(name, candidate))
            found = (await models.add(candidate, name, why=why)).version
        else:
            found = await models.resolve(name, version=version)
            check_jobs(jobs, found, allow_changed=allow_changed)
            if gates and found.version != (await models.aliases(name)).get(alias):
                approval = await gates(await models.load(found), found.version)
        if approval.override:
            # Before the job goes live with it, so that whatever happens then, it is known who let it.
            what = {"version": found.version, "alias": alias, "override": approval.override}
            await models.note(name, "override", failed=approval.failed[:1000], why=why, **what)
        return found, Release(found.version, approval.after)

    async def rollback(self, name: str, *, why: str = "") -> JobRecord:
        """Undo the last update of a job, together with the version of the model that went live with it.

        A second call undoes the first. A FAILED job runs again. Gates are not asked: what was there has been live.

        Raises:
            JobError: There is no such job, it was cancelled or is completed, or it was never updated.
            ModelError: The version was deleted, or other jobs follow the alias by now and cannot go back.
        """
        record = await self.jobs.get(name)
        if record.state in OVER:
            raise JobError(
                f"The job `{name}` is {record.state}: it cannot go back.",
                "`gridscore submit FILE` starts over with any job file, `--version` with any version of its model.",
            )
        if record.previous is None:
            raise JobError(
                f"The job `{name}` has not been updated: there is nothing to go back to.",
                f"`gridscore submit FILE --update` replaces the job; `gridscore model promote {record.job.model.name} "
                "--version N` brings back another version of its model.",
            )
        job = Job.from_json(record.previous.spec)
        version = record.previous.version
        return await self._submit(job, update=True, version=version, allow_changed=True, why=why, override=None)

    async def results(
        self,
        map_name: str,
        *,
        start: Start = "latest",
        where: Mapping[str, Any] | Callable[[Result], bool] | None = None,
        on_result: Callable[[Result], Any] | None = None,
        journal: bool = True,
    ) -> ResultStream:
        """Results of a map as they are written: `async for result in await client.results(...)`.

        It misses no result that the map's journal still holds, even if the connection breaks: see `ResultStream`.

        Args:
            start: `latest` for what is written from now on, `oldest`, or the `position` of an earlier stream.
            where: Only results with these values (`{"decision": "decline"}`), or for which a function returns True.
            on_result: Called with every result, instead of an iteration; may be a coroutine function.
            journal: Whether to read the map's journal; without it, the stream is a plain entry listener.

        Raises:
            JournalMissingError: The map has no journal.
            UsageError: The position is of another map or cluster.
        """
        stream = ResultStream(self.grid, map_name, start=start, where=where, on_result=on_result, journal=journal)
        return await stream.open()

    async def score(
        self,
        events: str,
        key: Any,
        event: Any,
        *,
        results: str | None = None,
        timeout: float = 2.0,  # noqa: ASYNC109 -- its error says what happened to the event
    ) -> Result:
        """Put an event and wait for its result: that of this very event, not an older one under its key.

        Any number of tasks may do so at once: they share one reader of the results. It is for single questions; to
        score many events, put them and iterate over `results`.

        Args:
            event: A dictionary, or JSON text as bytes or str.
            results: The result map; by default that of the only job that reads the event map.

        Raises:
            EventRejectedError: The event cannot be scored; raised as soon as it is a dead letter, with the reason.
            NoResultError: It did not come in time. Its attribute `put` says whether the event has been put.
            UsageError: The event is not JSON or too large; or no job reads the map, or several do.
            JournalMissingError: One of the maps has no journal.
            GridError: The cluster did not confirm the event, or the connection was closed.
        """
        answers = await self._answers_of(events, results)
        return await answers.score(key, json_text(key, event), timeout)

    async def score_frame(
        self,
        events: str,
        frame: pd.DataFrame,
        *,
        key: str | Sequence[str] | None = None,
        results: str | None = None,
        timeout: float = 10.0,  # noqa: ASYNC109 -- as of `score`
    ) -> pd.DataFrame:
        """Put each row as an event, and wait for all results: a row for each, in the order of the table.

        A row that cannot be scored, or not in time, has the reason in the column `error`, which is there only then.
        Rows of one key, which only a job with an `event_key` has, are put one after the other.

        Args:
            frame: A row an event.
            key: See `put_events`.
            results: See `score`.
            timeout: Seconds for each event, from when it is put.

        Raises:
            TableError: See `put_events`.
            UsageError: See `put_events` and `score`; or two rows have the same key, and the job no `event_key`.
            GridError: The cluster did not confirm an event, or the connection was closed.
        """
        from gridscore.results.frames import frame_of

        answers = await self._answers_of(events, results)
        turn = asyncio.Semaphore(MAX_AT_ONCE)
        pairs = [(name, json_text(name, text)) for name, text in await self._pairs(events, frame, key)]
        found: list[dict[str, Any]] = [{} for _ in pairs]
        rows: dict[Any, list[int]] = {}
        for row, (name, _) in enumerate(pairs):
            rows.setdefault(name, []).append(row)
        if (twice := len(pairs) - len(rows)) and not any(
            job.events == events and job.event_key for job in await self._jobs_now()
        ):
            raise UsageError(f"{twice:,} rows have the key of another one.", "Give each row a key of its own.")

        done = counted(range(len(pairs)), len(pairs))

        async def ask(mine: list[int]) -> None:
            for row in mine:
                async with turn:
                    try:
                        found[row] = (await answers.score(*pairs[row], timeout)).value
                    except (EventRejectedError, NoResultError) as error:
                        found[row] = {"error": str(error)}
                next(done)

        try:
            async with asyncio.TaskGroup() as tasks:
                for mine in rows.values():
                    tasks.create_task(ask(mine))
        except ExceptionGroup as failures:
            raise first_of(failures) from None
        next(done, None)
        return frame_of([name for name, _ in pairs], found)

    async def _answers_of(self, events: str, results: str | None) -> Answers:
        opening = self._answers.get((events, results))
        if opening is None or (opening.done() and not _alive(opening)):
            opening = asyncio.get_running_loop().create_task(self._open_answers(events, results))
            self._answers[events, results] = opening
        return await asyncio.shield(opening)

    async def _open_answers(self, events: str, results: str | None) -> Answers:
        if results is None:
            active = [record for record in await self.jobs.all() if record.state not in ENDED]
            found = sorted({record.job.results for record in active if record.job.events == events})
            if len(found) != 1:
                raise UsageError(
                    f"{'Several jobs read' if found else 'No job reads'} `{events}`, so its result map is unknown.",
                    "Name the result map: `results=`." if found else "Submit the job first.",
                )
            results = found[0]
        if events not in self._producers:
            self._producers[events] = self.producer(events)
        return await Answers(self.grid, self._producers[events], results).open()

    def stop_waiting(self) -> None:
        """End what `score` reads in the background, as leaving `connect` does."""
        for opening in self._answers.values():
            opening.cancel()
            if _alive(opening):
                opening.result().close()
        self._answers.clear()

    async def result(self, map_name: str, key: Any) -> dict[str, Any] | None:
        """The result under a key now, or None."""
        for _, text in await Fetcher(self.grid, map_name).fetch([key]):
            value: dict[str, Any] = msgspec.json.decode(text)
            return value
        return None

    def worker(self, jobs: Collection[str] | None = None) -> Worker:
        """A worker in this process, scoring while its `async with` is entered."""
        return Worker(self.grid, jobs)

    async def wipe(
        self, name: str, *, results: bool = False, events: bool = False, model: bool = False, dead_letters: bool = False
    ) -> list[Remnant]:
        """Remove a job that has ended from the cluster for good; and its maps and its model, if you say so.

        Returns:
            What was removed, with the number of entries.

        Raises:
            JobError: There is no such job, it has not ended, or others use what would go.
        """
        from gridscore.operations.wipe import DEAD_LETTERS, EVENTS, MODEL, RESULTS, remnants, wipe

        wanted = {RESULTS: results, EVENTS: events, MODEL: model, DEAD_LETTERS: dead_letters}
        found = await remnants(self.grid, name, [what for what, given in wanted.items() if given])
        await wipe(self.grid, found)
        return found

    async def cancel(self, name: str) -> JobRecord | None:
        """End a job for good; submitted again, it starts over.

        Raises:
            JobError: There is no such job.
        """
        return await self.jobs.cancel(name)


def _alive(opening: asyncio.Task[Answers]) -> bool:
    """Whether it was opened, and still reads."""
    return opening.done() and not opening.cancelled() and opening.exception() is None and opening.result().alive


def _compile(job: Job, version: ModelVersion) -> None:
    """Compile a job as every worker does, before any of them sees it.

    Raises:
        ModelError: The model is not for it.
        JobError: It cannot be computed.
    """
    from gridscore.features import FeaturePlan, LookupTable

    try:
        tables = {name: LookupTable(lookup) for name, lookup in job.lookups.items()}
        FeaturePlan(Job.from_json(job.to_json()), tables, version.learnt)
    except GridscoreError:
        raise
    except Exception as error:  # whatever it is, report it here and not from each worker
        raise JobError(
            f"The features of the job `{job.name}` cannot be computed: {type(error).__name__}: {error}",
            "Nothing was submitted. Simplify its expressions.",
        ) from error


def json_text(key: Any, value: Any) -> bytes:
    """JSON text of an event.

    Raises:
        UsageError: It cannot be JSON, or is too large.
    """
    try:
        if isinstance(value, bytes):
            text = value
        elif isinstance(value, str):
            text = value.encode()
        else:
            text = msgspec.json.encode(value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"The event `{key}` cannot be written as JSON: {error}") from None
    if len(text) > MAX_EVENT:
        raise UsageError(f"The event `{key}` has {len(text):,} bytes; the limit is {MAX_EVENT:,}.")
    return text
