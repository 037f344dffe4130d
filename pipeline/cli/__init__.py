"""The command `gridscore`: puts the command groups together, and prints errors for people."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import sys
from typing import Annotated

import typer

from pipeline.errors import GridError, GridscoreError

app = typer.Typer(
    name="gridscore",
    help="Machine-learning inference on live data inside an ordinary Hazelcast cluster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


_OUTPUT_ERRORS = (errno.ENOSPC, errno.EIO, errno.EBADF, errno.EFBIG, errno.EROFS)


class _Formatter(logging.Formatter):
    """Lines of the log as a terminal may show them, whatever was in the data."""

    def format(self, record: logging.LogRecord) -> str:
        from pipeline.cli.output import visible

        return visible(super().format(record), layout=True)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        from pipeline.compiled import describe
        from pipeline.job.zones import release

        typer.echo(f"gridscore {version('gridscore')} ({describe()}, time zones {release()})")
        raise typer.Exit


@app.callback()
def root(
    *,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log what happens, the client's log included.")
    ] = False,
    version: Annotated[  # noqa: ARG001 -- the callback does it
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Set up logging before any command."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.DEBUG if verbose else logging.WARNING)
    # The client logs a traceback for each address that does not answer; our own error says it once.
    logging.getLogger("hazelcast").setLevel(logging.INFO if verbose else logging.CRITICAL)
    if not verbose:
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)


@functools.cache
def _commands() -> typer.Typer:
    """The app with every command; the modules behind them are light, what they use is imported when they run."""
    from pipeline.cli import (
        audit,
        autoscale,
        bench,
        dead_letters,
        demo,
        doctor,
        features,
        job,
        jobs,
        load,
        model,
        prepare,
        repair,
        sink,
        soak,
        source,
        status,
        top,
        up,
        watch,
        wipe,
        worker,
    )

    app.command(rich_help_panel="Start here")(up.up)
    app.command(rich_help_panel="Start here")(demo.demo)
    app.command(rich_help_panel="Jobs")(load.load)
    app.command(rich_help_panel="Jobs")(prepare.prepare)
    app.command(rich_help_panel="Jobs")(jobs.submit)
    app.add_typer(jobs.app, name="jobs", rich_help_panel="Jobs")
    app.command(rich_help_panel="Jobs")(jobs.suspend)
    app.command(rich_help_panel="Jobs")(jobs.resume)
    app.command(rich_help_panel="Jobs")(jobs.restart)
    app.command(rich_help_panel="Jobs")(jobs.rollback)
    app.command(rich_help_panel="Jobs")(jobs.cancel)
    app.command(rich_help_panel="Jobs")(wipe.wipe)
    app.add_typer(job.app, name="job", rich_help_panel="Jobs")
    app.add_typer(source.app, name="source", rich_help_panel="Scoring")
    app.add_typer(sink.app, name="sink", rich_help_panel="Scoring")
    app.command(rich_help_panel="Scoring")(worker.worker)
    app.command(rich_help_panel="Scoring")(autoscale.autoscale)
    app.command(rich_help_panel="Scoring")(watch.watch)
    app.add_typer(dead_letters.app, name="dead-letters", rich_help_panel="Scoring")
    app.command(rich_help_panel="Scoring")(audit.audit)
    app.add_typer(model.app, name="model", rich_help_panel="Models and features")
    app.command(rich_help_panel="Models and features")(features.features)
    app.command(rich_help_panel="Health")(top.top)
    app.command(rich_help_panel="Health")(status.status)
    app.command(rich_help_panel="Health")(doctor.doctor)
    app.command(rich_help_panel="Health")(repair.repair)
    app.add_typer(bench.app, name="bench", rich_help_panel="Health")
    app.command(rich_help_panel="Health")(soak.soak)
    return app


def main() -> None:
    """Run the command line. Errors that a person can act on are printed without a traceback."""
    try:
        try:
            _commands()()
        finally:
            sys.stdout.flush()  # while there is somebody who can tell that it did not work
    except GridscoreError as error:
        sys.exit(_report(error))
    except BrokenPipeError:
        # The reader of our output has gone, as in `gridscore jobs | head -1`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if error.errno is None:  # not from the system, so from our own code
            raise
        sys.exit(_report(_refused(error)))
    except Exception as error:
        # The client is imported only by commands that connect; those without it cannot raise its errors.
        failure = sys.modules.get("hazelcast.errors")
        if failure is None or not isinstance(error, failure.HazelcastError):
            raise
        sys.exit(
            _report(GridError(f"The cluster did not answer as it should: {error}", "Is it still there? Try again."))
        )


def _refused(error: OSError) -> GridscoreError:
    """What the system refused, for people."""
    logging.getLogger(__name__).debug("where it happened", exc_info=error)
    with contextlib.suppress(OSError, ValueError):  # what could not be written is not tried again at the exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    what = os.strerror(error.errno or 0)
    if error.filename is not None:
        place = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else error.filename
        return GridscoreError(f"`{place}` cannot be read or written: {what}.")
    if error.errno in _OUTPUT_ERRORS:
        return GridscoreError(f"The output cannot be written: {what}.", "Make room, or write it elsewhere.")
    return GridscoreError(f"The system refused: {what}.", "`gridscore -v COMMAND` shows where.")


def _report(error: GridscoreError) -> int:
    """Print an error for people; returns the exit code."""
    from pipeline.cli.output import errors, safe

    with contextlib.suppress(OSError):  # with nowhere to write to, the exit code has to say it
        errors.print(f"[bold red]error:[/] {safe(error.message, layout=True)}", highlight=False, soft_wrap=True)
        if error.hint:
            errors.print(safe(error.hint, layout=True), style="dim", highlight=False, soft_wrap=True)
    return error.exit_code
