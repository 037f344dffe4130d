"""The embedded member: a real Hazelcast cluster on this machine, as child processes, without Java, Maven or Docker."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import platformdirs
import psutil
from filelock import FileLock, Timeout

from pipeline.errors import MemberError, UsageError
from pipeline.grid import guard
from pipeline.grid.artifacts import DEFAULT_VERSION, java_executable, member_jars
from pipeline.grid.template import load_template, member_config, template_cluster_name

FIRST_PORT = 5701
START_SECONDS = 120.0
_HOST = "127.0.0.1"
# Besides its heap a member needs room for code, threads and network buffers.
_OVERHEAD_BYTES = 256 << 20
_KEPT_LOG_FOLDERS = 5
_PORT_ATTEMPTS = 5
_TAIL_LINES = 12

Progress = Callable[[str], None]


class Cluster:
    """Members of one cluster, running as child processes of this one. A context manager: leaving it stops them.

    They also end when this process ends, whatever way. Make one with :meth:`start`.

    Attributes:
        addresses: Where the members listen, `host:port`.
        cluster_name: What clients must name.
        log_files: One a member.
        version: Hazelcast's version.
    """

    def __init__(self, launch: _Launch, folder: Path, *, registered: bool) -> None:
        self._launch = launch
        self._folder = folder
        self._registered = registered
        self._stop_lock = threading.Lock()
        self._stopped = False
        self.cluster_name = launch.cluster_name
        self.version = launch.version
        self.heap = launch.heap
        self.addresses = [f"{_HOST}:{port}" for port in launch.ports]
        self.log_files = [folder / f"member-{index}.log" for index in range(len(launch.ports))]

    @classmethod
    def start(
        cls,
        members: int = 1,
        *,
        port: int | None = None,
        heap: str = "1g",
        cluster_name: str | None = None,
        version: str = DEFAULT_VERSION,
        config: Path | None = None,
        register: bool = True,
        on_progress: Progress | None = None,
    ) -> Cluster:
        """Start a cluster and return when all its members are in it.

        Args:
            members: How many.
            port: The first member's; the next follow. None: the first free ones from 5701. 0: any free ones.
            heap: Java heap of each member, as `512m` or `2g`.
            cluster_name: None: the configuration's if it is registered, else a random one.
            version: Hazelcast's version.
            config: A member configuration in YAML to adjust and use instead of ours.
            register: Whether :func:`running_cluster` finds it; there is at most one that is.
            on_progress: Called with a line for people as the start goes on.

        Raises:
            MemberError: It did not come up; the message says why and where the log is.
            UsageError: An argument makes no sense.
        """
        if not 1 <= members <= 16:
            raise UsageError(f"A cluster of {members} members is not one for a single machine.", "Take 1 to 16.")
        heap_bytes = parse_heap(heap)
        progress = on_progress or (lambda _: None)
        template = load_template(config)
        name = cluster_name or (template_cluster_name(template) if register else f"gridscore-{secrets.token_hex(4)}")
        _check_memory(members, heap_bytes)
        java = java_executable()
        jars = member_jars(version, progress)
        with _registration() if register else contextlib.nullcontext():
            if register and (running := running_cluster()):
                raise MemberError(
                    f"Cluster `{running['cluster_name']}` already runs here, at {', '.join(running['members'])}.",
                    f"Use it, or stop it: Ctrl-C where it was started, or end process {running['owner']['pid']}.",
                )
            folder = _log_folder(name) if register else Path(tempfile.mkdtemp(prefix="gridscore-member-"))
            progress(f"Starting {_count(members)} of Hazelcast {version}")
            for attempt in range(_PORT_ATTEMPTS):
                ports = _choose_ports(members, port)
                launch = _Launch(
                    java=java,
                    jars=jars,
                    template=template,
                    folder=folder,
                    ports=ports,
                    cluster_name=name,
                    heap=heap,
                    version=version,
                )
                try:
                    launch.start_all(progress)
                    break
                except _PortTakenError:
                    # Somebody was faster between our look and the member's bind.
                    if port or attempt == _PORT_ATTEMPTS - 1:
                        raise
            cluster = cls(launch, folder, registered=register)
            if register:
                cluster._write_state()
        return cluster

    @property
    def pids(self) -> list[int]:
        """The members' process ids; that of a dead one is what it was."""
        return [self._launch.pids[index] for index in range(len(self.addresses))]

    @property
    def alive(self) -> list[bool]:
        """Which members run."""
        return [index not in self._launch.exits for index in range(len(self.addresses))]

    def death(self, index: int) -> MemberError | None:
        """Why a member that was not asked to stop is gone, with its last log lines; None if it runs."""
        code = self._launch.exits.get(index)
        return None if code is None else _death(self._launch, index, code)

    def kill(self, index: int) -> None:
        """Kill a member at once, as a power failure would, and wait until it is gone."""
        self._launch.kill(index)

    def restart(self, index: int) -> None:
        """Start a dead member again, at its address, and return when it is in the cluster.

        Raises:
            MemberError: It did not come up.
        """
        self._launch.start(index)
        self._launch.wait_for({index}, expected=sum(self.alive))
        if self._registered:
            self._write_state()

    def stop(self) -> None:
        """Stop all members and wait until they are gone. A second call does nothing."""
        with self._stop_lock:
            if self._stopped:
                return
            self._stopped = True
            self._launch.close()
            if self._registered:
                with contextlib.suppress(OSError):
                    state = _read_state()
                    if state and state["guard"]["pid"] == self._launch.guard_pid:
                        _state_file().unlink()
            else:
                shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _write_state(self) -> None:
        state = {
            "members": self.addresses,
            "cluster_name": self.cluster_name,
            "version": self.version,
            "heap": self.heap,
            "pids": self.pids,
            "owner": _identity(os.getpid()),
            "guard": _identity(self._launch.guard_pid),
            "log_files": [str(path) for path in self.log_files],
            "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        temporary = _state_file().with_suffix(".new")
        temporary.write_text(json.dumps(state, indent=1), encoding="utf-8")
        temporary.replace(_state_file())


def running_cluster() -> dict[str, Any] | None:
    """The cluster that was registered on this machine and still runs, or None.

    Returns:
        `members` (addresses), `cluster_name`, `version`, `heap`, `pids`, `owner` and `guard` (each `pid` and
        `create_time`), `log_files`, `started_at`.
    """
    state = _read_state()
    if state is None or not _is_alive(state["guard"]):
        return None  # what is left of one that was killed together with its guard; the next start replaces it
    return state if any(psutil.pid_exists(pid) for pid in state["pids"]) else None


def parse_heap(text: str) -> int:
    """A heap size in bytes.

    Raises:
        UsageError: It is not a number followed by `m` or `g`.
    """
    match = re.fullmatch(r"(\d+)([mg])", text.strip().lower())
    if not match:
        raise UsageError(f"The heap `{text}` is not a size.", "Write it as 512m or 2g.")
    size = int(match[1]) << (20 if match[2] == "m" else 30)
    if size < 128 << 20:
        raise UsageError(f"A heap of {text} is too small for a member.", "Take 128m at least, 1g to be comfortable.")
    return size


class _PortTakenError(MemberError):
    """A member found its port in use."""


class _Launch:
    """The members' processes: started, watched and stopped by a guard that outlives a crash of ours."""

    def __init__(
        self,
        *,
        java: Path,
        jars: list[Path],
        template: dict[str, Any],
        folder: Path,
        ports: list[int],
        cluster_name: str,
        heap: str,
        version: str,
    ) -> None:
        self.java, self.jars, self.folder, self.ports = java, jars, folder, ports
        self.cluster_name, self.heap, self.version = cluster_name, heap, version
        self.pids: dict[int, int] = {}
        self.exits: dict[int, int] = {}
        self._log_starts = dict.fromkeys(range(len(ports)), 0)
        self._changed = threading.Condition()
        for index in range(len(ports)):
            text = member_config(
                template,
                ports=ports,
                index=index,
                cluster_name=cluster_name,
                instance_name=f"{cluster_name}-{index}",
            )
            (folder / f"member-{index}.yaml").write_text(text, encoding="utf-8")
        self._guard = subprocess.Popen(
            # The file, not the module: importing this package would take the guard half a second and 100 MB.
            [sys.executable, "-I", guard.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        self.guard_pid = self._guard.pid
        self._listener = threading.Thread(target=self._listen, name="gridscore-guard", daemon=True)
        self._listener.start()

    def log_file(self, index: int) -> Path:
        return self.folder / f"member-{index}.log"

    def start_all(self, progress: Progress) -> None:
        """Start every member and wait until each sees all; stop what runs if that fails."""
        try:
            # The first goes alone: members that start together vote on a master for five seconds.
            self.start(0)
            self.wait_for({0}, expected=1)
            for index in range(1, len(self.ports)):
                self.start(index)
            self.wait_for(set(range(len(self.ports))), expected=len(self.ports), progress=progress)
        except BaseException:
            self.close()
            raise

    def start(self, index: int) -> None:
        log = self.log_file(index)
        self._log_starts[index] = log.stat().st_size if log.exists() else 0
        with self._changed:
            self.pids.pop(index, None)
            self.exits.pop(index, None)
        self._ask({"start": index, "command": self._command(index), "log": str(log)})

    def kill(self, index: int) -> None:
        self._ask({"kill": index})
        with self._changed:
            if not self._changed.wait_for(lambda: index in self.exits, timeout=10):
                raise MemberError(f"Member {index} (process {self.pids.get(index)}) does not end.")

    def wait_for(self, indexes: set[int], *, expected: int, progress: Progress | None = None) -> None:
        """Wait until these members say that they have started in a cluster of the expected size."""
        deadline = time.monotonic() + START_SECONDS
        missing = set(indexes)
        while missing:
            for index in sorted(missing):
                if (code := self.exits.get(index)) is not None:
                    raise _death(self, index, code)
                if _is_ready(self.log_since_start(index), expected):
                    missing.discard(index)
                    if progress and len(indexes) > 1:
                        progress(f"{len(indexes) - len(missing)} of {_count(len(indexes))} are in the cluster")
            if missing and time.monotonic() > deadline:
                index = min(missing)
                raise MemberError(
                    f"Member {index} was not in a cluster of {_count(expected)} after {START_SECONDS:.0f} seconds.\n"
                    + _tail(self.log_since_start(index)),
                    f"Its log: {self.log_file(index)}",
                )
            with self._changed:
                self._changed.wait(0.05)

    def log_since_start(self, index: int) -> str:
        """What the member has logged since it was last started."""
        try:
            with self.log_file(index).open("rb") as file:
                file.seek(self._log_starts[index])
                return file.read().decode("utf-8", "replace")
        except OSError:
            return ""

    def close(self) -> None:
        """Stop the members by closing the guard's pipe, and wait for it."""
        with contextlib.suppress(OSError):
            if self._guard.stdin:
                self._guard.stdin.close()
        try:
            self._guard.wait(guard.STOP_SECONDS + 5)
        except subprocess.TimeoutExpired:
            for pid in self.pids.values():
                with contextlib.suppress(psutil.NoSuchProcess):
                    psutil.Process(pid).kill()
            self._guard.kill()
            self._guard.wait()
        self._listener.join(5)
        if self._guard.stdout:
            self._guard.stdout.close()

    def _ask(self, request: dict[str, Any]) -> None:
        try:
            assert self._guard.stdin is not None  # noqa: S101 -- for the type checker
            self._guard.stdin.write(json.dumps(request) + "\n")
            self._guard.stdin.flush()
        except (OSError, ValueError):
            raise MemberError("The members' guard process is gone, and the members with it.") from None

    def _listen(self) -> None:
        assert self._guard.stdout is not None  # noqa: S101 -- for the type checker
        for line in self._guard.stdout:
            answer = json.loads(line)
            with self._changed:
                if "started" in answer:
                    self.pids[answer["started"]] = answer["pid"]
                else:
                    self.exits[answer["exited"]] = answer["code"]
                self._changed.notify_all()
        with self._changed:
            for index in range(len(self.ports)):
                self.exits.setdefault(index, 0)
            self._changed.notify_all()

    def _command(self, index: int) -> list[str]:
        return [
            str(self.java),
            f"-Xms{self.heap}",
            f"-Xmx{self.heap}",
            *_JVM_OPTIONS,
            f"-XX:ErrorFile={self.folder / f'member-{index}-crash.log'}",
            f"-Dhazelcast.config={self.folder / f'member-{index}.yaml'}",
            *_HAZELCAST_PROPERTIES,
            "-cp",
            os.pathsep.join(map(str, self.jars)),
            "com.hazelcast.core.server.HazelcastMemberStarter",
        ]


_JVM_OPTIONS = [
    # Hazelcast's own start script has these: it looks into the JVM for its metrics and its zero-copy I/O.
    "--add-modules=java.se",
    "--add-exports=java.base/jdk.internal.ref=ALL-UNNAMED",
    "--add-opens=java.base/java.lang=ALL-UNNAMED",
    "--add-opens=java.base/java.nio=ALL-UNNAMED",
    "--add-opens=java.base/sun.nio.ch=ALL-UNNAMED",
    "--add-opens=java.management/sun.management=ALL-UNNAMED",
    "--add-opens=jdk.management/com.sun.management.internal=ALL-UNNAMED",
    # A member out of memory would stay in the cluster and answer nobody.
    "-XX:+ExitOnOutOfMemoryError",
    "-XX:+UseParallelGC",
    "-Xlog:disable",
    "-Xlog:all=error:stderr",
    "-Djava.net.preferIPv4Stack=true",
    "-Djava.util.logging.SimpleFormatter.format=%1$tF %1$tT.%1$tL %4$s [%3$s] %5$s%6$s%n",
]

_HAZELCAST_PROPERTIES = [
    # Our readiness check reads the log, so its form must not depend on the user's configuration.
    "-Dhazelcast.logging.type=jdk",
    "-Dhazelcast.phone.home.enabled=false",
    # All members are listed and start together: nobody else is worth waiting for.
    "-Dhazelcast.wait.seconds.before.join=0",
    "-Dhazelcast.socket.bind.any=false",
    "-Dhazelcast.shutdownhook.policy=TERMINATE",
]


def _is_ready(log: str, expected: int) -> bool:
    sizes = re.findall(r"Members \{size:(\d+)", log)
    return "is STARTED" in log and bool(sizes) and int(sizes[-1]) >= expected


def _death(launch: _Launch, index: int, code: int) -> MemberError:
    log = launch.log_since_start(index)
    where = f"Its log: {launch.log_file(index)}"
    port = launch.ports[index]
    if re.search(r"Address already in use|BindException|Port \[\d+] is already in use|ports? .* in use", log):
        return _PortTakenError(f"Port {port} is in use{_user_of(port)}.", f"Choose another with --port. {where}")
    if re.search(r"Could not reserve enough space|Invalid maximum heap size|insufficient memory|Cannot allocate", log):
        return MemberError(
            f"There is not enough memory for a member with a heap of {launch.heap}.", f"Give it less: --heap. {where}"
        )
    if "OutOfMemoryError" in log:
        return MemberError(
            f"Member {index} ran out of its heap of {launch.heap} and stopped.", f"Give it more: --heap. {where}"
        )
    reason = f"ended with code {code}" if code >= 0 else f"was ended by signal {-code}"
    if code == -9:
        reason += " (by hand, or by the system because memory ran out)"
    return MemberError(f"Member {index} {reason}. Its last lines:\n{_tail(log)}", where)


def _tail(log: str) -> str:
    lines = [line for line in log.splitlines() if line.strip() and not line.lstrip().startswith("at ")]
    return "\n".join(f"  {line}" for line in lines[-_TAIL_LINES:]) or "  (it logged nothing)"


def _check_memory(members: int, heap: int) -> None:
    needed = members * (heap + _OVERHEAD_BYTES)
    available = psutil.virtual_memory().available
    if needed > available:
        raise MemberError(
            f"{_count(members).capitalize()} with a heap of {heap >> 20} MB need about {needed / 1e9:.1f} GB, "
            f"but only {available / 1e9:.1f} GB of memory are free.",
            "Give each less (--heap), start fewer (--members), or close something.",
        )


def _choose_ports(members: int, first: int | None) -> list[int]:
    if first == 0:
        with contextlib.ExitStack() as held:
            sockets = [held.enter_context(socket.socket()) for _ in range(members)]
            for each in sockets:
                each.bind((_HOST, 0))
            return [each.getsockname()[1] for each in sockets]
    if first is not None:
        if not 1 <= first <= 65536 - members:
            raise UsageError(f"{first} is not a port for {_count(members)}.", "Take one from 1024 to 65535.")
        ports = list(range(first, first + members))
        for port in ports:
            if not _is_free(port):
                raise MemberError(
                    f"Port {port} is in use{_user_of(port)}.", "Choose another with --port, or leave it to us."
                )
        return ports
    free = (port for port in range(FIRST_PORT, FIRST_PORT + 1000) if _is_free(port))
    ports = [port for port, _ in zip(free, range(members), strict=False)]
    if len(ports) < members:
        raise MemberError(f"No {members} free ports from {FIRST_PORT} to {FIRST_PORT + 999}.", "Choose with --port.")
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        if os.name == "posix":  # as the member does; elsewhere this option would allow to share the port
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
    # Someone who listens on all addresses does not hinder the bind everywhere.
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex((_HOST, port)) != 0


def _user_of(port: int) -> str:
    """` by NAME (process PID)`, as far as the system lets us see it."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
                if connection.pid is None:
                    break
                return f" by {psutil.Process(connection.pid).name()} (process {connection.pid})"
    except (psutil.Error, OSError):  # other people's processes need rights that we do not have
        pass
    return ""


def _home() -> Path:
    named = os.environ.get("GRIDSCORE_HOME")
    folder = Path(named) if named else platformdirs.user_state_path("gridscore")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _state_file() -> Path:
    return _home() / "cluster.json"


def _read_state() -> dict[str, Any] | None:
    try:
        state = json.loads(_state_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) and {"members", "owner", "guard", "pids"} <= state.keys() else None


@contextlib.contextmanager
def _registration() -> Any:
    """Only one at a time registers a cluster."""
    try:
        with FileLock(_home() / "cluster.lock", timeout=START_SECONDS + 30):
            yield
    except Timeout:
        raise MemberError("Another start is under way on this machine and does not come to an end.") from None


def _log_folder(cluster_name: str) -> Path:
    logs = _home() / "logs"
    logs.mkdir(exist_ok=True)
    for old in sorted(path for path in logs.iterdir() if path.is_dir())[: -_KEPT_LOG_FOLDERS + 1]:
        shutil.rmtree(old, ignore_errors=True)
    safe_name = re.sub(r"[^\w.-]", "_", cluster_name)
    folder = logs / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{safe_name}-{secrets.token_hex(2)}"
    folder.mkdir()
    return folder


def _identity(pid: int) -> dict[str, float]:
    return {"pid": pid, "create_time": psutil.Process(pid).create_time()}


def _is_alive(identity: dict[str, Any]) -> bool:
    """Whether it is still the process that was written down, and not another that got its number."""
    try:
        process = psutil.Process(identity["pid"])
        same = bool(abs(process.create_time() - identity["create_time"]) < 1)
        return same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, KeyError, TypeError):
        return False


def _count(members: int) -> str:
    return "one member" if members == 1 else f"{members} members"
