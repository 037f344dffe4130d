"""The dashboard: what its pages show, who may see them and act, and that nothing of others becomes part of a page."""

import asyncio
import json
import os
import re
import ssl
from html import unescape
from html.parser import HTMLParser
from urllib.parse import quote

import numpy as np
import pandas as pd
import pytest
import trustme
import xgboost as xgb
from hazelcast.errors import OperationTimeoutError
from serving import JOB, PLAIN, booster, client, prepared, serving

from gridscore.dead_letters.letters import map_of, walk_letters
from gridscore.errors import GridError
from gridscore.features import offline_matrix
from gridscore.grid.records import Records
from gridscore.job import Jobs, parse_job
from gridscore.job.life import JOBS_MAP
from gridscore.keys import Keys, Role
from gridscore.operations.actions import ActionLog
from gridscore.serve import observation, sessions
from gridscore.serve.dashboard import pages
from gridscore.serve.verbs import VERBS
from gridscore.sources.http import gate
from gridscore.testing import StubCluster

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\u202e\x1b[31m"
GOOD = {f"k{n}": {"amount": n * 7.1, "customer": f"c{n}", "merchant": f"m{n}"} for n in range(12)}


class Tags(HTMLParser):
    """The tags of a page that can do something, and its text."""

    def __init__(self, page):
        super().__init__()
        self.scripts, self.attributes, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.attributes += [name for name, _ in attrs]
        if tag in ("script", "img", "iframe", "object", "style"):
            self.scripts.append((tag, dict(attrs).get("src")))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(observation, "LOOK_SECONDS", 0.0)


def is_clean(answer):
    """Whether a page has no script but ours, no handler, and its headers."""
    tags = Tags(answer.text)
    assert [src.partition("?")[0] for _, src in tags.scripts] == ["/dashboard/static/htmx.min.js"]
    assert not [name for name in tags.attributes if name.startswith("on") or name == "style"]
    assert "\u202e" not in answer.text
    assert "\x1b" not in answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert (answer.headers["x-content-type-options"], answer.headers["cache-control"]) == ("nosniff", "no-store")
    return tags.text


async def see(http, path, status=200):
    answer = await http.get(path)
    assert answer.status_code == status, answer.text
    return is_clean(answer)


async def see_all(http, path, *texts):
    """A page once it says all that: what it shows is looked at now and then."""
    async with asyncio.timeout(20):
        page = await see(http, path)
        while not all(text in page for text in texts):
            await asyncio.sleep(0.05)
            page = await see(http, path)


def token_of(answer):
    return re.search(r'name="token" value="([0-9a-f]{64})"', answer.text)[1]


async def login(http, key):
    own = {"Origin": str(http.base_url)}
    return await http.post("/dashboard/login", data={"key": key, "next": "/dashboard/log"}, headers=own)


async def until_known(http, key):
    """Log in with a new key, of which the server may not have heard yet."""
    async with asyncio.timeout(20):
        while (await login(http, key)).status_code != 303:
            await asyncio.sleep(0.05)


async def act(http, path, **form):
    """Open a confirmation, and confirm it."""
    asked = await http.get(path)
    assert asked.status_code == 200, asked.text
    is_clean(asked)
    form = dict(re.findall(r'type="hidden" name="(\w+)" value="(\w*)"', asked.text)[1:]) | form  # not of logging out
    return await http.post(path, data=form, headers={"Origin": str(http.base_url)})


async def button(http, path, verb):
    """Where a button of a page leads."""
    return unescape(re.search(rf'href="([^"]+/do/{verb}\?[^"]+)"', (await http.get(path)).text)[1])


async def test_pages_show_jobs_workers_results_and_why_one_was_decided():
    async with StubCluster(partitions=8) as cluster:
        gridscore = await prepared(cluster, JOB, PLAIN)
        async with cluster.worker(), serving(cluster, "cards", "plain") as server, client(server) as http:
            await gridscore.put_events("events.cards", {**GOOD, "bad": {"amount": "much"}})
            await cluster.results("results.cards", len(GOOD))
            await see_all(http, "/", "cards", "1 worker runs")
            figures = ("Events a second", "8 of 8: 0-7", "Scores of 12 recent results", "1 event could not be scored")
            await see_all(http, "/dashboard/jobs/cards", "k3", "approve", *figures)
            why = await see(http, "/dashboard/jobs/cards/result?key=k3")
            assert "cards v1" in why
            assert "these features give the result's own score, to the bit" in why
            assert "ratio" in why
            letters = await see(http, "/dashboard/jobs/cards/letters")
            assert "decode" in letters
            assert "Replay" not in letters  # nobody can act where nobody shows a key
            assert "There is no job" in await see(http, "/dashboard/jobs/none", 404)
            assert "no result for the key" in await see(http, "/dashboard/jobs/cards/result?key=none", 404)
            assert "Pages can only be read here" in await see(http, "/dashboard/jobs/cards/do/suspend", 403)
            assert (
                (await http.get("/dashboard/static/htmx.min.js")).headers["content-type"].startswith("text/javascript")
            )


async def test_scores_and_features_stand_against_the_training():
    text = PLAIN + "drift: {psi: 0.5, every: 1s, events: 100}\n"
    job = parse_job(text, "test")
    history = pd.DataFrame({"amount": np.random.default_rng(1).uniform(0, 100, 500)})
    matrix = offline_matrix(job, history)
    data = xgb.DMatrix(matrix.values, history["amount"] > 50, feature_names=list(matrix.names))
    model = xgb.train({"objective": "binary:logistic", "nthread": 1}, data, 3)
    matrix.attach(model)
    async with StubCluster(partitions=8) as cluster:
        gridscore = await cluster.client()
        await gridscore.push_model(model, "plain", alias="champion")
        await gridscore.submit(job)
        async with cluster.worker(), serving(cluster, "plain") as server, client(server) as http:
            async with asyncio.timeout(30):
                page, number = "", 0
                while "now and in training" not in page.lower():
                    await gridscore.put_events(
                        "events.plain", {f"k{n}": {"amount": 90.0 + n % 10} for n in range(number, number + 50)}
                    )
                    number += 50
                    page = await see(http, "/dashboard/jobs/plain")
                    await asyncio.sleep(0.1)
            assert re.search(r"recent scores against the training: PSI [1-9]", page)
            assert re.search(r"amount\s*psi\s*[1-9]", page), page
            assert re.search(r"<score>\s*psi", page), page


async def test_nothing_of_others_becomes_part_of_a_page():
    async with StubCluster(partitions=8) as cluster:
        gridscore = await prepared(cluster, JOB)
        grid = await cluster.connect("attacker")
        await Records(grid, JOBS_MAP).put(HOSTILE, {"spec": {}, "state": HOSTILE})
        event = {"amount": 1.0, "customer": HOSTILE, "merchant": HOSTILE}
        async with cluster.worker(), serving(cluster, "cards") as server, client(server) as http:
            await gridscore.put_events("events.cards", {HOSTILE: event, f"{HOSTILE}2": {"amount": HOSTILE}})
            await cluster.results("results.cards", 1)
            await until_letters(grid, 1)
            [listed] = [each async for each in walk_letters(grid, "cards")]
            overview = await see(http, "/")
            assert "<script>alert(1)" in overview  # as text
            odd = {"version": 1, "sequence": 0, "score": HOSTILE, "scored_at": HOSTILE, "model": [HOSTILE], "label": {}}
            await gridscore.put_events("results.cards", {"odd": odd})
            for path in (
                "/dashboard/jobs/cards",
                "/dashboard/jobs/cards/result?key=odd",
                f"/dashboard/jobs/cards/result?key={quote(HOSTILE)}",
                "/dashboard/jobs/cards/letters",
                f"/dashboard/jobs/cards/letter?id={quote(listed.id)}",
            ):
                assert "<script>alert(1)" in await see(http, path)
            await see(http, f"/dashboard/jobs/cards/result?key={quote(HOSTILE)}none", 404)
            await see(http, f"/dashboard/jobs/{quote(HOSTILE, safe='')}", 404)
            await see(http, f"/dashboard/jobs/cards/letter?id={quote(HOSTILE)}", 404)


async def until_letters(grid, count):
    letters = await grid.map(map_of("cards"))
    async with asyncio.timeout(20):
        while await letters.size() < count:
            await asyncio.sleep(0.01)


async def test_a_session_needs_a_key_and_ends_with_it(monkeypatch):
    monkeypatch.setattr(gate, "WAIT_SECONDS", 0.0)
    async with StubCluster(partitions=8) as cluster:
        await prepared(cluster, PLAIN)
        grid = await cluster.connect("admin")
        key, text = await Keys(grid).create([Role.READ])
        _, other = await Keys(grid).create([Role.SCORE])
        async with serving(cluster, keys=True) as server, client(server) as http:
            for path in ("/", "/dashboard/jobs/plain", "/dashboard/log", "/dashboard/jobs/plain/do/suspend"):
                assert "Log in" in await see(http, path, 401)
            assert (await http.get("/jobs")).status_code == 401
            assert "is wrong" in is_clean(await login(http, "gs_wrong"))
            assert "needs the role read" in is_clean(await login(http, other))
            assert not http.cookies
            made = await login(http, text)
            assert (made.status_code, made.headers["location"]) == (303, "/dashboard/log")
            cookie = made.headers["set-cookie"].lower()
            assert "httponly" in cookie
            assert "samesite=strict" in cookie
            assert text not in cookie
            assert "Nothing was done yet" in await see(http, "/dashboard/log")
            assert "it needs the role operate" in await see(http, "/dashboard/jobs/plain/do/suspend", 403)
            # A session opens pages only, and a changed one nothing.
            assert (await http.get("/jobs")).status_code == 401
            session = http.cookies["gridscore"]
            for wrong in (session[:-1] + ("0" if session[-1] != "0" else "1"), session.replace(".1", ".2", 1), "x"):
                http.cookies.set("gridscore", wrong)
                assert "Log in" in await see(http, "/", 401)
            http.cookies.clear()
            http.cookies.set("gridscore", session)
            await see(http, "/")
            with monkeypatch.context() as later:
                later.setattr(sessions.time, "time", lambda: 4e9)
                assert "Log in" in await see(http, "/", 401)
            page = await http.get("/")
            left = await http.post(
                "/dashboard/logout", data={"token": token_of(page)}, headers={"Origin": server.http.address}
            )
            assert (left.status_code, "max-age=0" in left.headers["set-cookie"].lower()) == (303, True)
            http.cookies.set("gridscore", session)
            http.cookies.clear()
            _, rare = await Keys(grid).create([Role.READ], rate="2/h")
            await until_known(http, rare)
            await see(http, "/")
            await see(http, "/")
            assert "that is used up" in await see(http, "/", 429)
            http.cookies.clear()
            http.cookies.set("gridscore", session)
            await Keys(grid).revoke(key.id)
            async with asyncio.timeout(20):
                while (await http.get("/")).status_code != 401:
                    await asyncio.sleep(0.05)


async def test_behind_tls_a_session_never_goes_without_it(tmp_path):
    authority, trust = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(trust)
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    tls = dict.fromkeys(("certificate", "private_key"), str(tmp_path / "both.pem"))
    async with StubCluster(partitions=8) as cluster:
        await prepared(cluster, PLAIN)
        async with serving(cluster, token="tökén", **tls) as server, client(server, verify=trust) as http:  # noqa: S106
            made = await login(http, "tökén")
            cookie = made.headers["set-cookie"]
            assert (made.status_code, cookie.startswith("__Host-gridscore=")) == (303, True)
            assert {"secure", "path=/"} <= {part.strip().lower() for part in cookie.split(";")}
            assert "Key token" in await see(http, "/")


async def letters_of(http, path):
    """The dead letters of each page, from one to the next."""
    query = ""
    while query is not None:
        page = (await http.get(path + query)).text
        yield re.findall(r"letter\?id=([^\"]+)", page)
        older = re.search(r'href="(\?before=[^"]+)"', page)
        query = older and unescape(older[1])


async def test_what_is_done_is_confirmed_permitted_and_in_the_log(monkeypatch):
    async with StubCluster(partitions=8) as cluster:
        gridscore = await prepared(cluster, JOB, PLAIN)
        await gridscore.push_model(booster(9), "cards")
        grid = await cluster.connect("admin")
        key, text = await Keys(grid).create([Role.READ, Role.OPERATE], ["cards"])
        job = "/dashboard/jobs/cards"
        async with cluster.worker(), serving(cluster, "cards", keys=True) as server, client(server) as http:
            await gridscore.put_events("events.cards", {"bad": {"amount": "much"}, "worse": {"amount": "more"}})
            await until_letters(grid, 2)
            assert (await login(http, text)).status_code == 303
            overview = await see(http, "/")
            assert "cards" in overview
            assert "plain" not in overview  # the key is not for it
            await see(http, "/dashboard/jobs/plain", 403)
            await see(http, "/dashboard/jobs/plain/do/suspend", 403)

            async def did(path, **form):
                answer = await act(http, path, **form)
                return answer.status_code, is_clean(answer)

            assert (await gridscore.jobs.get("cards")).state != "SUSPENDED"
            assert "Promote v2" in await see(http, job)
            status, said = await did(f"{job}/do/promote?version=2", why="it is better")
            assert (status, "Version 2 of the model cards is its champion now" in said) == (200, True)
            assert (await gridscore.models.aliases("cards")) == {"champion": 2}
            assert (await gridscore.models.log("cards"))[-1].why == f"it is better (dashboard, {key.id})"
            assert (await did(f"{job}/do/promote?version=9"))[0] == 404
            status, said = await did(f"{job}/do/rollback", points_at="1")
            assert (status, "points at version 2 by now" in said) == (409, True)
            assert (await did(f"{job}/do/rollback"))[0] == 200
            assert (await gridscore.models.aliases("cards")) == {"champion": 1}
            await gridscore.start_experiment("cards", 2, split=30)
            await see_all(http, job, "split of cards v2", "Too little was scored to compare", "Stop the experiment")
            stop, promote = [await button(http, job, each) for each in ("stop-experiment", "promote-experiment")]
            # A page that was open since: it does nothing with the experiment that is there by then.
            await gridscore.stop_experiment("cards")
            another = await gridscore.start_experiment("cards", 2, split=10)
            for old in (stop, promote):
                status, said = await did(old)
                assert (status, "has another experiment by now, with v2: it goes on" in said) == (409, True)
            assert (await gridscore.experiment("cards")).experiment.id == another.id
            assert (await gridscore.models.aliases("cards")) == {"champion": 1}
            assert (await did(f"{job}/do/stop-experiment"))[0] == 400
            assert "It is over" in (await did(stop.replace(stop.rpartition("=")[2], another.id)))[1]
            status, said = await did(promote)
            assert (status, "no experiment" in said) == (400, True)
            with monkeypatch.context() as away:

                async def fails(*_):
                    raise OperationTimeoutError("no answer")

                away.setattr(Jobs, "suspend", fails)
                status, said = await did(f"{job}/do/suspend")
                assert (status, "See whether it was done." in said) == (504, True)
            assert (await did(f"{job}/do/suspend"))[0] == 200
            assert (await gridscore.jobs.get("cards")).state == "SUSPENDED"
            await see_all(http, job, "Resume")
            assert (await did(f"{job}/do/resume"))[0] == 200
            ids = re.findall(r"letter\?id=([^\"]+)", (await http.get(f"{job}/letters")).text)
            assert len(ids) == 2
            with monkeypatch.context() as less:
                less.setattr(pages, "MAX_LETTERS", 1)
                first, second, last = [each async for each in letters_of(http, f"{job}/letters")]
                assert (first + second, last) == (ids, [])
            assert "is removed" in (await did(f"{job}/do/discard?letter={ids[0]}"))[1]
            assert "1 event is in the event map again" in (await did(f"{job}/do/replay"))[1]
            await until_letters(grid, 1)

            # Not without the session's own form, and not from a page of others.
            own, path = {"Origin": server.http.address}, f"{job}/do/suspend"
            for token, headers, status in (
                ("", own, 403),
                ("0" * 64, own, 403),
                (token_of(await http.get("/")), {}, 403),
                (token_of(await http.get("/")), {"Origin": "https://evil.example"}, 403),
                (token_of(await http.get("/")), {"Origin": "null"}, 403),
                (token_of(await http.get("/")), {**own, "Content-Type": "text/plain"}, 415),
            ):
                answer = await http.post(path, data={"token": token}, headers=headers)
                assert answer.status_code == status, (headers, answer.text)
            large = {"token": token_of(await http.get("/")), "why": "x" * 10_000}
            assert (await http.post(path, data=large, headers=own)).status_code == 413
            await see(http, f"{job}/do/{quote(HOSTILE, safe='')}", 404)
            await see(http, f"{job}/do/promote?version=0", 400)
            assert (await gridscore.jobs.get("cards")).state != "SUSPENDED"

            done = await ActionLog(grid).list()
            assert [(each.verb, each.detail, each.outcome) for each in done][-3:] == [
                ("rollback-model", "points_at 2", "done"),
                ("promote-model", "points_at 2, version 9", done[-2].outcome),
                ("promote-model", "points_at 1, version 2", "done"),
            ]
            assert "version 9" in done[-2].outcome
            assert {each.verb for each in done} <= {work.__name__.replace("_", "-") for *_, work in VERBS}
            assert {each.by for each in done} == {key.id}
            assert "it is better" in await see(http, "/dashboard/log")


async def test_the_reference_shows_all_that_is_served_with_calls_that_work(monkeypatch):
    monkeypatch.setattr(gate, "WAIT_SECONDS", 0.0)
    async with StubCluster(partitions=8) as cluster:
        gridscore = await prepared(cluster, PLAIN)
        _, key = await Keys(await cluster.connect("admin")).create(list(Role))
        async with serving(cluster, "plain", keys=True) as server, client(server) as http:
            assert "Log in" in await see(http, "/docs", 401)
            assert (await login(http, key)).status_code == 303
            page = await see(http, "/docs")
            described = server.app.describe()
            called, shown = {}, (await http.get("/docs")).text
            for each in [each for path in described["paths"].values() for each in path.values()]:
                assert each["description"].partition("\n")[0].replace("`", "") in page.replace("`", "")
                [part] = re.findall(f'<details id="{each["operationId"]}">(.*?)</details>', shown, re.DOTALL)
                called[each["operationId"]] = unescape(re.search("<pre>(.*?)</pre>", part)[1])
            assert "It needs the role operate." in page
            for name, column in (("get_job", "name"), ("suspend_job", "state"), ("push_model", "detail")):
                answer = await shell(called[name].replace("JOB", "plain").replace("@FILE", "@/dev/null"), server, key)
                assert column in answer, (called[name], answer)
            assert (await gridscore.jobs.get("plain")).state == "SUSPENDED"
            await shell(called["resume_job"].replace("JOB", "plain"), server, key)
            scored = await shell(called["score"].replace("JOB", "plain"), server, key)
            assert scored["model"] == "plain"
            made = await shell(called["create_key"], server, key)
            assert made["roles"] == ["score"]


async def shell(call, server, key):
    """What a call answers, as somebody copies it."""
    there = {**os.environ, "KEY": key, "GRIDSCORE": server.http.address}
    process = await asyncio.create_subprocess_shell(
        f"{call} --silent --show-error", env=there, stdout=asyncio.subprocess.PIPE
    )
    return json.loads((await process.communicate())[0])


async def test_names_that_may_mean_this_machine_open_nothing():
    async with StubCluster(partitions=8) as cluster:
        await prepared(cluster, PLAIN)
        async with serving(cluster, allow_origin=["http://shop.example"]) as server, client(server) as http:
            await see(http, "/")
            assert (await http.get("/", headers={"Host": "localhost:1"})).status_code == 200
            assert (await http.get("/", headers={"Host": "shop.example"})).status_code == 200
            assert (await http.get("/", headers={"Host": "evil.example"})).status_code == 403
            assert (await http.get("/", headers={"Host": "evil[.example"})).status_code in (400, 403)
            # That a page may post events does not mean that it may read pages.
            assert (await http.get("/", headers={"Origin": "http://shop.example"})).status_code == 403


async def test_without_a_dashboard_its_addresses_are_closed():
    async with StubCluster(partitions=8) as cluster:
        await prepared(cluster, PLAIN)
        async with serving(cluster, dashboard=False, token="t") as server, client(server) as http:  # noqa: S106
            for path in ("/", "/dashboard/login"):
                assert (await http.get(path)).status_code == 401
                assert (await http.get(path, headers={"Authorization": "Bearer t"})).status_code == 404


async def test_a_cluster_that_is_away_is_said():
    async with StubCluster(partitions=8) as cluster:
        await prepared(cluster, PLAIN)
        async with serving(cluster, "plain") as server, client(server) as http:
            await see(http, "/")
            observed = server._observation.watcher._observer

            async def fails():
                raise GridError("The members are gone.")

            observed.look = fails
            await see_all(http, "/", "The members are gone. The figures are of", "plain")
