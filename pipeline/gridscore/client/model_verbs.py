"""What the Python API does with models: push, promote, undo, compare, and take them to other clusters."""

from __future__ import annotations

import asyncio
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gridscore.client.gates import Gates
from gridscore.client.notebook import told_progress
from gridscore.errors import GridscoreError, ModelError
from gridscore.grid.records import Records
from gridscore.job.life import ENDED, OVER
from gridscore.models.experiment import EXPERIMENTS_MAP, experiment_in
from gridscore.models.fit import check_jobs
from gridscore.models.record import About
from gridscore.models.version import early_stopping
from gridscore.scoring.recent import latest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gridscore.grid import Grid
    from gridscore.job import Job, Jobs
    from gridscore.job.release import Release
    from gridscore.models import Added, ModelVersion, Registry
    from gridscore.models.comparison import Comparison
    from gridscore.models.gates import Verdict
    from gridscore.models.sample import Rows

_EVENTS = 10_000
_GLANCE_SECONDS = 0.2


class ModelVerbs:
    """The verbs of a `Client` that are about models."""

    grid: Grid
    jobs: Jobs

    @property
    def models(self) -> Registry:
        """The model registry."""
        from gridscore.models import Registry

        return Registry(self.grid)

    async def push_model(
        self,
        model: Any,
        name: str,
        *,
        alias: str | None = None,
        metrics: Mapping[str, float] | None = None,
        description: str | None = None,
        tags: Mapping[str, str] | None = None,
        allow_changed_features: bool = False,
        why: str = "",
        override: str = "",
        progress: bool | None = None,
    ) -> ModelVersion:
        """Put a model into the registry as its next version.

        Args:
            model: An XGBoost `Booster`, an estimator such as `XGBClassifier`, or the path of a model saved as JSON or
                UBJ. All its rounds score, of an estimator those up to the best one; a warning says so if early
                stopping found an earlier one better.
            alias: Alias to point at the new version, such as `champion`.
            metrics: Measures of its quality.
            description: Of the version, for people.
            tags: To note of the version.
            allow_changed_features: Accept it for jobs that define features of these names otherwise than training did.
            why: The reason, for the log of the model.
            override: Why it goes live even if it does not pass the gates of a job; for the same log.
            progress: Whether to show a progress bar; by default in a notebook.

        Raises:
            GateError: With an alias, the version has not passed the gates of a submitted job that uses it.
            ModelError: It is not a model, or, with an alias, one that would not score as trained for a
                submitted job that uses it.
        """
        with told_progress(progress) as told:
            added = await self.add_model(
                model,
                name,
                alias=alias,
                metrics=metrics,
                description=description,
                tags=tags,
                allow_changed_features=allow_changed_features,
                why=why,
                override=override,
                progress=told,
            )
        if (text := early_stopping(added.version)) is not None:
            warnings.warn(text, stacklevel=2)
        return added.version

    async def add_model(
        self,
        model: Any,
        name: str,
        *,
        alias: str | None = None,
        allow_changed_features: bool = False,
        why: str = "",
        override: str = "",
        **options: Any,
    ) -> Added:
        """As `push_model`; takes what `Registry.add` takes as well, and tells whether the version is new."""
        models, approval = self.models, None
        jobs = await self.following(name, alias) if alias else {}
        checked = {key: options.pop(key) for key in ("metrics", "categories", "source") if key in options}
        candidate = await models.check(model, name, jobs=jobs, allow_changed=allow_changed_features, **checked)
        if alias is not None and (gates := self._gates(name, alias, jobs, override)):
            approval = await gates(candidate.model, await models.find(name, candidate))
        return await models.add(candidate, name, alias=alias, why=why, approval=approval, **options)

    async def promote_model(
        self,
        name: str,
        version: int,
        alias: str = "champion",
        *,
        points_at: int | None = None,
        allow_changed_features: bool = False,
        why: str = "",
        override: str = "",
    ) -> ModelVersion:
        """Point an alias at a version; live in every worker within a second.

        Args:
            points_at: Where the alias must point now (0: nowhere), so that nobody's move is undone unseen; again is no
                error.
            allow_changed_features: Accept it for jobs that define features of these names otherwise than training did.
            why: The reason, for the log of the model.
            override: Why it goes live even if it does not pass the gates of a job; for the same log.

        Raises:
            GateError: It has not passed the gates of a submitted job that uses the alias.
            ModelError: There is no such version, or it is not for the features of a submitted job that uses the alias.
        """
        models, approval = self.models, None
        jobs = await self.following(name, alias)
        found = await models.resolve(name, version=version)
        check_jobs(jobs, found, allow_changed=allow_changed_features)
        gates = self._gates(name, alias, jobs, override)
        if gates and (await models.aliases(name)).get(alias) != version:
            approval = await gates(await models.load(found), version)
        return await models.promote(
            name,
            version,
            alias,
            jobs=jobs,
            allow_changed=allow_changed_features,
            points_at=points_at,
            why=why,
            approval=approval,
        )

    async def wait_until_live(self, job: str, version: int | None = None, *, seconds: float = 60.0) -> None:
        """Wait until every worker of a job scores with the version that is meant to.

        Args:
            version: Which one that has to be; any if None.
            seconds: How long to wait.

        Raises:
            JobError: There is no such job.
            ModelError: Another version is meant to score; or it is not live in time, or there is no worker.
        """
        from gridscore.operations.rollout import rollout

        over = self.grid.clock() + seconds
        while not (found := await rollout(self.grid, job)).complete or version not in (None, found.version):
            if version not in (None, found.version):
                raise ModelError(
                    f"The job `{job}` scores with version {found.version} of the model `{found.model}`, not {version}.",
                    f"`gridscore model promote {found.model} --version {version}` makes it the champion.",
                )
            if self.grid.clock() >= over:
                behind = [f"{each.worker} is {each.state}" for each in found.workers if each.state != "live"]
                raise ModelError(
                    f"Version {found.version} of the model `{found.model}` is not live after {seconds:g} s: "
                    f"{', '.join(behind) or 'no worker scores'}.",
                    f"`gridscore model rollout {job}` shows why.",
                )
            await asyncio.sleep(_GLANCE_SECONDS)

    async def rollback_model(
        self,
        name: str,
        alias: str = "champion",
        *,
        points_at: int | None = None,
        allow_changed_features: bool = False,
        why: str = "",
    ) -> ModelVersion:
        """Point an alias where it pointed before; gates are not asked, as that version has been live.

        Args:
            points_at: Where the alias must point now, so that a rollback which is asked for twice is done once.

        Raises:
            ModelError: It never pointed elsewhere, or that version is not for a submitted job that uses the alias.
        """
        jobs = await self.following(name, alias)
        return await self.models.promote(
            name,
            alias=alias,
            previous=True,
            jobs=jobs,
            allow_changed=allow_changed_features,
            points_at=points_at,
            why=why,
        )

    async def check_model(self, name: str, version: int, alias: str = "champion") -> dict[str, list[Verdict]]:
        """What the gates of each job that follows the alias say of a version; nothing is changed.

        Raises:
            ModelError: There is no such version, or it is not for the features of these jobs.
        """
        jobs = await self.following(name, alias)
        found = await self.models.resolve(name, version=version)
        check_jobs(jobs, found)
        return await self._gates(name, alias, jobs, "").verdicts(await self.models.load(found), version)

    async def remove_alias(self, name: str, alias: str, *, why: str = "") -> None:
        """Remove an alias of a model.

        Raises:
            ModelError: There is no such alias, or a job follows it.
        """
        for record in await self.jobs.all():
            if record.state not in OVER and (record.job.model.name, record.job.model.alias) == (name, alias):
                raise ModelError(
                    f"The job `{record.name}` follows the alias `{alias}` of the model `{name}`.",
                    f"Update its job file, or cancel it first: `gridscore cancel {record.name}`.",
                )
        await self.models.remove_alias(name, alias, why=why)

    async def delete_model(self, name: str, version: int) -> None:
        """Delete a version that no alias points at, and no job uses.

        Raises:
            ModelError: There is no such version, or something uses it.
        """
        experiments = await Records(self.grid, EXPERIMENTS_MAP).read(experiment_in)
        for record in await self.jobs.all():
            model, release = record.job.model, record.release
            if record.state in ENDED or model.name != name:
                continue
            tried = experiments.get(record.name)
            versions = () if tried is None else [each.version for each in tried.challengers]
            if tried is not None and tried.submitted_at == record.submitted_at and version in versions:
                raise ModelError(
                    f"Version {version} of the model `{name}` is the challenger of the job `{record.name}`.",
                    f"End that first: `gridscore experiment stop {record.name}`.",
                )
            released = release is not None and release.version == version
            if model.version == version or (
                released and (await self.version_of(record.job, release)).version == version
            ):
                raise ModelError(
                    f"The job `{record.name}` scores with version {version} of the model `{name}`.",
                    f"Update its job file, or cancel it first: `gridscore cancel {record.name}`.",
                )
        await self.models.delete(name, version)

    async def compare_models(
        self, name: str, before: int, after: int, *, sample: Path | None = None, label: str | None = None, job: str = ""
    ) -> Comparison:
        """Two versions side by side, and how their scores differ on a sample or on the latest events.

        Args:
            sample: A matrix of `gridscore features` to score with both.
            label: A column that the matrix has kept, for metrics.
            job: Whose latest events are scored otherwise; default: those of the only job that uses the model, if there
                is one and it can score them.

        Raises:
            ModelError: There is no such version, it cannot be used here, or the rows are not for both.
            JobError: There is no such job.
            TableError: The sample cannot be read.
        """
        from gridscore.models.comparison import compare
        from gridscore.models.sample import Sample

        models = self.models
        old, new = [await models.load(await models.resolve(name, version=number)) for number in (before, after)]
        rows: Rows | None = None
        of = ""
        if sample is not None:
            rows, of = await asyncio.to_thread(Sample.from_parquet, sample, label), str(sample)
        elif job:
            record = await self.jobs.get(job)
            rows, of = await latest(self.grid, record.job, _EVENTS, old.version), f"the latest events of {job}"
        elif len(using := await self.following(name, None)) == 1:
            ((using_name, using_job),) = using.items()
            try:
                rows = await latest(self.grid, using_job, _EVENTS, old.version)
            except GridscoreError:
                rows = None  # what was not asked for need not be there
            of = f"the latest events of {using_name}"
        return await asyncio.to_thread(compare, old, new, rows, of)

    async def store_sample(self, name: str, matrix: Path | str, label: str) -> int:
        """Keep a labelled sample in the cluster, by which gates judge the versions of a model; returns its rows.

        Args:
            matrix: A matrix of `gridscore features`.
            label: The column of it that holds the labels: numbers.

        Raises:
            TableError: It cannot be read, or has no such column.
            ModelError: It is too large.
        """
        from gridscore.models.sample import Sample

        sample = await asyncio.to_thread(Sample.from_parquet, Path(matrix), label)
        return (await self.models.store_sample(name, sample, label)).rows

    async def export_model(self, name: str, path: Path | str, *, version: int | None = None) -> ModelVersion:
        """Write a version, the champion by default, with what is noted of it into a file for `import_model`.

        Raises:
            ModelError: There is no such version, or the file cannot be written.
        """
        from gridscore.models import bundle

        models = self.models
        found = await models.resolve(name, version=version)
        payload = await models.fetch(name, found.version)
        about = (await models.get(name)).about.get(found.version, About())
        _write(Path(path), bundle.pack(found, payload, about))
        return found

    async def pull_model(self, name: str, path: Path | str, *, version: int | None = None) -> ModelVersion:
        """Write the model file of a version, the champion by default, as it was pushed.

        Raises:
            ModelError: There is no such version, or the file cannot be written.
        """
        models = self.models
        found = await models.resolve(name, version=version)
        _write(Path(path), await models.fetch(name, found.version))
        return found

    async def import_model(
        self,
        path: Path | str,
        name: str | None = None,
        *,
        alias: str | None = None,
        allow_changed_features: bool = False,
        why: str = "",
        override: str = "",
    ) -> Added:
        """Push what `export_model` wrote, under its own name by default; the options are those of `push_model`.

        Raises:
            ModelError: It is not such a file, or as of `push_model`.
        """
        from gridscore.models import bundle

        found = await asyncio.to_thread(bundle.unpack, Path(path))
        return await self.add_model(
            found.payload,
            name or found.name,
            alias=alias,
            allow_changed_features=allow_changed_features,
            why=why,
            override=override,
            **found.options,
        )

    def _gates(self, name: str, alias: str, jobs: Mapping[str, Job], override: str) -> Gates:
        return Gates(self.grid, self.models, name, alias, jobs, override)

    async def version_of(self, job: Job, release: Release | None = None) -> ModelVersion:
        """The version that would score for a job now, given what it was released with.

        Raises:
            ModelError: There is none.
        """
        ref = job.model
        return await self.models.resolve(ref.name, alias=ref.alias, version=ref.version, release=release)

    async def following(self, model: str, alias: str | None) -> dict[str, Job]:
        """The active jobs that use an alias of a model, or any if it is None, by name."""
        return {
            record.name: record.job
            for record in await self.jobs.all()
            if record.state not in ENDED and record.job.model.name == model and alias in (None, record.job.model.alias)
        }


def _write(path: Path, payload: bytes) -> None:
    try:
        with path.open("xb") as file:
            file.write(payload)
    except OSError as error:
        raise ModelError(f"{path} cannot be written: {error.strerror}.", "Name a file that is not there yet.") from None
