"""Drift of a job, feature by feature: its training against the last window that was judged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gridscore.errors import JobError, ModelError
from gridscore.job import Jobs
from gridscore.models import Registry
from gridscore.models.drift import drift_of, figures_of
from gridscore.scoring.drift import entry_of, iso

if TYPE_CHECKING:
    from gridscore.features.baseline import Baseline
    from gridscore.grid import Grid
    from gridscore.models.drift import Tally


async def drift(grid: Grid, name: str) -> dict[str, Any]:
    """What is known of a job's drift, as plain JSON has it.

    Raises JobError if there is no such job, or it does not watch for drift.
    """
    job = (await Jobs(grid).get(name)).job
    if job.drift is None:
        raise JobError(
            f"The job `{name}` does not watch for drift.", "Write `drift: {}` into its job file, and submit it."
        )
    record, registry = await drift_of(grid, name), Registry(grid)
    versions = []
    for key, watched in (record.versions if record is not None else {}).items():
        model, _, number = key.rpartition(" v")
        try:
            baseline = (await registry.resolve(model, version=int(number))).baseline
        except ModelError:
            baseline = None  # it was deleted a moment ago
        versions.append(
            {
                "version": key,
                "counting": {"since": iso(watched.open.since), "events": watched.open.rows},
                "window": None if watched.last is None or baseline is None else _window(watched.last, baseline),
            }
        )
    return {
        "job": name,
        "alerts_map": job.alerts_map,
        "thresholds": job.drift.model_dump(),
        "versions": versions,
        "alerts": [entry_of(name, alert) for alert in record.active] if record is not None else [],
    }


def _window(window: Tally, baseline: Baseline) -> dict[str, Any]:
    features = []
    for (name, figures), counts in zip(figures_of(baseline, window).items(), window.counts, strict=False):
        column, there = baseline.columns[name], sum(counts[:-2])
        features.append(
            {
                "feature": name,
                **figures._asdict(),
                "edges": column.edges,
                "texts": column.texts,
                "training": column.shares,
                "live": [count / there for count in counts[:-2]] if there else [],
            }
        )
    return {"since": iso(window.since), "until": iso(window.until), "events": window.rows, "features": features}
