"""What requests hold: bodies that are received whole, within bounds, and what stands in queries, as numbers."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException

from gridscore.sources.http.answer import later

if TYPE_CHECKING:
    from starlette.requests import Request

BODY_SECONDS = 30.0  # time for a body that is not a stream of lines
MAX_WAIT = 60.0  # most seconds that a request may wait for anything


class Bodies:
    """Receives bodies.

    `held`: bytes of those that are being received or taken apart; whoever is done with one takes its bytes off.
    """

    def __init__(self, max_body: int, max_bytes: int) -> None:
        self._max_body, self._max_bytes = max_body, max_bytes
        self.held = 0

    async def receive(self, request: Request, body: bytearray) -> None:
        """Receive a whole body, whose bytes are then held.

        Raises HTTPException if it is too large, too slow, or there are too many at once; what has come of it is held.
        """
        length = request.headers.get("content-length", "0")
        if not length.isdigit():
            raise HTTPException(400, "The Content-Length is not a number.")
        self._check(int(length))
        if request.scope.get("gridscore.is_whole", _unknown)():
            await self._take(request, body)  # without a timer, which would cost more than all of this
            return
        try:
            async with asyncio.timeout(BODY_SECONDS):
                await self._take(request, body)
        except TimeoutError:
            raise HTTPException(408, f"The body did not arrive in {BODY_SECONDS:g} s.") from None

    async def _take(self, request: Request, body: bytearray) -> None:
        async for chunk in request.stream():
            self._check(len(body) + len(chunk), len(chunk))
            body += chunk
            self.held += len(chunk)

    def _check(self, size: int, more: int = 0) -> None:
        if size > self._max_body:
            raise HTTPException(
                413,
                f"The body has more than {self._max_body:,} bytes: send less at once, or lines as "
                "application/x-ndjson.",
            )
        if self.held + more > self._max_bytes:
            raise later(429, "Too much is being sent at once.")


def _unknown() -> bool:
    return False


def sequence(name: str, text: str | None) -> int | None:
    """A sequence, or -1 for any. Raises HTTPException if it is neither."""
    if text is None:
        return None
    if not re.fullmatch(r"-1|[0-9]{1,18}", text):
        raise HTTPException(400, f"`{name}={text}` is not a sequence: take it from the answer to the event.")
    return int(text)


def seconds(name: str, text: str) -> float:
    """Seconds of `2s`, `500ms` or `1.5`, `MAX_WAIT` at most. Raises HTTPException if it is not one of these."""
    matched = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)(s|ms)?", text)
    if matched is None:
        raise HTTPException(400, f"`{name}={text}` is not a time: write 2s or 500ms.")
    return min(float(matched[1]) / (1000 if matched[2] == "ms" else 1), MAX_WAIT)


def flag(name: str, text: str) -> bool:
    """`true` or `false`. Raises HTTPException if it is neither."""
    if text not in ("true", "false"):
        raise HTTPException(400, f"`{name}={text}` is neither true nor false.")
    return text == "true"
