"""The command `gridscore`: puts the command groups together, and prints errors for people."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer

from pipeline.errors import GridscoreError

app = typer.Typer(
    name="gridscore",
    help="Machine-learning inference on live data inside an ordinary Hazelcast cluster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"gridscore {version('gridscore')}")
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
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(message)s", level=logging.DEBUG if verbose else logging.WARNING
    )
    # The client logs a traceback for each address that does not answer; our own error says it once.
    logging.getLogger("hazelcast").setLevel(logging.INFO if verbose else logging.CRITICAL)
    if not verbose:
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)


def main() -> None:
    """Run the command line. Errors that a person can act on are printed without a traceback."""
    try:
        app()
    except GridscoreError as error:
        from rich.markup import escape

        from pipeline.cli.output import errors

        errors.print(f"[bold red]error:[/] {escape(error.message)}", highlight=False, soft_wrap=True)
        if error.hint:
            errors.print(escape(error.hint), style="dim", highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our output has gone, as in `gridscore jobs | head -1`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        sys.exit(130)
