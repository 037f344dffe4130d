"""The pages' commands and Python, run one after the other as they stand there, on a real member."""

import contextlib
import json
import re
import shutil
import signal

import httpx
import pytest
from confluent_kafka import KafkaException
from page_scenes import FILES, SCENES, text_of
from pages import PAGES, ROOT, RUN, blocks_of, commands_of
from readme_shell import free_port, shell_in

from gridscore.grid.member import Cluster
from gridscore.testing.postgres import PostgresServer

ENDLESS = re.compile(
    r"\bgridscore (up|worker|serve|(source|sink) (?!list|forget|.*--until-end)|watch(?!.*--limit)"
    r"|job preview(?!.*--input)|autoscale(?!.*--explain)|backup.*--every)|curl -N"
)
"""Commands that go on until they are told to end: they must say something, and end well when told."""

MORE = "gridscore load job.yaml --events history.csv --key id"
"""Gives results to those who wait for some."""

PARSED_ONLY = {"models", "operations", "proof", "serving", "sources"}
"""Pages whose scenes are not whole yet: their blocks are parsed by `unit/test_blocks.py`, and not run."""

FINDINGS = {"status": (0, 10), "doctor": (0, 1)}
"""Exit codes of commands that tell what they find."""

RUNNER = """\
import ast, asyncio, inspect
code = compile(open("block.py").read(), "block.py", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
done = eval(code, {"__name__": "__main__"})
if inspect.iscoroutine(done):
    asyncio.run(done)
"""


class Follower:
    """Does what a page says."""

    def __init__(self, shell, scene, cluster, request):
        self.shell, self.scene, self.cluster, self.request = shell, scene, cluster, request
        self.port = self.grpc = 0

    def prepare(self):
        """Make what the page takes for given."""
        if not self.scene.jobs:
            return
        folder = self.shell.folder
        (folder / "lookups").mkdir()
        shutil.copy(ROOT / "jobs/payments/lookups/customer_record.csv", folder / "lookups/customer.csv")
        (folder / "files.py").write_text(FILES)
        for name in reversed(self.scene.jobs):
            for file in ("job.yaml", f"{name}.yaml"):
                (folder / file).write_text(text_of(name, self.scene.windowed))
            self.end("python files.py")
            if self.scene.is_live:
                self.end("gridscore load job.yaml --lookups lookups/")
                self.end("gridscore submit job.yaml --model model.ubj")
                self.end("gridscore load job.yaml --events history.csv --key id")
                self.end(f"gridscore load --from outcomes.csv --to labels.{name} --key id")
        if self.scene.is_live:
            worker = self.begin("gridscore worker")
            for name in self.scene.jobs:
                self.shell.until(lambda name=name: self.missing(name) == 0, worker)
        for line in commands_of(self.scene.more):
            self.follow(line)

    def missing(self, name):
        return json.loads(self.shell.run(f"gridscore audit {name} --json").stdout)["missing"]

    def follow(self, line, goes_on=True):
        """Do what a line says."""
        if line.startswith("pip install"):
            return
        line = self.here(line)
        if found := re.match(r"(\w+=\S+ )*gridscore (serve|source http)", line):
            self.port = free_port()
            line = f"{found[0]} --port {self.port}{line[found.end() :]}"
        line = re.sub(r"\b94\d\d\b", lambda _: str(free_port()), line)
        if "--grpc 8001" in line:
            self.grpc = free_port()
            line = line.replace("8001", str(self.grpc))
        line = line.replace("curl ", "curl --fail-with-body ")
        if line.endswith("&") or ENDLESS.search(line):
            name = self.begin(line.removesuffix("&"), again=MORE if "curl" in line else "")
            if found:
                ready = "v2/health/ready" if found[2] == "serve" else "healthz"
                self.shell.until(lambda: self.answers(ready), name)
            if not goes_on:
                code = self.shell.stop(name)
                assert code in (0, 130), (line, code, self.shell.log(name))
        else:
            self.end(line)

    def answers(self, path):
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{self.port}/{path}").status_code == 200

    def here(self, text):
        """It, with what stands here for what the page has."""
        for piece, what in self.scene.here.items():
            if piece in text:
                text = text.replace(piece, what(self) if callable(what) else what)
        text = text.replace("127.0.0.1:8001", f"127.0.0.1:{self.grpc}")
        return text.replace("127.0.0.1:8080", f"127.0.0.1:{self.port}")

    def begin(self, line, again=""):
        """Start it, and wait until it says something; what it waits for is done again and again."""
        name = f"{len(list(self.shell.folder.glob('*.log')))}"
        self.shell.start(name, line)
        self.shell.until(lambda: self.shell.log(name) or (again and self.end(again)), name)
        return name

    def end(self, line):
        """Run it to its end."""
        done = self.shell.run(line, timeout=240, given="y\n")
        allowed = FINDINGS.get(line.split()[1], (0,)) if line.startswith("gridscore ") else (0,)
        assert done.returncode in allowed, (line, done.returncode, done.stdout, done.stderr)

    def python(self, text):
        """Run a block of Python."""
        before, after = (
            "".join(code for piece, code in each.items() if piece in text)
            for each in (self.scene.before, self.scene.after)
        )
        (self.shell.folder / "run.py").write_text(RUNNER)
        (self.shell.folder / "block.py").write_text(self.here(f"{before}\n{text}\n{after}"))
        if any(piece in text for piece in self.scene.endless):
            name = self.begin("python run.py", again=MORE)
            assert "Traceback" not in self.shell.log(name), self.shell.log(name)
            self.shell.stop(name, signal.SIGKILL)
        else:
            self.end("python run.py")

    def kafka(self, *topics):
        """The address of a real broker that has these topics."""
        kafka = self.request.getfixturevalue("kafka")
        for topic in topics:
            with contextlib.suppress(KafkaException):  # it is there
                kafka.create(topic)
        return kafka.address

    def postgres(self):
        """The address of a real database."""
        return self.request.getfixturevalue("postgres")


@pytest.fixture
def postgres(tmp_path_factory):
    with PostgresServer.start(tmp_path_factory.mktemp("postgres")) as server:
        url = server.create_database("shop")
        server.execute("CREATE TABLE orders AS SELECT 1 AS id, 2.5 AS amount", "shop")
        yield url


def run_here():
    for page in PAGES:
        can_be_run = any(block.language in RUN and not block.is_marked for block in blocks_of(page))
        if can_be_run and page.stem not in PARSED_ONLY:
            yield pytest.param(page, id=str(page.relative_to(ROOT)))


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", list(run_here()))
def test_what_a_page_says_can_be_done(page, tmp_path, request):
    scene = SCENES[str(page.relative_to(ROOT))]
    with Cluster.start(1, port=0, heap="1g", register=False) as cluster:
        where = {"GRIDSCORE_MEMBERS": json.dumps(cluster.addresses), "GRIDSCORE_CLUSTER_NAME": cluster.cluster_name}
        with shell_in(tmp_path, **where) as shell:
            follower = Follower(shell, scene, cluster, request)
            follower.prepare()
            for block in blocks_of(page):
                if block.is_marked or block.language not in RUN:
                    continue
                shell.forget()
                if block.language == "python":
                    follower.python(block.text)
                    continue
                lines = list(commands_of(block.text))
                for number, line in enumerate(lines, 1):
                    follower.follow(line, goes_on=number == len(lines))
