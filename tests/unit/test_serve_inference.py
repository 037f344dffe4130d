"""The Open Inference Protocol, asked by hand; `tests/integration/test_serve.py` asks by a client of others."""

import asyncio
import json

import numpy as np
import pandas as pd
from serving import PLAIN, booster, client, prepared, serving, until

from gridscore.features import offline_matrix
from gridscore.job import parse_job
from gridscore.serve import live_models
from gridscore.testing import StubCluster

ROWS = np.array([[1, 2, 3, 4], [60, np.nan, 2, 0], [80.5, 1, 0, np.nan]], np.float32)


def request(rows=ROWS, **more):
    data = [None if np.isnan(x) else float(x) for x in rows.reshape(-1)]
    return {"inputs": [{"name": "features", "shape": list(rows.shape), "datatype": "FP32", "data": data}], **more}


def binary(rows, datatype="FP32", **more):
    data = rows.tobytes()
    tensor = {"name": "features", "shape": list(rows.shape), "datatype": datatype}
    head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": len(data)}}], **more}).encode()
    return head + data, {"Inference-Header-Content-Length": str(len(head))}


async def test_a_model_says_what_it_is_and_scores_rows_as_xgboost_does():
    expected = booster().inplace_predict(ROWS).tolist()
    async with StubCluster(partitions=8) as cluster:
        await prepared(cluster)
        async with serving(cluster) as server, client(server) as http:
            assert (await http.get("/v2/health/live")).status_code == 200
            assert (await http.get("/v2/health/ready")).json() == {"ready": True}
            assert (await http.get("/v2")).json()["name"] == "gridscore"
            found = (await http.get("/v2/models/cards")).json()
            assert found["inputs"][0]["shape"] == [-1, 4]
            assert found["inputs"][0]["parameters"]["features"] == ["amount", "ratio", "age", "risk"]
            assert (found["outputs"][0]["shape"], found["versions"]) == ([-1], ["1"])
            assert (await http.get("/v2/models/cards/ready")).status_code == 200

            answer = (await http.post("/v2/models/cards/infer", json=request(id="seven"))).json()
            assert (answer["id"], answer["model_name"], answer["model_version"]) == ("seven", "cards", "1")
            assert answer["outputs"][0] == {"name": "predict", "datatype": "FP32", "shape": [3], "data": expected}
            nested = request()
            nested["inputs"][0]["data"] = [[None if np.isnan(x) else float(x) for x in row] for row in ROWS]
            again = (await http.post("/v2/models/cards/versions/1/infer", json=nested)).json()
            assert again["outputs"] == answer["outputs"]
            body, headers = binary(ROWS.astype(np.float64), "FP64", parameters={"binary_data_output": True})
            packed = await http.post("/v2/models/cards/infer", content=body, headers=headers)
            cut = int(packed.headers["inference-header-content-length"])
            assert json.loads(packed.content[:cut])["outputs"][0]["parameters"] == {"binary_data_size": 12}
            assert np.frombuffer(packed.content[cut:], "<f4").tolist() == expected
            asked = [http.post("/v2/models/cards/infer", json=request(ROWS[n % 3 : n % 3 + 1])) for n in range(30)]
            alone = [each.json()["outputs"][0]["data"] for each in await asyncio.gather(*asked)]
            assert alone == [[expected[n % 3]] for n in range(30)]


async def test_the_champion_is_swapped_live_and_one_that_cannot_be_loaded_is_not():
    async with StubCluster(partitions=8) as cluster:
        gridscore = await prepared(cluster)
        async with serving(cluster) as server, client(server) as http:

            async def version():
                answer = await http.post("/v2/models/cards/infer", json=request())
                assert answer.status_code == 200, answer.text
                return answer.json()["model_version"]

            assert await version() == "1"
            await gridscore.push_model(booster(9), "cards", alias="champion")
            async with asyncio.timeout(20):
                while await version() != "2":
                    await asyncio.sleep(0.01)
            assert (await http.get("/v2/models/cards/versions/1/ready")).status_code == 200
            await gridscore.push_model(booster(3), "cards")
            chunks = await server._grid.map("gridscore.model-chunks")
            uploads = (await gridscore.models._record("cards")).versions
            broken = f"cards/{uploads[3].upload}/0"
            assert await chunks.get(broken) is not None
            await chunks.put(broken, "damaged")
            await gridscore.promote_model("cards", 3)
            await until(lambda: server._models._refused)
            assert await version() == "2"
            assert (await http.get("/v2/models/cards/versions/3/ready")).status_code == 404
            await gridscore.models.delete("cards", 1)
            await until(lambda: ("cards", 1) not in server._models._live)
            assert (await http.post("/v2/models/cards/versions/1/infer", json=request())).status_code == 404


async def test_few_versions_stay_loaded(monkeypatch):
    monkeypatch.setattr(live_models, "MAX_LOADED", 1)
    async with StubCluster(partitions=8) as cluster:
        await prepared(cluster)
        async with serving(cluster) as server, client(server) as http:
            for name in ("cards", "plain", "cards"):
                assert (await http.get(f"/v2/models/{name}/ready")).status_code == 200
                assert list(server._models._live) == [(name, 1)]


def changed(**fields):
    body = request()
    body["inputs"][0] |= fields
    return body


REFUSED = [
    ("cards", {}, 400),
    ("cards", {"inputs": []}, 400),
    ("cards", changed(name="x"), 400),
    ("cards", changed(shape=[3, 5]), 400),
    ("cards", changed(shape=[2, 4]), 400),
    ("cards", changed(shape=[-3, 4]), 400),
    ("cards", changed(shape=[1 << 62, 4]), 400),
    ("cards", changed(shape=[12]), 400),
    ("cards", changed(datatype="BYTES"), 400),
    ("cards", changed(data=["x"]), 400),
    ("cards", changed(data=[[1, 2], [3]]), 400),
    ("cards", changed(data=None), 400),
    ("cards", changed(parameters={"binary_data_size": 48}), 400),
    ("cards", request(outputs=[{"name": "x"}]), 400),
    ("cards", request(np.zeros((4_097, 4), np.float32)), 400),
    ("none", request(), 404),
    ("cards/versions/9", request(), 404),
    ("cards/versions/x", request(), 404),
    ("..%2f..", request(), 404),
]


async def test_what_is_not_for_a_model_is_refused():
    async with StubCluster(partitions=8) as cluster:
        await prepared(cluster)
        async with serving(cluster) as server, client(server) as http:
            for path, body, status in REFUSED:
                answer = await http.post(f"/v2/models/{path}/infer", json=body)
                assert (answer.status_code, list(answer.json())) == (status, ["error"]), (path, answer.text)
            for length in ("0", "-1", "9999999", "x", "5"):
                head = {"Inference-Header-Content-Length": length}
                refused = await http.post("/v2/models/cards/infer", json=request(), headers=head)
                assert refused.status_code == 400, refused.text
            assert (await http.post("/v2/models/cards/infer", json=request())).status_code == 200


async def test_a_model_with_a_margin_is_refused_and_what_is_too_large_is_missing():
    job = parse_job(PLAIN.replace("features:", "margin: log1p(amount)\nfeatures:"), "test")
    model = booster(features=("amount",)).copy()
    offline_matrix(job, pd.DataFrame({"amount": [1.0, 2.0]})).attach(model)
    large = np.array([[1e300, 1, 1, 1], [-np.inf, 1, 1, 1], [np.nan, 1, 1, 1]])
    async with StubCluster(partitions=8) as cluster:
        gridscore = await prepared(cluster)
        await gridscore.push_model(model, "exposed", alias="champion")
        async with serving(cluster) as server, client(server) as http:
            refused = await http.post("/v2/models/exposed/infer", json=request(ROWS[:, :1]))
            assert refused.status_code == 400
            assert "begin with a margin (`log1p(amount)`)" in refused.json()["error"]
            for rows, datatype in ((large, "FP64"), (np.float32([[np.inf, 1, 1, 1], *large[1:]]), "FP32")):
                body, headers = binary(rows, datatype)
                answer = await http.post("/v2/models/cards/infer", content=body, headers=headers)
                scores = answer.json()["outputs"][0]["data"]
                assert scores == [float(booster().inplace_predict(np.float32([[np.nan, 1, 1, 1]]))[0])] * 3


async def test_rows_that_cannot_be_predicted_harm_no_other_request(monkeypatch):
    async with StubCluster(partitions=8) as cluster:
        await prepared(cluster)
        async with serving(cluster) as server, client(server) as http:
            assert (await http.get("/v2/models/cards/ready")).status_code == 200
            live = await server._models.get("cards", None)
            predict = live._model.predict

            def picky(rows, margins=None):
                if (rows == 13).any():
                    raise ValueError("no thirteen")
                return predict(rows, margins)

            monkeypatch.setattr(live._model, "predict", picky)
            bad, good = np.full((1, 4), 13, np.float32), ROWS[:1]
            asked = [live.predict(rows, lambda: False, 9.0) for rows in (good, bad, good)]
            one, two, three = await asyncio.gather(*asked, return_exceptions=True)
            assert one == three == predict(good)
            assert "no thirteen" in str(two)
            answer = await http.post("/v2/models/cards/infer", json=request(bad))
            assert (answer.status_code, "no thirteen" in answer.json()["error"]) == (400, True)


async def test_a_length_of_too_many_digits_is_not_our_fault():
    async with StubCluster(partitions=8) as cluster:
        await prepared(cluster)
        async with serving(cluster) as server, client(server) as http:
            head = {"Inference-Header-Content-Length": "9" * 5_000}  # more than Python makes a number of
            answer = await http.post("/v2/models/cards/infer", json=request(), headers=head)
            assert (answer.status_code, "is not a number of the body" in answer.json()["error"]) == (400, True)


async def test_without_the_cluster_it_is_not_ready_and_says_so():
    async with StubCluster(partitions=8) as cluster:
        await prepared(cluster)
        async with serving(cluster) as server, client(server) as http:
            assert (await http.get("/v2/models/cards/ready")).status_code == 200
            cluster.cut("server")
            await until(lambda: not server._grid.is_connected)
            assert (await http.get("/v2/health/live")).status_code == 200
            for asked in (http.get("/v2/health/ready"), http.post("/v2/models/cards/infer", json=request())):
                answer = await asked
                assert (answer.status_code, "connection" in answer.json()["error"]) == (503, True)
            cluster.heal()
            await until(lambda: server._grid.is_connected)
            assert (await http.post("/v2/models/cards/infer", json=request())).status_code == 200
