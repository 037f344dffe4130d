"""Signals that ask a command to end."""

from __future__ import annotations

import asyncio
import signal
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def on_signals(handler: Callable[[str], Any]) -> None:
    """Call the handler with the signal's name, in the event loop, for every signal that asks us to end."""
    loop = asyncio.get_running_loop()
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
        number = getattr(signal, name, None)
        if number is None or (name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN):
            continue  # not of this system, or nohup wants us to go on
        try:
            loop.add_signal_handler(number, handler, name)
        except NotImplementedError:  # Windows
            called = partial(loop.call_soon_threadsafe, handler, name)
            signal.signal(number, lambda *_, called=called: called())
