"""The client room: the API for programs. What they put into a cluster, and what they get out of it.

`connect` and `Client` are imported only when they are asked for: `gridscore --help` should not wait for them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gridscore.client.client import Client
    from gridscore.client.connection import connect

__all__ = ["Client", "connect"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"gridscore.client.{'connection' if name == 'connect' else 'client'}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
