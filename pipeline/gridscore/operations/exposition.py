"""Where Prometheus asks a process for its metrics: one address, served beside the work."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from starlette.responses import Response

from gridscore.errors import UsageError
from gridscore.job.plugs.http import PostSettings
from gridscore.operations.metrics import TYPE, Metrics
from gridscore.sources.http.answer import json_response
from gridscore.sources.http.server import HttpServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import Any

    from starlette.types import Receive, Scope, Send

    from gridscore.grid import Grid

PATH = "/metrics"

_CONNECTIONS = 32
"""Of one address; who has forgotten to close the others must not keep out the next."""


@asynccontextmanager
async def exposed(grid: Grid, host: str, port: int, **what: Any) -> AsyncIterator[str]:
    """Serve metrics while this is entered; gives the address.

    Args:
        grid: The connection.
        host: To listen on.
        port: To listen on; 0 for any that is free.
        what: Of what, see `Metrics`.

    Raises:
        UsageError: The address cannot be listened on.
    """
    metrics = Metrics(grid, **what)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        response = json_response(404, {"error": f"There is only {PATH} here."})
        if scope["path"] == PATH and scope["method"] in ("GET", "HEAD"):
            response = Response(await metrics.text(), media_type=TYPE)
        await response(scope, receive, send)

    # Whoever may connect may ask: the host was named, and nothing secret is told.
    server = HttpServer(grid, PostSettings(host=host, port=port, public=True, max_per_address=_CONNECTIONS))
    try:
        server.open(answer)
    except UsageError as error:
        hint = "Is something else listening there? --metrics takes another port, or HOST:PORT."
        raise UsageError(error.message, hint) from None
    try:
        yield f"{server.address}{PATH}"
    finally:
        await server.close()
