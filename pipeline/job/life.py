"""The life of jobs in the cluster: submit, update, suspend, resume, cancel; their states and revisions.

The record of a job lives in the control map `gridscore.jobs` under its name. States are those of Hazelcast Jet. A job
that is NOT_RUNNING waits for a worker; one that is RUNNING without a living worker goes on as soon as there is one.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec

from pipeline.errors import JobError
from pipeline.grid import Record, Records
from pipeline.job.file import Job
from pipeline.job.release import Previous, Release

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pipeline.grid import Grid

JOBS_MAP = "gridscore.jobs"

CANCELLED = "cancelled by a user"


class JobState(StrEnum):
    """States of a job, named as in Jet."""

    NOT_RUNNING = "NOT_RUNNING"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    SUSPENDED = "SUSPENDED"
    FAILED = "FAILED"
    COMPLETED = "COMPLETED"


ENDED = frozenset((JobState.FAILED, JobState.COMPLETED))
WANTED = frozenset((JobState.NOT_RUNNING, JobState.STARTING, JobState.RUNNING))
"""States in which workers should score for the job."""


@dataclass(frozen=True, slots=True)
class JobRecord:
    """What the grid knows of a job.

    Attributes:
        job: The job file.
        state: Where it is in its life.
        revision: Counts submissions, updates and restarts of this name; workers start anew when it changes.
        restarts: Counts the restarts of this submission that set the offsets anew.
        begin: Where the last of them begins: `oldest`, `latest` or an RFC 3339 time; empty if there was none.
        error: Why it FAILED, empty otherwise.
        submitted_at: When it was submitted first, RFC 3339.
        updated_at: When state or revision changed last, RFC 3339.
        release: The version of the model that this revision goes live with; None if it follows its model's alias.
        previous: What an update has replaced.
    """

    job: Job
    state: JobState
    revision: int
    error: str
    submitted_at: str
    updated_at: str
    restarts: int = 0
    begin: str = ""
    release: Release | None = None
    previous: Previous | None = None

    @property
    def name(self) -> str:
        """Name of the job."""
        return self.job.name

    @property
    def beginning(self) -> str:
        """Where a partition begins that has no offset yet: `oldest`, `latest` or, after a restart, an RFC 3339 time."""
        return self.begin or self.job.start

    @property
    def begins_late(self) -> bool:
        """Whether events that were put before the job began are not to be scored."""
        return self.beginning != "oldest"

    def is_same_run(self, other: JobRecord) -> bool:
        """Whether both are of one submission or update; a cluster that came back empty counts revisions anew."""
        return (self.revision, self.submitted_at) == (other.revision, other.submitted_at)

    @classmethod
    def from_record(cls, record: Record) -> JobRecord:
        """The typed form of a control record.

        Raises:
            JobError: It was written by something that is not this version of Gridscore.
        """
        value = record.value
        try:
            return cls(
                job=Job.from_json(value["spec"]),
                state=JobState(value["state"]),
                revision=int(value["revision"]),
                error=str(value["error"]),
                submitted_at=str(value["submitted_at"]),
                updated_at=str(value["updated_at"]),
                restarts=int(value.get("restarts", 0)),
                begin=str(value.get("begin", "")),
                release=msgspec.convert(value.get("release"), Release | None),
                previous=msgspec.convert(value.get("previous"), Previous | None),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise JobError(
                f"The record of the job `{record.key}` in the cluster cannot be read: {error}",
                "It was written by another version: cancel the job there and submit it again.",
            ) from None


class Jobs:
    """The jobs of a cluster."""

    def __init__(self, grid: Grid) -> None:
        self._records = Records(grid, JOBS_MAP)
        self._parsed: dict[str, tuple[str, JobRecord]] = {}  # workers look every second, and jobs seldom change

    async def submit(
        self, job: Job, *, update: bool = False, release: Release | None = None, replaced: int | None = None
    ) -> JobRecord:
        """Put a job into the cluster.

        The same job submitted twice is one job. One that has ended is replaced.

        Args:
            job: To run.
            update: Replace an active job of that name; it goes on from its committed offsets.
            release: The version of the model that it goes live with, in the same step.
            replaced: The version that scores for the job that is replaced, if the release exchanges it.

        Raises:
            JobError: Another job of that name is active, and `update` is not set; or an update would change what the
                committed offsets are about.
        """

        def change(current: dict[str, Any] | None) -> dict[str, Any]:
            fresh = {
                "name": job.name,
                "spec": job.to_json(),
                "state": JobState.NOT_RUNNING.value,
                "revision": 1,
                "error": "",
                "submitted_at": _now(),
                "updated_at": _now(),
            }
            if release is not None:
                fresh["release"] = msgspec.to_builtins(release)
            if current is None:
                return fresh
            # Counted on, so that partitions know a restart that they have not seen from one that they have.
            fresh |= {"revision": current["revision"] + 1, "restarts": current.get("restarts", 0)}
            if JobState(current["state"]) in ENDED:
                return fresh
            if current["spec"] == fresh["spec"]:
                return current
            _check_update(current, job, update=update)
            fresh |= {"submitted_at": current["submitted_at"], "begin": current.get("begin", "")}
            fresh["previous"] = {"spec": current["spec"], "version": replaced}
            if JobState(current["state"]) == JobState.SUSPENDED:
                fresh["state"] = JobState.SUSPENDED.value
            return fresh

        return JobRecord.from_record(await self._records.update(job.name, change))

    async def check(self, job: Job, *, update: bool = False) -> None:
        """Refuse a job that `submit` would refuse now, without submitting it.

        Raises:
            JobError: As of `submit`.
        """
        record = await self._records.get(job.name)
        if record is None or JobState(record.value["state"]) in ENDED or record.value["spec"] == job.to_json():
            return
        _check_update(record.value, job, update=update)

    async def get(self, name: str) -> JobRecord:
        """The job of that name.

        Raises:
            JobError: There is none.
        """
        record = await self._records.get(name)
        if record is None:
            raise await self._unknown(name)
        return JobRecord.from_record(record)

    async def find(self, name: str) -> JobRecord | None:
        """The job of that name, or None."""
        record = await self._records.get(name)
        return None if record is None else JobRecord.from_record(record)

    async def all(self) -> list[JobRecord]:
        """Every job, by name. Records that cannot be read are left out."""
        parsed: dict[str, tuple[str, JobRecord]] = {}
        for name, record in sorted((await self._records.all()).items()):
            before = self._parsed.get(name)
            if before is not None and before[0] == record.raw:
                parsed[name] = before
                continue
            try:
                parsed[name] = (record.raw, JobRecord.from_record(record))
            except JobError:
                continue
        self._parsed = parsed
        return [job for _, job in parsed.values()]

    async def suspend(self, name: str) -> JobRecord:
        """Stop scoring and keep the offsets; does nothing to a suspended job.

        Raises:
            JobError: There is no such job, or it has ended.
        """
        return await self._move(name, "suspend", JobState.SUSPENDED)

    async def resume(self, name: str) -> JobRecord:
        """Let workers score again, from the committed offsets; does nothing to a job that runs.

        Raises:
            JobError: There is no such job, or it was cancelled.
        """
        return await self._move(name, "resume", JobState.NOT_RUNNING)

    async def restart(self, name: str, begin: str = "committed") -> JobRecord:
        """Let workers start anew, from another place in the journal; also a job that is suspended or FAILED.

        Events that have a result are scored again: results are idempotent, listeners see them once more.

        Args:
            name: Of the job.
            begin: `committed`, to go on from the committed offsets; `oldest` or `latest`; or a time (RFC 3339), to
                begin at the first event that was scored then or later.

        Raises:
            JobError: There is no such job, it was cancelled, or `begin` is none of these.
        """
        begin = _begin(begin)
        if await self._records.get(name) is None:
            raise await self._unknown(name)

        def change(current: dict[str, Any] | None) -> dict[str, Any]:
            if current is None:
                raise JobError(f"There is no job `{name}`.")
            if JobState(current["state"]) in ENDED and current["error"] in ("", CANCELLED):
                raise JobError(f"The job `{name}` has ended: it cannot restart.", "Submit it again.")
            fresh = {**current, "state": JobState.NOT_RUNNING.value, "revision": current["revision"] + 1, "error": ""}
            if begin != "committed":
                fresh |= {"restarts": current.get("restarts", 0) + 1, "begin": begin}
            return {**fresh, "updated_at": _now()}

        return JobRecord.from_record(await self._records.update(name, change))

    async def cancel(self, name: str) -> JobRecord:
        """End a job for good; as in Jet, it is FAILED then, with the reason.

        Raises:
            JobError: There is no such job.
        """
        return await self._move(name, "cancel", JobState.FAILED, error=CANCELLED)

    async def mark(self, record: JobRecord, state: JobState, error: str = "") -> None:
        """Note what a worker has come to, unless the job has changed since its record was read.

        Raises:
            JobError: There is no such job.
        """
        name = record.name

        def change(current: dict[str, Any] | None) -> dict[str, Any]:
            if current is None:
                raise JobError(f"There is no job `{name}`.")
            same_run = (current["revision"], current["submitted_at"]) == (record.revision, record.submitted_at)
            if not same_run or JobState(current["state"]) not in WANTED:
                return current
            if current["state"] == state.value and current["error"] == error:
                return current
            if (current["state"], state) == (JobState.RUNNING.value, JobState.STARTING):
                return current  # another worker scores already
            return {**current, "state": state.value, "error": error, "updated_at": _now()}

        await self._records.update(name, change)

    async def watch(self, callback: Callable[[], None]) -> Callable[[], Any]:
        """Call back when any job changes; returns a coroutine function that ends it."""
        return await self._records.watch(callback)

    async def _move(self, name: str, verb: str, to: JobState, error: str = "") -> JobRecord:
        if await self._records.get(name) is None:
            raise await self._unknown(name)

        def change(current: dict[str, Any] | None) -> dict[str, Any]:
            if current is None:
                raise JobError(f"There is no job `{name}`.")
            state = JobState(current["state"])
            if state == to or (to == JobState.NOT_RUNNING and state in WANTED):
                return current
            if state in ENDED and not (verb == "resume" and current["error"] != CANCELLED):
                reason = f" ({current['error']})" if current["error"] else ""
                raise JobError(f"The job `{name}` is {state}{reason}: it cannot {verb}.", "Submit it again.")
            return {**current, "state": to.value, "error": error, "updated_at": _now()}

        return JobRecord.from_record(await self._records.update(name, change))

    async def _unknown(self, name: str) -> JobError:
        import difflib

        names = sorted(await self._records.all())
        close = difflib.get_close_matches(name, names, n=1)
        if close:
            return JobError(f"There is no job `{name}`.", f"Did you mean `{close[0]}`?")
        listed = ", ".join(names) or "none"
        return JobError(f"There is no job `{name}`.", f"Jobs of this cluster: {listed}.")


def _check_update(current: Mapping[str, Any], job: Job, *, update: bool) -> None:
    if not update:
        raise JobError(
            f"A different job `{job.name}` is already {current['state']}.",
            "Replace it with --update, cancel it first, or give this one another name.",
        )
    if current["spec"]["events"] != job.events:
        raise JobError(
            f"The job `{job.name}` reads `{current['spec']['events']}`, the new one `{job.events}`: "
            "its offsets would mean nothing there.",
            "Cancel it first, or give this one another name.",
        )


def _begin(text: str) -> str:
    """A place to begin, times in UTC."""
    if text in ("committed", "oldest", "latest"):
        return text
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise JobError(
            f"`{text}` is no place to begin.", "Say oldest, latest, committed, or a time as 2026-01-31T12:00:00Z."
        ) from None
    if moment.tzinfo is None:
        raise JobError(f"`{text}` has no time zone.", f"Write {text}Z for UTC, or an offset as +01:00.")
    return moment.astimezone(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
