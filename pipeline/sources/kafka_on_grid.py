"""The Kafka source without a process of ours: statements by which the cluster's own SQL engine reads the topic.

Two mappings, of the topic and of the event map, and a job that brings messages from the one to the other, at least
once. They are called after the source, so that they can be found and dropped again, and replace no mapping of others.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from typing import TYPE_CHECKING, NamedTuple

from hazelcast.errors import HazelcastError

from pipeline.errors import GridError, GridscoreError, UsageError
from pipeline.grid.engine import EngineJob, engine_jobs, execute, identifier, literal
from pipeline.job.plugs.environment import Hidden, from_environment
from pipeline.job.plugs.secrets import is_plain_secret
from pipeline.sources.base import SourceInterruptedError
from pipeline.sources.kafka_java import java_properties

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.grid import Grid
    from pipeline.job.plugs.kafka_source import KafkaSourceSettings

PREFIX = "gridscore.source."

START_SECONDS = 30.0
"""How long a job may take to run."""

STEADY_SECONDS = 3.0
"""How long it must have run: what it lacks shows when its processors begin, soon after."""

_LOOK_SECONDS = 0.2
_SNAPSHOT_MILLISECONDS = 1_000
_NOT_ON_GRID = ("key_field", "headers_field", "format", "registry", "max_event", "max_wait")
_TOPIC, _MAP = ".topic", ".map"
_MISSING = re.compile(r"(?:NoClassDefFoundError|ClassNotFoundException): ([\w./$]+)")


class SourceOnGrid(NamedTuple):
    """A source that the cluster runs.

    Attributes:
        name: Of the source.
        map: The event map.
        state: Of its job, as `EngineJob` has it; `dropped` if there is none.
        error: Why it does not run.
    """

    name: str
    map: str
    state: str
    error: str


def job_of(name: str) -> str:
    """The job of a source of that name."""
    return f"{PREFIX}{name}"


def statements(settings: KafkaSourceSettings, name: str, *, show: bool = True) -> list[str]:
    """What to execute, in order: two mappings and the job.

    Args:
        settings: Of the source.
        name: Of the source.
        show: Whether they are for people: then they hold no secret.

    Raises:
        UsageError: The engine cannot do what the settings say.
    """
    _check(settings)
    given = {
        "keyFormat": "varchar",
        "valueFormat": "json",
        "bootstrap.servers": ",".join(settings.brokers),
        "group.id": settings.group or name,
        "auto.offset.reset": "earliest" if settings.start == "oldest" else "latest",
        "isolation.level": "read_committed",
        **java_properties(_shown(settings.set) if show else settings.set, show=show),
    }
    if not settings.message_key:
        del given["keyFormat"]
    parts = (
        ["__key"] if settings.message_key else [f"JSON_VALUE(this, {literal(_path(name))})" for name in settings.key]
    )
    key = " || '|' || ".join(parts)
    # For IS NOT NULL the planner takes JSON_VALUE, which gives NULL, for something that does not.
    has_key = " AND ".join(f"{part} <> ''" for part in parts)
    topic, to = identifier(job_of(name) + _TOPIC), identifier(job_of(name) + _MAP)
    columns = ("__key VARCHAR", "this JSON")
    job = {"processingGuarantee": "atLeastOnce", "snapshotIntervalMillis": str(_SNAPSHOT_MILLISECONDS)}
    return [
        _mapping(topic, settings.topic, columns if settings.message_key else columns[1:], "Kafka", given),
        _mapping(to, settings.to, columns, "IMap", {"keyFormat": "varchar", "valueFormat": "json"}),
        (
            f"CREATE JOB IF NOT EXISTS {identifier(job_of(name))}\n{_options(job)} AS\n"
            f"SINK INTO {to} (__key, this)\nSELECT {key}, this FROM {topic}\n"
            f"WHERE {has_key} AND this IS NOT NULL"
        ),
    ]


async def submit(grid: Grid, settings: KafkaSourceSettings, name: str) -> str:
    """Execute the statements, and see that the job runs; returns what else there is to say, if anything.

    Raises:
        UsageError: The engine cannot do what the settings say; or a source of that name runs there already.
        SettingsError: An environment variable that the settings name is not set.
        KafkaRefusedError: No such topic; or credentials, a certificate or rights are wrong, as seen from here.
        GridError: The cluster refuses it, or the job does not run; the message says why.
    """
    filled, hidden = from_environment(settings)
    try:
        to_execute = statements(filled, name, show=False)
        job = await _newest(grid, job_of(name))
        if job is not None and not job.has_ended:
            raise UsageError(
                f"`{name}` is on the grid already: its job is {job.state}.",
                f"To change it, drop it first: gridscore source drop {name}",
            )
        note = await asyncio.to_thread(_look_from_here, filled)
        try:
            for statement in to_execute:
                await execute(grid, statement)
            await _until_steady(grid, name)
        except (GridError, HazelcastError) as error:
            with contextlib.suppress(GridError):
                await drop(grid, name)
            raise (error if isinstance(error, GridError) else _explained(str(error))) from None
    except GridscoreError as error:
        raise hidden.within(error) from None
    return _noted(note, hidden)


async def drop(grid: Grid, name: str) -> bool:
    """Drop a source's job and mappings; whether there were any.

    Raises:
        GridError: The cluster refuses it.
    """
    try:
        there = {found for (found,) in await execute(grid, "SELECT table_name FROM information_schema.mappings")}
        await execute(grid, f"DROP JOB IF EXISTS {identifier(job_of(name))}")
        for suffix in (_TOPIC, _MAP):
            await execute(grid, f"DROP MAPPING IF EXISTS {identifier(job_of(name) + suffix)}")
    except HazelcastError as error:
        raise _explained(str(error)) from None
    return job_of(name) + _MAP in there


async def sources_on_grid(grid: Grid) -> list[SourceOnGrid]:
    """The sources that were submitted and not dropped, by name; none if the cluster has no SQL.

    Raises:
        GridError: No member can be asked.
    """
    try:
        query = "SELECT table_name, mapping_external_name FROM information_schema.mappings"
        mappings: Mapping[str, str] = dict(await execute(grid, query))
        jobs = await engine_jobs(grid)
    except HazelcastError:
        return []
    newest = {job.name: job for job in reversed(jobs)}
    found = []
    for mapping, external in sorted(mappings.items()):
        if mapping.startswith(PREFIX) and mapping.endswith(_MAP):
            name = mapping.removeprefix(PREFIX).removesuffix(_MAP)
            job = newest.get(job_of(name))
            map_name = external.strip('"').replace('""', '"')
            failure = _reason(job.failure) if job is not None else ""
            found.append(SourceOnGrid(name, map_name, "dropped" if job is None else job.state, failure))
    return found


# ---------------------------------------------------------------------- statements


def _check(settings: KafkaSourceSettings) -> None:
    fields = type(settings).model_fields
    for name in _NOT_ON_GRID:
        if getattr(settings, name) != fields[name].default:
            raise UsageError(
                f"`{name}` cannot be done on the grid: its SQL has no means for it.",
                "Leave it out, or let a process of its own read the topic, without --on-grid.",
            )
    if settings.start_time is not None:
        raise UsageError("On the grid, `start` is `oldest` or `latest`: its SQL does not begin at a time.")
    if not settings.key and not settings.message_key:
        raise UsageError(
            "On the grid, the key must come from the message: SQL does not tell where a message came from.",
            "Take the message's key with --message-key, or fields of the event with --key.",
        )


def _mapping(name: str, external: str, columns: Sequence[str], kind: str, options: Mapping[str, str]) -> str:
    return (
        f"CREATE OR REPLACE EXTERNAL MAPPING {name}\nEXTERNAL NAME {identifier(external)} ({', '.join(columns)})\n"
        f"TYPE {kind} {_options(options)}"
    )


def _options(options: Mapping[str, str]) -> str:
    pairs = (f"  {literal(name)} = {literal(value)}" for name, value in options.items())
    return "OPTIONS (\n" + ",\n".join(pairs) + "\n)"


def _shown(properties: Mapping[str, str]) -> dict[str, str]:
    """Properties without the secrets that stand there as they are."""
    return {
        name: "${a secret}" if is_plain_secret(("set", name), value) else value for name, value in properties.items()
    }


def _path(name: str) -> str:
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        return f"$.{name}"
    if re.search(r"""["'\\\x00-\x1f]""", name):
        raise UsageError(f"On the grid, a key's field can have no quotes, backslashes or control characters: {name!r}")
    return f'$["{name}"]'


# ---------------------------------------------------------------------- running


def _look_from_here(settings: KafkaSourceSettings) -> str:
    """Find what is wrong that the engine would only log: it waits for a topic that is not there. Blocks.

    Returns:
        Why it could not be looked at; empty if all is well.
    """
    try:
        from pipeline.kafka import Complaints, client_settings, partitions_of
    except ModuleNotFoundError:
        return "The extra `kafka` is not installed"
    try:
        client = client_settings(settings.brokers, settings.set, {}, Complaints(settings.topic))
        partitions_of(client, settings.topic, SourceInterruptedError)
    except SourceInterruptedError as error:
        return str(error).rstrip(".")
    return ""


def _noted(trouble: str, hidden: Hidden) -> str:
    if not trouble:
        return ""
    return f"Whether the topic is there could not be seen from here: {hidden.hide(trouble)}. The members' logs tell."


async def _newest(grid: Grid, name: str) -> EngineJob | None:
    try:
        return next((job for job in await engine_jobs(grid) if job.name == name), None)
    except HazelcastError as error:
        raise _explained(str(error)) from None


async def _until_steady(grid: Grid, name: str) -> None:
    began = time.monotonic()
    running_since: float | None = None
    while True:
        job, now = await _newest(grid, job_of(name)), time.monotonic()
        if job is None or job.state == "dropped":
            raise GridError(f"The job of `{name}` is gone: somebody has dropped it.")
        if job.has_ended or job.failure:
            raise _explained(job.failure or f"the job has {job.state}")
        running_since = (running_since or now) if job.state == "running" else None
        if running_since is not None and now - running_since >= STEADY_SECONDS:
            return
        if now - began > START_SECONDS:
            raise GridError(f"The job of `{name}` is {job.state} after {START_SECONDS:.0f} s. The members' logs tell.")
        await asyncio.sleep(_LOOK_SECONDS)


def _explained(text: str) -> GridError:
    """What people can do about what the cluster says."""
    reason = _reason(text)
    missing = _MISSING.search(text)
    if missing is not None or "Unknown connector type" in text:
        what = f": {missing[1]} is missing" if missing is not None else ""
        return GridError(
            f"The members lack Hazelcast's Kafka connector, or a part of what it needs{what}.",
            "Put hazelcast-jet-kafka of their version, kafka-clients and slf4j-api on the class path of every member, "
            "and start them anew. `gridscore up --kafka` has all of it.",
        )
    if "Jet engine is disabled" in text:
        return GridError("The members' engine is disabled.", "Set `jet: enabled: true` in their configuration.")
    if "hazelcast-sql" in text:
        return GridError("The members lack SQL.", "Put hazelcast-sql of their version on their class path.")
    return GridError(f"The cluster does not do it: {reason}")


def _reason(text: str) -> str:
    """The line of a stack trace that says most."""
    lines = [
        line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith(("at ", "..."))
    ]
    causes = [line.removeprefix("Caused by: ") for line in lines if line.startswith("Caused by: ")]
    return (causes or lines or [""])[-1 if causes else 0]
