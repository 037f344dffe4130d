"""A worker whose connections take a detour: `gridscore worker`, with each member's address exchanged for a proxy's.

Hazelcast's client connects to the addresses that members announce, so a proxy has to be put in where it translates
them. Run as a module: `HOST:PORT=PROXY_PORT` for each member, then the arguments of `gridscore`.
"""

from __future__ import annotations

import runpy
import signal
import sys
from typing import Any

from hazelcast.core import Address
from hazelcast.internal.asyncio_connection import DefaultAsyncioAddressProvider

PROXY_HOST = "127.0.0.1"


def divert(detours: dict[tuple[str, int], int]) -> None:
    """Connect to a proxy's port on this machine wherever the client would connect to a member."""

    async def translate(_provider: Any, address: Any) -> Any:
        if address is None:
            return None
        port = detours.get((address.host, address.port))
        # A member that is not known goes nowhere, rather than around the proxies.
        return None if port is None else Address(PROXY_HOST, port)

    DefaultAsyncioAddressProvider.translate = translate


def die_with_parent() -> None:
    """On Linux, let the kernel kill this process with its parent, even while it is stopped."""
    if sys.platform.startswith("linux"):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main() -> None:
    """Take the detours off the arguments, and be `gridscore`."""
    die_with_parent()
    detours = {}
    while len(sys.argv) > 1 and "=" in sys.argv[1]:
        address, _, port = sys.argv.pop(1).partition("=")
        host, _, announced = address.rpartition(":")
        detours[host, int(announced)] = int(port)
    divert(detours)
    # As a command line does: this room must not know the one above it.
    runpy.run_module("gridscore.cli", run_name="__main__")


if __name__ == "__main__":
    main()
