"""Model files whose structure is valid and whose numbers are not, each checked in a process with little memory.

Started by `test_models_fuzz.py`: `python models_fuzz.py SEED COUNT SECONDS` prints a line of JSON for each file that
was neither described nor refused in good order. Ends early when the time is over.
"""

import json
import os
import random
import resource
import struct
import sys
import time
from pathlib import Path

import numpy as np
import xgboost  # noqa: F401 -- once, not in each child

from gridscore.errors import ModelError
from gridscore.models.candidate import Candidate
from gridscore.models.document import read_document

MEMORY = 768 << 20
"""Bytes of addresses that the check of one small file may take beyond what the process has already."""

CPU_SECONDS = 20
INTEGERS = [-(2**63), -(2**31), -4, -1, 0, 1, 2, 7, 255, 2**15, 2**24 - 1, 2**24, 2**31 - 1, 2**31, 2**32, 2**63 - 1]
FLOATS = [float("nan"), float("inf"), float("-inf"), 1e300, -1e300, 1e-320, 0.5, -0.0]
TEXTS = [
    "",
    "nan",
    "inf",
    "-inf",
    "1e9",
    "1E400",
    "0x10",
    " 3",
    "1_0",
    "+1",
    "-0",
    "0.5",
    "[]",
    "[1,2]",
    "[" * 50,
    "9" * 99,
]
LINEAR = {
    "learner": {
        "attributes": {},
        "feature_names": ["a", "b"],
        "feature_types": [],
        "gradient_booster": {"model": {"boosted_rounds": 2, "weights": [0.5, -0.25, 0.125]}, "name": "gblinear"},
        "learner_model_param": {
            "base_score": "[5E-1]",
            "boost_from_average": "1",
            "num_class": "0",
            "num_feature": "2",
            "num_target": "1",
        },
        "objective": {"name": "reg:squarederror", "reg_loss_param": {"scale_pos_weight": "1"}},
    },
    "version": [3, 4, 1],
}
"""A model of `gblinear`: written down, as a process that has trained one should not fork."""

KINDS = {"int8": "i", "uint8": "U", "int16": "I", "int32": "l", "int64": "L", "float32": "d", "float64": "D"}


class Ubj:
    """Writes a document as UBJ; one of its lengths may be a lie."""

    def __init__(self, lie=None):
        self._lie = lie  # which length, and what it says
        self._lengths = 0

    def write(self, value):
        if isinstance(value, dict):
            return b"{" + b"".join(self._text(key) + self.write(item) for key, item in value.items()) + b"}"
        if isinstance(value, np.ndarray) and value.dtype.name in KINDS:
            kind = KINDS[value.dtype.name].encode()
            return (
                b"[$" + kind + b"#" + self._length(len(value)) + value.astype(value.dtype.newbyteorder(">")).tobytes()
            )
        if isinstance(value, list | np.ndarray):
            return b"[#" + self._length(len(value)) + b"".join(map(self.write, value))
        if isinstance(value, str):
            return b"S" + self._text(value)
        if isinstance(value, bool | np.bool_) or value is None:
            return {True: b"T", False: b"F", None: b"Z"}[value if value is None else bool(value)]
        if isinstance(value, int | np.integer):
            return b"L" + struct.pack(">q", value)
        return b"D" + struct.pack(">d", value)

    def _text(self, text):
        return self._length(len(text.encode())) + text.encode()

    def _length(self, length):
        self._lengths += 1
        if self._lie is not None and self._lie[0] == self._lengths:
            length = self._lie[1]
        return b"L" + struct.pack(">q", length)


def plain(value):
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def places(value, path=()):
    """Paths of all values that are numbers, texts or arrays of them."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*path, key))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for number, item in enumerate(value):
            yield from places(item, (*path, number))
    else:
        yield path


def changed(draw, document):
    """Change one to three numbers, each kind of place as likely as another, whatever number of trees there are."""
    by_name = {}
    for path in places(document):
        by_name.setdefault(tuple(part for part in path if isinstance(part, str)), []).append(path)
    told = []
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        *path, last = draw.choice(by_name[draw.choice(sorted(by_name))])
        inside = document
        for part in path:
            inside = inside[part]
        value = inside[last] = _changed(draw, inside[last])
        told.append((".".join(map(str, (*path, last))), repr(value)[:80]))
    return told


def _changed(draw, value):
    if isinstance(value, str):
        return draw.choice(TEXTS + [str(number) for number in INTEGERS])
    if isinstance(value, int | float):
        return draw.choice(INTEGERS + FLOATS)
    if not isinstance(value, np.ndarray):
        return draw.choice(([], value * 2, value[:-1]))
    if not len(value) or draw.random() < 0.2:
        return draw.choice((value[:0], np.append(value, value), value[:-1], np.zeros(3, value.dtype)))
    value = value.copy()
    some = draw.sample(range(len(value)), draw.choice((1, 1, len(value))))
    if value.dtype.kind == "f":
        with np.errstate(over="ignore"):
            value[some] = draw.choice(FLOATS)
    else:
        bounds = np.iinfo(value.dtype)
        value[some] = draw.choice([number for number in INTEGERS if bounds.min <= number <= bounds.max])
    return value


def check(payload):
    """How a check of these bytes ends, in a process of its own."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        code = 3
        try:
            Candidate.check(payload, "m", metrics=None, categories=None)
            code = 0
        except ModelError as error:
            code = 4 if "alloc" in str(error) else 1
        except MemoryError:
            code = 4
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    code = os.waitstatus_to_exitcode(status)
    return {0: "accepted", 1: "refused", 3: "another error", 4: "took too much memory"}.get(code, f"ended by {-code}")


def tell(line):
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main(seed, count, seconds):
    files = sorted((Path(__file__).parent / "models_by_version").glob("*.ubj"))
    originals = [path.read_bytes() for path in files]
    files.append(Path("linear"))
    originals.append(json.dumps(LINEAR).encode())
    ends, deadline = {}, time.monotonic() + seconds
    for payload in originals[::3]:
        assert check(payload) in ("accepted", "refused")
    for number in range(seed, seed + count):
        draw = random.Random(number)
        which = draw.randrange(len(files))
        document = read_document(originals[which], files[which].name)
        if draw.random() < 0.15:
            lie = draw.randrange(1, 400), draw.choice(INTEGERS)
            told, payload = [("length", lie)], Ubj(lie).write(document)
        else:
            told = changed(draw, document)
            form = draw.choice(("ubj", "json"))
            payload = Ubj().write(document) if form == "ubj" else json.dumps(plain(document)).encode()
            told.append((form, len(payload)))
        end = check(payload)
        ends[end] = ends.get(end, 0) + 1
        if end not in ("accepted", "refused"):
            tell({"seed": number, "file": files[which].name, "end": end, "changed": told})
        if time.monotonic() > deadline:
            break
    tell({"ends": ends})


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
