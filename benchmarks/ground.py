"""The ground that systems are measured on: a cluster of our own, a work in it, and the scores that must come out."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from benchmarks.systems.base import Bed
from gridscore.errors import GridscoreError
from gridscore.features import EventDecoder, FeaturePlan, LookupTable
from gridscore.grid import GridSettings, connect
from gridscore.grid.launch import MemberExtras
from gridscore.grid.member import Cluster
from gridscore.grid.writer import MapWriter
from gridscore.proving.bench.rounds import put_events
from gridscore.scoring.runner import BATCH_EVENTS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from numpy.typing import NDArray

    from benchmarks.work import Work
    from gridscore.grid import Grid


@dataclass
class Ground:
    """A cluster with a work: what a bed is made of, and what only the harness knows.

    Attributes:
        bed: What systems get.
        cluster: The members.
        count: Events of a throughput run.
        texts: JSON texts by event number.
        matrix: Features by event number, computed offline; shape (count, features).
        expected: Scores by event number, computed offline; shape (count,).
        booster: The model, for one thread.
    """

    bed: Bed
    cluster: Cluster
    count: int
    texts: list[bytes]
    booster: Any
    matrix: NDArray[np.float32] = field(repr=False)
    expected: NDArray[np.float32] = field(repr=False)

    async def fill(self) -> None:
        """Put the backlog into the map of events."""
        events = ((f"e{number}", text) for number, text in enumerate(self.texts))
        await put_events(self.bed.grid, self.bed.work.job.events, events, self._said)

    async def clear(self) -> None:
        """Take the backlog away, journal and all."""
        await self.bed.grid.destroy(self.bed.work.job.events)

    async def forget(self) -> None:
        """Take results away that a system has left which failed."""
        await self.bed.grid.destroy(self.bed.work.job.results)

    def _said(self, done: int) -> None:
        self.bed.progress(f"putting events: {done:,} of {self.count:,}")


@asynccontextmanager
async def ground(
    work: Work,
    count: int,
    *,
    members: int,
    heap: str,
    progress: Callable[[str], None],
    extras: Callable[[Path], MemberExtras | None] = lambda _: None,
    config: Path | None = None,
    offline: bool = True,
) -> AsyncIterator[Ground]:
    """Start a cluster, put a work's lookups into it, and end everything when it is left.

    Args:
        work: What is to be scored.
        count: Events of a throughput run.
        members: How many.
        heap: Of each member.
        progress: Called with a line for people.
        extras: Given a folder, what the members run with besides what every member has.
        config: A member configuration instead of ours.
        offline: Whether to make texts, features and scores; if not, they are empty.

    Raises:
        GridscoreError: The cluster did not come up.
    """
    folder = Path(tempfile.mkdtemp(prefix="gridscore-bench-"))
    try:
        progress(f"{work.name}: training its model")
        await asyncio.to_thread(_save, work, folder)
        booster = load(folder / "model.ubj")
        lookups = work.lookups
        texts = [text for _, text in work.events(count)] if offline else []
        matrix = matrix_of(work, lookups, texts)
        expected = scores_of(booster, matrix)
        more = extras(folder) or MemberExtras()
        # A member that runs for long has touched its heap; the first touch of a page costs as much as an event.
        more = replace(more, environment={"JDK_JAVA_OPTIONS": "-XX:+AlwaysPreTouch", **more.environment})
        # Not in a thread: who is cancelled there leaves members behind that nobody knows of.
        with Cluster.start(members, port=0, heap=heap, config=config, extras=more, on_progress=progress) as cluster:
            settings = GridSettings(members=cluster.addresses, cluster_name=cluster.cluster_name)
            async with await connect(settings) as grid:
                progress(f"{work.name}: putting lookups")
                await _put_lookups(grid, lookups)
                bed = Bed(
                    grid=grid,
                    addresses=cluster.addresses,
                    cluster_name=cluster.cluster_name,
                    member_pids=cluster.pids,
                    work=work,
                    files=folder,
                    folder=folder,
                    progress=progress,
                )
                yield Ground(bed, cluster, count, texts, booster, matrix, expected)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def load(file: Path) -> Any:
    """A saved model, for one thread."""
    import xgboost as xgb

    booster = xgb.Booster(model_file=str(file))
    booster.set_param({"nthread": 1})
    return booster


def matrix_of(
    work: Work, lookups: Mapping[str, tuple[str, dict[str, dict[str, float]]]], texts: list[bytes]
) -> NDArray[np.float32]:
    """The features of these events as training would see them, without a grid; shape (events, features)."""
    job = work.job
    tables = {name: LookupTable(lookup) for name, lookup in job.lookups.items()}
    for name, (_, entries) in lookups.items():
        for key, value in entries.items():
            tables[name].put(key, msgspec.json.encode(value))
    decoder, plan = EventDecoder(job), FeaturePlan(job, tables, {})
    parts = [
        plan.matrix(decoder.decode_all(texts[begin : begin + BATCH_EVENTS]))
        for begin in range(0, len(texts), BATCH_EVENTS)
    ]
    return np.concatenate(parts) if parts else np.empty((0, len(job.feature_names)), np.float32)


def scores_of(booster: Any, matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """The scores of these features; shape (events,)."""
    parts = [
        booster.inplace_predict(matrix[begin : begin + BATCH_EVENTS], validate_features=False)
        for begin in range(0, len(matrix), BATCH_EVENTS)
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


def _save(work: Work, folder: Path) -> None:
    try:
        work.save(folder)
    except OSError as error:
        raise GridscoreError(f"The work `{work.name}` could not be written to {folder}: {error.strerror}.") from None


async def _put_lookups(grid: Grid, lookups: Mapping[str, tuple[str, dict[str, dict[str, float]]]]) -> None:
    for map_name, entries in lookups.values():
        await MapWriter(grid, map_name).prepare()
        await put_events(
            grid, map_name, ((key, msgspec.json.encode(entry)) for key, entry in entries.items()), lambda _: None
        )
