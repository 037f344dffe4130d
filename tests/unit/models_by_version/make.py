"""Train the models of this folder with the XGBoost that is installed: `python tests/unit/models_by_version/make.py`.

A model and what it gives on given rows, for each version: `tests/unit/test_models_versions.py` scores all of them with
the XGBoost that is installed there.
"""

import json
import warnings
from pathlib import Path

import numpy as np
import xgboost as xgb

FOLDER = Path(__file__).parent
KINDS = {
    "gbtree": {"objective": "binary:logitraw"},
    "dart": {"objective": "binary:logitraw", "booster": "dart", "rate_drop": 0.5, "seed": 3},
    "classes": {"objective": "multi:softmax", "num_class": 3},
    "category": {"objective": "reg:squarederror"},
}


def main() -> None:
    """Write `KIND-VERSION.ubj` and `KIND-VERSION.json`, which has rows, and the model's scores for them."""
    warnings.simplefilter("ignore")
    generator = np.random.default_rng(7)
    rows = generator.normal(size=(120, 3)).astype(np.float32)
    rows[:, 2] = generator.integers(0, 5, 120)
    rows[generator.random(rows.shape) < 0.05] = np.nan
    labels = generator.integers(0, 3, 120)
    for kind, parameters in KINDS.items():
        types = ["float", "float", "c" if kind == "category" else "float"]
        data = xgb.DMatrix(
            rows,
            labels if kind == "classes" else labels > 0,
            feature_names=["a", "b", "c"],
            feature_types=types,
            enable_categorical=True,
        )
        booster = xgb.train({"nthread": 1, "max_depth": 3, **parameters}, data, 6)
        stem = FOLDER / f"{kind}-{xgb.__version__}"
        booster.save_model(f"{stem}.ubj")
        scores = booster.predict(data)
        found = {
            "rows": [[None if np.isnan(value) else float(value) for value in row] for row in rows[:40]],
            "scores": scores[:40].tolist(),
        }
        Path(f"{stem}.json").write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
