"""The pages' commands and Python, run one after the other as they stand there, on a member of their own."""

import contextlib
import json
import re
import shutil
import signal
from functools import partial

import httpx
import pytest
from commands import with_client
from mqtt_server import certificates
from page_scenes import FILES, SCENES, text_of
from page_servers import PASSWORDS, Servers
from pages import PAGES, ROOT, RUN, blocks_of, commands_of
from readme_shell import free_port, shell_in
from servers import member

from gridscore.errors import MemberError, UsageError
from gridscore.grid import transport
from gridscore.grid.ports import choose_ports

__all__ = ["certificates"]

ENDLESS = re.compile(
    r"\bgridscore (up|worker|serve|(source|sink) (?!list|forget|.*--until-end)|watch(?!.*--limit)"
    r"|job preview(?!.*--input)|autoscale(?!.*--explain)|backup.*--every)|curl .*-N "
)
"""Commands that go on until they are told to end: they must say something, and end well when told."""

ALONE = re.compile(r"gridscore (worker|serve|(?:source|sink) \w+|autoscale|backup)\b")
"""Of those, what would be in the way of the next of its kind: the last one goes on."""

MORE = "gridscore load job.yaml --events history.csv --key id"
"""Gives results to those who wait for some."""

FINDINGS = {"status": (0, 10), "doctor": (0, 1)}
"""Exit codes of commands that tell what they find."""

RUNNER = """\
import ast, asyncio, inspect
code = compile(open("block.py").read(), "block.py", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
done = eval(code, {"__name__": "__main__"})
if inspect.iscoroutine(done):
    asyncio.run(done)
"""

COMMANDS = """\
import shlex, sys
from gridscore.cli import main
for line in sys.stdin.read().splitlines():
    sys.argv = shlex.split(line)
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            sys.exit(f"{line}: {ended.code}")
"""
"""Several commands in one process: what pages take for given need not be made as readers do."""


class Follower:
    """Does what a page says."""

    def __init__(self, shell, scene, cluster, servers, files):
        self.shell, self.scene, self.cluster, self.servers, self.files = shell, scene, cluster, servers, files
        self.port = self.grpc = 0
        self.alone = {}

    def prepare(self):
        """Make what the page takes for given."""
        names = self.scene.jobs
        for name in reversed(names):
            folder, text = self.shell.folder, text_of(name, self.scene.windowed)
            made = self.files(text.replace(name, "page"))
            shutil.copytree(made, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*", "home", "jobs"))
            shutil.copy(folder / "model.ubj", folder / f"{name}.ubj")
            for file in ("job.yaml", f"{name}.yaml"):
                (folder / file).write_text(text)
        if names and self.scene.is_live:
            lines = [
                line
                for name in names
                for line in (
                    f"gridscore load {name}.yaml --lookups lookups/",
                    f"gridscore submit {name}.yaml --model {name}.ubj",
                    f"gridscore load {name}.yaml --events history.csv --key id",
                    f"gridscore load --from outcomes.csv --to labels.{name} --key id",
                )
            ]
            (self.shell.folder / "commands.py").write_text(COMMANDS)
            self.end("python commands.py", given="\n".join(lines))
            worker = self.begin("gridscore worker")
            for name in names:
                self.shell.until(partial(self.is_scored, name), worker)
        for line in commands_of(self.scene.more):
            self.follow(line)

    def is_scored(self, name):
        return self.size(f"results.{name}") == self.size(f"events.{name}")

    def size(self, name):
        """Entries of a map."""
        return with_client(self.cluster, lambda client: transport.map_size(client.grid.client, name))

    def follow(self, line, goes_on=True):
        """Do what a line says."""
        if line.startswith("pip install"):
            return
        line = self.here(line)
        for piece, kind in self.scene.ends.items():
            if piece in line:
                self.stop_alone(kind)
        if found := re.match(r"(\w+=\S+ )*gridscore (serve|source http)", line):
            self.port = free_port()
            line = f"{found[0]} --port {self.port}{line[found.end() :]}"
        line = re.sub(r"\b94\d\d\b", lambda _: str(ports_in_a_row(4)), line)
        if "--grpc 8001" in line:
            self.grpc = free_port()
            line = line.replace("8001", str(self.grpc))
        line = line.replace("curl ", "curl --fail-with-body --retry 20 ")  # 503: a job is being loaded
        if "job preview" in line and "--limit" in line:
            self.feed(line)
        elif line.endswith("&") or ENDLESS.search(line):
            if kind := ALONE.search(line):
                self.stop_alone(kind[0])
            name = self.begin(line.removesuffix("&"), again=MORE if "curl" in line else "")
            if found:
                ready = "v2/health/ready" if found[2] == "serve" else "healthz"
                self.shell.until(lambda: self.answers(ready, is_locked="--client-ca" in line), name)
            for map_name, count in (what for piece, what in self.scene.arrives.items() if piece in line):
                self.shell.until(partial(self.has, map_name, count), name)
            if not goes_on:
                self.stop(name)
            elif kind:
                self.alone[kind[0]] = name
        else:
            self.end(line)

    def has(self, map_name, count):
        return self.size(map_name) >= count

    def stop(self, name):
        code = self.shell.stop(name)
        assert code in (0, 130), (name, code, self.shell.log(name))

    def stop_alone(self, kind):
        """Stop what the page has begun of a kind."""
        for each in [each for each in self.alone if each.startswith(kind)]:
            self.stop(self.alone.pop(each))

    def feed(self, line):
        """Let events come until a command ends by itself that waits for some."""
        name = self.begin(line)
        while self.shell.running[name].poll() is None:
            self.end(MORE)
        self.stop(name)

    def answers(self, path, is_locked):
        how = {"verify": self.servers.context()} if is_locked else {}
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"http{'s' * is_locked}://127.0.0.1:{self.port}/{path}", **how).status_code == 200

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

    def end(self, line, given="y\n"):
        """Run it to its end."""
        done = self.shell.run(line, timeout=240, given=given)
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


def ports_in_a_row(count):
    """The first of so many that are free."""
    while True:
        first = free_port()
        with contextlib.suppress(MemberError, UsageError):
            return choose_ports(count, first)[0]


def run_here():
    for page in PAGES:
        if any(block.language in RUN and not block.is_marked for block in blocks_of(page)):
            yield pytest.param(page, id=str(page.relative_to(ROOT)))


@pytest.fixture
def cluster():
    """One of its own for a page: in one that was emptied by removing its maps, jobs of the same names stood still."""
    with member(heap="1g", register=False) as started:
        yield started


@pytest.fixture(scope="module")
def servers(request):
    started = Servers(request)
    yield started
    started.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Makes the files that go with a job file, once for all pages; returns their folder."""
    made = {}

    def of(text):
        if text not in made:
            made[text] = folder = tmp_path_factory.mktemp("files")
            (folder / "lookups").mkdir()
            shutil.copy(ROOT / "jobs/payments/lookups/customer_record.csv", folder / "lookups/customer.csv")
            (folder / "job.yaml").write_text(text)
            (folder / "files.py").write_text(FILES)
            with shell_in(folder) as shell:
                done = shell.run("python files.py")
            assert done.returncode == 0, done.stderr
        return made[text]

    return of


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", list(run_here()))
def test_what_a_page_says_can_be_done(page, cluster, servers, files, tmp_path):
    scene = SCENES[str(page.relative_to(ROOT))]
    where = {"GRIDSCORE_MEMBERS": json.dumps(cluster.addresses), "GRIDSCORE_CLUSTER_NAME": cluster.cluster_name}
    if scene.trusts_servers:
        where["SSL_CERT_FILE"] = servers.certificate[0]
    with shell_in(tmp_path, **where, **PASSWORDS) as shell:
        follower = Follower(shell, scene, cluster, servers, files)
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
