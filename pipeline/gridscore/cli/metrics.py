"""`--metrics`: where Prometheus may ask a process for its metrics."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gridscore.cli.output import say
from gridscore.errors import UsageError, missing_extra

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gridscore.grid import Grid

Metrics = Annotated[
    str | None,
    typer.Option(
        "--metrics",
        metavar="[HOST:]PORT",
        help="Serve metrics for Prometheus there; on this machine only, unless a host is given.",
    ),
]


def address_of(text: str | None, *, processes: int = 1) -> tuple[str, int] | None:
    """Host and port of the option, if it is given.

    `processes`: how many need a port, from this one on. Raises UsageError if it is not such an address.
    """
    if text is None:
        return None
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if colon else "127.0.0.1"
    most = 65_536 - processes
    if not (host and port.isascii() and port.isdecimal() and int(port[:6]) <= most):
        raise UsageError(
            f"--metrics: `{text}` is not a port from 0 to {most}, or a host and such a port.",
            "For example `--metrics 9464`, or `--metrics 0.0.0.0:9464` to be reached from other machines.",
        )
    return host, int(port)


@asynccontextmanager
async def exposed(grid: Grid, address: tuple[str, int] | None, **what: Any) -> AsyncIterator[None]:
    """Serve metrics while this is entered, if there is an address; `what` is as for `Metrics`.

    Raises UsageError if the address cannot be listened on, or the extra is not installed.
    """
    if address is None:
        yield
        return
    try:
        from gridscore.operations import metrics
    except ModuleNotFoundError as error:
        raise missing_extra("`--metrics`", "metrics", error) from None
    async with metrics.exposed(grid, *address, **what) as url:
        say(f"Metrics are at {url}.")
        yield
