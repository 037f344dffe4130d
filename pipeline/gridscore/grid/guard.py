"""The process between us and the members: starts them, and stops them when we end, however we end.

It runs on its own (`python guard.py`, standard library only), is the parent of the members, and holds a pipe from the
process that wants them. The pipe closes when that process ends, even by kill -9: then the members are stopped. It leads
its own session, so signals from a terminal reach neither it nor them.

Requests are JSON lines on its standard input, answers on its standard output:

    {"start": 0, "command": [...], "environment": {...}, "log": "..."}  ->  {"started": 0, "pid": 123}
    {"kill": 0}                                                         ->  (the exit follows)
    (any member ended)                                                  ->  {"exited": 0, "code": -9}

A member's environment is ours, with what the request adds.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

# A member ends within a second or two when it is told to; one that hangs is killed after this.
STOP_SECONDS = 15.0
_TICK_SECONDS = 0.2


def main() -> None:
    """Serve until the pipe closes, the parent has ended or we are told to end; then stop all members."""
    parent = os.getppid()
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    die_with_us = _die_with_us()
    members: dict[int, subprocess.Popen[bytes]] = {}
    requests: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()
    try:
        while os.getppid() == parent:  # a child that the parent forked may keep the pipe open after its death
            try:
                line = requests.get(timeout=_TICK_SECONDS)
            except queue.Empty:
                pass
            else:
                if line is None:
                    break
                _serve(json.loads(line), members, die_with_us)
            for index, member in list(members.items()):
                if (code := member.poll()) is not None:
                    del members[index]
                    _say({"exited": index, "code": code})
    finally:
        _stop(members)


def _serve(
    request: dict[str, Any], members: dict[int, subprocess.Popen[bytes]], die_with_us: Callable[[], None] | None
) -> None:
    if "kill" in request:
        if member := members.get(request["kill"]):
            member.kill()
        return
    index = request["start"]
    try:
        with open(request["log"], "ab") as log:  # noqa: PTH123 -- no import that the start does not need
            members[index] = subprocess.Popen(
                request["command"],
                env=os.environ | request["environment"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_us,  # noqa: PLW1509 -- one prctl call, and the only other thread waits in read()
            )
    except OSError as error:
        _say({"exited": index, "code": 127, "error": str(error)})
    else:
        _say({"started": index, "pid": members[index].pid})


def _die_with_us() -> Callable[[], None] | None:
    """On Linux, a function that has the kernel kill a member if this process is killed first."""
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    try:
        prctl = ctypes.CDLL(None).prctl
    except (OSError, AttributeError):
        return None
    return lambda: prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _read(requests: queue.SimpleQueue[str | None]) -> None:
    with contextlib.suppress(OSError, ValueError):
        for line in sys.stdin:
            requests.put(line)
    requests.put(None)


def _say(answer: dict[str, Any]) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody listens any more; the pipe will tell
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _stop(members: dict[int, subprocess.Popen[bytes]]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for member in members.values():
        with contextlib.suppress(OSError):
            member.terminate()
    import time

    deadline = time.monotonic() + STOP_SECONDS
    for member in members.values():
        try:
            member.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            member.kill()
            member.wait()


if __name__ == "__main__":
    main()
