"""Micro-batches of requests: one timer for all who wait, whatever their deadlines; little is kept of what is over."""

import asyncio

import pytest

from gridscore.errors import GridError
from gridscore.serve import micro_batches
from gridscore.serve.micro_batches import MicroBatches, SaturatedError


def ask(batches, work, seconds=60.0, size=1):
    return asyncio.create_task(batches.ask(work, 1, size, lambda: False, seconds))


async def test_each_fails_at_its_own_time_though_nobody_takes_them():
    batches = MicroBatches(10, 1_000)
    long, short, longer = ask(batches, "a", 0.2), ask(batches, "b", 0.05), ask(batches, "c", 60.0)
    done, _ = await asyncio.wait((long, short, longer), return_when=asyncio.FIRST_COMPLETED)
    assert done == {short}
    with pytest.raises(TimeoutError):
        await long
    [left] = await batches.take()  # neither of the others
    assert left.work == "c"
    assert (batches.waiting, batches.size) == (0, 0)
    left.answer.set_result("yes")
    assert await longer == "yes"


async def test_little_is_kept_of_what_was_answered(monkeypatch):
    monkeypatch.setattr(micro_batches, "_ANSWERED", 10)
    batches = MicroBatches(1_000, 1_000_000)
    for number in range(100):
        asking = ask(batches, number)
        [question] = await batches.take()
        question.answer.set_result(number)
        assert await asking == number
    assert len(batches._deadlines) <= 12
    batches.close(GridError("over"))
    with pytest.raises(GridError, match="over"):
        await ask(batches, 0)


async def test_what_waits_is_bounded_in_number_and_in_bytes():
    batches = MicroBatches(2, 100)
    waiting = [ask(batches, 0), ask(batches, 1)]
    await asyncio.sleep(0)
    with pytest.raises(SaturatedError, match="2 events wait"):
        await ask(batches, 2)
    waiting[0].cancel()
    assert [question.work for question in await batches.take()] == [1]
    large = ask(batches, 3, size=1_000)  # what is larger than the limit goes when there is nothing else
    await asyncio.sleep(0)
    with pytest.raises(SaturatedError):
        await ask(batches, 4)
    [question] = await batches.take()
    question.answer.set_result(3)
    assert await large == 3
    waiting[1].cancel()
