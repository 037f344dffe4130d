"""The compiled inner loops give what their twins in Python give, whatever comes."""

import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import IN_CI

from gridscore import compiled
from gridscore.grid import cutting
from gridscore.job import parse_job
from gridscore.scoring import results

ROOT = Path(__file__).parents[2]

missing = [name for name in compiled.MODULES if compiled.compiled(name) is None]
if missing and not IN_CI:
    pytest.skip(f"not compiled here, the twins in Python run: {missing}", allow_module_level=True)

wire = compiled.compiled("gridscore.grid._wire")
fast_results = compiled.compiled("gridscore.scoring._results")


def test_where_there_is_a_compiler_the_inner_loops_are_compiled():
    assert missing == []


def outcome(function, *arguments):
    """What a function gives, or the kind of its error."""
    try:
        return function(*arguments)
    except (ValueError, OverflowError) as error:
        return type(error)


# ---------------------------------------------------------------------- journal pages

small = st.binary(max_size=20)
int32 = st.integers(-(2**31), 2**31 - 1)


@st.composite
def values(draw):
    """A serialized value with its length in front: a text, something else, or null."""
    kind = draw(st.sampled_from(["json", "string", "other", "short", "null"]))
    text = draw(small)
    if kind == "null":
        return struct.pack(">i", -1)
    if kind == "short":
        return struct.pack(">i", min(len(text), 11)) + text[:11]
    type_id = {"json": -130, "string": -11, "other": draw(st.sampled_from([-2, -55, -1, 7]))}[kind]
    body = struct.pack(">iii", draw(int32), type_id, len(text)) + text
    return struct.pack(">i", len(body)) + body


@st.composite
def items(draw):
    """A frame with an item of a journal."""
    key = draw(small)
    kind = draw(st.sampled_from([1, 2, 4, 8, 512, 0]))
    content = b"h" * 17 + struct.pack(">ii", kind, len(key)) + key + draw(values()) + draw(values())
    return struct.pack("<iH", len(content) + 6, 0) + content


@given(st.lists(items(), max_size=8), st.integers(0, 10), st.integers(-5, 2**62))
def test_pages_are_cut_alike(frames, before, first):
    body = b"x" * before + b"".join(frames)
    expected = cutting._cut_items(body, before, first, len(frames))
    assert wire.cut_items(body, before, first, len(frames)) == expected
    assert len(expected[0]) == len(expected[1]) == len(expected[2])


@given(st.lists(items(), min_size=1, max_size=4), st.data())
def test_damaged_pages_are_refused_alike_and_never_read_past_their_end(frames, data):
    body = bytearray(b"".join(frames))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at] = data.draw(st.sampled_from([0, 1, 2, 31, 127, 128, 255]))
    damaged = bytes(body[: data.draw(st.integers(0, len(body)))])
    position, count = data.draw(st.integers(-3, len(damaged) + 3)), data.draw(st.integers(0, 6))
    assert outcome(wire.cut_items, damaged, position, 0, count) == outcome(
        cutting._cut_items, damaged, position, 0, count
    )


frame = st.tuples(st.integers(0, 30), st.booleans()).map(
    lambda it: struct.pack("<iH", it[0] + 6, (1 << 13) if it[1] else 3) + b"." * it[0]
)


@given(st.lists(frame, max_size=6), st.integers(-2, 200), st.integers(-2, 200), st.sampled_from([8, 20, 1 << 30]))
def test_messages_are_found_alike(frames, position, end, largest):
    buffer = b"".join(frames)
    arguments = (memoryview(buffer), position, end, largest)
    assert outcome(wire.find_message, *arguments) == outcome(cutting._find_message, *arguments)


@given(st.binary(max_size=40), st.integers(0, 40))
def test_bytes_that_are_no_frames_are_judged_alike(buffer, position):
    arguments = (buffer, position, len(buffer), 1 << 30)
    assert outcome(wire.find_message, *arguments) == outcome(cutting._find_message, *arguments)


@given(small, st.lists(st.tuples(small, small), max_size=8), small)
def test_put_alls_are_joined_alike(prefix, entries, suffix):
    keys, texts = [key for key, _ in entries], [text for _, text in entries]
    joined = wire.join_entries(prefix, keys, texts, suffix)
    assert type(joined) is bytearray
    assert joined == cutting._join_entries(prefix, keys, texts, suffix)


def test_a_put_all_needs_as_many_keys_as_texts():
    assert outcome(wire.join_entries, b"", [b"k"], [], b"") is outcome(cutting._join_entries, b"", [b"k"], [], b"")
    with pytest.raises(TypeError):
        wire.join_entries(b"", ["k"], [b"t"], b"")


# ---------------------------------------------------------------------- results

JOB = """
job: twins
events: events.twins
results: results.twins
schema: {amount: float, user: string, note: string?, n: int}
features: {amount: amount}
model: twins
result: {include: [note, user, n, amount]}
decisions:
  - {decision: 'de"cline', at_least: 0.9}
  - {decision: review, at_least: 0.5}
  - {decision: approve}
"""
text = st.text(max_size=12)
floats = st.floats(width=32, allow_nan=True, allow_infinity=True)
finite = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.lists(st.tuples(floats, text, st.none() | text, st.integers(-(2**63), 2**63 - 1), finite), max_size=9),
    st.integers(0, 2**62),
    st.booleans(),
    st.booleans(),
)
def test_results_are_written_alike(rows, sequence, plain, tried):
    described = "\n".join(line for line in JOB.splitlines() if "include" not in line) if plain else JOB
    described = described.replace("include:", "features: all, include:")
    encoder = results.ResultEncoder(parse_job(described, "twins.yaml"), 12)
    scores = np.array([row[0] for row in rows], np.float32)
    steps = np.searchsorted(encoder._thresholds, scores, side="right")
    included = [] if plain else [[row[column] for row in rows] for column in (2, 1, 3, 4)]
    sequences = [-1 if each % 3 == 0 else sequence + each for each in range(len(rows))]
    versions = [SimpleNamespace(version=number, name='m"\u00e9') for number in (7, 12)]
    made_by = results.MadeBy(versions, np.arange(len(rows)) % 2) if tried else results.MadeBy(versions[:1])
    named = {"decision": (encoder._decisions, steps)}
    served = {} if plain else {"a b": [row[4] for row in rows], 'b"': scores.tolist()}
    columns = (scores, named, sequences, [5] * len(rows), made_by, 1_700_000_000_000, included, served)
    assert encoder._zip(columns) == encoder._encode_each(columns)


@given(st.integers(1, 5), st.integers(1, 4))
def test_results_of_several_outputs_are_written_alike(rows, outputs):
    described = JOB[: JOB.index("result: {")]
    encoder = results.ResultEncoder(parse_job(described, "twins.yaml"), 12)
    scores = np.linspace(0, 1, rows * outputs, dtype=np.float32).reshape(rows, outputs)
    made_by = results.MadeBy([SimpleNamespace(version=1, name="m")])
    columns = (scores, {}, list(range(rows)), [1] * rows, made_by, 5, [], {})
    assert encoder._zip(columns) == encoder._encode_each(columns)


@pytest.mark.parametrize(
    "columns",
    [
        (b"[1]",),
        (b"[1,2",),
        (b"",),
        (b'["a',),
        (b'["\\',),
        ([1],),
        ([2**64, 1],),
        (((b"x",), np.array([0, 1])),),
        (((b"x",), np.array([0])),),
        (((b"x",), np.array([-1, 0])),),
    ],
)
def test_columns_that_do_not_fit_are_refused(columns):
    with pytest.raises((ValueError, OverflowError)):
        fast_results.zip_objects(2, (b"{", b"}"), columns)


@pytest.mark.parametrize("columns", [(1,), (["x", 1],), (((b"x", "y"), np.array([0, 0])),), ((1, 2),), ((b"x",),)])
def test_columns_of_other_types_are_refused(columns):
    with pytest.raises(TypeError):
        fast_results.zip_objects(2, (b"{", b"}"), columns)


# ---------------------------------------------------------------------- installation


def test_the_twins_run_where_somebody_asks_for_them():
    script = "from gridscore import compiled; print(compiled.describe())"
    environment = {**os.environ, "GRIDSCORE_PURE": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "inner loops in Python\n"


def test_a_wheel_holds_the_compiled_modules(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(tmp_path), str(ROOT)],
        env={**os.environ, "GRIDSCORE_COMPILE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.iterdir()
    assert "none-any" not in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for module in compiled.MODULES:
        assert any(name.startswith(f"{module.replace('.', '/')}.") and name.endswith((".so", ".pyd")) for name in names)


def test_without_a_compiler_a_wheel_is_pure_and_says_so(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--verbose", "--wheel-dir", str(tmp_path), str(ROOT)],
        env={**os.environ, "CC": str(tmp_path / "no-such-compiler"), "GRIDSCORE_COMPILE": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "run in Python, slower" in done.stdout + done.stderr
    (wheel,) = tmp_path.iterdir()
    assert wheel.name.endswith("-none-any.whl")
