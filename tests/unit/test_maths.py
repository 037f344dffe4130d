"""Powers, logarithms and angles are the C library's: the same bits in Python, in C, alone and in a column."""

import math

import numpy as np
import pytest

from gridscore.features import definitions_of, maths
from gridscore.features.operations import ELEMENTWISE
from gridscore.job import parse_job
from gridscore.models.fit import fit_warnings

SPECIAL = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    2.0,
    0.5,
    1 / 3,
    -8.0,
    1e308,
    -1e308,
    5e-324,
    710.0,
    -745.2,
    math.inf,
    -math.inf,
    math.nan,
]


def numbers():
    draw = np.random.default_rng(4)
    return np.concatenate(
        [SPECIAL, draw.uniform(-1, 1, 300), draw.normal(size=300) * 10.0 ** draw.integers(-9, 9, 300)]
    )


@pytest.mark.parametrize("name", maths.NAMES)
def test_a_function_gives_the_bits_of_the_c_library_wherever_a_number_stands(name, monkeypatch):
    x = numbers()
    columns = (x, np.random.default_rng(5).permutation(x)) if name in {"atan2", "hypot", "pow"} else (x,)
    with np.errstate(all="ignore"):
        found = maths.function(name)(*columns)
        alone = [float(maths.function(name)(*row)) for row in zip(*columns, strict=True)]
        strided = maths.function(name)(*(np.repeat(column, 2)[::2] for column in columns))
        monkeypatch.setattr(maths, "_fast", None)
        twin = maths.function(name)(*columns)
    for other in (alone, strided, twin):
        np.testing.assert_array_equal(found, other)
    for row, value in zip(zip(*columns, strict=True), found, strict=True):
        if math.isfinite(value):
            assert value == getattr(math, name)(*row)


@pytest.mark.parametrize("name", maths.NAMES)
def test_expressions_do_not_compute_by_numpy_what_depends_on_the_processor(name):
    """The bits differ on some processors only, and tests may run on another."""
    assert ELEMENTWISE["power" if name == "pow" else name] is not getattr(np, maths._NAMES.get(name, name))


def test_a_power_takes_a_number_for_all_rows():
    np.testing.assert_array_equal(maths.function("pow")(np.array([1.0, 2.0, 3.0]), 2.0), [1, 4, 9])
    np.testing.assert_array_equal(maths.function("pow")(2.0, np.array([1.0, 2.0, 3.0])), [2, 4, 8])
    assert maths.function("pow")(2.0, 3.0) == 8


JOB = """\
job: j
events: e
schema: {{a: float, t: timestamp}}
features: {{v: '{}'}}
model: m
results: r
"""


@pytest.mark.parametrize(
    ("expression", "recorded"),
    [
        ("a + 1", []),
        ("log(a)", ["maths library"]),
        ("floor(a ** 0.5)", ["maths library"]),
        ('hour(t, "Europe/Berlin")', ["time zone release"]),
    ],
)
def test_a_model_records_what_its_features_were_computed_by_and_a_difference_is_told(expression, recorded, monkeypatch):
    class Version:
        name, version = "m", 1
        definitions = definitions_of(parse_job(JOB.format(expression), "test"))

    job = parse_job(JOB.format(expression), "test")
    assert list(Version.definitions.machine) == recorded
    assert fit_warnings({"j": job}, Version) == []
    monkeypatch.setattr("gridscore.features.maths.digest", lambda: "another")
    monkeypatch.setattr("gridscore.job.zones.release", lambda: "1999.1")
    told = fit_warnings({"j": job}, Version)
    assert len(told) == len(recorded)
    assert all(f"was trained with a different {what} (" in text for what, text in zip(recorded, told, strict=True))
