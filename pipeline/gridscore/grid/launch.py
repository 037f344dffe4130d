"""The processes of embedded members: how they start, when they are ready, why they died."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psutil

from gridscore.errors import MemberError
from gridscore.grid import guard
from gridscore.grid.ports import user_of
from gridscore.grid.template import member_config
from gridscore.texts import last_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

START_SECONDS = 120.0

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
    # Objects that survive a young collection are what maps keep: copying them among the young until they count as old
    # makes pauses half as long again.
    "-XX:MaxTenuringThreshold=0",
    # Each step by which the loaded classes grow beyond the default would be a full collection.
    "-XX:MetaspaceSize=256m",
    "-Xlog:disable",
    "-Xlog:all=error:stderr",
    "-Djava.net.preferIPv4Stack=true",
    "-Djava.util.logging.SimpleFormatter.format=%1$tF %1$tT.%1$tL %4$s [%3$s] %5$s%6$s%n",
]

_HAZELCAST_PROPERTIES = [
    # `is_ready` reads the log, whose form must not depend on the user's configuration.
    "-Dhazelcast.logging.type=jdk",
    "-Dhazelcast.phone.home.enabled=false",
    # All members are listed and start together: nobody else is worth waiting for.
    "-Dhazelcast.wait.seconds.before.join=0",
    "-Dhazelcast.socket.bind.any=false",
    "-Dhazelcast.shutdownhook.policy=TERMINATE",
]


def start_guard() -> subprocess.Popen[str]:
    """Start a guard, which starts and ends processes as its standard input says, and ends them when we end."""
    return subprocess.Popen(
        # As a file: importing this package would take the guard half a second and 100 MB.
        [sys.executable, "-I", guard.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )


def end_guard(child: subprocess.Popen[str], pids: Iterable[int]) -> None:
    """Stop what a guard has started, by closing its pipe, and wait for it; if it hangs, kill it and these processes."""
    with contextlib.suppress(OSError):
        if child.stdin:
            child.stdin.close()
    try:
        child.wait(guard.STOP_SECONDS + 5)
    except subprocess.TimeoutExpired:
        for pid in pids:
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(pid).kill()
        child.kill()
        child.wait()


class PortTakenError(MemberError):
    """A member found its port in use."""


@dataclass(frozen=True, slots=True)
class MemberExtras:
    """What members run with besides the usual."""

    jars: Sequence[Path] = ()  # more for the class path; folders of classes, too
    environment: Mapping[str, str] = field(default_factory=dict)  # variables to set for the members and their children
    # Of the Java runtime, by name. Hazelcast takes `hz.…` as a setting that overrides its YAML.
    properties: Mapping[str, str] = field(default_factory=dict)
    announced: Sequence[int] = ()  # ports that the members announce instead of their own: those of proxies
    outbound: Sequence[range] = ()  # ports from which each member connects to others


@dataclass(kw_only=True, eq=False)
class Launch:
    """The members' processes: a guard that outlives a crash of ours starts, watches and stops them."""

    java: Path
    jars: list[Path]
    template: dict[str, Any]
    folder: Path
    ports: list[int]
    cluster_name: str
    heap: str
    version: str
    extras: MemberExtras

    def __post_init__(self) -> None:
        self.pids: dict[int, int] = {}
        self.exits: dict[int, int] = {}
        self._log_starts = dict.fromkeys(range(len(self.ports)), 0)
        self._changed = threading.Condition()
        for index in range(len(self.ports)):
            text = member_config(
                self.template,
                ports=self.ports,
                index=index,
                cluster_name=self.cluster_name,
                instance_name=f"{self.cluster_name}-{index}",
                announced=self.extras.announced,
                outbound=self.extras.outbound,
            )
            (self.folder / f"member-{index}.yaml").write_text(text, encoding="utf-8")
        self._guard = start_guard()
        self.guard_pid = self._guard.pid
        self._listener = threading.Thread(target=self._listen, name="gridscore-guard", daemon=True)
        self._listener.start()

    def log_file(self, index: int) -> Path:
        return self.folder / f"member-{index}.log"

    def start_all(self, progress: Callable[[str], None]) -> None:
        """Start every member and wait until each sees all; if that fails, stop them."""
        try:
            # Members that start together elect a master for five seconds, so the first goes alone.
            self.start(0)
            self.wait_for({0}, expected=1)
            for index in range(1, len(self.ports)):
                self.start(index)
            self.wait_for(set(range(len(self.ports))), expected=len(self.ports), progress=progress)
        except BaseException:
            self.close()
            raise

    def start(self, index: int) -> None:
        """Start one member; `wait_for` says when it is ready."""
        log = self.log_file(index)
        self._log_starts[index] = log.stat().st_size if log.exists() else 0
        with self._changed:
            self.pids.pop(index, None)
            self.exits.pop(index, None)
        environment = dict(self.extras.environment)
        self._ask({"start": index, "command": self._command(index), "environment": environment, "log": str(log)})

    def kill(self, index: int) -> None:
        """Kill one member and wait for its end."""
        self._ask({"kill": index})
        with self._changed:
            if not self._changed.wait_for(lambda: index in self.exits, timeout=10):
                raise MemberError(f"Member {index} (process {self.pids.get(index)}) does not end.")

    def wait_for(self, indexes: set[int], *, expected: int, progress: Callable[[str], None] | None = None) -> None:
        """Wait until these members have started, in a cluster of the expected size."""
        deadline = time.monotonic() + START_SECONDS
        missing = set(indexes)
        while missing:
            for index in sorted(missing):
                if (code := self.exits.get(index)) is not None:
                    raise death(self, index, code)
                if is_ready(self.log_since_start(index), expected):
                    missing.discard(index)
                    if progress and len(indexes) > 1:
                        progress(f"{len(indexes) - len(missing)} of {count_of(len(indexes))} are in the cluster")
            if missing and time.monotonic() > deadline:
                index = min(missing)
                raise MemberError(
                    f"Member {index} was not in a cluster of {count_of(expected)} after {START_SECONDS:.0f} seconds.\n"
                    + _tail(self.log_since_start(index)),
                    f"Its log: {self.log_file(index)}",
                )
            with self._changed:
                self._changed.wait(0.05)

    def log_since_start(self, index: int) -> str:
        """What the member has logged since its last start."""
        try:
            with self.log_file(index).open("rb") as file:
                file.seek(self._log_starts[index])
                return file.read().decode("utf-8", "replace")
        except OSError:
            return ""

    def close(self) -> None:
        """Stop the members, and wait for it."""
        end_guard(self._guard, self.pids.values())
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
            *(f"-D{name}={value}" for name, value in self.extras.properties.items()),
            "-cp",
            os.pathsep.join(map(str, [*self.jars, *self.extras.jars])),
            "com.hazelcast.core.server.HazelcastMemberStarter",
        ]


def is_ready(log: str, expected: int) -> bool:
    """Whether a member's log says that it has started, in a cluster of this size."""
    sizes = re.findall(r"Members \{size:(\d+)", log)
    return "is STARTED" in log and bool(sizes) and int(sizes[-1]) >= expected


def death(launch: Launch, index: int, code: int) -> MemberError:
    """Why a member ended with this code, according to its log."""
    log = launch.log_since_start(index)
    where = f"Its log: {launch.log_file(index)}"
    port = launch.ports[index]
    if re.search(r"Address already in use|BindException|Port \[\d+] is already in use|ports? .* in use", log):
        return PortTakenError(f"Port {port} is in use{user_of(port)}.", f"Choose another with --port. {where}")
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
    return last_lines([line for line in log.splitlines() if line.strip() and not line.lstrip().startswith("at ")])


def count_of(members: int) -> str:
    """`one member`, `3 members`."""
    return "one member" if members == 1 else f"{members} members"
