"""A server on this machine that never outlives us: started, killed and ended through the guard of members.

What the real servers for tests share: see `kafka`, `mqtt` and `postgres`.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from typing import TYPE_CHECKING, Any, Self

from gridscore.errors import MemberError
from gridscore.grid import guard
from gridscore.grid.launch import end_guard, start_guard
from gridscore.texts import last_lines

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

_LOOK_SECONDS = 0.05


class GuardedServer:
    """A server, running as a child process of this one. A context manager: leaving it stops it.

    It also ends when this process ends, whatever way.

    `title`: what it is called in messages: `Kafka broker`; `log_file`: for what it prints.
    """

    START_SECONDS = 60.0
    _command: list[str]  # what the guard is to start

    def __init__(self, title: str, log_file: Path) -> None:
        self.log_file, self._title = log_file, title
        self._guard: subprocess.Popen[str] | None = None
        self._pid: int | None = None
        self._error = ""
        self._changed = threading.Condition()

    def kill(self) -> None:
        """Kill it at once, as a power failure would, and wait until it is gone.

        Raises MemberError if it cannot be killed.
        """
        self._ask({"kill": 0})
        with self._changed:
            if not self._changed.wait_for(lambda: self._pid is None, guard.STOP_SECONDS):
                raise MemberError(f"The {self._title} cannot be killed.")

    @property
    def pid(self) -> int:
        """Its process id. Raises MemberError if it does not run."""
        if self._pid is None:
            raise MemberError(f"The {self._title} does not run.")
        return self._pid

    @property
    def alive(self) -> bool:
        return self._pid is not None

    def last_lines(self) -> str:
        """The end of its log."""
        try:
            lines = self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            lines = []
        return last_lines(lines)

    def stop(self) -> None:
        """Stop it and wait until it is gone. A second call does nothing."""
        child, self._guard = self._guard, None
        if child is not None:
            end_guard(child, filter(None, [self._pid]))
            if child.stdout:
                child.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def restart(self) -> None:
        """Start it, also again after `kill`, and return when it answers. Raises MemberError if it does not come up."""
        self._error = ""
        self._ask({"start": 0, "command": self._command, "environment": {}, "log": str(self.log_file)})
        deadline = time.monotonic() + self.START_SECONDS
        with self._changed:
            self._changed.wait_for(lambda: self._pid is not None or self._error, self.START_SECONDS)
        while not (self.alive and self._is_ready()):
            if not self.alive or time.monotonic() > deadline:
                why = "it does not answer" if self.alive else self._error or "its guard hangs"
                raise MemberError(f"The {self._title} did not come up: {why}. Its last lines:\n{self.last_lines()}")
            time.sleep(_LOOK_SECONDS)

    def _is_ready(self) -> bool:
        """Whether it answers."""
        raise NotImplementedError

    def _begin(self) -> None:
        """Start the guard, which follows from then on, and the server."""
        try:
            self._guard = start_guard()
            name = f"guard of the {self._title}"
            threading.Thread(target=self._follow, args=(self._guard.stdout,), name=name, daemon=True).start()
            self.restart()
        except BaseException:
            self.stop()
            raise

    def _ask(self, request: dict[str, Any]) -> None:
        if self._guard is None or self._guard.stdin is None:
            raise MemberError(f"The {self._title} has been stopped.")
        self._guard.stdin.write(json.dumps(request) + "\n")
        self._guard.stdin.flush()

    def _follow(self, answers: Any) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in answers:
                answer = json.loads(line)
                with self._changed:
                    self._pid = answer.get("pid")  # an exit has none, and neither has a start that failed
                    self._error = answer.get("error", "it has ended")
                    self._changed.notify_all()
        with self._changed:
            self._pid, self._error = None, "its guard has ended"
            self._changed.notify_all()
