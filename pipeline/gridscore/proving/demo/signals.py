"""Signals during the demo: every one that asks us to end is a KeyboardInterrupt, and cleaning up is not interrupted."""

from __future__ import annotations

import asyncio
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_TO_END = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def interruptible() -> Iterator[None]:
    """`kill` and a closed terminal end us as Ctrl-C does: in order."""
    with _handlers(_TO_END, signal.default_int_handler):
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ctrl-C pressed again does not keep us from stopping what we have started; that takes a few seconds at most."""
    with _handlers([signal.SIGINT, *_TO_END], signal.SIG_IGN):
        yield


@contextmanager
def interruptible_task() -> Iterator[None]:
    """The same within an event loop, where Ctrl-C cancels the main task."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    added: list[int] = []
    try:
        for number in _TO_END:
            loop.add_signal_handler(number, lambda: task and task.cancel())
            added.append(number)
    except (NotImplementedError, RuntimeError):
        pass  # an event loop without signals, as on Windows, or not in the main thread
    try:
        yield
    finally:
        for number in added:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.default_int_handler)


@contextmanager
def _handlers(numbers: list[int], handler: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [(number, signal.signal(number, handler)) for number in numbers]
    try:
        yield
    finally:
        for number, old in before:
            signal.signal(number, old)
