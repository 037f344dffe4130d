"""Work that somebody waits for, and that ends when the client has left."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from starlette.requests import ClientDisconnect

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive

_T = TypeVar("_T")


async def unless_left(request: Request, work: asyncio.Future[_T]) -> _T:
    """The result of some work, which is cancelled when the client leaves. The request's body must have been read.

    Raises:
        ClientDisconnect: The client has left.
    """
    left = asyncio.ensure_future(_left(request.receive))
    try:
        await asyncio.wait((work, left), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        left.cancel()
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
