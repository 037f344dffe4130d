"""The stamp: when a source has read an event, written into it.

So windows have a time though events bring none, and every reader of an event finds the same one: a worker that reads it
again after a crash, one that trains or backtests on it. A clock that is asked when an event is scored could not promise
that.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


class Stamp:
    """Stamps the events of a source.

    `field`: gets milliseconds since 1970; each event of the process a later one, by a microsecond at least; `clock`:
    nanoseconds since 1970.
    """

    def __init__(self, field: str, clock: Callable[[], int] = time.time_ns) -> None:
        self._field = field
        self._clock = clock
        self._last = 0

    def on(self, entries: Sequence[tuple[Any, bytes | None]]) -> list[tuple[Any, bytes | None]]:
        """Entries as they are put; what is not an object stays as it is."""
        return [(key, text if text is None else self._stamped(text)) for key, text in entries]

    def _stamped(self, text: bytes) -> bytes:
        try:
            event = _decode(text)
        except (ValueError, RecursionError):
            return text
        self._last = max(self._clock() // 1_000, self._last + 1)
        event[self._field] = msgspec.Raw(b"%d.%03d" % divmod(self._last, 1_000))
        return _encode(event)
