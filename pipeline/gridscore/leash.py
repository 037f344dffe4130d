"""Runs a module of ours as a child process that never outlives its parent, whatever way the parent ends.

The child's standard input is a pipe that nobody writes to and only the parent holds: when it closes, the parent is
gone, or wants the child gone. A thread in the child sees it, tells the module to stop by SIGTERM, and ends it if that
takes too long.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Self

from gridscore.texts import last_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

# How long the module may take to stop in order; much longer only if the cluster that it speaks to is gone as well.
STOP_SECONDS = 5.0

_HAD_TO_END = 70  # EX_SOFTWARE


class LeashedProcess:
    """A module of ours in a child process. A context manager: leaving it stops the child and waits for it."""

    def __init__(self, module: str, arguments: Sequence[str], log_file: Path) -> None:
        self.log_file = log_file
        with log_file.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import main; main()", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C in a terminal goes to all processes in front; ours are stopped in order, by their parent.
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """What the child ended with, or None while it runs."""
        return self._process.poll()

    def last_lines(self) -> str:
        """The end of what the child has printed."""
        lines = self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()
        return last_lines(lines, "it printed nothing")

    def stop(self) -> None:
        """Stop the child and wait until it is gone. A second call does nothing."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(STOP_SECONDS + 2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def hold(stop: Callable[[], object], seconds: float) -> None:
    """In a child: call `stop`, from a thread, when standard input ends; end the process if that is no use.

    `stop`: makes the process end in order; `seconds`: how long that may take.
    """

    def follow() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        with contextlib.suppress(RuntimeError):  # the event loop is closed: we are ending already
            stop()
        threading.Event().wait(seconds)
        os._exit(_HAD_TO_END)

    threading.Thread(target=follow, name="leash", daemon=True).start()


def main() -> None:
    """In the child: run the module that the arguments name, as `python -m` would, until standard input ends."""
    hold(lambda: os.kill(os.getpid(), signal.SIGTERM), STOP_SECONDS)
    module, sys.argv = sys.argv[1], sys.argv[1:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
