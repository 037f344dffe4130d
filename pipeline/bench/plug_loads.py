"""Loads to measure sources with: those that need no server but what this distribution has."""

from __future__ import annotations

from contextlib import asynccontextmanager
from importlib.util import find_spec
from itertools import islice
from typing import TYPE_CHECKING

from pipeline.bench import card
from pipeline.bench.plugs import Load, UnavailableError
from pipeline.grid.ports import choose_ports
from pipeline.sources.base import Batch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

_BATCH = 2_000


class _FromMemory:
    """A source that costs nothing: what the runner and the producer take is the limit of all others."""

    def __init__(self, batches: list[Batch]) -> None:
        self._batches = batches

    async def open(self) -> None:
        """Nothing to connect to."""

    async def batches(self) -> AsyncIterator[Batch]:
        """Batches that were made before."""
        for batch in self._batches:
            yield batch

    async def acknowledge(self, batch: Batch) -> None:
        """Nothing to move."""

    async def close(self) -> None:
        """Nothing to let go."""


@asynccontextmanager
async def memory(folder: Path, events: int, to: str) -> AsyncIterator[Load]:  # noqa: ARG001 -- no files
    """Batches of 2,000 events that are in memory already."""
    rest, batches = card.events(events), []
    while entries := list(islice(rest, _BATCH)):
        batches.append(Batch(entries))
    yield Load(make=(lambda: _FromMemory(batches), to))


@asynccontextmanager
async def logfile(folder: Path, events: int, to: str) -> AsyncIterator[Load]:
    """A log file of JSON lines."""
    from pipeline.job.plugs.logfile_source import LogfileSourceSettings

    _need("watchfiles", "logfile")
    path = folder / "events.log"
    with path.open("wb") as file:
        file.writelines(text + b"\n" for _, text in card.events(events))
    yield Load(LogfileSourceSettings(to=to, path=(str(path),)))


@asynccontextmanager
async def http(folder: Path, events: int, to: str) -> AsyncIterator[Load]:  # noqa: ARG001 -- no files
    """Streams of lines, posted by several connections of another process."""
    from pipeline.job.plugs.http_source import HttpSourceSettings

    _need("uvicorn", "http")
    (port,) = choose_ports(1, 0)
    settings = HttpSourceSettings(to=to, port=port, key_field="id")
    yield Load(settings, feed=("pipeline.bench.http_feed", [f"127.0.0.1:{port}", f"/events/{to}", str(events)]))


def _need(module: str, extra: str) -> None:
    if find_spec(module) is None:
        raise UnavailableError(f"It needs the extra `{extra}`.", f"pip install 'gridscore[{extra}]'")
