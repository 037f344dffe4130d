"""A project for a job: job file, training, tests that pass, a workflow for CI, and a README."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gridscore.errors import GridscoreError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MOST_CLASSES = 20
EVENTS = 20  # events of the history that the tests score
_TRAIN = '''\
"""Trains the model of the job beside it: `python train.py -o model.ubj`."""

import argparse
from pathlib import Path

import xgboost

from gridscore import load_job, offline_matrix

HERE = Path(__file__).parent

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("-o", "--output", type=Path, default=Path("model.ubj"), help="where to save (.ubj or .json)")
output = parser.parse_args().output

train = offline_matrix(load_job(HERE / "job.yaml"), HERE / {history!r}, keep=[{label!r}])
{classes}booster = xgboost.train({parameters}, train.dmatrix({labels}), 50)
train.attach(booster{named})  # feature names, and the categories learnt in training, travel with the model
booster.save_model(output)
print(f"Model of {{booster.num_boosted_rounds()}} rounds in {{output}}")
'''

_CLASSES = """\
labels = train.kept[{label!r}]
classes = sorted(set(labels))
"""

_TESTS = '''\
"""What must hold of this job. `pytest` runs it without a server: the cluster is in this process, the worker is real."""

import json
{imports}from pathlib import Path

import numpy as np
import pytest

from gridscore import EventRejectedError{names}

PROJECT = Path(__file__).parents[1]
EVENTS = dict(enumerate(map(json.loads, (PROJECT / "tests/events.jsonl").read_text().splitlines())))

{model}
@pytest.fixture
def lab(gridscore_lab{argument}):
    gridscore_lab.submit(PROJECT / "job.yaml", model={place})
    return gridscore_lab


def test_every_event_has_a_score(lab):
    results = lab.score(EVENTS)
    assert results.keys() == EVENTS.keys()
    assert all(np.isfinite(result["score"]).all() for result in results.values())


def test_nothing_is_lost_when_a_worker_is_killed(lab):
    lab.add_worker()
    lab.put(EVENTS)
    lab.kill_worker()
    assert len(lab.results(len(EVENTS))) == len(EVENTS)


def test_what_is_not_an_event_is_refused_and_the_rest_is_scored(lab):
    with pytest.raises(EventRejectedError):
        lab.score({{"bad": ["not", "an", "object"], "good": EVENTS[0]}})
    assert lab.results(1).keys() == {{"good"}}
    assert lab.dead_letters().keys() == {{"bad"}}
{parity}'''

_MODEL = """
@pytest.fixture(scope="session")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.ubj"
    subprocess.run([sys.executable, PROJECT / "train.py", "-o", path], check=True)
    return path

"""

_PARITY = """

def test_the_stream_sees_the_features_that_training_saw(lab):
    trained = offline_matrix(load_job(PROJECT / "job.yaml"), PROJECT / {history!r})
    for row, result in lab.score(EVENTS).items():
        seen = [np.nan if value is None else value for value in result["features"].values()]
        np.testing.assert_array_equal(np.array(seen, np.float32), trained.values[row])
"""

_WORKFLOW = """\
name: test
on: [push, pull_request]
jobs:
  test:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with: {{python-version: "3.13"}}
      - run: pip install {install}
{commands}"""

_README = """\
# {name}

A job of Gridscore: `job.yaml` says which events are scored, with which features, by which model.

```sh
python -m venv .venv && . .venv/bin/activate
pip install -r requirements.txt
pytest                       # no server needed
```

Live, on this machine (a terminal each for the first and the third):

```sh
gridscore up
{train}gridscore submit job.yaml --model model.ubj
gridscore worker
{load}gridscore watch {name} --from oldest
```
"""


def shipped(folder: str, file: str) -> Path:
    """A folder with this file, of those that are shipped: in the package when installed, beside it in a checkout.

    Raises:
        GridscoreError: It is in neither place.
    """
    package = Path(__file__).resolve().parents[1]
    for each in (package / folder, package.parents[1] / folder):
        if (each / file).is_file():
            return each
    raise GridscoreError(f"{folder} is missing from this installation.", "Install gridscore again.")


def workflow(install: str, *commands: str) -> str:
    """The file for CI: what pip installs, then these commands."""
    return _WORKFLOW.format(install=install, commands="".join(f"      - run: {each}\n" for each in commands))


def example() -> list[dict[str, Any]]:
    """A made-up history of card payments, always the same."""
    draw = random.Random(1)  # noqa: S311 -- nothing depends on it
    rows = []
    for number in range(400):
        amount, country = round(draw.lognormvariate(3.5, 1.2), 2), draw.choice(["DE", "DE", "DE", "FR", "US"])
        fraud = int(amount > 150 and country != "DE" and draw.random() < 0.8)
        rows.append({"payment": f"p{number:04}", "amount": amount, "country": country, "fraud": fraud})
    return rows


def files_of(
    name: str,
    job: str,  # the text of its file
    events: Sequence[Mapping[str, Any]],  # of the history, with the label; or whatever events the job takes
    *,
    version: str,  # of Gridscore
    history: str = "",  # the name of its file; empty if there is none
    label: str = "",  # the column to train for; empty if there is a model already
    key: str = "",  # the column with each event's key; empty if none is known
) -> dict[str, str]:
    """The files of a project, by path; the model and the history are not among them."""
    shown = [{field: value for field, value in event.items() if field != label} for event in events[:EVENTS]]
    trains = bool(label)
    files = {
        "job.yaml": job,
        "tests/events.jsonl": "".join(json.dumps(event) + "\n" for event in shown),
        "tests/test_job.py": _TESTS.format(
            imports="import subprocess\nimport sys\n" if trains else "",
            names=", load_job, offline_matrix" if history else "",
            model=_MODEL if trains else "",
            argument=", model" if trains else "",
            place="model" if trains else 'PROJECT / "model.ubj"',
            parity=_PARITY.format(history=history) if history else "",
        ),
        ".github/workflows/test.yml": workflow("-r requirements.txt", "gridscore job check job.yaml", "pytest"),
        "requirements.txt": f"gridscore>={version}\npytest>=8.3\n",
        ".gitignore": ".venv/\n__pycache__/\n" + ("model.ubj\n" if trains else ""),
        "README.md": _README.format(
            name=name,
            train="python train.py -o model.ubj\n" if trains else "",
            load=f"gridscore load job.yaml --events {history} --key {key or 'COLUMN'}\n" if history else "",
        ),
    }
    if trains:
        values = {event.get(label) for event in events} - {None}
        parameters: dict[str, Any] = {"objective": "reg:squarederror"}
        is_numeric = all(isinstance(value, int | float) for value in values)
        is_named = not is_numeric and len(values) <= MOST_CLASSES
        if values <= {0, 1}:
            parameters = {"objective": "binary:logistic"}
        elif is_named:
            several = {"objective": "multi:softprob", "num_class": len(values)}
            parameters = several if len(values) > 2 else {"objective": "binary:logistic"}
        files["train.py"] = _TRAIN.format(
            history=history,
            label=label,
            classes=_CLASSES.format(label=label) if is_named else "",
            labels="[classes.index(each) for each in labels]" if is_named else repr(label),
            parameters=json.dumps(parameters),
            named=", labels=classes" if is_named else "",
        )
    return files
