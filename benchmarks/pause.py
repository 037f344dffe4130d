"""A child process that suspends others for as long as it lives: whatever becomes of its parent, they go on.

Run it as a `LeashedProcess`, with process ids as arguments. It ends by SIGTERM.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading

import psutil


def main() -> None:
    """Suspend the processes that the arguments name, until told to end."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    processes = [psutil.Process(int(pid)) for pid in sys.argv[1:]]
    try:
        for process in processes:
            process.suspend()
        # In steps: on Windows a signal does not end a wait.
        while not ended.wait(0.1):
            pass
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


if __name__ == "__main__":
    main()
