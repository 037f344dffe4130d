"""Worker processes: started, shown, started again, given up, stopped; with children that only look like workers."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys

import psutil
import pytest

from gridscore.scoring.processes import GIVE_UP, WorkerProcesses, WorkersFailedError, core_count

WORKER = "import sys; print('ready', flush=True); print('scoring', file=sys.stderr, flush=True); sys.stdin.read()"
HANGS = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
)
FAILS = "import sys; sys.exit('error: No connection to the cluster.')"
LEASHED = (
    "import threading; from gridscore import leash; from gridscore.scoring import processes; done = threading.Event(); "
    "leash.hold(done.set, processes.STOP_SECONDS); processes.say_ready(); done.wait()"
)


class Crew:
    """Worker processes, and what they said."""

    def __init__(self, script, count, delays=(0.01,)):
        self.lines = []
        self.told = []
        command = [sys.executable, "-c", script]

        def show(number, line):
            self.lines.append((number, line))

        self.workers = WorkerProcesses(command, count, show=show, tell=self.told.append, delays=delays)
        self.running = asyncio.create_task(self.workers.run())

    async def until(self, condition):
        async with asyncio.timeout(30):
            while not condition():
                assert not self.running.done(), (self.lines, self.told)
                await asyncio.sleep(0.01)

    async def end(self):
        async with asyncio.timeout(30):
            return await self.running


@pytest.fixture
async def crew():
    crews = []

    def start(*arguments, **options):
        crews.append(Crew(*arguments, **options))
        return crews[-1]

    yield start
    for each in crews:
        each.workers.stop()
        each.workers.stop()
        with contextlib.suppress(WorkersFailedError):
            await each.end()


async def test_all_run_until_they_are_told_to_stop(crew):
    three = crew(WORKER, 3)
    await three.until(lambda: len(three.lines) == 3)
    pids = three.workers.pids
    assert len(set(pids)) == 3
    three.workers.stop()
    assert await three.end() == 0
    assert sorted(three.lines) == [(1, "scoring"), (2, "scoring"), (3, "scoring")]
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert three.told == []


async def test_what_is_wrong_from_the_start_is_said_once_and_ends_it(crew):
    four = crew(FAILS, 4)
    assert await four.end() == 1
    assert four.lines == [(0, "error: No connection to the cluster.")]


async def test_the_exit_code_of_the_first_is_passed_on(crew):
    assert await crew("import sys; sys.exit(4)", 4).end() == 4


async def test_a_first_child_that_is_killed_is_an_error(crew):
    two = crew("import os; os.kill(os.getpid(), 9)", 2)
    assert await two.end() == 1
    assert two.told == ["worker 1 was ended by signal 9 before it was connected"]


async def test_one_that_is_killed_is_started_again_and_the_others_go_on(crew):
    two = crew(WORKER, 2)
    await two.until(lambda: len(two.lines) == 2)
    first, second = two.workers.pids
    os.kill(first, signal.SIGKILL)
    await two.until(lambda: len(two.lines) == 3)
    assert two.told == ["worker 1 was ended by signal 9; it is restarted in 0.01 s"]
    assert two.workers.pids[1] == second
    assert two.workers.started == {first, *two.workers.pids}
    two.workers.stop()
    assert await two.end() == 0


async def test_the_pause_before_the_next_start_grows(crew, tmp_path):
    marker = tmp_path / "connected"
    script = f"import pathlib, sys; print('ready', flush=True) if not pathlib.Path({str(marker)!r}).exists() else 0; "
    script += f"pathlib.Path({str(marker)!r}).touch(); sys.exit('error: gone')"
    one = crew(script, 1, delays=(0.01, 0.02, 0.03))
    with pytest.raises(WorkersFailedError, match=f"soon after its start, {GIVE_UP} times in a row") as failure:
        await one.end()
    assert failure.value.exit_code == 1
    assert [line.rpartition(" in ")[2] for line in one.told] == ["0.01 s", "0.02 s", "0.03 s", "0.03 s"]
    assert len({line for _, line in one.lines}) == 1
    assert len(one.lines) == 2  # connected once, and then the same again, said once


async def test_one_place_that_fails_does_not_end_the_others(crew, tmp_path):
    marker = tmp_path / "begun"
    script = f"import pathlib, sys; m = pathlib.Path({str(marker)!r}); begun = m.exists(); m.touch(); "
    script += "print('ready', flush=True); sys.exit(3) if begun else sys.stdin.read()"
    two = crew(script, 2)
    await two.until(lambda: len(two.told) > GIVE_UP + 2)
    assert all(line.startswith("worker 2 ended with code 3") for line in two.told)
    two.workers.stop()
    await two.end()


async def test_all_may_be_signalled_at_once(crew):
    two = crew(WORKER, 2)
    await two.until(lambda: len(two.lines) == 2)
    two.workers.stop()
    for pid in two.workers.pids:
        os.kill(pid, signal.SIGTERM)
    assert await two.end() == 0


async def test_asked_twice_none_is_waited_for(crew):
    two = crew(HANGS, 2)
    await two.until(lambda: len(two.workers.pids) == 2)
    pids = two.workers.pids
    two.workers.stop()
    two.workers.stop()
    assert await two.end() == 130
    assert not any(psutil.pid_exists(pid) for pid in pids)


async def test_with_none_to_run_it_waits_for_more(crew):
    one = crew(WORKER, 1)
    await one.until(lambda: len(one.lines) == 1)
    one.workers.resize(0)
    await one.until(lambda: not one.workers.pids)
    one.workers.resize(1)
    await one.until(lambda: len(one.lines) == 2)
    one.workers.stop()
    assert await one.end() == 0


async def test_one_that_takes_the_place_of_a_first_that_never_connected_does_not_wait_for_it(crew, tmp_path):
    marker = tmp_path / "begun"
    script = f"import pathlib, sys; m = pathlib.Path({str(marker)!r}); begun = m.exists(); m.touch(); "
    script += "print('ready', flush=True) if begun else 0; sys.stdin.read()"
    one = crew(script, 1)
    await one.until(marker.exists)
    one.workers.resize(0)
    one.workers.resize(1)  # while the first is on its way out
    await one.until(one.workers._connected.is_set)
    one.workers.stop()
    assert await one.end() == 0


async def test_nothing_to_run_ends_when_it_is_told_to(crew):
    none = crew(WORKER, 1)
    none.workers.resize(0)
    await none.until(lambda: not none.workers.pids)
    none.workers.stop()
    assert await none.end() == 0


PARENT = f"""
import asyncio, sys
from gridscore.scoring.processes import WorkerProcesses

async def main():
    crew = WorkerProcesses([sys.executable, "-c", {LEASHED!r}], 2, show=print, tell=print)
    running = asyncio.create_task(crew.run())
    while len(crew.pids) < 2:
        await asyncio.sleep(0.01)
    print(*crew.pids, flush=True)
    await running

asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["kill", "terminate"])
def test_children_do_not_outlive_a_parent_that_is_killed(how):
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    try:
        children = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(children) == 2
    finally:
        getattr(parent, how)()
        parent.communicate()
    gone, alive = psutil.wait_procs(children, timeout=30)
    assert len(gone) == 2
    assert not alive


def test_there_is_a_core():
    assert core_count() >= 1
