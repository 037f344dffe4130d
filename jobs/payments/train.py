"""Trains the model of the job beside it: `python jobs/payments/train.py -o model.ubj`."""

from __future__ import annotations

import argparse
from pathlib import Path

import xgboost

from gridscore.features import offline_matrix
from gridscore.job import load_job

HERE = Path(__file__).parent

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("-o", "--output", type=Path, default=Path("model.ubj"), help="where to save (.ubj or .json)")
output = parser.parse_args().output

train = offline_matrix(load_job(HERE / "job.yaml"), HERE / "history.csv", HERE / "lookups", keep=["fraud"])
booster = xgboost.train({"objective": "binary:logistic"}, train.dmatrix("fraud"), 20)
train.attach(booster)  # feature names, and the categories learnt in training, travel with the model
booster.save_model(output)
print(f"Model of {booster.num_boosted_rounds()} trees in {output}")
