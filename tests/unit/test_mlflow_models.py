"""A model that MLflow has stored is pushed as the file that XGBoost has saved; anything else is refused."""

import subprocess
import sys

import pytest
import xgboost as xgb

from gridscore.errors import ModelError
from gridscore.models import version_in
from gridscore.models.mlflow_models import saved_file

FETCH = """\
import pathlib, sys, warnings
warnings.simplefilter("ignore")
from gridscore.errors import ModelError
from gridscore.models.mlflow_models import downloaded
(target := pathlib.Path(sys.argv[2])).mkdir()
print(downloaded(sys.argv[1], target))
try:
    downloaded(sys.argv[1] + "-none", target)
except ModelError as error:
    print(error.message)
"""

STORED = """\
flavors:
  python_function: {data: model.ubj, loader_module: mlflow.xgboost, python_version: 3.12.1}
  xgboost:
    code: null
    data: model.ubj
    model_class: xgboost.sklearn.XGBClassifier
    model_format: ubj
    xgb_version: 3.4.1
mlflow_version: 3.17.2
"""
"""As MLflow 3.17 writes it, shortened."""


def test_a_model_of_mlflow_is_brought_here(tmp_path):
    folder, here = tmp_path / "stored", tmp_path / "here"
    folder.mkdir()
    (folder / "MLmodel").write_text(STORED)
    data = xgb.DMatrix([[1.0, 2.0], [2.0, 1.0]], [0, 1], feature_names=["a", "b"])
    xgb.train({"nthread": 1}, data, 3).save_model(folder / "model.ubj")
    done = subprocess.run(
        [sys.executable, "-c", FETCH, str(folder), str(here)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={"DO_NOT_TRACK": "true", "HOME": str(tmp_path), "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    path, refused = done.stdout.splitlines()
    version = version_in(path, "m")
    assert (version.features, version.rounds) == (("a", "b"), 3)
    assert refused.startswith("MLflow does not find")


@pytest.mark.parametrize(
    ("description", "says"),
    [
        (None, "No such file"),
        ("flavors: {sklearn: {pickled_model: model.pkl}}", "no 'xgboost'"),
        ("flavors: {xgboost: {data: ../model.ubj}}", "it has no file"),
        ("flavors: {xgboost: {data: none.ubj}}", "it has no file"),
        ("flavors: {xgboost: {data: [1]}}", "unsupported operand|argument should be"),
        ("- 1", "list indices"),
        ("flavors: !!python/object/apply:os.abort []", "could not determine a constructor"),
    ],
)
def test_what_is_not_a_model_of_xgboost_is_refused(tmp_path, description, says):
    folder = tmp_path / "model"
    folder.mkdir()
    xgb.train({"nthread": 1}, xgb.DMatrix([[1.0], [2.0]], [0, 1]), 1).save_model(tmp_path / "model.ubj")
    if description is not None:
        (folder / "MLmodel").write_text(description)
    with pytest.raises(ModelError, match=says):
        saved_file(folder, "models:/m/1")
