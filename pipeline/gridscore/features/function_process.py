"""Python functions of users in a process of their own, which a worker starts, asks, and ends when it hangs.

What runs there, and how they speak, is in `gridscore.function_calls`. An event fails only if the function, called with
it alone, ended one new process after another, in which calls that were answered before are answered again. So its
neighbours never do, however many processes it takes to find it, nor those that come while somebody kills them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import psutil

from gridscore import function_calls
from gridscore.errors import FunctionError
from gridscore.features.functions import Functions
from gridscore.function_calls import (
    COLD,
    LENGTH,
    Failure,
    Question,
    Start,
    distribution_of,
    encode,
    packed,
    reply_of,
    require_allowed,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from gridscore.features.columns import EventColumns
    from gridscore.features.functions import Applied, Request
    from gridscore.features.lookup_table import LookupTable
    from gridscore.function_calls import Answer, Call
    from gridscore.job import Job

_log = logging.getLogger(__name__)

MEMORY = 2 << 30  # bytes of data that the process may have

MOST_ROWS = 4_096
MOST_BYTES = 256 << 20  # bytes of a message at most
TICK = 0.25  # seconds between looks at a call that lasts
ILL_AFTER = 8  # ends in a row, without an answer between, after which something is wrong with more than a few events
START_SECONDS = 300.0
WAIT_SECONDS = 30.0  # seconds that a call may sleep or wait
_WAITING = (psutil.STATUS_SLEEPING, psutil.STATUS_IDLE, psutil.STATUS_DISK_SLEEP)
_PARTS = 64  # a new process costs as much as hundreds of calls
_LONGEST_PAUSE = 10.0
_END_SECONDS = 10.0
_MOST_WARMING = 16 << 20  # bytes of a question that is kept to be repeated
# Processes that an event alone may end; more if another process, or the system for lack of memory, may have done it.
_TRIES, _TRIES_FROM_OUTSIDE = 2, 3
_FROM_OUTSIDE = {-each for each in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL, signal.SIGTERM)}
_PASSED = {"HOME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "TZ", "VIRTUAL_ENV"}
_PASSED_FROM = ("LC_", "MKL_", "NUMBA_", "OMP_", "OPENBLAS_", "PYTHON")  # how their names begin


class _Asked:
    """A call that is under way."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds  # that it may wait
        self.is_overdue = False


class FunctionProcess(Functions):
    """The functions of a job in a process of their own; close it in the end.

    Args:
        job: Its name is for the log.
        allowed: Modules whose functions may be called, with all below them.
    """

    def __init__(
        self, job: Job, tables: Mapping[str, LookupTable], allowed: Collection[str], *, memory: int = MEMORY
    ) -> None:
        super().__init__(job, tables)
        self._job, self._allowed, self._memory = job.name, list(allowed), memory
        self.most = [MOST_ROWS] * len(self.calls)
        # Why it does not get on; empty if it does.
        self.trouble = ""
        self._is_stopped = False
        self._process: asyncio.subprocess.Process | None = None
        self._watching: asyncio.Task[None] | None = None
        self._ended = 0  # times in a row, without an answer between
        self._under_way: _Asked | None = None
        self._warming: dict[int, bytes] = {}  # of each function, a question that it has answered
        self._asking = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """Of the process; None if there is none."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the process, if it does not run, and import the functions there.

        Raises:
            FunctionError: One is not allowed here, or cannot be imported.
        """
        async with self._asking:
            await self._started()
        # Who asks later which distributions have them finds it known, and the worker's loop does not wait.
        await asyncio.to_thread(lambda: [distribution_of(call.target) for call in self.calls])

    async def apply(self, events: EventColumns) -> Applied:
        """Call the functions for these events.

        Raises:
            FunctionError: The process cannot be started.
        """
        async with self._asking:
            steps, answer = self._steps(events), None
            while True:
                try:
                    request = steps.send(answer)  # type: ignore[arg-type]
                except StopIteration as end:
                    if not self._is_stopped:
                        self.trouble = ""  # nothing waits: what it could not do is rejected
                    result: Applied = end.value
                    return result
                answer = await self._answer(request)

    async def close(self) -> None:
        """End the process."""
        await self._end()

    async def _answer(self, request: Request) -> Answer:
        number, call, arrays, rows, is_alone = request
        try:
            message = encode(Question(number, rows, list(map(packed, arrays))))
        except ValueError as error:  # half of a surrogate pair is not text
            return Failure(f"was not called: {error}")
        if len(message) > MOST_BYTES:
            return Failure(f"was not called: what it takes is more than {MOST_BYTES:,} bytes")
        clock = asyncio.get_running_loop().time
        tried = 0
        while True:
            tried += 1
            process = await self._started()
            began = clock()
            try:
                reply = reply_of(await self._exchange(process, message, _Asked(WAIT_SECONDS)))
                columns = [np.frombuffer(each) for each in reply.columns]
                if not reply.why and [len(each) for each in columns] != [rows] * len(call.columns):
                    raise ValueError("it answered something else")  # noqa: TRY301 -- somebody writes to our pipe
            except (ValueError, EOFError, OSError) as error:
                code, is_slow, why = await self._ended_by(error, call, is_warm=number in self._warming)
                if is_slow:
                    self.most[number] = max(1, min(self.most[number], rows) // _PARTS)
                elif code in _FROM_OUTSIDE and is_alone and tried < _TRIES_FROM_OUTSIDE:
                    continue
                if is_alone and tried < _TRIES:
                    continue
                return Failure(why, _PARTS)
            except BaseException:
                await self._end()  # its answer would be taken for the next one's
                raise
            self._ended, self.trouble = 0, ""
            if reply.why:
                return Failure(reply.why)
            if number not in self._warming and len(message) <= _MOST_WARMING:
                self._warming[number] = message
            if rows >= self.most[number] and clock() - began < call.cpu / 4:
                self.most[number] = min(2 * rows, MOST_ROWS)
            return columns

    async def _ended_by(self, error: BaseException, call: Call, *, is_warm: bool) -> tuple[int | None, bool, str]:
        """End the process after an error; returns its code, whether it took too long, and what that was."""
        asked, code = self._under_way, await self._end()
        is_overdue = asked is not None and asked.is_overdue
        self._ended += 1
        why = f"has ended its process ({_named(code)})"
        if is_overdue:
            why = f"gave no answer in {WAIT_SECONDS:g} s, and its process was ended"
        elif code == -signal.SIGPROF:
            seconds = call.cpu * (1 if is_warm else COLD)
            why = f"used more than {seconds:g} s of processor time, and its process was ended"
        elif isinstance(error, ValueError):
            why = f"was not understood, and its process was ended: {error}"
        if self._ended >= ILL_AFTER:
            self.trouble = f"`{call.target}` {why}, {self._ended} times in a row; its events become dead letters"
        if self._ended <= ILL_AFTER:  # `trouble` says the rest
            _log.warning("%s: `%s` %s", self._job, call.target, why, extra={"action": "function_ended"})
        return code, is_overdue or code == -signal.SIGPROF, why

    async def _started(self) -> asyncio.subprocess.Process:
        if self._process is not None and self._process.returncode is None:
            return self._process
        for call in self.calls:
            require_allowed(call.target, self._allowed)
        if self._ended:
            await asyncio.sleep(min(0.05 * 2.0 ** min(self._ended, 20), _LONGEST_PAUSE))
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-c", f"from {function_calls.__name__} import main; main()"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for its parent
            )
            self._watching = asyncio.create_task(self._watch(process))
            start = Start(self.calls, self._allowed, self._memory, os.getpid())
            async with asyncio.timeout(START_SECONDS):
                reply = reply_of(await self._exchange(process, encode(start), _Asked(START_SECONDS)))
                # What is slow at first is over then; and what does not answer what it has answered is ill.
                for question in () if reply.why else self._warming.values():
                    await self._exchange(process, question, _Asked(WAIT_SECONDS))
        except (TimeoutError, ValueError, EOFError, OSError) as error:
            why = _named(code) if (code := await self._end()) is not None else f"{error}"
            self._ended += 1
            what = "does not start, or no longer answers a call that it has answered"
            self.trouble = f"the process for its Python functions {what}: {why}"
            raise FunctionError(
                f"The process for Python functions of the job `{self._job}` does not start: {why}.",
                "It imports them, and calls them with events that they have had. Does that end it, wait for something, "
                f"or take longer than {START_SECONDS:.0f} s?",
            ) from None
        except BaseException:
            await self._end()
            raise
        if reply.why:
            await self._end()
            self._ended, self.trouble = self._ended + 1, reply.why
            raise FunctionError(reply.why, reply.hint)
        return process

    async def _exchange(self, process: asyncio.subprocess.Process, message: bytes, asked: _Asked) -> bytes:
        """Send a message, and read the answer.

        Raises:
            EOFError: The process has ended, or was ended after it had waited for so long.
            OSError: The same.
            ValueError: The answer is too long.
        """
        questions, answers = process.stdin, process.stdout
        if questions is None or answers is None:
            raise EOFError
        self._under_way = asked
        questions.write(len(message).to_bytes(LENGTH, "little") + message)
        await questions.drain()
        length = int.from_bytes(await answers.readexactly(LENGTH), "little")
        if length > MOST_BYTES:
            raise ValueError(f"an answer of {length:,} bytes")
        answer = await answers.readexactly(length)
        self._under_way = None
        return answer

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """End the process if a call of it sleeps or waits for too long.

        Looks are counted, not seconds: while this machine or this process is paused, nobody looks. A process that is
        stopped, or waits for a processor, does not wait for anything else.
        """
        seen, idle, used = None, 0.0, 0.0
        while process.returncode is None:
            await asyncio.sleep(TICK)
            asked, now, status = self._under_way, *_state_of(process.pid)
            self._is_stopped = asked is not None and status == psutil.STATUS_STOPPED
            if asked is not seen:
                idle = 0.0
            elif self._is_stopped:
                self.trouble = f"the process {process.pid} for its Python functions is stopped (SIGSTOP)"
            elif asked is not None and status in _WAITING and now == used:
                idle += TICK
                if idle >= asked.seconds:
                    asked.is_overdue = True
                    break
            seen, used = asked, now
        _kill(process)  # and what it has started, which may hold its pipes

    async def _end(self) -> int | None:
        """End the process; returns its code, None if there was none."""
        process, self._process, self._under_way = self._process, None, None
        if process is None:
            return None
        if self._watching is not None:
            self._watching.cancel()
        _kill(process)
        try:
            async with asyncio.timeout(_END_SECONDS):
                return await asyncio.shield(process.wait())
        except TimeoutError:  # it waits for a disk that is gone, where no signal ends it
            return None


def _environment() -> dict[str, str]:
    """What a function may see of this process's environment, in which there may be passwords."""
    passed = {*_PASSED, *os.environ.get("GRIDSCORE_PYTHON_ENV", "").split(",")}
    return {name: value for name, value in os.environ.items() if name in passed or name.startswith(_PASSED_FROM)}


def _state_of(pid: int) -> tuple[float, str]:
    """Seconds of processor time that a process has used, and what it does."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            times = process.cpu_times()
            return times.user + times.system, process.status()
    except psutil.Error:
        return 0.0, ""


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _named(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"code {code}"
