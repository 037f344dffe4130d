"""Live models: versions of the registry that requests ask for features of their own, `champion` as it moves.

Models are shared with the jobs that are served. Each version has its micro-batches.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
from hazelcast.errors import HazelcastError

from gridscore.errors import GridError, ModelError
from gridscore.models import Registry
from gridscore.serve.micro_batches import MicroBatches, answer
from gridscore.serve.tasks import follow

if TYPE_CHECKING:
    from collections.abc import Callable

    from gridscore.grid import Grid
    from gridscore.models import LoadedModel
    from gridscore.models.version import ModelVersion
    from gridscore.scoring.live_model import LoadedModels
    from gridscore.serve.micro_batches import Question

_log = logging.getLogger(__name__)

Rows = np.ndarray[Any, Any]

MAX_LOADED = 16  # versions that are kept loaded for requests


class LiveVersion:
    """Predicts rows of requests with one version, until `run` is cancelled."""

    def __init__(self, model: LoadedModel, most: tuple[int, int]) -> None:
        self._model = model
        self._batches: MicroBatches[Rows, Rows] = MicroBatches(*most)

    @property
    def version(self) -> ModelVersion:
        return self._model.version

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits."""
        return not self._batches.waiting

    async def predict(self, rows: Rows, has_left: Callable[[], bool], seconds: float) -> Rows:
        """Scores of float32 rows, in one micro-batch with those of other requests; errors are those of `ask`."""
        return await self._batches.ask(rows, len(rows), rows.nbytes, has_left, seconds)

    async def run(self) -> None:
        """Predict until cancelled."""
        try:
            while True:
                questions = await self._batches.take()
                try:
                    scores = self._model.predict(np.concatenate([each.work for each in questions]))
                except Exception:  # noqa: BLE001 -- the rows of one request must not harm the others
                    for each in questions:
                        self._alone(each)
                else:
                    answer(questions, scores)
                await asyncio.sleep(0)  # let answers leave and requests come
        finally:
            self._batches.close(GridError(f"{self.version} is no longer loaded here.", "Ask again."))

    def _alone(self, question: Question[Rows, Rows]) -> None:
        if question.answer.done():
            return
        try:
            question.answer.set_result(self._model.predict(question.work))
        except Exception as error:  # noqa: BLE001 -- whatever it is, it is said to who asked
            question.answer.set_exception(ModelError(f"{self.version} cannot predict these rows: {error}"))


class LiveModels:
    """The versions that requests ask.

    What is asked for and is not there, or cannot be used, is a `ModelError`; a cluster that is away, a `GridError`.

    `models`: loaded models, shared with others of this process; `most`: rows of a version that may wait, and their
    bytes.
    """

    def __init__(self, grid: Grid, models: LoadedModels, most: tuple[int, int]) -> None:
        self._grid, self._models, self._most = grid, models, most
        self._registry = Registry(grid)
        self._loading = asyncio.Lock()  # one at a time: models may be large
        self._changed = asyncio.Event()
        self._champions: dict[str, ModelVersion] = {}  # those that were asked for
        self._refused: dict[str, ModelVersion] = {}  # what could not be loaded in their place
        self._live: dict[tuple[str, int], tuple[LiveVersion, asyncio.Task[None]]] = {}  # the longest unused first

    async def version(self, name: str, number: int | None) -> ModelVersion:
        """A version, by default what `champion` means."""
        if not self._grid.is_connected:
            raise GridError("The connection to the grid is lost.", "Ask again.")
        if number is None:
            found = self._champions.get(name)
        else:
            live = self._live.get((name, number))
            found = None if live is None else live[0].version
        if found is None:
            try:
                found = await self._registry.resolve(name, version=number)
            except HazelcastError as error:
                raise GridError(f"The cluster does not answer: {error}", "Ask again.") from error
            if number is None:
                self._champions[name] = found
                while len(self._champions) > MAX_LOADED:
                    del self._champions[next(iter(self._champions))]
        return found

    async def numbers(self, name: str) -> list[int]:
        return [version.version for version in (await self._registry.get(name)).versions]

    async def get(self, name: str, number: int | None) -> LiveVersion:
        return await self._loaded(await self.version(name, number))

    async def run(self) -> None:
        """Follow the registry until cancelled: where `champion` moves, the new one is loaded, then exchanged."""
        await follow(self._grid, self._registry.watch, self._changed, self._follow, self._tasks)

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [task for _, task in self._live.values()]

    async def _follow(self) -> bool:
        """See what the registry has now of all that is served; whether it is what is served."""
        for name, number in list(self._live):
            try:
                await self._registry.resolve(name, version=number)
            except ModelError:  # deleted
                self._live.pop((name, number))[1].cancel()
        settled = True
        for name, before in list(self._champions.items()):
            try:
                found = await self._registry.resolve(name)
            except ModelError:
                del self._champions[name]
                continue
            if found == before:
                continue
            try:
                await self._loaded(found)
            except ModelError as error:
                if self._refused.get(name) != found:
                    _log.error("%s: version %d goes on: %s", name, before.version, error, extra={"action": "refused"})
                self._refused[name], settled = found, False
            else:
                self._champions[name] = found
                _log.info("%s: version %d is live", name, found.version, extra={"action": "model_live"})
        return settled

    async def _loaded(self, version: ModelVersion) -> LiveVersion:
        key = version.name, version.version
        if key not in self._live:
            try:
                async with self._loading:
                    live = LiveVersion(await self._models.of(version), self._most)
            except HazelcastError as error:
                raise GridError(f"The cluster does not answer: {error}", "Ask again.") from error
            if key not in self._live:  # another request may have been faster
                self._live[key] = live, asyncio.create_task(live.run(), name=f"serve {version}")
        self._live[key] = self._live.pop(key)
        idle = [each for each, (live, _) in self._live.items() if live.is_idle and each != key]
        for each in idle[: max(0, len(self._live) - MAX_LOADED)]:
            self._live.pop(each)[1].cancel()
        return self._live[key][0]
