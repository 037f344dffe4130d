"""The source of log files as users run it, against a real member: killed, and while files are rotated."""

from __future__ import annotations

import asyncio
import gzip
import json
import subprocess
import sys

import pytest

from gridscore.client import connect
from gridscore.dead_letters.letters import list_letters
from gridscore.leash import LeashedProcess

SECONDS = 60


@pytest.fixture
async def client(cluster):
    async with connect(members=cluster.addresses, cluster_name=cluster.cluster_name) as connected:
        yield connected


@pytest.fixture
def arguments(cluster, unique, tmp_path):
    return [
        *("source", "logfile", "--path", str(tmp_path / "app.log*"), "--to", f"events.{unique}"),
        *("--name", f"log-{unique}", "--members", ",".join(cluster.addresses), "--cluster-name", cluster.cluster_name),
    ]


async def wait_for_size(events, size, process):
    async with asyncio.timeout(SECONDS):
        while (now := await events.size()) < size:
            assert process.exit_code is None, process.last_lines()
            await asyncio.sleep(0.02)
    assert now == size


def write(path, first, count, mode="a"):
    with path.open(mode) as file:
        file.writelines(f'{{"n":{n}}}\n' for n in range(first, first + count))


async def test_a_source_killed_while_files_are_rotated_brings_every_line_once(client, arguments, unique, tmp_path):
    log, count = tmp_path / "app.log", 20_000
    events = await client.grid.map(f"events.{unique}")
    write(log, 0, count)
    with LeashedProcess("gridscore.cli", arguments, tmp_path / "first.out") as process:
        async with asyncio.timeout(SECONDS):
            while not await events.size():
                assert process.exit_code is None, process.last_lines()
                await asyncio.sleep(0.005)
        process._process.kill()
    write(log, count, 1_000)
    rotated = tmp_path / "app.log.1"
    log.rename(rotated)
    write(log, count + 1_000, 1_000)
    with LeashedProcess("gridscore.cli", arguments, tmp_path / "second.out") as process:
        await wait_for_size(events, count + 2_000, process)
        (tmp_path / "packing").write_bytes(gzip.compress(rotated.read_bytes()))
        rotated.unlink()
        (tmp_path / "packing").rename(tmp_path / "app.log.1.gz")
        for first in (count + 2_000, count + 3_000):  # the packed file has been looked at before the last lines come
            write(log, first, 1_000)
            await wait_for_size(events, first + 1_000, process)
    found = [json.loads(value.to_string())["n"] for value in await events.values()]
    assert sorted(found) == list(range(count + 4_000))


async def test_a_history_is_read_to_its_end_and_bad_lines_become_dead_letters(
    client, arguments, unique, tmp_path, monkeypatch
):
    write(tmp_path / "app.log", 0, 5_000)
    with (tmp_path / "app.log").open("a") as log:
        log.write("broken\n")
    monkeypatch.setenv("COLUMNS", "200")
    command = [sys.executable, "-m", "gridscore.cli", *arguments, "--until-end"]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert await (await client.grid.map(f"events.{unique}")).size() == 5_000
    total, letters = await list_letters(client.grid, f"log-{unique}", 10)
    assert total == 1
    assert f"{tmp_path / 'app.log'}:5001" in letters[0].dead.origin
