"""A process that is nothing but a worker: what it does not import, and how old it says it is."""

import subprocess
import sys
import time
from importlib.metadata import version

import pytest

from gridscore.scoring import process

SCORES = """
import sys
from gridscore.scoring import process
{before}
process.import_xgboost()
import numpy, gridscore.scoring, xgboost
matrix = xgboost.DMatrix(numpy.eye(3, dtype=numpy.float32), numpy.arange(3))
booster = xgboost.train({{"max_depth": 1, "nthread": 1}}, matrix, 2)
assert booster.inplace_predict(numpy.eye(3, dtype=numpy.float32)).tobytes() == booster.predict(matrix).tobytes()
print(sorted({{"pandas", "pyarrow", "sklearn", "scipy.special", "scipy._lib", "matplotlib"}} & set(sys.modules)))
print(len(sys.modules))
"""

COLLECTS = """
import gc, sys
from gridscore.cli import main
gc.callbacks.append(looks := lambda phase, _: looks.__dict__.update({phase: looks.__dict__.get(phase, 0) + 1}))
sys.argv[1:] = ["worker", "--settings", "there-is-none.toml"]
try:
    main()
except SystemExit:
    print(looks.stop, gc.isenabled(), len(gc.get_objects()))
"""


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_a_worker_loads_nothing_that_only_data_frames_estimators_and_sparse_matrices_need():
    heavy, count = run(SCORES.format(before="")).splitlines()
    assert heavy == "[]"
    assert int(count) < 1_200


def test_what_is_imported_is_not_looked_through_by_the_collector():
    looks, enabled, objects = run(COLLECTS).split()
    assert int(looks) < 100  # it would be 157; half of these are the command line's own
    assert enabled == "True"
    assert int(objects) < 10_000


def test_an_xgboost_that_wants_more_of_scipy_gets_scipy():
    found = run(SCORES.format(before="process._SPARSE = ()"))  # it scores, whatever it wants
    assert "scipy._lib" in found or version("xgboost-cpu") >= "3.3"  # newer ones ask for it only if there are such data


def test_the_age_of_a_process_does_not_hang_on_the_second_in_which_the_machine_was_started():
    before = time.monotonic()
    age = float(run("from gridscore.scoring import process; print(process.age())"))
    assert 0 < age <= time.monotonic() - before + 0.05  # the system counts in hundredths


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system knows no better")
def test_the_age_of_a_process_does_not_hang_on_the_time_of_day(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert process.age() > 0
