"""Kinds of sources and sinks that another distribution brings: installed, used, broken."""

import base64
import contextlib
import hashlib
import itertools
import json
import os
import sqlite3
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import pytest
from commands import GRIDSCORE, with_client

from gridscore.grid import transport

EXAMPLE = Path(__file__).parents[2] / "examples/sqlite-plugs"

COUNTER = '''
"""A source that counts."""

from typing import Literal

from pydantic import Field

from gridscore.job.plugs.base import SourceSettings
from gridscore.job.plugs.kinds import PlugKind
from gridscore.sources.base import Batch


class CounterSettings(SourceSettings):
    """Numbers, one after the other."""

    kind: Literal["counter"] = "counter"
    count: int = Field(ge=1, le=1000, description="How many.")


class Counter:
    def __init__(self, grid, name, settings):
        self._count = settings.count

    async def open(self):
        pass

    async def batches(self):
        yield Batch([(f"n{n}", b'{"n": %d}' % n) for n in range(self._count)])

    async def acknowledge(self, batch):
        pass

    async def close(self):
        pass


PLUG = PlugKind(
    "counter",
    settings="counting:CounterSettings",
    plug="counting:Counter",
    summary="Counts.",
    example="--count 3 --to events.numbers",
    distribution="counting",
)
'''


@pytest.fixture
def installed(tmp_path):
    """Installs distributions as pip does, into a folder of their own; gives the environment that finds them."""
    folder = tmp_path / "site"

    def install(name, modules, entry_points):
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        made = "Wheel-Version: 1.0\nGenerator: by-hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        info = f"{name}-1.0.dist-info"
        files = modules | {
            f"{info}/METADATA": metadata,
            f"{info}/WHEEL": made,
            f"{info}/entry_points.txt": entry_points,
        }
        wheel = tmp_path / f"{name}-1.0-py3-none-any.whl"
        record = ""
        with zipfile.ZipFile(wheel, "w") as archive:
            for path, text in files.items():
                archive.writestr(path, text)
                digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
                record += f"{path},sha256={digest},{len(text.encode())}\n"
            archive.writestr(f"{info}/RECORD", f"{record}{info}/RECORD,,\n")
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-index", "--no-deps"]
        subprocess.run([*pip, "--target", str(folder), str(wheel)], check=True)
        return {**os.environ, "PYTHONPATH": str(folder)}

    return install


def gridscore(environment, *words, code=0):
    done = subprocess.run([*GRIDSCORE, *words], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_source_of_another_distribution_has_a_command_and_a_section_of_the_job_file(
    installed, cluster, unique, tmp_path
):
    there = installed("counting", {"counting.py": COUNTER}, "[gridscore.sources]\ncounter = counting:PLUG\n")
    where = ("--members", cluster.addresses[0], "--cluster-name", cluster.cluster_name)

    assert "Counts." in gridscore(there, "source", "--help")
    assert "--count" in gridscore(there, "source", "counter", "--help")
    gridscore(there, "source", "counter", "--count", "7", "--to", f"numbers.{unique}", *where)

    job = tmp_path / "job.yaml"
    job.write_text(
        f"job: {unique}\nevents: events.{unique}\nschema: {{n: int}}\nfeatures: {{n: n}}\n"
        f"model: {{name: m, alias: champion}}\nresults: results.{unique}\n"
        f"sources: {{numbers: {{kind: counter, count: 5, to: more.{unique}}}}}\n"
    )
    assert "numbers" in gridscore(there, "job", "check", str(job))
    gridscore(there, "source", "run", str(job), *where)
    assert sizes(cluster, f"numbers.{unique}", f"more.{unique}") == [7, 5]

    assert "counter" in json.dumps(json.loads(gridscore(there, "job", "schema")))
    # Without it, there is no such kind.
    assert "`counter` is not a kind of source" in gridscore(dict(os.environ), "job", "check", str(job), code=2)


def test_a_kind_that_cannot_be_loaded_is_named_and_no_other_is_the_worse_for_it(installed):
    newer = "from gridscore.job.plugs.kinds import PlugKind\nPLUG = PlugKind('newer', settings='x:Y', plug='x:Z', "
    modules = {"newer.py": f"{newer}summary='', unheard_of=1)\n", "other.py": f"{newer}summary='')\n"}
    kinds = ("torn = gone:PLUG", "kafka = gone:PLUG", "list = gone:PLUG", "newer = newer:PLUG", "other = other:PLUG")
    there = installed("torn", modules, "\n".join(("[gridscore.sinks]", *kinds)))
    told = gridscore(there, "sink", "torn", "--from", "results.x", code=2)
    assert told == (
        "error: `torn` of the distribution `torn` cannot be loaded: ModuleNotFoundError(\"No module named 'gone'\").\n"
        "Install `torn` again, or remove it.\n"
    )
    # Ours goes before one of the same name.
    assert "Messages of a Kafka topic." in gridscore(there, "sink", "kafka", "--help")
    listed = gridscore(there, "sink", "--help")
    assert "Parquet" in listed
    assert listed.count("cannot be loaded") == 3
    assert "List the sinks" in gridscore(there, "sink", "list", "--help")
    assert "FilesSinkSettings" in gridscore(there, "job", "schema")


def test_a_kind_of_two_distributions_is_refused_by_the_names_of_both(installed):
    brought = COUNTER.replace('"counter"', '"twice"')
    for name in ("beta", "alpha"):
        there = installed(name, {f"{name}.py": brought}, f"[gridscore.sources]\ntwice = {name}:PLUG\n")
    told = "The source `twice` is brought by more than one distribution: `alpha` and `beta`."
    assert gridscore(there, "source", "twice", "--to", "events.x", code=2) == f"error: {told}\nKeep one of them.\n"
    listed = gridscore(there, "source", "--help")
    assert "more than one distribution" in " ".join(listed.split())
    assert "Messages of a Kafka topic." in listed


def test_the_example_distribution_passes_its_tests_and_does_what_its_readme_says(installed, cluster, unique, tmp_path):
    groups = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]["entry-points"]
    lines = [[f"[{group}]", *(f"{kind} = {where}" for kind, where in each.items())] for group, each in groups.items()]
    kinds = "\n".join(itertools.chain(*lines))
    modules = {str(file.relative_to(EXAMPLE)): file.read_text() for file in EXAMPLE.glob("gridscore_sqlite/*.py")}
    there = installed("gridscore_sqlite", modules, kinds)

    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", EXAMPLE / "pyproject.toml", EXAMPLE]
    tests = subprocess.run(words, env=there, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "6 passed" in tests.stdout, tests.stdout + tests.stderr

    path, where = tmp_path / "shop.db", ("--members", cluster.addresses[0], "--cluster-name", cluster.cluster_name)
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE payments (id INTEGER PRIMARY KEY, amount)")
        database.executemany("INSERT INTO payments VALUES (?, 1.5)", [(n,) for n in range(30)])
        database.commit()
    gridscore(there, "source", "sqlite", "--path", path, "--table", "payments", "--to", f"results.{unique}", *where)
    assert sizes(cluster, f"results.{unique}") == [30]
    deliver = f"sink sqlite --from results.{unique} --table scores --name {unique}".split()
    with subprocess.Popen([*GRIDSCORE, *deliver, "--path", path, *where], env=there) as sink:
        try:
            until = time.monotonic() + 60
            while len(rows := scores(path)) < 30:
                assert sink.poll() is None
                assert time.monotonic() < until
                time.sleep(0.1)
        finally:
            sink.terminate()
    assert rows["7"] == '{"id": 7, "amount": 1.5}'


def scores(path):
    with contextlib.closing(sqlite3.connect(path)) as database, contextlib.suppress(sqlite3.OperationalError):
        return dict(database.execute("SELECT key, result FROM scores"))
    return {}


def sizes(cluster, *names):
    async def look(client):
        return [await transport.map_size(client.grid.client, name) for name in names]

    return with_client(cluster, look)
