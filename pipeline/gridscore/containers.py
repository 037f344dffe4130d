"""Members and workers as containers, by Docker's API.

They use this machine's own network: members listen on 127.0.0.1, as those of `gridscore up` do, so workers in
containers and commands beside them reach them under the same addresses, and nobody else does.
"""

from __future__ import annotations

import datetime as dt
import functools
import io
import re
import tarfile
import threading
import time
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from gridscore.errors import ContainerError, UsageError, missing_extra
from gridscore.grid.artifacts import DEFAULT_VERSION
from gridscore.grid.launch import START_SECONDS, count_of, is_ready
from gridscore.grid.member import config_identity, parse_heap
from gridscore.grid.ports import HOST, PORT_ATTEMPTS, choose_ports
from gridscore.grid.template import load_template, member_config, template_cluster_name
from gridscore.texts import count_text, last_lines

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gridscore.grid import GridSettings

_P = ParamSpec("_P")
_T = TypeVar("_T")

IMAGE = "gridscore"
MEMBER_IMAGE = "docker.io/hazelcast/hazelcast"
_LABEL = "gridscore."
_CLUSTER, _ROLE, _JOB, _PORT = (_LABEL + name for name in ("cluster", "role", "job", "port"))
_CONFIG_FOLDER, _CONFIG_FILE = "/opt/hazelcast", "gridscore.yaml"
_OVERHEAD_BYTES = 512 << 20  # what a member's JVM takes besides its heap
_WORKER_BYTES = 1 << 30
_GOES_ON = ("running", "restarting")
_RESTARTS = 2  # by the engine, without running for long in between, after which a container ends again and again
_LONG_SECONDS = 60.0
_SEE_LOGS = "`gridscore logs` shows what it says."
_STEADY_SECONDS = 5.0  # after which a worker works that holds no partition, as there are more workers than partitions
_STOP_SECONDS = 15  # how long a worker may take to give its partitions back


class _PortTakenError(ContainerError):
    """A member found its port in use."""


def _asked(call: Callable[_P, _T]) -> Callable[_P, _T]:
    """A call that asks the engine: what goes wrong with that is an error for people."""

    @functools.wraps(call)
    def asking(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        from docker.errors import DockerException
        from requests import RequestException
        from urllib3.exceptions import HTTPError

        try:
            return call(*args, **kwargs)
        except DockerException as error:
            raise ContainerError(
                f"The container engine refuses: {getattr(error, 'explanation', '') or error}"
            ) from error
        except (RequestException, HTTPError) as error:
            raise ContainerError("The container engine does not answer any more.", "Does it still run?") from error

    return asking


class Containers:
    """Those of one cluster. All methods raise a `ContainerError` if the engine refuses, or does not answer.

    `cluster_name`: its name; None: the one in our `hazelcast.yaml`. Raises ContainerError if there is no engine, or
    this user may not use it.
    """

    def __init__(self, cluster_name: str | None = None) -> None:
        self.cluster_name = cluster_name or template_cluster_name(load_template())
        self._client = _engine()
        # How often the engine had restarted each worker when it last ran for long, or was first seen.
        self._restarts_before: dict[str, int] = {}

    # ------------------------------------------------------------------ members

    @property
    @_asked
    def addresses(self) -> list[str]:
        return [f"{HOST}:{each.labels[_PORT]}" for each in self._find("member")]

    @_asked
    def up(
        self,
        *,
        members: int | None,
        port: int | None,
        heap: str | None,
        version: str | None,
        config: Path | None,
        progress: Callable[[str], None],
    ) -> None:
        """Start members, or go on with those that an earlier call started; returns when all are in the cluster.

        Raises ContainerError if they did not come up; UsageError if others are there already.
        """
        there = self._find("member")
        asked = {"members": members, "port": port, "heap": heap, "version": version, "config": config_identity(config)}
        if there:
            is_so = {**there[0].labels, f"{_LABEL}members": str(len(there))}
            # What members of an earlier release do not say of themselves is taken to be what is asked for.
            if other := [
                f"--{name}"
                for name, value in asked.items()
                if value and str(value) != is_so.get(_LABEL + name, str(value))
            ]:
                raise UsageError(
                    f"Cluster `{self.cluster_name}` has {count_of(len(there))} in containers already; "
                    f"{', '.join(other)} cannot change that.",
                    "End it first: `gridscore down`; or start another beside it: --cluster-name OTHER.",
                )
            self._wake(there, progress)
            return
        for attempt in range(PORT_ATTEMPTS):
            made = self._create_members(members or 1, port, heap or "1g", version or DEFAULT_VERSION, config, progress)
            try:
                self._wake(made, progress)
                break
            except _PortTakenError:
                # Somebody took a port between our check and the member's bind.
                if port or attempt == PORT_ATTEMPTS - 1:
                    raise
                for each in made:
                    each.remove(force=True, v=True)

    def _wake(self, members: list[Any], progress: Callable[[str], None]) -> None:
        """Start those that do not run, and wait until all are in one cluster."""
        asleep, now = [each for each in members if each.status != "running"], int(time.time())
        for each in asleep:
            self._start(each)
        self._await(asleep, len(members), now, progress)

    def _create_members(
        self,
        members: int,
        port: int | None,
        heap: str,
        version: str,
        config: Path | None,
        progress: Callable[[str], None],
    ) -> list[Any]:
        limit = parse_heap(heap) + _OVERHEAD_BYTES
        self._check_memory(members * limit, f"{count_of(members).capitalize()} with a heap of {heap}", "--heap")
        ports = choose_ports(members, port)
        template, made = load_template(config), []
        made_of = {"heap": heap, "version": version, "config": config_identity(config) or ""}
        for index, own in enumerate(ports):
            name = f"gridscore-{self.cluster_name}-member-{index + 1}"
            options = f"-Xms{heap} -Xmx{heap} -XX:MaxTenuringThreshold=0 -Dhazelcast.wait.seconds.before.join=0"
            made.append(
                self._create(
                    f"{MEMBER_IMAGE}:{version}",
                    name,
                    progress,
                    labels={_ROLE: "member", _PORT: str(own), **{_LABEL + name: of for name, of in made_of.items()}},
                    environment={
                        "HAZELCAST_CONFIG": f"{_CONFIG_FOLDER}/{_CONFIG_FILE}",
                        "JAVA_OPTS": f"{options} -Dhazelcast.socket.bind.any=false",
                    },
                    mem_limit=limit,
                )
            )
            text = member_config(
                template, ports=ports, index=index, cluster_name=self.cluster_name, instance_name=f"member-{index + 1}"
            )
            made[-1].put_archive(_CONFIG_FOLDER, _archive(_CONFIG_FILE, text.encode()))
        return made

    def _await(self, missing: list[Any], expected: int, since: int, progress: Callable[[str], None]) -> None:
        """Wait until these say, since then, that they are in the cluster."""
        if missing:
            progress(f"Waiting for {count_of(len(missing))}")
        pause, deadline = threading.Event(), time.monotonic() + START_SECONDS
        while missing:
            for each in list(missing):
                each.reload()
                log = each.logs(since=since).decode(errors="replace")
                if each.status in ("exited", "dead"):
                    raise _death(each, log)
                if is_ready(log, expected):
                    missing.remove(each)
            if missing and time.monotonic() > deadline:
                raise ContainerError(f"{missing[0].name} was not in the cluster after {START_SECONDS:.0f} seconds.")
            pause.wait(0.25)

    # ------------------------------------------------------------------ workers

    @_asked
    def workers(self, job: str) -> list[Any]:
        found = self._find("worker", job)
        for each in found:
            now = _restarts(each)
            before = now if self.runs_for_long(each) else self._restarts_before.get(each.name, now)
            self._restarts_before[each.name] = min(before, now)  # the engine counts anew when somebody starts it
        return found

    @property
    @_asked
    def room(self) -> int:
        """How many workers the engine has memory for."""
        return self._memory // _WORKER_BYTES

    @staticmethod
    def goes_on(container: Any) -> bool:
        """Whether it runs, or the engine starts it again."""
        return container.status in _GOES_ON

    @staticmethod
    def runs_for_long(container: Any) -> bool:
        """Whether it has not ended lately."""
        return container.status == "running" and _age(container) >= _LONG_SECONDS

    def fails(self, worker: Any) -> bool:
        """Whether the engine starts it again and again, since it was first seen here."""
        ends = _restarts(worker) - self._restarts_before[worker.name]
        return ends >= _RESTARTS and not self.runs_for_long(worker)

    @classmethod
    def _works(cls, worker: Any) -> bool:
        """Whether it runs for long, or says since it began that it works."""
        if worker.status != "running" or cls.runs_for_long(worker):
            return cls.runs_for_long(worker)
        age = _age(worker)
        log = worker.logs(since=int(time.time() - age)).decode(errors="replace")
        # What cli/worker.py and scoring/worker.py log.
        return "holds its first partitions" in log or (age >= _STEADY_SECONDS and "is looking for jobs" in log)

    @_asked
    def failure(self, worker: Any) -> ContainerError:
        """What to say of one that fails."""
        from docker.errors import DockerException

        try:
            log = worker.logs(tail=100).decode(errors="replace")
        except DockerException as error:  # it has gone meanwhile, or its log is kept elsewhere
            log = f"(They cannot be read: {error})"
        lines = [line for line in log.splitlines() if line.strip()]
        memory = " It ran out of memory." if worker.attrs["State"].get("OOMKilled") else ""
        return ContainerError(
            f"{worker.name} ends again and again.{memory} Its last lines:\n{last_lines(lines)}",
            f"{_SEE_LOGS} If fewer workers are asked for, such go first.",
        )

    @_asked
    def await_workers(self, job: str) -> None:
        """Wait until all of a job's work. Raises ContainerError if one ends again and again, or does not begin."""
        pause, deadline = threading.Event(), time.monotonic() + START_SECONDS
        while idle := [each for each in self.workers(job) if self.fails(each) or not self._works(each)]:
            for each in idle:
                if self.fails(each):
                    raise self.failure(each)
            if time.monotonic() > deadline:
                raise ContainerError(f"{idle[0].name} did not begin to work in {START_SECONDS:.0f} seconds.", _SEE_LOGS)
            pause.wait(0.25)

    @_asked
    def scale(
        self, job: str, count: int, settings: GridSettings, image: str, progress: Callable[[str], None] = lambda _: None
    ) -> None:
        """Run that many workers of a job; surplus workers give their partitions back first.

        Raises ContainerError if not all could be started; UsageError if the cluster needs credentials or TLS, which
        containers do not get.
        """
        if settings.tls or settings.username or settings.password or settings.token:
            raise UsageError("Workers in containers get addresses and a name only, no credentials and no TLS.")

        def surplus(worker: Any) -> tuple[bool, int]:
            # Those that end again and again go first, also if nobody has watched them here.
            return not self.goes_on(worker), 0 if self.runs_for_long(worker) else _restarts(worker)

        there = sorted(self.workers(job), key=surplus)
        for each in there[count:]:
            each.stop(timeout=_STOP_SECONDS)
            each.remove()
        for each in there[:count]:
            if not self.goes_on(each):
                self._start(each)
        last = max((int(each.name.rpartition("-")[2]) for each in there), default=0)
        more = max(count - len(there), 0)
        self._check_memory(count * _WORKER_BYTES, count_text(count, "worker"), "N")
        for number in range(last + 1, last + 1 + more):
            worker = self._create(
                image,
                f"gridscore-{self.cluster_name}-{job}-worker-{number}",
                progress,
                labels={_ROLE: "worker", _JOB: job},
                command=["worker", "--jobs", job],
                environment={
                    "GRIDSCORE_MEMBERS": ",".join(settings.members or self.addresses),
                    "GRIDSCORE_CLUSTER_NAME": settings.cluster_name,
                },
                mem_limit=_WORKER_BYTES,
                read_only=True,
                tmpfs={"/tmp": ""},  # noqa: S108 -- inside the container
                cap_drop=["ALL"],
                security_opt=["no-new-privileges:true"],
                restart_policy={"Name": "unless-stopped"},
            )
            self._restarts_before[worker.name] = 0
            self._start(worker)

    # ------------------------------------------------------------------ all

    @_asked
    def down(self) -> int:
        """Stop and remove all of them, workers first; how many there were."""
        workers, members = self._find("worker"), self._find("member")
        for each in workers:
            each.stop(timeout=_STOP_SECONDS)
        for each in [*workers, *members]:
            each.remove(force=True, v=True)
        return len(workers) + len(members)

    @_asked
    def logs(self, show: Callable[[str, str], None], *, tail: int, follow: bool) -> int:
        """Show the last lines of each, with its name; how many containers there are.

        `show`: given the name of a container, and a line; `follow`: go on until the containers end.
        """
        found = self._find()

        @_asked
        def read(each: Any) -> None:
            if not follow:
                lines = each.logs(tail=tail).decode(errors="replace").splitlines()
            else:
                lines = (line.decode(errors="replace") for line in each.logs(tail=tail, stream=True, follow=True))
            for line in lines:
                show(each.name, line.rstrip())

        if not follow:
            for each in found:
                read(each)
            return len(found)
        failures: list[ContainerError] = []

        def follow_one(each: Any) -> None:
            try:
                read(each)
            except ContainerError as error:
                failures.append(error)

        threads = [threading.Thread(target=follow_one, args=(each,), daemon=True) for each in found]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return len(found)

    def _find(self, role: str | None = None, job: str | None = None) -> list[Any]:
        wanted = {_CLUSTER: self.cluster_name, _ROLE: role, _JOB: job}
        labels = [f"{label}={value}" for label, value in wanted.items() if value is not None]
        found = self._client.containers.list(all=True, filters={"label": labels})
        return sorted(found, key=lambda each: (len(each.name), each.name))

    def _create(
        self, image: str, name: str, progress: Callable[[str], None], *, labels: dict[str, str], **how: Any
    ) -> Any:
        from docker.errors import APIError, ImageNotFound

        try:
            try:
                self._client.images.get(image)
            except ImageNotFound:
                progress(f"Pulling {image}")
                self._client.images.pull(image)
            labels = {_CLUSTER: self.cluster_name, **labels}
            return self._client.containers.create(image, name=name, labels=labels, network_mode="host", **how)
        except APIError as error:
            if "pull" in str(error) or isinstance(error, ImageNotFound) or "registry" in str(error):
                hint = (
                    "`make image` in a checkout builds it."
                    if image == IMAGE
                    else "Is its version right, and a registry reachable?"
                )
                raise ContainerError(f"There is no image `{image}` here, and it cannot be pulled.", hint) from error
            raise ContainerError(f"{name} cannot be created: {error.explanation or error}") from error

    def _start(self, container: Any) -> None:
        from docker.errors import APIError

        try:
            container.start()
        except APIError as error:
            raise ContainerError(f"{container.name} cannot be started: {error.explanation or error}") from error

    @property
    def _memory(self) -> int:
        return int(self._client.info()["MemTotal"])

    def _check_memory(self, needed: int, what: str, option: str) -> None:
        total = self._memory
        if needed > total:
            raise ContainerError(
                f"{what} may need {needed / 1e9:.1f} GB, but the container engine has {total / 1e9:.1f} GB.",
                f"Ask for less ({option}), or give the engine more.",
            )


def _engine() -> Any:
    try:
        import docker
    except ModuleNotFoundError as error:
        raise missing_extra("A container", "docker", error) from None
    from docker.errors import DockerException

    try:
        return docker.from_env(timeout=120)
    except DockerException as error:
        if "PermissionError" in str(error):
            raise ContainerError(
                "This user may not use the container engine.", "On Linux, join the group `docker`, or use sudo."
            ) from error
        raise ContainerError(
            "No container engine answers.", "Start Docker, or say where another is: DOCKER_HOST=unix:///path/to/socket."
        ) from error


def _archive(name: str, data: bytes) -> bytes:
    """A tar archive of one file, as the engine takes it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = len(data), 0o644
        archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def _age(container: Any) -> float:
    """Seconds since its present run began."""
    return time.time() - dt.datetime.fromisoformat(container.attrs["State"]["StartedAt"]).timestamp()


def _restarts(container: Any) -> int:
    """By the engine, since somebody has started it."""
    return int(container.attrs.get("RestartCount", 0))


def _death(container: Any, log: str) -> ContainerError:
    """Why a member has ended, for people."""
    if container.attrs["State"].get("OOMKilled"):
        return ContainerError(f"{container.name} ran out of memory and was killed.", "Take a smaller --heap.")
    if re.search(r"Address already in use|BindException|ports? .* in use", log, re.IGNORECASE):
        return _PortTakenError(
            f"Port {container.labels[_PORT]} of {container.name} is in use.",
            "`gridscore down`, then take another: --port.",
        )
    lines = [line for line in log.splitlines() if line.strip() and not line.lstrip().startswith("at ")]
    return ContainerError(f"{container.name} has ended. Its last lines:\n{last_lines(lines)}")
