"""What the figures of a user's own job say, in a line for people."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from gridscore.proving.bench.rounds import REST

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gridscore.job import Job

IDLE = 0.3
"""Part of the time that a worker with a backlog may wait before that is worth a word."""


def advice(job: Job, trees: int, worker: Mapping[str, Any], stages: Mapping[str, float]) -> str:
    """How much one worker sustains, what takes its time, and what to look at.

    Args:
        job: The user's.
        trees: Of its model.
        worker: Figures of a worker with a backlog: `events_per_s` and `cpu_us_per_event`.
        stages: Its CPU by stage, microseconds per event, all of it.
    """
    rate, cpu = worker["events_per_s"], worker["cpu_us_per_event"]
    text = f"One worker sustains about {_rounded(rate):,} events/s of this job"
    if job.peak_rate is not None:
        needed = math.ceil(job.peak_rate / rate)
        text += f", so its peak rate of {job.peak_rate:,.0f} needs {needed:,} worker{'s' if needed > 1 else ''}"
    stage = max(stages, key=lambda name: stages[name])
    text += f"; most of its CPU goes to {stage}: {stages[stage]:.1f} of {cpu:.1f} µs per event. "
    fetched = sorted(name for name, lookup in job.lookups.items() if lookup.mode == "fetch")
    idle = 1 - rate * cpu / 1e6
    if fetched and (stage == REST or idle > IDLE):
        names = ", ".join(fetched)
        text += f"Each batch asks the grid for its lookups ({names}): with `mode: copy`, each worker has them at hand."
    elif idle > IDLE:
        text += (
            f"It waits {idle:.0%} of the time, for the members, the network or a free core: look there first, not at "
            "the job."
        )
    else:
        text += _LOOK_AT[stage].format(
            features=len(job.features), lookups=len(job.lookups), trees=trees, fields=len(job.schema_)
        )
        if stage == "encode" and job.result.include:
            text += f" Each result repeats {len(job.result.include)} fields of its event (`include`)."
    return text


_LOOK_AT = {
    "decode": "Look at the events: leave out of the schema ({fields} fields) what no feature uses; keep them short.",
    "features": "Look at the expressions: {features} features and {lookups} lookups; leave out what the model does not "
    "need.",
    "predict": "Look at the model: {trees:,} trees; fewer or shallower ones cost less, in proportion.",
    "encode": "Look at what a result holds; else there is little to gain in the job file.",
    "write": "Look at what a result holds, and at the members: each result is written with its backups.",
    REST: "The job itself is light: more workers help (`gridscore worker --processes auto`), the job file hardly can.",
}


def _rounded(rate: float) -> int:
    """Two figures: there is no more in it."""
    return int(round(rate, 1 - math.floor(math.log10(rate)))) if rate >= 1 else 0
