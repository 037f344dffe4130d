"""A source that is driven as its runner drives it."""

import asyncio
from contextlib import aclosing, asynccontextmanager

SECONDS = 30


@asynccontextmanager
async def opened(source):
    """The source, open."""
    try:
        await source.open()
        yield source
    finally:
        await source.close()


async def read(source, count, *, acknowledge=True):
    """Entries and poison, until there are so many; acknowledged or not."""
    entries, poison = [], []
    async with asyncio.timeout(SECONDS), aclosing(source.batches()) as batches:
        async for batch in batches:
            entries += batch.entries
            poison += batch.poison
            if acknowledge:
                await source.acknowledge(batch)
            if len(entries) + len(poison) >= count:
                break
    return entries, poison
