"""The gates of the jobs that follow an alias, asked before it moves."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gridscore.errors import GateError, GridscoreError, ModelError
from gridscore.models.certificates import certificates_of
from gridscore.models.gates import Verdict, judge
from gridscore.models.registry import Approval
from gridscore.scoring.recent import latest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gridscore.grid import Grid
    from gridscore.job import Job
    from gridscore.models import LoadedModel, Registry
    from gridscore.models.certificates import Certificate
    from gridscore.models.sample import Rows, Sample


class Gates:
    """The gates that a version must pass to become what an alias points at; call it with the version.

    `grid`: where the jobs' events are; `alias`: that is to move; `jobs`: that follow it, by name; `override`: why the
    version goes live even if it does not pass; empty if it must pass.
    """

    def __init__(
        self, grid: Grid, registry: Registry, name: str, alias: str, jobs: Mapping[str, Job], override: str = ""
    ) -> None:
        self._grid, self._registry, self._name = grid, registry, name
        self._alias = alias
        self._jobs = {name: job for name, job in jobs.items() if job.gates}
        self._override = override

    def __bool__(self) -> bool:
        return bool(self._jobs)

    async def __call__(self, model: LoadedModel, number: int | None) -> Approval:
        """Ask all gates.

        `number`: None if it is not in the registry yet. Raises GateError if the version has not passed, and there is no
        reason to go on all the same.
        """
        after = await self._registry.last_move(self._name, self._alias)
        failed = [
            f"For the job `{job}`: {verdict.gate}: {verdict.text}"
            for job, verdicts in (await self.verdicts(model, number)).items()
            for verdict in verdicts
            if not verdict.passed
        ]
        if failed and not self._override:
            lines = "\n".join(f"  {line}" for line in failed)
            raise GateError(
                f"The model `{self._name}`: the version has not passed the gates, so nothing has changed and the alias "
                f"`{self._alias}` stays where it is.\n{lines}",
                'To go live all the same: `--override "REASON"`, which is written into the log of the model.',
            )
        return Approval(after, self._override if failed else "", "; ".join(failed))

    async def verdicts(self, model: LoadedModel, number: int | None) -> dict[str, list[Verdict]]:
        if not self._jobs:
            return {}
        champion = await self._champion()
        wanted = [job.gates for job in self._jobs.values()]
        sample = None
        if any(gates.metric or gates.champion for gates in wanted):
            sample = await self._registry.sample(self._name)
        certificates: dict[str, Certificate] = {}
        if number is not None and any(gates.parity for gates in wanted):
            certificates = {
                each.job: each for each in await certificates_of(self._grid) if each.is_of(self._name, number)
            }
        found = {}
        for name, job in self._jobs.items():
            events = await self._events(job, champion)
            rows: Sample | str | None = sample
            if sample is not None and (job.margin is None) != (sample.margins is None):
                rows = f"the sample has {'no ' * (sample.margins is None)}margins, unlike the job"
            found[name] = await asyncio.to_thread(
                judge, job.gates, model, champion, rows, events, certificates.get(name)
            )
        return found

    async def _champion(self) -> LoadedModel | str | None:
        """What scores now; why it cannot be loaded; or None without a champion."""
        try:
            version = await self._registry.resolve(self._name, alias=self._alias)
        except ModelError:
            return None
        try:
            return await self._registry.load(version)
        except GridscoreError as error:
            return error.message

    async def _events(self, job: Job, champion: LoadedModel | str | None) -> Rows | str:
        if job.gates.shift is None or champion is None or isinstance(champion, str):
            return "there is nothing to compare with"
        try:
            return await latest(self._grid, job, job.gates.shift.events, champion.version)
        except GridscoreError as error:
            return error.message
