"""The model that a job scores with, and its exchange for a newer version off the hot path.

A version is fetched, checked, loaded and warmed in a thread while the old one goes on scoring; then model and features
are exchanged together, between two batches. If a version cannot be loaded, or does not fit the job's features, only the
statistics and the log change: they say why.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import msgspec
from hazelcast.errors import HazelcastError

from gridscore.errors import FunctionError, GridscoreError, ModelError
from gridscore.features import FeaturePlan
from gridscore.grid.watches import READ_ANYWAY_SECONDS, wait_for
from gridscore.job import Jobs
from gridscore.models import LoadedModel, Registry, check_fit
from gridscore.models.fit import fit_warnings
from gridscore.scoring.drift import Sketch
from gridscore.scoring.trial import ActiveModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gridscore.features import LookupTable
    from gridscore.features.function_process import FunctionProcess
    from gridscore.grid import Grid
    from gridscore.job import JobRecord
    from gridscore.models import ModelVersion
    from gridscore.scoring.stats import JobStats
    from gridscore.scoring.trial import Trial

_log = logging.getLogger(__name__)

# First pause between two attempts to load a model. (A promotion is announced: it does not wait for this.)
POLL_SECONDS = 1.0

_RETRY_SECONDS = 10.0


class LiveModel:
    """Keeps `active` at the version that the job's model reference means.

    `stats`: where to say what went wrong; `models`: those that the jobs of the process share; default: its own;
    `functions`: of the job's features, if it has any: no version is live before they can be called.
    """

    def __init__(
        self,
        grid: Grid,
        record: JobRecord,
        tables: Mapping[str, LookupTable],
        stats: JobStats,
        models: LoadedModels | None = None,
        functions: FunctionProcess | None = None,
    ) -> None:
        self._registry = Registry(grid)
        self._models = models or LoadedModels(grid)
        self._functions = functions
        self._jobs = Jobs(grid)
        self._record = record
        self._job = record.job
        self._release = record.release
        self._tables, self._stats = tables, stats
        self._changed = asyncio.Event()
        self._stop_watching: Any = None
        self._refused: int = 0
        self._refusal = ""
        self.active: ActiveModel

    async def start(self) -> None:
        """Load the version that is meant now; while that fails, say so and try again.

        The job does not fail: it may be this worker's own trouble, and others may score with the version.
        """
        self._stop_watching = await self._registry.watch(self._changed.set)
        told, pause = "", POLL_SECONDS
        while True:
            self._changed.clear()
            try:
                if self._functions is not None:
                    await self._functions.start()
                self._stats.function_error = ""
                self.active = await self.load(await self._resolve())
                if await self._is_current():
                    break
                # It may be the model of the next revision, which this worker is about to begin.
            except GridscoreError as error:
                what, action = "the model cannot be loaded", "model_missing"
                if isinstance(error, FunctionError):
                    what, action = "its Python functions cannot be called", "functions_missing"
                    self._stats.function_error = str(error)
                else:
                    self._stats.model_error = str(error)
                if str(error) != told:
                    text = "%s: %s, so no partition is taken; it will be tried again: %s"
                    _log.error(text, self._job.name, what, error, extra={"action": action})
                told = str(error)
            if not await wait_for(self._changed, pause):
                pause = min(2 * pause, _RETRY_SECONDS)  # it costs much to load a large model again and again
        version = self.active.model.version
        self._stats.version, self._stats.model_error = version.version, ""
        _log.info(
            "%s: revision %d scores with version %d of `%s`",
            self._job.name,
            self._record.revision,
            version.version,
            version.name,
            extra={"action": "model_live"},
        )

    async def follow(self) -> None:
        """Exchange the model whenever another version is meant, until cancelled."""
        told = ""
        while True:
            soon = told or self._stats.model_error or self._release is not None
            await wait_for(self._changed, POLL_SECONDS if soon else READ_ANYWAY_SECONDS)
            self._changed.clear()
            try:
                await self._exchange()
            except (GridscoreError, HazelcastError) as error:
                # `_exchange` deals with a version that cannot be used; here the registry did not answer, or has none.
                if str(error) != told:
                    _log.warning("%s: the model could not be looked up: %s", self._job.name, error)
                told = str(error)
                if isinstance(error, GridscoreError):
                    self._stats.model_error = told
            else:
                told = ""

    def attempt(self, trial: Trial | None) -> None:
        """Score with an experiment from the next batch on, or without one."""
        self.active = replace(self.active, trial=trial)

    async def close(self) -> None:
        """Stop watching the registry."""
        if self._stop_watching is not None:
            stop, self._stop_watching = self._stop_watching, None
            try:
                await stop()
            except HazelcastError:
                _log.debug("the model listener could not be removed", exc_info=True)

    async def _exchange(self) -> None:
        if self._release is not None and self._job.model.alias is not None:
            if not await self._is_current():
                return  # the next revision says what becomes of its release
            await self._registry.complete(self._job.model.name, self._job.model.alias, self._release)
            self._release = None  # from now on the alias decides
        version = await self._resolve()
        if version.version == self.active.model.version.version:
            self._refused, self._stats.model_error = 0, ""
            return
        if version.version == self._refused:
            self._stats.model_error = self._refusal
            return
        try:
            fresh = await self.load(version)
        except GridscoreError as error:
            self._refused, self._refusal = version.version, f"version {version.version}: {error}"
            self._stats.model_error = self._refusal
            _log.error(
                "%s: version %d of `%s` is not used, version %d goes on: %s",
                self._job.name,
                version.version,
                version.name,
                self.active.model.version.version,
                error,
                extra={"action": "model_refused"},
            )
            return
        if not await self._is_current():
            return  # it may have been promoted for the next revision, which this worker is about to begin
        self.active = replace(fresh, trial=self.active.trial)
        self._stats.version = version.version
        self._refused, self._stats.model_error = 0, ""
        _log.info(
            "%s: version %d of `%s` is live",
            self._job.name,
            version.version,
            version.name,
            extra={"action": "model_live"},
        )

    def watched(self) -> list[tuple[Sketch | None, int]]:
        """What counts the drift of each version that scores now, and its number: the champion, then challengers."""
        trial = self.active.trial
        all_ = [self.active, *(each for each in (trial.challengers if trial is not None else ()) if each is not None)]
        return [(each.sketch, each.model.version.version) for each in all_]

    async def _is_current(self) -> bool:
        """Whether the job is still at the revision that this worker scores for.

        A job without a record has no next one: it was removed, which ends this runner, or is that of a benchmark.
        """
        current = await self._jobs.find(self._job.name)
        return current is None or current.is_same_run(self._record)

    async def _resolve(self) -> ModelVersion:
        model = self._job.model
        return await self._registry.resolve(model.name, alias=model.alias, version=model.version, release=self._release)

    async def load(self, version: ModelVersion) -> ActiveModel:
        """Fetch, check and warm a version. Raises GridscoreError if it cannot be used."""
        try:
            return await self._loaded(version)
        except (GridscoreError, HazelcastError):
            raise
        except Exception as error:
            _log.debug("%s: loading version %d failed", self._job.name, version.version, exc_info=True)
            raise ModelError(
                f"{version} cannot be loaded here: {type(error).__name__}: {error}",
                "If other workers score with it, look at this one: its memory, its version of XGBoost.",
            ) from error

    async def _loaded(self, version: ModelVersion) -> ActiveModel:
        check_fit(self._job, version, allow_changed=True)  # the promotion warned of it, and allowed it
        for warning in fit_warnings({self._job.name: self._job}, version):
            _log.info("%s: %s", self._job.name, warning, extra={"action": "changed_features"})
        model = await self._models.of(version)
        plan = FeaturePlan(self._job, self._tables, version.learnt)
        baseline = version.baseline if self._job.drift is not None else None
        return ActiveModel(model, plan, None if baseline is None else Sketch(version, baseline, plan.quality))


class LoadedModels:
    """The models of one process; each is kept as long as somebody scores with it. All predict in one thread."""

    def __init__(self, grid: Grid) -> None:
        self._registry = Registry(grid)
        self._models: WeakValueDictionary[bytes, LoadedModel] = WeakValueDictionary()
        self._loading: dict[bytes, asyncio.Task[LoadedModel]] = {}

    async def of(self, version: ModelVersion) -> LoadedModel:
        """The model of a version: the first call fetches, checks and proves it, while the others wait.

        Raises ModelError if it cannot be used. The next call fetches it again.
        """
        key = msgspec.json.encode(version)  # all that it is loaded with, the hash of its bytes included
        if (model := self._models.get(key)) is not None:
            return model
        if key not in self._loading:
            self._loading[key] = asyncio.create_task(self._load(key, version))
        return await asyncio.shield(self._loading[key])

    async def _load(self, key: bytes, version: ModelVersion) -> LoadedModel:
        try:
            model = self._models[key] = await self._registry.load(version)
            return model
        finally:
            del self._loading[key]
