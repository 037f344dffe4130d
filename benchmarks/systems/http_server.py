"""A web server that scores: FastAPI on uvicorn, an event a request.

Run as a module (`-h` says how); it prints `port` and the number when it listens.
"""

from __future__ import annotations

import argparse
import socket
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request, Response

from benchmarks.features import Work
from gridscore.grid.ports import HOST

BACKLOG = 1_024
IDLE_SECONDS = 3_600


def application(work: Work) -> FastAPI:
    """`POST /score` with an event answers with its result.

    Args:
        work: What to do.
    """
    app = FastAPI(openapi_url=None)

    # Not a pydantic model as argument and another as answer, but bytes: the work decodes and encodes itself. And
    # `async` although it waits for nothing: else each request would be handed to another thread and back.
    @app.post("/score")
    async def score(request: Request) -> Response:
        [result] = work.results([await request.body()])
        return Response(result, media_type="application/json")

    return app


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path)
    work = Work(parser.parse_args().files)
    config = uvicorn.Config(
        application(work),
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        log_level="warning",
        timeout_keep_alive=IDLE_SECONDS,
    )
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen(BACKLOG)
        print("port", listener.getsockname()[1], flush=True)
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
