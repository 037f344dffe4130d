"""`gridscore soak` on a cluster of others: what it says, and what it leaves behind, which is nothing."""

import asyncio
import json
import os
import signal
import sys

import psutil
import pytest

from gridscore.grid import connect, transport
from gridscore.grid.records import Records
from gridscore.group.lease_records import read_records
from gridscore.job.life import JOBS_MAP
from gridscore.models.registry import MODELS_MAP
from gridscore.proving.soak.trial import clear
from gridscore.proving.soak.workload import soak_job


def command(cluster, *options):
    where = ("--members", cluster.addresses[0], "--cluster-name", cluster.cluster_name)
    # A seed in the environment is for the soak of many faults.
    environment = {name: value for name, value in os.environ.items() if name != "GRIDSCORE_SEED"}
    arguments = (sys.executable, "-m", "gridscore.cli", "soak", *where, "--workers", "2", "--lease", "2", *options)
    return arguments, environment


async def start(cluster, *options):
    arguments, environment = command(cluster, *options)
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*arguments, stdout=pipe, stderr=pipe, env=environment)


async def names(grid):
    maps = {name for name in await transport.map_names(grid.client) if "soak-" in name}
    records = {name for each in (JOBS_MAP, MODELS_MAP) for name in await Records(grid, each).all() if "soak-" in name}
    return maps, records


async def test_it_passes_on_a_cluster_of_others_and_takes_everything_away(cluster, grid_settings, tmp_path):
    folder = tmp_path / "kept"
    faults = (
        "--worker-kills",
        "1",
        "--pauses",
        "0",
        "--pause-holds",
        "0",
        "--leaves",
        "1",
        "--cuts",
        "1",
        "--holds",
        "0",
        "--pause-cuts",
        "0",
        "--heir-kills",
        "0",
    )
    soak = await start(
        cluster, "--events", "4000", "--rate", "400", "--seed", "7", *faults, "--keep", str(folder), "--json"
    )
    out, errors = await soak.communicate()
    assert soak.returncode == 0, (out + errors).decode()
    report = json.loads(out)
    assert report["passed"]
    assert report["seed"] == 7
    assert report["verdict"]["acknowledged"] >= 4_000
    assert report["faults_done"] == {
        "worker-kill": 1,
        "pause": 0,
        "pause-hold": 0,
        "leave": 1,
        "member-kill": 0,
        "member-pause": 0,
        "member-cut": 0,
        "pause-cut": 0,
        "heir-kill": 0,
        "both-kill": 0,
        "cut": 1,
        "hold": 0,
    }
    assert "worker-kill of worker" in errors.decode()
    assert {"ledger.tsv", "journal.tsv", "notices.tsv", "results.tsv"} <= {path.name for path in folder.iterdir()}
    async with await connect(grid_settings) as grid:
        assert await names(grid) == (set(), set())
        assert await read_records(grid, report["job"]) == {}


async def test_killed_with_9_it_takes_its_processes_along_a_stopped_one_too(cluster, grid_settings):
    soak = await start(cluster, "--events", "100000", "--rate", "200", "--worker-kills", "0", "--pauses", "0")
    try:
        while b"under load" not in (line := await soak.stderr.readline()):
            assert line, "it ended"
        async with asyncio.timeout(30):
            # Two workers, the listener and, a moment later, the producer.
            while len(children := psutil.Process(soak.pid).children(recursive=True)) < 4:
                await asyncio.sleep(0.05)
        workers = [child for child in children if "gridscore.proving.soak.detour" in " ".join(child.cmdline())]
        assert len(workers) == 2
        os.kill(workers[0].pid, signal.SIGSTOP)
    finally:
        soak.kill()
        await soak.communicate()
    _, alive = await asyncio.to_thread(psutil.wait_procs, children, timeout=30)
    for child in alive:
        child.kill()
    assert alive == []
    async with await connect(grid_settings) as grid:
        _, records = await names(grid)
        for name in records:
            await clear(grid, soak_job(name))
        assert await names(grid) == (set(), set())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--member-kills", "1"), "Members of your own cluster are never killed, stopped"),
        (("--workers", "1"), "need two workers"),
        (("--keep", "."), "is not empty"),
    ],
)
async def test_what_cannot_be_done_is_refused(cluster, options, message):
    soak = await start(cluster, *options)
    _, errors = await soak.communicate()
    assert soak.returncode not in (0, 1)
    assert message in errors.decode()
    assert "Traceback" not in errors.decode()
