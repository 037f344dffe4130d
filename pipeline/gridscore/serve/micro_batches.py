"""Micro-batches of requests: whatever has come while the last batch was scored is the next. There is no timer.

The queue is bounded, and what nobody waits for any more is not scored. All requests share one timer of the event loop:
one for each would cost as much as the scoring.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from starlette.requests import ClientDisconnect

from gridscore.errors import GridscoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_Work = TypeVar("_Work")
_Answer = TypeVar("_Answer")
_Answers = TypeVar("_Answers", bound="_Sliced")

BATCH = 4_096  # events after which a batch takes no further request, and the most of one request
BATCH_BYTES = 8 << 20  # the same in bytes
_ANSWERED = 10_000  # answered questions among the deadlines, above which these are cleaned up


class SaturatedError(GridscoreError):
    """More is asked at once than may wait."""


class _Sliced(Protocol):
    """A list, or rows."""

    def __getitem__(self, part: slice, /) -> Any: ...


@dataclass(slots=True, eq=False)
class Question(Generic[_Work, _Answer]):
    """What one request wants to know."""

    work: _Work
    count: int  # events of it
    size: int  # their bytes
    has_left: Callable[[], bool]  # whether nobody waits for the answer any more
    answer: asyncio.Future[_Answer]  # to be set

    def fail(self, error: Exception) -> None:
        """Give it an error instead, unless its time is over."""
        if not self.answer.done():
            self.answer.set_exception(error)


def answer(questions: Iterable[Question[_Work, _Answers]], answers: _Answers) -> None:
    """Give each question of a batch its part of the answers; those whose time is over get none."""
    begin = 0
    for each in questions:
        if not each.answer.done():
            each.answer.set_result(answers[begin : begin + each.count])
        begin += each.count


class MicroBatches(Generic[_Work, _Answer]):
    """Takes questions of requests, and gives them in batches to whoever answers them.

    `most`: events that may wait; `most_bytes`: the same in bytes.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._questions: deque[Question[_Work, _Answer]] = deque()
        self._arrived = asyncio.Event()
        self._failure: GridscoreError | None = None
        self._deadlines: list[tuple[float, int, asyncio.Future[_Answer]]] = []  # a heap; answered ones are among them
        self._number = 0  # of the questions
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self.waiting = self.size = 0

    async def ask(self, work: _Work, count: int, size: int, has_left: Callable[[], bool], seconds: float) -> _Answer:
        """The answer, once it is there. To cancel this withdraws the question.

        Raises TimeoutError if it took longer than these seconds; SaturatedError if too much waits already;
        ClientDisconnect if the client has left; GridscoreError if it cannot be answered.
        """
        if self._failure is not None:
            raise self._failure
        if self.waiting and (self.waiting + count > self._most or self.size + size > self._most_bytes):
            raise SaturatedError(f"This server is saturated: {self.waiting:,} events wait to be scored.")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[_Answer] = loop.create_future()
        self._expect(loop, loop.time() + seconds, answer)
        self._questions.append(Question(work, count, size, has_left, answer))
        self.waiting += count
        self.size += size
        self._arrived.set()
        return await answer

    async def take(self) -> list[Question[_Work, _Answer]]:
        """What has come; waits until there is something."""
        while True:
            taken: list[Question[_Work, _Answer]] = []
            count = size = 0
            while self._questions and count < BATCH and size < BATCH_BYTES:
                first = self._questions.popleft()
                self.waiting -= first.count
                self.size -= first.size
                if first.answer.done():
                    continue  # its time is over
                if first.has_left():
                    first.answer.set_exception(ClientDisconnect())
                    continue
                count, size = count + first.count, size + first.size
                taken.append(first)
            if taken:
                return taken
            if not self._questions:
                self._arrived.clear()
                await self._arrived.wait()

    def _expect(self, loop: asyncio.AbstractEventLoop, until: float, answer: asyncio.Future[_Answer]) -> None:
        """Let an answer fail if it is not there in time."""
        if len(self._deadlines) > 2 * self.waiting + _ANSWERED:
            self._deadlines = [each for each in self._deadlines if not each[2].done()]
            heapq.heapify(self._deadlines)
        self._number += 1
        heapq.heappush(self._deadlines, (until, self._number, answer))
        if self._timer is None or until < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer, self._timer_at = loop.call_at(until, self._expire, loop), until

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer, now = None, loop.time()
        while self._deadlines:
            until, _, answer = self._deadlines[0]
            if not answer.done():
                if until > now:
                    self._timer, self._timer_at = loop.call_at(until, self._expire, loop), until
                    return
                answer.set_exception(TimeoutError())
            heapq.heappop(self._deadlines)

    def close(self, error: GridscoreError) -> None:
        """Take no more questions; those that wait get an error."""
        self._failure = error
        while self._questions:
            self._questions.popleft().fail(error)
        self.waiting = self.size = 0
        if self._timer is not None:
            self._timer.cancel()
