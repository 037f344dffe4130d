"""`gridscore worker`: scores for the submitted jobs until it is stopped."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Annotated

import typer

from pipeline.cli.options import ClusterName, Members, SettingsFile, connected
from pipeline.cli.output import errors, run


def worker(
    *,
    jobs: Annotated[
        str | None, typer.Option("--jobs", metavar="A,B", help="Score only for these jobs; else for all.")
    ] = None,
    lease: Annotated[
        float, typer.Option("--lease", min=2.0, max=600.0, help="Seconds after which a killed worker is replaced.")
    ] = 10.0,
    members: Members = None,
    cluster_name: ClusterName = None,
    settings: SettingsFile = None,
) -> None:
    """Find submitted jobs and score for them; Ctrl-C or SIGTERM stops it cleanly.

    Nothing needs to be installed on the members, and a worker keeps nothing on disk: start it anywhere.

    Example: [bold]gridscore worker --jobs flights[/]
    """
    from pipeline.worker import Worker
    from pipeline.worker.process import tune

    only = [name for name in jobs.split(",") if name] if jobs else None

    async def main() -> None:
        async with connected(members, cluster_name, settings) as grid:
            scoring = Worker(grid, only, lease_seconds=lease)
            task = asyncio.current_task()
            loop = asyncio.get_running_loop()
            stopping = False

            def stop() -> None:
                nonlocal stopping
                if stopping:
                    # Whoever asks twice does not want to wait; the leases then run out by themselves.
                    os._exit(130)
                stopping = True
                if task is not None:
                    task.cancel()

            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, stop)
            errors.print(f"Worker {scoring.id} is looking for jobs. Ctrl-C stops it.", highlight=False)
            try:
                await scoring.run()
            except asyncio.CancelledError:
                if not stopping:
                    raise
            errors.print("Worker stopped.", highlight=False)

    tune()
    run(main())
