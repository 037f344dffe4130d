"""Trains the model of the job beside it: `python jobs/card-fraud/train.py data -o model.ubj`.

The job file that scores the stream makes the training matrix, too. The first 70 of the 90 days teach, the rest tells
how well it works.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import xgboost as xgb

from gridscore.features import offline_matrix
from gridscore.job import load_job

JOB_FILE = Path(__file__).with_name("job.yaml")
TREES = 120
TAUGHT = 70 / 90
PARAMETERS = {
    "objective": "binary:logistic",
    "eval_metric": ["auc", "aucpr"],
    "tree_method": "hist",
    "max_depth": 5,
    "eta": 0.1,
    "min_child_weight": 3,
    "nthread": 1,  # so little data is not worth a second
    "seed": 2026,
}


def train(folder: Path) -> tuple[xgb.Booster, dict[str, float]]:
    """A model from the tables of a folder, and what is known of its quality."""
    job = load_job(JOB_FILE)
    matrix = offline_matrix(job, folder / "history.csv", folder / "lookups", keep=["fraud"])
    values, names, fraud = matrix.values, list(matrix.names), matrix.kept["fraud"].to_numpy()
    cut = int(len(matrix) * TAUGHT)
    teach = xgb.DMatrix(values[:cut], fraud[:cut], feature_names=names)
    test = xgb.DMatrix(values[cut:], fraud[cut:], feature_names=names)
    seen: dict[str, dict[str, list[float]]] = {}
    booster = xgb.train(PARAMETERS, teach, TREES, evals=[(test, "test")], evals_result=seen, verbose_eval=False)
    matrix.attach(booster)  # the categories that training has learnt travel with the model
    return booster, {name: figures[-1] for name, figures in seen["test"].items()} | {"trained_on": float(cut)}


def main() -> None:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="the folder that data.py has written")
    parser.add_argument("-o", "--output", type=Path, default=Path("model.ubj"), help="where to save (.ubj or .json)")
    arguments = parser.parse_args()
    booster, metrics = train(arguments.data)
    booster.save_model(arguments.output)
    print(
        f"{arguments.output}: {TREES} trees from {metrics['trained_on']:,.0f} purchases, "
        f"ROC AUC {metrics['auc']:.3f}, PR AUC {metrics['aucpr']:.3f} on later ones"
    )


if __name__ == "__main__":
    main()
