"""What is built and installed: wheels with and without the compiled loops, extras in an empty environment."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")
SLOW = {"confluent_kafka", "hazelcast", "numpy", "pandas", "psycopg", "pyarrow", "pydantic", "scipy", "xgboost"}


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The Python of an environment that has the wheel with two extras, and nothing else."""
    folder = tmp_path_factory.mktemp("empty") / "venv"
    subprocess.run([UV, "venv", "-q", "--python", sys.executable, folder], check=True)
    python = folder / "bin/python"
    subprocess.run([UV, "pip", "install", "-q", "--python", python, f"{wheel}[kafka,postgres]"], check=True)
    return python


def loaded(python, words):
    """What a program has imported of what takes long, when it is done."""
    told = f"print(*sorted({SLOW} & set(sys.modules)), file=sys.stderr)"
    code = f"import atexit, sys; atexit.register(lambda: {told}); {words}"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stderr.split()


def test_wheels_have_what_they_promise(wheel, tmp_path):
    words = [UV, "build", "-q", "--python", sys.executable, "--wheel", "-o", tmp_path, ROOT]
    subprocess.run(words, env={**os.environ, "GRIDSCORE_COMPILE": "0"}, check=True)
    [pure] = tmp_path.glob("*-py3-none-any.whl")
    inside, without = (set(zipfile.ZipFile(each).namelist()) for each in (wheel, pure))
    loops = {name for name in inside if name.endswith(".so")}
    assert len(loops) == len(list((ROOT / "pipeline").rglob("_*.c")))
    for each in (inside - loops, without):
        assert {"gridscore/py.typed", "gridscore/hazelcast.yaml", "gridscore/jobs/payments/job.yaml"} <= each
        assert "gridscore/examples/sqlite-plugs/pyproject.toml" in each
        assert not [name for name in each if name.endswith((".so", ".pyc"))]


def test_with_extras_in_an_empty_environment_nothing_that_takes_long_is_loaded_unasked(installed, tmp_path):
    assert loaded(installed, "import gridscore") == []
    assert loaded(installed, "import gridscore.cli as cli; sys.argv = ['gridscore', '--help']; cli.main()") == []
    program = installed.with_name("gridscore")
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    assert "inner loops compiled" in said
    for side, kind in (("source", "kafka"), ("sink", "postgres")):
        subprocess.run([program, side, kind, "--help"], capture_output=True, check=True)
    # What is shipped beside the code is found.
    subprocess.run([program, "new", tmp_path / "my-queue", "--plug", "sink"], check=True, capture_output=True)


def test_the_workflow_of_a_release_is_one_and_calls_what_is_there():
    workflow = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert all(("run" in step) != ("uses" in step) for step in steps)
    assert ".ci/release" in [step.get("run") for step in steps]
    assert os.access(ROOT / ".ci/release", os.X_OK)
    assert set(workflow["jobs"]["publish"]["needs"]) == set(workflow["jobs"]) - {"publish"}


def test_what_makes_a_release_is_named_by_commit_or_by_version_and_hash():
    workflow, script = ((ROOT / each).read_text() for each in (".github/workflows/release.yml", ".ci/release"))
    uses = re.findall(r"uses: (.*)", workflow)
    assert uses
    assert [each for each in uses if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", each)] == []
    assert workflow.count("setup-uv@") == workflow.count('version: "0.')
    installs = re.findall(r"pip install.*|build=.*", workflow + script)
    assert len(installs) == 4
    assert [each for each in installs if "--require-hashes" not in each] == []
    assert not re.search(r"\buvx |\bpipx ", workflow + script)
    tools = (ROOT / ".ci/release-requirements.txt").read_text()
    pins = re.findall(r"^([a-z0-9-]+)==.*(?:\\\n +--hash=sha256:[0-9a-f]{64} ?)+$", tools, re.MULTILINE)
    assert len(pins) == len(re.findall(r"^\S+==", tools, re.MULTILINE))
    assert {"cibuildwheel", "cyclonedx-bom", "pip-audit"} <= {*pins}
