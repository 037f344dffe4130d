"""The snippet for web pages, in a real browser: what is clicked is in the grid, once, whatever happens on the way."""

import asyncio
import functools
import http.server
import json
import os
import threading
from collections import Counter

import pytest
from hazelcast.core import HazelcastJsonValue
from http_serving import serving

from gridscore.grid import connect
from gridscore.grid.copies import LiveCopy

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><title>A small shop</title>
<link rel="icon" href="data:,">
<style>
body {{ font: 16px system-ui, sans-serif; margin: 3rem auto; max-width: 36rem; color: #222 }}
article {{ border: 1px solid #ddd; border-radius: 8px; padding: 1rem; margin: 1rem 0; display: flex; gap: 1rem;
  align-items: center; justify-content: space-between }}
button {{ font: inherit; padding: .5rem 1rem }}
</style>
<script src="{source}/gridscore.js" data-map="{events}" data-clicks></script>
</head>
<body>
<h1>A small shop</h1>
<article><span>Espresso cup, 12.50 €</span><button id="cup">Put into the basket</button></article>
<article><span>Kettle, 39.00 €</span><button data-track="kettle">Put into the basket</button></article>
<p><a href="about.html">About us</a></p>
</body>
</html>
"""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def shop(tmp_path):
    """A folder of pages, and the origin under which they are served."""
    handler = functools.partial(_Quiet, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield tmp_path, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class Seen:
    """The events of a map, and how often each was put."""

    def __init__(self, grid, name):
        self.puts, self.events = Counter(), {}
        self._copy = LiveCopy(grid, name, self, max_entries=1_000)

    async def __aenter__(self):
        await self._copy.start()
        return self

    async def __aexit__(self, *_):
        await self._copy.close()

    def put(self, key, payload):
        self.puts[key] += 1
        self.events[key] = json.loads(payload)

    def remove(self, key):
        del self.events[key]

    def keys(self):
        return self.events.keys()

    def __len__(self):
        return len(self.events)

    async def until(self, count):
        """Wait for so many events. That a page was answered does not say that this copy knows of them already."""
        async with asyncio.timeout(20):
            while len(self) < count:
                await asyncio.sleep(0.01)

    @property
    def targets(self):
        return sorted(event.get("target") or event["action"] for event in self.events.values())


@pytest.fixture
async def grid(grid_settings):
    async with await connect(grid_settings) as grid:
        yield grid


@pytest.fixture
async def opened(grid, shop, browser, unique):
    """The page in the browser, the source that it sends to, and what arrives."""
    folder, origin = shop
    events = f"events.clicks-{unique}"
    await grid.map(events)
    results = (f"results.clicks-{unique}",)
    async with serving(grid, to=events, allow_origin=(origin,), results=results) as source, Seen(grid, events) as seen:
        for name in ("index.html", "about.html"):
            (folder / name).write_text(PAGE.format(source=source.address, events=events), encoding="utf-8")
        page = await browser.new_page()
        problems = []
        page.on("pageerror", lambda error: problems.append(error))  # noqa: PLW0108 -- it marks what it calls
        await page.goto(f"{origin}/index.html")
        yield page, source, seen
        assert not problems


async def test_clicks_and_other_events_arrive(opened, tmp_path):
    page, _, seen = opened
    await page.click("#cup")
    await page.click("[data-track=kettle]")
    await page.click("h1")  # nothing that one clicks
    await page.evaluate("gridscore.track({action: 'search', words: 3})")
    await seen.until(3)
    await page.wait_for_function("gridscore.state.sent === 3")
    assert seen.targets == ["cup", "kettle", "search"]
    first = next(event for event in seen.events.values() if event.get("target") == "cup")
    assert first["page"] == "/index.html"
    assert {"session", "time", "x", "y"} <= first.keys()
    assert len({event["session"] for event in seen.events.values()}) == 1
    await page.screenshot(path=os.environ.get("SCREENSHOT") or tmp_path / "shop.png")


async def test_what_happens_while_a_batch_is_under_way_follows_by_itself(opened):
    page, _, seen = opened
    held, go = asyncio.Event(), asyncio.Event()

    async def hold_the_first(route):
        if not held.is_set():
            held.set()
            await go.wait()
        await route.continue_()

    await page.route("**/events/**", hold_the_first)
    await page.click("#cup")
    await held.wait()
    await page.click("[data-track=kettle]")
    go.set()
    await seen.until(2)
    assert seen.targets == ["cup", "kettle"]


async def test_what_is_left_when_the_page_goes_is_sent_as_a_beacon(opened):
    page, _, seen = opened
    await page.evaluate("() => { window.fetch = () => Promise.reject(new Error('the connection is lost')) }")
    await page.click("#cup")
    await page.click("a")  # to another page
    await seen.until(2)
    assert seen.targets == ["about.html", "cup"]
    assert await page.evaluate("gridscore.session") == seen.events.popitem()[1]["session"]


async def test_what_got_no_answer_is_sent_again_and_is_there_once(opened):
    page, _, seen = opened
    tries = []

    async def lose_the_answer(route):
        tries.append(route.request.url)
        if len(tries) <= 2:
            await route.fetch()  # it arrives
            await route.abort()  # and nobody learns of it
        else:
            await route.continue_()

    await page.route("**/events/**", lose_the_answer)
    await page.click("#cup")
    await page.click("[data-track=kettle]")
    await page.wait_for_function("gridscore.state.sent === 2")
    assert len(tries) == 3
    assert len(set(tries)) == 1
    await seen.until(2)
    assert seen.targets == ["cup", "kettle"]


async def test_a_page_waits_as_long_as_it_is_told_to(opened):
    page, _, seen = opened
    answers = [503, 429]

    async def busy(route):
        if answers:
            origin = route.request.headers["origin"]
            headers = {"Retry-After": "1", "Access-Control-Allow-Origin": origin}
            await route.fulfill(status=answers.pop(), headers=headers, body="{}")
        else:
            await route.continue_()

    await page.route("**/events/**", busy)
    await page.evaluate("for (let i = 0; i < 120; i++) gridscore.track({action: 'scroll', i})")
    await page.wait_for_function("gridscore.state.sent === 120")
    assert not answers
    await seen.until(120)
    assert sorted(event["i"] for event in seen.events.values()) == list(range(120))


async def test_what_a_lost_beacon_took_along_goes_again_when_the_page_comes_back(opened):
    page, _, seen = opened
    await page.evaluate("() => { navigator.sendBeacon = () => true }")
    await page.click("#cup")
    await page.evaluate("dispatchEvent(new Event('pagehide'))")
    assert not seen.events
    await page.evaluate("dispatchEvent(new Event('pageshow'))")
    await page.wait_for_function("gridscore.state.sent === 1")
    await seen.until(1)
    assert seen.targets == ["cup"]


async def test_a_page_gets_the_result_of_what_it_asks_or_the_reason(opened, grid, unique):
    page, _, seen = opened
    results = f"results.clicks-{unique}"
    await page.evaluate(f"void (window.asked = gridscore.ask('{results}', {{action: 'search'}}, 20000))")
    await seen.until(1)
    [key] = seen.keys()
    await (await grid.map(results)).put(key, HazelcastJsonValue({"score": 0.5, "sequence": 7}))
    assert await page.evaluate("asked") == {"score": 0.5, "sequence": 7}
    headers = {"Access-Control-Allow-Origin": "*"}
    body = json.dumps({"error": "It cannot be scored.", "rejected": {"reason": "no number"}})
    await page.route("**/results/**", lambda route: route.fulfill(status=422, headers=headers, body=body))
    asking = f"gridscore.ask('{results}', {{action: 'search'}}, 20000).catch((error) => error.reason)"
    assert await page.evaluate(asking) == "no number"
    with pytest.raises(Exception, match="there is no result in time"):
        await page.evaluate(f"gridscore.ask('{results}', {{action: 'search'}}, 0)")
