"""The dashboard in a real browser, over a real member: who is slow, why lag grows, which model decided, and why.

`SCREENSHOTS=FOLDER` keeps what the pages look like; those of the docs are made so.
"""

import asyncio
import itertools
import json
import os
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import AsyncMock

import pytest
import scoring
from axe_playwright_python.async_playwright import Axe

from gridscore.client import connect
from gridscore.keys import Keys, Role
from gridscore.scoring import Worker
from gridscore.serve.server import Server
from gridscore.serve.settings import ServeSettings

HOSTILE = "<img src=x onerror=alert(1)>"


@asynccontextmanager
async def traffic(client, name):
    """Two hundred events a second. Of more, rings would be full before lag is seen to grow: then no more come."""

    async def put():
        for number in itertools.count(step=20):
            await client.put_events(f"events.{name}", scoring.events(20, begin=number))
            await asyncio.sleep(0.1)

    task = asyncio.create_task(put())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def server_of(grid, **settings):
    server = Server(grid, ServeSettings(port=0, **settings))
    task = asyncio.create_task(server.run())
    try:
        await scoring.until(lambda: task.done() or server.opened.is_set())
        yield server
    finally:
        server.stop()
        await task


@pytest.fixture
async def page(browser):
    """A page that must not fail, ask, or meet its own policy."""
    page, problems = await browser.new_page(viewport={"width": 1100, "height": 860}), []
    page.set_default_timeout(120_000)  # on a busy machine
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: problems.append(dialog.message))

    def said(message):
        if message.type == "error" and "Content Security Policy" in message.text:
            problems.append(message.text)

    page.on("console", said)
    yield page
    assert problems == []


async def accessible(page):
    """Whether axe finds nothing, by day and by night."""
    for scheme in ("light", "dark"):
        await page.emulate_media(color_scheme=scheme)
        found = (await Axe().run(page)).response["violations"]
        assert not found, [(each["id"], [node["html"] for node in each["nodes"]]) for each in found]
    await page.emulate_media(color_scheme="light")


async def shot(page, name):
    if folder := os.environ.get("SCREENSHOTS"):
        await page.screenshot(path=Path(folder) / f"dashboard-{name}.png")


async def test_a_page_that_could_not_be_shown_is_whole_once_it_can_be(cluster, page, monkeypatch):
    async with (
        connect(members=cluster.addresses, cluster_name=cluster.cluster_name) as client,
        server_of(client.grid) as server,
    ):
        with monkeypatch.context() as patched:
            patched.setattr(server._observation, "look", AsyncMock(return_value=None))
            await page.goto(f"{server.http.address}/")
            await page.wait_for_selector("h1:text-is('This was not possible')")
        await page.wait_for_selector("h1:text-is('Overview')")
        assert (await page.title()).startswith("Overview")
        assert await page.locator("h1").count() == 1
        await page.wait_for_selector("#live[hx-select='#live']")


async def test_somebody_new_finds_who_is_slow_and_which_model_decided_and_why(cluster, unique, page):
    name = f"fraud-{unique}"
    file = scoring.JOB.format(name=name, mode="copy") + (
        "decisions: [{decision: decline, at_least: 0.5}, {decision: approve}]\n"
    )
    async with (
        scoring.scoring(cluster, name, file=file) as (client, worker),
        Worker(client.grid, [name]) as slow,
        server_of(client.grid, keys=True) as server,
    ):
        await client.push_model(scoring.booster(seed=1), name)
        _, key = await Keys(client.grid).create([Role.READ, Role.OPERATE], [name])
        await scoring.until(lambda: worker.runners.get(name) and slow.runners.get(name))
        scorer = slow.runners[name]._scorer
        score = scorer.score

        async def slowly(arrivals, active):
            # Five events a second, of the hundred that come: whatever the machine does, it falls behind.
            await asyncio.sleep(sum(len(each.page.values) for each in arrivals) / 5)
            return await score(arrivals, active)

        scorer.score = slowly
        await client.put_events(f"events.{name}", {HOSTILE: {"amount": 1.0, "user": HOSTILE, "country": HOSTILE}})
        async with traffic(client, name):
            await page.goto(f"{server.http.address}/")
            await accessible(page)
            await page.keyboard.press("Tab")
            assert await page.evaluate("document.activeElement.textContent") == "Skip to the content"
            await page.focus("#secret")
            await page.keyboard.type(key)
            await page.keyboard.press("Enter")
            await page.wait_for_selector("h1:text-is('Overview')")
            await page.wait_for_selector(f"a:text-is('{name}')")
            await accessible(page)
            await page.click(f"a:text-is('{name}')")
            # Without a reload: the page looks again by itself.
            row = page.locator("tr", has_text=slow.id)
            await row.locator("td.problem").wait_for()
            remark = await row.locator("td.problem").text_content()
            assert "behind" in remark or "slow" in remark
            assert await page.locator("tr", has_text=worker.id).locator("td.problem").count() == 0
            await page.wait_for_selector("p.note:has-text('Lag grows because')")
            assert await page.locator("polyline").count() == 4
            await accessible(page)
            await shot(page, "job")
            await page.set_viewport_size({"width": 360, "height": 740})
            assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            await page.set_viewport_size({"width": 1100, "height": 860})
        await page.goto(f"{server.http.address}/dashboard/jobs/{name}?live=off")
        await page.fill("#key", "e7")
        await page.keyboard.press("Enter")
        await page.wait_for_selector("h1:text-is('Why e7')")
        text = await page.text_content("main")
        assert f"{name} v1" in text
        assert "these features give the result's own score, to the bit" in text
        await accessible(page)
        await shot(page, "why")
        await page.goto(f"{server.http.address}/dashboard/jobs/{name}/result?key={HOSTILE}")
        await page.wait_for_selector(f"h1:text-is('Why {HOSTILE}')")

        await page.goto(f"{server.http.address}/dashboard/jobs/{name}")
        await page.focus("text=Promote v2")
        await page.keyboard.press("Enter")
        await page.wait_for_selector(f"h1:text-is('Promote {name}?')")
        await accessible(page)
        await page.fill("#why", "walked through")
        await page.keyboard.press("Enter")
        await page.wait_for_selector("[role=status]")
        assert (await client.models.aliases(name))["champion"] == 2
        await page.click("text=Log >> nth=0")
        await page.wait_for_selector("td:text-is('walked through')")
        await accessible(page)
        [done] = json.loads((await scoring.command(cluster, "key", "log", "--json")).stdout)
        assert (done["verb"], done["target"], done["outcome"]) == ("promote-model", name, "done")

        # A page whose server is gone says so, though nobody tells it: here after seconds that pass faster.
        await page.goto(f"{server.http.address}/")
        devtools = await page.context.new_cdp_session(page)
        assert not await page.is_visible(".stale")
        await page.route("**/*", lambda route: route.abort())
        await devtools.send("Animation.enable")
        await devtools.send("Animation.setPlaybackRate", {"playbackRate": 100})
        await page.wait_for_selector(".stale", state="visible")


async def test_the_reference_can_be_read_by_anybody(cluster, page):
    async with (
        connect(members=cluster.addresses, cluster_name=cluster.cluster_name) as client,
        server_of(client.grid) as server,
    ):
        await page.goto(f"{server.http.address}/docs")
        await page.focus("#promote_model summary")
        await page.keyboard.press("Enter")
        await page.wait_for_selector(
            "#promote_model td:text-is('Where the alias must point now, 0 for nowhere; else 409.')"
        )
        assert await page.is_visible("#promote_model pre:has-text('curl')")
        await page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        await accessible(page)
        await shot(page, "docs")
        await page.set_viewport_size({"width": 360, "height": 740})
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")


async def is_true(page, expression):
    async with asyncio.timeout(60):
        while not await page.evaluate(expression):
            await asyncio.sleep(0.02)


LISTEN = """([path, protocols]) => new Promise(done => {
    const told = [], socket = new WebSocket(location.origin.replace("http", "ws") + path, protocols)
    window.told = told
    window.socket = socket
    socket.onmessage = message => told.push(JSON.parse(message.data))
    socket.onopen = () => done("open")
    socket.onerror = () => done("refused")
})"""
KEYS = "told.flatMap(each => each.results ?? []).map(each => each.key)"


async def test_a_page_listens_by_websocket_and_goes_on_where_it_was_left(cluster, unique, page):
    name = f"sockets-{unique}"
    async with (
        scoring.scoring(cluster, name) as (client, _worker),
        server_of(client.grid, keys=True) as server,
        server_of(client.grid, keys=True) as other,
    ):
        _, key = await Keys(client.grid).create([Role.READ], [name])
        path = f"/results/{name}/stream"
        await scoring.until(lambda: name in server.jobs.records)
        await page.goto(f"{server.http.address}/dashboard/login")
        assert await page.evaluate(LISTEN, [path, []]) == "refused"
        assert await page.evaluate(LISTEN, [path, ["gridscore", key]]) == "open"
        await client.put_events(f"events.{name}", scoring.events(20))
        await is_true(page, f"{KEYS}.length >= 20")
        seen = await page.evaluate(KEYS)
        place = await page.evaluate("told.map(each => each.id).filter(Boolean).at(-1)")
        await page.evaluate("socket.close()")
        await client.put_events(f"events.{name}", scoring.events(20, begin=20))
        await is_true(page, "socket.readyState === 3")
        assert await page.evaluate(LISTEN, [f"{path}?last_event_id={place}", ["gridscore", key]]) == "open"
        await is_true(page, f"{KEYS}.filter(key => Number(key.slice(1)) >= 20).length >= 20")
        again = await page.evaluate(KEYS)
        assert set(seen) | set(again) == {f"e{number}" for number in range(40)}
        # A page of another server may not, though its visitor has a key: its policy, which would keep it, is not ours.
        foreign = LISTEN.replace("location.origin", f"'{server.http.address}'")
        await page.route("**/none", lambda route: route.fulfill(body="<p>another's page", content_type="text/html"))
        await page.goto(f"{other.http.address}/none")
        assert await page.evaluate(foreign, [path, ["gridscore", key]]) == "refused"
