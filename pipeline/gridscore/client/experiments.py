"""What the Python API does with experiments. Nothing is left behind of one that is over."""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import TYPE_CHECKING, Any

import msgspec
from pydantic import ValidationError

from gridscore.client.model_verbs import ModelVerbs
from gridscore.errors import ExpressionError, GridError, ModelError, UsageError
from gridscore.grid.map_configs import NewMapConfig, add_map_config
from gridscore.grid.records import Record, Records
from gridscore.job.check import compile_keys
from gridscore.job.life import ENDED
from gridscore.job.monitoring import Experiment as Asked
from gridscore.job.parts import Window
from gridscore.models.experiment import (
    ALERTS,
    EXPERIMENTS_MAP,
    Challenger,
    Experiment,
    Standing,
    counts_of,
    end_alerts,
    experiment_in,
    experiment_of,
    forget,
    shadow_map,
)
from gridscore.models.fit import check_fit
from gridscore.models.registry import whoami
from gridscore.texts import moment_text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from gridscore.grid import Grid
    from gridscore.job import Job

_log = logging.getLogger(__name__)

SHADOW_SECONDS = 7 * 86_400  # how long what a shadow has scored is kept, if nobody ends it before
_WAIT_SECONDS = 10.0
_GLANCE_SECONDS = 0.2


class ExperimentVerbs(ModelVerbs):
    """The verbs of a `Client` that are about experiments."""

    async def start_experiment(
        self,
        job: str,
        *challengers: int | str,
        steps: Sequence[float] | None = None,
        every: float | None = None,
        split: float | None = None,
        shadow: bool | None = None,
        key: str | None = None,
        max_errors: float | None = None,
        max_us: float | None = None,
        max_psi: float | None = None,
        least: int | None = None,
        outcomes: Sequence[Mapping[str, Any]] | None = None,
        least_labels: int | None = None,
        allow_changed_features: bool = False,
        why: str = "",
        wait: bool = False,
    ) -> Experiment:
        """Let other versions of a job's model score a part of the entities, or beside the champion.

        What is not given is as `experiment` in the job file says.

        Args:
            challengers: Versions, or aliases that point at them; four at most, and one of a canary.
            steps: A canary: percent of the entities, ascending.
            every: Seconds after which it goes to the next step; 0: it stays at the first.
            split: An A/B test: percent of the entities for each challenger, for good.
            shadow: The challengers score every event, and answer none.
            key: Expression over event fields that tells entities apart; default: the event's key.
            max_errors: Part of its events without a score, beyond the champion's part, that ends it.
            max_us: CPU microseconds a row that end it.
            max_psi: Population stability index of its scores against the champion's that ends it.
            least: Events of the challenger before it is judged, and in each step.
            outcomes: Bounds of what labels say that end it, as `{"name": "auc", "at_least": 0.8}`.
            least_labels: Labels of the challenger before these are judged, and in each step.
            allow_changed_features: Accept features that training has defined otherwise.
            why: The reason, for the log of the model.
            wait: Wait until all workers take part, ten seconds at most.

        Raises:
            JobError: There is no such job.
            ModelError: There is no such version, or it is not for the features of the job.
            UsageError: The job has an experiment already, or there can be none as this.
        """
        record = await self.jobs.get(job)
        model, result = record.job.model, record.job.result
        if record.state in ENDED:
            raise UsageError(f"The job `{job}` is {record.state}: nothing is scored for it.", "Submit it first.")
        given = {
            "steps": steps and tuple(steps),
            "split": split,
            "shadow": shadow or None,
            "key": key,
            "max_errors": max_errors,
            "max_us": max_us,
            "max_psi": max_psi,
            "least": least,
            "outcomes": outcomes,
            "least_labels": least_labels,
        }
        asked, seconds = _asked(record.job, {name: value for name, value in given.items() if value is not None}, every)
        if "variant" in result.include:
            raise UsageError(
                f"Results of `{job}` repeat an event field `variant`, and experiments call so who made a result.",
                "Give the field another name in the job file: `kind_of: {type: string, json: variant}`.",
            )
        if not challengers:
            raise UsageError("No version was named that is to be tried.")
        versions = [await self.models.chosen(model, str(each)) for each in challengers]
        champion = await self.version_of(record.job, record.release)
        for version in versions:
            if version.version == champion.version:
                raise UsageError(f"Version {version.version} of the model `{model.name}` is the champion already.")
            check_fit(record.job, version, allow_changed=allow_changed_features)
            if version.outputs != champion.outputs:
                raise ModelError(
                    f"{version} gives {version.outputs} scores an event, the champion {champion.outputs}.",
                    "`gridscore submit FILE --update --model MODEL` exchanges job and model together.",
                )
            if asked.labels_needed and (version.outputs or 1) > 1:
                raise UsageError(f"Labels are compared with one score an event; {version} gives {version.outputs}.")
        try:
            if asked.key:
                compile_keys(Window.model_validate(asked.key), record.job.schema_)
        except (ExpressionError, ValueError) as error:
            said = error.message if isinstance(error, ExpressionError) else "it is empty"
            raise UsageError(f"--key: {said}.", "It is an expression over event fields.") from None
        now = moment_text()
        try:
            made = msgspec.convert(
                {
                    "id": uuid.uuid4().hex[:12],
                    "job": job,
                    "submitted_at": record.submitted_at,
                    "model": model.name,
                    "challengers": [{"version": version.version} for version in versions],
                    "kind": "shadow" if asked.shadow else "canary" if asked.steps else "split",
                    "key": asked.key,
                    "steps": list(asked.steps) if asked.split is None else [asked.split],
                    "every": seconds,
                    "since": now,
                    "begun": now,
                    "by": whoami(),
                    "limits": {
                        "errors": asked.max_errors,
                        "us_per_row": asked.max_us,
                        "psi": asked.max_psi,
                        "least": asked.least,
                        "outcomes": [each.model_dump(exclude_none=True) for each in asked.outcomes],
                        "least_labels": asked.labels_needed,
                    },
                },
                Experiment,
            )
        except msgspec.ValidationError as error:
            raise UsageError(f"There can be no such experiment: {error}.", "Shares are percent: 0.01 to 100.") from None
        self.models.entry("experiment start", why=why)  # refuses a reason that is too long
        for name, _ in made.named if asked.shadow else ():
            await _prepare(self.grid, shadow_map(record.job.results, name))

        def change(current: dict[str, Any] | None) -> dict[str, Any]:
            if current is not None and current.get("submitted_at") == record.submitted_at:
                raise UsageError(
                    f"The job `{job}` has an experiment already, with version {current.get('version')}.",
                    f"Clear it away first: `gridscore experiment stop {job}`.",
                )
            return made.to_json()

        await Records(self.grid, EXPERIMENTS_MAP).update(job, change)
        for version in versions:
            await self.models.note(model.name, "experiment start", version=version.version, why=why)
        if wait:
            await _until(self.grid, lambda: self._all_take_part(made))
        return made

    async def _all_take_part(self, found: Experiment) -> bool:
        from gridscore.operations.status import Observer

        workers = (await Observer(self.grid, found.job).look()).workers
        parts = [each.jobs[found.job].experiment for each in workers if found.job in each.jobs]
        counts = await counts_of(self.grid, found)
        are_loaded = counts.variants and not any(counts.of(name).error for name, _ in found.named)
        return not parts or bool(are_loaded and set(parts) == {found.id})

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

    async def stop_experiment(
        self, job: str, *, version: int | None = None, experiment: str | None = None, why: str = ""
    ) -> Standing:
        """End an experiment, and remove all of it, what a shadow has scored included; returns how it stood.

        If it is interrupted, the same again does the rest.

        Args:
            version: Of several challengers, end only this one: the champion scores its entities, the others go on.
            experiment: The ID of the one that is meant, so that none which has begun since is stopped unseen.

        Raises:
            JobError: There is no such job.
            ModelError: It has another experiment by now.
            UsageError: It has no experiment, or no such challenger.
        """
        found = await self._meant(job, experiment)
        if version is None:
            return await self._stop(found, why, "experiment stop")
        _challenger(found, version)
        self.models.entry("experiment stop", why=why)  # refuses a reason that is too long
        has_ended = False

        def ended(current: dict[str, Any] | None) -> dict[str, Any]:
            nonlocal has_ended
            now = _same(job, found, current)
            number = now.challengers.index(_challenger(now, version))
            if has_ended := now.challengers[number].state == "ended":
                return now.to_json()
            return now.ended(number, why or "stopped", moment_text(), told=True).to_json()

        await Records(self.grid, EXPERIMENTS_MAP).update(job, ended)
        if not has_ended:
            await self.models.note(found.model, "experiment stop", version=version, why=why)
        return await self.experiment(job)

    async def promote_experiment(
        self,
        job: str,
        *,
        version: int | None = None,
        experiment: str | None = None,
        allow_changed_features: bool = False,
        why: str = "",
        override: str = "",
    ) -> Standing:
        """Make a challenger the champion, as `promote_model`, wait for the workers, and end the experiment.

        Args:
            version: Which, if there are several.
            experiment: As of `stop_experiment`.

        Raises:
            GateError: It has not passed the gates of a job that follows the alias.
            ModelError: It is not for the features of such a job, or the job has another experiment by now.
            UsageError: There is no experiment, it has ended, or the job names a fixed version.
        """
        from gridscore.operations.rollout import rollout

        found = await self._meant(job, experiment)
        alias = (await self.jobs.get(job)).job.model.alias
        if version is None and len(found.challengers) > 1:
            raise UsageError(f"There are several challengers: {found.versions}.", "Say which: `--version 2`.")
        chosen = found.challengers[0] if version is None else _challenger(found, version)
        if chosen.state == "ended":
            raise UsageError(
                f"The experiment has ended: {chosen.why}",
                f"Stop it: `gridscore experiment stop {job}`. `gridscore model promote` still promotes the version.",
            )
        if alias is None:
            raise UsageError(
                f"The job `{job}` names a fixed version of its model: there is no alias to move.",
                f"Name version {chosen.version} in the job file, submit it with --update, and stop the experiment.",
            )
        allowed = {"allow_changed_features": allow_changed_features, "why": why, "override": override}
        await self.promote_model(found.model, chosen.version, alias, **allowed)  # type: ignore[arg-type]

        async def is_live() -> bool:
            return all(worker.state == "live" for worker in (await rollout(self.grid, job)).workers)

        await _until(self.grid, is_live)  # so that nobody who was the challenger's is the old champion's again
        return await self._stop(found, why, "experiment promote", chosen.version)

    async def _meant(self, job: str, experiment: str | None) -> Experiment:
        found = (await self.experiment(job)).experiment
        if experiment not in (None, found.id):
            raise ModelError(
                f"The job `{job}` has another experiment by now, with {found.versions}: it goes on.",
                f"`gridscore experiment status {job}` shows it.",
            )
        return found

    async def _stop(self, found: Experiment, why: str, action: str, promoted: int | None = None) -> Standing:
        from gridscore.operations.status import Observer

        grid, job = self.grid, found.job
        self.models.entry(action, why=why)  # refuses a reason that is too long

        def ended(current: dict[str, Any] | None) -> dict[str, Any]:
            now = _same(job, found, current)
            for number, each in enumerate(now.challengers):
                if each.state == "running":
                    now = now.ended(number, why or "stopped", moment_text(), told=True)
            return now.to_json()

        await Records(grid, EXPERIMENTS_MAP).update(job, ended)
        observer = Observer(grid, job)

        async def is_quiet() -> bool:
            workers = (await observer.look()).workers
            return all(each.jobs[job].experiment != found.id for each in workers if job in each.jobs)

        await _until(grid, is_quiet)
        last, record = await self.experiment(job), await self.jobs.get(job)
        await end_alerts(grid, record.job, last.experiment, *ALERTS)
        for each in last.experiment.challengers:
            if promoted in (None, each.version):
                await self.models.note(found.model, action, version=each.version, why=why)
        await forget(grid, job, record.job.results)
        # Put since by a worker, which had not seen that it is over.
        await end_alerts(grid, record.job, last.experiment, *ALERTS)
        return last


def _asked(job: Job, given: dict[str, Any], every: float | None) -> tuple[Asked, float]:
    """What is asked for, by the job file where nothing was given; and the seconds of a step.

    Raises:
        UsageError: There can be no such experiment.
    """
    file = job.experiment
    base, seconds = file.model_dump(exclude={"every"}), file.every_seconds if every is None else every
    if given.keys() & {"steps", "split", "shadow"}:
        base |= {"steps": (), "split": None, "shadow": False}
        seconds = every or 0.0
    try:
        asked = Asked.model_validate({**base, **given})
    except ValidationError as error:
        first = error.errors()[0]
        where, said = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        raise UsageError(f"There can be no such experiment: {where + ': ' if where else ''}{said}.") from None
    try:
        job.check_outcomes(asked)
    except ValueError as error:
        raise UsageError(f"There can be no such experiment: {error}.", "The job file says so.") from None
    if not (asked.steps or asked.split is not None or asked.shadow):
        raise UsageError("Say what it is: a canary in steps, a split, or a shadow.", "Give exactly one of them.")
    if seconds and len(asked.steps) < 2:
        raise UsageError("Only a canary of several steps goes on by itself.", "Give more steps, or no time.")
    return asked, seconds


def _challenger(found: Experiment, version: int) -> Challenger:
    for each in found.challengers:
        if each.version == version:
            return each
    raise UsageError(f"Version {version} is not a challenger of the job `{found.job}`: these are {found.versions}.")


def _same(job: str, found: Experiment, current: dict[str, Any] | None) -> Experiment:
    """The experiment as it is now.

    Raises:
        UsageError: Somebody has stopped it.
    """
    now = None if current is None else experiment_in(Record(job, current, ""))
    if now is None or now.id != found.id:
        raise UsageError(f"Somebody else has stopped the experiment of the job `{job}`.")
    return now


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
