"""The command as tests run it, and waiting for what comes of it."""

import sys
import time

GRIDSCORE = [sys.executable, "-m", "gridscore.cli"]


def until(condition, seconds=90):
    """What the condition gives, once it holds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("nothing came of it")
