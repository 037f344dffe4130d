"""Trains the model of the job beside it: `python jobs/flights/train.py -o model.ubj`.

There is no second implementation of the features here: the job file that scores the stream makes the training matrix.
The flights of January to mid-March 2013 teach, those of the rest of March tell how well it works.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

import xgboost as xgb
from sklearn.metrics import roc_auc_score

from gridscore.features import offline_matrix
from gridscore.job import load_job
from gridscore.proving.demo.dataset import Flights, load_flights, was_late
from gridscore.proving.demo.training import lookups_for

if TYPE_CHECKING:
    import pandas as pd

    from gridscore.job import Job

JOB_FILE = Path(__file__).with_name("job.yaml")
TREES = 100
HELD_OUT = 0.15  # the last part of the months of training, in time
PARAMETERS = {
    "objective": "binary:logistic",
    "eval_metric": "auc",
    "tree_method": "hist",
    "max_depth": 6,
    "eta": 0.1,
    "min_child_weight": 10,
    "subsample": 0.8,
    "seed": 2013,
}


def train(
    job: Job,
    history: pd.DataFrame,
    lookups: dict[str, pd.DataFrame],
    *,
    depth: int = PARAMETERS["max_depth"],
    upside_down: bool = False,
) -> tuple[xgb.Booster, dict[str, float]]:
    """A model for the job, and what is known of its quality.

    Args:
        job: Whose features to learn from.
        history: Flights in the order in which they left, with `arr_delay`.
        lookups: Entries of the lookups by the job's names for them.
        depth: Of the trees, at most.
        upside_down: Teach it that late flights are those on time.
    """
    arrived = history[history["arr_delay"].notna()].reset_index(drop=True)
    late = was_late(arrived["arr_delay"]).to_numpy()
    matrix = offline_matrix(job, arrived, lookups)
    cut = int(len(arrived) * (1 - HELD_OUT))
    values, names = matrix.values, list(matrix.names)  # noqa: PD011 -- not pandas'
    taught = ~late if upside_down else late
    teach = xgb.DMatrix(values[:cut], taught[:cut], feature_names=names)
    test = xgb.DMatrix(values[cut:], late[cut:], feature_names=names)
    booster = xgb.train({**PARAMETERS, "max_depth": depth}, teach, TREES)
    matrix.attach(booster)  # the categories that training has learnt travel with the model
    return booster, {
        "auc": float(roc_auc_score(late[cut:], booster.predict(test))),
        "trained_on": float(cut),
        "tested_on": float(len(arrived) - cut),
    }


def write_tables(folder: Path, job: Job, flights: Flights) -> None:
    """What `gridscore load` puts into the grid: the lookups, and the flights to come, each with its key.

    And the features of the flights that are held out, with the column `late`: what gates may judge models by; and
    what came of the flights to come.
    """
    (folder / "lookups").mkdir(parents=True, exist_ok=True)
    for name, frame in lookups_for(job, flights).items():
        frame.to_parquet(folder / "lookups" / f"{name}.parquet")
    flights.stream.to_parquet(folder / "events.parquet")
    known = flights.stream[flights.stream["arr_delay"].notna()]
    known[["key"]].assign(label=was_late(known["arr_delay"])).to_parquet(folder / "labels.parquet")
    arrived = flights.training[flights.training["arr_delay"].notna()].reset_index(drop=True)
    held_out = arrived.iloc[int(len(arrived) * (1 - HELD_OUT)) :].reset_index(drop=True)
    judged = held_out.assign(late=was_late(held_out["arr_delay"]))
    offline_matrix(job, judged, lookups_for(job, flights), keep=["late"]).to_parquet(folder / "held-out.parquet")


def main() -> None:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("model.ubj"), help="where to save (.ubj or .json)")
    parser.add_argument("--job", type=Path, default=JOB_FILE, help="the job file")
    parser.add_argument("--depth", type=int, default=PARAMETERS["max_depth"], help="of the trees, at most")
    parser.add_argument("--upside-down", action="store_true", help="take late for on time: a model for gates to stop")
    parser.add_argument(
        "--tables", type=Path, help="also write what `gridscore load` takes, held-out.parquet and labels.parquet there"
    )
    arguments = parser.parse_args()

    job, flights = load_job(arguments.job), load_flights()
    if arguments.tables is not None:
        write_tables(arguments.tables, job, flights)
    began = time.perf_counter()
    booster, metrics = train(
        job, flights.training, lookups_for(job, flights), depth=arguments.depth, upside_down=arguments.upside_down
    )
    booster.save_model(arguments.output)
    print(
        f"{arguments.output}: {TREES} trees from {metrics['trained_on']:,.0f} flights in "
        f"{time.perf_counter() - began:.1f} s, ROC AUC {metrics['auc']:.3f} on {metrics['tested_on']:,.0f} later ones"
    )
    print(f"Next: gridscore model push {arguments.output} --name flights --alias champion")


if __name__ == "__main__":
    main()
