"""Checks a running cluster against what a job needs, and says what to change. It reads, and never writes."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING

from hazelcast.errors import HazelcastError

from gridscore.errors import GridError, JournalMissingError
from gridscore.grid import transport
from gridscore.grid.capacity import journal_bytes
from gridscore.grid.heap import HEAP_ADVICE, SLOW, look_at_heaps, size_text, worst_of
from gridscore.grid.journal import Journal
from gridscore.grid.management import MapConfig, MemberConfig, MemberReport, Protection, ask_members

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gridscore.grid.connection import Grid
    from gridscore.grid.heap import MemberHeap

OLDEST_VERSION = (5, 6)
# Journal entries per partition below which a short pause of a worker loses events at a few thousand a second.
MIN_PER_PARTITION = 1000

CLOCK_WARN_SECONDS = 0.5
CLOCK_FAIL_SECONDS = 5.0

_CONTROL_MAPS = "gridscore.jobs"  # stands for all `gridscore.*`
_PROBED_PARTITIONS = 16


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Level  # whether a job can run with it
    what: str
    detail: str
    advice: str = ""  # what to change; empty if nothing


_ok, _warn, _fail = (partial(Finding, level) for level in Level)


@dataclass(frozen=True)
class LookupNeed:
    """A lookup map that a job reads."""

    map_name: str
    # Entries that a worker copies at most; None if it fetches what it needs from the grid.
    max_entries: int | None = None


@dataclass(frozen=True)
class Needs:
    """The maps of a job; by default, those that maps with conventional names have or would get."""

    events: str = "events.*"
    results: str = "results.*"
    lookups: Iterable[LookupNeed] = field(default_factory=tuple)


async def examine(grid: Grid, *jobs: Needs) -> list[Finding]:
    """Look at everything that jobs depend on. `jobs`: the maps of each job; without any, `Needs()`."""
    try:
        reports = await ask_members(grid)
        members = sum(not member.lite_member for member in grid.members)
        config = next((report.config for report in reports if report.config is not None), None)
        findings = [_client(), _version(grid), _size(members), _heap(await look_at_heaps(grid)), _clock(reports)]
        findings += _agreement(reports)
        for needs in jobs or (Needs(),):
            for kind, name in (("event", needs.events), ("result", needs.results)):
                if config is not None:
                    findings += _journalled_map(kind, name, config, members, grid.partition_count)
                else:
                    findings.append(await _probed_journal(grid, kind, name))
            for lookup in needs.lookups:
                findings.append(await _lookup(grid, lookup))
        if config is not None:
            findings += _control_maps(config, members)
        findings.append(await _sql(grid))
    except HazelcastError as error:
        raise GridError(f"The cluster stopped answering: {error}") from error
    return list(dict.fromkeys(findings))  # two jobs may share a map


def _client() -> Finding:
    import hazelcast

    transport.check_client_version()
    return _ok("client", f"hazelcast-python-client {hazelcast.__version__}")


def _version(grid: Grid) -> Finding:
    versions = transport.server_versions(grid.client)
    distinct = sorted(set(versions.values()), key=_version_key)
    if not distinct:
        return _warn("version", "no member is connected")
    if old := [address for address, version in versions.items() if _version_key(version) < OLDEST_VERSION]:
        advice = "Gridscore needs Hazelcast 5.6 or later: upgrade these members."
        return _fail("version", f"Hazelcast {distinct[0]} at {', '.join(old)}", advice)
    if len(distinct) > 1:
        advice = "Fine during an upgrade; bring all members to one version."
        return _warn("version", f"Hazelcast {' and '.join(distinct)} in one cluster", advice)
    return _ok("version", f"Hazelcast {distinct[0]}")


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def _size(members: int) -> Finding:
    if members == 1:
        advice = "Good for trying out. For work, run three: then one may fail without loss."
        return _warn("members", "1 member: nothing has a backup", advice)
    if members == 2:
        advice = "One may fail without loss of data, but only three keep control maps both safe and available."
        return _warn("members", "2 members: neither side of a split has a majority", advice)
    return _ok("members", f"{members} members")


def _heap(heaps: list[MemberHeap]) -> Finding:
    silent = next((heap for heap in heaps if not heap.most), None)
    worst = worst_of(heaps)
    if worst is None or silent is not None:
        why = f"{silent.address} does not tell how full it is: {silent.refusal}" if silent else "no member tells"
        advice = "Producers cannot stop before it is out of memory. Enable `metrics` in the members' hazelcast.yaml."
        return _warn("heap", why, advice)
    if worst.share >= SLOW:
        return _warn("heap", f"{worst}, garbage included", HEAP_ADVICE)
    return _ok("heap", f"{worst}{'' if len(heaps) == 1 else '; the others use less'}")


def _clock(reports: list[MemberReport]) -> Finding:
    seen = [report for report in reports if report.clock_offset is not None]
    if not seen:
        return _warn("clock", "the members do not tell their time", "See `configuration`.")
    worst = max(seen, key=lambda report: abs(report.clock_offset or 0))
    offset = worst.clock_offset or 0.0
    # A difference that the answer's travel time may explain does not count.
    surely = max(0.0, abs(offset) - worst.uncertainty)
    side = "ahead of" if offset > 0 else "behind"
    detail = f"the cluster's clock is {abs(offset) * 1000:.0f} ms {side} ours ({worst.address})"
    if surely >= CLOCK_WARN_SECONDS:
        bad = _fail if surely >= CLOCK_FAIL_SECONDS else _warn
        return bad("clock", detail, "Run NTP (chrony, systemd-timesyncd) on this machine and the members'.")
    return _ok("clock", detail)


def _agreement(reports: list[MemberReport]) -> list[Finding]:
    silent = [report for report in reports if report.config is None]
    if silent:
        detail = f"{silent[0].address} does not tell its configuration: {silent[0].refusal}"
        advice = (
            "Backups and split-brain protection cannot be checked there. Allow this machine in the members' "
            "`management-center: trusted-interfaces`, or run the doctor where it is allowed."
        )
        return [_warn("configuration", detail, advice)]
    if any(report.config != reports[0].config for report in reports):
        detail = "the members' maps or split-brain protection are configured differently"
        advice = "Give all members the same hazelcast.yaml; otherwise a map's replicas behave differently."
        return [_fail("configuration", detail, advice)]
    return []


def _journalled_map(kind: str, name: str, config: MemberConfig, members: int, partitions: int) -> list[Finding]:
    map_config = config.map(name)
    what = f"{kind} map {name}"
    replicas = 1 + min(map_config.backups + map_config.async_backups, max(0, members - 1))
    return [
        _journal(what, map_config, partitions, replicas, needed=kind == "event"),
        _backups(what, map_config, members),
        *_expiry(what, map_config),
        *_parsing(what, map_config),
    ]


def _journal(what: str, config: MapConfig, partitions: int, replicas: int, *, needed: bool) -> Finding:
    if config.journal_capacity is None:
        # Results are scored, listened to and queried without one; only sinks need it.
        bad, effect = (_fail, "") if needed else (_warn, ": no sink can follow it")
        return bad(
            what,
            f"no event journal (configured by `{config.pattern}`){effect}",
            "`gridscore prepare JOB_FILE` adds one, if the map does not exist yet. Otherwise name another map, or add "
            "`event-journal: {enabled: true, capacity: 1000000}` in the members' hazelcast.yaml and restart them.",
        )
    each = config.journal_capacity // partitions
    least, most = map(size_text, journal_bytes(config.journal_capacity, replicas))
    detail = (
        f"journal of {config.journal_capacity:,}, {each:,} a partition (`{config.pattern}`): once full, {least} to "
        f"{most} of heap over all members, for events of 90 bytes"
    )
    if each < MIN_PER_PARTITION:
        return _warn(
            what,
            detail,
            f"At 10,000 events/s it holds {config.journal_capacity / 10_000:.1f} s: workers that pause longer lose "
            f"events. Set `capacity` to {MIN_PER_PARTITION * partitions:,} at least; 1,000,000 is ours.",
        )
    return _ok(what, detail)


def _backups(what: str, config: MapConfig, members: int) -> Finding:
    if config.backups == 0:
        bad = _fail if members > 1 else _warn
        others = f" (and {config.async_backups} asynchronous)" if config.async_backups else ""
        advice = "Set `backup-count: 1`: when a member dies, sequences restart at zero and readers miss events."
        return bad(what, f"backup-count 0{others}", advice)
    if config.backups >= members > 1:
        return _warn(what, f"backup-count {config.backups}, but only {members} members", "Start more members.")
    return _ok(what, f"backup-count {config.backups}")


def _parsing(what: str, config: MapConfig) -> list[Finding]:
    if not config.parses_json:
        return []
    advice = (
        'Set `metadata-policy: "OFF"`, unless predicates of your own query its fields: parsing is half of the work '
        "that an event makes for a member, and much of its heap. SQL does not need it."
    )
    return [_warn(what, f"members parse each JSON value on every replica (`{config.pattern}`)", advice)]


def _expiry(what: str, config: MapConfig) -> list[Finding]:
    if not config.expiry:
        return []
    advice = (
        "Remove it: replicas expire entries each on their own, and their journals differ for good afterwards. "
        "Remove old entries explicitly instead."
    )
    return [_fail(what, " and ".join(config.expiry), advice)]


async def _probed_journal(grid: Grid, kind: str, name: str) -> Finding:
    """What a journal shows of itself when the members do not tell their configuration."""
    what = f"{kind} map {name}"
    if not await grid.has_map(name):
        return _warn(what, "it does not exist yet, so its journal cannot be seen", "Put an entry first.")
    journal = Journal(grid, name)
    count = grid.partition_count
    step = max(1, count // _PROBED_PARTITIONS)
    try:
        bounds = [await journal.bounds(partition) for partition in range(0, count, step)]
    except JournalMissingError as error:
        return (_fail if kind == "event" else _warn)(what, "no event journal", error.hint)
    # A ring that has dropped its oldest entries is full: what it holds is its capacity.
    full = [newest - oldest + 1 for oldest, newest in bounds if oldest > 0]
    if full:
        detail = f"journal of about {min(full):,} a partition, seen from one that is full"
        if min(full) >= MIN_PER_PARTITION:
            return _ok(what, detail)
        return _warn(what, detail, f"Set its capacity to {MIN_PER_PARTITION * count:,} at least.")
    held = max(newest - oldest + 1 for oldest, newest in bounds)
    detail = f"journal of at least {held:,} a partition; it is not full yet, so its capacity cannot be seen"
    return _warn(what, detail, "Look into the members' hazelcast.yaml.")


def _control_maps(config: MemberConfig, members: int) -> list[Finding]:
    what = "control maps gridscore.*"
    map_config = config.map(_CONTROL_MAPS)
    protection = config.protections.get(map_config.protection or "")
    return [_backups(what, map_config, members), *_expiry(what, map_config), _protection(what, protection, members)]


def _protection(what: str, protection: Protection | None, members: int) -> Finding:
    majority = members // 2 + 1
    if protection is None or not protection.enabled:
        if members == 1:
            return _ok(what, "no split-brain protection, and no need with one member")
        advice = (
            f"Give all maps of jobs one of {max(2, majority)} members (see our hazelcast.yaml): otherwise both "
            "sides of a split cluster score the same partition."
        )
        return _warn(what, "no split-brain protection", advice)
    detail = f"split-brain protection of {protection.minimum_members} members"
    if protection.minimum_members > members:
        advice = "Start the missing members; until then jobs can be neither submitted nor scored."
        return _fail(what, f"{detail}, but the cluster has {members}", advice)
    if protection.minimum_members < majority:
        return _warn(what, f"{detail} of {members}", f"Set `minimum-cluster-size: {majority}`, more than half.")
    if protection.protect_on != "READ_WRITE":
        return _warn(what, f"{detail}, on {protection.protect_on}", "Set `protect-on: READ_WRITE`.")
    return _ok(what, detail)


async def _lookup(grid: Grid, need: LookupNeed) -> Finding:
    what = f"lookup map {need.map_name}"
    if not await grid.has_map(need.map_name):
        return _fail(what, "does not exist", "Put its entries into the grid, or correct its name in the job file.")
    size = int(await (await grid.map(need.map_name)).size())
    if size == 0:
        return _warn(what, "is empty: all its features will be missing", "Put its entries into the grid.")
    if need.max_entries is not None and size > need.max_entries:
        detail = f"{size:,} entries, more than the {need.max_entries:,} that a worker copies"
        return _fail(what, detail, "Raise its `max_entries` in the job file, or set `mode: fetch`.")
    return _ok(what, f"{size:,} entries")


async def _sql(grid: Grid) -> Finding:
    try:
        async with await grid.client.sql.execute("SELECT 1") as result:
            async for _ in result:
                pass
    except HazelcastError as error:
        return _without_sql(" ".join(str(error).split()))
    return _ok("SQL", "answers")


def _without_sql(text: str) -> Finding:
    """What the error of a query that reads nothing means."""
    said = text.lower()
    if "hazelcast-sql" in said:
        advice = "Put hazelcast-sql on the members' class path."
    elif "jet" in said and "disabled" in said:
        advice = "Set `jet: {enabled: true}` in the members' hazelcast.yaml."
    else:
        advice = "A member failed to answer `SELECT 1`: see its log, and its heap in `gridscore status`."
        return _warn("SQL", f"failed: {text}", advice)
    return _warn("SQL", f"not available: {text}", f"{advice} Scoring works without it; queries do not.")
