"""The doctor on real members: healthy, sick, and silent ones."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from gridscore.grid import GridSettings, connect, doctor
from gridscore.grid.artifacts import DEFAULT_VERSION
from gridscore.grid.doctor import Level, LookupNeed, Needs, examine
from gridscore.grid.member import Cluster
from gridscore.job import Jobs, load_job

ROOT = Path(__file__).resolve().parents[2]

COMMAND = """
from gridscore.cli.doctor import doctor
from gridscore.cli.options import App
app = App()
app.command()(doctor)
app()
"""


def examined(cluster, *needs, prepare=None):
    async def main():
        settings = GridSettings.load(members=cluster.addresses, cluster_name=cluster.cluster_name)
        async with await connect(settings) as grid:
            if prepare:
                await prepare(grid)
            return await examine(grid, *needs)

    return asyncio.run(main())


def by_what(findings, what):
    return {finding.detail: finding.level for finding in findings if finding.what == what}


def test_our_own_member_is_fit_for_a_job(cluster, unique):
    lookup = f"lookups.planes-{unique}"

    async def prepare(grid):
        await (await grid.map(lookup)).put("N1", 1)

    needs = Needs(f"events.x-{unique}", f"results.x-{unique}", [LookupNeed(lookup, 10)])
    findings = examined(cluster, needs, prepare=prepare)
    # How full its heap is depends on the tests before.
    noted = {finding.what for finding in findings if finding.level is not Level.OK}
    assert noted - {"heap"} == {"members"}
    assert by_what(findings, "version") == {f"Hazelcast {DEFAULT_VERSION}": Level.OK}
    assert (
        "journal of 1,000,000, 3,690 a partition (`events.*`): once full, 48 MB to 238 MB of heap over all members, "
        "for events of 90 bytes"
    ) in by_what(findings, f"event map events.x-{unique}")
    assert by_what(findings, f"lookup map {lookup}") == {"1 entries": Level.OK}
    assert by_what(findings, "SQL") == {"answers": Level.OK}


def test_what_a_job_lacks_is_found(cluster, unique):
    small, empty, missing = (f"lookups.{name}-{unique}" for name in ("small", "empty", "missing"))

    async def prepare(grid):
        await (await grid.map(small)).put_all({str(i): i for i in range(5)})
        await grid.map(empty)

    needs = Needs(f"plain-{unique}", f"scores-{unique}", [LookupNeed(small, 4), LookupNeed(empty), LookupNeed(missing)])
    findings = examined(cluster, needs, prepare=prepare)
    assert by_what(findings, f"event map plain-{unique}")["no event journal (configured by `default`)"] is Level.FAIL
    assert Level.WARN in by_what(findings, f"result map scores-{unique}").values()
    assert by_what(findings, f"lookup map {small}") == {"5 entries, more than the 4 that a worker copies": Level.FAIL}
    assert list(by_what(findings, f"lookup map {empty}").values()) == [Level.WARN]
    assert by_what(findings, f"lookup map {missing}") == {"does not exist": Level.FAIL}
    assert all(finding.advice for finding in findings if finding.level is not Level.OK)


def test_looking_creates_no_map(cluster, unique):
    name = f"events.never-{unique}"

    async def main():
        settings = GridSettings.load(members=cluster.addresses, cluster_name=cluster.cluster_name)
        async with await connect(settings) as grid:
            await examine(grid, Needs(name, name, [LookupNeed(name)]))
            return await grid.has_map(name)

    assert asyncio.run(main()) is False


def test_a_sick_cluster(tmp_path):
    config = tmp_path / "sick.yaml"
    config.write_text(
        """
hazelcast:
  jet: {enabled: false}
  map:
    events.*:
      backup-count: 0
      time-to-live-seconds: 60
      event-journal: {enabled: true, capacity: 10000}
""",
        encoding="utf-8",
    )
    with Cluster.start(2, port=0, heap="256m", register=False, config=config) as cluster:
        findings = examined(cluster, Needs("events.x", "results.x"))
    events = by_what(findings, "event map events.x")
    assert Level.WARN in [
        level for text, level in events.items() if text.startswith("journal of 10,000, 36 a partition")
    ]
    assert events["backup-count 0"] is Level.FAIL
    assert events["time-to-live-seconds 60"] is Level.FAIL
    assert by_what(findings, "control maps gridscore.*")["no split-brain protection"] is Level.WARN
    (sql,) = by_what(findings, "SQL").values()
    assert sql is Level.WARN


def test_members_that_do_not_tell_their_configuration_are_probed(tmp_path):
    config = tmp_path / "silent.yaml"
    config.write_text(
        """
hazelcast:
  management-center:
    trusted-interfaces: ["10.255.255.1"]
  properties: {hazelcast.partition.count: 3}
  map:
    events.*:
      event-journal: {enabled: true, capacity: 30}
""",
        encoding="utf-8",
    )

    async def put(grid):
        for name, count in (("events.full", 200), ("events.new", 6), ("plain", 1)):
            await (await grid.map(name)).put_all({str(i): i for i in range(count)})

    with Cluster.start(port=0, heap="256m", register=False, config=config) as cluster:
        full = examined(cluster, Needs("events.full", "plain"), prepare=put)
        new = examined(cluster, Needs("events.new", "events.none"))
    assert list(by_what(full, "configuration").values()) == [Level.WARN]
    assert by_what(full, "event map events.full") == {
        "journal of about 10 a partition, seen from one that is full": Level.WARN
    }
    assert by_what(full, "result map plain") == {"no event journal": Level.WARN}
    (lower_bound,) = by_what(new, "event map events.new")
    assert "at least" in lower_bound
    assert list(by_what(new, "result map events.none").values()) == [Level.WARN]


@pytest.mark.parametrize("needed", [1, 10**9])
def test_the_command_fails_if_something_fails(cluster, needed):
    arguments = ["--members", cluster.addresses[0], "--cluster-name", cluster.cluster_name, "--json"]
    # A capacity that no journal has makes a healthy member sick, without a second one.
    before = f"import gridscore.grid.doctor as d; d.OLDEST_VERSION = ({needed}, 0)\n"
    command = COMMAND.replace("app()\n", f"{before}app()\n")
    result = subprocess.run(
        [sys.executable, "-c", command, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    findings = json.loads(result.stdout)
    assert {finding["level"] for finding in findings} <= set(doctor.Level)
    assert result.returncode == (0 if needed == 1 else 1)


JOB = """
job: JOB
events: plain-JOB
schema: {amount: float}
lookups:
  shops: {map: lookups.JOB, key: amount, fields: {rank: float}}
features: {amount: amount}
model: {name: fraud}
results: results.JOB
"""


def test_the_command_checks_a_job_file_or_else_what_is_submitted(cluster, unique, tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text(JOB.replace("JOB", f"doctor-{unique}"), encoding="utf-8")
    job = load_job(file)
    missing = f"lookup map lookups.doctor-{unique}"

    def run(*options):
        where = ["--members", cluster.addresses[0], "--cluster-name", cluster.cluster_name]
        command = [sys.executable, "-c", COMMAND, *where, "--json", *options]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
        return {finding["what"] for finding in json.loads(result.stdout) if finding["level"] == "fail"}

    async def change(verb, *given):
        settings = GridSettings.load(members=cluster.addresses, cluster_name=cluster.cluster_name)
        async with await connect(settings) as grid:
            await getattr(Jobs(grid), verb)(*given)

    expected = {f"event map plain-doctor-{unique}", missing}
    assert run("--job", str(file)) == expected
    assert missing not in run()
    asyncio.run(change("submit", job))
    try:
        assert expected <= run()
    finally:
        asyncio.run(change("cancel", job.name))
    assert missing not in run()
