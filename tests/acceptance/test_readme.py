"""The README's Python runs as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_twenty_lines_score_an_event():
    text = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"test_readme\.py runs this -->\n```python\n(.*?)```", text, re.DOTALL)

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )

    assert done.returncode == 0, done.stderr
    key, score, decision = done.stdout.split()
    assert (key, decision) == ("p1", "approve")
    assert 0 < float(score) < 1
    assert done.stderr == ""
