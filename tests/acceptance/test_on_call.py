"""What somebody on call sees when one thing breaks, and that it is over once that is repaired.

A fault is broken, shown, repaired, and must then be gone from `gridscore status`: one table, on one small cluster.

Alone, on two busy cores, the file takes five minutes.
"""

import asyncio
import contextlib
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mqtt_server
import paho.mqtt.publish
import pandas as pd
import postgres_server
import psutil
import pytest
import redis_server
import xgboost as xgb
import yaml
from commands import GRIDSCORE, until, with_client

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
import scoring
from hazelcast.core import HazelcastJsonValue

from gridscore import offline_matrix
from gridscore.cli import main
from gridscore.grid.launch import MemberExtras
from gridscore.grid.member import Cluster
from gridscore.grid.template import template_file
from gridscore.grid.writer import MapWriter
from gridscore.job import parse_job
from gridscore.job.life import JOBS_MAP
from gridscore.models import Registry

JOB = "payments"
TRIAL = "trial"
"""A second job, of the faults that would leave traces in the first."""


class Site:
    """A cluster with a job, its worker, and whoever is on call there."""

    def __init__(self, cluster, folder):
        self.cluster = cluster
        self.folder = folder
        self.hook = Hook()
        self.resources = contextlib.ExitStack()  # servers, until the site is closed
        self._environment = {
            **os.environ,
            "GRIDSCORE_MEMBERS": ",".join(cluster.addresses),
            "GRIDSCORE_CLUSTER_NAME": cluster.cluster_name,
            "GRIDSCORE_CONNECT_TIMEOUT": "3",
            "HOOK": "whsec_QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE=",
        }
        self._processes = {}
        self._poured = None
        self._told = {}

    def grid(self, use):
        return with_client(self.cluster, use)

    def put(self, map_name, entries):
        self.grid(lambda client: client.put_events(map_name, entries))

    def submit(self):
        async def submit(client):
            await client.put_events(f"lookups.{JOB}", scoring.customers())
            await client.push_model(scoring.booster(), JOB, alias="champion")
            await client.submit(scoring.job(JOB))

        self.grid(submit)

    def start_worker(self):
        self.start("worker")

    def stop_worker(self):
        self.stop("worker")

    def start(self, *arguments, name=None):
        """Start a command that goes on; it is known by its first word, if by no other name."""
        name = name or arguments[0]
        with (self.folder / f"{name}.log").open("a") as log:
            self._processes[name] = subprocess.Popen(
                [*GRIDSCORE, *arguments], env=self._environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def signal(self, name, number):
        self._processes[name].send_signal(number)

    def pid(self, name):
        return self._processes[name].pid

    def pour(self, map_name, keys, text, *, rate):
        """Put so many entries a second as a stranger does, who does not wait for anybody, until `dam`."""
        over = threading.Event()

        async def put(client):
            writer = MapWriter(client.grid, map_name)
            for number in itertools.count():
                await writer.put((keys[each % len(keys)], text) for each in range(number, number + rate // 10))
                if await asyncio.to_thread(over.wait, 0.1):
                    return

        thread = threading.Thread(target=self.grid, args=(put,))
        thread.start()
        self._poured = (over, thread)

    def dam(self):
        if self._poured is not None:
            (over, thread), self._poured = self._poured, None
            over.set()
            thread.join()

    def flood(self, map_name, key, text, count):
        """Put a key again and again: each time is an entry of the journal."""
        self.grid(lambda client: MapWriter(client.grid, map_name).put((key, text) for _ in range(count)))

    def stop(self, name):
        process = self._processes.pop(name)
        process.terminate()
        code, said = process.wait(30), (self.folder / f"{name}.log").read_text()
        assert code == 0, said
        assert "Traceback" not in said, said

    def kill(self, name):
        process = self._processes.pop(name)
        process.kill()
        process.wait(30)

    def start_in_vain(self, *arguments):
        """Start a command that ends with an error."""
        self.start(*arguments)
        assert self._processes.pop(arguments[0]).wait(60) > 0

    def close(self):
        self.dam()
        for process in self._processes.values():
            process.kill()
            process.wait()
        self.hook.close()
        self.resources.close()

    def log(self, *names):
        """What processes of these names have said since the last look."""
        said = ""
        for name in names or ("worker",):
            file, told = self.folder / f"{name}.log", self._told.get(name, 0)
            text = file.read_text()[told:] if file.exists() else ""
            self._told[name] = told + len(text)
            said += text
        assert "Traceback" not in said, said
        return said

    def command(self, *arguments):
        """Exit code of a command, and what it says; in this process, which spares the start of many."""
        said, before = io.StringIO(), (sys.argv, dict(os.environ))
        sys.argv = ["gridscore", *arguments]
        os.environ.update(self._environment)
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                main()
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
        finally:
            sys.argv = before[0]
            os.environ.clear()
            os.environ.update(before[1])
        assert "Traceback" not in said.getvalue(), said.getvalue()
        return code, said.getvalue()

    def purge(self, name, *more):
        code, said = self.command("dead-letters", "purge", name, "--all", "--yes", *more)
        assert code == 0, said

    def status(self, seconds="0"):
        return self.command("status", "--for", seconds)

    def well(self):
        code, said = self.status()
        return code == 0 and f"{JOB}: well, RUNNING" in said


@contextlib.contextmanager
def started(folder, heap):
    config = yaml.safe_load(template_file().read_text())
    # A result map that takes nothing as long as fewer than two members are there.
    maps, protections = config["hazelcast"]["map"], config["hazelcast"]["split-brain-protection"]
    protections["two"] = {"minimum-cluster-size": 2, "protect-on": "WRITE"}
    maps["results.guarded"] = maps["results.*"] | {"split-brain-protection-ref": "two"}
    (folder / "hazelcast.yaml").write_text(yaml.safe_dump(config))
    extras = MemberExtras(properties={"hz.split-brain-protection.two.enabled": "true"})
    with Cluster.start(
        1, port=0, heap=heap, register=False, config=folder / "hazelcast.yaml", extras=extras
    ) as cluster:
        made = Site(cluster, folder)
        made.submit()
        made.start_worker()
        try:
            yield made
        finally:
            made.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with started(tmp_path_factory.mktemp("site"), "512m") as made:
        yield made


@pytest.fixture
def small_site(tmp_path):
    """One whose member is soon full."""
    with started(tmp_path, "256m") as made:
        yield made


@dataclass(frozen=True)
class Fault:
    """One thing that breaks.

    Attributes:
        name: What it is.
        findings: Those of docs/operations.md that it is about: `job lag` is the code `lag` of a job.
        happen: Breaks it.
        repair: What whoever is on call does then.
        code: Exit code of `gridscore status` meanwhile.
        shown: Each of these stands in what `gridscore status` prints.
        logged: Each of these stands in the worker's log.
        told: Each of these stands in the log of the source, the sink, or the second worker.
        healed: Each of these stands there once it is repaired, and not before.
        server: A fixture that it needs.
        asked: What another command says then, by its words.
        looking: Seconds that `gridscore status` looks, for what shows in a trend.
    """

    name: str
    findings: tuple[str, ...]
    happen: object
    repair: object
    code: int
    shown: tuple[str, ...]
    logged: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    healed: tuple[str, ...] = ()
    server: str = ""
    asked: tuple[tuple[str, str], ...] = ()
    looking: str = "0"


class Hook:
    """A web hook: its port is its own from the beginning, but nobody answers there before `open`.

    Attributes:
        code: What it answers.
        prompt: Set while it answers at once.
        seconds: How long it takes otherwise; None: for ever.
    """

    def __init__(self):
        self.code, self.seconds = 204, None
        self.prompt = threading.Event()
        self.prompt.set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(self._Answer, self), bind_and_activate=False)
        self._server.server_bind()
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        self._serving = None

    def open(self):
        if self._serving is not None:
            return
        self._server.server_activate()
        self._serving = threading.Thread(target=self._server.serve_forever)
        self._serving.start()

    def close(self):
        self.prompt.set()
        if self._serving is not None:
            self._server.shutdown()
            self._serving.join()
        self._server.server_close()

    class _Answer(BaseHTTPRequestHandler):
        def __init__(self, hook, *rest):
            self._hook = hook
            super().__init__(*rest)

        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            self._hook.prompt.wait(self._hook.seconds)
            self.send_response(self._hook.code)
            self.end_headers()

        def log_message(self, *_):
            pass


RESULT = b'{"score": 0.5}'
EVENT = json.dumps({"amount": 1.5, "user": "u1"}).encode()
KNOWN = {**scoring.customers(), **{f"stranger{n}": {"age": 30.0, "limit": 100.0} for n in range(200)}}


def strangers(site):
    site.put(f"events.{JOB}", {f"s{n}": {"amount": 1.5, "user": f"stranger{n}"} for n in range(200)})


def introduce(site):
    repair_lookup(site)

    def scored():
        strangers(site)  # again, until the copy of the lookup has them
        return site.well()

    until(scored)


def bury(site):
    site.put(f"events.{JOB}", {"bad": {"amount": "much", "user": "u1"}})


def scribble(site):
    async def put(client):
        await (await client.grid.map(JOBS_MAP)).put("scribble", HazelcastJsonValue('{"state": 7}'))

    site.grid(put)


def lose_model(site):
    site.grid(lambda client: Registry(client.grid).delete_all(JOB))


def push_model(site):
    site.grid(lambda client: client.push_model(scoring.booster(), JOB, alias="champion"))


def destroy_lookup(site):
    async def destroy(client):
        await (await client.grid.map(f"lookups.{JOB}")).destroy()

    site.grid(destroy)
    site.start("worker", name="second")


def restore_lookup(site):
    repair_lookup(site)
    until(site.well)
    site.stop("second")


def read_wrongly(site):
    (site.folder / "access.log").write_text("this is not JSON\n" * 12)
    site.start(
        *("source", "logfile", "--path", str(site.folder / "access.log"), "--to", f"events.{JOB}"),
        *("--name", "access", "--max-dead-letters", "10"),
    )


def stop_reading(site):
    site.purge("access")
    until(lambda: "access: well, running" in site.status()[1])
    site.stop("source")


def kill_a_source(site):
    (site.folder / "tail.log").write_text("")
    site.start("source", "logfile", "--path", str(site.folder / "tail.log"), "--to", f"events.{JOB}", "--name", "tail")
    until(lambda: "tail: well, running" in site.status()[1])
    site.kill("source")


def listen_where_a_member_does(site):
    port = site.cluster.addresses[0].rpartition(":")[2]
    site.start_in_vain("source", "http", "--to", f"events.{JOB}", "--name", "till", "--port", port)


def read_from_nobody(site):
    site.start(
        *("source", "postgres", "--database", "postgresql://app@127.0.0.1:1/shop", "--table", "clients"),
        *("--key", "id", "--to", "lookups.clients", "--name", "crm"),
    )


def write_into_a_file(site):
    (site.folder / "archive").touch()
    site.start_in_vain(
        *("sink", "files", "--from", f"results.{JOB}", "--folder", str(site.folder / "archive"), "--name", "archive"),
        *("--format", "jsonl"),
    )


def overrun(site):
    """Put as a stranger does, who does not wait for the job."""
    site.command("suspend", JOB)

    def put():
        site.flood(f"events.{JOB}", "e0", EVENT, 3_100)
        return site.status()[0]

    until(put)  # again, until the worker has heard that it is suspended


def deliver(site, *options, source=f"results.{JOB}"):
    site.start(
        *("sink", "webhook", "--from", source, "--url", site.hook.url, "--secret", "${HOOK}"),
        *("--name", "alerts", *options),
    )


def bring_hook(site):
    site.hook.open()
    end_sink(site)


def end_sink(site):
    site.dam()
    site.hook.prompt.set()
    until(lambda: "alerts: well, delivering" in site.status()[1])
    site.stop("sink")
    assert site.command("sink", "forget", "alerts")[0] == 0


def deliver_well(site, source, *options):
    """Deliver what is put into a result map that nobody else has."""
    site.hook.open()
    deliver(site, *options, source=source)
    until(lambda: "alerts: well, delivering" in site.status()[1])


def deliver_slowly(site):
    deliver_well(site, "results.slow", "--connections", "1")
    site.hook.prompt.clear()
    site.hook.seconds = 0.1
    site.pour("results.slow", [f"r{n}" for n in range(100)], RESULT, rate=100)


def deliver_to_one_who_hangs(site):
    deliver_well(site, "results.hung", "--timeout", "60s")
    site.hook.prompt.clear()
    site.hook.seconds = None
    site.flood("results.hung", "r0", RESULT, 1)


def deliver_to_one_who_refuses(site):
    deliver_well(site, "results.refused", "--max-dead-letters", "1")
    site.hook.code = 400
    site.grid(lambda client: MapWriter(client.grid, "results.refused").put((f"r{n}", RESULT) for n in range(3)))


def mend_hook(site):
    site.hook.code = 204
    assert site.command("dead-letters", "replay", "alerts", "--all")[0] == 0
    end_sink(site)


def pour_results(site):
    deliver_well(site, "results.left")
    site.stop("sink")
    site.flood("results.left", "r0", RESULT, 1_200)
    site.pour("results.left", ["r0"], RESULT, rate=50)


LINE = b'{"text": "' + b"x" * 60_000 + b'"}'
"""An event of which a small member holds some thousands."""


def fill(site):
    """Fill the member almost as a stranger does, who does not wait for anybody, and read on into what is left.

    And have it collect garbage: members measure what is there for good only then.
    """
    (site.folder / "big.log").write_bytes(b"\n".join([LINE] * 1_000))
    ballast = ((f"b{n}", LINE) for n in range(3_400))
    site.grid(lambda client: MapWriter(client.grid, "lookups.ballast").put(ballast))
    site.start("source", "logfile", "--path", str(site.folder / "big.log"), "--to", "lookups.big", "--name", "big")
    site.pour("lookups.garbage", ["g"], LINE, rate=50)


def make_room(site):
    site.dam()

    async def destroy(client):
        await (await client.grid.map("lookups.ballast")).destroy()

    site.grid(destroy)
    until(lambda: "big: well, running" in site.status()[1])
    site.stop("source")


def kill_a_sink(site):
    deliver_well(site, "results.killed")
    site.flood("results.killed", "r0", RESULT, 1)
    site.kill("sink")


def start_sink_again(site):
    deliver(site, source="results.killed")
    end_sink(site)


def read_for_nobody(site):
    (site.folder / "nobody.log").write_text('{"n": 1}\n')
    path = str(site.folder / "nobody.log")
    site.start("source", "logfile", "--path", path, "--to", "events.nobody", "--name", "lonely")


def deliver_to_a_database(site):
    """Deliver rows, then have the database let nobody in, as while it is restored."""
    site.database = site.resources.enter_context(postgres_server.start(site.folder / "postgres"))
    url = site.database.create_database("shop")
    site.start(
        *("sink", "postgres", "--from", "results.rows", "--database", url), *("--table", "rows", "--name", "alerts")
    )
    site.flood("results.rows", "r0", RESULT, 1)
    until(lambda: "alerts: well, delivering" in site.status()[1])
    until(lambda: site.database.execute("SELECT count(*) FROM rows", "shop") == [(1,)])
    allow_connections(site, "false")
    site.database.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'shop'")
    site.flood("results.rows", "r1", RESULT, 1)


def allow_connections(site, allowed):
    site.database.execute(f"ALTER DATABASE shop ALLOW_CONNECTIONS {allowed}")


def restore_the_database(site):
    allow_connections(site, "true")
    until(lambda: site.database.execute("SELECT count(*) FROM rows", "shop") == [(2,)])
    end_sink(site)


def read_from_devices(site):
    """Read from a broker that goes away."""
    (site.folder / "mqtt").mkdir()
    site.server = site.resources.enter_context(mqtt_server.start(site.folder / "mqtt"))
    site.start(
        *("source", "mqtt", "--broker", site.server.url, "--topic", "till", "--to", f"events.{JOB}", "--name", "tills")
    )
    until(lambda: "tills: well, running" in site.status()[1])
    site.server.kill()


def bring_broker(site):
    site.server.restart()
    until(lambda: "tills: well, running" in site.status()[1])
    host, _, port = site.server.url.rpartition("/")[2].partition(":")
    paho.mqtt.publish.single("till", EVENT, qos=1, hostname=host, port=int(port))
    until(lambda: " 1 events" in site.status()[1])
    site.stop("source")


def read_from_redis(site):
    """Read from a Redis server that goes away."""
    (site.folder / "redis").mkdir()
    site.server = site.resources.enter_context(redis_server.start(site.folder / "redis"))
    site.start(
        *("source", "redis", "--server", site.server.url, "--stream", "tills", "--field", "event"),
        *("--to", f"events.{JOB}", "--name", "tills"),
    )
    until(lambda: "tills: well, running" in site.status()[1])
    site.server.kill()


def bring_redis(site):
    site.server.restart()
    with site.server.client() as client:
        client.xadd("tills", {"event": EVENT})
    until(lambda: " 1 events" in site.status()[1])
    site.stop("source")


def lose_kafka(site):
    """Read from a broker of Kafka, and deliver to it, and have it go away."""
    kafka = site.server
    topics = [kafka.create(f"{each}-{os.urandom(4).hex()}") for each in ("tills", "scores")]
    brokers = ("--brokers", kafka.address)
    # Kafka waits for so long for a reader that could not say that it leaves.
    quick = ("--set", "session.timeout.ms=1000", "--set", "heartbeat.interval.ms=300")
    site.start("source", "kafka", *brokers, "--topic", topics[0], "--to", f"events.{JOB}", "--name", "tills", *quick)
    site.start("sink", "kafka", *brokers, "--topic", topics[1], "--from", "results.scores", "--name", "alerts")
    kafka.produce(topics[0], [(b"k", EVENT)])
    until(lambda: " 1 events" in site.status()[1])  # it has come far enough to be interrupted
    kafka.broker.kill()
    site.flood("results.scores", "r0", RESULT, 1)


def bring_kafka(site):
    site.server.broker.restart()
    until(lambda: "tills: well, running" in site.status()[1])
    site.stop("source")
    end_sink(site)


def kill_one_of_several(site):
    """Kill one of the processes of a command, whose partitions wait until its leases have run out."""
    site.start("worker", "--processes", "2", "--lease", "8", name="second")
    until(lambda: shared_by(site, 3))
    psutil.Process(site.pid("second")).children()[0].kill()


def shared_by(site, count):
    """Whether so many workers share the job."""
    workers = json.loads(site.command("top", JOB, "--once", "--json")[1])["workers"]
    owned = [each["jobs"].get(JOB, {}).get("partitions", 0) for each in workers]
    return len(owned) == count and min(owned) > 200 // count


def wait_for_it(site):
    until(lambda: shared_by(site, 3))
    site.stop("second")


def wipe_job(site):
    assert site.command("cancel", JOB)[0] == 0
    until(lambda: site.command("wipe", JOB, "--yes")[0] == 0)
    site.pour(f"events.{JOB}", ["e0"], EVENT, rate=50)


def submit_again(site):
    site.dam()
    site.submit()


def leave_results(site):
    deliver_well(site, "results.full")
    site.stop("sink")
    site.flood("results.full", "r0", RESULT, 3_100)


def deliver_what_was_left(site):
    deliver(site, "--batch", "100", source="results.full")
    end_sink(site)


def deliver_again(site):
    site.dam()
    deliver(site, "--batch", "100", source="results.left")
    end_sink(site)


def deliver_lookups(site):
    site.start_in_vain(
        *("sink", "files", "--from", f"lookups.{JOB}", "--folder", str(site.folder), "--name", "archive"),
        *("--format", "jsonl"),
    )


TRIED = scoring.JOB.format(name=TRIAL, mode="copy").replace(f"{{name: {TRIAL},", f"{{name: {JOB},")
"""The file of the second job, which scores with the model of the first."""


def try_out(site, *more, text=TRIED):
    job = parse_job("\n".join([text, *more]), "test")
    site.grid(lambda client: client.submit(job, update=True))


def try_out_well(site, *more):
    repair_trial_lookup(site)
    try_out(site, *more)
    until(lambda: f"{TRIAL}: well, RUNNING" in site.status()[1])


def repair_trial_lookup(site):
    site.put(f"lookups.{TRIAL}", KNOWN)


def end_trial(site, *more):
    until(lambda: f"{TRIAL}: well, RUNNING" in site.status()[1])
    assert site.command("cancel", TRIAL)[0] == 0
    until(lambda: site.command("wipe", TRIAL, "--events", "--results", "--dead-letters", "--yes", *more)[0] == 0)

    async def destroy(client):
        await (await client.grid.map(f"lookups.{TRIAL}")).destroy()

    site.grid(destroy)


def load_much(site):
    async def put(client):
        writer = MapWriter(client.grid, f"lookups.{TRIAL}")
        for begin in range(0, 300_000, 50_000):
            await writer.put((f"user-{n}", b'{"age": 33.0, "limit": 1000.0}') for n in range(begin, begin + 50_000))

    site.grid(put)
    try_out(site)


def hang(site):
    """Stop a worker as Ctrl-Z does, or a virtual machine that is paused, while the other goes on."""
    site.start("worker", "--lease", "60", name="second")

    until(lambda: shared_by(site, 2))
    site.signal("second", signal.SIGSTOP)
    keys = [f"e{n}" for n in range(3_000)]
    site.grid(lambda client: MapWriter(client.grid, f"events.{JOB}").put((key, EVENT) for key in keys))
    site.pour(f"events.{JOB}", keys, EVENT, rate=200)


def go_on(site):
    site.signal("second", signal.SIGCONT)
    site.dam()
    until(site.well)
    site.stop("second")


def pour_for_nobody(site):
    site.stop_worker()
    site.flood(f"events.{JOB}", "e0", EVENT, 1_200)
    site.pour(f"events.{JOB}", ["e0"], EVENT, rate=50)


def start_worker_again(site):
    site.dam()
    site.start_worker()


def write_where_nobody_may(site):
    repair_trial_lookup(site)
    try_out(site, text=TRIED.replace("results.trial", "results.guarded"))
    site.put(f"events.{TRIAL}", scoring.events(3))


def write_elsewhere(site):
    try_out(site)
    end_trial(site)


def restore_without_journal(site):
    """As when members are replaced one by one by some that are not configured to give the map a journal."""
    site.stop_worker()
    job = parse_job(TRIED.replace(f"events.{TRIAL}", f"lookups.{JOB}"), "test")
    site.grid(lambda client: client.jobs.submit(job))


def cancel_trial(site):
    assert site.command("cancel", TRIAL)[0] == 0
    assert site.command("wipe", TRIAL, "--yes")[0] == 0
    site.start_worker()


def remove_a_result(site):
    site.put(f"events.{JOB}", {"kept": {"amount": 1.5, "user": "u1"}})
    until(lambda: site.well() and "lag 0" in site.status()[1])
    site.command("suspend", JOB)

    async def remove(client):
        await (await client.grid.map(f"results.{JOB}")).remove("kept")

    site.grid(remove)
    assert site.command("audit", JOB, "--repair", "--patience", "0")[0] == 1


def overrun_trial(site, on_loss):
    try_out_well(site, f"on_loss: {on_loss}")
    site.flood(f"events.{TRIAL}", "e0", EVENT, 1)
    until(lambda: f"{TRIAL}: well, RUNNING" in site.status()[1])
    site.command("suspend", TRIAL)
    site.flood(f"events.{TRIAL}", "e0", EVENT, 3_800)
    site.command("resume", TRIAL)


def acknowledge_trial(site):
    assert "Acknowledged: " in site.command("status", TRIAL, "--acknowledge", "--for", "0")[1]
    end_trial(site)


def resume_trial(site):
    assert site.command("resume", TRIAL)[0] == 0
    until(lambda: "were overwritten before they were read." in site.status()[1])
    acknowledge_trial(site)


def bury_more_than_there_is_room_for(site):
    try_out_well(site, "max_dead_letters: 1")
    site.put(f"events.{TRIAL}", {f"bad{n}": {"amount": "much", "user": "u1"} for n in range(3)})


def dig_out(site):
    site.put(f"events.{TRIAL}", {f"bad{n}": {"amount": 1.5, "user": "u1"} for n in range(3)})
    site.purge(TRIAL)
    assert site.command("audit", TRIAL, "--repair")[0] == 0
    acknowledge_trial(site)


COUNTRIES = """\
job: trial
events: events.trial
schema: {country: string}
features: {country: category(country)}
model: {name: countries, alias: champion}
results: results.trial
"""


def train_on(site, *countries):
    job = parse_job(COUNTRIES, "test")
    matrix = offline_matrix(job, pd.DataFrame({"country": countries * 20}))
    rows = xgb.DMatrix(
        matrix.values,
        [n % 2 for n in range(len(matrix))],
        feature_names=list(matrix.names),
        feature_types=["c"],
        enable_categorical=True,
    )
    booster = xgb.train({"objective": "binary:logistic", "nthread": 1}, rows, 3)
    matrix.attach(booster)
    site.grid(lambda client: client.push_model(booster, "countries", alias="champion"))


def come_from_elsewhere(site):
    train_on(site, "DE", "FR")
    try_out(site, text=COUNTRIES)
    until(lambda: f"{TRIAL}: well, RUNNING" in site.status()[1])
    site.put(f"events.{TRIAL}", {f"e{n}": {"country": "JP"} for n in range(200)})


def train_anew(site):
    train_on(site, "DE", "FR", "JP")
    end_trial(site, "--model")


def garbage(site):
    async def put(client):
        proxy = await client.grid.map(f"lookups.{JOB}")
        await proxy.put_all({key: HazelcastJsonValue('{"age": "old"}') for key in KNOWN})

    site.grid(put)


def repair_lookup(site):
    site.put(f"lookups.{JOB}", KNOWN)


def destroy_events(site):
    site.put(f"events.{JOB}", scoring.events(500))
    until(site.well)
    site.log()

    async def destroy(client):
        await (await client.grid.map(f"events.{JOB}")).destroy()

    site.grid(destroy)


FAULTS = [
    Fault(
        "no worker",
        ("job no_worker",),
        Site.stop_worker,
        Site.start_worker,
        10,
        ("not well, ", "No worker is running.", "Start one, anywhere: `gridscore worker`."),
        ("Worker stopped.",),
    ),
    Fault(  # the worker is new: it has scored no others
        "events that have no entry in a lookup",
        ("job lookup_misses",),
        strangers,
        introduce,
        10,
        (f"100% of the last events have no entry in `lookups.{JOB}`", "Is the map loaded, and do its keys"),
    ),
    Fault(
        "an event that cannot be scored",
        (),
        bury,
        lambda site: site.purge(JOB, "--with-events"),
        0,
        ("1 event could not be scored.", f"`gridscore dead-letters list {JOB}` says why"),
        asked=((f"dead-letters list {JOB}", "amount"),),
    ),
    Fault(
        "a control record that somebody scribbled over",
        (),
        scribble,
        lambda site: site.command("repair", "--yes"),
        10,
        ("It is not a job that can be scored", "`gridscore repair --dry-run` shows what can be done about it."),
        asked=(("doctor", "scribble"), ("repair --dry-run", "scribble")),
    ),
    Fault(
        "a model that is gone from the registry",
        ("job model",),
        lose_model,
        push_model,
        10,
        ("The model cannot be looked up, v1 stays in use", "`gridscore model list`"),
    ),
    Fault(
        "a lookup map that somebody destroyed, while a worker is added",
        ("job lookup",),
        destroy_lookup,
        restore_lookup,
        10,
        ("1 worker cannot load a lookup and scores nothing: ", f"`lookups.{JOB}` does not exist", "try again by them"),
    ),
    Fault(
        "a source that reads what is not an event",
        ("source paused",),
        read_wrongly,
        stop_reading,
        10,
        ("access: not well, paused", "It reads nothing. Paused:", "`gridscore dead-letters list access` says why"),
        told=("access: paused: ", "it continues once dead letters are replayed or purged: gridscore dead-letters list"),
        healed=("access: there is room for dead letters, continuing",),
        asked=(("dead-letters list access", "JSON"),),
    ),
    Fault(
        "a source that is killed",
        (),
        kill_a_source,
        lambda site: site.command("source", "forget", "tail"),
        10,
        (
            "tail: not well, failed",
            "It has fallen silent: it was killed or stopped",
            "`gridscore source forget tail`",
        ),
    ),
    Fault(
        "a source that cannot listen",
        ("source failed",),
        listen_where_a_member_does,
        lambda site: site.command("source", "forget", "till"),
        10,
        ("till: not well, failed", "It has failed (", "cannot listen on 127.0.0.1", "`gridscore source forget till`"),
        told=("cannot listen on 127.0.0.1",),
    ),
    Fault(
        "a source whose other side is away",
        ("source interrupted",),
        read_from_nobody,
        lambda site: site.stop("source"),
        10,
        ("crm: not well, interrupted", "It cannot read now: ", "127.0.0.1:1", "It tries again by itself"),
        told=("crm: interrupted, trying again: ", "127.0.0.1:1"),
    ),
    Fault(
        "a sink that cannot write",
        ("sink failed",),
        write_into_a_file,
        lambda site: site.command("sink", "forget", "archive"),
        10,
        ("archive: not well, failed", "It has failed: ", "archive", "`gridscore sink forget archive`"),
        told=("error: ", "archive"),
    ),
    Fault(
        "a sink whose destination is away",
        ("sink away",),
        lambda site: deliver(site, "--batch", "100"),
        bring_hook,
        10,
        ("alerts: not well, waiting", "It waits for its destination:", "cannot be reached", "Bring it back."),
        told=("alerts: waiting for its destination: ", "cannot be reached"),
        healed=("alerts: delivering again",),
    ),
    Fault(
        "a lookup without one entry that can be read",
        (),
        garbage,
        repair_lookup,
        10,
        ("All 250 entries of the lookup `customer` cannot be read", "Correct them and put them again."),
    ),
    Fault(  # the search for events without a result is over before anybody can look
        "an event map that somebody destroyed",
        (),
        destroy_events,
        lambda site: site.command("status", JOB, "--acknowledge", "--for", "0"),
        0,
        ("and events that it still had were scored.", "Journals have begun again", f"status {JOB} --acknowledge"),
        ("its journal begins again at 0", "the map has lost writes, or was destroyed"),
    ),
    Fault(
        "a job that somebody suspended",
        (),
        lambda site: site.command("suspend", JOB),
        lambda site: site.command("resume", JOB),
        0,
        ("SUSPENDED", f"`gridscore resume {JOB}` goes on from the committed offsets."),
    ),
    Fault(
        "a suspended job whose events are overwritten next",
        ("job journal_full",),
        overrun,
        lambda site: site.command("resume", JOB),
        10,
        ("Suspended, and unread events fill ", f"`gridscore resume {JOB}`"),
    ),
    Fault(
        "a job that loads much",
        ("job starting",),
        load_much,
        end_trial,
        10,
        (f"{TRIAL}: not well, STARTING", "models and lookups are being loaded", "the worker's log says"),
        (f"{TRIAL}: starting revision 1",),
    ),
    Fault(
        "a worker that hangs",
        ("job no_owner", "job lag"),
        hang,
        go_on,
        10,
        (
            "partitions of 271 have no living owner",
            "Last held by ",
            "Lag grows: ",
            "`gridscore worker --processes auto`",
        ),
        looking="4",
    ),
    Fault(
        "no worker, while events come",
        ("job journal_runs_out",),
        pour_for_nobody,
        start_worker_again,
        10,
        ("loses unread events in ", "No worker is running."),
        looking="4",
    ),
    Fault(
        "a result map that takes nothing",
        ("job stuck",),
        write_where_nobody_may,
        write_elsewhere,
        10,
        ("Nothing was committed in ", "3 events wait", "The workers' logs say what they wait for"),
        ("writes were not acknowledged",),
        looking="4",
    ),
    Fault(
        "an event map without a journal",
        ("job no_journal",),
        restore_without_journal,
        cancel_trial,
        10,
        (f"The journal of `lookups.{JOB}` cannot be read.", "`gridscore doctor`"),
        asked=(("doctor", "journal"),),
    ),
    Fault(
        "a result that somebody removed, of a suspended job",
        ("job rescan",),
        remove_a_result,
        lambda site: site.command("resume", JOB),
        10,
        ("1 partition must be searched for events without a result", "Workers do it once the job runs."),
    ),
    Fault(
        "events that were overwritten",
        ("job loss",),
        lambda site: overrun_trial(site, "continue"),
        acknowledge_trial,
        10,
        ("were overwritten before they were read.", f"`gridscore audit {TRIAL}`", f"status {TRIAL} --acknowledge"),
        (f"{TRIAL}: partition ", "overwritten before they were read"),
    ),
    Fault(
        "events that were overwritten, of a job that halts then",
        ("job failed",),
        lambda site: overrun_trial(site, "halt"),
        resume_trial,
        10,
        (f"{TRIAL}: not well, FAILED", "lost ", "`gridscore resume trial`"),
        (f"{TRIAL}: failed: ", "on_loss: halt"),
    ),
    Fault(
        "more events that cannot be scored than there is room for",
        ("job dead_letters_full",),
        bury_more_than_there_is_room_for,
        dig_out,
        10,
        ("have no dead letter: the limit was reached", f"`gridscore audit {TRIAL} --repair`"),
        ("have no dead letter",),
    ),
    Fault(
        "categories that the model does not know",
        ("job unseen_categories",),
        come_from_elsewhere,
        train_anew,
        10,
        ("the model does not know the category: country 100%", "Train it on recent events."),
    ),
    Fault(
        "a sink whose destination refuses",
        ("sink paused",),
        deliver_to_one_who_refuses,
        mend_hook,
        10,
        ("alerts: not well, paused", "It delivers nothing. Paused: ", "`gridscore dead-letters replay alerts --all`"),
        told=("alerts: Paused: ", "it continues once dead letters are replayed or purged"),
        healed=("alerts: there is room for dead letters, delivering again",),
        asked=(("dead-letters list alerts", "400"),),
    ),
    Fault(
        "a sink whose destination is slow",
        ("sink lag",),
        deliver_slowly,
        end_sink,
        10,
        ("Lag grows: ", "Start another process of it"),
        looking="4",
    ),
    Fault(
        "a sink whose destination hangs",
        ("sink stuck",),
        deliver_to_one_who_hangs,
        end_sink,
        10,
        ("Nothing was committed in ", "1 result waits", "Does its destination answer?", "The log of its processes"),
        told=("alerts: its destination has not answered for 5 s, with 1 result under way",),
        healed=("alerts: its destination answers again",),
        looking="4",
    ),
    Fault(
        "a sink that is not running, while results come",
        ("sink journal_runs_out",),
        pour_results,
        deliver_again,
        10,
        ("loses unread results in ", "start it, by the same command again"),
        looking="4",
    ),
    Fault(
        "a sink that is not running, and whose results are overwritten next",
        ("sink journal_full",),
        leave_results,
        deliver_what_was_left,
        10,
        ("It is not running, and what waits fills ", "the oldest results are overwritten next", "the same command"),
    ),
    Fault(
        "a sink that was killed",
        (),
        kill_a_sink,
        start_sink_again,
        10,
        (
            "alerts: not well, failed",
            "did not stop in order",
            "Killed, cut off or hanging: ",
            "`gridscore sink forget alerts`",
        ),
    ),
    Fault(
        "a source of a map that no job reads",
        ("source no_job",),
        read_for_nobody,
        lambda site: site.stop("source"),
        10,
        ("lonely: not well, running", "No job or sink reads `events.nobody`", "Submit the job"),
    ),
    Fault(
        "a database that lets nobody in for a while",
        (),
        deliver_to_a_database,
        restore_the_database,
        10,
        (
            "alerts: not well, waiting",
            "It waits for its destination:",
            "shop lets nobody into this database: ",
            "ALLOW_CONNECTIONS true opens it",
            "Bring it back.",
        ),
        told=("alerts: waiting for its destination: ", "shop lets nobody into this database: "),
        healed=("alerts: delivering again",),
        looking="1",
    ),
    Fault(
        "a broker of MQTT that goes away",
        (),
        read_from_devices,
        bring_broker,
        10,
        ("tills: not well, interrupted", "It cannot read now: ", "127.0.0.1:", "It tries again by itself"),
        told=("tills: interrupted, trying again: ",),
        healed=("tills: going on",),
    ),
    Fault(
        "a Redis server that goes away",
        (),
        read_from_redis,
        bring_redis,
        10,
        ("tills: not well, interrupted", "It cannot read now: ", "redis://127.0.0.1:", "It tries again by itself"),
        told=("tills: interrupted, trying again: ",),
        healed=("tills: going on",),
    ),
    Fault(
        "a broker of Kafka that goes away under a source and a sink",
        (),
        lose_kafka,
        bring_kafka,
        10,
        (
            "tills: not well, interrupted",
            "It cannot read now: No broker of Kafka can be reached: ",
            "It tries again by itself",
            "alerts: not well, waiting",
            "It waits for its destination: ",
            "Bring it back.",
        ),
        told=("tills: interrupted, trying again: No broker of Kafka ", "alerts: waiting for its destination: "),
        healed=("tills: going on", "alerts: delivering again"),
        server="kafka",
    ),
    Fault(
        "one of several processes of a worker that is killed",
        (),
        kill_one_of_several,
        wait_for_it,
        10,
        ("have no living owner", "Last held by ", "Another worker takes them over once their leases have run out."),
        told=("worker 1 was ended by signal 9; it is restarted in 0.5 s",),
    ),
    Fault(
        "a sink of a map without a journal",
        ("sink no_journal",),
        deliver_lookups,
        lambda site: site.command("sink", "forget", "archive"),
        10,
        (f"The journal of `lookups.{JOB}` cannot be read.", "`gridscore doctor`"),
        told=(f"The map `lookups.{JOB}` has no event journal", "gridscore prepare"),
    ),
    Fault(  # as far as the cluster can know, it was replaced by an empty one, and the workers were started anew
        "events for which there is no job",
        ("map no_job",),
        wipe_job,
        submit_again,
        10,
        (
            f"map events.{JOB}: not well, unread",
            "and there is no job to read them.",
            "Submit the job. If there was one, it was wiped, or the cluster was replaced by an empty one",
            "No jobs. `gridscore submit FILE` submits one.",
        ),
        looking="2",
    ),
    Fault(  # of several, one is named as well: unit/test_silent_member.py
        "a member that is stopped",
        (),
        lambda site: os.kill(site.cluster.pids[0], signal.SIGSTOP),
        lambda site: os.kill(site.cluster.pids[0], signal.SIGCONT),
        4,
        ("took a connection, but did not answer", "stopped, or hangs: let it go on, or end it"),
        asked=tuple(
            (words, "did not answer") for words in ("doctor", "top --once", f"dead-letters list {JOB}", "model list")
        ),
    ),
    Fault(
        "a cluster that is gone",
        (),
        lambda site: site.cluster.kill(0),
        lambda site: site.cluster.restart(0),
        4,
        ("error: No connection to the cluster", "Is a member running there", "`gridscore up` starts one"),
        ("The connection to the cluster is lost, trying again",),
    ),
    Fault(  # the one before has left an empty one behind
        "a cluster that was replaced by an empty one",
        ("job cluster_replaced",),
        lambda _: None,
        Site.submit,
        10,
        (f"{JOB}: not well, GONE", "until the cluster was replaced by this one", "Push its model and submit it again"),
        ("Connected to the cluster again", "was replaced by another one", "Submit the jobs and push the models again"),
    ),
]


FULL = Fault(  # on a member of its own: one that is this full may end
    "a source whose events fill a member's heap",
    ("source heap",),
    fill,
    make_room,
    10,
    (
        "big: not well, waiting",
        "It puts nothing: waiting for memory: member ",
        "it goes on when the member has room",
        "members: not well, ",
        "after garbage collection",
    ),
    told=("waiting for memory: member ",),
    healed=("big: there is room again, going on",),
    asked=(("doctor", "of heap"),),
    looking="2",
)


ELSEWHERE = {
    # A copy is old after eleven minutes.
    "job lookup_old": "unit/test_health.py::test_models_that_are_refused_and_lookups_that_are_old",
    "job functions": "acceptance/test_functions_on_members.py"
    "::test_a_function_that_breaks_and_is_mended_costs_no_event",
    # That takes arithmetic which differs.
    "job parity": "simulation/test_parity.py"
    "::test_a_result_with_another_bit_is_found_stored_and_makes_the_job_unwell_until_it_is_gone",
    # That takes windows of events, one after the other.
    "job drift": "integration/test_drift_on_members.py::test_drift_is_told_when_it_begins_and_when_it_ends",
    # A cluster answers too soon for these.
    "source starting": "unit/test_plug_health.py::test_what_never_begins_is_a_problem",
    "sink starting": "unit/test_plug_health.py::test_what_never_begins_is_a_problem",
    "source loss": "integration/test_kafka_source.py::test_what_retention_has_removed_is_counted_once_and_passed_over",
}
"""Faults of docs/operations.md that other tests are about: their node ids, under `tests`."""

BESIDES = {
    "the table of a PostgreSQL sink is renamed": "integration/test_postgres_sink.py"
    "::test_a_table_that_is_gone_is_waited_for",
    "doctor asks for SQL, and a member is out of heap": "unit/test_doctor_judgement.py"
    "::test_sql_is_blamed_only_for_what_it_says",
    "HTTP posts while the grid is away": "unit/test_http_flow.py::test_a_grid_that_does_not_answer_is_told_as_such",
    "HTTP posts of a key that is not scored as fast": "unit/test_http_flow.py"
    "::test_a_key_with_too_many_events_holds_up_no_other_of_its_map",
    "top where COLUMNS exceeds the terminal": "unit/test_output.py::test_no_line_is_longer_than_the_terminal_is_wide",
}
"""Further ones, which `gridscore status` does not judge, in the same way."""


def test_every_fault_of_the_documentation_has_a_test():
    root = Path(__file__).parents[2]
    text = (root / "docs/operations.md").read_text()
    documented = []
    for kind, table in re.findall(r"^\| code, of a (\w+) \|.*\n((?:\|.*\n)+)", text, re.MULTILINE):
        documented += [f"{kind} {code}" for code in re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)]
    here = [finding for fault in (*FAULTS, FULL) for finding in fault.findings]
    assert len(documented) > 25
    assert sorted(documented) == sorted([*here, *ELSEWHERE])
    for node in (*ELSEWHERE.values(), *BESIDES.values()):
        file, _, name = node.partition("::")
        assert re.search(rf"^ *(async )?def {name}\(", (root / "tests" / file).read_text(), re.MULTILINE), node


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_what_is_shown_is_true_names_the_next_command_and_is_over_once_it_is_repaired(site, fault, request):
    if fault.server:
        site.server = request.getfixturevalue(fault.server)
    walk(site, fault)


def test_what_a_member_without_room_does_to_a_source_is_shown_and_over(small_site):
    walk(small_site, FULL)


def walk(site, fault):
    if fault.name != "a cluster that was replaced by an empty one":  # which the one before has left behind
        until(site.well)
        site.log()
    site.log("source", "sink", "second")
    # When it breaks
    fault.happen(site)
    # Then that is what is shown, and logged
    log, told, seen = "", "", ""

    def is_told():
        nonlocal log, told, seen
        log += site.log()
        told += site.log("source", "sink", "second")
        code, seen = site.status(fault.looking)
        return (
            code == fault.code
            and all(text in seen for text in fault.shown)
            and all(text in log for text in fault.logged)
            and all(text in told for text in fault.told)
        )

    try:
        until(is_told, seconds=180)
    except AssertionError:
        pytest.fail(
            f"{fault.name}: {fault.code} {fault.shown}, {fault.logged}, {fault.told}; but\n{seen}\n{log}\n{told}"
        )
    assert not any(text in told for text in fault.healed), (fault.name, told)
    for words, answer in fault.asked:
        assert answer in site.command(*words.split())[1], (fault.name, words)
    # And when it is repaired, it is over
    fault.repair(site)
    if fault.code != 4:
        until(lambda: site.well() and fault.shown[0] not in site.status()[1], seconds=180)
    healed = site.log("source", "sink", "second")
    assert all(text in healed for text in fault.healed), (fault.name, healed)
    # and all of that in few lines, without anything of Java
    for text in (log, told + healed):
        assert len(text.splitlines()) < 30, (fault.name, text)
        assert not re.search(r"^\s*at [\w.$]+\(|\bcom\.hazelcast\.", text, re.MULTILINE), (fault.name, text)
