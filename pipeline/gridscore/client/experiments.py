"""What the Python API does with experiments. Nothing is left behind of one that is over."""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import TYPE_CHECKING, Any

import msgspec

from gridscore.client.model_verbs import ModelVerbs
from gridscore.errors import ExpressionError, GridError, ModelError, UsageError
from gridscore.grid.map_configs import NewMapConfig, add_map_config
from gridscore.grid.records import Records
from gridscore.job.check import compile_keys
from gridscore.job.life import ENDED
from gridscore.job.parts import Window
from gridscore.models.experiment import (
    EXPERIMENTS_MAP,
    Experiment,
    Standing,
    counts_of,
    experiment_of,
    forget,
    shadow_map,
)
from gridscore.models.fit import check_fit
from gridscore.models.registry import whoami
from gridscore.texts import moment_text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from gridscore.grid import Grid

_log = logging.getLogger(__name__)

SHADOW_SECONDS = 7 * 86_400  # how long what a shadow has scored is kept, if nobody ends it before
_WAIT_SECONDS = 10.0
_GLANCE_SECONDS = 0.2


class ExperimentVerbs(ModelVerbs):
    """The verbs of a `Client` that are about experiments."""

    async def start_experiment(
        self,
        job: str,
        challenger: int | str,
        *,
        steps: Sequence[float] = (),
        every: float = 0.0,
        split: float | None = None,
        shadow: bool = False,
        key: str = "",
        max_errors: float | None = 0.01,
        max_us: float | None = None,
        max_psi: float | None = None,
        least: int = 500,
        allow_changed_features: bool = False,
        why: str = "",
    ) -> Experiment:
        """Let another version of a job's model score a part of the entities, or beside the champion.

        Args:
            challenger: The version, or an alias that points at it.
            steps: A canary: percent of the entities, ascending.
            every: Seconds after which it goes to the next step; 0: it stays at the first.
            split: An A/B test: percent of the entities, for good.
            shadow: The challenger scores every event, and answers none.
            key: Expression over event fields that tells entities apart; default: the event's key.
            max_errors: Part of its events without a score, beyond the champion's part, that ends it.
            max_us: CPU microseconds a row that end it.
            max_psi: Population stability index of its scores against the champion's that ends it.
            least: Events of the challenger before it is judged, and in each step.
            allow_changed_features: Accept features that training has defined otherwise.
            why: The reason, for the log of the model.

        Raises:
            JobError: There is no such job.
            ModelError: There is no such version, or it is not for the features of the job.
            UsageError: The job has an experiment already, or there can be none as this.
        """
        if (bool(steps), split is not None, shadow).count(True) != 1:
            raise UsageError("Say what it is: a canary in steps, a split, or a shadow.", "Give exactly one of them.")
        if every and len(steps) < 2:
            raise UsageError("Only a canary of several steps goes on by itself.", "Give more steps, or no time.")
        record = await self.jobs.get(job)
        model, result = record.job.model, record.job.result
        if record.state in ENDED:
            raise UsageError(f"The job `{job}` is {record.state}: nothing is scored for it.", "Submit it first.")
        if "variant" in result.include:
            raise UsageError(
                f"Results of `{job}` repeat an event field `variant`, and experiments call so who made a result.",
                "Give the field another name in the job file: `kind_of: {type: string, json: variant}`.",
            )
        version = await self.models.chosen(model, str(challenger))
        champion = await self.version_of(record.job, record.release)
        if version.version == champion.version:
            raise UsageError(f"Version {version.version} of the model `{model.name}` is the champion already.")
        check_fit(record.job, version, allow_changed=allow_changed_features)
        if version.outputs != champion.outputs:
            raise ModelError(
                f"{version} gives {version.outputs} scores an event, the champion {champion.outputs}.",
                "`gridscore submit FILE --update --model MODEL` exchanges job and model together.",
            )
        try:
            if key:
                compile_keys(Window.model_validate(key), record.job.schema_)
        except (ExpressionError, ValueError) as error:
            said = error.message if isinstance(error, ExpressionError) else "it is empty"
            raise UsageError(f"--key: {said}.", "It is an expression over event fields.") from None
        try:
            made = msgspec.convert(
                {
                    "id": uuid.uuid4().hex[:12],
                    "job": job,
                    "submitted_at": record.submitted_at,
                    "model": model.name,
                    "version": version.version,
                    "kind": "shadow" if shadow else "canary" if steps else "split",
                    "key": key,
                    "steps": list(steps) if split is None else [split],
                    "every": every,
                    "since": moment_text(),
                    "by": whoami(),
                    "limits": {"errors": max_errors, "us_per_row": max_us, "psi": max_psi, "least": least},
                },
                Experiment,
            )
        except msgspec.ValidationError as error:
            raise UsageError(f"There can be no such experiment: {error}.", "Shares are percent: 0.01 to 100.") from None
        self.models.entry("experiment start", why=why)  # refuses a reason that is too long
        if shadow:
            await _prepare(self.grid, shadow_map(record.job.results))

        def change(current: dict[str, Any] | None) -> dict[str, Any]:
            if current is not None and current.get("submitted_at") == record.submitted_at:
                raise UsageError(
                    f"The job `{job}` has an experiment already, with version {current.get('version')}.",
                    f"Clear it away first: `gridscore experiment stop {job}`.",
                )
            return made.to_json()

        await Records(self.grid, EXPERIMENTS_MAP).update(job, change)
        await self.models.note(model.name, "experiment start", version=version.version, why=why)
        return made

    async def experiment(self, job: str) -> Standing:
        """How the experiment of a job stands.

        Raises:
            JobError: There is no such job.
            UsageError: It has no experiment.
        """
        found = await experiment_of(self.grid, await self.jobs.get(job))
        if found is None:
            raise UsageError(f"The job `{job}` has no experiment.", f"`gridscore experiment start {job}` begins one.")
        return Standing(found, await counts_of(self.grid, found))

    async def stop_experiment(self, job: str, *, why: str = "") -> Standing:
        """End an experiment, and remove all of it, what a shadow has scored included; returns how it stood.

        If it is interrupted, the same again does the rest.

        Raises:
            JobError: There is no such job.
            UsageError: It has no experiment.
        """
        return await self._stop(job, why, "experiment stop")

    async def promote_experiment(
        self, job: str, *, allow_changed_features: bool = False, why: str = "", override: str = ""
    ) -> Standing:
        """Make the challenger the champion, as `promote_model`, wait for the workers, and end the experiment.

        Raises:
            GateError: It has not passed the gates of a job that follows the alias.
            ModelError: It is not for the features of such a job.
            UsageError: There is no experiment, it has ended, or the job names a fixed version.
        """
        from gridscore.operations.rollout import rollout

        found = (await self.experiment(job)).experiment
        alias = (await self.jobs.get(job)).job.model.alias
        if found.state == "ended":
            raise UsageError(
                f"The experiment has ended: {found.why}",
                f"Stop it: `gridscore experiment stop {job}`. `gridscore model promote` still promotes the version.",
            )
        if alias is None:
            raise UsageError(
                f"The job `{job}` names a fixed version of its model: there is no alias to move.",
                f"Name version {found.version} in the job file, submit it with --update, and stop the experiment.",
            )
        allowed = {"allow_changed_features": allow_changed_features, "why": why, "override": override}
        await self.promote_model(found.model, found.version, alias, **allowed)  # type: ignore[arg-type]

        async def is_live() -> bool:
            return all(worker.state == "live" for worker in (await rollout(self.grid, job)).workers)

        await _until(self.grid, is_live)  # so that nobody who was the challenger's is the old champion's again
        return await self._stop(job, why, "experiment promote")

    async def _stop(self, job: str, why: str, action: str) -> Standing:
        from gridscore.operations.status import Observer

        grid, found = self.grid, (await self.experiment(job)).experiment
        self.models.entry(action, why=why)  # refuses a reason that is too long

        def ended(current: dict[str, Any] | None) -> dict[str, Any]:
            if current is None:
                raise UsageError(f"Somebody else has stopped the experiment of the job `{job}`.")
            return current if current["state"] == "ended" else {**current, "state": "ended", "why": why or "stopped"}

        await Records(grid, EXPERIMENTS_MAP).update(job, ended)
        observer = Observer(grid, job)

        async def is_quiet() -> bool:
            workers = (await observer.look()).workers
            return all(each.jobs[job].experiment != found.id for each in workers if job in each.jobs)

        await _until(grid, is_quiet)
        last = await self.experiment(job)
        await self.models.note(found.model, action, version=found.version, why=why)
        await forget(grid, job, (await self.jobs.get(job)).job.results)
        return last


async def _prepare(grid: Grid, name: str) -> None:
    try:
        await add_map_config(grid, NewMapConfig(name, seconds=SHADOW_SECONDS))
    except GridError as error:
        _log.warning("What the shadow scores stays until the experiment is stopped: %s", error)
    await grid.map(name)


async def _until(grid: Grid, look: Callable[[], Awaitable[bool]]) -> None:
    """Wait until it is so, but not for a worker that does not answer: it sees what has changed when it goes on."""
    over = grid.clock() + _WAIT_SECONDS
    while not await look() and grid.clock() < over:  # noqa: ASYNC110 -- nobody tells of it
        await asyncio.sleep(_GLANCE_SECONDS)
