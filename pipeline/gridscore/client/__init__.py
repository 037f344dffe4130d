"""The client room: the API for programs. What they put into a cluster, and what they get out of it.

`connect` and `Client` are imported only when they are asked for: sources need the producer alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gridscore.client.client import Client, connect

__all__ = ["Client", "connect"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from gridscore.client import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
