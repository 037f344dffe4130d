"""The embedded member: a real Hazelcast cluster on this machine, as child processes, without Java, Maven or Docker."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import platformdirs
import psutil
from filelock import FileLock, Timeout

from gridscore.errors import MemberError, UsageError
from gridscore.grid.artifacts import DEFAULT_VERSION, java_executable, member_jars
from gridscore.grid.launch import START_SECONDS, Launch, MemberExtras, PortTakenError, count_of, death
from gridscore.grid.ports import HOST, PORT_ATTEMPTS, choose_ports
from gridscore.grid.template import load_template, template_cluster_name
from gridscore.texts import moment_text

# A member needs room for code, threads and network buffers besides its heap.
_OVERHEAD_BYTES = 256 << 20
_KEPT_LOG_FOLDERS = 5
_STATE = "cluster.json"

Progress = Callable[[str], None]


class Cluster:
    """Members of one cluster, as child processes. A context manager: leaving it stops them.

    They also end with this process, however it ends. Make one with :meth:`start`.

    Attributes:
        addresses: Where the members can be reached, `host:port`.
        cluster_name: What clients must name.
    """

    def __init__(self, launch: Launch, folder: Path, state_file: Path | None, made_of: dict[str, Any]) -> None:
        self._launch, self._folder, self._state_file = launch, folder, state_file
        self._made_of = made_of
        self._stop_lock = threading.Lock()
        self._stopped = False
        self.cluster_name = launch.cluster_name
        self.version = launch.version
        self.heap = launch.heap
        self.addresses = [f"{HOST}:{port}" for port in launch.extras.announced or launch.ports]
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
        register: bool = False,
        extras: MemberExtras | None = None,
        kafka: bool = False,
        on_progress: Progress | None = None,
    ) -> Cluster:
        """Start a cluster; returns when all members are in it.

        Args:
            port: The first member's; the next follow. None: the first free ones from 5701. 0: any free ones.
            heap: Java heap of each member, as `512m` or `2g`.
            cluster_name: Default: the configuration's if it is registered, else a random one.
            config: A member configuration in YAML to adjust and use instead of ours.
            register: Whether :func:`running_cluster` finds it. The first is this machine's; others are found by their
                `cluster_name`.
            kafka: Whether they get the Kafka connector, so that SQL can read topics.
            on_progress: Called with a line for people as the start goes on.

        Raises:
            MemberError: It did not start; the message says why, and where the log is.
            UsageError: An argument makes no sense.
        """
        if not 1 <= members <= 16:
            raise UsageError(f"One machine cannot run a cluster of {members} members.", "Take 1 to 16.")
        if port is not None and not 0 <= port <= 65535:
            raise UsageError(f"{port} is not a port.", "Take one from 1024 to 65535.")
        heap_bytes = parse_heap(heap)
        progress = on_progress or (lambda _: None)
        template = load_template(config)
        name = cluster_name or (template_cluster_name(template) if register else f"gridscore-{secrets.token_hex(4)}")
        _check_memory(members, heap_bytes)
        java = java_executable()
        jars = member_jars(version, progress, kafka=kafka)
        with _registration() if register else contextlib.nullcontext():
            if register and (running := running_cluster(cluster_name)):
                raise MemberError(
                    f"Cluster `{running['cluster_name']}` already runs here, at {', '.join(running['members'])}.",
                    f"Use it, or stop it: Ctrl-C where it was started, or end process {running['owner']['pid']}.",
                )
            folder = _log_folder(name) if register else Path(tempfile.mkdtemp(prefix="gridscore-member-"))
            progress(f"Starting {count_of(members)} of Hazelcast {version}")
            for attempt in range(PORT_ATTEMPTS):
                ports = choose_ports(members, port)
                launch = Launch(
                    java=java,
                    jars=jars,
                    template=template,
                    folder=folder,
                    ports=ports,
                    cluster_name=name,
                    heap=heap,
                    version=version,
                    extras=extras or MemberExtras(),
                )
                try:
                    launch.start_all(progress)
                    break
                except PortTakenError:
                    # Somebody took a port between our check and the member's bind.
                    if port or attempt == PORT_ATTEMPTS - 1:
                        raise
            state_file = _state_file(name if running_cluster() else None) if register else None
            cluster = cls(launch, folder, state_file, {"kafka": kafka, "config": config_identity(config)})
            cluster._write_state()
        return cluster

    @property
    def pids(self) -> list[int]:
        """The members' process ids, those of dead ones included."""
        return [self._launch.pids[index] for index in range(len(self.addresses))]

    @property
    def alive(self) -> list[bool]:
        """Which members run."""
        return [index not in self._launch.exits for index in range(len(self.addresses))]

    def death(self, index: int) -> MemberError | None:
        """Why a member that was not asked to stop has ended, with its last log lines; None if it runs."""
        code = self._launch.exits.get(index)
        return None if code is None else death(self._launch, index, code)

    def kill(self, index: int) -> None:
        """Kill a member at once, as a power failure would, and wait for its end."""
        self._launch.kill(index)

    def restart(self, index: int) -> None:
        """Start a dead member again, at its address; returns when it is in the cluster."""
        self._launch.start(index)
        self._launch.wait_for({index}, expected=sum(self.alive))
        self._write_state()

    def stop(self) -> None:
        """Stop all members and wait for their end. A second call does nothing."""
        with self._stop_lock:
            if self._stopped:
                return
            self._stopped = True
            self._launch.close()
            if self._state_file is not None:
                with contextlib.suppress(OSError):
                    state = _read_state(self._state_file)
                    if state and state["guard"]["pid"] == self._launch.guard_pid:
                        self._state_file.unlink()
            else:
                shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def state(self) -> dict[str, Any]:
        """What :func:`running_cluster` returns."""
        return {
            "members": self.addresses,
            "cluster_name": self.cluster_name,
            "version": self.version,
            "heap": self.heap,
            **self._made_of,
            "pids": self.pids,
            "owner": _identity(os.getpid()),
            "guard": _identity(self._launch.guard_pid),
            "log_files": [str(path) for path in self.log_files],
            "started_at": moment_text(),
        }

    def _write_state(self) -> None:
        if self._state_file is None:
            return
        temporary = self._state_file.with_suffix(".new")
        temporary.write_text(json.dumps(self.state(), indent=1), encoding="utf-8")
        temporary.replace(self._state_file)


def running_cluster(name: str | None = None) -> dict[str, Any] | None:
    """A registered cluster of this machine that runs, or None.

    Args:
        name: Of the cluster; default: the one that commands use.

    Returns:
        `members` (addresses), `cluster_name`, `version`, `heap`, `kafka`, `config` (see :func:`config_identity`),
        `pids`, `owner` and `guard` (each `pid` and `create_time`), `log_files`, `started_at`.
    """
    found = _running(_state_file())
    if name is None or (found and found["cluster_name"] == name):
        return found
    found = _running(_state_file(name))
    return found if found and found["cluster_name"] == name else None


def config_identity(config: Path | None) -> str | None:
    """Identifies a member configuration by its path and content; None for that of Gridscore."""
    if config is None:
        return None
    try:
        content = config.read_bytes()
    except OSError:
        content = b""
    return f"{config.resolve()} {hashlib.blake2b(content, digest_size=8).hexdigest()}"


def parse_heap(text: str) -> int:
    """A heap size in bytes. Raises UsageError if it is not a number followed by `m` or `g`."""
    match = re.fullmatch(r"(\d+)([mg])", text.strip().lower())
    if not match:
        raise UsageError(f"The heap `{text}` is not a size.", "Write it as 512m or 2g.")
    size = int(match[1]) << (20 if match[2] == "m" else 30)
    if size < 128 << 20:
        raise UsageError(f"A heap of {text} is too small for a member.", "Take 128m at least, 1g to be comfortable.")
    return size


def _check_memory(members: int, heap: int) -> None:
    needed = members * (heap + _OVERHEAD_BYTES)
    available = psutil.virtual_memory().available
    if needed > available:
        raise MemberError(
            f"{count_of(members).capitalize()} with a heap of {heap >> 20} MB need about {needed / 1e9:.1f} GB, "
            f"but only {available / 1e9:.1f} GB of memory are free.",
            "Give each less (--heap), start fewer (--members), or close something.",
        )


def _home() -> Path:
    named = os.environ.get("GRIDSCORE_HOME")
    return Path(named) if named else platformdirs.user_state_path("gridscore")


def _state_file(name: str | None = None) -> Path:
    """That of this machine's cluster, or of another one."""
    return _home() / (f"cluster-{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}.json" if name else _STATE)


def _read_state(file: Path) -> dict[str, Any] | None:
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = {"members", "cluster_name", "owner", "guard", "pids", "log_files"}
    return state if isinstance(state, dict) and known <= state.keys() else None


def _running(file: Path) -> dict[str, Any] | None:
    state = _read_state(file)
    if state is None or not _is_alive(state["guard"]):
        return None  # the cluster was killed together with its guard; the next start replaces the file
    return state if any(psutil.pid_exists(pid) for pid in state["pids"]) else None


@contextlib.contextmanager
def _registration() -> Any:
    """Lets one process at a time register a cluster."""
    lock = FileLock(_home() / "cluster.lock", timeout=START_SECONDS + 30)
    try:
        _home().mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise MemberError("Another start is under way on this machine, and does not finish.") from None
    except OSError as error:
        raise MemberError(
            f"`{_home()}` cannot be the folder of logs and state: {error.strerror or error}.",
            "Set GRIDSCORE_HOME to a folder that you may write to, or unset it.",
        ) from None
    try:
        yield
    finally:
        lock.release()


def _log_folder(cluster_name: str) -> Path:
    logs = _home() / "logs"
    logs.mkdir(exist_ok=True)
    in_use = {
        Path(log).parent
        for file in _home().glob("cluster*.json")
        if (state := _running(file))
        for log in state["log_files"]
    }
    unused = sorted(path for path in logs.iterdir() if path.is_dir() and path not in in_use)
    for old in unused[: -_KEPT_LOG_FOLDERS + 1]:
        shutil.rmtree(old, ignore_errors=True)
    safe_name = re.sub(r"[^\w.-]", "_", cluster_name)
    folder = logs / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{safe_name}-{secrets.token_hex(2)}"
    folder.mkdir()
    return folder


def _identity(pid: int) -> dict[str, float]:
    return {"pid": pid, "create_time": psutil.Process(pid).create_time()}


def _is_alive(identity: dict[str, Any]) -> bool:
    """Whether this process lives, and its number does not belong to another one by now."""
    try:
        process = psutil.Process(identity["pid"])
        same = bool(abs(process.create_time() - identity["create_time"]) < 1)
        return same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, KeyError, TypeError):
        return False
