import asyncio

import pytest

from gridscore.errors import GridError
from gridscore.sources.http.intake import Intake, Ticket


async def test_one_request_has_no_more_than_its_share_of_the_bytes():
    intake = Intake(["events.x"], max_events=1_000, max_bytes=800, patience=0.05)
    large, other = Ticket("events.x"), Ticket("events.x")
    await intake.offer(large, [("a", b"x" * 100)])
    with pytest.raises(GridError):
        await intake.offer(large, [("b", b"x" * 100)])
    await intake.offer(other, [("c", b"x" * 100)])
    stream = intake.streams()[0]
    async with asyncio.timeout(5):
        intake.acknowledge(await anext(stream))
        await intake.offer(large, [("b", b"x" * 100)])
    assert (large.size, large.open, intake.size) == (100, 1, 200)
