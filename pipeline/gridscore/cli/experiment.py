"""`gridscore experiment`: canaries, splits and shadows of a job's model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gridscore.cli.options import AllowChanged, App, JobName, Json, Override, Reach, Why, ask, run_on, valid
from gridscore.cli.output import console, print_json, print_table, say
from gridscore.errors import UsageError

if TYPE_CHECKING:
    from gridscore.grid import Grid

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
    connection: Reach,
    as_json: Json = False,
) -> None:
    """Begin an experiment: a canary in steps, a split, or a shadow. Results say who made them: `variant`.

    What is not given is as `experiment` in the job file says.

    Example: [bold]gridscore experiment start late --version 3 --steps 5,25,50,100 --every 10m --max-psi 0.25[/]
    """
    from gridscore.cli.remote import Verb
    from gridscore.client import Client
    from gridscore.job.types import Duration, seconds_of

    seconds = None if every is None else seconds_of(valid(Duration, "--every", every))
    try:
        shares = [float(each) for each in steps.split(",")] if steps else None
    except ValueError:
        raise UsageError(f"--steps: `{steps}` is not a list of percents.", "As in `--steps 5,25,50,100`.") from None
    bounds = [_bound(each) for each in outcome] if outcome else None

    given: dict[str, Any] = {
        "steps": shares,
        "split": split,
        "shadow": shadow or None,
        "key": key,
        "max_errors": max_errors,
    }
    given |= {"max_us": max_us, "max_psi": max_psi, "least": least, "outcomes": bounds, "least_labels": least_labels}
    given |= {"allow_changed_features": allow_changed_features, "why": why}

    async def main(grid: Grid) -> Any:
        return (await Client(grid).start_experiment(job, *version, every=seconds, wait=True, **given)).to_json()

    numbers = [int(each) if each.isdecimal() else each for each in version]
    asked = {name: value for name, value in given.items() if value is not None} | {"version": numbers}
    asked |= {} if every is None else {"every": every}
    found = run_on(connection, main, by=Verb("POST", ("jobs", job, "experiment", "start"), asked))
    if as_json:
        print_json(found)
        return
    share = found["steps"][0] if found["steps"] else None  # of a shadow
    what = "every event, beside the champion" if share is None else f"{share:g} % of the entities"
    for each in found["challengers"]:
        say(f"Version {each['version']} of the model {found['model']} scores {what}.", to=console)


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
def status(job: JobName, *, connection: Reach, as_json: Json = False) -> None:
    """Show how an experiment stands, and whether its variants differ by more than chance.

    Example: [bold]gridscore experiment status late[/]
    """
    from gridscore.cli.remote import Verb
    from gridscore.client import Client

    async def main(grid: Grid) -> Any:
        return (await Client(grid).experiment(job)).to_json()

    _show(ask(connection, main, by=Verb("GET", ("jobs", job, "experiment"))), as_json=as_json)


@app.command()
def stop(job: JobName, *, version: Chosen = None, why: Why = "", connection: Reach, as_json: Json = False) -> None:
    """End an experiment: the champion scores all events. What a shadow has scored is removed.

    With --version, only that challenger ends, and the others go on.

    Example: [bold]gridscore experiment stop late --why "no better"[/]
    """
    from gridscore.cli.remote import Verb
    from gridscore.client import Client

    async def main(grid: Grid) -> Any:
        return (await Client(grid).stop_experiment(job, version=version, why=why)).to_json()

    by = Verb("POST", ("jobs", job, "experiment", "stop"), {"version": version, "why": why})
    _show(run_on(connection, main, by=by), as_json=as_json)


@app.command()
def promote(
    job: JobName,
    *,
    version: Chosen = None,
    allow_changed_features: AllowChanged = False,
    why: Why = "",
    override: Override = "",
    connection: Reach,
    as_json: Json = False,
) -> None:
    """Make a challenger the champion, if it passes the gates, and end the experiment.

    Example: [bold]gridscore experiment promote late --why "declines less"[/]
    """
    from gridscore.cli.remote import Verb
    from gridscore.client import Client

    given: dict[str, Any] = {"version": version, "why": why, "override": override}
    given["allow_changed_features"] = allow_changed_features

    async def main(grid: Grid) -> Any:
        return (await Client(grid).promote_experiment(job, **given)).to_json()

    _show(run_on(connection, main, by=Verb("POST", ("jobs", job, "experiment", "promote"), given)), as_json=as_json)


def _show(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    say(found["text"], to=console)
    variants, labels = found["variants"], found["labels"]
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
            e["variant"],
            e["what"],
            f"{e['champion']:.5g}",
            f"{e['challenger']:.5g}",
            f"{e['less']:+.3g} to {e['most']:+.3g}",
            f"{e['p']:.3g}",
        )
        for e in found["compared"]
    ]
    columns = ("VARIANT", "OF", "CHAMPION", "CHALLENGER", "DIFFERENCE (95 %)", "P")
    print_table(columns, differences, empty="Too little was scored to compare.")
    if found["limits"].get("outcomes"):
        judged = [
            (
                each["variant"],
                each["metric"],
                *(("" if each[what] is None else f"{each[what]:.4g}") for what in ("champion", "value", "worse")),
                each["problem"] or f"{each['low']:.4g} to {each['high']:.4g}",
                each["bound"],
            )
            for each in found["outcomes"]
        ]
        titles = ("VARIANT", "OUTCOME", "CHAMPION", "CHALLENGER", "WORSE BY", "INTERVAL (95 %)", "BOUND")
        print_table(titles, judged, empty="Too few labels have come to judge outcomes.")
    if labels.get("problem"):
        say(f"Outcomes cannot be judged: {labels['problem']}.", to=console)
    if labels.get("invalid"):
        say(f"{labels['invalid']:,} labels cannot be used.", to=console)
    for number, text in (
        (found["nobodys"], "events have no entity, and are the champion's"),
        (found["unseen"], "events were left out by the shadow"),
    ):
        if number:
            say(f"{number:,} {text}.", to=console)
    for each in variants:
        if each["behind"]:
            said = f"{each['behind']:,} events of the {each['variant']} were the champion's, as a worker did not score "
            say(f"{said}with it.", to=console)
        if each["error"]:
            say(f"A worker does not score with the {each['variant']}: {each['error']}", to=console)
