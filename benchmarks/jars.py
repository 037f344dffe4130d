"""Jars from Maven Central that only the benchmark needs, kept beside those of the embedded member."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from gridscore.errors import GridscoreError
from gridscore.grid.artifacts import cache_folder

if TYPE_CHECKING:
    from collections.abc import Callable


def jar(group: str, name: str, version: str, classifier: str = "", *, progress: Callable[[str], None]) -> Path:
    """One artifact, and none of what it depends on; downloaded once.

    Args:
        group: As in `com.hazelcast.jet`.
        name: As in `hazelcast-jet-python`.
        version: As in `5.6.0`.
        classifier: As in `jar-with-dependencies`.
        progress: Called with a line for people before a download.

    Raises:
        GridscoreError: It is not in the cache and cannot be downloaded.
    """
    folder = cache_folder() / "jars"
    kept = folder / f"{'-'.join(filter(None, (name, version, classifier)))}.jar"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{kept}.lock"):
        if not kept.is_file():
            progress(f"Getting {kept.name} (only once)")
            _download(group, name, version, classifier, kept)
    return kept


def _download(group: str, name: str, version: str, classifier: str, kept: Path) -> None:
    from jgo.constants import MAVEN_CENTRAL_URL
    from jgo.maven import MavenContext, PythonResolver

    # Only what is whole (the downloader compares checksums) is moved to where it is looked for.
    with tempfile.TemporaryDirectory(dir=kept.parent) as temporary:
        maven = MavenContext(
            resolver=PythonResolver(),
            repo_cache=Path(temporary),
            local_repos=[],
            remote_repos={"central": MAVEN_CENTRAL_URL},
        )
        try:
            maven.project(group, name).at_version(version).artifact(classifier=classifier).resolve().replace(kept)
        except Exception as error:  # jgo lets those of requests and the file system through
            raise GridscoreError(
                f"{kept.name} could not be downloaded from Maven Central: {str(error).strip() or type(error).__name__}",
                "Connect to the network once (or set HTTPS_PROXY); later runs need none.",
            ) from error
