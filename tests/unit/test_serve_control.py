"""Control: each verb does by REST what its command does, for those who may, noted before it is done; and once."""

import asyncio
import datetime as dt
from types import SimpleNamespace

import msgspec
import pytest
from serving import JOB, PLAIN, booster, client, prepared, serving, until

from gridscore import keys as keys_module
from gridscore.client import Client
from gridscore.errors import GridError, JobError
from gridscore.grid.records import Records
from gridscore.job import parse_job
from gridscore.job.life import JOBS_MAP
from gridscore.keys import Keys, Role
from gridscore.operations.actions import ACTIONS_MAP, ActionLog
from gridscore.serve import acting, control, verbs
from gridscore.serve.verbs import VERBS
from gridscore.sources.http import gate
from gridscore.testing import StubCluster

TOKEN = "all-of-it"  # noqa: S105
BODIES = {
    "submit_job": {"job": PLAIN.replace("job: plain", "job: none").replace("model: plain", "model: none")},
    "start_experiment": {"version": 1, "split": 5},
    "promote_model": {"version": 1},
    "replay_dead_letters": {"all": True},
    "discard_dead_letters": {"ids": ["x"]},
    "purge_dead_letters": {"all": True},
    "create_key": {"roles": ["score"]},
}
MINE = """\
job: cards
events: cards
schema: {amount: float}
features: {amount: amount}
model: cards
results: results.cards
"""
SHOWING = "sources:\n  posts: {kind: http, to: cards, results: [others]}\n"
ALL = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(gate, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(keys_module, "_PAUSE_SECONDS", 0.0)


class Caller:
    """Asks, and looks at the status."""

    def __init__(self, http):
        self.http = http

    async def __call__(self, method, path, body=None, status=200, **options):
        options = {"json": body, "headers": ALL} | options
        answer = await self.http.request(method, f"/control/{path}", **options)
        assert answer.status_code == status, (method, path, answer.text)
        if status >= 400:
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["status"] == status
        return answer.json()


def raw(model):
    return {"content": bytes(model.save_raw("ubj")), "headers": {**ALL, "Content-Type": "application/octet-stream"}}


async def test_jobs_are_submitted_moved_and_wiped():
    async with StubCluster(partitions=8) as cluster:
        gridscore = await prepared(cluster, JOB)
        async with cluster.worker(), serving(cluster, "cards", token=TOKEN) as server, client(server) as http:
            call = Caller(http)
            made = await call("PUT", "jobs/plain", {"job": PLAIN})
            assert (made["changed"], made["version"], made["state"]) == (True, 1, "WAITING")
            again = await call("PUT", "jobs/plain", {"job": parse_job(PLAIN, "test").to_json()})
            assert (again["changed"], again["revision"]) == (False, made["revision"])
            other = {"job": PLAIN.replace("amount: amount", "amount: amount + 1")}
            assert "Replace it with --update" in (await call("PUT", "jobs/plain", other, 409))["hint"]
            updated = await call("PUT", "jobs/plain", {**other, "update": True, "allow_changed_features": True})
            assert updated["revision"] == made["revision"] + 1
            assert (await call("POST", "jobs/plain/rollback"))["revision"] == made["revision"] + 2
            assert {each["name"] for each in await call("GET", "jobs")} == {"cards", "plain"}

            assert (await call("POST", "jobs/plain/suspend", {"why": "night"}))["state"] == "SUSPENDED"
            assert (await call("POST", "jobs/plain/suspend"))["changed"] is False
            assert (await call("GET", "jobs/plain"))["state"] == "SUSPENDED"
            assert (await call("POST", "jobs/plain/resume"))["changed"] is True
            await call("POST", "jobs/plain/restart", {"begin": "oldest"})
            for never in ("yesterday", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"):
                await call("POST", "jobs/plain/restart", {"begin": never}, 409)
            await gridscore.put_events("events.plain", {f"k{n}": {"amount": float(n)} for n in range(5)})
            await cluster.results("results.plain", 5)
            assert (await call("POST", "jobs/plain/audit"))["missing"] == 0
            assert (await call("POST", "jobs/plain/acknowledge"))["lost"] == 0
            assert (await call("GET", "jobs/plain/rollout"))["version"] == 1
            async with asyncio.timeout(20):
                while set((await call("GET", "workers"))[0]["jobs"]) != {"cards", "plain"}:
                    await asyncio.sleep(0.05)  # it says so once a second
            status = await call("GET", "status")
            assert {each["name"] for each in status["jobs"]} == {"cards", "plain"}
            [worker] = await call("GET", "workers")
            assert dt.datetime.fromisoformat(worker["seen_at"]).tzinfo is dt.UTC  # as by `--json`

            assert "End it first" in (await call("DELETE", "jobs/plain", status=409))["hint"]
            assert (await call("POST", "jobs/plain/cancel"))["state"] == "CANCELLED"
            async with asyncio.timeout(20):
                while (await http.delete("/control/jobs/plain?results=true", headers=ALL)).status_code != 200:
                    await asyncio.sleep(0.05)  # the worker finishes its writes
            assert "There is no job `plain`" in (await call("GET", "jobs/plain", status=404))["detail"]
            assert await gridscore.jobs.find("plain") is None


async def test_a_job_whose_record_cannot_be_used_is_cancelled_by_its_name():
    async with StubCluster(partitions=8) as cluster:
        gridscore = await prepared(cluster, PLAIN)
        await Records(gridscore.grid, JOBS_MAP).put("odd", {"spec": {}, "state": "no state"})
        async with serving(cluster, token=TOKEN) as server, client(server) as http:
            gone = await Caller(http)("POST", "jobs/odd/cancel")
            assert gone == {"name": "odd", "state": None, "revision": None, "changed": True}


async def test_who_is_slow_holds_up_only_what_is_done_with_the_same(monkeypatch):
    async with StubCluster(partitions=8) as cluster:
        await prepared(cluster, PLAIN)
        go, slow = asyncio.Event(), []

        async def waits(*_asked):
            slow.append(None)
            await go.wait()
            return 0, []

        async def audits(*_asked, **_options):
            await waits()
            return SimpleNamespace(to_json=dict)

        monkeypatch.setattr(verbs, "list_letters", waits)
        monkeypatch.setattr(verbs, "audit", audits)
        async with serving(cluster, token=TOKEN) as server, client(server) as http:
            call = Caller(http)
            asks = [asyncio.create_task(call("GET", "dead-letters/plain")) for _ in range(control.READING)]
            await until(lambda: len(slow) == control.READING)
            assert [each["name"] for each in await call("GET", "jobs")] == ["plain"]
            monkeypatch.setattr(control, "READ_SECONDS", 0.0)
            await call("GET", "dead-letters/plain", status=503)

            act = asyncio.create_task(http.post("/control/jobs/plain/audit", headers=ALL))
            await until(lambda: len(slow) == control.READING + 1)
            await call("POST", "models/cards/describe", {"description": "new"})
            monkeypatch.setattr(acting, "WAIT_SECONDS", 0.0)
            refused = await call("POST", "jobs/plain/suspend", status=503)
            assert "Other actions are under way" in refused["detail"]
            go.set()
            await asyncio.gather(act, *asks)
            monkeypatch.setattr(acting, "WAIT_SECONDS", 10.0)
            await call("POST", "jobs/plain/suspend")


async def test_what_was_done_is_not_refused_because_what_is_told_of_it_cannot_be_read(monkeypatch):
    async with StubCluster(partitions=8) as cluster:
        await prepared(cluster, JOB)
        async with cluster.worker(), serving(cluster, "cards", token=TOKEN) as server, client(server) as http:
            call = Caller(http)
            made = await call("PUT", "jobs/plain", {"job": PLAIN})
            other = {"job": PLAIN.replace("amount: amount", "amount: amount + 1")}
            await call("PUT", "jobs/plain", {**other, "update": True, "allow_changed_features": True})
            await call("POST", "models/cards/versions", **raw(booster(9)))

            async def fails(*_arguments, **_options):
                raise GridError("The grid does not answer.")

            def and_then_nothing_is_read(act, *reading):
                async def acts(self, *arguments, **options):
                    found = await act(self, *arguments, **options)
                    for name in reading:
                        monkeypatch.setattr(Client, name, fails)
                    return found

                return acts

            monkeypatch.setattr(Client, "rollback", and_then_nothing_is_read(Client.rollback, "version_of"))
            monkeypatch.setattr(Client, "promote_model", and_then_nothing_is_read(Client.promote_model, "following"))
            undone = await call("POST", "jobs/plain/rollback")
            assert (undone["revision"], undone["version"], undone["model"]) == (made["revision"] + 2, None, None)
            moved = await call("POST", "models/cards/promote", {"version": 2, "points_at": 1})
            assert (moved["version"], moved["warnings"]) == (2, [])


async def test_models_go_live_and_back_once_however_often_that_is_asked_for():
    async with StubCluster(partitions=8) as cluster:
        gridscore = await prepared(cluster, JOB)
        async with cluster.worker(), serving(cluster, "cards", token=TOKEN) as server, client(server) as http:
            call = Caller(http)
            pushed = await call("POST", "models/cards/versions?why=better", **raw(booster(9)))
            assert (pushed["new"], pushed["version"]) == (True, 2)
            assert (await call("POST", "models/cards/versions", **raw(booster(9))))["new"] is False
            await call("POST", "models/cards/versions", status=409, **raw(booster(9)) | {"content": b"\x80\x04no"})
            assert (await call("GET", "models/cards/check?version=2"))["passed"] is True

            wanted = {"version": 2, "points_at": 1, "why": "better"}
            for _ in range(2):
                assert (await call("POST", "models/cards/promote", wanted))["version"] == 2
            refused = await call("POST", "models/cards/promote", {"version": 1, "points_at": 1}, 409)
            assert "points at version 2 by now, not 1" in refused["detail"]
            assert refused["exit_code"] == 7
            assert (await call("POST", "models/cards/rollback", {"points_at": 2}))["version"] == 1
            await call("POST", "models/cards/rollback", {"points_at": 2}, 409)
            assert await gridscore.models.aliases("cards") == {"champion": 1}
            log = await call("GET", "models/cards/log")
            assert [each["action"] for each in log] == ["push", "promote", "push", "promote", "rollback"]
            assert [each.get("why") for each in log[2:]] == ["better (by HTTP, token)"] * 2 + ["(by HTTP, token)"]

            await call("POST", "models/cards/promote", {"version": 2, "alias": "challenger", "points_at": 0})
            assert (await call("GET", "models/cards"))["aliases"] == {"champion": 1, "challenger": 2}
            assert (await call("POST", "models/cards/describe", {"version": 2, "tags": {"owner": "ana"}}))["tags"]
            trial = {"version": "challenger", "split": 30}
            assert (await call("POST", "jobs/cards/experiment/start", trial))["version"] == 2
            await call("POST", "jobs/cards/experiment/start", trial, 400)
            found = await call("GET", "jobs/cards/experiment")
            assert found["kind"] == "split"
            for way in ("stop", "promote"):
                await call("POST", f"jobs/cards/experiment/{way}", {"experiment": "another"}, 409)
            await call("POST", "jobs/cards/experiment/stop", {"experiment": found["id"]})
            await call("DELETE", "models/cards/versions/2", status=409)
            await call("DELETE", "models/cards/aliases/challenger")
            await call("DELETE", "models/cards/aliases/champion", status=409)
            await call("DELETE", "models/cards/versions/2")
            assert [each["name"] for each in await call("GET", "models")] == ["cards", "plain"]
            await call("POST", "models/cards/promote", {"version": 2}, 404)
            await call("GET", "models/none", status=404)


async def test_of_two_who_move_an_alias_at_once_by_two_servers_one_does():
    async with StubCluster(partitions=8) as cluster:
        gridscore = await prepared(cluster, JOB)
        for rounds in (7, 9):
            await gridscore.push_model(booster(rounds), "cards")
        one, other = serving(cluster, token=TOKEN), serving(cluster, token=TOKEN)
        async with one as first, other as second, client(first) as a, client(second) as b:
            for number in range(5):
                before = (await gridscore.models.aliases("cards"))["champion"]
                versions = sorted({1, 2, 3} - {before})
                asked = [
                    http.post("/control/models/cards/promote", json={"version": v, "points_at": before}, headers=ALL)
                    for http, v in zip((a, b), versions, strict=True)
                ]
                answers = await asyncio.gather(*asked)
                assert sorted(each.status_code for each in answers) == [200, 409], number
                [won] = [v for v, each in zip(versions, answers, strict=True) if each.status_code == 200]
                assert (await gridscore.models.aliases("cards"))["champion"] == won
            before = (await gridscore.models.aliases("cards"))["champion"]
            undo = [
                http.post("/control/models/cards/rollback", json={"points_at": before}, headers=ALL) for http in (a, b)
            ]
            assert sorted(each.status_code for each in await asyncio.gather(*undo)) == [200, 409]
            log = await ActionLog(gridscore.grid).list()
            assert len([each for each in log if each.outcome == "done"]) == 6
            assert len([each for each in log if "by now, not" in each.outcome]) == 6


async def test_dead_letters_are_shown_replayed_and_removed(monkeypatch):
    async with StubCluster(partitions=8) as cluster:
        gridscore = await prepared(cluster, PLAIN)
        async with cluster.worker(), serving(cluster, "plain", token=TOKEN) as server, client(server) as http:
            call = Caller(http)

            async def until(count):
                async with asyncio.timeout(20):
                    while (found := await call("GET", "dead-letters/plain"))["total"] != count:
                        await asyncio.sleep(0.02)
                return found["dead_letters"]

            await gridscore.put_events("events.plain", {f"bad{n}": {"amount": "much"} for n in range(4)})
            letters = await until(4)
            shown = await call("GET", f"dead-letters/plain/{letters[0]['id']}")
            assert shown["text"] == '{"amount":"much"}'
            [first] = (await call("GET", "dead-letters/plain?limit=1"))["dead_letters"]
            rest = (await call("GET", f"dead-letters/plain?before={first['id']}"))["dead_letters"]
            assert [first, *rest] == letters
            with monkeypatch.context() as less:
                less.setattr(verbs, "MAX_LETTERS", 1)
                assert (await call("GET", "dead-letters/plain"))["dead_letters"] == [first]
            await call("GET", "dead-letters/plain/none", status=404)
            await call("GET", "dead-letters/none", status=404)
            assert not await gridscore.grid.has_map("dead-letters.none")
            for wrong in ({}, {"ids": [first["id"]], "all": True}):
                await call("POST", "dead-letters/plain/replay", wrong, 400)
            assert (await call("POST", "dead-letters/plain/replay", {"ids": [first["id"], "none"]}))["replayed"] == 1
            await until(4)  # it has failed again
            gone = await call("POST", "dead-letters/plain/discard", {"ids": [first["id"], "none"]})
            assert (gone["removed"], gone["not_removed"]) == (1, ["none"])
            await call("POST", "dead-letters/plain/purge", {}, 400)
            assert (await call("POST", "dead-letters/plain/purge", {"all": True, "dry_run": True}))["removed"] == 3
            assert (await call("POST", "dead-letters/plain/purge", {"reason": "amount"}))["removed"] == 3
            await until(0)


async def test_each_verb_needs_its_role_and_a_key_for_all_that_it_touches():
    async with StubCluster(partitions=8) as cluster:
        gridscore = await prepared(cluster, JOB, PLAIN)
        grid, keys = gridscore.grid, Keys(gridscore.grid)
        texts = {role: (await keys.create([role]))[1] for role in Role}
        async with serving(cluster, keys=True) as server, client(server) as http:

            async def ask(method, path, text, **options):
                shown = {"Authorization": f"Bearer {text}"}
                if "content" in options:
                    shown["Content-Type"] = "application/octet-stream"
                return await http.request(method, f"/control/{path}", headers=shown, **options)

            for method, path, role, work in VERBS:
                # There is none of that name: who may is told so, or what is missing.
                address = path.format(job="none", model="none", name="none", letter="x", key="x", alias="x", version=1)
                address += "?version=1" if path.endswith("/check") else ""
                assert (await http.request(method, f"/control/{address}")).status_code == 401
                body = {"json": BODIES.get(work.__name__, {})} if method in ("POST", "PUT") else {}
                body = {"content": b"no model"} if work.__name__ == "push_model" else body
                for shown, text in texts.items():
                    status = (await ask(method, address, text, **body)).status_code
                    good = {200} if "{" not in path else {400, 404, 409}
                    assert status in (good if shown is role else {403}), (work, shown, status)
            assert {path for method, path, role, _ in VERBS if role is Role.READ and method != "GET"} == set()
            done = await ActionLog(grid).list()
            assert [each.verb for each in done if each.outcome == "done"] == ["create-key"]
            assert {each.by for each in done} <= {key.id for key in await keys.list()}

            _, mine = await keys.create(
                [Role.READ, Role.OPERATE, Role.ADMIN], ["cards", "results.cards", "alerts.cards"]
            )
            assert (await ask("GET", "jobs/cards", mine)).status_code == 200
            for method, path, body in (
                ("GET", "jobs", None),
                ("GET", "jobs/plain", None),
                ("POST", "jobs/plain/suspend", {}),
                ("POST", "models/plain/rollback", {}),
                ("POST", "keys", {"roles": ["score"]}),
                # A job file names maps of others.
                ("PUT", "jobs/cards", {"job": JOB, "update": True}),
                ("PUT", "jobs/cards", {"job": MINE + "labels: {map: others, field: label}\n", "update": True}),
                ("PUT", "jobs/cards", {"job": MINE + "drift: {alerts: others}\n", "update": True}),
                ("PUT", "jobs/cards", {"job": MINE + SHOWING, "update": True}),
                ("DELETE", "jobs/cards", None),
            ):
                answer = await ask(method, path, mine, json=body)
                assert answer.status_code == 403, (path, answer.text)
                assert "is not for this: it needs" in answer.json()["detail"]
            _, less = await keys.create([Role.ADMIN], ["cards", "results.cards"])
            answer = await ask("PUT", "jobs/cards", less, json={"job": MINE, "update": True})
            assert (answer.status_code, "`alerts.cards`" in answer.json()["detail"]) == (403, True), answer.text
            # Past the gates nobody goes who only operates.
            _, operator = await keys.create([Role.OPERATE])
            for more in ({"override": "it is late"}, {"allow_changed_features": True}):
                body = {"version": 1, **more}
                assert (await ask("POST", "models/cards/promote", operator, json=body)).status_code == 403
            body = {"ids": ["x"], "with_events": True}
            assert (await ask("POST", "dead-letters/cards/discard", operator, json=body)).status_code == 403
            made = (await ask("POST", "keys", texts[Role.ADMIN], json={"roles": ["read"], "note": "new"})).json()
            async with asyncio.timeout(20):
                while (await ask("GET", "jobs", made["key"])).status_code != 200:
                    await asyncio.sleep(0.05)
            assert (await ask("DELETE", f"keys/{made['id']}", texts[Role.ADMIN])).json() == {"revoked": made["id"]}
            async with asyncio.timeout(20):
                while (await ask("GET", "jobs", made["key"])).status_code != 401:
                    await asyncio.sleep(0.05)
            assert made["key"] not in (await ask("GET", "log", texts[Role.READ])).text


async def test_what_is_done_is_noted_before_and_what_cannot_be_noted_is_not_done():
    async with StubCluster(partitions=8) as cluster:
        gridscore = await prepared(cluster, PLAIN)
        key, text = await Keys(gridscore.grid).create([Role.OPERATE])
        shown = {"Authorization": f"Bearer {text}"}
        async with serving(cluster, keys=True) as server, client(server) as http:
            await http.post("/control/jobs/plain/suspend", json={"why": "night"}, headers=shown)
            await http.post("/control/models/plain/promote", json={"version": 7, "points_at": 1}, headers=shown)
            log = await ActionLog(gridscore.grid).list()
            said = [(each.by, each.verb, each.target, each.detail, each.why) for each in log]
            assert said == [
                (key.id, "promote-model", "plain", "points_at 1, version 7", ""),
                (key.id, "suspend-job", "plain", "", "night"),
            ]
            assert [each.outcome for each in log] == ["The model `plain` has no version 7.", "done"]
            await Records(gridscore.grid, ACTIONS_MAP).put("log", {"actions": "none"})
            answer = await http.post("/control/jobs/plain/resume", headers=shown)
            assert (answer.status_code, "cannot be used, so nothing is done" in answer.json()["detail"]) == (503, True)
            assert (await gridscore.jobs.get("plain")).state == "SUSPENDED"


async def test_errors_are_those_of_the_command_line_and_bodies_are_bounded():
    async with StubCluster(partitions=8) as cluster:
        gridscore = await prepared(cluster, PLAIN)
        async with serving(cluster, token=TOKEN, max_body=4 << 20) as server, client(server) as http:
            call = Caller(http)
            with pytest.raises(JobError) as error:
                await gridscore.jobs.suspend("plane")
            said = await call("POST", "jobs/plane/suspend", status=404)
            assert (said["detail"], said["hint"], said["exit_code"]) == (error.value.message, error.value.hint, 6)
            assert "Did you mean `plain`?" in said["hint"]
            wrong = await call("PUT", "jobs/plain", {"job": "job: plain\nevnts: x\n"}, 400)
            assert "Did you mean `events`" in wrong["detail"] or "evnts" in wrong["detail"]
            await call("PUT", "jobs/cards", {"job": PLAIN}, 400)
            kind = {**ALL, "Content-Type": "application/json"}
            for content, status in (
                (b"{", 400),
                (b'{"why": "\\ud800"}', 400),
                (b"[" * 100_000, 400),
                (b'{"why": "\xff"}', 400),
                (b'{"why": "' + b"x" * 301 + b'"}', 400),
                (b'{"reason": "spelt otherwise"}', 400),
                (b'{"why": "' + b"x" * (2 << 20) + b'"}', 413),
                (b"x" * (5 << 20), 413),
            ):
                answer = await http.post("/control/jobs/plain/suspend", content=content, headers=kind)
                assert answer.status_code == status, (content[:20], answer.text)
                assert answer.headers["content-type"] == "application/problem+json"
            other = {**ALL, "Content-Type": "application/octet-stream+json"}  # which FastAPI reads as JSON
            large = b'{"why": "' + b"x" * (2 << 20) + b'"}'
            assert (await http.post("/control/jobs/plain/suspend", content=large, headers=other)).status_code == 413
            packed = {**kind, "Content-Encoding": "gzip"}
            assert (await http.post("/control/jobs/plain/suspend", content=b"{}", headers=packed)).status_code == 415
            assert (await http.get("/control/none", headers=ALL)).status_code == 404
            assert (await http.get("/control/jobs/plain/suspend", headers=ALL)).status_code == 405
            assert (await gridscore.jobs.get("plain")).state != "SUSPENDED"
            assert server._scores._bodies.held == 0


async def test_what_may_be_done_in_part_is_not_to_be_asked_for_again_unseen(monkeypatch):
    async with StubCluster(partitions=8) as cluster:
        await prepared(cluster, PLAIN)
        async with serving(cluster, token=TOKEN) as server, client(server) as http:
            monkeypatch.setattr(acting, "SECONDS", 0.0)
            answer = await http.post("/control/jobs/plain/restart", headers=ALL)
            assert (answer.status_code, answer.headers.get("retry-after")) == (504, None)
            assert "in part" in answer.json()["detail"]
            monkeypatch.setattr(control, "READ_SECONDS", 0.0)
            answer = await http.get("/control/models/plain/check?version=1", headers=ALL)
            assert (answer.status_code, answer.headers.get("retry-after")) == (503, "1")
            assert "took more than" in answer.json()["detail"]
            assert answer.json()["hint"]


async def test_pages_of_others_and_who_shows_nothing_change_nothing():
    async with StubCluster(partitions=8) as cluster:
        gridscore = await prepared(cluster, PLAIN)
        path, friend = "/control/jobs/plain/suspend", "https://shop.example"
        async with serving(cluster, token=TOKEN, allow_origin=[friend]) as server, client(server) as http:
            for origin in (friend, "https://evil.example", "null"):
                assert (await http.post(path, headers={**ALL, "Origin": origin})).status_code == 403
            own = {**ALL, "Origin": server.http.address}
            assert (await http.post(path, headers={**own, "Host": "evil.example"})).status_code == 403
        async with serving(cluster) as server, client(server) as http:
            assert (await http.get("/control/jobs")).status_code == 200
            assert "--keys" in (await http.post(path)).json()["hint"]
            assert (await http.get("/control/jobs", headers={"Host": "evil.example"})).status_code == 403
            assert (await http.get("/control/keys")).status_code == 403
        assert (await gridscore.jobs.get("plain")).state != "SUSPENDED"


async def test_each_verb_is_described_and_can_be_called_as_described():
    async with StubCluster(partitions=8) as cluster:
        await prepared(cluster, PLAIN)
        async with serving(cluster, token=TOKEN) as server, client(server) as http:
            said = (await http.get("/openapi.json", headers=ALL)).json()
            for method, path, _, work in VERBS:
                found = said["paths"][f"/control/{path}"][method.lower()]
                assert found["operationId"] == work.__name__
                assert found["description"]
                assert "application/problem+json" in found["responses"]["4XX"]["content"]
            names = [each["operationId"] for path in said["paths"].values() for each in path.values()]
            assert len(names) == len(set(names))
            assert msgspec.json.encode(said)
