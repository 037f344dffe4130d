"""The Compose file as users run it, on a real engine: it comes up, scores, survives; a ledger judges from outside."""

import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
import uuid
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import xgboost
from engine import OVERLAYS, ROOT, Engine, base_image, missing
from servers import not_here

from gridscore.features import offline_matrix
from gridscore.grid.artifacts import DEFAULT_VERSION
from gridscore.job import load_job

IMAGE = "localhost/gridscore-test"
TREES = 20_000
MEMBERS = [f"member-{number}" for number in (1, 2, 3)]

pytestmark = pytest.mark.timeout(1_500)


class Composed:
    """The containers of the Compose file, under a name of our own."""

    def __init__(self, engine):
        self.engine = engine
        self.name = f"gridscore-{uuid.uuid4().hex[:6]}"
        self.files = ["compose/compose.yaml"]
        engine.environment |= {"GRIDSCORE_IMAGE": IMAGE, "COMPOSE_PROJECT_NAME": self.name, "MEMBER_HEAP": "256m"}
        engine.environment["HAZELCAST_VERSION"] = DEFAULT_VERSION

    def compose(self, *words, seconds=120):
        files = (word for file in self.files for word in ("-f", str(file)))
        return self.engine.run(sys.executable, "-m", "podman_compose", *files, *words, seconds=seconds)

    def overlay(self, *files, services):
        """Add overlays to what is up."""
        # podman-compose finds no relative folder of a service that an overlay extends.
        self.engine.environment["JOB"] = f"{ROOT}/jobs/payments"
        self.files += files
        self.compose("up", "-d", "--no-recreate", "--no-deps", *services)

    def of(self, service):
        """The names of its containers that run."""
        label = f"label=com.docker.compose.service={service}"
        mine = f"label=com.docker.compose.project={self.name}"
        words = ("ps", "--filter", label, "--filter", mine, "--filter", "status=running", "--format", "{{.Names}}")
        return sorted(self.engine.podman(*words).split())

    def shrink(self):
        """Go back to one worker, as `--scale worker=1` of Docker Compose does; podman-compose forgets what it added."""
        for each in {*self.of("worker")} - {f"{self.name}_worker_1"}:
            self.engine.podman("stop", "--time", "15", each)
            self.engine.podman("rm", each)

    def logs(self):
        """The last lines of each: what one waits for may be another's doing."""
        names = self.engine.podman("ps", "--all", "--format", "{{.Names}}").split()
        return "\n".join(f"{each}: {self.engine.log(each)}" for each in names if each.startswith(self.name))

    def inside(self, *words, code=0):
        """Run a command in a worker."""
        return self.engine.podman("exec", self.of("worker")[0], *words, code=code)

    def is_healthy(self, container):
        # Where there is no systemd nobody else asks.
        command = ["podman", "healthcheck", "run", container]
        return not subprocess.run(command, env=self.engine.environment, capture_output=True, check=False).returncode

    def workers(self):
        # A command that cannot connect while members come and go shows nothing.
        found = json.loads(self.inside("gridscore", "jobs", "--json", code=None) or "[]")
        return found[0]["workers"] if found else 0


def until(condition, seconds=300, told=lambda: "it did not become so"):
    """Wait for it, long enough for a busy machine; `told` says what stands where it does not come."""
    pause = threading.Event()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return
        pause.wait(0.25)
    pytest.fail(told())


@pytest.fixture(scope="module")
def engine():
    if why := missing():
        not_here(why)
    engine = Engine()
    engine.prepare()
    engine.build(IMAGE)
    engine.build(f"{IMAGE}-packages", "demo-packages")
    engine.prune()
    return engine


@pytest.fixture(scope="module")
def composed(engine):
    composed = Composed(engine)
    try:
        # This podman knows no health of dependencies: we wait for what Docker Compose waits for by itself.
        composed.compose("up", "-d", *MEMBERS)
        until(lambda: all(composed.is_healthy(each) for name in MEMBERS for each in composed.of(name) or [""]))
        composed.compose("up", "-d")
        yield composed
    finally:
        print(composed.logs())
        composed.shrink()
        composed.compose("down", "--volumes", "--timeout", "5")


@contextmanager
def kept_ledger(engine, name, network, model=None, **environment):
    """The container `name` puts payments until it is asked what came of them; `model`: not the one of `train.py`."""
    mounts = ("-v", f"{ROOT}/jobs/payments:/job:ro", "-v", f"{ROOT}/tests/containers/ledger.py:/ledger.py:ro")
    mounts += ("-v", f"{model}:/m.ubj:ro") if model else ()
    script = (
        f"{'cp /m.ubj /tmp' if model else 'python /job/train.py -o /tmp/m.ubj'}; exec python /ledger.py $0 /tmp/m.ubj"
    )
    words = [*mounts, *(word for key, value in environment.items() for word in ("--env", f"GRIDSCORE_{key}={value}"))]
    words += ["--network", network, "--entrypoint", "sh", IMAGE, "-ec", script, uuid.uuid4().hex[:6]]
    engine.podman("run", "-d", "--name", name, *words)
    try:
        until(lambda: "sent" in engine.podman("logs", name))

        def judgement():
            engine.podman("stop", "--time", "90", name)
            return json.loads(engine.podman("logs", name).splitlines()[-1])

        yield judgement
    finally:
        engine.podman("rm", "--force", name)


@pytest.fixture
def ledger(composed):
    """Beside the containers of the Compose file."""
    name = f"{composed.name}-ledger-{uuid.uuid4().hex[:4]}"
    with kept_ledger(composed.engine, name, f"{composed.name}_default", MEMBERS=",".join(MEMBERS)) as judgement:
        yield judgement


def test_the_commands_of_the_readme_show_scores_and_every_container_is_healthy(composed):
    # At once, as they are pasted: the job is not submitted yet.
    text = (ROOT / "README.md").read_text()
    (block,) = re.findall(r"test_containers\.py runs these -->\n```sh\n(.*?)```", text, re.DOTALL)
    up, load, watch = block.splitlines()
    assert up == "docker compose -f compose/compose.yaml up -d --build"
    composed.inside(*shlex.split(load.partition(" exec worker ")[2]))
    shown = composed.inside(*shlex.split(watch.partition(" exec worker ")[2]), "--limit", "5")
    assert "approve" in shown
    until(lambda: all(composed.is_healthy(each) for each in [*composed.of("worker"), *composed.of("member-1")]))


def test_a_worker_is_unhealthy_while_the_cluster_does_not_answer(composed):
    (worker,) = composed.of("worker")
    members = [each for name in MEMBERS for each in composed.of(name)]
    composed.engine.podman("pause", *members)
    until(lambda: not composed.is_healthy(worker))
    composed.engine.podman("unpause", *members)
    until(lambda: composed.is_healthy(worker))


def test_scaling_loses_and_repeats_nothing(composed, ledger):
    composed.compose("up", "-d", "--no-recreate", "--scale", "worker=4", "worker")
    until(lambda: len(composed.of("worker")) == composed.workers() == 4)
    composed.shrink()
    until(lambda: composed.workers() == 1)
    judged = ledger()
    assert judged == {"sent": judged["sent"], "lost": 0, "wrong": 0, "twice": 0}
    assert judged["sent"] > 1000


def test_killed_containers_lose_nothing(composed, ledger):
    composed.compose("up", "-d", "--no-recreate", "--scale", "worker=2", "worker")
    until(lambda: composed.workers() == 2)
    engine = composed.engine
    (member,) = composed.of("member-2")
    engine.podman("kill", "--signal", "KILL", composed.of("worker")[-1])
    engine.podman("kill", "--signal", "KILL", member)
    until(lambda: composed.workers() >= 1)
    judged = ledger()
    assert (judged["lost"], judged["wrong"]) == (0, 0)
    assert judged["sent"] > 500
    composed.shrink()
    engine.podman("start", member)
    until(lambda: composed.is_healthy(member))


SEND = """
import json, time
import confluent_kafka, paho.mqtt.client
event = {"amount": 5.8, "country": "DE"}
kafka = confluent_kafka.Producer({"bootstrap.servers": "kafka:9092"})
kafka.produce("payments", json.dumps(event | {"customer": "by Kafka"}), "k1")
assert kafka.flush(60) == 0
mqtt = paho.mqtt.client.Client(paho.mqtt.client.CallbackAPIVersion.VERSION2)
mqtt.connect("mosquitto")
mqtt.loop_start()
# Again and again, as nothing is kept for a source that has not subscribed yet.
scores = confluent_kafka.Consumer({"bootstrap.servers": "kafka:9092", "group.id": "t", "auto.offset.reset": "earliest"})
scores.subscribe(["scores"])
missing = {"by Kafka", "by MQTT"}
deadline = time.monotonic() + 60
while missing and time.monotonic() < deadline:
    mqtt.publish("tills/7/payments", json.dumps(event | {"customer": "by MQTT"}), qos=1).wait_for_publish(5)
    message = scores.poll(0.5)
    if message is not None and message.error() is None:
        missing.discard(json.loads(message.value()).get("customer"))
print(sorted(missing))
"""


def test_the_overlays_take_payments_and_give_scores(composed, tmp_path_factory):
    password = tmp_path_factory.mktemp("secrets") / "password"
    password.write_text("secret")
    # podman-compose has no secrets from the environment, which Docker Compose has.
    override = password.with_name("override.yaml")
    override.write_text(f"secrets: {{postgres_password: !override {{file: {password}}}}}\n")
    services = ["kafka", "mosquitto", "postgres", "kafka-source", "kafka-sink", "mqtt-source", "postgres-sink"]
    composed.overlay(*(f"compose/{each}.yaml" for each in OVERLAYS), override, services=services)

    def sick():
        return [name for name in services if not all(map(composed.is_healthy, composed.of(name) or [""]))]

    until(lambda: not sick(), told=lambda: f"{sick()} are not healthy: {composed.logs()}")
    assert composed.inside("python", "-c", SEND) == "[]"
    (database,) = composed.of("postgres")
    query = "select distinct result->>'customer' from scores where result->>'customer' like 'by %' order by 1"
    rows = ("exec", database, "psql", "-U", "postgres", "-Atc", query)
    until(lambda: composed.engine.podman(*rows, code=None).splitlines() == ["by Kafka", "by MQTT"])
    # From here on the check starts no JVM; a broker that does not answer is not healthy.
    (broker,) = composed.of("kafka")
    composed.engine.podman("exec", broker, "rm", "/opt/kafka/bin/kafka-topics.sh")
    assert composed.is_healthy(broker)
    composed.engine.podman("kill", "--signal", "STOP", broker)
    assert not composed.is_healthy(broker)
    composed.engine.podman("kill", "--signal", "CONT", broker)
    until(lambda: composed.is_healthy(broker))


def test_the_flights_overlay_scores_every_flight(composed, tmp_path_factory):
    composed.engine.build(f"{IMAGE}-demo", "demo")
    shorter = tmp_path_factory.mktemp("flights") / "shorter.yaml"
    (line,) = re.findall("command: demo .*", (ROOT / "compose" / "flights.yaml").read_text())
    shorter.write_text(f"services: {{flights: {{{line} --flights 2000 --rate 0}}}}\n")
    composed.overlay("compose/flights.yaml", shorter, services=["flights"])
    flights = f"{composed.name}_flights_1"
    until(lambda: flights not in composed.of("flights"), seconds=600, told=composed.logs)
    said = composed.engine.log(flights)
    assert "Every one of 2,000 flights has one result, equal to Booster.predict to the bit" in said


EVERY_MODULE = """
import importlib, pkgutil, gridscore
for each in pkgutil.walk_packages(gridscore.__path__, "gridscore."):
    if not each.name.startswith(("gridscore.proving", "gridscore.testing")):
        importlib.import_module(each.name)
"""
TABLES = """
cd /tmp
python -c 'import pandas; pandas.read_csv("/job/history.csv").to_parquet("history.parquet")'
gridscore features /job/job.yaml history.parquet --lookups /job/lookups --keep fraud -o matrix.parquet
python /job/train.py -o model.ubj
gridscore backtest /job/job.yaml history.parquet --model model.ubj --lookups /job/lookups
"""


def test_what_the_image_leaves_out_is_needed_by_no_command(engine):
    run = ("run", "--rm", "--read-only", "--tmpfs", "/tmp", "-v", f"{ROOT}/jobs/payments:/job:ro")  # noqa: S108 -- inside
    engine.podman(*run, "--entrypoint", "python", IMAGE, "-c", EVERY_MODULE)
    assert "1,500" in engine.podman(*run, "--entrypoint", "sh", IMAGE, "-ec", TABLES)


def test_the_images_are_small(engine):
    """As a registry holds them, packed as hastily as gzip can: a push makes them smaller. Unpacked, beside the base."""

    def unpacked(image):
        return int(engine.podman("image", "inspect", "--format", "{{.Size}}", image))

    for image, target, limit, ours in ((IMAGE, "", 300e6, 380e6), (f"{IMAGE}-worker", "worker", 220e6, 185e6)):
        engine.build(image, target)
        script = f"podman save {image} | gzip -1 | wc -c"
        assert int(engine.run("sh", "-c", script)) < limit
        assert unpacked(image) - unpacked(base_image()) < ours


def test_down_leaves_nothing(composed):
    composed.compose("down", "--volumes", "--timeout", "5")
    for what in ("ps --all", "network ls", "volume ls"):
        assert composed.name not in composed.engine.podman(*what.split())


class ByApi:
    """What the command starts by the engine's API, under a name of our own, for the job payments."""

    def __init__(self, engine, folder):
        self.engine, self.folder, self.name = engine, folder, f"sdk-{uuid.uuid4().hex[:6]}"
        self.slow = set()
        self.environment = os.environ | {"DOCKER_HOST": "", "GRIDSCORE_CLUSTER_NAME": self.name, "TERM": "dumb"}
        self.service = ExitStack()

    def serve(self):
        """Start the API, or start it again."""
        address = self.service.enter_context(self.engine.served(self.environment["DOCKER_HOST"]))
        self.environment["DOCKER_HOST"] = address
        until(Path(address.removeprefix("unix://")).exists)

    @contextmanager
    def without_engine(self):
        self.service.close()
        try:
            yield
        finally:
            self.serve()

    def start(self):
        """A member, and the job."""
        self.environment |= self.up()["environment"]
        self.gridscore("load", "jobs/payments/job.yaml", "--lookups", "jobs/payments/lookups")
        model = str(self.folder / "model.ubj")
        subprocess.run([sys.executable, "jobs/payments/train.py", "-o", model], cwd=ROOT, check=True)
        self.gridscore("submit", "jobs/payments/job.yaml", "--model", model)

    def make_scoring_slow(self):
        """Take a model of so many trees that it is most of the work; where it is."""
        job, folder = load_job(ROOT / "jobs/payments/job.yaml"), ROOT / "jobs/payments"
        train = offline_matrix(job, folder / "history.csv", folder / "lookups", keep=["fraud"])
        forest = {"objective": "binary:logistic", "num_parallel_tree": TREES // 10, "subsample": 0.1}
        booster = xgboost.train(forest, train.dmatrix("fraud"), 10)
        train.attach(booster)
        model = self.folder / "slow.ubj"
        booster.save_model(model)
        self.gridscore("model", "push", str(model), "--name", "payments", "--alias", "champion")
        return model

    def slow_down(self):
        """Leave workers that have begun a tenth of a core: they start quickly, and score slowly; how many do."""
        for number in set(self.containers()) - self.slow:
            name = f"gridscore-{self.name}-payments-worker-{number}"
            if "holds its first partitions" in self.engine.log(name):
                self.engine.podman("update", "--cpus", "0.1", name)
                self.slow.add(number)
        return len(self.slow)

    def gridscore(self, *words, code=0):
        command = [sys.executable, "-m", "gridscore.cli", *words]
        done = subprocess.run(command, env=self.environment, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == code, (words, done.stdout, done.stderr)
        return done.stderr if code else done.stdout

    def up(self):
        words = ("--heap", "256m", "--cluster-name", self.name, "--json")
        return json.loads(self.gridscore("up", "--docker", *words))

    def workers(self):
        return json.loads(self.gridscore("jobs", "--json"))[0]["workers"]

    def containers(self, *words):
        """The numbers of the workers' containers."""
        names = self.engine.podman("ps", *words, "--format", "{{.Names}}").split()
        return sorted(int(each.rpartition("-")[2]) for each in names if f"{self.name}-payments-worker" in each)

    @contextmanager
    def autoscale(self, *options):
        """The command, while it runs; given with a function that reads what it says."""
        said = self.folder / f"{uuid.uuid4().hex}.log"
        command = [sys.executable, "-m", "gridscore.cli", "autoscale", "payments", "--docker", "--image", IMAGE]
        with said.open("w") as log, subprocess.Popen([*command, *options], env=self.environment, stderr=log) as process:
            try:
                yield process, said.read_text
            finally:
                print(said.read_text())
                process.kill()


@pytest.fixture
def by_api(engine, tmp_path):
    ours = ByApi(engine, tmp_path)
    with ours.service:
        ours.serve()
        try:
            ours.start()
            yield ours
        finally:
            ours.gridscore("down")
    assert ours.name not in engine.podman("ps", "--all")


def test_up_scale_logs_and_down_by_the_engines_api(by_api):
    for count, said in (
        (2, "2 workers of payments run in containers.\n"),
        (1, "1 worker of payments runs in a container.\n"),
    ):
        assert by_api.gridscore("scale", "payments", f"worker={count}", "--image", IMAGE) == said
        until(lambda count=count: by_api.workers() == count)
    assert "payments: holds its first partitions" in by_api.gridscore("logs")
    # One whose workers end at once is named, and goes first.
    broken = f"{IMAGE}-broken"
    by_api.engine.run("sh", "-c", f"printf 'FROM {IMAGE}\\nENTRYPOINT [\"ls\"]' | podman build -q -t {broken} -")
    try:
        said = by_api.gridscore("scale", "payments", "worker=2", "--image", broken, code=5)
        assert "payments-worker-2 ends again and again. Its last lines:" in said
        assert "unrecognized option '--jobs'" in said
        by_api.gridscore("scale", "payments", "worker=1", "--image", IMAGE)
        assert by_api.containers("--all") == [1]
    finally:
        by_api.engine.podman("rmi", "--force", broken)
    # What is there already goes on.
    by_api.engine.podman("stop", f"gridscore-{by_api.name}-payments-worker-1", f"gridscore-{by_api.name}-member-1")
    assert by_api.up()["members"] == by_api.environment["GRIDSCORE_MEMBERS"].split(",")


def test_autoscale_starts_containers_over_its_own_death_and_that_of_the_engine(by_api):
    engine, ledgers = by_api.engine, f"{by_api.name}-ledger"
    where = {"MEMBERS": by_api.environment["GRIDSCORE_MEMBERS"], "CLUSTER_NAME": by_api.name}
    # Any latency is too much: that calls for another worker while events come.
    growing = ("--max", "2", "--latency", "0.1")
    with kept_ledger(engine, ledgers, "host", **where) as judgement:
        with by_api.autoscale(*growing) as (autoscale, said):
            until(lambda: "changes from 1 to 2: p99 is" in said())
            # In the middle of it: nobody knows whether the second was asked for.
            autoscale.kill()
        with by_api.autoscale(*growing) as (autoscale, said):
            until(lambda: by_api.workers() == 2)
            assert by_api.containers("--all") == [1, 2]
            with by_api.without_engine():
                until(lambda: "Trying again: The container engine does not answer any more." in said())
                engine.podman("stop", "--time", "15", f"gridscore-{by_api.name}-payments-worker-2")
            until(lambda: "The number of workers can be changed again." in said())
            # One that was stopped meanwhile goes on.
            until(lambda: by_api.containers() == [1, 2] and by_api.workers() == 2)
            autoscale.terminate()
            assert autoscale.wait(60) == 0
        judged = judgement()
    assert judged == {"sent": judged["sent"], "lost": 0, "wrong": 0, "twice": 0}
    assert judged["sent"] > 1000


def test_a_spike_of_ten_times_gets_four_workers_and_one_is_left_after_it(by_api):
    engine, ledgers, model = by_api.engine, f"{by_api.name}-ledger", by_api.make_scoring_slow()
    where = {"MEMBERS": by_api.environment["GRIDSCORE_MEMBERS"], "CLUSTER_NAME": by_api.name}

    def unscored():
        sent, scored = re.findall(r"\d+", engine.podman("logs", ledgers).splitlines()[-1])
        return int(sent) - int(scored)

    with kept_ledger(engine, ledgers, "host", model, **where) as judgement:
        engine.podman("kill", "--signal", "USR1", ledgers)
        with by_api.autoscale("--max", "4", "--drain", "5", "--calm", "4") as (_, said):
            until(lambda: unscored() < 100 and by_api.slow_down() == 1, told=said)
            engine.podman("kill", "--signal", "USR2", ledgers)
            until(lambda: by_api.slow_down() == 4, told=said)
            engine.podman("kill", "--signal", "USR1", ledgers)
            until(
                lambda: by_api.containers("--all") == [1], seconds=900, told=said
            )  # what piled up, with tenths of cores
            judged = judgement()
    assert judged == {"sent": judged["sent"], "lost": 0, "wrong": 0, "twice": 0}
    decisions = json.loads(by_api.gridscore("autoscale", "payments", "--explain", "--json"))
    print(json.dumps([judged, *decisions], indent=1))
    targets = [each["target"] for each in decisions]
    assert (max(targets), targets[-1]) == (4, 1)
