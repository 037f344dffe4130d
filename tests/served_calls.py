"""Has schemathesis call all that is served, as OpenAPI describes it: nothing meets a fault of ours.

`python -m tests.served_calls` does it over a real member, some 20,000 times; it prints what was found, and how many
calls there were. Names and versions that there are take the place of what would only be answered with 404; the streams
of results, which do not end, are left out.
"""

import argparse
import asyncio
import json
import logging
import re
import shutil
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import xgboost as xgb

from gridscore.client import connect
from gridscore.dead_letters.letters import walk_letters
from gridscore.grid.member import Cluster
from gridscore.job import parse_job
from gridscore.scoring import Worker
from gridscore.serve.server import Server
from gridscore.serve.settings import ServeSettings

TOKEN = "of-this-test"  # noqa: S105
JOB = """\
job: {name}
events: events.{name}
schema: {{amount: float}}
features: {{amount: amount}}
model: plain
results: results.{name}
"""
KNOWN = {
    "job": ["plain", "spare", "none"],
    "model": ["plain", "none"],
    "map": ["events.plain", "results.plain", "none"],
    "alias": ["champion", "none"],
    "number": ["1", "9"],
    # Longer ones would only take time.
    "wait": ["0", "10ms"],
    "timeout": ["100ms", "2s"],
}
PROPERTIES = {
    "job": {"enum": [JOB.format(name=name) for name in ("plain", "spare")] + ["job: none"]},
    "version": {"type": "integer", "minimum": 1, "maximum": 4},
    "patience": {"type": "number", "minimum": 0, "maximum": 0.1},
    "begin": {"enum": ["oldest", "latest", "committed", "2026-01-31T12:00:00Z"]},
    "every": {"enum": ["1s", "1h"]},
    "alias": {"enum": KNOWN["alias"]},
}
# What we promise to say where the cluster is busy, or what was done is unknown.
CONFIGURATION = """\
[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 503, 504]
"""
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
SECONDS = 60


class Called(NamedTuple):
    """What came of it."""

    calls: int
    problems: str  # empty if there are none


@asynccontextmanager
async def served(client, grid):
    """A server over a cluster with two jobs, a worker, versions of a model, and dead letters."""
    random = np.random.default_rng(3)
    rows = random.uniform(0, 100, (200, 1)).astype(np.float32)
    data = xgb.DMatrix(rows, (rows[:, 0] > 50).astype(int), feature_names=["amount"])
    for rounds in (3, 5):
        model = xgb.train({"objective": "binary:logistic", "nthread": 1}, data, rounds)
        await client.push_model(model, "plain", alias="champion")
    for name in ("plain", "spare"):
        await client.submit(parse_job(JOB.format(name=name), "test"))
    await client.put_events("events.plain", {f"bad{n}": {"amount": "much"} for n in range(20)})
    settings = ServeSettings(port=0, token=TOKEN, to="events.plain", results=["results.plain"])
    server = Server(grid, settings)
    async with Worker(client.grid, ["plain", "spare"]):
        task = asyncio.create_task(server.run())
        try:
            async with asyncio.timeout(SECONDS):
                while not (task.done() or server.opened.is_set()):
                    await asyncio.sleep(0.02)
            yield server
        finally:
            server.stop()
            await task


def described(said, letters):
    """The description, with names that there are."""
    said["paths"] = {path: methods for path, methods in said["paths"].items() if not path.endswith("/stream")}
    for path, methods in said["paths"].items():
        name = ["plain", "none"] if "dead-letters" not in path else ["plain", "spare", "none"]
        known = KNOWN | {"name": name, "letter": [*letters[:3], "none"], "before": [*letters[:3], "none"]}
        for operation in methods.values():
            for each in operation.get("parameters", ()):
                if each["name"] in known:
                    each["schema"] = {"type": "string", "enum": known[each["name"]]}
                elif each["name"] == "version":
                    each["schema"] = PROPERTIES["version"]
    for schema in said["components"]["schemas"].values():
        for name in PROPERTIES.keys() & schema.get("properties", {}).keys():
            schema["properties"][name] = PROPERTIES[name]
        if "ids" in schema.get("properties", {}):
            schema["properties"]["ids"]["items"] = {"enum": [*letters, "none"]}
    return said


async def call_all(client, server, *options):
    """Call all that a server offers; the server must not have failed, and be well afterwards."""
    command = shutil.which("schemathesis", path=Path(sys.executable).parent)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    failed = _Failures()
    logging.getLogger("gridscore").addHandler(failed)
    try:
        async with httpx.AsyncClient(base_url=server.http.address, headers=headers, timeout=SECONDS) as http:
            async with asyncio.timeout(SECONDS):
                while (await http.post("/score/plain", json={"amount": 1.0})).status_code != 200:
                    await asyncio.sleep(0.05)
                while "/events/{map}" not in (said := (await http.get("/openapi.json")).json())["paths"]:
                    await asyncio.sleep(0.05)
                while len(letters := [each.id async for each in walk_letters(client.grid, "plain")]) < 20:
                    await asyncio.sleep(0.05)
            with tempfile.TemporaryDirectory() as folder:
                _write(Path(folder), described(said, letters))
                words = ["run", "openapi.json", "--url", server.http.address, "-H", f"Authorization: Bearer {TOKEN}"]
                words += ["--checks", CHECKS, "--continue-on-failure", "--suppress-health-check", "all"]
                words += ["--no-color", "--request-timeout", "90", "--generation-database", "none", *options]
                process = await asyncio.create_subprocess_exec(
                    command, *words, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
                )
                text = (await process.communicate())[0].decode()
            healthy = await http.get("/healthz")
    finally:
        logging.getLogger("gridscore").removeHandler(failed)
    problems = [text] if process.returncode else []
    problems += [f"The server is not well: {healthy.text}"] if healthy.status_code != 200 else []
    counted = re.search(r"(\d[\d,]*) generated", text)
    return Called(int(counted[1].replace(",", "")) if counted else 0, "\n".join([*problems, *failed.said]))


def _write(folder, said):
    (folder / "openapi.json").write_text(json.dumps(said))
    (folder / "schemathesis.toml").write_text(CONFIGURATION)


class _Failures(logging.Handler):
    """Errors that the server has logged."""

    def __init__(self):
        super().__init__(logging.ERROR)
        self.said = []

    def emit(self, record):
        self.said.append(self.format(record))


async def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--examples", type=int, default=400, help="calls of each operation")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--workers", type=int, default=1, help="that call at once")
    given = parser.parse_args()
    with Cluster.start(1, port=0, heap="1g") as cluster:
        options = {"members": cluster.addresses, "cluster_name": cluster.cluster_name}
        async with connect(**options) as client, connect(**options) as other, served(client, other.grid) as server:
            words = ["--max-examples", f"{given.examples}", "--seed", f"{given.seed}", "--workers", f"{given.workers}"]
            done = await call_all(client, server, "--phases", "examples,coverage,fuzzing", *words)
    print(done.problems)  # noqa: T201
    print(f"{done.calls:,} calls, {'with problems' if done.problems else 'no problem'}")  # noqa: T201
    return 1 if done.problems or not done.calls else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
