"""`gridscore model`: push, list, show, compare, tag and delete the versions of models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gridscore.cli import model_files, model_moves, model_report
from gridscore.cli.options import (
    AllowChanged,
    AllowPython,
    App,
    Connection,
    Json,
    ModelName,
    Override,
    Reach,
    Why,
    ask,
    run_on,
)
from gridscore.cli.output import console, counted, print_json, print_table, print_warnings, safe, say
from gridscore.texts import count_text

if TYPE_CHECKING:
    from gridscore.features.encodings import Learnt
    from gridscore.grid import Grid
    from gridscore.models import Added, ModelVersion
    from gridscore.models.record import About
    from gridscore.operations.parity import Parity

app = App(no_args_is_help=True)

Description = Annotated[
    str | None, typer.Option("--description", metavar="TEXT", help="For people; it replaces the one before.")
]
Tags = Annotated[list[str] | None, typer.Option("--tag", metavar="KEY=TEXT", help="A tag to set; repeatable.")]


@app.command()
def push(
    file: Annotated[
        Path | None,
        typer.Argument(help="What `booster.save_model('model.ubj')` wrote: XGBoost UBJ or JSON.", show_default=False),
    ] = None,
    *,
    name: Annotated[str, typer.Option("--name", "-n", help="Name of the model.", show_default=False)],
    alias: Annotated[str | None, typer.Option(help="Point this alias at the version, `champion` for instance.")] = None,
    metric: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A measure of its quality; repeatable.")
    ] = None,
    categories: Annotated[
        Path | None,
        typer.Option(
            help="Where the categories are, if the model file has none: a matrix of `gridscore features`, "
            'another model, or a JSON file {"feature": ["text of code 0", …]}.'
        ),
    ] = None,
    from_mlflow: Annotated[
        str | None, typer.Option(metavar="URI", help="Instead of a file: a model that MLflow keeps.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Make a new version even if this very model is there already.")
    ] = False,
    description: Description = None,
    tag: Tags = None,
    allow_changed_features: AllowChanged = False,
    why: Why = "",
    override: Override = "",
    parity: Annotated[
        bool, typer.Option(help="Compare what it gives for the newest events of its jobs with the same offline.")
    ] = True,
    allow_python: AllowPython = None,  # noqa: ARG001 -- its callback does it
    connection: Connection,
    as_json: Json = False,
) -> None:
    """Push a model file as the next version of a model.

    With an alias, it has to pass the gates of the jobs that follow it.

    Example: [bold]gridscore model push model.ubj --name late --alias champion --metric auc=0.93[/]
    """
    import asyncio
    from tempfile import TemporaryDirectory

    from rich.progress import DownloadColumn

    from gridscore.client import Client
    from gridscore.errors import UsageError
    from gridscore.models.fit import fit_warnings, promotion_problems
    from gridscore.models.inputs import parse_metrics, parse_tags, read_categories
    from gridscore.models.mlflow_models import downloaded
    from gridscore.operations.parity import parity_at_push

    if (file is None) is (from_mlflow is None):
        raise UsageError("Give either a file or --from-mlflow URI.", "`gridscore model push model.ubj --name NAME`")
    metrics, tags = parse_metrics(metric or ()), parse_tags(tag or ())
    mapping = None if categories is None else read_categories(categories)

    async def main(grid: Grid) -> tuple[Added, list[str], list[Parity]]:
        client = Client(grid)
        jobs = await client.following(name, alias)
        with counted("checking", "pushing", DownloadColumn()) as told, TemporaryDirectory() as folder:
            path = file
            if from_mlflow is not None:
                path = await asyncio.to_thread(downloaded, from_mlflow, Path(folder))
            added = await client.add_model(
                path,
                name,
                source=from_mlflow or "",
                alias=alias,
                metrics=metrics,
                categories=mapping,
                description=description,
                tags=tags,
                allow_changed_features=allow_changed_features,
                why=why,
                override=override,
                again=again,
                progress=told,
            )
        warned = fit_warnings(jobs, added.version) if alias else promotion_problems(jobs, added.version)
        wanted = await client.following(name, None) if parity and added.is_new else ()
        return added, warned, await parity_at_push(grid, added.version, wanted)

    (version, is_new), told, compared = run_on(connection, main)
    print_warnings([*told, *(f"{each.job}: {each.first}" for each in compared if each.first is not None)])
    if as_json:
        certificates = [each.certificate.to_json() for each in compared]
        print_json({"new": is_new, "alias": alias, **version.to_json(), "parity": certificates})
        return
    what = f"is version {version.version}" if is_new else f"is there already, as version {version.version}"
    pointed = f", now the `{alias}`" if alias else ""
    console.print(f"[bold green]{safe(file or from_mlflow)}[/] {what} of the model {safe(name)}{safe(pointed)}.")
    if not is_new and metrics and metrics != version.metrics:
        say("Its metrics stay as they were; --again makes a new version with these.", "dim", to=console)
    for each in compared:
        say(f"Live events of {each.job} against offline: {each.certificate.text}.", to=console)
    _early_stopping(version)
    if is_new and not alias:
        say(f"Go live with it: gridscore model promote {name} --version {version.version}", "dim", to=console)


@app.command("list")
def list_(*, connection: Reach, as_json: Json = False) -> None:
    """List all models with their versions, the latest first.

    Example: [bold]gridscore model list --json[/]
    """
    import msgspec

    from gridscore.cli.remote import Verb
    from gridscore.models import Model, Registry

    by = Verb("GET", ("models",), made=lambda answer: msgspec.convert(answer, list[Model], strict=False))
    models = ask(connection, lambda grid: Registry(grid).list(), by=by)
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
    name: ModelName,
    *,
    version: Annotated[int | None, typer.Option(help="A version; else the alias decides.", min=1)] = None,
    alias: Annotated[str | None, typer.Option(help="An alias; without it `champion`, else the latest version.")] = None,
    connection: Reach,
    as_json: Json = False,
) -> None:
    """Show one version: features, categories, metrics, and where its model's aliases pointed.

    Example: [bold]gridscore model show late --version 3[/]
    """
    import msgspec

    from gridscore.cli.remote import Verb
    from gridscore.errors import ModelError, UsageError
    from gridscore.models import Model, Registry
    from gridscore.models.certificates import Certificate, certificates_of

    if version is not None and alias is not None:
        raise UsageError("--version and --alias are both given.", "Give one of them.")

    async def main(grid: Grid) -> tuple[Model, ModelVersion, list[Certificate]]:
        registry = Registry(grid)
        model = await registry.get(name)
        if version is None and alias is None and "champion" not in model.aliases:
            found = model.versions[0]
        else:
            found = await registry.resolve(name, alias=alias, version=version)
        return model, found, [each for each in await certificates_of(grid) if each.is_of(name, found.version)]

    def made(answer: dict[str, Any]) -> tuple[Model, ModelVersion, list[Certificate]]:
        model = msgspec.convert(answer, Model, strict=False)
        latest = None if alias or "champion" in model.aliases else model.versions[0].version
        number = version or latest or model.aliases.get(alias or "champion")
        found = next((each for each in model.versions if each.version == number), None)
        if found is None:
            what = f"no version {version}" if version else f"no alias `{alias}`"
            raise ModelError(f"The model `{name}` has {what}.", "`gridscore model list` shows what it has.")
        parity = msgspec.convert(answer["parity"], list[Certificate])
        return model, found, [each for each in parity if each.is_of(name, found.version)]

    model, found, certificates = ask(connection, main, by=Verb("GET", ("models", name), made=made))
    pointing, about, own = model.aliases_of(found.version), model.noted_of(found.version), model.noted_of(0)
    history = {alias: moves for alias, moves in model.to_json()["history"].items() if alias in model.aliases}
    if as_json:
        parity = [each.to_json() for each in certificates]
        whole = {"description": own.description, "tags": own.tags}
        noted = {"description": about.description, "tags": about.tags, "model": whole}
        print_json({**found.to_json(), **noted, "aliases": pointing, "history": history, "parity": parity})
        return
    facts = {
        "model": found.name,
        **_noted(own, "of the model"),
        "version": found.version,
        "aliases": ", ".join(pointing) or "none",
        **_noted(about, "of the version"),
        "objective": found.objective,
        **({"labels": _shortened(found.labels)} if found.labels else {}),
        "trees": f"{found.trees:,} in {found.rounds:,} rounds",
        "metrics": _metrics(found) or "none",
        "size": f"{_size(found.size)} in {count_text(found.chunks, 'chunk')}",
        "sha256": found.sha256,
        "xgboost": found.xgboost_version,
        **_trained(found),
        "pushed": f"{found.created_at}{f', from {found.source}' if found.source else ''}",
        **{alias: " → ".join(f"v{m['version']}" for m in moves) for alias, moves in history.items()},
        **{f"parity, {each.job}": f"{each.text}, {each.at[:16]}" for each in certificates},
    }
    width = max(map(len, facts))
    for label, value in facts.items():
        console.print(f"[bold]{safe(label):>{width}}[/]  ", end="")
        say(value, to=console)
    types = found.feature_types or ("",) * len(found.features)
    rows = [
        (number, feature, kind, _learnt(found.learnt.get(feature, ())))
        for number, (feature, kind) in enumerate(zip(found.features, types, strict=True), 1)
    ]
    console.print()
    print_table(("#", "FEATURE", "TYPE", "LEARNT"), rows, empty="")
    _early_stopping(found)


@app.command()
def diff(
    name: ModelName,
    before: Annotated[int, typer.Argument(help="A version.", min=1, show_default=False)],
    after: Annotated[int, typer.Argument(help="Another one.", min=1, show_default=False)],
    *,
    sample: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Score this matrix of `gridscore features` with both.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="A column it has kept: the labels, for metrics.")] = None,
    job: Annotated[
        str, typer.Option(help="Score the latest events of this job; else of the only one that uses the model.")
    ] = "",
    every: Annotated[bool, typer.Option("--all", help="Also what is the same.")] = False,
    connection: Connection,
    as_json: Json = False,
) -> None:
    """Show how two versions differ: parameters, features, categories, metrics, size, speed and scores.

    Example: [bold]gridscore model diff late 2 3 --sample check.parquet --label late[/]
    """
    from gridscore.client import Client

    found = run_on(
        connection, lambda grid: Client(grid).compare_models(name, before, after, sample=sample, label=label, job=job)
    )
    if as_json:
        print_json(found.to_json())
        return
    rows = [(fact.what, fact.before, fact.after) for fact in found.facts if every or fact.differs]
    print_table(("", f"V{before}", f"V{after}"), rows, empty="Nothing that is known of them differs.")
    console.print()
    if (scores := found.scores) is None:
        say("No rows were scored: --sample FILE or --job JOB says which.", "dim", to=console)
        return
    share = scores.equal / scores.rows
    say(f"{scores.rows:,} rows, {scores.of}: {scores.equal:,} have the same score ({share:.1%}).", to=console)
    say(f"mean score {scores.mean_before:.4g} → {scores.mean_after:.4g}; PSI {scores.psi:.3g}", to=console)
    say(f"difference: mean {scores.mean_difference:.3g}, largest {scores.largest_difference:.3g}", to=console)
    for metric, (old, new) in scores.metrics.items():
        say(f"{metric} {old:.4g} → {new:.4g}", to=console)


@app.command()
def tag(
    name: ModelName,
    tags: Annotated[list[str] | None, typer.Argument(metavar="KEY=TEXT", help="Tags to set.")] = None,
    *,
    version: Annotated[int | None, typer.Option(help="Of this version; else the model.", min=1)] = None,
    description: Description = None,
    remove: Annotated[list[str] | None, typer.Option(metavar="KEY", help="Remove a tag.")] = None,
    connection: Reach,
    as_json: Json = False,
) -> None:
    """Note tags and a description of a version, or of the model itself.

    Example: [bold]gridscore model tag late --version 3 owner=ana ticket=F-112 --description "with weather"[/]
    """
    import msgspec

    from gridscore.cli.remote import Verb
    from gridscore.models import Registry
    from gridscore.models.inputs import parse_tags
    from gridscore.models.record import About

    wanted, gone = parse_tags(tags or ()), remove or []
    given = {"version": version, "description": description, "tags": wanted, "remove": gone}
    about = run_on(
        connection,
        lambda grid: Registry(grid).describe(name, version, description=description, tags=wanted, remove=gone),
        by=Verb("POST", ("models", name, "describe"), given, made=lambda answer: msgspec.convert(answer, About)),
    )
    if as_json:
        print_json({"name": name, "version": version, "description": about.description, "tags": about.tags})
        return
    of = f"Version {version} of the model {name}" if version else f"The model {name}"
    say(f"{of}: {', '.join(f'{key}={text}' for key, text in about.tags.items()) or 'no tags'}", to=console)
    if about.description:
        say(about.description, to=console)


app.command()(model_moves.promote)
app.command()(model_moves.rollback)
app.command("alias")(model_moves.alias_)
app.command()(model_moves.check)
app.command()(model_moves.rollout)
app.command()(model_moves.log)
app.command()(model_report.report)
app.command()(model_files.export)
app.command()(model_files.pull)
app.command()(model_files.sample)
app.command("import")(model_files.import_)


@app.command()
def delete(
    name: ModelName,
    *,
    version: Annotated[int, typer.Option(help="The version to delete.", min=1, show_default=False)],
    connection: Reach,
    as_json: Json = False,
) -> None:
    """Delete a version that no alias points at, and no job names.

    Example: [bold]gridscore model delete late --version 1[/]
    """
    from gridscore.cli.remote import Verb
    from gridscore.client import Client

    by = Verb("DELETE", ("models", name, "versions", version))
    run_on(connection, lambda grid: Client(grid).delete_model(name, version), by=by)
    if as_json:
        print_json({"deleted": {"name": name, "version": version}})
        return
    say(f"Version {version} of the model {name} is deleted.", to=console)


def _early_stopping(version: ModelVersion) -> None:
    from gridscore.models.version import early_stopping

    if (text := early_stopping(version)) is not None:
        say(text, "yellow", to=console)


def _noted(about: About, of: str) -> dict[str, str]:
    tags = ", ".join(f"{key}={text}" for key, text in about.tags.items())
    told = {f"description {of}": about.description, f"tags {of}": tags}
    return {what: text for what, text in told.items() if text}


def _trained(version: ModelVersion) -> dict[str, str]:
    training, told = version.training, {}
    if training is not None and training.rows:
        told["trained on"] = f"{training.rows:,} rows, {training.sha256[:16]}…"
    if training is not None and training.parameters:
        told["parameters"] = ", ".join(f"{key}={text}" for key, text in training.parameters.items())
    return told


def _metrics(version: ModelVersion) -> str:
    return ", ".join(f"{name} {value:.6g}" for name, value in version.metrics.items())


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 2**10:,.1f} KiB"


def _learnt(found: Learnt) -> str:
    from gridscore.features.encodings import Encoding

    return (
        f"{_shortened(tuple(found.texts))}; others {found.other:g}"
        if isinstance(found, Encoding)
        else _shortened(found)
    )


def _shortened(categories: tuple[str, ...], shown: int = 6) -> str:
    more = f", … ({len(categories):,})" if len(categories) > shown else ""
    return ", ".join(categories[:shown]) + more
