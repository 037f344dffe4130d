"""`gridscore worker` that counts what it asks the members for: at SIGUSR1 it writes that into a file.

The first argument is the file, the others are the command's own.
"""

from __future__ import annotations

import signal
import struct
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
from hazelcast.internal.asyncio_invocation import InvocationService
from hazelcast.internal.asyncio_reactor import AsyncioReactor

from gridscore import cli
from gridscore.testing.messages import NAMES

_FRAME = struct.Struct("<iH")


def _what(request: bytes) -> str:
    """Kind of a request, and the map that it names; maps of jobs are one."""
    kind = int.from_bytes(request[_FRAME.size : _FRAME.size + 4], "little")
    name = NAMES.get(kind, f"0x{kind:06x}")
    first = _FRAME.unpack_from(request)[0]
    if not name.startswith("Map.") or len(request) < first + _FRAME.size:
        return name
    length = _FRAME.unpack_from(request, first)[0]
    text = bytes(request[first + _FRAME.size : first + length]).decode(errors="replace")
    return f"{name} {text if text.startswith('gridscore.') else text.partition('.')[0]}"


def main() -> None:
    """Run the command."""
    file = Path(sys.argv.pop(1))
    requests, received = Counter[str](), 0
    invoke, update = InvocationService.invoke, AsyncioReactor.update_bytes_received

    def counted(service: Any, invocation: Any) -> Any:
        requests[_what(invocation.request.buf)] += 1
        return invoke(service, invocation)

    def counted_bytes(reactor: Any, size: int) -> None:
        nonlocal received
        received += size
        update(reactor, size)

    def write(_signal: int, _frame: Any) -> None:
        new = file.with_suffix(".new")
        new.write_bytes(msgspec.json.encode({"requests": requests, "received": received}))
        new.replace(file)

    InvocationService.invoke, AsyncioReactor.update_bytes_received = counted, counted_bytes
    signal.signal(signal.SIGUSR1, write)
    cli.main()


if __name__ == "__main__":
    main()
