"""A model that one XGBoost saved gives the same bits with another, or is refused. See `models_by_version/make.py`."""

import json
from pathlib import Path

import numpy as np
import pytest
import xgboost

from gridscore.errors import ModelError
from gridscore.models.candidate import Candidate
from gridscore.models.loaded import LoadedModel

FOLDER = Path(__file__).parent / "models_by_version"
FILES = sorted(FOLDER.glob("*.ubj"))


def version_of(text):
    return tuple(int(part) for part in text.split("."))


def test_there_are_models_of_each_layout():
    assert {path.stem for path in FILES} == {
        f"{kind}-{version}"
        for kind in ("gbtree", "dart", "classes", "category")
        for version in ("3.2.0", "3.3.0", "3.4.1")
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_model_scores_the_same_whichever_version_saved_it(path):
    kind, saved_by = path.stem.split("-")
    expected = json.loads((FOLDER / f"{path.stem}.json").read_text())
    rows = np.array(expected["rows"], np.float32)
    if kind == "dart" and version_of(saved_by) > version_of(xgboost.__version__):
        # XGBoost 3.2 and 3.3 pass over the weights where newer versions write them.
        with pytest.raises(ModelError, match=f"Run XGBoost {saved_by} or newer here"):
            Candidate.check(path, "m", metrics=None, categories={})
        return
    candidate = Candidate.check(path, "m", metrics=None, categories={})
    model = LoadedModel.load(candidate.version, candidate.payload)
    assert model.predict(rows).tobytes() == np.array(expected["scores"], np.float32).tobytes()


def test_an_xgboost_that_misreads_newer_models_is_refused(monkeypatch):
    monkeypatch.setattr(xgboost, "__version__", "3.1.3")
    with pytest.raises(ModelError, match="misreads the base score"):
        Candidate.check(FILES[0], "m", metrics=None, categories={})
