"""`gridscore model`: push, list, show, promote and delete the versions of models."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 -- typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gridscore.cli.options import AllowChanged, App, Connection, Json, run_on
from gridscore.cli.output import console, print_json, print_table, print_warnings, progress_bar, safe, say
from gridscore.texts import count_text

if TYPE_CHECKING:
    from gridscore.grid import Grid
    from gridscore.models import Added, Model, ModelVersion

app = App(help="Models in the cluster: versions, aliases, what each was trained for.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Name of the model.", show_default=False)]
Alias = Annotated[str, typer.Option("--alias", help="The alias to point at the version.")]


@app.command()
def push(
    file: Annotated[
        Path,
        typer.Argument(help="What `booster.save_model('model.ubj')` wrote: XGBoost UBJ or JSON.", show_default=False),
    ],
    *,
    name: Annotated[str, typer.Option("--name", "-n", help="Name of the model.", show_default=False)],
    alias: Annotated[
        str | None, typer.Option("--alias", help="Point this alias at the version, `champion` for instance.")
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", metavar="NAME=VALUE", help="A measure of its quality; repeatable."),
    ] = None,
    categories: Annotated[
        Path | None,
        typer.Option(
            "--categories",
            help="Where the categories are, if the model file has none: a matrix of `gridscore features`, "
            'another model, or a JSON file {"feature": ["text of code 0", …]}.',
        ),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Make a new version even if this very model is there already.")
    ] = False,
    allow_changed_features: AllowChanged = False,
    connection: Connection,
    as_json: Json = False,
) -> None:
    """Push a model file as the next version of a model.

    Example: [bold]gridscore model push model.ubj --name late --alias champion --metric auc=0.93[/]
    """
    from rich.progress import DownloadColumn

    from gridscore.client import Client
    from gridscore.models.fit import fit_warnings, promotion_problems
    from gridscore.models.inputs import parse_metrics, read_categories

    metrics = parse_metrics(metric or ())
    mapping = None if categories is None else read_categories(categories)

    async def main(grid: Grid) -> tuple[Added, list[str]]:
        client = Client(grid)
        jobs = await client.following(name, alias)
        with progress_bar(DownloadColumn()) as bar:
            task = bar.add_task("checking", total=None)
            added = await client.models.add(
                file,
                name,
                alias=alias,
                metrics=metrics,
                categories=mapping,
                jobs=jobs if alias else None,
                allow_changed=allow_changed_features,
                again=again,
                progress=lambda done, total: bar.update(task, description="pushing", completed=done, total=total),
            )
        return added, fit_warnings(jobs, added.version) if alias else promotion_problems(jobs, added.version)

    (version, is_new), told = run_on(connection, main)
    print_warnings(told)
    if as_json:
        print_json({"new": is_new, "alias": alias, **version.to_json()})
        return
    what = f"is version {version.version}" if is_new else f"is there already, as version {version.version}"
    pointed = f", now the `{alias}`" if alias else ""
    console.print(f"[bold green]{safe(file)}[/] {what} of the model {safe(name)}{safe(pointed)}.")
    if not is_new and metrics and metrics != version.metrics:
        say("Its metrics stay as they were; --again makes a new version with these.", "dim", to=console)
    _early_stopping(version)
    if is_new and not alias:
        say(f"Go live with it: gridscore model promote {name} --version {version.version}", "dim", to=console)


@app.command("list")
def list_(
    *,
    connection: Connection,
    as_json: Json = False,
) -> None:
    """List all models with their versions, the latest first.

    Example: [bold]gridscore model list --json[/]
    """
    from gridscore.models import Registry

    models = run_on(connection, lambda grid: Registry(grid).list())
    if as_json:
        print_json([model.to_json() for model in models])
        return
    rows = []
    for model in models:
        for v in model.versions:
            aliases, pushed = ", ".join(model.aliases_of(v.version)), v.created_at[:16].replace("T", " ")
            rows.append((model.name, v.version, aliases, len(v.features), v.trees, pushed, _metrics(v)))
    columns = ("MODEL", "VERSION", "ALIASES", "FEATURES", "TREES", "PUSHED (UTC)", "METRICS")
    print_table(columns, rows, empty="No models. `gridscore model push FILE --name NAME` pushes one.")


@app.command()
def show(
    name: Name,
    *,
    version: Annotated[int | None, typer.Option("--version", help="A version; else the alias decides.", min=1)] = None,
    alias: Annotated[
        str | None, typer.Option("--alias", help="An alias; without it `champion`, else the latest version.")
    ] = None,
    connection: Connection,
    as_json: Json = False,
) -> None:
    """Show one version: features, categories, metrics, and where its model's aliases pointed.

    Example: [bold]gridscore model show late --version 3[/]
    """
    from gridscore.errors import UsageError
    from gridscore.models import Registry

    if version is not None and alias is not None:
        raise UsageError("--version and --alias are both given.", "Give one of them.")

    async def main(grid: Grid) -> tuple[Model, ModelVersion]:
        registry = Registry(grid)
        model = await registry.get(name)
        if version is None and alias is None and "champion" not in model.aliases:
            return model, model.versions[0]
        return model, await registry.resolve(name, alias=alias, version=version)

    model, found = run_on(connection, main)
    pointing = model.aliases_of(found.version)
    history = {alias: moves for alias, moves in model.to_json()["history"].items() if alias in model.aliases}
    if as_json:
        print_json({**found.to_json(), "aliases": pointing, "history": history})
        return
    facts = {
        "model": found.name,
        "version": found.version,
        "aliases": ", ".join(pointing) or "none",
        "objective": found.objective,
        "trees": f"{found.trees:,} in {found.rounds:,} rounds",
        "metrics": _metrics(found) or "none",
        "size": f"{_size(found.size)} in {count_text(found.chunks, 'chunk')}",
        "sha256": found.sha256,
        "xgboost": found.xgboost_version,
        "pushed": found.created_at,
        **{alias: " → ".join(f"v{m['version']}" for m in moves) for alias, moves in history.items()},
    }
    width = max(map(len, facts))
    for label, value in facts.items():
        console.print(f"[bold]{safe(label):>{width}}[/]  ", end="")
        say(value, to=console)
    types = found.feature_types or ("",) * len(found.features)
    rows = [
        (number, feature, kind, _shortened(found.categories.get(feature, ())))
        for number, (feature, kind) in enumerate(zip(found.features, types, strict=True), 1)
    ]
    console.print()
    print_table(("#", "FEATURE", "TYPE", "CATEGORIES"), rows, empty="")
    _early_stopping(found)


@app.command()
def promote(
    name: Name,
    *,
    version: Annotated[
        int | None, typer.Option("--version", help="The version; an earlier one rolls back.", min=1)
    ] = None,
    previous: Annotated[bool, typer.Option("--previous", help="Roll back: to where the alias pointed before.")] = False,
    alias: Alias = "champion",
    allow_changed_features: AllowChanged = False,
    connection: Connection,
    as_json: Json = False,
) -> None:
    """Point an alias at a version; workers score with it within a second, from one batch to the next.

    Example: [bold]gridscore model promote late --version 3[/]
    """
    from gridscore.client import Client
    from gridscore.errors import UsageError
    from gridscore.models.fit import fit_warnings

    if (version is None) is not previous:
        raise UsageError("Give either --version N or --previous.", "`gridscore model list` shows the versions.")

    async def main(grid: Grid) -> tuple[ModelVersion, list[str]]:
        client = Client(grid)
        jobs = await client.following(name, alias)
        found = await client.models.promote(
            name, version, alias, previous=previous, jobs=jobs, allow_changed=allow_changed_features
        )
        return found, fit_warnings(jobs, found)

    found, told = run_on(connection, main)
    print_warnings(told)
    if as_json:
        print_json({"alias": alias, **found.to_json()})
        return
    say(f"Version {found.version} of the model {name} is now its `{alias}`.", to=console)


@app.command()
def delete(
    name: Name,
    *,
    version: Annotated[int, typer.Option("--version", help="The version to delete.", min=1, show_default=False)],
    connection: Connection,
    as_json: Json = False,
) -> None:
    """Delete a version that no alias points at, and no job names.

    Example: [bold]gridscore model delete late --version 1[/]
    """
    from gridscore.client import Client

    async def main(grid: Grid) -> None:
        client = Client(grid)
        await _refuse_if_used(client, name, version)
        await client.models.delete(name, version)

    run_on(connection, main)
    if as_json:
        print_json({"deleted": {"name": name, "version": version}})
        return
    say(f"Version {version} of the model {name} is deleted.", to=console)


async def _refuse_if_used(client: Any, name: str, version: int) -> None:
    from gridscore.errors import ModelError
    from gridscore.job.life import ENDED

    for record in await client.jobs.all():
        model, release = record.job.model, record.release
        if record.state in ENDED or model.name != name:
            continue
        released = release is not None and release.version == version
        if model.version == version or (released and (await client.version_of(record.job, release)).version == version):
            raise ModelError(
                f"The job `{record.name}` scores with version {version} of the model `{name}`.",
                f"Update its job file, or cancel it first: `gridscore cancel {record.name}`.",
            )


def _early_stopping(version: ModelVersion) -> None:
    from gridscore.models.version import early_stopping

    if (text := early_stopping(version)) is not None:
        say(text, "yellow", to=console)


def _metrics(version: ModelVersion) -> str:
    return ", ".join(f"{name} {value:.6g}" for name, value in version.metrics.items())


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 2**10:,.1f} KiB"


def _shortened(categories: tuple[str, ...], shown: int = 6) -> str:
    more = f", … ({len(categories):,})" if len(categories) > shown else ""
    return ", ".join(categories[:shown]) + more
