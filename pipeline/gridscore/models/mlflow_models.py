"""Models of MLflow, wherever it keeps them, as files that can be pushed: XGBoost's own only, never a pickle."""

from __future__ import annotations

from pathlib import Path

import yaml

from gridscore.errors import ModelError, missing_extra

_DESCRIPTION = "MLmodel"
_MOST = 1 << 20


def downloaded(uri: str, folder: Path) -> Path:
    """Let MLflow bring a model here; the path of the file that XGBoost has saved.

    `uri`: as MLflow writes it: `models:/late/3`, `runs:/RUN/model`, or a folder; `folder`: where to, an empty one.
    Raises UsageError if MLflow is not installed; ModelError if it does not find the model, or this is not one of
    XGBoost.
    """
    try:
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException
    except ModuleNotFoundError as error:
        raise missing_extra("`--from-mlflow`", "mlflow", error) from None
    try:
        found = Path(download_artifacts(artifact_uri=uri, dst_path=str(folder)))
    except (MlflowException, OSError, ValueError) as error:
        raise ModelError(
            f"MLflow does not find `{uri}`: {' '.join(str(error).split())[:300]}",
            "Is MLFLOW_TRACKING_URI set? A model is `models:/NAME/VERSION` or `runs:/RUN/PATH`.",
        ) from None
    return saved_file(found, uri)


def saved_file(folder: Path, uri: str) -> Path:
    """The file of XGBoost in the folder of a model.

    Raises ModelError if the folder is not that of a model of XGBoost.
    """
    try:
        with (folder / _DESCRIPTION).open("rb") as file:
            described = yaml.safe_load(file.read(_MOST))
        data = described["flavors"]["xgboost"]["data"]
        path: Path = (folder / data).resolve()
        if not path.is_relative_to(folder.resolve()) or not path.is_file():
            raise ValueError(f"it has no file `{data}`")  # noqa: TRY301
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:300]
        raise ModelError(
            f"`{uri}` is not a model of XGBoost that MLflow keeps: {what}.",
            "`mlflow.xgboost.log_model` makes one. Of other flavors, push the Booster itself.",
        ) from None
    return path
