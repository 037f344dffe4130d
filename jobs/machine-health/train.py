"""Trains the model of the job beside it: `python jobs/machine-health/train.py data -o model.ubj`.

The job file that scores the stream makes the training matrix, windows included. Machines that it has never seen tell
how well it works.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import xgboost as xgb

from gridscore.features import offline_matrix
from gridscore.job import load_job

JOB_FILE = Path(__file__).with_name("job.yaml")
LABEL = "remaining"
TREES = 150
PARAMETERS = {
    "objective": "reg:squarederror",
    "tree_method": "hist",
    "max_depth": 5,
    "eta": 0.06,
    "min_child_weight": 10,
    "subsample": 0.8,
    "nthread": 1,  # so little data is not worth a second
    "seed": 2026,
}


def train(folder: Path) -> tuple[xgb.Booster, dict[str, float]]:
    """A model from the tables of a folder, and what is known of its quality."""
    job = load_job(JOB_FILE)
    matrix, later = (offline_matrix(job, folder / f"{name}.csv", keep=[LABEL]) for name in ("history", "later"))
    booster = xgb.train(PARAMETERS, matrix.dmatrix(LABEL), TREES)
    matrix.attach(booster)
    remaining = later.kept[LABEL].to_numpy()
    errors = later.predict(booster) - remaining
    mean = float(matrix.kept[LABEL].mean())
    return booster, {
        "trained_on": float(len(matrix)),
        "rmse": float(np.sqrt(np.mean(errors**2))),
        "rmse_last_day": float(np.sqrt(np.mean(errors[remaining <= 24] ** 2))),
        "rmse_of_mean": float(np.sqrt(np.mean((remaining - mean) ** 2))),
    }


def main() -> None:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="the folder that data.py has written")
    parser.add_argument("-o", "--output", type=Path, default=Path("model.ubj"), help="where to save (.ubj or .json)")
    arguments = parser.parse_args()
    booster, metrics = train(arguments.data)
    booster.save_model(arguments.output)
    print(
        f"{arguments.output}: {TREES} trees from {metrics['trained_on']:,.0f} readings. Of other machines it is off by "
        f"{metrics['rmse']:.1f} hours (RMSE), on their last day by {metrics['rmse_last_day']:.1f}; "
        f"who always says the mean, by {metrics['rmse_of_mean']:.1f}"
    )


if __name__ == "__main__":
    main()
