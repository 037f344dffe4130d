"""The life of jobs in the cluster: submit, update, suspend, resume, cancel; their states and revisions.

The record of a job lives in the control map `gridscore.jobs` under its name. States are those of Hazelcast Jet where
they say what is, and WAITING and CANCELLED beside them. The record says what was noted last: that a job which is
RUNNING there has no living worker is seen by who looks at the workers too (`operations.status`).
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from gridscore.errors import BadRecordError, JobError, JobNotFoundError
from gridscore.grid import Record, Records
from gridscore.grid.records import reason_of
from gridscore.job.file import Job
from gridscore.job.release import Previous, Release  # noqa: TC001 -- msgspec reads the annotations
from gridscore.texts import html_table, moment_text, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gridscore.grid import Grid

JOBS_MAP = "gridscore.jobs"


class JobState(StrEnum):
    """States of a job."""

    WAITING = "WAITING"  # for a worker
    STARTING = "STARTING"  # a worker loads what it needs; none scores yet
    RUNNING = "RUNNING"
    SUSPENDED = "SUSPENDED"  # by a user; goes on where it stopped
    FAILED = "FAILED"  # it cannot go on before its cause is fixed; the record has the error
    CANCELLED = "CANCELLED"  # by a user, for good
    COMPLETED = "COMPLETED"

    @classmethod
    def _missing_(cls, value: object) -> JobState | None:
        return cls.WAITING if value == "NOT_RUNNING" else None  # as older releases wrote it


ENDED = frozenset((JobState.FAILED, JobState.CANCELLED, JobState.COMPLETED))
# States from which a job does not go on: submitted again, it begins anew.
OVER = frozenset((JobState.CANCELLED, JobState.COMPLETED))

# States in which workers should score for the job.
WANTED = frozenset((JobState.WAITING, JobState.STARTING, JobState.RUNNING))


@dataclass(frozen=True, slots=True)
class JobRecord:
    """What the grid knows of a job."""

    job: Job  # the job file
    state: JobState  # where it is in its life
    revision: int  # counts submissions, updates and restarts of this name; workers start anew when it changes
    error: str  # why it FAILED, empty otherwise
    submitted_at: str  # when it was submitted first, RFC 3339
    updated_at: str  # when state or revision changed last, RFC 3339
    restarts: int = 0  # counts the restarts of this submission that set the offsets anew
    begin: str = ""  # where the last of them begins: `oldest`, `latest` or an RFC 3339 time; empty if there was none
    # The version of the model that this revision goes live with; None if it follows its model's alias.
    release: Release | None = None
    previous: Previous | None = None  # what an update has replaced
    # The revision of each window that an update has brought; see `Parts`.
    begun: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.job.name

    @property
    def in_brief(self) -> dict[str, Any]:
        """What who has changed it is answered."""
        return {"name": self.name, "state": self.state.value, "revision": self.revision}

    def _repr_html_(self) -> str:
        model, maps = self.job.model, {"events": self.job.events, "results": self.job.results}
        live = {"model": f"{model.name} {model.alias or f'v{model.version}'}", "error": self.error}
        return html_table({"job": self.name, "state": self.state, "revision": self.revision} | maps | live)

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
    def parse(cls, record: Record) -> JobRecord:
        """The typed form of a control record; what is wrong with it raises errors of any kind."""
        value = _Value.of(record.value)
        job = Job.from_json(value.spec)
        if job.name != record.key:
            raise ValueError(f"it is of the job `{job.name}`")
        if value.begin and _begin(value.begin) == "committed":
            raise ValueError("it begins nowhere")
        rest = (value.error, value.submitted_at, value.updated_at, value.restarts, value.begin)
        return cls(job, value.state, value.revision, *rest, value.release, value.previous, value.begun)

    @classmethod
    def from_record(cls, record: Record) -> JobRecord:
        """The typed form of a control record.

        Raises JobError if it was written by something that is not this version of Gridscore.
        """
        try:
            return cls.parse(record)
        except Exception as error:  # noqa: BLE001 -- whatever is wrong with it, this job is bad and no other is
            raise JobError(
                f"The record of the job `{record.key}` in `{JOBS_MAP}` cannot be used: {reason_of(error)}",
                f"Another version may have written it. `gridscore cancel {record.key}` removes it; submitted again, it "
                "goes on where it stopped.",
            ) from None


class _Value(msgspec.Struct, frozen=True):
    """What a record holds."""

    spec: dict[str, Any]
    state: JobState
    revision: Annotated[int, Meta(ge=1, lt=2**53)]
    error: str
    submitted_at: str
    updated_at: str
    restarts: Annotated[int, Meta(ge=0, lt=2**53)] = 0
    begin: str = ""
    release: Release | None = None
    previous: Previous | None = None
    begun: Annotated[dict[str, Annotated[int, Meta(ge=1, lt=2**53)]], Meta(max_length=100)] = {}

    @classmethod
    def of(cls, value: dict[str, Any]) -> _Value:
        """Of a control record; raises `msgspec.ValidationError`."""
        found = msgspec.convert(value, cls)
        if found.state == JobState.FAILED and found.error == "cancelled by a user":  # of older releases, too
            return msgspec.structs.replace(found, state=JobState.CANCELLED, error="")
        return found


def _value_of(name: str, value: dict[str, Any]) -> _Value:
    """What a record holds, its job file unread. Raises JobError if it cannot be used."""
    try:
        return _Value.of(value)
    except msgspec.ValidationError as error:
        raise JobError(f"The record of the job `{name}` in `{JOBS_MAP}` cannot be used: {error}") from None


class Jobs:
    """The jobs of a cluster."""

    def __init__(self, grid: Grid) -> None:
        self._records = Records(grid, JOBS_MAP)
        self._parsed: dict[str, tuple[str, JobRecord | str]] = {}  # workers look every second, jobs seldom change

    async def submit(
        self,
        job: Job,
        *,
        update: bool = False,  # replace an active job of that name; it goes on from its committed offsets
        release: Release | None = None,  # the version of the model that it goes live with, in the same step
        # The version that scores for the job that is replaced, if the release exchanges it.
        replaced: int | None = None,
        restarts: int = 0,  # those that the leases of a job have seen whose record was removed
        # The job of that name on which `release` and `replaced` were decided, None if there was none; nothing is
        # submitted if it is another one now.
        read: JobRecord | msgspec.UnsetType | None = msgspec.UNSET,
        suspended: bool = False,  # what is changed by this is not scored for before it is resumed
        begun: Mapping[str, int] = MappingProxyType({}),  # what the record says of windows after an update of `read`
    ) -> JobRecord:
        """Put a job into the cluster.

        The same job submitted twice is one job. One that is over begins anew; one that FAILED goes on, as it is or
        updated.

        Raises JobFileError if it names no features; JobError if another job of that name is active, and `update` is not
        set; another one writes to the same result map; an update would change what the committed offsets are about; or
        another client was faster.
        """
        job.require_features()
        Job.from_json(job.to_json())  # as every worker will read it
        await self._refuse_shared_results(job.name, job.results)

        def change(current: dict[str, Any] | None) -> dict[str, Any]:
            fresh = {
                "name": job.name,
                "spec": job.to_json(),
                "state": (JobState.SUSPENDED if suspended else JobState.WAITING).value,
                "revision": 1,
                "error": "",
                "submitted_at": moment_text(),
                "updated_at": moment_text(),
            }
            if release is not None:
                fresh["release"] = msgspec.to_builtins(release)
            # What cannot be read is not replaced by chance.
            found = None if current is None else JobRecord.from_record(Record(job.name, current, ""))
            if read is not msgspec.UNSET and not _is_as_read(read, found) and not _is_done(found, job, release):
                raise JobError(
                    f"Somebody else has changed the job `{job.name}` at the same time: nothing was submitted.",
                    "Look at it (`gridscore jobs`), then submit again.",
                )
            if current is None or found is None:
                # Each restart was a revision, and so was the submission before.
                return {**fresh, "restarts": restarts, "revision": restarts + 2} if restarts else fresh
            # Counted on, so that partitions know a restart that they have not seen from one that they have.
            fresh |= {"revision": current["revision"] + 1, "restarts": current.get("restarts", 0)}
            state = found.state
            if state in OVER:
                return fresh
            # One that failed goes on from its committed offsets, too: what they are about stays.
            unchanged, has_failed = current["spec"] == fresh["spec"], state == JobState.FAILED
            if unchanged and not has_failed:
                return current
            _check_update(current, job, update=update or has_failed)
            if unchanged:
                return {**current, **fresh, "submitted_at": current["submitted_at"]}
            fresh |= {"submitted_at": current["submitted_at"], "begin": current.get("begin", "")}
            fresh["previous"] = {"spec": current["spec"], "version": replaced}
            if begun:
                fresh["begun"] = dict(begun)
            if state == JobState.SUSPENDED:
                fresh["state"] = JobState.SUSPENDED.value
            return fresh

        return JobRecord.from_record(await self._records.update(job.name, change))

    async def check(self, job: Job, *, update: bool = False) -> None:
        """Refuse a job that `submit` would refuse now, without submitting it. Raises JobError: as of `submit`."""
        await self._refuse_shared_results(job.name, job.results)
        record = await self._records.get(job.name)
        if record is None:
            return
        value = _value_of(job.name, record.value)
        if value.state not in OVER and value.spec != job.to_json():
            _check_update(record.value, job, update=update or value.state == JobState.FAILED)

    async def get(self, name: str) -> JobRecord:
        """The job of that name. Raises JobError if there is none."""
        record = await self._records.get(name)
        if record is None:
            raise await self._unknown(name)
        return JobRecord.from_record(record)

    async def find(self, name: str) -> JobRecord | None:
        record = await self._records.get(name)
        return None if record is None else JobRecord.from_record(record)

    async def find_usable(self, name: str) -> JobRecord | None:
        """As `find`; None also if the record cannot be used: what then changes the job says so."""
        try:
            return await self.find(name)
        except (JobError, BadRecordError):
            return None

    async def all(self) -> list[JobRecord]:
        """Every job, by name. Records that cannot be read are left out, and noted in the grid's `bad_records`."""
        before, self._parsed = self._parsed, {}

        def parse(record: Record) -> JobRecord:
            text, found = before.get(record.key, ("", None))
            if text != record.raw or found is None:
                try:
                    found = JobRecord.parse(record)
                except Exception as error:  # noqa: BLE001 -- see `from_record`; it is tried once, not once a second
                    found = reason_of(error)
            self._parsed[record.key] = record.raw, found
            if isinstance(found, str):
                raise ValueError(found)  # noqa: TRY004 -- it is what was wrong before
            return found

        return [job for _, job in sorted((await self._records.read(parse)).items())]

    async def suspend(self, name: str) -> JobRecord:
        """Stop scoring and keep the offsets; does nothing to a suspended job.

        Raises JobError if there is no such job, or it has ended.
        """
        return await self._move(name, "suspend", JobState.SUSPENDED)

    async def resume(self, name: str) -> JobRecord:
        """Let workers score again, from the committed offsets; does nothing to a job that runs.

        Raises JobError if there is no such job, it was cancelled, or another one writes to its result map now.
        """
        await self._refuse_shared_results(name, (await self.get(name)).job.results)
        return await self._move(name, "resume", JobState.WAITING)

    async def restart(self, name: str, begin: str = "committed") -> JobRecord:
        """Let workers start anew, from another place in the journal; also a job that is suspended or FAILED.

        Events that have a result are scored again: results are idempotent, listeners see them once more.

        `begin`: `committed`, to go on from the committed offsets; `oldest` or `latest`; or a time (RFC 3339), to begin
        at the first event that was scored then or later. Raises JobError if there is no such job, it was cancelled, or
        `begin` is none of these.
        """
        begin = _begin(begin)
        await self._refuse_shared_results(name, (await self.get(name)).job.results)

        def change(current: dict[str, Any] | None) -> dict[str, Any]:
            if current is None:
                raise JobNotFoundError(f"There is no job `{name}`.")
            if (state := _value_of(name, current).state) in OVER:
                raise JobError(f"The job `{name}` is {state}: it cannot restart.", "Submit it again.")
            fresh = {**current, "state": JobState.WAITING.value, "revision": current["revision"] + 1, "error": ""}
            if begin != "committed":
                fresh |= {"restarts": current.get("restarts", 0) + 1, "begin": begin}
            return {**fresh, "updated_at": moment_text()}

        return JobRecord.from_record(await self._records.update(name, change))

    async def cancel(self, name: str) -> JobRecord | None:
        """End a job for good. One whose record cannot be read is removed, and None returned.

        Raises JobError if there is no such job.
        """
        try:
            record = await self._records.get(name)
        except BadRecordError as error:
            removed = await self._records.remove_bad(error.record)
        else:
            if record is None:
                raise await self._unknown(name)
            try:
                JobRecord.from_record(record)
            except JobError:
                removed = await self._records.remove(record)
            else:
                return await self._move(name, "cancel", JobState.CANCELLED)
        if not removed:  # a good one may stand there now
            raise JobError(f"Somebody else has changed the job `{name}` at the same time.", "Cancel it again.")
        return None

    async def mark(self, record: JobRecord, state: JobState, error: str = "") -> None:
        """Note what a worker has come to, unless the job has changed since its record was read.

        Raises JobError if there is no such job.
        """
        name = record.name

        def change(current: dict[str, Any] | None) -> dict[str, Any]:
            if current is None:
                raise JobNotFoundError(f"There is no job `{name}`.")
            value = _value_of(name, current)
            same_run = (value.revision, value.submitted_at) == (record.revision, record.submitted_at)
            if not same_run or value.state not in WANTED:
                return current
            if current["state"] == state.value and current["error"] == error:
                return current
            if (current["state"], state) == (JobState.RUNNING.value, JobState.STARTING):
                return current  # another worker scores already
            return {**current, "state": state.value, "error": error, "updated_at": moment_text()}

        await self._records.update(name, change)

    async def watch(self, callback: Callable[[], None]) -> Callable[[], Any]:
        """Call back when any job changes; returns a coroutine function that ends it."""
        return await self._records.watch(callback)

    async def _move(self, name: str, verb: str, to: JobState) -> JobRecord:
        await self.get(name)  # or an error that says what there is

        def change(current: dict[str, Any] | None) -> dict[str, Any]:
            if current is None:
                raise JobNotFoundError(f"There is no job `{name}`.")
            value = _value_of(name, current)
            state = value.state
            if state == to or (to == JobState.WAITING and state in WANTED):
                return current
            if state in OVER or (state == JobState.FAILED and verb == "suspend"):
                reason = f" ({value.error})" if value.error else ""
                hint = "Submit it again." if state in OVER else f"`gridscore resume {name}` goes on, `cancel` ends it."
                raise JobError(f"The job `{name}` is {state}{reason}: it cannot {verb}.", hint)
            return {**current, "state": to.value, "error": "", "updated_at": moment_text()}

        return JobRecord.from_record(await self._records.update(name, change))

    async def _refuse_shared_results(self, name: str, results: str) -> None:
        """Refuse a result map that another job writes to: each would take the other's results for its own.

        Raises JobError if it is taken.
        """
        for other in await self.all():
            if other.name != name and other.state not in ENDED and other.job.results == results:
                raise JobError(
                    f"The job `{other.name}`, which is {other.state}, writes to `{results}` already: of two results of "
                    "one key only one would stand, and each job would skip events that only the other has scored.",
                    f"Give `{name}` a result map of its own, or cancel `{other.name}` first.",
                )

    async def _unknown(self, name: str) -> JobError:
        names = sorted(await self._records.all())
        meant, listed = nearest(name, names), ", ".join(names) or "none"
        hint = f"Did you mean `{meant}`?" if meant else f"Jobs of this cluster: {listed}."
        return JobNotFoundError(f"There is no job `{name}`.", hint)


def _is_as_read(read: JobRecord | None, found: JobRecord | None) -> bool:
    if read is None or found is None:
        return read is found
    return found.is_same_run(read) and (found.state in OVER) == (read.state in OVER)


def _is_done(found: JobRecord | None, job: Job, release: Release | None) -> bool:
    """Whether what is to be submitted stands there already: by somebody else, or by a write that was not answered."""
    return found is not None and found.state not in ENDED and found.job == job and release in (None, found.release)


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
        if moment.tzinfo is not None:
            moment = moment.astimezone(dt.UTC)  # of which there is no such time at the ends of the calendar
    except (ValueError, OverflowError):
        raise JobError(
            f"`{text}` is not a place to begin.", "Say oldest, latest, committed, or a time as 2026-01-31T12:00:00Z."
        ) from None
    if moment.tzinfo is None:
        raise JobError(f"`{text}` has no time zone.", f"Write {moment.isoformat()}Z for UTC, or an offset as +01:00.")
    return moment_text(moment)
