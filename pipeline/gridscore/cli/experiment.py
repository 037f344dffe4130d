"""`gridscore experiment`: canaries, splits and shadows of a job's model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gridscore.cli.options import AllowChanged, App, Connection, JobName, Json, Override, Why, ask, run_on, valid
from gridscore.cli.output import console, print_json, print_table, say
from gridscore.errors import UsageError

if TYPE_CHECKING:
    from gridscore.models.experiment import Standing

app = App(no_args_is_help=True)


@app.command()
def start(
    job: JobName,
    *,
    version: Annotated[str, typer.Option(metavar="N|ALIAS", help="The challenger.", show_default=False)],
    steps: Annotated[
        str | None, typer.Option(metavar="5,25,100", help="A canary: percent of the entities, step by step.")
    ] = None,
    every: Annotated[str | None, typer.Option(metavar="TIME", help="Go to the next step by itself: 10m, 1h.")] = None,
    split: Annotated[
        float | None, typer.Option(metavar="PERCENT", help="An A/B test: percent of the entities.")
    ] = None,
    shadow: Annotated[bool, typer.Option("--shadow", help="Score every event beside the champion.")] = False,
    key: Annotated[
        str, typer.Option(metavar="EXPRESSION", help="What tells entities apart. Else the event's key.")
    ] = "",
    max_errors: Annotated[
        float, typer.Option(min=0, max=1, help="End it if a larger part of its events has no score.")
    ] = 0.01,
    max_us: Annotated[float | None, typer.Option(help="End it at more CPU microseconds a row.")] = None,
    max_psi: Annotated[float | None, typer.Option(help="End it if scores shift by a larger PSI.")] = None,
    least: Annotated[int, typer.Option(min=1, help="Events before it is judged, and in each step.")] = 500,
    allow_changed_features: AllowChanged = False,
    why: Why = "",
    connection: Connection,
    as_json: Json = False,
) -> None:
    """Begin an experiment: a canary in steps, a split, or a shadow. Results say who made them: `variant`.

    Example: [bold]gridscore experiment start late --version 3 --steps 5,25,50,100 --every 10m --max-psi 0.25[/]
    """
    from gridscore.client import Client
    from gridscore.job.types import Duration, seconds_of

    seconds = 0.0 if every is None else seconds_of(valid(Duration, "--every", every))
    try:
        shares = [float(each) for each in steps.split(",")] if steps else []
    except ValueError:
        raise UsageError(f"--steps: `{steps}` is not a list of percents.", "As in `--steps 5,25,50,100`.") from None

    found = run_on(
        connection,
        lambda grid: Client(grid).start_experiment(
            job,
            version,
            steps=shares,
            every=seconds,
            split=split,
            shadow=shadow,
            key=key,
            max_errors=max_errors,
            max_us=max_us,
            max_psi=max_psi,
            least=least,
            allow_changed_features=allow_changed_features,
            why=why,
        ),
    )
    if as_json:
        print_json(found.to_json())
        return
    what = "every event, beside the champion" if shadow else f"{found.share:g} % of the entities"
    say(f"Version {found.version} of the model {found.model} scores {what}.", to=console)


@app.command()
def status(job: JobName, *, connection: Connection, as_json: Json = False) -> None:
    """Show how an experiment stands, and whether its variants differ by more than chance.

    Example: [bold]gridscore experiment status late[/]
    """
    from gridscore.client import Client

    _show(ask(connection, lambda grid: Client(grid).experiment(job)), as_json=as_json)


@app.command()
def stop(job: JobName, *, why: Why = "", connection: Connection, as_json: Json = False) -> None:
    """End an experiment: the champion scores all events. What a shadow has scored is removed.

    Example: [bold]gridscore experiment stop late --why "no better"[/]
    """
    from gridscore.client import Client

    _show(run_on(connection, lambda grid: Client(grid).stop_experiment(job, why=why)), as_json=as_json)


@app.command()
def promote(
    job: JobName,
    *,
    allow_changed_features: AllowChanged = False,
    why: Why = "",
    override: Override = "",
    connection: Connection,
    as_json: Json = False,
) -> None:
    """Make the challenger the champion, if it passes the gates, and end the experiment.

    Example: [bold]gridscore experiment promote late --why "declines less"[/]
    """
    from gridscore.client import Client

    given = {"allow_changed_features": allow_changed_features, "why": why, "override": override}
    _show(run_on(connection, lambda grid: Client(grid).promote_experiment(job, **given)), as_json=as_json)  # type: ignore[arg-type]


def _show(found: Standing, *, as_json: bool) -> None:
    if as_json:
        print_json(found.to_json())
        return
    from gridscore.models.experiment import VARIANTS

    value, counts = found.to_json(), found.counts
    say(found.text, to=console)
    rows = [(name, *(f"{value[name][figure]:,}" for figure in ("events", "errors", "us_per_row"))) for name in VARIANTS]
    print_table(("VARIANT", "EVENTS", "ERRORS", "µS/ROW"), rows, empty="")
    rows = [
        (e.what, f"{e.champion:.5g}", f"{e.challenger:.5g}", f"{e.less:+.3g} to {e.most:+.3g}", f"{e.p:.3g}")
        for e in found.compared()
    ]
    columns = ("OF", "CHAMPION", "CHALLENGER", "DIFFERENCE (95 %)", "P")
    print_table(columns, rows, empty="Too little was scored to compare.")
    if value["psi"] is not None:
        say(f"The PSI of the scores is {value['psi']:.4g}.", to=console)
    for number, text in (
        (counts.nobodys, "events have no entity, and are the champion's"),
        (counts.behind, "events of the challenger were the champion's, as a worker did not score with it"),
        (counts.unseen, "events were left out by the shadow"),
    ):
        if number:
            say(f"{number:,} {text}.", to=console)
    if counts.error:
        say(f"A worker does not score with the challenger: {counts.error}", to=console)
