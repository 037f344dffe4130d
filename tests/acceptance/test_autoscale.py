"""`gridscore autoscale`, as a user runs it: it grows with the load, shrinks when that is gone, and says why."""

import asyncio
import json
import signal
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import xgboost as xgb

from gridscore.client import connect
from gridscore.job import parse_job

JOB = """\
job: {name}
events: events.{name}
schema: {{a: float, b: float}}
features: {{a: a, b: b}}
model: {{name: {name}, alias: champion}}
results: results.{name}
"""


def model():
    rows = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
    matrix = xgb.DMatrix(rows, rows.sum(axis=1) > 0, feature_names=["a", "b"])
    return xgb.train({"objective": "binary:logistic", "nthread": 1}, matrix, 5)


async def put(client, name, begin, count):
    events = {f"e{i}": {"a": i % 7 / 3, "b": i % 11 / 5} for i in range(begin, begin + count)}
    await client.put_events(f"events.{name}", events)


async def submitted(cluster, name, count):
    async with connect(members=cluster.addresses, cluster_name=cluster.cluster_name) as client:
        await client.push_model(model(), name, alias="champion")
        await client.submit(parse_job(JOB.format(name=name), "test"))
        await put(client, name, 0, count)


@contextmanager
def running(cluster, *words):
    """The command; its error output, line by line, is `stderr` of what is given."""
    command = [sys.executable, "-m", "gridscore.cli", *words]
    connection = ["--members", cluster.addresses[0], "--cluster-name", cluster.cluster_name]
    process = subprocess.Popen([*command, *connection], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def lines_until(process, text):
    """Its lines up to the first that has the text in it."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError("".join(lines))


@pytest.mark.timeout(240)
async def test_latency_gets_a_second_worker_and_calm_takes_it_away(cluster, unique):
    name, sent = f"job-{unique}", 2_000
    await submitted(cluster, name, sent)
    options = ("--max", "2", "--latency", "0.1", "--calm", "3")
    async with connect(members=cluster.addresses, cluster_name=cluster.cluster_name) as client:
        with running(cluster, "autoscale", name, *options) as process:
            lines_until(process, "holds its first partitions")
            grown = asyncio.create_task(asyncio.to_thread(lines_until, process, "from 1 to 2: "))
            while not grown.done():
                await put(client, name, sent, 10)
                sent += 10
                await asyncio.sleep(0.5)
            await grown
            await asyncio.to_thread(lines_until, process, "from 2 to 1: ")
            assert await (await client.grid.map(f"results.{name}")).size() == sent
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
    with running(cluster, "autoscale", name, "--explain", "--json") as process:
        shown = json.loads(process.communicate()[0])
    # Before, it may have said that it waits for the first.
    assert [each["target"] for each in shown[-2:]] == [2, 1]
    assert "no backlog for" in shown[-1]["why"]


async def test_workers_elsewhere_are_enough_until_they_stop(cluster, unique):
    name = f"job-{unique}"
    await submitted(cluster, name, 100)
    with running(cluster, "worker", "--jobs", name) as elsewhere:
        lines_until(elsewhere, "holds its first partitions")
        with running(cluster, "autoscale", name, "--max", "1") as process:
            lines_until(process, f"1 worker scores for {name}")
            # The one of its own is not needed, and goes.
            lines_until(process, "Worker stopped.")
            elsewhere.send_signal(signal.SIGTERM)
            assert elsewhere.wait(60) == 0
            lines_until(process, "holds its first partitions")
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0


async def test_a_command_of_the_users_is_told_how_many_are_wanted(cluster, unique, tmp_path):
    name = f"job-{unique}"
    await submitted(cluster, name, 100)
    told = tmp_path / "told"
    script = tmp_path / "scale.py"
    script.write_text(f"import sys; print(*sys.argv[1:], file=open({str(told)!r}, 'a'))")
    words = f"{sys.executable} {script} {{job}} {{workers}}"
    with running(cluster, "autoscale", name, "--min", "2", "--exec", words) as process:
        # They are asked for once, and waited for.
        assert "0 of 2 workers score so far" in lines_until(process, "stays at 2: ")[-1]
        async with asyncio.timeout(60):
            while not told.exists() or told.read_text() != f"{name} 2\n":
                await asyncio.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--min", "4", "--max", "2"], "--min 4 is more than --max 2"),
        (["--exec", "kubectl scale"], "does not say `{workers}`"),
        (["--exec", "'"], "--exec: No closing quotation"),
        ([], "There is no job"),
        (["--max", "500"], "partitions, and a worker needs one: --max is "),
        (["--explain"], "There is no job"),
    ],
)
def test_what_makes_no_sense_is_refused(cluster, words, error):
    with running(cluster, "autoscale", "nobody", *words) as process:
        assert error in process.communicate()[1]
        assert process.returncode in (2, 6)
