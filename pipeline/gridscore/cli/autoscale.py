"""`gridscore autoscale`: as many workers as a job needs."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import math
import shlex
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from gridscore.cli.containers import Image  # noqa: TC001 -- typer reads the annotations
from gridscore.cli.options import Connection, JobName, Json, answered, ask, connected, grid_settings
from gridscore.cli.output import errors, print_json, print_table, run, safe
from gridscore.cli.signals import on_signals
from gridscore.cli.worker import command_of, supervise, supervised
from gridscore.errors import ContainerError, GridError, GridscoreError, UsageError
from gridscore.texts import count_text, moment_at

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from gridscore.grid import Grid
    from gridscore.operations.autoscale import Decision, Memory, Policy
    from gridscore.operations.status import JobStatus, Overview

_LOOK_SECONDS = 2.0

_MOST = 512
_COMMAND_SECONDS = 60.0
_LONGEST_PAUSE = 60.0  # pause after the number of workers could not be changed, at most; each is twice the one before


_now = time.monotonic


class ScaleError(GridscoreError):
    """The number of workers could not be changed; it is tried again."""


def autoscale(
    job: JobName,
    *,
    least: Annotated[int, typer.Option("--min", min=1, max=_MOST, help="Fewest workers.")] = 1,
    most: Annotated[int, typer.Option("--max", min=1, max=_MOST, help="Most workers.")] = 8,
    drain: Annotated[
        float, typer.Option(min=1.0, max=3600.0, metavar="SECONDS", help="Grow if a backlog would take longer.")
    ] = 10.0,
    latency: Annotated[
        float | None,
        typer.Option(min=0.1, metavar="MS", help="Grow if p99 in the workers is more; ignored by default."),
    ] = None,
    calm: Annotated[
        float, typer.Option(min=1.0, max=86_400.0, metavar="SECONDS", help="Shrink after this long without a backlog.")
    ] = 120.0,
    command: Annotated[
        str | None,
        typer.Option(
            "--exec",
            metavar="COMMAND",
            help="Run this to have `{workers}` workers of `{job}`, and start none here. No shell is involved.",
        ),
    ] = None,
    docker: Annotated[
        bool, typer.Option("--docker", help="Start workers as containers, which go on when the command ends.")
    ] = False,
    image: Image = "gridscore",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show the last decisions, and why; change nothing.")
    ] = False,
    connection: Connection,
    as_json: Json = False,
) -> None:
    """Keep as many workers as a job needs: by its backlog, its latency, and the time until unread events are lost.

    Growing takes seconds and goes in proportion; shrinking waits for calm and takes small steps. The workers are
    processes of this command, and end with it; or containers; or whatever --exec starts. Workers that run elsewhere
    count, too. Every change is kept, with its reason.

    Example: [bold]gridscore autoscale flights --max 16 --exec "kubectl scale deploy/worker --replicas {workers}"[/]
    """
    from gridscore.operations.autoscale import Policy

    if explain:
        _explain(job, connection, as_json=as_json)
        return
    if least > most:
        raise UsageError(f"--min {least} is more than --max {most}.")
    if docker and command is not None:
        raise UsageError("--docker and --exec are two ways to start workers.", "Take one.")
    words = _words(command)
    policy = Policy(least, most, drain_seconds=drain, latency_ms=latency, down_seconds=calm)
    code = run(_run(job, policy, words, connection, dry_run=dry_run, image=image if docker else None))
    if code:
        raise typer.Exit(code)


def _words(command: str | None) -> list[str] | None:
    """The words of a command. Raises UsageError if it is not one, or cannot say how many workers are wanted."""
    if command is None:
        return None
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"--exec: {error}.") from None
    if not words or not any("{workers}" in word for word in words):
        raise UsageError(
            "--exec: the command does not say `{workers}`.",
            "For example: --exec 'kubectl scale deploy/worker --replicas {workers}'",
        )
    return words


async def _run(
    job: str,
    policy: Policy,
    words: list[str] | None,
    connection: Connection,
    *,
    dry_run: bool,
    image: str | None = None,
) -> int:
    async with connected(connection) as grid:
        count = grid.partition_count
        policy = _bounded(policy, count, f"The cluster has {count_text(count, 'partition')}, and a worker needs one")
        if dry_run:
            # Nobody is started, so nobody is late.
            following = _follow(grid, job, dataclasses.replace(policy, start_seconds=math.inf), None)
        elif image is not None:
            following = _with_containers(grid, job, policy, connection, image)
        elif words is not None:
            told: int | None = None

            async def execute(target: int, _overview: Overview) -> None:
                nonlocal told
                if target != told:
                    await _execute([word.replace("{workers}", str(target)).replace("{job}", job) for word in words])
                    told = target

            following = _follow(grid, job, policy, execute)
        else:
            return await _with_processes(grid, job, policy, connection)
        task = asyncio.create_task(following)
        on_signals(task.cancel)
        try:
            await task
        except asyncio.CancelledError as told:
            return 130 * (told.args == ("SIGINT",))
        return 0


def _bounded(policy: Policy, most: int, why: str) -> Policy:
    """The policy without workers that could do nothing, or not be started; it is said if there were such."""
    if policy.most <= most:
        return policy
    errors.print(f"{why}: --max is {most}, not {policy.most}.")
    return dataclasses.replace(policy, least=min(policy.least, most), most=most)


async def _with_processes(grid: Grid, job: str, policy: Policy, connection: Connection) -> int:
    """Keep the workers as processes of ours until told to stop; returns the exit code."""
    from gridscore.group.leases import LEASE_SECONDS
    from gridscore.job import Jobs

    await Jobs(grid).get(job)  # find a wrong name before anything starts
    workers = supervised(command_of(job, LEASE_SECONDS, connection), policy.least)

    async def resize(target: int, overview: Overview) -> None:
        workers.resize(max(target - _elsewhere(overview, workers.started), 0))

    following = asyncio.create_task(_follow(grid, job, policy, resize))
    running = asyncio.create_task(supervise(workers))
    await asyncio.wait({following, running}, return_when=asyncio.FIRST_COMPLETED)
    if not following.cancel():
        workers.stop()
    code = await running
    with contextlib.suppress(asyncio.CancelledError):
        await following
    return code


def _elsewhere(overview: Overview, ours: Collection[int]) -> int:
    """Workers that score for the job, and are not processes of ours, running or just ended."""
    host, scoring = socket.gethostname(), overview.jobs[0].figures
    return sum(each.id in scoring and not (each.host == host and each.pid in ours) for each in overview.workers)


async def _with_containers(grid: Grid, job: str, policy: Policy, connection: Connection, image: str) -> None:
    """Keep the workers as containers; they go on when we end."""
    from gridscore.containers import Containers
    from gridscore.group.members import GONE_SECONDS

    settings = grid_settings(connection)
    containers = Containers(settings.cluster_name)
    room, there = await asyncio.to_thread(lambda: (containers.room, containers.workers(job)))
    policy = _bounded(
        policy, max(room, policy.least), f"The container engine has memory for {count_text(room, 'worker')}"
    )
    # A container that was killed starts again beside its own record, which would count as somebody else's worker.
    seen: deque[int] = deque(maxlen=math.ceil(GONE_SECONDS / _LOOK_SECONDS) + 1)
    told: set[str] = set()

    async def resize(target: int, overview: Overview) -> None:
        # A container uses our network, and so has our host name.
        workers = await asyncio.to_thread(containers.workers, job)
        failed_now = {each.name: each for each in workers if containers.fails(each)}
        for name in sorted(failed_now.keys() - told):
            _tell(str(await asyncio.to_thread(containers.failure, failed_now[name])))
        # A container that starts again looks like a new one: it stays told until it has run for long.
        told.intersection_update(each.name for each in workers if not containers.runs_for_long(each))
        told.update(failed_now)
        seen.append(max(overview.jobs[0].workers - len(workers), 0))
        wanted = max(target - min(seen), 0)
        if len(workers) != wanted or not all(map(containers.goes_on, workers)):
            await asyncio.to_thread(containers.scale, job, wanted, settings, image)

    begun = sum(map(containers.goes_on, there))
    await _follow(grid, job, policy, resize, begun)


async def _follow(
    grid: Grid,
    job: str,
    policy: Policy,
    scale: Callable[[int, Overview], Awaitable[None]] | None,
    begun: int | None = None,
) -> None:
    """Look, decide and scale, again and again; without `scale` only say what would be done.

    `begun` is how many workers an earlier command has left, though some may be starting; None if that is not known.
    Raises JobError if the job no longer exists.
    """
    from hazelcast.errors import HazelcastError

    scaler = _Scaler(grid, job, policy, scale, begun)
    while True:
        try:
            await scaler.step()
        except (GridError, HazelcastError) as error:
            scaler.say(f"Trying again: {error}")
        await asyncio.sleep(_LOOK_SECONDS)


def _tell(text: str) -> None:
    """Say it, with the time, in a line."""
    line = text.replace("\n", " ")
    errors.print(f"{time.strftime('%H:%M:%S')} {safe(line)}")


class _Scaler:
    """Follows one job; see `_follow`."""

    def __init__(
        self,
        grid: Grid,
        job: str,
        policy: Policy,
        scale: Callable[[int, Overview], Awaitable[None]] | None,
        begun: int | None = None,
    ) -> None:
        from gridscore.operations.status import Observer

        self._grid, self._job, self._policy, self._scale, self._begun = grid, job, policy, scale, begun
        self._observer = Observer(grid, job)
        self._memory: Memory | None = None
        self._said = ""
        self._said_missing = 0  # the most workers that were said to be missing in the present shortage
        self._said_target: int | None = None  # of a change that is still to be made
        self._pause = self._due = 0.0  # after one that failed

    def say(self, text: str) -> None:
        """Say something, once."""
        if text != self._said:
            _tell(text)
        self._said = text

    async def step(self) -> None:
        """Look once, decide, and scale."""
        from gridscore.job.life import WANTED
        from gridscore.operations.autoscale import Load, Memory, decide, keep

        job, policy = self._job, self._policy
        overview = await answered(self._grid, self._observer.look())
        (status,) = overview.jobs
        if status.record.state not in WANTED:
            self.say(f"The job is {status.record.state}: nothing is changed.")
            self._memory = self._memory and Memory(self._memory.target)
            return
        if status.lag is None:
            self.say(f"The backlog is not known, so nothing is changed: {status.journal_error}")
            return
        load = Load.of(status, overview.at)
        if self._memory is None:
            self._memory = Memory(min(max(await self._asked_for(status), policy.least), policy.most))
            now = f"{count_text(status.workers, 'worker')} {'scores' if status.workers == 1 else 'score'} for {job}"
            self.say(f"{now}; {policy.least} to {policy.most} are allowed.")
        before = self._memory
        decision, after = decide(policy, before, load)
        changed, waits = decision.target != before.target, after.waits and not before.waits
        if changed and decision.target != self._said_target:
            would = "would change" if self._scale is None else "changes"
            self.say(f"The number of workers {would} from {before.target} to {decision.target}: {decision.why}.")
            self._said_target = decision.target
        elif waits:
            self.say(f"The number of workers stays at {decision.target}: {decision.why}.")
        elif (late := after.late(policy, load)) and (missing := after.target - load.workers) > self._said_missing:
            self.say(f"{late}.")
            self._said_missing = missing
        # Workers without enough of a processor come and go; that is not said each time.
        if after.short is None:
            self._said_missing = 0
        if not await self._scaled(decision.target, overview):
            if changed:
                return  # as if it had not been decided
            after = dataclasses.replace(after, short=None)  # nobody was asked, so nobody is late
        self._memory, self._said_target = after, None
        if (changed or waits) and self._scale is not None:
            await keep(self._grid, job, msgspec.structs.replace(decision, at=int(time.time() * 1000)))

    async def _asked_for(self, status: JobStatus) -> int:
        """How many workers there are, or were asked for by a command that has ended, and may be starting."""
        from gridscore.operations.autoscale import kept

        if self._begun is not None:
            return max(status.workers, self._begun)
        last = [] if self._scale is None else (await kept(self._grid, self._job))[-1:]
        if last and 0 <= time.time() - last[0].at / 1000 < self._policy.start_seconds:
            return last[0].target
        return status.workers

    async def _scaled(self, target: int, overview: Overview) -> bool:
        """Whether there are, or will be, as many workers as are wanted; after a failure it waits longer each time."""
        if self._scale is None:
            return True
        if _now() < self._due:
            return False
        try:
            await self._scale(target, overview)
        except (ScaleError, ContainerError) as error:
            self._pause = min(max(2 * self._pause, _LOOK_SECONDS), _LONGEST_PAUSE)
            self._due = _now() + self._pause
            self.say(f"Trying again: {error}")
            return False
        if self._pause:
            self.say("The number of workers can be changed again.")
        self._pause = 0.0
        return True


async def _execute(words: list[str]) -> None:
    """Run the user's command. Raises ScaleError if it failed, or does not end."""
    try:
        process = await asyncio.create_subprocess_exec(*words, stdin=asyncio.subprocess.DEVNULL)
    except OSError as error:
        raise ScaleError(f"`{words[0]}` cannot be run: {error.strerror}.") from None
    try:
        async with asyncio.timeout(_COMMAND_SECONDS):
            code = await process.wait()
    except TimeoutError:
        raise ScaleError(f"`{words[0]}` did not end in {_COMMAND_SECONDS:g} s and was killed.") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if code:
        raise ScaleError(f"`{shlex.join(words)}` ended with code {code}.")


def _explain(job: str, connection: Connection, *, as_json: bool) -> None:
    from gridscore.job import Jobs
    from gridscore.operations.autoscale import kept

    async def main(grid: Grid) -> list[Decision]:
        found = await kept(grid, job)
        if not found:
            await Jobs(grid).get(job)  # or an error that says what there is
        return found

    found = ask(connection, main)
    if as_json:
        print_json(
            [
                {"at": moment_at(each.at / 1000), "workers": each.workers, "target": each.target, "why": each.why}
                for each in found
            ]
        )
        return
    rows = [
        (dt.datetime.fromtimestamp(each.at / 1000).astimezone().isoformat(" ", "seconds"), each.target, each.why)
        for each in found
    ]
    print_table(("AT", "WORKERS", "WHY"), rows, empty=f"Nothing was decided about {job} yet.")
