"""`gridscore experiment`: canaries, splits and shadows of a job's model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gridscore.cli.options import AllowChanged, App, Connection, JobName, Json, Override, Why, ask, run_on, valid
from gridscore.cli.output import console, print_json, print_table, say
from gridscore.errors import UsageError

if TYPE_CHECKING:
    from gridscore.models.experiment import Standing

app = App(no_args_is_help=True)


Chosen = Annotated[
    int | None, typer.Option("--version", metavar="N", help="Of several challengers, this one.", show_default=False)
]


@app.command()
def start(
    job: JobName,
    *,
    version: Annotated[
        list[str],
        typer.Option("--version", metavar="N|ALIAS", help="The challenger; repeat for several.", show_default=False),
    ],
    steps: Annotated[
        str | None, typer.Option(metavar="5,25,100", help="A canary: percent of the entities, step by step.")
    ] = None,
    every: Annotated[str | None, typer.Option(metavar="TIME", help="Go to the next step by itself: 10m, 1h.")] = None,
    split: Annotated[
        float | None,
        typer.Option("--split", metavar="PERCENT", help="An A/B test: percent of the entities for each challenger."),
    ] = None,
    shadow: Annotated[bool, typer.Option("--shadow", help="Score every event beside the champion.")] = False,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="EXPRESSION", help="What tells entities apart. Else the event's key."),
    ] = None,
    max_errors: Annotated[
        float | None,
        typer.Option("--max-errors", help="End it if a larger part has no score. Else 0.01."),
    ] = None,
    max_us: Annotated[float | None, typer.Option("--max-us", help="End it at more CPU microseconds a row.")] = None,
    max_psi: Annotated[float | None, typer.Option("--max-psi", help="End it if scores shift by a larger PSI.")] = None,
    least: Annotated[
        int | None, typer.Option("--least", help="Events before it is judged, and in each step. Else 500.")
    ] = None,
    outcome: Annotated[
        list[str] | None,
        typer.Option(
            "--outcome",
            metavar="METRIC,BOUND=N",
            help="End it if labels show that it is not so: `auc,at_least=0.8`, `log_loss,worse_by=0.02`, "
            "`recall,decision=decline,worse_by=0.05`; repeat for several.",
        ),
    ] = None,
    least_labels: Annotated[
        int | None,
        typer.Option("--least-labels", help="Labels before these are judged, and in each step; 100,000 at most."),
    ] = None,
    allow_changed_features: AllowChanged = False,
    why: Why = "",
    connection: Connection,
    as_json: Json = False,
) -> None:
    """Begin an experiment: a canary in steps, a split, or a shadow. Results say who made them: `variant`.

    What is not given is as `experiment` in the job file says.

    Example: [bold]gridscore experiment start late --version 3 --steps 5,25,50,100 --every 10m --max-psi 0.25[/]
    """
    from gridscore.client import Client
    from gridscore.job.types import Duration, seconds_of

    seconds = None if every is None else seconds_of(valid(Duration, "--every", every))
    try:
        shares = [float(each) for each in steps.split(",")] if steps else None
    except ValueError:
        raise UsageError(f"--steps: `{steps}` is not a list of percents.", "As in `--steps 5,25,50,100`.") from None
    bounds = [_bound(each) for each in outcome] if outcome else None

    found = run_on(
        connection,
        lambda grid: Client(grid).start_experiment(
            job,
            *version,
            steps=shares,
            every=seconds,
            split=split,
            shadow=shadow or None,
            key=key,
            max_errors=max_errors,
            max_us=max_us,
            max_psi=max_psi,
            least=least,
            outcomes=bounds,
            least_labels=least_labels,
            allow_changed_features=allow_changed_features,
            why=why,
            wait=True,
        ),
    )
    if as_json:
        print_json(found.to_json())
        return
    what = "every event, beside the champion" if found.kind == "shadow" else f"{found.share:g} % of the entities"
    for each in found.challengers:
        say(f"Version {each.version} of the model {found.model} scores {what}.", to=console)


def _bound(text: str) -> dict[str, Any]:
    """A bound as the job file has it, of `METRIC,BOUND=NUMBER`."""
    name, *rest = text.split(",")
    found: dict[str, Any] = {"name": name.strip()}
    for each in rest:
        what, _, value = (part.strip() for part in each.partition("="))
        try:
            found[what] = value if what == "decision" else float(value)
        except ValueError:
            raise UsageError(f"--outcome: `{each}` is not a bound.", "As in `--outcome auc,at_least=0.8`.") from None
    return found


@app.command()
def status(job: JobName, *, connection: Connection, as_json: Json = False) -> None:
    """Show how an experiment stands, and whether its variants differ by more than chance.

    Example: [bold]gridscore experiment status late[/]
    """
    from gridscore.client import Client

    _show(ask(connection, lambda grid: Client(grid).experiment(job)), as_json=as_json)


@app.command()
def stop(job: JobName, *, version: Chosen = None, why: Why = "", connection: Connection, as_json: Json = False) -> None:
    """End an experiment: the champion scores all events. What a shadow has scored is removed.

    With --version, only that challenger ends, and the others go on.

    Example: [bold]gridscore experiment stop late --why "no better"[/]
    """
    from gridscore.client import Client

    _show(run_on(connection, lambda grid: Client(grid).stop_experiment(job, version=version, why=why)), as_json=as_json)


@app.command()
def promote(
    job: JobName,
    *,
    version: Chosen = None,
    allow_changed_features: AllowChanged = False,
    why: Why = "",
    override: Override = "",
    connection: Connection,
    as_json: Json = False,
) -> None:
    """Make a challenger the champion, if it passes the gates, and end the experiment.

    Example: [bold]gridscore experiment promote late --why "declines less"[/]
    """
    from gridscore.client import Client

    given = {"version": version, "allow_changed_features": allow_changed_features, "why": why, "override": override}
    _show(run_on(connection, lambda grid: Client(grid).promote_experiment(job, **given)), as_json=as_json)  # type: ignore[arg-type]


def _show(found: Standing, *, as_json: bool) -> None:
    if as_json:
        print_json(found.to_json())
        return
    say(found.text, to=console)
    variants, counts, outcomes = found.variants, found.counts, found.experiment.outcomes
    rows = [
        (
            each["variant"],
            "" if each["version"] is None else f"v{each['version']}",
            *(f"{each[figure]:,}" for figure in ("events", "errors", "us_per_row")),
            "" if each["psi"] is None else f"{each['psi']:.4g}",
            f"{each['labels']:,}" if "labels" in each else "",
        )
        for each in variants
    ]
    print_table(("VARIANT", "VERSION", "EVENTS", "ERRORS", "µS/ROW", "PSI", "LABELS"), rows, empty="")
    differences = [
        (
            e.variant,
            e.what,
            f"{e.champion:.5g}",
            f"{e.challenger:.5g}",
            f"{e.less:+.3g} to {e.most:+.3g}",
            f"{e.p:.3g}",
        )
        for e in found.compared()
    ]
    columns = ("VARIANT", "OF", "CHAMPION", "CHALLENGER", "DIFFERENCE (95 %)", "P")
    print_table(columns, differences, empty="Too little was scored to compare.")
    if found.experiment.limits.outcomes:
        judged = [
            (
                each["variant"],
                each["metric"],
                *(("" if each[what] is None else f"{each[what]:.4g}") for what in ("champion", "value", "worse")),
                each["problem"] or f"{each['low']:.4g} to {each['high']:.4g}",
                each["bound"],
            )
            for each in found.outcomes
        ]
        titles = ("VARIANT", "OUTCOME", "CHAMPION", "CHALLENGER", "WORSE BY", "INTERVAL (95 %)", "BOUND")
        print_table(titles, judged, empty="Too few labels have come to judge outcomes.")
    if outcomes.problem:
        say(f"Outcomes cannot be judged: {outcomes.problem}.", to=console)
    if outcomes.invalid:
        say(f"{outcomes.invalid:,} labels cannot be used.", to=console)
    for number, text in (
        (counts.nobodys, "events have no entity, and are the champion's"),
        (counts.unseen, "events were left out by the shadow"),
    ):
        if number:
            say(f"{number:,} {text}.", to=console)
    for each in variants:
        if each["behind"]:
            said = f"{each['behind']:,} events of the {each['variant']} were the champion's, as a worker did not score "
            say(f"{said}with it.", to=console)
        if each["error"]:
            say(f"A worker does not score with the {each['variant']}: {each['error']}", to=console)
