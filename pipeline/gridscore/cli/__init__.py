"""The command `gridscore`: puts the command groups together, and prints errors for people."""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib.util
import logging
import os
import sys
import threading
import warnings
from typing import Annotated, Any

import typer

from gridscore.errors import GridError, GridscoreError, UsageError

# After which a shell gets what there is, or nothing: a member that is silent must not hold up who types.
_COMPLETION_SECONDS = 3.0

_OUTPUT_ERRORS = (errno.ENOSPC, errno.EIO, errno.EBADF, errno.EFBIG, errno.EROFS)


class _Formatter(logging.Formatter):
    """Lines of the log as a terminal may show them, whatever was in the data."""

    def format(self, record: logging.LogRecord) -> str:
        from gridscore.cli.output import visible

        return visible(super().format(record), layout=True)


def _warn(message: Warning | str, *_where: Any, **_more: Any) -> None:
    from gridscore.cli.output import print_warnings

    print_warnings([str(message)])


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        from gridscore.compiled import describe
        from gridscore.job.zones import release

        typer.echo(f"gridscore {version('gridscore')} ({describe()}, time zones {release()})")
        raise typer.Exit


def root(
    *,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log what happens, the client's log included.")
    ] = False,
    version: Annotated[  # noqa: ARG001 -- the callback does it
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Set up logging and warnings before any command."""
    warnings.showwarning = _warn
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.DEBUG if verbose else logging.WARNING)
    # The client logs a traceback for each address that does not answer; our own error says it once.
    logging.getLogger("hazelcast").setLevel(logging.INFO if verbose else logging.CRITICAL)
    if not verbose:
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)


# By panel of the help: each command, and the module that has it.
_COMMANDS = {
    "Start here": {"new": "new", "up": "up", "down": "containers", "logs": "containers", "demo": "demo"},
    "Jobs": {
        "load": "load",
        "prepare": "prepare",
        "submit": "jobs",
        "jobs": "jobs",
        "suspend": "jobs",
        "resume": "jobs",
        "restart": "jobs",
        "rollback": "jobs",
        "cancel": "jobs",
        "wipe": "wipe",
        "job": "job",
    },
    "Scoring": {
        "source": "source",
        "sink": "sink",
        "worker": "worker",
        "serve": "serve",
        "key": "key",
        "autoscale": "autoscale",
        "scale": "containers",
        "watch": "watch",
        "dead-letters": "dead_letters",
        "audit": "audit",
        "state": "state",
        "explain": "explain",
    },
    "Models and features": {
        "model": "model",
        "experiment": "experiment",
        "features": "features",
        "backtest": "backtest",
    },
    "Health": {
        "top": "top",
        "status": "status",
        "parity": "parity",
        "drift": "drift",
        "doctor": "doctor",
        "repair": "repair",
        "backup": "backup",
        "restore": "backup",
        "bench": "bench",
        "soak": "soak",
    },
}

# Those that have commands of their own.
_GROUPS = {
    "jobs": "The jobs of the cluster; without a command, lists them.",
    "job": "Job files: check or begin one, see what it makes of events, or get the JSON Schema for an editor.",
    "key": "Keys of those who come by HTTP, for `serve --keys` and `source http --keys`.",
    "source": "Read events from where they arise, and put them into event maps.",
    "sink": "Bring results to where applications act on them.",
    "dead-letters": "Events that could not be scored, each with its error and its bytes.",
    "model": "Models in the cluster: versions, aliases, what each was trained for.",
    "experiment": "Another version of a job's model on a part of the entities, or beside.",
    "bench": "How fast a worker is on this machine, or your own job on your cluster.",
    "state": "What the windows of an entity hold (`state JOB ENTITY`), and how to fill windows from a history.",
}

# Those made of settings, without a docstring.
_MADE = {"serve": "Score requests by HTTP as the stream scores events, and take events and give results beside it."}


@functools.cache
def _commands(only: str | None = None) -> typer.Typer:
    """The app with every command, or with one: importing the modules of all takes longer than most commands do.

    With an empty name, it has what the help says of each.
    """
    from gridscore.cli.options import App

    made = App(
        name="gridscore",
        help="Machine-learning inference on live data inside an ordinary Hazelcast cluster.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback()(root)
    for panel, commands in _COMMANDS.items():
        for name, module_name in commands.items():
            if only not in (None, "", name):
                continue
            module = None if only == "" else importlib.import_module(f"gridscore.cli.{module_name}")
            if name in _GROUPS:
                group = App() if module is None else module.app
                made.add_typer(group, name=name, help=_GROUPS[name], rich_help_panel=panel)
            elif module is None:
                text = _MADE.get(name) or _docstring(module_name, name)
                made.command(name, help=text, rich_help_panel=panel)(lambda: None)
            else:
                made.command(rich_help_panel=panel)(getattr(module, name))
    return made


def _docstring(module_name: str, function: str) -> str:
    """Of a command, whose module is not run for it."""
    spec: Any = importlib.util.find_spec(f"gridscore.cli.{module_name}")
    consts = spec.loader.get_code(spec.name).co_consts
    return str(next(each for each in consts if getattr(each, "co_name", "") == function).co_consts[0])


def _named(words: list[str]) -> str:
    """The only command that a command line needs; empty if it needs none."""
    for word in words:
        if word in ("-h", "--help"):
            break
        if not word.startswith("-"):  # options of this level take no values
            return word if any(word in commands for commands in _COMMANDS.values()) else ""
    return ""


def _typed() -> list[str]:
    """The words of the command line, also of one that a shell wants to complete: then it does not wait for long."""
    if "_GRIDSCORE_COMPLETE" not in os.environ:
        return sys.argv[1:]
    ended = threading.Timer(_COMPLETION_SECONDS, os._exit, (0,))
    ended.daemon = True
    ended.start()
    os.environ["COLUMNS"] = "10000"  # fish takes each line for an offer, also of a help that is broken into lines
    return (os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS", "")).split()[1:]


def main() -> None:
    """Run the command line. Errors that a person can act on are printed without a traceback."""
    try:
        try:
            _commands(_named(_typed()))()
        finally:
            sys.stdout.flush()  # here, where a failure can still be reported
    except GridscoreError as error:
        sys.exit(_report(error))
    except BrokenPipeError:
        # The reader of our output has gone, as in `gridscore jobs | head -1`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        sys.exit(130)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("", "gridscore"):
            raise
        logging.getLogger(__name__).debug("where it happened", exc_info=error)
        refusal = UsageError(
            f"The module `{error.name}` is not installed here.",
            "Install what it is part of with pip; in a container, use the whole image, not the one for workers.",
        )
        sys.exit(_report(refusal))
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
    """The error that says what the system refused."""
    logging.getLogger(__name__).debug("where it happened", exc_info=error)
    with contextlib.suppress(OSError, ValueError):  # what could not be written is not tried again at the exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    what = os.strerror(error.errno or 0)
    if error.filename is not None:
        path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else error.filename
        return GridscoreError(f"`{path}` cannot be read or written: {what}.")
    if error.errno in _OUTPUT_ERRORS:
        return GridscoreError(f"The output cannot be written: {what}.", "Make room, or write it elsewhere.")
    return GridscoreError(f"The system refused: {what}.", "`gridscore -v COMMAND` shows where.")


def _report(error: GridscoreError) -> int:
    """Print an error for people; returns the exit code."""
    from gridscore.cli.output import errors, safe

    with contextlib.suppress(OSError):  # with nowhere to write to, the exit code has to say it
        errors.print(f"[bold red]error:[/] {safe(error.message, layout=True)}")
        if error.hint:
            errors.print(safe(error.hint, layout=True), style="dim")
    return error.exit_code
