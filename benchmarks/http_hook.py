"""A web server that takes everything, in its own process: `python -m benchmarks.http_hook HOST PORT`."""

from __future__ import annotations

import sys

from aiohttp import web


async def _take(request: web.Request) -> web.Response:
    await request.read()
    return web.Response()


def main() -> None:
    """Listen until SIGTERM."""
    app = web.Application(client_max_size=1 << 28)
    app.router.add_post("/", _take)
    web.run_app(app, host=sys.argv[1], port=int(sys.argv[2]), access_log=None, print=None, shutdown_timeout=1)


if __name__ == "__main__":
    main()
