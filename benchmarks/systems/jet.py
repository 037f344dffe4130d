"""Hazelcast Jet's `mapUsingPython` on the members of the bed, with lookups in three places.

Jet starts its Python processes itself, and would set up an environment for each with what it installs from the network.
Here it finds a `python3` that is this very interpreter, which has everything already. Its pipelines are Java: Eclipse's
compiler makes classes of them on the runtime that comes as a wheel, and a small Java client submits and cancels them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from filelock import FileLock

from benchmarks.jars import jar
from benchmarks.systems.in_grid import InGrid
from gridscore.errors import GridscoreError
from gridscore.grid.artifacts import cache_folder, java_executable, member_jars
from gridscore.grid.launch import MemberExtras

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.systems.base import Bed

VERSION = "5.6.0"
"""Hazelcast's, the last whose Python module is published. The members must be of it."""

BACKLOG_PROCESSES, LIVE_PROCESSES = 2, 1
"""Python processes of each member. Two are faster on a backlog; live, they only take the cores from each other and from
the members, and latency is several times as high."""

_COMPILER = ("org.eclipse.jdt", "ecj", "3.43.0")
_SOURCES = Path(__file__).parent.parent / "jet"
_SERVER = "jet_to_python_grpc_server.py"
_START_SECONDS = 60.0
_COPY_SECONDS = 300.0
"""For a million lookups to be in replicated maps."""
_TICK_SECONDS = 0.02
_LAST_WORDS = 300  # characters

_PYTHON = """\
#!/bin/sh
# The python3 that Jet makes environments with: what it would install is there already.
case "$1 $2" in
"-m venv") mkdir -p "$3/bin" && : > "$3/bin/activate" ;;
"-m pip") ;;
*) exec '{python}' "$@" ;;
esac
"""
_FLOCK = """\
#!/bin/sh
# Jet guards its pip by a file in the home folder; there is nothing to guard.
shift 2
exec "$@"
"""


def member_extras(folder: Path, progress: Callable[[str], None] = lambda _: None) -> MemberExtras:
    """What members need to run these systems; it does no harm to others.

    Args:
        folder: For classes, scripts and Jet's own files; as long as the members run.
        progress: Called with a line for people before something that takes a while.

    Raises:
        GridscoreError: Something is not installed, cannot be downloaded, or does not compile.
    """
    if sys.platform == "win32":
        raise GridscoreError("Jet's Python module needs a POSIX shell.", "Leave the systems of Jet out.")
    if any(find_spec(name) is None for name in ("google.protobuf", "grpc")):
        raise GridscoreError(
            "Jet's Python processes need grpcio and protobuf.", "Install them with `pip install 'gridscore[bench]'`."
        )
    scripts, temporary = folder / "bin", folder / "tmp"
    for path in (scripts, temporary):
        path.mkdir(parents=True, exist_ok=True)
    for name, text in (("python3", _PYTHON.format(python=sys.executable)), ("flock", _FLOCK)):
        (scripts / name).write_text(text, encoding="utf-8")
        (scripts / name).chmod(0o755)
    return MemberExtras(
        jars=_jars(progress),
        environment={"PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', os.defpath)}"},
        properties={
            "java.io.tmpdir": str(temporary),
            # The handler is sent along with the job.
            "hz.jet.resource-upload-enabled": "true",
            # More threads only take the cores from Python and from each other.
            "hz.jet.cooperative-thread-count": "2",
            "hz.jet.edge-defaults.queue-size": "1024",
            # With a common pool of one, as on two cores, Hazelcast starts a thread for every answer that it waits for.
            "java.util.concurrent.ForkJoinPool.common.parallelism": "2",
        },
    )


def _jars(progress: Callable[[str], None]) -> list[Path]:
    """Jet's Python module, and our pipelines: compiled anew when they have changed."""
    module = jar("com.hazelcast.jet", "hazelcast-jet-python", VERSION, "jar-with-dependencies", progress=progress)
    sources = sorted(_SOURCES.glob("*.java"))
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]
    classes = cache_folder() / f"bench-jet-{VERSION}-{digest}"
    with FileLock(f"{classes}.lock"):
        if not classes.is_dir():
            progress("Compiling Jet's pipelines")
            with tempfile.TemporaryDirectory(dir=classes.parent) as temporary:
                made = Path(temporary) / "classes"
                _compile(sources, [*member_jars(VERSION, progress), module], made, progress)
                made.rename(classes)
    return [module, classes]


def _compile(sources: list[Path], jars: list[Path], classes: Path, progress: Callable[[str], None]) -> None:
    compiler = jar(*_COMPILER, progress=progress)
    options = ["-source", "17", "-target", "17", "-proc:none", "-nowarn", "-encoding", "UTF-8"]
    path = ["-classpath", os.pathsep.join(map(str, jars)), "-d", str(classes)]
    done = subprocess.run(
        [str(java_executable()), "-jar", str(compiler), *options, *path, *map(str, sources)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise GridscoreError(f"Jet's pipelines do not compile:\n{done.stdout}{done.stderr}")


class _Jobs:
    """The Java client that starts and cancels a job; it ends when its standard input does, so it never outlives us."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log
        self._answers: asyncio.Queue[str] = asyncio.Queue()
        self._reader = asyncio.create_task(self._read())
        self.ended: str | None = None  # why the job, or this process, is gone

    @classmethod
    async def start(cls, classpath: list[Path], arguments: list[str], log: Path) -> _Jobs:
        with log.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                str(java_executable()),
                "-Xmx256m",
                "-XX:+UseSerialGC",
                "-Dhazelcast.phone.home.enabled=false",
                "-cp",
                os.pathsep.join(map(str, classpath)),
                "gridscore.bench.Jobs",
                *arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                start_new_session=True,
            )
        return cls(process, log)

    async def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 -- for the type checker
        async for line in self._process.stdout:
            text = line.decode("utf-8", "replace").strip()
            if text.startswith("ended "):
                self.ended = f"Jet's job has ended: {text.removeprefix('ended ')}"
            else:
                self._answers.put_nowait(text)
        self.ended = f"The client of Jet has ended: {self._last_words()}"
        self._answers.put_nowait(f"failed {self.ended}")

    def _last_words(self) -> str:
        # The log itself goes with the benchmark's folder.
        lines = self._log.read_text("utf-8", "replace").split("\n")
        return next((line.strip()[:_LAST_WORDS] for line in reversed(lines) if line.strip()), "it said nothing")

    async def answer(self, seconds: float = _START_SECONDS) -> None:
        """Wait until it has done what it was told."""
        try:
            text = await asyncio.wait_for(self._answers.get(), seconds)
        except TimeoutError:
            words = self._last_words()
            raise GridscoreError(f"The client of Jet did not answer within {seconds:g} s: {words}") from None
        if text != "done":
            raise GridscoreError(f"Jet has failed: {text.removeprefix('failed ')}")

    async def ask(self, line: str) -> None:
        assert self._process.stdin is not None  # noqa: S101 -- for the type checker
        with contextlib.suppress(ConnectionError):  # the answer says what has become of it
            self._process.stdin.write(f"{line}\n".encode())
            await self._process.stdin.drain()
        await self.answer()

    async def close(self) -> None:
        assert self._process.stdin is not None  # noqa: S101 -- for the type checker
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 20)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        await self._reader


class _Jet(InGrid):
    """Where lookups are made is all that its classes differ in."""

    variant: str
    lookups: str

    def __init_subclass__(cls) -> None:
        cls.name = f"jet-{cls.variant}"
        cls.title = f"Jet mapUsingPython, lookups {cls.lookups}"
        cls.tuning = (
            f"Hazelcast {VERSION}; the journal read as ready-made text, order not kept, {BACKLOG_PROCESSES} Python "
            f"processes a member for throughput and {LIVE_PROCESSES} for latency, batches of up to 4,096, two "
            "cooperative threads a member, edge queues of 1,024, no snapshots; "
            f"typed decoding of a whole batch by msgspec, columns in numpy, one thread to predict; {cls.how}."
        )

    how: str

    def __init__(self, bed: Bed) -> None:
        super().__init__(bed)
        self._jobs: _Jobs | None = None
        self._handler = bed.folder / self.name

    async def prepare(self) -> None:
        """Start the client that submits jobs; it copies lookups to replicated maps, if need be.

        Raises:
            GridscoreError: The client does not start.
        """
        self._handler.mkdir(parents=True)
        shutil.copy(_SOURCES / "handler.py", self._handler)
        jars = await asyncio.to_thread(_jars, self.bed.progress)
        self._jobs = await _Jobs.start(
            [*member_jars(VERSION), *jars],
            [
                self.bed.cluster_name,
                ",".join(self.bed.addresses),
                self.variant,
                str(self._handler),
                self.events_map,
                self.results_map,
                *(name for name, _ in self.bed.work.lookups.values()),
            ],
            self.bed.folder / f"{self.name}.log",
        )
        await self._jobs.answer(_COPY_SECONDS)

    async def start(self, *, backlog: bool) -> None:
        """Submit the job, with its handler; for live events, wait until all its Python processes are connected."""
        assert self._jobs is not None  # noqa: S101 -- `prepare` comes first
        parallelism = BACKLOG_PROCESSES if backlog else LIVE_PROCESSES
        processes = parallelism * len(self.bed.member_pids)
        settings = {
            "files": str(self.bed.files),
            "dictionary": self.variant == "dictionary",
            "model": self.bed.work.job.model.name,
            "version": 1,
            "ready": tempfile.mkdtemp(dir=self.bed.folder),
            "processes": processes,
        }
        (self._handler / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        await self._jobs.ask(f"start {'START_FROM_OLDEST' if backlog else 'START_FROM_CURRENT'} {parallelism}")
        if not backlog:
            await self._wait("Jet's Python processes do not start.", lambda: sum(self._connected()) == processes)

    async def stop(self) -> None:
        """Cancel the job, and wait until its Python processes are gone."""
        assert self._jobs is not None  # noqa: S101 -- `prepare` comes first
        await self._jobs.ask("cancel")
        await self._wait("Jet's Python processes do not end.", lambda: not self.pids())
        await self.clear()

    async def _wait(self, otherwise: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not condition():
            await self.check()
            if time.monotonic() > deadline:
                raise GridscoreError(otherwise, f"The members' logs say why: {', '.join(self.bed.addresses)}.")
            await asyncio.sleep(_TICK_SECONDS)

    async def close(self) -> None:
        """End the client, and the job with it."""
        if self._jobs is not None:
            jobs, self._jobs = self._jobs, None
            await jobs.close()
            await self.clear()

    async def check(self) -> None:
        """Raise if the job has ended.

        Raises:
            GridscoreError: With what it ended with.
        """
        await super().check()
        if self._jobs is not None and self._jobs.ended is not None:
            raise GridscoreError(self._jobs.ended)

    def pids(self) -> list[int]:
        """Jet's Python processes, children of the members."""
        return [process.pid for process in self._processes()]

    def _processes(self) -> list[psutil.Process]:
        found = []
        for pid in self.bed.member_pids:
            for child in psutil.Process(pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if _SERVER in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                        found.append(child)
        return found

    def _connected(self) -> list[bool]:
        """Of each Python process, whether its member is connected to it: then it takes events."""
        connected = []
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                sockets = process.net_connections("tcp")
                ports = {socket.laddr.port for socket in sockets if socket.status == psutil.CONN_LISTEN}
                taken = {socket.laddr.port for socket in sockets if socket.status == psutil.CONN_ESTABLISHED}
                connected.append(bool(ports & taken))
        return connected


class JetDictionary(_Jet):
    """Lookups in a dictionary inside the Python handler."""

    variant = "dictionary"
    lookups = "in a dictionary of its Python handler"
    how = "lookups as numpy arrays with a dictionary of their rows"


class JetReplicated(_Jet):
    """Lookups in replicated maps, before the handler."""

    variant = "replicated"
    lookups = "by mapUsingReplicatedMap"
    how = "the two keys cut from the event's text, the entries appended to it as they are"


class JetIMap(_Jet):
    """Lookups in the maps themselves, before the handler."""

    variant = "imap"
    lookups = "by mapUsingIMap (async)"
    how = (
        "mapUsingIMap's own stage with 1,024 instead of four requests under way and without order, the two keys cut "
        "from the event's text, the entries appended to it as they are"
    )
