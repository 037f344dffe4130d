"""`gridscore serve`: scores requests by HTTP, and takes events and gives results, until it is stopped."""

from __future__ import annotations

import gc
import logging
import os
from typing import TYPE_CHECKING

import typer

from gridscore.cli.options import Connection, modules_in, working
from gridscore.cli.output import say
from gridscore.cli.plug_run import run_until_told
from gridscore.cli.plugs import command_of
from gridscore.errors import missing_extra
from gridscore.serve.settings import ServeSettings

if TYPE_CHECKING:
    from gridscore.serve.server import Server


def _start(settings: ServeSettings, connection: Connection) -> None:
    gc.disable()  # until all is imported, or it would search that again and again
    from gridscore.job.plugs.environment import from_environment
    from gridscore.scoring.process import import_xgboost, tune

    try:
        import gridscore.serve.server
    except ModuleNotFoundError as error:
        raise missing_extra("`serve`", "serve", error) from None
    import_xgboost()
    tune()
    from_environment(settings)  # fails before anybody connects
    if not settings.allow_python:
        modules = tuple(modules_in(os.environ.get("GRIDSCORE_ALLOW_PYTHON")))
        settings = settings.model_copy(update={"allow_python": modules})
    for name in ("gridscore.serve", "gridscore.scoring", "gridscore.sources"):
        logging.getLogger(name).setLevel(min(logging.INFO, logging.getLogger().level))
    servers: list[Server] = []

    def stop() -> bool:
        for each in servers:
            each.stop()
        return bool(servers)  # empty while it connects

    async def serve() -> None:
        async with working(connection) as grid:
            server = gridscore.serve.server.Server(grid, settings)
            servers.append(server)
            await server.run()

    code = run_until_told(serve, stop)
    say("The server has stopped.")
    if code:
        raise typer.Exit(code)


serve = command_of(
    ServeSettings,
    _start,
    help_text="Score requests by HTTP as the stream scores events, and take events and give results beside it.\n\n"
    "POST /score/JOB with an event, or a list of them. Runs until Ctrl-C or SIGTERM. A string may hold ${NAME}, an "
    "environment variable, whose value is never shown.",
    example="gridscore serve --jobs card-fraud --to events.purchases --key purchase",
)
serve.__name__ = "serve"
