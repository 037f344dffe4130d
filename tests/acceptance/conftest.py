"""What tests of the command share: an environment that leads to the cluster, commands that end, and ones that run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import GRIDSCORE
from filelock import FileLock


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """With the compiled loops; made of the source distribution, so that nothing is compiled in the checkout."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "dist"
    with FileLock(f"{folder}.lock"):  # one worker makes it for all
        if not any(folder.glob("*.whl")):
            # Without --python it builds for the `.venv` of the folder that it is called in.
            uv = [Path(sys.executable).with_name("uv"), "build", "-q", "--python", sys.executable]
            words = [*uv, "-o", folder, Path(__file__).parents[2]]
            subprocess.run(words, env={**os.environ, "GRIDSCORE_COMPILE": "1"}, check=True)
    [made] = folder.glob("*.whl")
    return made


@pytest.fixture
def environment(cluster):
    """Leads to the cluster; a test may add to it before it runs a command."""
    return {
        **os.environ,
        "GRIDSCORE_MEMBERS": json.dumps(cluster.addresses),
        "GRIDSCORE_CLUSTER_NAME": cluster.cluster_name,
        "TERM": "xterm-256color",
    }


@pytest.fixture
def run(environment):
    """Runs `gridscore`; returns what it printed once its exit code is the expected one. None expects none."""

    def go(*arguments, code=0):
        done = subprocess.run(
            [*GRIDSCORE, *arguments], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert code is None or done.returncode == code, (done.stdout, done.stderr)
        return done

    return go


@pytest.fixture
def start(environment, tmp_path):
    """Starts `gridscore` and goes on; its output goes to a file."""
    started = []

    def go(*arguments):
        log = tmp_path / f"{arguments[0]}-{len(started)}.log"
        with log.open("w") as file:
            process = subprocess.Popen([*GRIDSCORE, *arguments], env=environment, stdout=file, stderr=file)
        started.append(process)
        return process, log

    yield go
    for process in started:
        process.kill()
        process.wait()
