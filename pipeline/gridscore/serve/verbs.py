"""The verbs of the command line, as control offers them: what each is given, what it needs, and what it answers.

Each calls what its command calls. `VERBS` is the one list of them: addresses, roles, and the OpenAPI description are
made of it; the buttons of the dashboard are verbs, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import msgspec
from fastapi import Body, Path, Query
from hazelcast.errors import HazelcastError

from gridscore.client import Client
from gridscore.dead_letters.letters import Listed, get_letter, job_of, list_letters
from gridscore.errors import GridError, GridscoreError, UsageError
from gridscore.job import Job, JobRecord, Jobs, parse_job
from gridscore.job.life import OVER
from gridscore.job.types import seconds_of
from gridscore.keys import Keys, Role
from gridscore.models import Registry
from gridscore.models.certificates import certificates_of
from gridscore.models.fit import fit_warnings, promotion_problems
from gridscore.operations.actions import MAX_WHY, ActionLog
from gridscore.operations.flow import FlowObserver, jobs_json, to_json
from gridscore.operations.removal import Choice, Removed, remove
from gridscore.operations.replay import letter_ids, replay, summary
from gridscore.operations.rollout import rollout
from gridscore.operations.status import acknowledge, job_status, living_workers, restarted
from gridscore.scoring.audit import audit
from gridscore.scoring.preparation import warnings
from gridscore.scoring.superseded import superseded
from gridscore.scoring.window_states import emptied_by_update
from gridscore.serve.bodies import (
    Act,
    Alias,
    Auditing,
    Discarding,
    Ending,
    Move,
    NewKey,
    Notes,
    Promotion,
    Purge,
    Replaying,
    Restart,
    Rollback,
    Stopping,
    Submission,
    Trial,
)
from gridscore.sinks.records import find_sink
from gridscore.texts import with_moments

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gridscore.grid import Grid
    from gridscore.models import ModelVersion
    from gridscore.serve.observation import Observation
    from gridscore.serve.sessions import Visit

    Work = Callable[..., Awaitable[Any]]

Name = Annotated[str, Path(min_length=1, max_length=128)]
Reason = Annotated[str, Query(max_length=MAX_WHY)]
READ, OPERATE, ADMIN = Role.READ, Role.OPERATE, Role.ADMIN

MAX_LETTERS = 4 << 20  # bytes of dead letters in a list; their texts make it up to five times as large


class NotPermittedError(GridscoreError):
    """The key is not for this."""


_T = TypeVar("_T")


class Asked(NamedTuple):
    """Who asks, and whom."""

    grid: Grid
    visit: Visit
    role: Role  # that is asked for
    observation: Observation
    door: str = "by HTTP"

    @property
    def client(self) -> Client:
        """The Python API."""
        return Client(self.grid)

    def why(self, text: str) -> str:
        """The reason for the log of a model, which else would know the server only."""
        return f"{text} ({self.door}, {self.visit.by})".strip()

    def options(self, given: Act, *without: str) -> dict[str, Any]:
        """What a body says, for the Python API."""
        return {**given.model_dump(exclude={*without}, exclude_none=True), "why": self.why(given.why)}

    def need(self, *names: str | None, role: Role | None = None) -> None:
        """Refuse a key that is not for all of these names (None: what is of no single one), in this role or another."""
        role = role or self.role
        if self.visit.key is None and role is not READ:
            raise NotPermittedError("Nothing can be changed here.", "Start the server with --keys, and show a key.")
        for name in names:
            if not self.visit.may(role, name):
                what = f" with `{name}`" if name else ", of all jobs and maps"
                raise NotPermittedError(f"The key {self.visit.by} is not for this: it needs {role}{what}.")


# ---------------------------------------------------------------------- jobs


async def get_status(asked: Asked) -> Any:
    """Whether jobs, sources and sinks are well, and why not."""
    flow = await asked.observation.look()
    if flow is None:
        raise GridError(asked.observation.watcher.silence or "The cluster has not answered yet.")
    findings = asked.observation.watcher.history.findings()
    return with_moments({"healthy": findings.all_well, **to_json(flow, findings)})


async def get_jobs(asked: Asked) -> Any:
    """The jobs of the cluster."""
    return jobs_json(await FlowObserver(asked.grid).look())


async def get_workers(asked: Asked) -> Any:
    """The workers that live, and what each has done for its jobs."""
    return with_moments(msgspec.to_builtins(await living_workers(asked.grid)))


async def get_job(asked: Asked, job: Name) -> Any:
    """A job: its state, what it has done and lost, and its job file."""
    record = await Jobs(asked.grid).get(job)
    return {**with_moments((await job_status(asked.grid, record)).to_json()), "job": record.job.to_json()}


async def submit_job(asked: Asked, job: Name, given: Submission) -> Any:
    """Submit a job, or update it. The same again changes nothing."""
    text = given.job if isinstance(given.job, str) else msgspec.json.encode(given.job).decode()
    wanted = parse_job(text, "the job file")
    if wanted.name != job:
        raise UsageError(f"The job file is of the job `{wanted.name}`, not `{job}`.")
    asked.need(*_names_of(wanted))
    before = await Jobs(asked.grid).find_usable(job)
    client = asked.client
    record = await client.submit(wanted, **asked.options(given, "job"))
    version = await client.version_of(wanted, record.release)
    told = [*await warnings(asked.grid, wanted), *fit_warnings({job: record.job}, version)]
    if before is not None and before.state not in OVER and (text := emptied_by_update(before.job, record.job)):
        told.append(text)
    return {**_moved(job, before, record), "version": version.version, "warnings": told}


async def suspend_job(asked: Asked, job: Name, given: Act = Act()) -> Any:  # noqa: ARG001, B008 -- FastAPI reads it
    """Stop scoring and keep the offsets."""
    return await _move(asked, job, Jobs(asked.grid).suspend)


async def resume_job(asked: Asked, job: Name, given: Act = Act()) -> Any:  # noqa: ARG001, B008
    """Score again, from where the job stopped; also a job that FAILED."""
    return await _move(asked, job, Jobs(asked.grid).resume)


async def cancel_job(asked: Asked, job: Name, given: Act = Act()) -> Any:  # noqa: ARG001, B008
    """End a job for good; its results stay."""
    return await _move(asked, job, Jobs(asked.grid).cancel)


async def restart_job(asked: Asked, job: Name, given: Restart = Restart()) -> Any:  # noqa: B008
    """Restart a job from another place in the journal. Each request is a restart."""
    return {**await restarted(asked.grid, job, given.begin), "changed": True}


async def rollback_job(asked: Asked, job: Name, given: Act = Act()) -> Any:  # noqa: B008
    """Undo the last update of a job, and the version that went live with it. A second one undoes the first."""
    record = await Jobs(asked.grid).get(job)
    asked.need(record.job.model.name)
    after = await asked.client.rollback(job, why=asked.why(given.why))
    version = await _told(asked.client.version_of(after.job, after.release))
    which = {"version": version and version.version, "model": version and version.name}
    return {**_moved(job, record, after), **which}


async def wipe_job(
    asked: Asked,
    job: Name,
    *,
    results: bool = False,
    events: bool = False,
    model: bool = False,
    dead_letters: bool = False,
    why: Reason = "",  # noqa: ARG001 -- for the log of actions
) -> Any:
    """Remove a job that has ended; and its maps and its model, if that is asked for."""
    asked.need(*_names_of((await Jobs(asked.grid).get(job)).job))
    what = {"results": results, "events": events, "model": model, "dead_letters": dead_letters}
    return {"removed": [each._asdict() for each in await asked.client.wipe(job, **what)]}


async def acknowledge_losses(asked: Asked, job: Name, given: Act = Act()) -> Any:  # noqa: ARG001, B008
    """Acknowledge the losses of a job so far: its status is well again, unless there are more."""
    return await acknowledge(asked.grid, await job_status(asked.grid, await Jobs(asked.grid).get(job)))


async def audit_job(asked: Asked, job: Name, given: Auditing = Auditing()) -> Any:  # noqa: B008
    """Find events that should have a result but have none, and have them scored."""
    record = await Jobs(asked.grid).get(job)
    return (await audit(asked.grid, record, repair=given.repair, patience=given.patience)).to_json()


async def get_rollout(asked: Asked, job: Name) -> Any:
    """Which worker scores with which version, and why one is behind."""
    return (await rollout(asked.grid, job)).to_json()


# ---------------------------------------------------------------------- experiments


async def get_experiment(asked: Asked, job: Name) -> Any:
    """How an experiment stands, and whether its variants differ by more than chance."""
    return (await asked.client.experiment(job)).to_json()


async def start_experiment(asked: Asked, job: Name, given: Trial) -> Any:
    """Begin a canary, a split or a shadow."""
    _need_for_more(asked, job, given)
    options = asked.options(given, "version", "every")
    every = None if given.every is None else seconds_of(given.every)
    versions = given.version if isinstance(given.version, list) else [given.version]
    return (await asked.client.start_experiment(job, *versions, every=every, **options)).to_json()


async def stop_experiment(asked: Asked, job: Name, given: Stopping = Stopping()) -> Any:  # noqa: B008
    """End an experiment, or one of several challengers: the champion scores its events."""
    return (await asked.client.stop_experiment(job, **asked.options(given))).to_json()


async def promote_experiment(asked: Asked, job: Name, given: Ending = Ending()) -> Any:  # noqa: B008
    """Make a challenger the champion, if it passes the gates, and end the experiment."""
    model = (await Jobs(asked.grid).get(job)).job.model.name
    asked.need(model)
    _need_for_more(asked, model, given)
    return (await asked.client.promote_experiment(job, **asked.options(given))).to_json()


# ---------------------------------------------------------------------- models


async def get_models(asked: Asked) -> Any:
    """All models with their versions."""
    return [model.to_json() for model in await Registry(asked.grid).list()]


async def get_model(asked: Asked, model: Name) -> Any:
    """A model with its versions, aliases, and parity certificates."""
    found = await Registry(asked.grid).get(model)
    parity = [each.to_json() for each in await certificates_of(asked.grid) if each.model == model]
    return {**found.to_json(), "parity": parity}


async def get_model_log(asked: Asked, model: Name) -> Any:
    """What was done with a model, the latest last."""
    return msgspec.to_builtins(await Registry(asked.grid).log(model))


async def check_model(
    asked: Asked, model: Name, version: Annotated[int, Query(ge=1, lt=1 << 31)], alias: Alias = "champion"
) -> Any:
    """Whether a version would pass the gates of the jobs that follow an alias."""
    found = await asked.client.check_model(model, version, alias)
    jobs = {job: [each.to_json() for each in verdicts] for job, verdicts in found.items()}
    return {"passed": all(each.passed for verdicts in found.values() for each in verdicts), "jobs": jobs}


async def push_model(
    asked: Asked,
    model: Name,
    given: Annotated[bytes, Body(media_type="application/octet-stream", json_schema_extra={"format": "binary"})],
    *,
    alias: Alias | None = None,
    description: Annotated[str | None, Query(max_length=2_000)] = None,
    allow_changed_features: bool = False,
    override: Reason = "",
    why: Reason = "",
) -> Any:
    """Push a model file, XGBoost UBJ or JSON, as the next version. The very same again is no new version."""
    client = asked.client
    added = await client.add_model(
        given,
        model,
        alias=alias,
        description=description,
        allow_changed_features=allow_changed_features,
        why=asked.why(why),
        override=override,
    )
    jobs = await client.following(model, alias)
    told = (fit_warnings if alias else promotion_problems)(jobs, added.version)
    return {"new": added.is_new, "alias": alias, **added.version.to_json(), "warnings": told}


async def promote_model(asked: Asked, model: Name, given: Promotion) -> Any:
    """Point an alias at a version: workers score with it within a second. The same again changes nothing."""
    _need_for_more(asked, model, given)
    return await _pointed(asked, given.alias, await asked.client.promote_model(model, **asked.options(given)))


async def rollback_model(asked: Asked, model: Name, given: Rollback = Rollback()) -> Any:  # noqa: B008
    """Point an alias where it pointed before."""
    _need_for_more(asked, model, given)
    return await _pointed(asked, given.alias, await asked.client.rollback_model(model, **asked.options(given)))


async def remove_alias(asked: Asked, model: Name, alias: Name, why: Reason = "") -> Any:
    """Remove an alias that no job follows."""
    await asked.client.remove_alias(model, alias, why=asked.why(why))
    return {"removed": {"name": model, "alias": alias}}


async def describe_model(asked: Asked, model: Name, given: Notes) -> Any:
    """Note tags and a description of a version, or of the model itself."""
    about = await Registry(asked.grid).describe(model, **given.model_dump(exclude={"why"}))
    return {"description": about.description, "tags": about.tags}


async def delete_version(
    asked: Asked,
    model: Name,
    version: Annotated[int, Path(ge=1, lt=1 << 31)],
    why: Reason = "",  # noqa: ARG001
) -> Any:
    """Delete a version that no alias points at, and no job names."""
    await asked.client.delete_model(model, version)
    return {"deleted": {"name": model, "version": version}}


# ---------------------------------------------------------------------- dead letters


async def get_dead_letters(
    asked: Asked,
    name: Name,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 20,
    before: Annotated[str | None, Query(max_length=200)] = None,
) -> Any:
    """Dead letters of a job, a source or a sink, the latest first; `before` goes on after the last of a list.

    A list ends before it has more than four mebibytes of events, though there are more.
    """
    record = await job_of(asked.grid, name)
    last = Listed(before, await get_letter(asked.grid, name, before)) if before else None
    total, letters = await list_letters(asked.grid, name, limit, last, MAX_LETTERS)
    over = await superseded(asked.grid, record.job, (each.dead for each in letters)) if record else {}
    return {"total": total, "dead_letters": [each.to_json(over.get(each.dead.id, "")) for each in letters]}


async def get_dead_letter(asked: Asked, name: Name, letter: Annotated[str, Path(max_length=200)]) -> Any:
    """One dead letter: error, origin and the event's bytes."""
    return Listed(letter, await get_letter(asked.grid, name, letter)).to_json()


async def replay_dead_letters(asked: Asked, name: Name, given: Replaying) -> Any:
    """Put events back into the event map, once what was wrong is fixed; results of a sink into its result map."""
    if given.all == bool(given.ids):
        raise UsageError("Say which dead letters: their `ids`, or `all`.")
    grid = asked.grid
    await job_of(grid, name)
    wanted = await letter_ids(grid, name) if given.all else list(dict.fromkeys(given.ids))
    of_job = await find_sink(grid, name) is None
    done = [each async for each in replay(grid, name, wanted, force=given.force, of_job=of_job)]
    return summary(done, of_job=of_job)


async def discard_dead_letters(asked: Asked, name: Name, given: Discarding) -> Any:
    """Remove single dead letters for good; their events only with the role `admin`."""
    if given.with_events:
        asked.need(name, role=ADMIN)
    return await _remove(asked, name, Choice(ids=frozenset(given.ids)), with_events=given.with_events)


async def purge_dead_letters(asked: Asked, name: Name, given: Purge) -> Any:
    """Remove dead letters for good: all, or those that meet all conditions."""
    if given.all == bool(given.older_than or given.reason or given.superseded):
        raise UsageError("Say which dead letters: `all`, or some of `older_than`, `reason` and `superseded`.")
    seconds = seconds_of(given.older_than) if given.older_than else None
    choice = Choice(seconds, given.reason, given.superseded)
    found = await _remove(asked, name, choice, with_events=given.with_events, dry_run=given.dry_run)
    return {**found, "dry_run": given.dry_run}


# ---------------------------------------------------------------------- who, and what they did


async def get_keys(asked: Asked) -> Any:
    """The keys, without what makes them one."""
    return [key.to_json() for key in await Keys(asked.grid).list()]


async def create_key(asked: Asked, given: NewKey) -> Any:
    """Make a key, which is shown this once."""
    seconds = None if given.expires is None else seconds_of(given.expires)
    keys, rest = Keys(asked.grid), {"note": given.note, "rate": given.rate}
    key, text = await keys.create(given.roles, given.only, seconds=seconds, **rest)
    return {**key.to_json(), "key": text}


async def revoke_key(asked: Asked, key: Name, why: Reason = "") -> Any:  # noqa: ARG001
    """Remove a key: servers refuse it within a second."""
    await Keys(asked.grid).revoke(key)
    return {"revoked": key}


async def get_log(asked: Asked) -> Any:
    """What was done by HTTP, with which key, the latest first."""
    return msgspec.to_builtins(await ActionLog(asked.grid).list())


VERBS: tuple[tuple[str, str, Role, Work], ...] = (
    ("GET", "status", READ, get_status),
    ("GET", "workers", READ, get_workers),
    ("GET", "log", READ, get_log),
    ("GET", "jobs", READ, get_jobs),
    ("GET", "jobs/{job}", READ, get_job),
    ("PUT", "jobs/{job}", ADMIN, submit_job),
    ("DELETE", "jobs/{job}", ADMIN, wipe_job),
    ("POST", "jobs/{job}/suspend", OPERATE, suspend_job),
    ("POST", "jobs/{job}/resume", OPERATE, resume_job),
    ("POST", "jobs/{job}/restart", OPERATE, restart_job),
    ("POST", "jobs/{job}/rollback", OPERATE, rollback_job),
    ("POST", "jobs/{job}/cancel", OPERATE, cancel_job),
    ("POST", "jobs/{job}/acknowledge", OPERATE, acknowledge_losses),
    ("POST", "jobs/{job}/audit", OPERATE, audit_job),
    ("GET", "jobs/{job}/rollout", READ, get_rollout),
    ("GET", "jobs/{job}/experiment", READ, get_experiment),
    ("POST", "jobs/{job}/experiment/start", OPERATE, start_experiment),
    ("POST", "jobs/{job}/experiment/stop", OPERATE, stop_experiment),
    ("POST", "jobs/{job}/experiment/promote", OPERATE, promote_experiment),
    ("GET", "models", READ, get_models),
    ("GET", "models/{model}", READ, get_model),
    ("GET", "models/{model}/log", READ, get_model_log),
    ("GET", "models/{model}/check", READ, check_model),
    ("POST", "models/{model}/versions", ADMIN, push_model),
    ("DELETE", "models/{model}/versions/{version}", ADMIN, delete_version),
    ("POST", "models/{model}/promote", OPERATE, promote_model),
    ("POST", "models/{model}/rollback", OPERATE, rollback_model),
    ("POST", "models/{model}/describe", OPERATE, describe_model),
    ("DELETE", "models/{model}/aliases/{alias}", OPERATE, remove_alias),
    ("GET", "dead-letters/{name}", READ, get_dead_letters),
    ("GET", "dead-letters/{name}/{letter}", READ, get_dead_letter),
    ("POST", "dead-letters/{name}/replay", OPERATE, replay_dead_letters),
    ("POST", "dead-letters/{name}/discard", OPERATE, discard_dead_letters),
    ("POST", "dead-letters/{name}/purge", ADMIN, purge_dead_letters),
    ("GET", "keys", ADMIN, get_keys),
    ("POST", "keys", ADMIN, create_key),
    ("DELETE", "keys/{key}", ADMIN, revoke_key),
)
"""Method, address below `/control/`, role, and what is done."""


def _need_for_more(asked: Asked, name: str, given: Move | Trial | Ending) -> None:
    """Going past what guards against bad models is not an operator's."""
    if getattr(given, "override", "") or given.allow_changed_features:
        asked.need(name, role=ADMIN)


def _names_of(job: Job) -> list[str]:
    """All that a job reads and writes."""
    names = [job.name, job.events, job.results, job.model.name, *(each.map for each in job.lookups.values())]
    names += [job.late] if job.late else []
    names += [job.labels.map] if job.labels else []
    names.append(job.alerts_map)
    for source in job.sources.values():
        names += [source.to, *getattr(source, "also", ()), *getattr(source, "results", ())]
    return [*names, *(sink.results for sink in job.sinks.values())]


async def _move(asked: Asked, job: str, do: Callable[[str], Awaitable[JobRecord | None]]) -> dict[str, Any]:
    before = await Jobs(asked.grid).find_usable(job)
    return _moved(job, before, await do(job))


def _moved(job: str, before: JobRecord | None, record: JobRecord | None) -> dict[str, Any]:
    if record is None:  # one that could not be read, and is gone
        return {"name": job, "state": None, "revision": None, "changed": True}
    changed = before is None or (before.revision, before.state) != (record.revision, record.state)
    return {**record.in_brief, "changed": changed}


async def _pointed(asked: Asked, alias: str, found: ModelVersion) -> dict[str, Any]:
    following = await _told(asked.client.following(found.name, alias))
    return {"alias": alias, **found.to_json(), "warnings": fit_warnings(following or {}, found)}


async def _told(reading: Awaitable[_T]) -> _T | None:
    """What is read once an action is done; None if that fails: an error would say that the action had failed."""
    try:
        return await reading
    except (GridscoreError, HazelcastError):
        return None


async def _remove(
    asked: Asked, name: str, choice: Choice, *, with_events: bool, dry_run: bool = False
) -> dict[str, Any]:
    record = await job_of(asked.grid, name)
    if record is None and (with_events or choice.superseded):
        raise UsageError(f"`with_events` and `superseded` only apply to a job, and `{name}` is not a job.")
    job = record.job if record else None
    looks = remove(asked.grid, name, choice, job=job, with_events=with_events, dry_run=dry_run)
    return [Removed(), *[done async for done in looks]][-1].to_json()
