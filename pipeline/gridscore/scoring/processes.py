"""Several worker processes on one machine: started, watched, restarted, and stopped together.

A Python process scores on one core, so a machine with N cores runs N workers. Each is a child process; they know of
each other only through the grid.

Each child holds a leash: its standard input is a pipe that only the parent holds and nobody writes to. It closes when
the parent wants the child to stop, and when the parent dies, even by kill -9; the child then stops as if by SIGTERM,
and gives its partitions back. The child says once on its standard output that it is connected; its standard error is
for people, and passed on line by line. No system-specific signal is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gridscore.errors import GridscoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

READY = "ready"  # what a child says once it is connected
STOP_SECONDS = 20.0  # how long a child may take to stop in order; longer only if its cluster hangs
# Seconds before a child that died is restarted the first time, the second time and so on.
DELAYS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)

QUICK_SECONDS = 10.0  # a child that lived no longer, or was never connected, has died quickly
GIVE_UP = 5  # quick deaths in a row, of every child, after which they are not restarted
_HELD_LINES = 200
_LINE_BYTES = 1 << 20


class WorkersFailedError(GridscoreError):
    """The worker processes end soon after their start; `exit_code` is what the last one ended with."""

    def __init__(self, message: str, hint: str, exit_code: int) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code if exit_code > 0 else 1


def core_count() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def say_ready() -> None:
    """In a child: tell the parent that we are connected."""
    with contextlib.suppress(OSError):  # the parent has ended, which the leash will tell
        os.write(1, READY.encode() + b"\n")


@dataclass(slots=True, eq=False)
class _Child:
    """A slot for one worker, and its present process."""

    number: int
    process: asyncio.subprocess.Process | None = None
    connected: bool = False  # whether the process has said so
    # What it said before that, not shown yet.
    held: deque[str] = field(default_factory=lambda: deque(maxlen=_HELD_LINES))
    quick_deaths: int = 0  # how often in a row the process died quickly
    exit_code: int = 0
    leaving: asyncio.Event = field(default_factory=asyncio.Event)  # set once this slot is given up


class WorkerProcesses:
    """Worker processes of this machine.

    The first starts alone, so that wrong settings, or trouble with the cluster, are reported once.
    """

    def __init__(
        self,
        command: Sequence[str],  # what a child runs; it must hold the leash and say when it is ready
        count: int,
        *,
        # Further words of a child's command, given its number.
        own: Callable[[int], Sequence[str]] = lambda _number: (),
        # Prints a line of a child, given its number, from 1 (0: what the very first says before it is connected).
        show: Callable[[int, str], None],
        tell: Callable[[str], None],  # prints a line of ours
        delays: Sequence[float] = DELAYS,
    ) -> None:
        self._command, self._own = list(command), own
        self._children = [_Child(number) for number in range(1, count + 1)]
        self._show, self._tell, self._delays = show, tell, delays
        # The processes that ran at some time: the grid has records of ended ones for some seconds.
        self.started: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._stopping = asyncio.Event()
        self._at_once = asyncio.Event()
        self._connected = asyncio.Event()
        self._last_words: list[str] = []

    def stop(self) -> None:
        """Stop all in order; called again, at once."""
        if self._stopping.is_set():
            self._at_once.set()
        self._stopping.set()
        self._changed.set()

    @property
    def count(self) -> int:
        """How many there should be."""
        return sum(not child.leaving.is_set() for child in self._children)

    def resize(self, count: int) -> None:
        """Run this many from now on: start new ones, or let the last ones give their partitions back and end.

        With none, `run` waits for more.
        """
        staying = [child for child in self._children if not child.leaving.is_set()]
        for child in staying[count:]:
            child.leaving.set()
        for _ in range(count - len(staying)):
            free = set(range(1, len(self._children) + 2)) - {child.number for child in self._children}
            child = _Child(min(free))
            self._children.append(child)
            self._tasks.add(asyncio.create_task(self._keep(child)))
        self._changed.set()

    @property
    def pids(self) -> list[int]:
        return [child.process.pid for child in self._children if child.process is not None]

    async def run(self) -> int:
        """Keep all running until told to stop; returns the exit code.

        That is 0 if all stopped in order, 130 if they were told to stop at once, and otherwise what a child ended with:
        the first one, if it was never connected.

        Raises WorkersFailedError if they end soon after their start; their own error has been shown.
        """
        self._tasks = {asyncio.create_task(self._keep(child)) for child in self._children}
        try:
            while self._tasks or not self._stopping.is_set():
                self._changed.clear()
                changed = asyncio.create_task(self._changed.wait())
                ended, _ = await asyncio.wait({*self._tasks, changed}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                for task in self._tasks & ended:
                    self._tasks.discard(task)
                    task.result()
        finally:
            self._stopping.set()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._at_once.is_set():
            return 130
        codes = [child.exit_code for child in self._children if child.exit_code]
        return max(1, *codes) if codes else 0

    async def _keep(self, child: _Child) -> None:
        """Keep a process running in one slot."""
        loop = asyncio.get_running_loop()
        while not self._connected.is_set() and any(each.number < child.number for each in self._children):
            if self._stopping.is_set() or child.leaving.is_set():
                break
            await _first(self._connected, self._stopping, child.leaving, self._changed)
        while not (self._stopping.is_set() or child.leaving.is_set()):
            began = loop.time()
            code = child.exit_code = await self._live(child)
            if child.leaving.is_set():
                break
            if self._stopping.is_set():
                if code == -signal.SIGTERM:  # somebody signalled all of us before it could listen
                    child.exit_code = 0
                return
            if not self._connected.is_set():
                self._never_began(child, code)
                return
            quick = not child.connected or loop.time() - began < QUICK_SECONDS
            child.quick_deaths = child.quick_deaths + 1 if quick else 0
            if all(each.quick_deaths >= GIVE_UP for each in self._children):
                raise WorkersFailedError(
                    f"Every worker process {_ending(code)} soon after its start, {GIVE_UP} times in a row.",
                    "Their own messages are above.",
                    code,
                )
            delay = self._delays[min(max(child.quick_deaths - 1, 0), len(self._delays) - 1)]
            self._tell(f"worker {child.number} {_ending(code)}; it is restarted in {delay:g} s")
            await _first(self._stopping, child.leaving, seconds=delay)
        if child.leaving.is_set():
            self._children.remove(child)
            self._changed.set()  # the next is the first now

    def _never_began(self, child: _Child, code: int) -> None:
        """The very first has ended before it was connected: so do we, and what it said is our error."""
        if code <= 0:
            self._tell(f"worker {child.number} {_ending(code)} before it was connected")
            child.exit_code = 1
        self._stopping.set()

    async def _live(self, child: _Child) -> int:
        """Start a process and pass on what it says until it has ended; returns its exit code."""
        child.connected = False
        child.held.clear()
        process = child.process = await asyncio.create_subprocess_exec(
            *self._command,
            *self._own(child.number),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            limit=_LINE_BYTES,
            # Ctrl-C in a terminal goes to all processes in front; ours are stopped in order, by us.
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        self.started.add(process.pid)
        listening = [
            asyncio.create_task(self._listen(child, process.stdout)),
            asyncio.create_task(self._listen(child, process.stderr)),
        ]
        ended = asyncio.create_task(process.wait())
        try:
            await _first(ended, self._stopping, child.leaving)
            if not ended.done() and process.stdin is not None:
                process.stdin.close()
                await _first(ended, self._at_once, seconds=STOP_SECONDS + 2)
        finally:
            if not ended.done():
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                if not self._at_once.is_set():
                    self._tell(f"worker {child.number} did not stop and was killed; its leases run out")
            code = await ended
            await asyncio.gather(*listening, return_exceptions=True)
            child.process = None
            self._show_held(child)
        return code

    async def _listen(self, child: _Child, stream: asyncio.StreamReader | None) -> None:
        while stream is not None:
            try:
                data = await stream.readline()
            except ValueError:
                continue  # longer than any line of ours; the rest follows
            if not data:
                return
            line = data.decode(errors="backslashreplace").rstrip("\r\n")
            if line == READY:
                child.connected = True
                self._connected.set()
                self._show_held(child)
            elif child.connected:
                self._show(child.number, line)
            else:
                child.held.append(line)

    def _show_held(self, child: _Child) -> None:
        """Show what a process said before it was connected; once, if the one before said the same."""
        words = list(child.held)
        child.held.clear()
        if not child.connected:
            if words == self._last_words:
                return
            self._last_words = words
        for line in words:
            self._show(child.number if self._connected.is_set() else 0, line)


async def _first(*what: asyncio.Event | asyncio.Task[int], seconds: float | None = None) -> None:
    """Wait for the first event or task; the tasks go on."""
    waits = [asyncio.create_task(each.wait()) for each in what if isinstance(each, asyncio.Event)]
    tasks = [each for each in what if not isinstance(each, asyncio.Event)]
    try:
        await asyncio.wait([*waits, *tasks], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def _ending(code: int) -> str:
    """How a process ended, in words."""
    if code < 0:
        return f"was ended by signal {-code}"
    return f"ended with code {code}"
