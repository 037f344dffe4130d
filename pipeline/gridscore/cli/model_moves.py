"""`gridscore model promote`, `rollback`, `alias`, `check`, `rollout`, `log`: what is live, and who made it so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gridscore.cli.options import (
    AllowChanged,
    AllowPython,
    Connection,
    JobName,
    Json,
    ModelName,
    Override,
    Reach,
    Why,
    ask,
    run_on,
)
from gridscore.cli.output import console, print_json, print_table, print_warnings, say
from gridscore.errors import UsageError

if TYPE_CHECKING:
    from gridscore.grid import Grid
    from gridscore.models.record import Entry

Alias = Annotated[str, typer.Option("--alias", help="The alias to point at the version.")]


def promote(
    name: ModelName,
    *,
    version: Annotated[int | None, typer.Option(help="The version; an earlier one rolls back.", min=1)] = None,
    previous: Annotated[bool, typer.Option("--previous", help="Roll back: to where the alias pointed before.")] = False,
    alias: Alias = "champion",
    allow_changed_features: AllowChanged = False,
    why: Why = "",
    override: Override = "",
    allow_python: AllowPython = None,  # noqa: ARG001 -- its callback does it
    connection: Reach,
    as_json: Json = False,
) -> None:
    """Point an alias at a version; workers score with it within a second, from one batch to the next.

    It has to pass the gates of the jobs that follow the alias; going back to the previous version does not.

    Example: [bold]gridscore model promote late --version 3 --why "trained on November"[/]
    """
    if (version is None) is not previous:
        raise UsageError("Give either --version N or --previous.", "`gridscore model list` shows the versions.")
    _move(name, version, alias, connection, allow=allow_changed_features, why=why, override=override, as_json=as_json)


def rollback(
    name: ModelName,
    *,
    alias: Alias = "champion",
    allow_changed_features: AllowChanged = False,
    why: Why = "",
    connection: Reach,
    as_json: Json = False,
) -> None:
    """Point an alias where it pointed before; twice, and it is where it was. Gates are not asked.

    Example: [bold]gridscore model rollback late --why "declines too many"[/]
    """
    _move(name, None, alias, connection, allow=allow_changed_features, why=why, override="", as_json=as_json)


def _move(
    name: str,
    version: int | None,
    alias: str,
    connection: Connection,
    *,
    allow: bool,
    why: str,
    override: str,
    as_json: bool,
) -> None:
    import msgspec

    from gridscore.cli.remote import Verb
    from gridscore.client import Client
    from gridscore.models import ModelVersion
    from gridscore.models.fit import fit_warnings

    async def main(grid: Grid) -> tuple[ModelVersion, list[str]]:
        client = Client(grid)
        if version is None:
            found = await client.rollback_model(name, alias, allow_changed_features=allow, why=why)
        else:
            found = await client.promote_model(
                name, version, alias, allow_changed_features=allow, why=why, override=override
            )
        return found, fit_warnings(await client.following(name, alias), found)

    given: dict[str, Any] = {"alias": alias, "allow_changed_features": allow, "why": why}
    given |= {} if version is None else {"version": version, "override": override}
    words = ("models", name, "rollback" if version is None else "promote")
    by = Verb("POST", words, given, made=lambda answer: (msgspec.convert(answer, ModelVersion), answer["warnings"]))
    found, told = run_on(connection, main, by=by)
    print_warnings(told)
    if as_json:
        print_json({"alias": alias, **found.to_json()})
        return
    say(f"Version {found.version} of the model {name} is now its `{alias}`.", to=console)


def alias_(
    name: ModelName,
    alias: Annotated[str, typer.Argument(help="The alias.", show_default=False)],
    *,
    version: Annotated[int | None, typer.Option(help="Point it at this version.", min=1)] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove it; no job may follow it.")] = False,
    allow_changed_features: AllowChanged = False,
    why: Why = "",
    override: Override = "",
    connection: Reach,
    as_json: Json = False,
) -> None:
    """Point an alias at a version, as `promote` does, or remove it.

    Example: [bold]gridscore model alias late challenger --remove[/]
    """
    from gridscore.cli.remote import Verb
    from gridscore.client import Client

    if (version is None) is not remove:
        raise UsageError("Give either --version N or --remove.", "`gridscore model list` shows the aliases.")
    if version is not None:
        _move(
            name, version, alias, connection, allow=allow_changed_features, why=why, override=override, as_json=as_json
        )
        return
    by = Verb("DELETE", ("models", name, "aliases", alias), query={"why": why})
    run_on(connection, lambda grid: Client(grid).remove_alias(name, alias, why=why), by=by)
    if as_json:
        print_json({"removed": {"name": name, "alias": alias}})
        return
    say(f"The alias `{alias}` of the model {name} is removed.", to=console)


def check(
    name: ModelName,
    *,
    version: Annotated[int, typer.Option(help="The version to judge.", min=1, show_default=False)],
    alias: Annotated[str, typer.Option(help="The alias that it would get.")] = "champion",
    allow_python: AllowPython = None,  # noqa: ARG001 -- its callback does it
    connection: Reach,
    as_json: Json = False,
) -> None:
    """Ask the gates of the jobs that follow an alias whether a version would pass; nothing is changed.

    The exit code is 7 if it would not.

    Example: [bold]gridscore model check late --version 3[/]
    """
    from gridscore.cli.remote import Verb
    from gridscore.client import Client
    from gridscore.errors import GateError

    async def main(grid: Grid) -> dict[str, Any]:
        found = await Client(grid).check_model(name, version, alias)
        passed = all(verdict.passed for verdicts in found.values() for verdict in verdicts)
        jobs = {job: [verdict.to_json() for verdict in verdicts] for job, verdicts in found.items()}
        return {"passed": passed, "jobs": jobs}

    by = Verb("GET", ("models", name, "check"), query={"version": version, "alias": alias})
    found = run_on(connection, main, by=by)
    if as_json:
        print_json({"name": name, "version": version, "alias": alias, **found})
    else:
        rows = [
            (job, verdict["gate"], "passed" if verdict["passed"] else "FAILED", verdict["text"])
            for job, verdicts in found["jobs"].items()
            for verdict in verdicts
        ]
        print_table(
            ("JOB", "GATE", "VERDICT", "WHY"), rows, empty="No job that follows this alias has gates: it would pass."
        )
    if not found["passed"]:
        raise typer.Exit(GateError.exit_code)


def rollout(job: JobName, *, connection: Reach, as_json: Json = False) -> None:
    """Show which worker of a job scores with which version of its model, and why one is behind.

    A worker that cannot use a version goes on with the one that it has.

    Example: [bold]gridscore model rollout flights[/]
    """
    import msgspec

    from gridscore.cli.remote import Verb
    from gridscore.operations.rollout import Rollout
    from gridscore.operations.rollout import rollout as look

    by = Verb("GET", ("jobs", job, "rollout"), made=lambda answer: msgspec.convert(answer, Rollout))
    found = ask(connection, lambda grid: look(grid, job), by=by)
    if as_json:
        print_json(found.to_json())
        return
    say(f"The job {job} is meant to score with version {found.version} of the model {found.model}.", to=console)
    rows = [
        (worker.worker, worker.host, worker.pid, worker.partitions, worker.version or None, worker.state, worker.why)
        for worker in found.workers
    ]
    columns = ("WORKER", "HOST", "PID", "PARTITIONS", "VERSION", "STATE", "WHY")
    print_table(columns, rows, empty="No worker takes part in it; `gridscore worker` starts one.")


def log(name: ModelName, *, connection: Reach, as_json: Json = False) -> None:
    """Show what was done with a model, by whom and why, the latest last; the last 200 entries are kept.

    Who did it is what the process says of itself: the name of its user and its host.

    Example: [bold]gridscore model log late[/]
    """
    import msgspec

    from gridscore.cli.remote import Verb
    from gridscore.models import Registry
    from gridscore.models.record import Entry

    by = Verb("GET", ("models", name, "log"), made=lambda answer: msgspec.convert(answer, list[Entry]))
    entries = ask(connection, lambda grid: Registry(grid).log(name), by=by)
    if as_json:
        print_json([msgspec.to_builtins(entry) for entry in entries])
        return
    rows = [(e.at[:19].replace("T", " "), e.by, e.action, _what(e), _why(e)) for e in entries]
    print_table(("AT (UTC)", "BY", "ACTION", "WHAT", "WHY"), rows, empty="Nothing was done since there is a log.")


def _what(entry: Entry) -> str:
    if not entry.alias:
        return f"v{entry.version}" if entry.version else ""
    before = f"v{entry.before}" if entry.before else "nothing"
    return f"{entry.alias}: {before} → {f'v{entry.version}' if entry.version else 'nothing'}"


def _why(entry: Entry) -> str:
    gates = f"gates overridden: {entry.override} ({entry.failed})" if entry.override else ""
    return "; ".join(filter(None, (entry.why, gates)))
