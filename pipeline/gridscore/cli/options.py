"""Options that commands share, and the connection made of them."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import re
from contextlib import asynccontextmanager, redirect_stderr, suppress
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import typer

from gridscore.cli.output import errors, run, safe, say
from gridscore.errors import SettingsError, UsageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable

    from gridscore.cli.remote import Verb
    from gridscore.grid import Grid, GridSettings

_ANSWER_SECONDS, _TIMES = 15.0, 4

# Names that a shell may put into a command line as they are: of others, pressing the wrong key would run a part, or
# what looks like a name would be an option.
_HARMLESS = re.compile(r"(?!-)[\w.:@+-]{1,200}")

_T = TypeVar("_T")
_Command = TypeVar("_Command", bound="Callable[..., Any]")

Members = Annotated[
    list[str] | None,
    typer.Option(
        "--members",
        "-m",
        metavar="HOST:PORT",
        help="A member of the cluster; repeat for several. Else GRIDSCORE_MEMBERS, the settings file, or the cluster "
        "that `gridscore up` runs on this machine.",
        rich_help_panel="Connection",
    ),
]
ClusterName = Annotated[
    str | None,
    typer.Option("--cluster-name", metavar="NAME", help="Name of the cluster.", rich_help_panel="Connection"),
]
SettingsFile = Annotated[
    Path | None,
    typer.Option(
        "--settings",
        metavar="FILE",
        help="Settings file (TOML): members, TLS, credentials. Else GRIDSCORE_CONFIG or ./gridscore.toml.",
        rich_help_panel="Connection",
    ),
]


def _names(look: Callable[[Grid], Coroutine[Any, Any, Iterable[str]]]) -> Callable[[typer.Context], list[str]]:
    """What a shell offers for a word: names in the cluster that the words before lead to; none without a cluster."""

    def names(context: typer.Context) -> list[str]:
        given = (context.params.get(f"connection_{name}") for name in _CONNECTION)
        with suppress(Exception), redirect_stderr(StringIO()):
            return sorted(filter(_HARMLESS.fullmatch, run_on(Connection(*given), look)))
        return []

    return names


async def _job_names(grid: Grid) -> Iterable[str]:
    from gridscore.job import Jobs

    return [record.name for record in await Jobs(grid).all()]


async def _model_names(grid: Grid) -> Iterable[str]:
    from gridscore.models import Registry

    return [model.name for model in await Registry(grid).list()]


async def _map_names(grid: Grid) -> Iterable[str]:
    from gridscore.grid import transport

    return await transport.map_names(grid.client)


job_names, model_names, map_names = map(_names, (_job_names, _model_names, _map_names))

JobName = Annotated[str, typer.Argument(help="Name of the job.", show_default=False, autocompletion=job_names)]
ModelName = Annotated[str, typer.Argument(help="Name of the model.", show_default=False, autocompletion=model_names)]
JobOrFile = Annotated[
    str, typer.Argument(help="A submitted job, or a job file.", show_default=False, autocompletion=job_names)
]
AllowChanged = Annotated[
    bool,
    typer.Option(
        "--allow-changed-features", help="Accept features that have the names of training but another definition."
    ),
]
Why = Annotated[str, typer.Option("--why", metavar="TEXT", help="The reason, for the log of the model.")]
Override = Annotated[
    str, typer.Option("--override", metavar="REASON", help="Go live even if gates have failed; the log says why.")
]
ChosenModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="FILE|VERSION|ALIAS",
        help="The model: a file, or a version of the job's. Else the one that scores.",
    ),
]

_PYTHON = {"envvar": "GRIDSCORE_ALLOW_PYTHON", "metavar": "A,B", "show_envvar": False}
_PYTHON_HELP = (
    "Modules whose functions the features of jobs may call, with all below them; also GRIDSCORE_ALLOW_PYTHON."
)


def modules_in(text: str | None) -> list[str]:
    """The modules that an option names.

    Raises:
        UsageError: One is not the name of a module.
    """
    found = [name for name in map(str.strip, (text or "").split(",")) if name]
    if not found:
        return []
    from gridscore.job.types import MODULE

    if wrong := [name for name in found if not re.fullmatch(MODULE, name)]:
        text = f"--allow-python: `{wrong[0]}` is not the name of a module."
        raise UsageError(text, "As in --allow-python acme.features")
    return found


def _allow(text: str | None) -> str | None:
    if modules := modules_in(text):
        from gridscore.features.functions import allow_python

        allow_python(*modules)
    return text


AllowPython = Annotated[str | None, typer.Option("--allow-python", help=_PYTHON_HELP, callback=_allow, **_PYTHON)]
"""Its callback allows them in this process."""
AllowPythonInWorkers = Annotated[str | None, typer.Option("--allow-python", help=_PYTHON_HELP, **_PYTHON)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


class Connection(NamedTuple):
    """Where a command finds its cluster."""

    members: list[str] | None = None
    cluster_name: str | None = None
    settings: Path | None = None
    server: str | None = None

    @property
    def by_server(self) -> str | None:
        """The server that is to be asked, if one is; members that are named go before one of the environment."""
        named = any((self.members, self.cluster_name, self.settings))
        if self.server and named:
            raise UsageError("--server and members are both given.", "Give one of them: a server knows its cluster.")
        return self.server or (None if named else os.environ.get("GRIDSCORE_SERVER")) or None


_CONNECTION = {"members": Members, "cluster_name": ClusterName, "settings": SettingsFile}

ServerAddress = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="URL",
        help="Ask `gridscore serve` there, rather than the members. Else GRIDSCORE_SERVER. The key: GRIDSCORE_KEY, or "
        "in the file GRIDSCORE_KEY_FILE; authority of its certificate: the file GRIDSCORE_SERVER_CA.",
        rich_help_panel="Connection",
    ),
]

# The connection of a command that control has, too.
Reach = Annotated[Connection, ServerAddress]


def with_connection(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with the options of a connection in place of its parameter `connection`, if it has one."""
    parameters = dict(inspect.signature(command, eval_str=True).parameters)
    if "connection" not in parameters:
        return command
    served = parameters["connection"].annotation is not Connection
    offered = {**_CONNECTION, "server": ServerAddress} if served else _CONNECTION

    def expanded(**given: Any) -> Any:
        connection = Connection(*(given.pop(f"connection_{name}") for name in offered))
        return command(**given, connection=connection)

    options = [
        inspect.Parameter(f"connection_{name}", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in offered.items()
    ]
    order = [new for name, each in parameters.items() for new in (options if name == "connection" else [each])]
    expanded.__signature__ = inspect.Signature(order)  # type: ignore[attr-defined]
    expanded.__annotations__ = {each.name: each.annotation for each in order}
    expanded.__doc__, expanded.__name__ = command.__doc__, command.__name__
    return expanded


class App(typer.Typer):
    """Commands; a parameter `connection` stands for the options of a connection."""

    def command(self, *args: Any, **kwargs: Any) -> Callable[[_Command], _Command]:
        return _adding(super().command(*args, **kwargs))

    def callback(self, *args: Any, **kwargs: Any) -> Callable[[_Command], _Command]:
        return _adding(super().callback(*args, **kwargs))


def _adding(add: Callable[[Callable[..., Any]], Any]) -> Callable[[_Command], _Command]:
    def decorate(command: _Command) -> _Command:
        add(with_connection(command))
        return command

    return decorate


def grid_settings(connection: Connection) -> GridSettings:
    """Settings of a command's options, or of the cluster that `gridscore up` runs here if nothing names one.

    Raises SettingsError if they are not valid.
    """
    from gridscore.grid import GridSettings, or_local_cluster
    from gridscore.grid.connection import DEFAULT_ADDRESS

    if (file := connection.settings) is not None:
        if not file.is_file():
            raise SettingsError(
                f"--settings: there is no file {file}",
                "Give the path of a TOML file, or leave it out: GRIDSCORE_CONFIG or ./gridscore.toml is read then.",
            )
        os.environ["GRIDSCORE_CONFIG"] = str(file)
    named = GridSettings.load(members=connection.members, cluster_name=connection.cluster_name)
    if connection.by_server and (connection.server or not named.members):
        from gridscore.cli.remote import needs_members

        raise needs_members()
    found = or_local_cluster(named)
    if not named.members:
        where = ", ".join(found.members) or DEFAULT_ADDRESS
        whose = "which runs on this machine" if found.members else "the default"
        _tell(f"[dim]Cluster [bold]{safe(found.cluster_name)}[/] at {safe(where)}, {whose}[/]")
    return found


@functools.cache
def _tell(line: str) -> None:
    """Print a line once, however often a command connects."""
    errors.print(line)


@asynccontextmanager
async def connected(connection: Connection) -> AsyncIterator[Grid]:
    """A connection for the time of a command.

    Raises ConnectionFailedError if no member answered, or the cluster refused this client.
    """
    from gridscore.grid import connect

    async with await connect(grid_settings(connection)) as grid:
        yield grid


@asynccontextmanager
async def working(connection: Connection) -> AsyncIterator[Grid]:
    """As `connected`, for work that is not given up: it says which members do not answer while it waits for them."""
    async with connected(connection) as grid:
        telling = asyncio.create_task(_tell_of_silence(grid))
        try:
            yield grid
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)


async def _tell_of_silence(grid: Grid) -> None:
    from gridscore.grid.management import silent_members
    from gridscore.grid.transport import SILENT_HINT

    told: list[str] = []
    while True:
        await asyncio.sleep(_ANSWER_SECONDS)
        if silent := await silent_members(grid):
            silent = await silent_members(grid)  # or we were busy ourselves
        if silent and silent != told:
            say(f"There is no answer from {', '.join(silent)}; waiting. {SILENT_HINT}", "yellow")
        elif told and not silent:
            say("All members of the cluster answer now.")
        told = silent


def run_on(
    connection: Connection,
    work: Callable[[Grid], Coroutine[Any, Any, _T]],
    *,
    tells_of_silence: bool = False,
    by: Verb | None = None,
) -> _T:
    """Connect, and run the work of a command to its end; or have a server do it, `by` a verb of control.

    `tells_of_silence`: whether the work itself says that members do not answer.
    """
    if by is not None and (server := connection.by_server):
        answer: _T = by.ask(server)
        return answer

    async def main() -> _T:
        async with (connected if tells_of_silence else working)(connection) as grid:
            return await work(grid)

    result: _T = run(main())
    return result


def ask(
    connection: Connection,
    question: Callable[[Grid], Coroutine[Any, Any, _T]],
    *,
    times: float = _TIMES,
    by: Verb | None = None,
) -> _T:
    """Connect, and ask: unlike work, a question is given up where a member does not answer.

    `times`: for how many times 15 seconds it may take while all members answer.
    """
    return run_on(connection, lambda grid: answered(grid, question(grid), times), tells_of_silence=True, by=by)


async def answered(grid: Grid, asking: Awaitable[_T], times: float = _TIMES) -> _T:
    """What the cluster answers; it is given longer while no member is silent.

    Raises GridError if it does not answer in time; the message names the members that are silent.
    """
    from gridscore.grid.management import silent_members, unanswered

    asked, seconds = asyncio.ensure_future(asking), 0.0
    try:
        while not (await asyncio.wait({asked}, timeout=_ANSWER_SECONDS))[0]:
            seconds += _ANSWER_SECONDS
            if (silent := await silent_members(grid)) or seconds >= _ANSWER_SECONDS * times:
                raise unanswered(silent, seconds)
        return asked.result()
    finally:
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)


def valid(kind: Any, option: str, text: str) -> str:
    """The text of an option, if it is one of a kind. Raises UsageError if it is not."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return str(TypeAdapter(kind).validate_python(text))
    except ValidationError as error:
        raise UsageError(f"{option}: {error.errors()[0]['msg'].removeprefix('Value error, ')}.") from None
