"""The story of the demo, from nothing to a report: cluster, data, model, job, replay, checks, plot."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hazelcast.errors import HazelcastError

from gridscore.client import Client
from gridscore.errors import GridError, JobError, ModelError, UsageError
from gridscore.grid import GridSettings, connect
from gridscore.grid.member import Cluster, running_cluster
from gridscore.job import load_job
from gridscore.job.project import shipped
from gridscore.leash import LeashedProcess
from gridscore.operations.status import job_status
from gridscore.proving.demo.dataset import LATE_MINUTES, events, load_flights, require_extras
from gridscore.proving.demo.plot import save_plot
from gridscore.proving.demo.replay import STALLED_SECONDS, Replay
from gridscore.proving.demo.report import Report, check_results, judge, latency_percentiles
from gridscore.proving.demo.signals import interruptible, interruptible_task, undisturbed
from gridscore.proving.demo.stage import clear_stage, put_lookups, ring_per_partition, until_scoring, written_results
from gridscore.proving.demo.training import lookups_for, trained_model
from gridscore.proving.demo.view import LiveView, Step
from gridscore.texts import count_text

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    import pandas as pd
    from rich.console import Console

    from gridscore.grid import Grid
    from gridscore.job import Job
    from gridscore.models import ModelVersion
    from gridscore.proving.demo.dataset import Flights
    from gridscore.proving.demo.training import TrainedModel

EXAMPLE = "flights"
WORKER_COMMAND = ("gridscore.cli", "worker")

_LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class DemoOptions:
    """What one can choose."""

    output: Path  # folder of the plot, the report and the worker's log
    settings: GridSettings | None = None  # where a cluster is that already runs; None: start one
    rate: float = 5000.0  # events per second; 0: as fast as they are scored
    flights: int | None = None  # how many; None: all after the months of training
    members: int = 1  # of the cluster that is started
    heap: str = "2g"  # of each of them
    keep_running: bool = False  # leave cluster and worker running when the report is there, until Ctrl-C


@dataclass(frozen=True)
class _Outcome:
    """What the live part leaves for the report."""

    replay: Replay
    version: ModelVersion
    written: dict[str, tuple[float, int]]
    map_size: int
    dead_letters: int
    lost: int


def run_demo(
    options: DemoOptions,  # what was chosen
    console: Console,  # where to tell it
    run: Callable[[Coroutine[Any, Any, Any]], Any],  # what runs a coroutine, as `asyncio.run` does
    # Given the report, and where the cluster is, before one that is kept running waits for its end.
    on_report: Callable[[Report, GridSettings], None],
) -> Report:
    """Tell the whole story; whatever way it ends, no process of it is left.

    Raises UsageError if the packages of the extra are missing; GridscoreError if a step failed; KeyboardInterrupt:
    Ctrl-C, or another signal to end.
    """
    require_extras()
    stack = ExitStack()
    try:
        with interruptible():
            story = _Story(options, console, stack)
            report, settings = story.tell(run)
            on_report(report, settings)
            if options.keep_running:
                story.wait()
            return report
    except asyncio.CancelledError:  # how a signal other than Ctrl-C ends an event loop
        raise KeyboardInterrupt from None
    finally:
        with undisturbed():
            stack.close()


class _Story:
    def __init__(self, options: DemoOptions, console: Console, stack: ExitStack) -> None:
        self._options, self._console, self._stack = options, console, stack
        self._cluster: Cluster | None = None
        self._worker: LeashedProcess | None = None

    def tell(self, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> tuple[Report, GridSettings]:
        options, step = self._options, self._step
        folder = shipped(f"jobs/{EXAMPLE}", "job.yaml")
        job = load_job(folder / "job.yaml")
        _make_folder(options.output)
        with step("Starting a Hazelcast cluster") as at:
            settings = self._settings(at, run)
        with step("Reading the flights of 2013") as at:
            flights = load_flights()
            stream = flights.stream if options.flights is None else flights.stream.head(options.flights)
            at.done(
                f"{len(flights.frame):,} flights: {len(flights.training):,} to learn from, {len(stream):,} to replay"
            )
        with step("Training a model on the first three months, by the job file") as at:
            model = trained_model(job, folder, flights)
            how = "from the cache" if model.cached else "trained on January to March by the job file that will score"
            at.done(f"XGBoost model {how}, ROC AUC {model.metrics['auc']:.3f} on flights held out")
        outcome: _Outcome = run(self._live(settings, job, flights, stream, model))
        with step("Comparing every score with Booster.predict on the offline matrix") as at:
            report, scores = self._compare(job, flights, stream, model, outcome)
            if not report.problems:
                at.done(f"Every one of {len(stream):,} flights has one result, equal to Booster.predict to the bit")
        with step("Drawing the plot") as at:
            plot = options.output / f"{EXAMPLE}.png"
            save_plot(plot, report, scores, stream["arr_delay"].to_numpy(), outcome.replay.latency, LATE_MINUTES)
            report = replace(report, plot=str(plot))
            summary = options.output / f"{EXAMPLE}.json"
            summary.write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")
            at.done(f"Plot in {plot}, these figures in {summary}")
        return report, settings

    def wait(self) -> None:
        """Keep everything running until a signal, or until it ends by itself."""
        while True:
            self._alive()
            time.sleep(_LOOK_SECONDS)

    def _step(self, doing: str) -> Step:
        return Step(self._console, doing)

    # ------------------------------------------------------------------ cluster and worker

    def _settings(self, at: Step, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> GridSettings:
        options = self._options
        if options.settings is not None:
            run(_reach(options.settings))  # rather now than after the training
            at.done(f"Using the cluster `{options.settings.cluster_name}` at {', '.join(options.settings.members)}")
            return options.settings
        self._cluster = self._stack.enter_context(
            # Registered, so that other commands find what --keep-running leaves; but one that runs already stays so.
            Cluster.start(
                options.members, register=running_cluster() is None, heap=options.heap, on_progress=at.progress
            )
        )
        count = count_text(options.members, "member")
        at.done(f"Hazelcast {self._cluster.version} is up, {count} at {', '.join(self._cluster.addresses)}")
        return GridSettings.load(members=self._cluster.addresses, cluster_name=self._cluster.cluster_name)

    def _start_worker(self, settings: GridSettings, job: str) -> LeashedProcess:
        arguments = [*WORKER_COMMAND[1:], "--jobs", job, "--cluster-name", settings.cluster_name]
        for member in settings.members:
            arguments += ["--members", member]
        log = self._options.output / "worker.log"
        return self._stack.enter_context(LeashedProcess(WORKER_COMMAND[0], arguments, log))

    def _alive(self) -> None:
        """Raise if what must run does not."""
        if self._cluster is not None and not any(self._cluster.alive):
            raise self._cluster.death(0) or GridError("The cluster is gone.")
        if self._worker is not None and (code := self._worker.exit_code) is not None:
            raise JobError(
                f"The worker ended with code {code}. Its last lines:\n{self._worker.last_lines()}",
                f"Its log: {self._worker.log_file}",
            )

    # ------------------------------------------------------------------ live

    async def _live(
        self, settings: GridSettings, job: Job, flights: Flights, stream: pd.DataFrame, model: TrainedModel
    ) -> _Outcome:
        with interruptible_task():
            try:
                async with await connect(settings, name="gridscore-demo") as grid:
                    return await self._scored(grid, settings, job, flights, stream, model)
            except (GridError, HazelcastError) as error:
                self._alive()  # a cluster that has died is the cause, not what the connection makes of it
                if isinstance(error, GridError):
                    raise
                raise GridError(f"The cluster did not do what it was asked: {error}") from error

    async def _scored(
        self, grid: Grid, settings: GridSettings, job: Job, flights: Flights, stream: pd.DataFrame, model: TrainedModel
    ) -> _Outcome:
        step, client = self._step, Client(grid)
        with step("Putting planes, airports, airlines and weather into lookup maps") as at:
            await clear_stage(grid, job)
            count = await put_lookups(grid, job, lookups_for(job, flights))
            at.done(f"{count:,} planes, airports, airlines and hours of weather are in lookup maps")
        with step("Pushing the model to the registry in the grid") as at:
            version = await _push(client, job, model)
            at.done(f"Model `{version.name}` version {version.version} is in the registry, as its `{job.model.alias}`")
        with step(f"Submitting the job `{job.name}` and starting a worker") as at:
            await client.submit(job)
            self._worker = self._start_worker(settings, job.name)
            await until_scoring(grid, job.name, self._alive)
            at.done(f"Job `{job.name}` is RUNNING, in a worker of its own (process {self._worker.pid})")
        keys = stream["key"].tolist()
        replay = Replay(grid, job.events, job.results, keys, await ring_per_partition(grid, job.events))
        await self._watched(replay, job, stream)
        with step("Reading the result map") as at:
            written, size = await written_results(grid, job.results, keys)
            status = await job_status(grid, await client.jobs.get(job.name))
            at.done(f"{size:,} results are in the map `{job.results}`")
        totals = status.totals
        return _Outcome(replay, version, written, size, int(totals["dead_letters"]), int(totals["lost"]))

    async def _watched(self, replay: Replay, job: Job, stream: pd.DataFrame) -> None:
        rate = self._options.rate
        pace = f"{rate:,.0f} events a second" if rate else "full speed"
        title = f"[bold]{len(stream):,} flights at {pace}[/]"
        view = LiveView(self._console, replay, title, tuple(d.decision for d in job.decisions))
        # What lives from here on lives to the end: the collector need not look at it again while we measure.
        gc.collect()
        gc.freeze()
        showing = asyncio.create_task(view.show())
        try:
            await replay.run(events(stream), rate, self._alive)
        finally:
            showing.cancel()
            await asyncio.gather(showing, return_exceptions=True)
            gc.unfreeze()

    # ------------------------------------------------------------------ report

    def _compare(
        self, job: Job, flights: Flights, stream: pd.DataFrame, model: TrainedModel, outcome: _Outcome
    ) -> tuple[Report, Any]:
        import numpy as np
        import xgboost

        from gridscore.features import offline_matrix

        replay, version = outcome.replay, outcome.version
        booster = xgboost.Booster(model_file=str(model.path))
        matrix = offline_matrix(job, stream, lookups_for(job, flights), categories=version.learnt)
        names = list(matrix.names)
        expected = booster.predict(xgboost.DMatrix(matrix.values, feature_names=names))
        keys = stream["key"].tolist()
        check = check_results(
            keys,
            outcome.written,
            expected,
            replay.scores,
            map_size=outcome.map_size,
            repeated=replay.progress.repeated,
            version=version.version,
        )
        problems = check.problems
        if check.missing:
            problems.append(f"no result came for {STALLED_SECONDS:.0f} seconds, so the replay ended; see worker.log")
        if outcome.dead_letters:
            problems.append(f"{outcome.dead_letters:,} events are dead letters: gridscore dead-letters list {job.name}")
        if outcome.lost:
            problems.append(f"{outcome.lost:,} events were overwritten in the journal before they were read")
        scores = np.array([outcome.written.get(key, (float("nan"), 0))[0] for key in keys])
        delays = stream["arr_delay"].to_numpy()
        arrived = ~np.isnan(delays) & ~np.isnan(scores)
        report = Report(
            check=check,
            quality=judge(scores, delays, LATE_MINUTES) if arrived.any() else None,
            latency_ms=latency_percentiles(replay.latency),
            seconds=replay.progress.seconds,
            rate=self._options.rate,
            decisions={name: count for name, count in replay.progress.decisions.items() if name},
            model={"name": version.name, "version": version.version, "sha256": version.sha256, **model.metrics},
            dead_letters=outcome.dead_letters,
            lost=outcome.lost,
            waited_seconds=replay.progress.waited_seconds,
            problems=problems,
        )
        return report, scores


async def _reach(settings: GridSettings) -> None:
    await (await connect(settings)).close()


async def _push(client: Client, job: Job, model: TrainedModel) -> ModelVersion:
    """The model's version in the registry; a new one, unless the alias already leads to this very file."""
    sha256 = hashlib.sha256(model.path.read_bytes()).hexdigest()
    try:
        current = await client.models.resolve(job.model.name, alias=job.model.alias, version=job.model.version)
    except ModelError:
        current = None
    if current is not None and current.sha256 == sha256:
        return current
    return await client.push_model(model.path, job.model.name, alias=job.model.alias, metrics=model.metrics)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"The folder {folder} cannot be made: {error.strerror}.", "Name another with --output."
        ) from None
