"""What somebody on call sees when one thing breaks, and that it is over once that is repaired.

A fault is broken, shown, repaired, and must then be gone from `gridscore status`: one table, on one small cluster.
"""

import asyncio
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import GRIDSCORE, until

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
import scoring
from hazelcast.core import HazelcastJsonValue

from pipeline.client import connect
from pipeline.grid.member import Cluster

JOB = "payments"


class Site:
    """A cluster with a job, its worker, and whoever is on call there."""

    def __init__(self, cluster, folder):
        self.cluster = cluster
        self._log = folder / "worker.log"
        self._environment = {
            **os.environ,
            "GRIDSCORE_MEMBERS": ",".join(cluster.addresses),
            "GRIDSCORE_CLUSTER_NAME": cluster.cluster_name,
            "GRIDSCORE_CONNECT_TIMEOUT": "3",
        }
        self._worker = None
        self._told = 0

    def grid(self, use):
        async def main():
            async with connect(members=self.cluster.addresses, cluster_name=self.cluster.cluster_name) as client:
                return await use(client)

        return asyncio.run(main())

    def put(self, map_name, entries):
        self.grid(lambda client: client.put_events(map_name, entries))

    def submit(self):
        async def submit(client):
            await client.put_events(f"lookups.{JOB}", scoring.customers())
            await client.push_model(scoring.booster(), JOB, alias="champion")
            await client.submit(scoring.job(JOB))

        self.grid(submit)

    def start_worker(self):
        with self._log.open("a") as log:
            self._worker = subprocess.Popen(
                [*GRIDSCORE, "worker"], env=self._environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def stop_worker(self):
        if self._worker is not None:
            self._worker.terminate()
            self._worker.wait(30)
            self._worker = None

    def kill_worker(self):
        if self._worker is not None:
            self._worker.kill()
            self._worker.wait()

    def log(self):
        """What the worker has said since the last look."""
        text = self._log.read_text()[self._told :]
        self._told += len(text)
        return text

    def command(self, *arguments):
        done = subprocess.run(
            [*GRIDSCORE, *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout + done.stderr

    def status(self):
        return self.command("status", "--for", "0")

    def well(self):
        code, said = self.status()
        return code == 0 and f"{JOB}: well, RUNNING" in said


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with Cluster.start(1, port=0, heap="512m", register=False) as cluster:
        made = Site(cluster, tmp_path_factory.mktemp("site"))
        made.submit()
        made.start_worker()
        try:
            yield made
        finally:
            made.kill_worker()


@dataclass(frozen=True)
class Fault:
    """One thing that breaks.

    Attributes:
        name: What it is.
        happen: Breaks it.
        repair: What whoever is on call does then.
        code: Exit code of `gridscore status` meanwhile.
        shown: Each of these stands in what `gridscore status` prints.
        logged: Each of these stands in the worker's log.
    """

    name: str
    happen: object
    repair: object
    code: int
    shown: tuple[str, ...]
    logged: tuple[str, ...] = ()


def garbage(site):
    async def put(client):
        proxy = await client.grid.map(f"lookups.{JOB}")
        await proxy.put_all({key: HazelcastJsonValue('{"age": "old"}') for key in scoring.customers()})

    site.grid(put)


def repair_lookup(site):
    site.put(f"lookups.{JOB}", scoring.customers())


def destroy_events(site):
    site.put(f"events.{JOB}", scoring.events(500))
    until(site.well)
    site.log()

    async def destroy(client):
        await (await client.grid.map(f"events.{JOB}")).destroy()

    site.grid(destroy)


FAULTS = [
    Fault(
        "no worker",
        Site.stop_worker,
        Site.start_worker,
        10,
        ("not well, ", "No worker is running.", "Start one, anywhere: `gridscore worker`."),
        ("Worker stopped.",),
    ),
    Fault(
        "a lookup without one entry that can be read",
        garbage,
        repair_lookup,
        10,
        ("All 50 entries of the lookup `customer` cannot be read", "Correct them and put them again."),
    ),
    Fault(
        "an event map that somebody destroyed",
        destroy_events,
        lambda _: None,
        10,
        ("partitions must be searched for events without a result", "Workers do it by themselves"),
        ("its journal begins again at 0", "the map has lost writes, or was destroyed"),
    ),
    Fault(
        "a job that somebody suspended",
        lambda site: site.command("suspend", JOB),
        lambda site: site.command("resume", JOB),
        0,
        ("SUSPENDED", f"`gridscore resume {JOB}` goes on from the committed offsets."),
    ),
    Fault(
        "a cluster that is gone",
        lambda site: site.cluster.kill(0),
        lambda site: site.cluster.restart(0),
        4,
        ("error: No connection to the cluster", "Is a member running there", "`gridscore up` starts one"),
        ("The connection to the cluster is lost, trying again",),
    ),
    Fault(  # the one before has left an empty one behind
        "a cluster that was replaced by an empty one",
        lambda _: None,
        Site.submit,
        10,
        (f"{JOB}: not well, GONE", "until the cluster was replaced by this one", "Push its model and submit it again"),
        ("Connected to the cluster again", "was replaced by another one", "Submit the jobs and push the models again"),
    ),
]


def test_what_is_shown_is_true_names_the_next_command_and_is_over_once_it_is_repaired(site):
    until(site.well)
    site.log()
    for fault in FAULTS:
        # When it breaks
        fault.happen(site)
        # Then that is what is shown, and logged
        log, seen = "", ""

        def is_told():
            nonlocal log, seen
            log += site.log()
            code, seen = site.status()
            return (
                code == fault.code  # noqa: B023 -- called in this round only
                and all(text in seen for text in fault.shown)  # noqa: B023
                and all(text in log for text in fault.logged)  # noqa: B023
            )

        try:
            until(is_told)
        except AssertionError:
            pytest.fail(f"{fault.name}: {fault.code} {fault.shown}, {fault.logged}; but\n{seen}\n{log}")
        # in few lines, without anything of Java
        assert len(log.splitlines()) < 30, (fault.name, log)
        assert not re.search(r"^\s*at [\w.$]+\(", log, re.MULTILINE), (fault.name, log)
        # And when it is repaired, it is over
        fault.repair(site)
        if fault.code != 4:
            until(site.well)
