"""`gridscore drift`: are the events still those that the model was trained on?"""

from __future__ import annotations

from typing import Any

import typer

from gridscore.cli.options import Connection, JobName, Json, ask
from gridscore.cli.output import console, print_json, print_table, say
from gridscore.cli.status import UNHEALTHY


def drift(job: JobName, *, connection: Connection, as_json: Json = False) -> None:
    """Show how far each feature and the score have moved from the training, in the last window that was judged.

    Exit code 0: no alert; 10: at least one lasts. The thresholds are those of `drift` in the job file.

    Example: [bold]gridscore drift flights[/]
    """
    from gridscore.operations.drift import drift as look

    found = ask(connection, lambda grid: look(grid, job))
    if as_json:
        print_json(found)
    else:
        _print(found)
    if found["alerts"]:
        raise typer.Exit(UNHEALTHY)


def _print(found: dict[str, Any]) -> None:
    from gridscore.models.drift import MEASURES

    if not found["versions"]:
        say("No worker has counted anything yet; `gridscore status` says whether one scores.", to=console)
    moved = {(alert["version"], alert["feature"], alert["measure"]) for alert in found["alerts"]}
    for each in found["versions"]:
        version, window, counting = each["version"], each["window"], each["counting"]
        since = counting["since"][:19].replace("T", " ")
        open_now = f"{counting['events']:,} events are counted since {since} UTC"
        if window is None:
            say(f"{version}: no window is judged yet; {open_now}.", to=console)
            continue
        begin, end = (window[at][:19].replace("T", " ") for at in ("since", "until"))
        say(f"{version}: {window['events']:,} events from {begin} to {end} UTC; {open_now}.", to=console)
        rows = [
            (
                name := feature["feature"],
                *(feature[figure] for figure in ("psi", "ks", "missing_before", "missing", "unseen")),
                ", ".join(measure for measure in MEASURES if (version, name, measure) in moved),
            )
            for feature in sorted(window["features"], key=lambda feature: -(feature["psi"] or 0.0))
        ]
        columns = ("FEATURE", "PSI", "KS", "MISSING IN TRAINING", "MISSING", "UNSEEN", "ALERT")
        print_table(columns, rows, empty="The window does not have the bins of this version's training.")
