"""`gridscore watch`: results as they are written, like `tail -f`."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gridscore.cli.options import Connection, job_names, run_on
from gridscore.cli.output import console, errors, json_text, safe, say, shorten, visible
from gridscore.cli.signals import on_signals
from gridscore.errors import GridError, JournalMissingError, MapNotFoundError

if TYPE_CHECKING:
    from gridscore.grid import Grid
    from gridscore.results.stream import Result, ResultStream

_LINES_A_SECOND = 200
_LOOK_SECONDS = 0.5
# Characters of a key, a field and what is not a result, and how many fields, a line shows; `--json` shows all.
_KEY, _VALUE, _OTHER, _FIELDS = 48, 60, 200, 40
_META = ("model", "version", "revision", "sequence", "epoch", "scored_at")


class Start(StrEnum):
    """Where to begin."""

    oldest = "oldest"
    latest = "latest"


def watch(
    target: Annotated[
        str,
        typer.Argument(metavar="JOB|MAP", autocompletion=job_names, help="A job, or a result map.", show_default=False),
    ],
    *,
    decision: Annotated[str | None, typer.Option(metavar="NAME", help="Only results with this decision.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="FIELD=VALUE", help="Only results with this value; repeatable.")
    ] = None,
    start: Annotated[
        Start, typer.Option("--from", help="Where to begin: with the oldest results that the journal holds, or now.")
    ] = Start.latest,
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="End after so many results.")] = None,
    wait: Annotated[
        float,
        typer.Option(
            min=0.0, max=86_400.0, metavar="SECONDS", help="How long to wait for a job that is not submitted."
        ),
    ] = 0.0,
    connection: Connection,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, for scripts.")] = False,
) -> None:
    """Show results as they come, from now on, until Ctrl-C.

    Example: [bold]gridscore watch flights --decision late[/]
    """
    wanted = dict(map(_pair, only or ()))
    if decision is not None:
        wanted["decision"] = decision

    async def main(grid: Grid) -> None:
        map_name = await _awaited(grid, target, wait)
        task = asyncio.current_task()
        on_signals(lambda _: task and task.cancel())
        async with await _opened(grid, map_name, start) as results:
            begin = "from now on" if start is Start.latest else "from the oldest on"
            errors.print(f"Results of [bold]{safe(map_name)}[/] {begin}. Ctrl-C ends.")
            await _Tail(grid, results, wanted, limit, as_json=as_json).follow()

    with contextlib.suppress(asyncio.CancelledError, KeyboardInterrupt):  # Ctrl-C is the normal end
        run_on(connection, main)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise typer.BadParameter(f"`{text}` is not FIELD=VALUE.", param_hint="--only")
    return name, value


async def _opened(grid: Grid, map_name: str, start: Start) -> ResultStream:
    """The map's results, by an entry listener if it has no journal."""
    from gridscore.results.stream import ResultStream

    try:
        return await ResultStream(grid, map_name, start=start.value).open()
    except JournalMissingError:
        if start is not Start.latest:
            raise
    say(f"{map_name} has no journal: some results may be missed when a connection is lost.", "dim")
    return await ResultStream(grid, map_name, journal=False).open()


async def _awaited(grid: Grid, target: str, seconds: float) -> str:
    """The map that is meant, once it is there. Raises MapNotFoundError if it is not there in time."""
    deadline = time.monotonic() + seconds
    said = False
    while True:
        try:
            return await _result_map(grid, target)
        except MapNotFoundError:
            if time.monotonic() >= deadline:
                raise
        if not said:
            said = True
            say(f"There is no job and no map `{target}` yet; waiting for it.")
        await asyncio.sleep(_LOOK_SECONDS)


async def _result_map(grid: Grid, target: str) -> str:
    """The map that is meant by the name of a map or of a job. Raises MapNotFoundError if it is neither."""
    from gridscore.job import Jobs
    from gridscore.texts import nearest

    jobs = {record.name: record.job.results for record in await Jobs(grid).all()}
    if target in jobs:
        return str(jobs[target])
    if target in jobs.values() or await grid.has_map(target):
        return target
    meant = nearest(target, [*jobs, *jobs.values()])
    hint = f"Did you mean `{meant}`?" if meant else f"Jobs of this cluster: {', '.join(jobs) or 'none'}."
    raise MapNotFoundError(f"There is no job and no map `{target}` in this cluster.", hint)


class _Tail:
    """Prints what a stream of results gives, and at which rate."""

    def __init__(
        self, grid: Grid, results: ResultStream, wanted: dict[str, str], limit: int | None, *, as_json: bool
    ) -> None:
        self._grid, self._results, self._wanted = grid, results, wanted
        self._left = limit
        self._as_json = as_json
        self._live = not as_json and console.is_terminal
        self._seen = 0
        self._shown = 0
        self._second = 0.0
        self._lines = 0
        self._skipped = 0

    async def follow(self) -> None:
        """Print until the limit, or until cancelled. Raises GridError if the connection is lost for good."""
        ticking = asyncio.create_task(self._tick())
        began = time.monotonic()
        try:
            async for result in self._results:
                self._seen += 1
                if self._wanted and not _fits(result.value, self._wanted):
                    continue
                self._show(result)
                if self._left is not None:
                    self._left -= 1
                    if not self._left:
                        return
            raise GridError(f"The connection to the cluster of `{self._results.map_name}` is lost.")
        finally:
            ticking.cancel()
            await asyncio.gather(ticking, return_exceptions=True)
            if not self._as_json:
                seconds = max(time.monotonic() - began, 1e-9)
                say(f"{self._shown:,} results shown of {self._seen:,}, {self._seen / seconds:,.0f}/s", "dim")
                if self._results.lost:
                    say(f"{self._results.lost:,} results were overwritten before they were read", "dim")

    async def _tick(self) -> None:
        """Once a second, say what was left out, and see whether more can come."""
        before = 0
        while True:
            await asyncio.sleep(1)
            if not self._grid.is_running:
                await self._results.close()
            if self._skipped:
                say(f"… {self._skipped:,} more in this second ({self._seen - before:,}/s)", "dim")
            before, self._skipped, self._lines = self._seen, 0, 0

    def _show(self, result: Result) -> None:
        self._shown += 1
        if self._as_json:
            sys.stdout.write(json_text({"key": result.key, **result.value}) + "\n")
            sys.stdout.flush()
            return
        # No eye follows thousands of lines a second: a terminal shows some of them, and how many more there were.
        if self._live and self._left is None and self._lines >= _LINES_A_SECOND:
            self._skipped += 1
            return
        self._lines += 1
        say(_line(result), to=console)


def _fits(value: dict[str, Any], wanted: dict[str, str]) -> bool:
    """Whether fields have these values, as they are written in JSON."""
    return all(
        name in value and text in (value[name], None if isinstance(value[name], str) else json_text(value[name]))
        for name, text in wanted.items()
    )


def _line(result: Result) -> str:
    key = visible(shorten(str(result.key), _KEY))
    value = result.value
    score = _score(value.get("score"))
    if score is None or "version" not in value:  # another program wrote it
        return f"{key:32}  {shorten(json_text(value), _OTHER)}"
    decision = visible(shorten(str(value.get("decision") or ""), _KEY))
    rest = {k: v for k, v in value.items() if k not in ("score", "decision", *_META) and v is not None}
    more = "  ".join(f"{_field(k)}={_field(v)}" for k, v in list(rest.items())[:_FIELDS])
    if len(rest) > _FIELDS:
        more += f"  … {len(rest) - _FIELDS} more"
    return f"{key:32}  {score}  {decision:10}  v{_field(value['version'])}  {more}".rstrip()


def _score(score: Any) -> str | None:
    """A number, or several; None if it is neither."""
    scores = score if isinstance(score, list) else [score]
    if not scores or not all(isinstance(each, int | float) and not isinstance(each, bool) for each in scores):
        return None
    return shorten(" ".join(f"{each:.4f}" if isinstance(each, float) else str(each) for each in scores), _OTHER)


def _field(value: Any) -> str:
    return visible(shorten(json_text(value) if isinstance(value, list | dict | bool) else str(value), _VALUE))
