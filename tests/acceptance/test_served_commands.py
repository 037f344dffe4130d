"""Commands with a server: they print what those with members print, from a machine that knows no member."""

import http.server
import json
import os
import re
import socket
import subprocess
import threading

import numpy as np
import pytest
import xgboost as xgb
from commands import GRIDSCORE, until, with_client

from gridscore.job import parse_job

JOB = """\
job: {name}
events: events.{name}
schema: {{amount: float}}
features: {{amount: amount}}
model: {name}
results: results.{name}
"""


def booster(rounds):
    rows = np.random.default_rng(3).uniform(0, 100, (200, 1)).astype(np.float32)
    data = xgb.DMatrix(rows, (rows[:, 0] > 50).astype(int), feature_names=["amount"])
    return xgb.train({"objective": "binary:logistic", "nthread": 1}, data, rounds)


@pytest.fixture
def outside(tmp_path):
    """Runs `gridscore` where no member is known; gives what it printed."""
    known = {name: text for name, text in os.environ.items() if not name.startswith("GRIDSCORE_")}

    def go(*arguments, code=0, **environment):
        done = subprocess.run(
            [*GRIDSCORE, *arguments],
            env={**known, **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert code is None or done.returncode == code, (done.stdout, done.stderr)
        return done

    return go


@pytest.fixture
def site(cluster, run, start, unique):
    """A job with two versions of its model, a worker, dead letters; and a server with keys."""
    name = f"served-{unique}"

    async def prepare(client):
        for rounds in (3, 5):
            await client.push_model(booster(rounds), name, alias="champion")
        await client.submit(parse_job(JOB.format(name=name), "test"))
        await client.put_events(f"events.{name}", {f"bad{n}": {"amount": "much"} for n in range(3)})

    with_client(cluster, prepare)
    start("worker", "--jobs", name)
    _, log = start("serve", "--port", "0", "--keys", "--jobs", name)
    roles = [part for role in ("read", "operate", "admin") for part in ("--role", role)]
    key = json.loads(run("key", "create", *roles, "--expires", "1h", "--json").stdout)["key"]
    address = until(lambda: re.search(r"Serving at (\S+)", log.read_text()))[1]
    until(lambda: len(json.loads(run("dead-letters", "list", name, "--json").stdout)) == 3)
    yield name, {"GRIDSCORE_SERVER": address, "GRIDSCORE_KEY": key}
    assert key not in log.read_text()


def test_lists_are_those_of_the_members(site, run, outside):
    name, there = site

    def served(*words, code=0):
        return outside(*words, code=code, **there)

    run("suspend", name)  # nothing moves while it is compared
    for words in (
        ("model", "list"),
        ("model", "show", name, "--version", "1"),
        ("model", "log", name),
        ("model", "check", name, "--version", "1"),
        ("dead-letters", "list", name, "--limit", "2"),
        ("key", "list"),
        ("model", "show", name, "--json"),
        ("dead-letters", "list", name, "--json"),
    ):
        assert served(*words).stdout == run(*words).stdout, words
    letters = [each["id"] for each in json.loads(served("dead-letters", "list", name, "--json").stdout)]
    words = ("dead-letters", "show", name, letters[0])
    assert served(*words).stdout == run(*words).stdout


def test_jobs_and_models_are_moved_by_a_server(site, run, outside, tmp_path):
    name, there = site

    def served(*words, code=0):
        return outside(*words, code=code, **there)

    letters = [each["id"] for each in json.loads(served("dead-letters", "list", name, "--json").stdout)]
    run("suspend", name)
    row = next(line for line in served("jobs").stdout.splitlines() if line.startswith(name))
    assert row.split()[1] == "SUSPENDED"
    [mine] = [each for each in json.loads(served("jobs", "--json").stdout) if each["name"] == name]
    assert (mine["state"], mine["dead_letters"]) == ("SUSPENDED", 3)
    known = json.loads(run("status", name, "--json", "--for", "0", code=None).stdout)
    told = json.loads(served("status", name, "--json", code=0 if known["healthy"] else 10).stdout)
    assert told.keys() == known.keys()
    assert told["jobs"][0].keys() == known["jobs"][0].keys()
    said = served("status", name, code=0 if told["healthy"] else 10).stdout
    assert f"{name}: " in said
    assert "3 dead letters" in said

    assert served("suspend", name).stdout == run("suspend", name).stdout
    assert f"Job {name} resumed: " in served("resume", name).stdout
    assert (
        f"Version 1 of the model {name} is now its `champion`."
        in served("model", "promote", name, "--version", "1", "--why", "a walk").stdout
    )
    until(lambda: json.loads(served("model", "rollout", name, "--json").stdout)["complete"])
    assert served("model", "rollout", name).stdout == run("model", "rollout", name).stdout
    served("model", "rollback", name)
    until(
        lambda: (
            [each["version"] for each in json.loads(run("model", "rollout", name, "--json").stdout)["workers"]] == [2]
        )
    )

    file = tmp_path / "job.yaml"
    file.write_text(JOB.format(name=name))
    assert "unchanged" in served("submit", str(file)).stdout
    file.write_text(JOB.format(name=name).replace("amount: amount", "amount: amount + 1"))
    assert f"Job {name} submitted: " in served("submit", str(file), "--update", "--allow-changed-features").stdout
    assert f"version 2 of the model {name}" in served("rollback", name).stdout
    assert "restarted from oldest" in served("restart", name, "--from", "oldest").stdout

    assert "1 dead letters removed" in served("dead-letters", "discard", name, letters[0]).stdout
    assert "is still" not in served("dead-letters", "replay", name, letters[1]).stdout
    assert served("dead-letters", "discard", name, "0-none", code=1).stdout.count("was not removed") == 1
    assert "dead letters removed" in served("dead-letters", "purge", name, "--all", "--yes").stdout

    words = ("experiment", "start", name, "--version", "1", "--split", "20")
    assert "scores 20 % of the entities" in served(*words).stdout
    assert json.loads(served("experiment", "status", name, "--json").stdout)["share"] == 20
    assert "split of" in served("experiment", "stop", name, "--why", "enough").stdout
    done = json.loads(served("key", "log", "--json").stdout)
    assert {"a walk", "enough"} <= {each["why"] for each in done}
    assert f"Job {name} cancelled: CANCELLED" in served("cancel", name).stdout


def test_what_refuses_says_why(site, run, outside):
    name, there = site
    reading = json.loads(run("key", "create", "--role", "read", "--json").stdout)["key"]
    address = there["GRIDSCORE_SERVER"]
    assert "needs operate" in outside("suspend", name, code=2, **{**there, "GRIDSCORE_KEY": reading}).stderr
    assert "The key is wrong" in outside("jobs", code=2, **{**there, "GRIDSCORE_KEY": f"{reading}x"}).stderr
    assert "asks for a key" in outside("jobs", "--server", address, code=2).stderr
    assert "does not hold a key" in outside("jobs", code=2, **{**there, "GRIDSCORE_KEY": "two words"}).stderr
    refused = outside("suspend", "none", code=6, **there).stderr
    assert "There is no job" in refused
    assert refused == run("suspend", "none", code=6).stderr
    words = ("model", "show", name, "--version", "9")
    assert "no version 9" in outside(*words, code=run(*words, code=None).returncode, **there).stderr
    for words in (("wipe", name, "--yes"), ("worker",), ("model", "diff", name, "1", "2")):
        assert "needs a route to the members" in outside(*words, code=2, **there).stderr, words
    assert "both given" in outside("jobs", "--server", address, "--members", "127.0.0.1:1", code=2).stderr
    for wrong in ("ftp://there", "https://me:secret@there", "there:80", "http://[", "http://there:0x"):
        said = outside("jobs", "--server", wrong, code=2).stderr
        assert "not the address of a server" in said
        assert "secret" not in said


def test_the_key_is_in_a_file(site, outside, tmp_path):
    name, there = site
    file = tmp_path / "key"
    file.write_text(there["GRIDSCORE_KEY"] + "\n")
    given = {"GRIDSCORE_SERVER": there["GRIDSCORE_SERVER"] + "/", "GRIDSCORE_KEY_FILE": str(file)}
    assert name in outside("jobs", **given).stdout
    file.unlink()
    assert "cannot be read" in outside("jobs", code=1, **given).stderr


class _Odd(http.server.BaseHTTPRequestHandler):
    """Answers as nothing of ours does, by the first word of the address."""

    def do_GET(self):
        kind = self.path.split("/")[1]
        self.server.asked.append((kind, self.headers.get("Authorization")))
        if kind == "gone":
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response({"moved": 302, "old": 404}.get(kind, 200))
        if kind == "moved":
            self.send_header("Location", "/elsewhere/")
        self.end_headers()
        self.wfile.write(b'{"a": 1}' if kind == "other" else b"<html>")

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


def test_other_servers_are_not_taken_for_ours(outside):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Odd) as odd:
        odd.asked = []
        threading.Thread(target=odd.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{odd.server_port}"
        for kind, text, code in (
            ("moved", "leads to /elsewhere/", 2),
            ("old", "does not answer as control does (HTTP 404)", 3),
            ("page", "does not answer as control does", 3),
            ("other", "otherwise than this command understands", 3),
            ("gone", "does not answer", 4),
        ):
            given = {"GRIDSCORE_SERVER": f"{base}/{kind}", "GRIDSCORE_KEY": "k"}
            assert text in outside("model", "list", code=code, **given).stderr, kind
        given = {"GRIDSCORE_SERVER": f"{base}/gone", "GRIDSCORE_KEY": "k"}
        assert "whether it was done is not known" in outside("suspend", "a", code=3, **given).stderr
        assert [kind for kind, _ in odd.asked] == ["moved", "old", "page", "other", "gone", "gone"]  # each once
        odd.shutdown()
    for never in ("https://a..b", f"https://{'a' * 70}", "http://127.0.0.1:9/é", "http://host/#x", "http://k@host"):
        assert "is not the address of a server" in outside("jobs", "--server", never, code=None).stderr, never
    assert "does not answer" in outside("jobs", "--server", base, code=4).stderr
    assert "was done" not in outside("suspend", "a", "--server", base, code=4).stderr  # it was not
