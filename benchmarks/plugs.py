"""Measuring kinds of sources or of sinks, in turn, several times."""

from __future__ import annotations

import asyncio
import importlib
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from gridscore.cli.bench import measured
from gridscore.cli.bench_job import print_figures
from gridscore.cli.output import console, print_json, say
from gridscore.errors import GridscoreError
from gridscore.texts import count_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from rich.status import Status

    from gridscore.grid import Grid
    from gridscore.grid.member import Cluster
    from gridscore.proving.bench.rounds import Run

_Server = TypeVar("_Server")

Kinds = Annotated[list[str] | None, typer.Argument(metavar="[KIND]...", help="Only these; else all.")]

STALLED_SECONDS = 60.0
_LOOK_SECONDS = 0.005


class UnavailableError(GridscoreError):
    """The server of a kind cannot be had on this machine."""


async def measure_in_turn(
    loaders: Mapping[str, str],
    kinds: Collection[str],
    rounds: int,
    folder: Path,
    run: Callable[[Any, Path], Awaitable[Run]],
    progress: Callable[[str], None],
) -> tuple[dict[str, list[Run]], dict[str, str]]:
    """Measure each kind, then each again.

    Args:
        loaders: `package.module:function` of what makes the load of a kind.
        kinds: Of the loaders.
        rounds: How often each is measured.
        folder: For files; it must be empty.
        run: Measures once, given the loader and an empty folder.
        progress: Called with what is going on.

    Returns:
        The runs of each kind that could be measured, and why others could not.
    """
    runs: dict[str, list[Run]] = {}
    unavailable: dict[str, str] = {}
    for number in range(rounds):
        for kind in kinds:
            if kind in unavailable:
                continue
            progress(f"round {number + 1} of {rounds}: {kind}")
            own = folder / f"{kind}-{number}"
            own.mkdir()
            module, _, name = loaders[kind].partition(":")
            try:
                found = await run(getattr(importlib.import_module(module), name), own)
            except UnavailableError as error:
                unavailable[kind] = str(error)
            else:
                runs.setdefault(kind, []).append(found)
    return runs, unavailable


async def until(running: asyncio.Task[None], done: Callable[[], int], condition: Callable[[], bool]) -> None:
    """Wait for something, as long as a source or a sink gets on.

    Args:
        running: Runs it.
        done: How much it has done.
        condition: What to wait for.

    Raises:
        GridscoreError: It has ended, or does not get on.
    """
    loop = asyncio.get_running_loop()
    last, at = -1, loop.time()
    while not condition():
        if running.done():
            running.result()
            if condition():
                return
            raise GridscoreError(f"It ended after {done():,}.")
        if done() != last:
            last, at = done(), loop.time()
        elif loop.time() - at > STALLED_SECONDS:
            raise GridscoreError(f"Nothing has moved for {STALLED_SECONDS:g} s, after {last:,}.")
        await asyncio.sleep(_LOOK_SECONDS)


@asynccontextmanager
async def server(
    start: Callable[..., AbstractContextManager[_Server]],
    folder: Path,
    missing: type[GridscoreError],
    **settings: str,
) -> AsyncIterator[_Server]:
    """A server of its own, ended when it is left.

    Args:
        start: Starts it, given the folder and the settings.
        folder: For its files.
        missing: What `start` raises where it cannot be had.
        settings: Of the server.

    Raises:
        UnavailableError: It cannot be had.
    """
    try:
        found = await asyncio.to_thread(start, folder, **settings)
    except missing as error:
        raise UnavailableError(str(error)) from None
    with found as running:
        yield running


def need(module: str, extra: str) -> None:
    """See that a library is there.

    Raises:
        UnavailableError: It is not.
    """
    if find_spec(module) is None:
        raise UnavailableError(f"It needs the extra `{extra}`.", f"pip install 'gridscore[{extra}]'")


def report_on(
    measure: Callable[..., Coroutine[Any, Any, dict[str, Any]]],
    how: dict[str, Any],
    *,
    members: int,
    heap: str,
    as_json: bool,
    side: str,
    unit: str,
) -> None:
    """Measure kinds on a cluster of its own, and print what was found.

    Args:
        measure: Measures `how["kinds"]`.
        how: Its arguments.
        members: Of the cluster.
        heap: Of each member.
        as_json: Print JSON.
        side: `source` or `sink`.
        unit: What they pass on.
    """

    def work(grid: Grid, cluster: Cluster, folder: Path, status: Status) -> Coroutine[Any, Any, dict[str, Any]]:
        return measure(grid, cluster.pids, folder, **how, progress=status.update)

    report = measured(members, heap, work)
    if as_json:
        print_json(report)
        return
    found = report[f"{side}s"]
    where = f"{count_text(report['members'], 'member')}, one {side} process"
    console.print(
        f"\n[bold]{report[f'{unit}s']:,} {unit}s, {report['rounds']} rounds, {where}; medians (lowest to highest)[/]\n"
    )
    print_figures(found, [(kind, kind) for kind in found], unit)
    for kind, why in report["unavailable"].items():
        say(f"{kind}: not measured. {why}", to=console)


def chosen(kinds: Collection[str] | None, known: Collection[str]) -> list[str]:
    """The kinds that were asked for, each once; all, if none was.

    Raises:
        typer.BadParameter: One is not known.
    """
    for kind in kinds or ():
        if kind not in known:
            raise typer.BadParameter(f"`{kind}` is not measured. There are: {', '.join(known)}.")
    return list(dict.fromkeys(kinds or known))
