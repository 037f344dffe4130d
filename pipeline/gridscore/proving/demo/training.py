"""The demo's model: trained by the job's own script, once for each state of script, job file, data and XGBoost."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gridscore.proving.demo.dataset import demo_cache

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from gridscore.job import Job
    from gridscore.proving.demo.dataset import Flights

_SCRIPT = "train.py"


@dataclass(frozen=True)
class TrainedModel:
    """A model file, and what is known of it."""

    path: Path  # the file
    metrics: dict[str, float]  # of its training
    cached: bool  # whether an earlier run has trained it


def lookups_for(job: Job, flights: Flights) -> dict[str, pd.DataFrame]:
    """The data's tables under the job's own names for its lookups."""
    return {name: flights.lookups[lookup.map.rpartition(".")[2]] for name, lookup in job.lookups.items()}


def trained_model(job: Job, folder: Path, flights: Flights) -> TrainedModel:
    """The model for a job of this data, from the cache if nothing that it depends on has changed."""
    import xgboost

    digest = hashlib.sha256()
    for part in (b"1", (folder / "job.yaml").read_bytes(), (folder / _SCRIPT).read_bytes()):
        digest.update(part)
    digest.update(f"{flights.fingerprint} {xgboost.__version__}".encode())
    path = demo_cache() / f"{job.name}-{digest.hexdigest()[:16]}.ubj"
    notes = path.with_suffix(".json")
    if path.is_file() and notes.is_file():
        return TrainedModel(path, json.loads(notes.read_text(encoding="utf-8")), cached=True)
    booster, metrics = script_of(folder / _SCRIPT).train(job, flights.training, lookups_for(job, flights))
    temporary = path.with_name(f"{os.getpid()}-{path.name}")  # the suffix tells XGBoost the format
    booster.save_model(temporary)
    notes.write_text(json.dumps(metrics), encoding="utf-8")
    temporary.replace(path)
    return TrainedModel(path, metrics, cached=False)


def script_of(path: Path) -> Any:
    """A script of an example, as a module."""
    spec = importlib.util.spec_from_file_location(f"gridscore_{path.parent.name}_{path.stem}", path)
    assert spec is not None  # noqa: S101 -- for the type checker
    assert spec.loader is not None  # noqa: S101 -- for the type checker
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
