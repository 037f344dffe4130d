"""Whatever numbers a model file holds, it is described or refused: no crash, no memory out of proportion."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).with_name("models_fuzz.py")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of a process are set as Linux has them")
def test_files_of_valid_structure_and_hostile_numbers_are_accepted_or_refused():
    done = subprocess.run(
        [sys.executable, FUZZ, "1000", "200", "30"], capture_output=True, text=True, timeout=300, check=False
    )

    assert done.returncode == 0, done.stderr[-2000:]
    *failed, ends = map(json.loads, done.stdout.splitlines())
    assert not failed
    assert ends["ends"]["refused"] >= 1
