"""`gridscore watch`: results as they come, as a person or a script follows them."""

import asyncio
import json
import signal
import subprocess
import sys

import pytest

from gridscore.grid import connect
from gridscore.grid.writer import MapWriter


@pytest.fixture
def watch(cluster, unique):
    started = []
    where = ["--members", cluster.addresses[0], "--cluster-name", cluster.cluster_name]

    def start_watch(*arguments, target=f"results.watch-{unique}"):
        process = subprocess.Popen(
            [sys.executable, "-m", "gridscore.cli", "watch", target, *arguments, *where],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        started.append(process)
        return process

    yield start_watch
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def put(grid_settings, unique):
    """Puts results, as a worker would."""

    def put_results(*results, target=f"results.watch-{unique}"):
        async def main():
            async with await connect(grid_settings) as grid:
                await grid.map(target)
                texts = [(result["key"], json.dumps(value(result)).encode()) for result in results]
                await MapWriter(grid, target).put(texts)

        asyncio.run(main())

    return put_results


def value(result):
    return {"score": 0.75, "decision": "late", "model": "m", "version": 1, "sequence": 0, "scored_at": 0} | result


def wait_until_it_follows(process):
    line = process.stderr.readline()
    assert "from now on" in line, line + process.stderr.read()


def test_json_is_one_object_a_line_until_the_limit(watch, put):
    put()  # the map exists
    process = watch("--json", "--limit", "2")
    wait_until_it_follows(process)
    put({"key": "a", "carrier": "UA"}, {"key": "b"})
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    lines = {line["key"]: line for line in map(json.loads, out.splitlines())}
    assert lines.keys() == {"a", "b"}
    assert (lines["a"]["score"], lines["a"]["decision"], lines["a"]["carrier"]) == (0.75, "late", "UA")


def test_only_the_decision_that_was_asked_for_is_shown(watch, put):
    put()
    process = watch("--decision", "on time", "--limit", "1")
    wait_until_it_follows(process)
    put({"key": "no"}, {"key": "yes", "decision": "on time", "carrier": "DL"})
    out, _ = process.communicate(timeout=30)
    (line,) = out.splitlines()
    assert line.split()[:2] == ["yes", "0.7500"]
    assert "carrier=DL" in line


def test_it_begins_with_the_oldest_and_shows_only_what_was_asked_for(watch, put):
    put({"key": "a", "user": "u1", "late": True}, {"key": "b", "user": "u2", "late": True}, {"key": "c", "user": "u1"})
    process = watch("--from", "oldest", "--only", "user=u1", "--only", "late=true", "--limit", "1", "--json")
    out, rest = process.communicate(timeout=30)
    assert process.returncode == 0, rest
    assert [json.loads(line)["key"] for line in out.splitlines()] == ["a"]


def test_it_waits_for_what_is_not_there_yet_if_it_is_told_to(watch, put, unique):
    process = watch("--wait", "60", "--from", "oldest", "--limit", "1")
    assert process.stderr.readline() == f"There is no job and no map `results.watch-{unique}` yet; waiting for it.\n"
    put({"key": "a"})
    out, rest = process.communicate(timeout=30)
    assert out.split()[:1] == ["a"], rest


def test_a_wait_has_an_end(watch):
    process = watch("--wait", "1")
    _, rest = process.communicate(timeout=30)
    assert process.returncode == 3
    assert "error: There is no job and no map" in rest


def test_a_map_without_a_journal_can_be_watched_too(watch, put, unique):
    put(target=f"lookups.watch-{unique}")
    process = watch("--limit", "1", target=f"lookups.watch-{unique}")
    assert "has no journal" in process.stderr.readline()
    wait_until_it_follows(process)
    put({"key": "a"}, target=f"lookups.watch-{unique}")
    out, _ = process.communicate(timeout=30)
    assert out.split()[0] == "a"


def test_an_entry_that_is_not_a_result_is_shown_as_it_is(watch, put):
    put()
    process = watch("--limit", "3")
    wait_until_it_follows(process)
    put({"key": "a", "score": "high"}, {"key": "b\x1b[31m[/bold]", "score": None}, {"key": "c", "note": "x" * 5000})
    out, rest = process.communicate(timeout=30)
    assert process.returncode == 0, rest
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert lines.keys() == {"a", r"b\x1b[31m[/bold]", "c"}
    assert '"score": "high"' in lines["a"]
    assert "0.7500" in lines["c"]
    assert len(lines["c"]) < 300


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_it_cleanly(watch, put, number):
    put()
    process = watch("--json")
    wait_until_it_follows(process)
    process.send_signal(number)
    _, rest = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Traceback" not in rest


def test_a_name_that_is_neither_job_nor_map_is_an_error_for_people(watch):
    process = watch(target="no-such-job")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 3
    assert "There is no job and no map `no-such-job`" in errors
    assert "Traceback" not in errors
