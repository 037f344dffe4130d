"""The SQL by which the cluster itself reads a topic, as docs/sources.md has it: a real member, and a real broker."""

import asyncio
import re
from pathlib import Path

import pytest
from servers import member

from gridscore.grid import GridSettings, connect

PAGE = Path(__file__).parents[2] / "docs" / "sources.md"
SECONDS = 60


@pytest.fixture(scope="module")
def with_connector():
    """A member that has the Kafka connector."""
    with member(heap="512m", kafka=True) as started:
        yield started


async def entries(grid, map_name, count):
    """What a map has when it has so many."""
    events = await grid.map(map_name)
    async with asyncio.timeout(SECONDS):
        while await events.size() < count:
            await asyncio.sleep(0.05)
    return {key: value.to_string() for key, value in await events.entry_set()}


async def test_the_cluster_reads_the_topic_until_the_job_is_dropped(kafka, with_connector, unique):
    topic, to = kafka.create(f"clicks-{unique}"), f"events.clicks-{unique}"
    kafka.produce(topic, [(f"k{n}", b'{"n":%d,"s":"\xc3\xbc"}' % n) for n in range(20)])
    kafka.produce(topic, [("dead", None), (None, b'{"n":1}'), ("poison", b"no json")])
    (block,) = re.findall(r"```sql\n(CREATE .*?)```", PAGE.read_text(), re.DOTALL)
    for written, meant in (("kafka:9092", kafka.address), ('"clicks"', f'"{topic}"'), ('"events.clicks"', f'"{to}"')):
        assert written in block
        block = block.replace(written, meant)
    settings = GridSettings.load(members=with_connector.addresses, cluster_name=with_connector.cluster_name)
    async with await connect(settings) as grid:
        for statement in block.strip().rstrip(";").split(";\n"):
            await (await grid.client.sql.execute(statement)).close()
        found = await entries(grid, to, 21)
        assert found == {f"k{n}": f'{{"n":{n},"s":"ü"}}' for n in range(20)} | {"poison": "no json"}
        kafka.produce(topic, [("late", b"{}")])
        await entries(grid, to, 22)
        await (await grid.client.sql.execute(f'DROP JOB "{topic}"')).close()
