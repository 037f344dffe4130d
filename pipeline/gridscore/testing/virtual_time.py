"""Virtual time: event loops whose clock jumps to the next timer, so that hours of leases and pauses take moments.

Each loop stands for a process. All run in the calling thread, a step each in turn, and share one clock. A process can
be paused (its loop is not stepped while time goes on) and abandoned (nothing of it runs any more). What code gives to a
thread is done at once, on the spot, so that nothing depends on the scheduling of the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from asyncio import events
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import types
    from collections import deque
    from collections.abc import Callable, Coroutine, Iterator

_T = TypeVar("_T")

_BEGIN = 1_000.0
_EPOCH = 1_700_000_000.0
_TURNS = 200_000  # steps without any time passing after which we say that something spins
_CANCELLATIONS = 1_000  # how often what does not want to end is cancelled
_VIRTUAL = ("gridscore.", "hazelcast.internal.asyncio_")


class NothingLeftError(Exception):
    """Nothing will ever happen again, and what was waited for has not."""


class _NoSelector:
    """There are no sockets in virtual time. A loop that runs by itself jumps over what it would have waited."""

    def __init__(self, clock: VirtualTime) -> None:
        self._clock = clock
        self.stepping = False

    def select(self, timeout: float | None) -> list[Any]:
        if not self.stepping:
            if timeout is None:
                raise NothingLeftError
            self._clock.now += timeout
        return []

    def close(self) -> None:
        """Nothing to close."""


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop in virtual time. Get one from `VirtualTime.loop`.

    Attributes:
        name: Of the process that it stands for.
        skew: Seconds by which the wall clock of that process is ahead of others.
        paused: Whether nothing of the process runs while time goes on.
        ended: Whether it is only being cleared away: nobody is told of errors.
    """

    # What asyncio's own base class has, and its type stubs do not know.
    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]
    _stopping: bool
    _run_once: Callable[[], None]
    _thread_id: int | None

    def __init__(self, clock: VirtualTime, name: str, skew: float) -> None:
        super().__init__()
        self._clock = clock
        self._selector = _NoSelector(clock)
        self.name, self.skew = name, skew
        self.paused = False
        self.ended = False

    def time(self) -> float:
        """Seconds of the clock that all loops share."""
        return self._clock.now

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]  # noqa: ARG002 -- there are no threads
        """Do it at once."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 -- it is the caller's, who awaits the future
            future.set_exception(error)
        return future

    def due(self) -> float:
        """When something is to be done: now, or at the next timer; infinite if never."""
        if self._ready or self._stopping:
            return self._clock.now
        return max(self._scheduled[0].when(), self._clock.now) if self._scheduled else float("inf")

    def step(self) -> None:
        """Do what is due, once round."""
        # What BaseEventLoop.run_forever does, for one turn.
        self._thread_id = threading.get_ident()
        before = events._get_running_loop()  # noqa: SLF001
        events._set_running_loop(self)  # noqa: SLF001
        self._selector.stepping = True
        try:
            self._run_once()
        finally:
            self._selector.stepping = False
            events._set_running_loop(before)  # noqa: SLF001
            self._thread_id = None

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Keep what went wrong where nobody waited for it, to be looked at."""
        if not self.ended:
            self._clock.unhandled.append((self.name, context))
            super().call_exception_handler(context)

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Everything happens in one thread: there is nobody to wake."""


class VirtualTime:
    """One clock, and the loops that live by it.

    Args:
        began_at: The time of day that it begins with, in seconds since 1970.

    Attributes:
        epoch: Seconds since 1970 when `now` was 0.
        now: Seconds; begins at an arbitrary point, as the monotonic clock does.
        unhandled: Name of the loop and context of every exception that nobody took.
    """

    def __init__(self, began_at: float = _EPOCH + _BEGIN) -> None:
        self.now = _BEGIN
        self.epoch = began_at - _BEGIN
        self.unhandled: list[tuple[str, dict[str, Any]]] = []
        self._loops: list[VirtualLoop] = []
        self._abandoned: dict[VirtualLoop, set[asyncio.Task[Any]]] = {}

    def loop(self, name: str, *, skew: float = 0.0) -> VirtualLoop:
        """A loop for another process."""
        made = VirtualLoop(self, name, skew)
        self._loops.append(made)
        return made

    def abandon(self, loop: VirtualLoop) -> None:
        """Let nothing of a process run any more."""
        self._loops.remove(loop)
        # Its tasks are kept: one that is collected before its end would go on to clean up.
        self._abandoned[loop] = asyncio.all_tasks(loop)

    def run(self, coroutine: Coroutine[Any, Any, _T], loop: VirtualLoop, *, seconds: float = 3_600.0) -> _T:
        """Run a coroutine on a loop to its end, while the other loops run as well.

        Raises:
            TimeoutError: It did not end in so many virtual seconds.
            NothingLeftError: It will never end.
        """
        task = loop.create_task(coroutine)
        if not self.run_until(task.done, seconds=seconds):
            task.cancel()
            raise TimeoutError(f"{task.get_coro()} on {loop.name} did not end in {seconds:g} s")
        return task.result()

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.run_until(lambda: False, seconds=seconds, to_the_end=True)

    def run_until(self, condition: Callable[[], bool], *, seconds: float, to_the_end: bool = False) -> bool:
        """Let time pass until a condition holds; False if it did not in so many seconds.

        Args:
            condition: Looked at after every turn.
            seconds: At most.
            to_the_end: Whether time passes to the end even if nothing happens any more.

        Raises:
            NothingLeftError: Nothing is left that could happen.
            RuntimeError: Something spins: it goes on and on, and no time passes.
        """
        until, turns = self.now + seconds, 0
        while not condition():
            running = [(loop, loop.due()) for loop in self._loops if not loop.paused]
            when = min((due for _, due in running), default=float("inf"))
            if when > until:
                if when == float("inf") and not to_the_end:
                    raise NothingLeftError
                self.now = until
                return False
            turns = 0 if when > self.now else turns + 1
            if turns > _TURNS:
                busy = ", ".join(loop.name for loop, due in running if due <= self.now)
                raise RuntimeError(f"no time passes while these go on and on: {busy}")
            self.now = when
            for loop, due in running:
                if due <= when and loop in self._loops and not loop.paused:
                    loop.step()
        return True

    @contextlib.contextmanager
    def patched(self) -> Iterator[None]:
        """Give Gridscore and the Hazelcast client the virtual clock in place of the machine's, while it is entered.

        Raises:
            RuntimeError: They have that of another `VirtualTime`, which was not left.
        """
        clock = _Clock(self)
        patched: list[types.ModuleType] = []
        ours = [module for name, module in sys.modules.items() if name.startswith(_VIRTUAL) and name != __name__]
        if any(isinstance(getattr(module, "time", None), _Clock) for module in ours):
            raise RuntimeError("another virtual time is in force: close the lab, or leave what `patched` gave, first")
        for module in ours:
            if getattr(module, "time", None) is time:
                module.time = clock  # type: ignore[attr-defined]
                patched.append(module)
        try:
            yield
        finally:
            for module in patched:
                module.time = time  # type: ignore[attr-defined]

    def close(self) -> None:
        """Close every loop, the abandoned ones as well; what is not done there is cancelled, and no time passes."""
        loops = (*self._loops, *self._abandoned)
        for loop in loops:
            loop.ended = True
            for _ in range(_CANCELLATIONS):
                tasks = asyncio.all_tasks(loop)
                if not tasks:
                    break
                for task in tasks:
                    task.cancel()
                while loop.due() <= self.now:
                    loop.step()
        for loop in loops:
            loop.close()
        self._loops.clear()
        self._abandoned.clear()


class _Clock:
    """The module `time`, with the clocks that matter being virtual. What CPU time is measured with stays real."""

    def __init__(self, clock: VirtualTime) -> None:
        self._clock = clock

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def monotonic(self) -> float:
        return self._clock.now

    def time(self) -> float:
        running = events._get_running_loop()  # noqa: SLF001
        return self._clock.epoch + self._clock.now + getattr(running, "skew", 0.0)

    def time_ns(self) -> int:
        return int(self.time() * 1e9)
