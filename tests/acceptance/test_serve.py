"""`gridscore serve` and `gridscore key` on a real member: as operators start them, asked by clients of others."""

import json
import re
import signal
import subprocess
import sys

import httpx
import numpy as np
import xgboost as xgb
from commands import until, with_client

from gridscore.job import parse_job

JOB = """\
job: {name}
events: events.{name}
schema: {{amount: float, customer: string}}
lookups:
  customer: {{map: lookups.{name}, key: customer, fields: {{age: int}}}}
features: {{amount: amount, age: customer.age}}
model: {name}
decisions: [{{decision: decline, at_least: 0.5}}, {{decision: approve}}]
results: results.{name}
"""
EVENTS = [{"amount": 10.0 * n, "customer": f"c{n}"} for n in range(12)]  # the last two are in no lookup
TRITON = """
import json, sys
import numpy as np
import tritonclient.http as triton

address, key, model, rows = sys.argv[1], sys.argv[2], sys.argv[3], np.array(json.loads(sys.argv[4]), np.float32)
client = triton.InferenceServerClient(address)
headers = {"Authorization": "Bearer " + key}  # to which `infer` adds the length of its JSON, for good
assert client.is_server_live() and client.is_server_ready()
assert client.is_model_ready(model, headers=headers) and client.is_model_ready(model, "1", headers=headers)
assert client.get_server_metadata(headers=headers)["name"] == "gridscore"
[tensor] = client.get_model_metadata(model, headers=headers)["inputs"]
assert tensor["shape"] == [-1, rows.shape[1]]
found = []
for binary in (True, False):
    given = triton.InferInput(tensor["name"], list(rows.shape), tensor["datatype"])
    given.set_data_from_numpy(rows, binary_data=binary)
    for outputs in (None, [triton.InferRequestedOutput("predict", binary_data=binary)]):
        answer = client.infer(model, [given], outputs=outputs, headers={**headers}, request_id="7")
        assert answer.get_response()["id"] == "7"
        found.append(answer.as_numpy("predict").tolist())
try:
    client.infer("none", [given], headers={**headers})
except triton.InferenceServerException as error:
    assert "needs score with `none`" in error.message(), error.message()
else:
    raise AssertionError("it has answered for a model that the key is not for")
print(json.dumps(found))
"""


def booster():
    rows = np.random.default_rng(3).uniform(0, 100, (200, 2)).astype(np.float32)
    data = xgb.DMatrix(rows, (rows[:, 0] > 50).astype(int), feature_names=["amount", "age"])
    return xgb.train({"objective": "binary:logistic", "nthread": 1}, data, 5)


def plain(result):
    return {name: result[name] for name in ("score", "decision", "version", "model", "revision")}


def test_scores_models_streams_and_keys(cluster, run, start, unique):
    name = f"serve-{unique}"

    async def prepare(client):
        await client.put_events(f"lookups.{name}", {f"c{n}": {"age": 30 + n} for n in range(10)})
        await client.push_model(booster(), name, alias="champion")
        await client.submit(parse_job(JOB.format(name=name), "test"))

    with_client(cluster, prepare)
    assert run("serve", "--host", "0.0.0.0", code=2).stderr.count("--keys") == 1  # noqa: S104 -- it is refused
    roles = [part for role in ("score", "ingest", "read") for part in ("--role", role)]
    key = json.loads(run("key", "create", *roles, "--only", name, "--expires", "1h", "--json").stdout)
    assert key["id"] in [each["id"] for each in json.loads(run("key", "list", "--json").stdout)]
    start("worker", "--jobs", name)
    process, log = start("serve", "--port", "0", "--keys", "--jobs", name)
    address = until(lambda: re.search(r"Serving at (\S+)", log.read_text()))[1]
    shown = {"Authorization": f"Bearer {key['key']}"}
    with httpx.Client(base_url=address, headers=shown, timeout=60) as http:
        until(lambda: http.post(f"/score/{name}", json=EVENTS[0]).status_code == 200)
        computed = http.post(f"/score/{name}", json=EVENTS).json()
        assert {each["decision"] for each in computed} == {"approve", "decline"}
        with http.stream("GET", f"/results/{name}/stream") as stream:
            lines = stream.iter_lines()
            assert next(lines).startswith("retry")
            recorded = http.post(f"/score/{name}?record=true&timeout=60s&key=e", json=EVENTS).json()
            assert list(map(plain, recorded)) == list(map(plain, computed))
            seen = {}
            while len(seen) < len(EVENTS):
                kind, _, data = next(lines).partition(": ")
                if kind == "data":
                    result = json.loads(data)
                    seen[result["key"]] = plain(result)
            assert seen == {each["key"]: plain(each) for each in recorded}

        rows = [[event["amount"], 30 + n] for n, event in enumerate(EVENTS[:10])]
        arguments = [address.removeprefix("http://"), key["key"], name, json.dumps(rows)]
        done = subprocess.run([sys.executable, "-c", TRITON, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == [[each["score"] for each in computed[:10]]] * 4

        run("key", "revoke", key["id"])
        until(lambda: http.post(f"/score/{name}", json=EVENTS[0]).status_code == 401)
    assert key["key"] not in log.read_text()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
