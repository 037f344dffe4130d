"""The expression language under random texts, briefly; and each kind of finding that the fuzz must tell of."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[1] / "fuzz_expressions.py"

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits are set as Linux has them")


def told(*command):
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=300, check=True, cwd=FUZZ.parent
    )
    return [*map(json.loads, done.stdout.splitlines())]


def test_any_text_is_refused_or_computes():
    *findings, ends = told(FUZZ, "--first", "1000000", "--count", "400")
    assert not findings
    assert min(ends["ends"]["refused"], ends["ends"]["computed"]) > 40


@pytest.mark.parametrize(
    ("planted", "finding"),
    [
        ("os.system('true')", 'ran or opened: ["os.system'),
        ("eval('1')", "ran or opened: ['exec"),
        ("open('/etc/hostname').close()", 'ran or opened: ["open'),
        ("len(bytearray(2 << 30))", "MemoryError"),
        ("[][1]", "IndexError: list index out of range"),
        ("next(each for each in iter(int, 1) if each)", "the process ended with -27"),
        ("all(iter(lambda began=time.process_time(): time.process_time() - began < 0.5, False))", "took "),
        ("os.kill(os.getpid(), 11)", "the process ended with -11"),
    ],
)
def test_what_a_text_must_not_do_is_told(planted, finding):
    body = f"import fuzz_expressions as f, os, sys, time; f.run_case = lambda number, _: number < 0 or str({planted}); "
    body += "f.CPU_SECONDS, f.MEMORY, sys.argv[1:] = 0.25, 1 << 28, ['--count', '1']; f.main()"
    assert told("-c", body)[0]["end"].startswith(finding)
