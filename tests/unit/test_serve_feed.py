"""The feed of a result map: who is fast, slow or has caught up has each result once, and a place of its own."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridscore.serve import feed as feeds
from gridscore.serve.feed import Feed, Item
from gridscore.testing import StubCluster

PARTITIONS = 3
SOME = st.integers(0, 5)
STEPS = st.one_of(
    st.tuples(st.just("write"), st.lists(st.integers(0, PARTITIONS - 1), min_size=1, max_size=4)),
    st.tuples(st.sampled_from(["take", "ask", "join", "again"]), SOME),
)


class Naive:
    """A listener beside what it must have had, by positions that only it moves."""

    def __init__(self, feed, positions, listener):
        self.positions, self.listener, self.is_cut = list(positions), listener, False
        self.results, self.coming = feed.results(listener), None

    async def items(self):
        return list((await anext(self.results)).items)

    def check(self):
        if self.coming is not None and self.coming.done():
            coming, self.coming = self.coming, None
            try:
                items = coming.result()
            except feeds.CutOffError:
                self.is_cut, items = True, []
            for item in items:
                assert item.sequence == self.positions[item.partition]  # no hole, and nothing twice
                self.positions[item.partition] += 1
        assert feeds._positions(self.listener.place, PARTITIONS) == self.positions

    async def take(self, feed):
        """Take what is there, or else wait for it, as the fast do."""
        if self.coming is None and not self.is_cut:
            self.coming = asyncio.ensure_future(self.items())
        for _ in range(5):
            await asyncio.sleep(0)
        assert self.is_cut or self.coming.done() or self.positions == feed._end
        self.check()

    async def close(self):
        if self.coming is not None:
            self.coming.cancel()
            await asyncio.gather(self.coming, return_exceptions=True)
        await self.results.aclose()


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, max_size=60))
def test_places_are_those_of_a_listener_that_moves_its_own(steps):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feeds, "KEPT_BYTES", 2_500)
        asyncio.run(followed(steps))


async def followed(steps):
    written = [0] * PARTITIONS
    async with StubCluster(partitions=PARTITIONS) as cluster:
        feed = await Feed(await cluster.connect("feed"), "results.x").open()
        everybody = [Naive(feed, written, feed.listener(None))]
        for kind, what in steps:
            each = everybody[what % len(everybody)] if kind != "write" else None
            if kind == "write":
                items = []
                for partition in what:
                    items.append(Item(partition, written[partition], None, b"x" * 10))
                    written[partition] += 1
                for piece in feeds._pieces(items):
                    feed._keep(piece)
                await feed._hand_out()
            elif kind == "take":
                await each.take(feed)
            elif kind == "ask":
                each.check()
            elif kind == "join":
                everybody.append(Naive(feed, written, feed.listener(None)))
            elif feed._is_kept(each.positions):
                each.check()
                everybody.append(Naive(feed, each.positions, feed.listener(each.listener.place)))
                await everybody[-1].take(feed)
        for each in everybody:
            while not each.is_cut and each.positions != written:
                await each.take(feed)
            await each.close()
        feed.close()


async def test_who_has_read_on_by_itself_goes_over_to_a_feed_that_is_behind():
    async with StubCluster(partitions=1) as cluster:
        grid = await cluster.connect("feed")
        gridscore = await cluster.client()
        await gridscore.put_events("results.x", {"a": {"score": 1}})
        feed = await Feed(grid, "results.x").open()
        resting = feed._hand_out
        until = asyncio.Event()

        async def rest():
            await resting()
            await until.wait()

        feed._hand_out = rest
        late = feed.listener(feeds._packed([0]))
        results = feed.results(late)
        for number in range(5):  # the first reaches the feed, which then rests
            await gridscore.put_events("results.x", {f"k{number}": {"score": number}})
        had = []
        while len(had) < 6:
            had += [item.sequence for item in (await asyncio.wait_for(anext(results), 30)).items]
            if not until.is_set():  # what follows it has read by itself, or gets when the feed goes on
                asyncio.get_running_loop().call_later(0.2, until.set)
        assert had == list(range(6))
        feed.close()
