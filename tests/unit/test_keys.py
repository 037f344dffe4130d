"""Keys: each opens what it is for, until it is revoked or its time is over; who guesses waits."""

import asyncio
import datetime as dt
import json

import pytest
from http_listening import EVENTS, listening
from http_listening import client as client_of
from serving import PLAIN, client, prepared, serving
from typer.testing import CliRunner

from gridscore import keys as keys_module
from gridscore.errors import UsageError
from gridscore.keys import KEYS_MAP, Key, Keys, Rates, Role
from gridscore.sources.http import gate
from gridscore.sources.http.settings import HttpSourceSettings
from gridscore.sources.http.source import HttpSource
from gridscore.testing import StubCluster

EVENT = {"amount": 1}


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(gate, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(keys_module, "_PAUSE_SECONDS", 0.0)


def shown(text):
    return {"Authorization": f"Bearer {text}".strip().encode("latin-1")}


async def test_a_key_opens_what_it_is_for_and_nothing_else():
    async with StubCluster(partitions=8) as cluster:
        gridscore = await prepared(cluster, PLAIN)
        keys = Keys(gridscore.grid)
        settings = {"keys": True, "to": EVENTS, "also": ("events.plain",), "results": ("results.plain",)}
        async with serving(cluster, "plain", **settings) as server, client(server) as http:
            asked = {
                "score": ("POST", "/score/plain", 200),
                "record": ("POST", "/score/plain?record=true&timeout=10ms", 504),
                "spelt": ("POST", "/score/plain?rec%6Frd=true&timeout=10ms", 504),
                "infer": ("GET", "/v2/models/plain", 200),
                "events": ("POST", f"/events/{EVENTS}", 202),
                "other events": ("POST", "/events/events.plain", 202),
                "result": ("GET", "/results/results.plain/none", 404),
                "lists": ("GET", "/jobs", 200),
                "server": ("GET", "/v2", 200),
            }

            async def opened(*roles, only=()):
                _, text = await keys.create(roles, only)
                found = set()
                for name, (method, path, status) in asked.items():
                    answer = await http.request(method, path, json=EVENT, headers=shown(text))
                    assert answer.status_code in (status, 403), (name, answer.text)
                    found |= {name} if answer.status_code == status else set()
                return found

            assert await opened(Role.SCORE) == {"score", "infer", "server"}
            assert await opened(Role.INGEST) == {"events", "other events", "server"}
            assert await opened(Role.READ) == {"result", "lists", "server"}
            assert await opened(*Role) == set(asked)
            assert await opened(*Role, only=("plain",)) == {"score", "record", "spelt", "infer", "server"}
            assert await opened(*Role, only=(EVENTS, "results.plain")) == {"events", "result", "server"}
            for path in ("/healthz", "/v2/health/live", "/v2/health/ready"):
                assert (await http.get(path)).status_code == 200


async def test_what_is_not_a_key_any_more_opens_nothing():
    async with StubCluster(partitions=8) as cluster:
        gridscore = await prepared(cluster, PLAIN)
        keys = Keys(gridscore.grid)
        async with serving(cluster, "plain", keys=True, token="secret") as server, client(server) as http:  # noqa: S106

            async def status(text):
                return (await http.post("/score/plain", json=EVENT, headers=shown(text))).status_code

            key, text = await keys.create([Role.SCORE], seconds=3600)
            _, other = await keys.create([Role.SCORE])
            assert [await status(each) for each in (text, other, "secret")] == [200] * 3
            mixed = f"gs_{key.id}_{other.rpartition('_')[2]}"
            for wrong in ("", "x", text[:-1], f"{text}x", mixed, f"gs_{'0' * 12}_{'A' * 43}", "ü", key.digest):
                assert await status(wrong) == 401, wrong
            assert (await http.post("/score/plain", json=EVENT)).status_code == 401

            record = await keys._records.get(key.id)
            past = (dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1)).isoformat()
            await keys._records.replace(record, {**record.value, "expires_at": past})
            assert await status(text) == 401
            await keys.revoke(_id(other))
            assert await status(other) == 401
            assert [each.id for each in await keys.list()] == [key.id]
            with pytest.raises(UsageError, match="There is no key"):
                await keys.revoke("0" * 12)


def _id(text):
    return text.split("_")[1]


async def test_the_grid_holds_no_key_and_a_damaged_record_opens_nothing():
    async with StubCluster(partitions=8) as cluster:
        gridscore = await prepared(cluster)
        keys = Keys(gridscore.grid)
        key, text = await keys.create([Role.READ], note="till")
        record = await keys._records.get(key.id)
        assert text.removeprefix(f"gs_{key.id}_") not in record.raw
        assert "digest" not in key.to_json()
        for damage in ({"digest": ""}, {"roles": []}, {"roles": ["root"]}, {"expires_at": "never"}):
            await keys._records.put(key.id, {**record.value, **damage})
            assert await keys.find(text) is None
        await keys._records.put(key.id, record.value)
        assert await keys.find(text) == key
        assert KEYS_MAP == "gridscore.keys"


async def test_who_guesses_waits_longer_each_time(monkeypatch):
    monkeypatch.setattr(gate, "WAIT_SECONDS", 0.05)
    monkeypatch.setattr(gate, "LONGEST_SECONDS", 0.12)
    now = asyncio.get_running_loop().time
    async with listening(token="secret") as source, client_of(source) as http:  # noqa: S106
        for least in (0.05, 0.1, 0.12, 0.12):
            began = now()
            assert (await http.post(f"/events/{EVENTS}", json={}, headers=shown("guess"))).status_code == 401
            assert now() - began >= least
        assert (await http.post(f"/events/{EVENTS}", json={}, headers=shown("secret"))).status_code == 202


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])  # noqa: S104 -- to be refused
async def test_it_does_not_listen_to_strangers_unless_they_show_something(host):
    async with StubCluster() as cluster:
        grid = await cluster.connect()

        def source(**given):
            return HttpSource(grid, "test", HttpSourceSettings(to=EVENTS, host=host, port=0, **given))

        with pytest.raises(UsageError, match="Anybody who reaches"):
            await source().open()
        for given in ({"keys": True}, {"token": "secret"}, {"public": True}):
            opened = source(**given)
            await opened.open()
            assert opened.address
            await opened.close()


def test_a_key_is_of_few_names_and_known_roles():
    from gridscore.cli.key import app

    for arguments in (["--role", "root"], ["--role", "score", "--expires", "soon"], []):
        assert CliRunner().invoke(app, ["create", *arguments]).exit_code != 0
    digest = "0" * 64
    key = Key(id="0" * 12, roles=(Role.SCORE,), digest=digest, created_at=dt.datetime.now(dt.UTC))
    assert json.loads(json.dumps(key.to_json()))["roles"] == ["score"]


async def test_a_key_with_a_rate_is_told_when_to_come_again_and_others_are_not():
    async with StubCluster(partitions=8) as cluster:
        gridscore = await prepared(cluster, PLAIN)
        keys = Keys(gridscore.grid)
        (limited, text), (_, free) = await keys.create([Role.SCORE], rate="3/h"), await keys.create([Role.SCORE])
        async with serving(cluster, "plain", keys=True) as server, client(server) as http:

            async def ask(key, path="/score/plain"):
                return await http.post(path, json=EVENT, headers=shown(key))

            assert [(await ask(text, path)).status_code for path in ("/score/plain", "/jobs", "/score/plain")] == [
                200,
                403,
                200,
            ]
            over = await ask(text)
            assert over.status_code == 429
            assert 1_190 <= int(over.headers["Retry-After"]) <= 1_200
            assert limited.id in over.json()["error"]
            assert {(await ask(free)).status_code for _ in range(10)} == {200}
            assert (await ask("gs_" + limited.id + "_" + "x" * 43)).status_code == 401


async def test_a_rate_comes_back_steadily_and_no_more_than_all_of_it():
    async with StubCluster(partitions=8) as cluster:
        key, _ = await Keys(await cluster.connect()).create([Role.READ], rate="2/s")
        rates = Rates()
        assert [rates.wait(key, 5.0) for _ in range(3)] == [0, 0, 0.5]
        assert [rates.wait(key, 5.25), rates.wait(key, 5.5), rates.wait(key, 5.5)] == [0.25, 0, 0.5]
        assert [rates.wait(key, 1e6) for _ in range(3)] == [0, 0, 0.5]


@pytest.mark.parametrize("rate", ["0/s", "100", "x/s", "1/d", "-1/s", "99999999/s", "1/s\n", "\u0663/s"])
async def test_what_is_not_a_rate_is_refused(rate):
    async with StubCluster(partitions=8) as cluster:
        with pytest.raises(UsageError, match="is not a rate"):
            await Keys(await cluster.connect()).create([Role.READ], rate=rate)
