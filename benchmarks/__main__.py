"""`python -m benchmarks`: Gridscore beside what one would use instead, measured in one run on clusters of its own."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gridscore.cli.output import console, errors, run
from gridscore.errors import GridscoreError, UsageError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable
    from typing import Any

    from benchmarks.outcome import Outcome
    from benchmarks.session import Options

app = typer.Typer(add_completion=False)


@app.command()
def bench(
    *,
    quick: Annotated[bool, typer.Option("--quick", help="Less of everything: ten minutes instead of an hour.")] = False,
    works: Annotated[str | None, typer.Option("--works", metavar="A,B", help="Works; all, or card if quick.")] = None,
    systems: Annotated[str | None, typer.Option("--systems", metavar="A,B", help="Systems; else all.")] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, max=50, help="Of throughput: 5, 3 if quick.")] = None,
    only: Annotated[
        str | None, typer.Option("--only", metavar="A,B", help="Of throughput, limits, latency, spike and growth.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="For results.")] = Path("benchmarks/results"),
    events: Annotated[
        int | None, typer.Option("--events", min=100_000, max=900_000, help="Of a throughput run.")
    ] = None,
    members: Annotated[int, typer.Option("--members", min=1, max=8, help="With two or more, a backup each.")] = 2,
    heap: Annotated[str, typer.Option("--heap", help="Of each member.")] = "4g",
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Measure Gridscore beside its peers and its limits, and print the ratios.

    Example: python -m benchmarks --quick --systems gridscore,jet-dictionary
    """
    from benchmarks.session import PARTS, QUICK_EVENTS, QUICK_PARTS, Options
    from benchmarks.systems import SYSTEMS
    from benchmarks.work import WORKS

    options = Options(
        quick=quick,
        works=_chosen("--works", works, WORKS, ("card",) if quick else tuple(WORKS)),
        systems=_chosen("--systems", systems, SYSTEMS, tuple(SYSTEMS)),
        all_systems=systems is None,
        rounds=rounds or (3 if quick else 5),
        parts=_chosen("--only", only, PARTS, QUICK_PARTS if quick else PARTS),
        members=members,
        heap=heap,
        events=events or (QUICK_EVENTS if quick else None),
    )
    outcome, file = _measure(options, out)
    if as_json:
        typer.echo(file.read_bytes())
    else:
        from benchmarks.table import show

        show(outcome, console)
        errors.print(f"\nWritten to {file}.", highlight=False)
        errors.print(f"A page of it: python -m benchmarks.report {file} --to PAGE", highlight=False)


def _measure(options: Options, out: Path) -> tuple[Outcome, Path]:
    """Run it, and return what came of it and where that is written."""
    from benchmarks import origin
    from benchmarks.display import Display, duration
    from benchmarks.outcome import FORMAT, Outcome
    from benchmarks.session import FLOOR_SECONDS, Session
    from gridscore.scoring.process import tune

    began, began_at = datetime.now(UTC), time.monotonic()
    warm_up, seconds = options.steady_seconds
    longer = {} if options.quick else {f"latency_s_at_{rate:.0f}": each for rate, each in FLOOR_SECONDS.items()}
    outcome = Outcome(
        format=FORMAT,
        started_at=began.isoformat(timespec="seconds").replace("+00:00", "Z"),
        seconds=0.0,
        command=sys.argv[1:],
        git_commit=origin.git_commit(),
        machine=origin.machine(),
        versions=origin.versions(),
        settings={
            "quick": options.quick,
            "members": options.members,
            "backups": 1 if options.members > 1 else 0,
            "heap": options.heap,
            "rounds": options.rounds,
            "latency_warm_up_s": warm_up,
            "latency_s": seconds,
            **longer,
        },
    )
    file = out / f"{began:%Y%m%d-%H%M%S}.json"

    def save() -> None:
        outcome.seconds = time.monotonic() - began_at
        outcome.save(file)

    expected = options.seconds()
    errors.print(f"This takes about {duration(expected)}. Ctrl-C ends it, and what it has started.", highlight=False)
    tune()
    save()
    with Display(expected) as display:
        run(_until_ended(Session(options, outcome, save, display).run()))
    outcome.complete = True
    save()
    shutil.copyfile(file, out / "latest.json")
    return outcome, file


async def _until_ended(session: Coroutine[Any, Any, None]) -> None:
    """Let SIGTERM do what Ctrl-C does: what was started is ended on the way out."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    loop.set_exception_handler(_complain)
    if task is not None:
        with contextlib.suppress(NotImplementedError):  # Windows
            loop.add_signal_handler(signal.SIGTERM, task.cancel)
    await session


def _complain(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """As usual, but not of a gathering that nobody waits for any more because we were told to end."""
    if not isinstance(context.get("exception"), asyncio.CancelledError):
        loop.default_exception_handler(context)


def _chosen(option: str, text: str | None, known: Iterable[str], otherwise: tuple[str, ...]) -> tuple[str, ...]:
    """The names in an option.

    Raises:
        UsageError: One of them is unknown.
    """
    if text is None:
        return otherwise
    names = tuple(name for name in text.split(",") if name)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise UsageError(f"{option}: `{', '.join(unknown) or text}` is not known.", f"There are {', '.join(known)}.")
    return names


def main() -> None:
    """The command, with errors for people."""
    try:
        app()
    except GridscoreError as error:
        errors.print(f"error: {error}", style="red", markup=False, highlight=False)
        raise SystemExit(getattr(error, "exit_code", 1)) from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
