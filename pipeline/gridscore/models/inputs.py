"""What people type or write by hand for a push: metrics, tags, and a file of categories."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from gridscore.errors import UsageError
from gridscore.features import ATTRIBUTE, OfflineMatrix
from gridscore.features.definitions import learnt_of
from gridscore.models.description import describe
from gridscore.models.version import signature

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from gridscore.features.encodings import Learnt


def parse_metrics(texts: Iterable[str]) -> dict[str, float]:
    """Metrics from texts like `auc=0.93`. Raises UsageError if one is not a name and a number."""
    metrics: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            metrics[name.strip()] = float(value)
        except ValueError:
            raise UsageError(f"The metric `{text}` is not a name and a number.", "Write `--metric auc=0.93`.") from None
    return metrics


def parse_tags(texts: Iterable[str]) -> dict[str, str]:
    """Tags from texts like `owner=ana`. Raises UsageError if one is not a name and a text."""
    tags: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"The tag `{text}` is not a name and a text.", "Write `owner=ana`.")
        tags[name.strip()] = value.strip()
    return tags


def read_categories(path: Path) -> dict[str, tuple[str, ...]]:
    """The categories that `read_learnt` finds."""
    return {name: known for name, known in read_learnt(path).items() if isinstance(known, tuple)}


def read_learnt(path: Path) -> dict[str, Learnt]:
    """What was learnt, by feature: from a matrix (Parquet), a model (XGBoost UBJ or JSON), or a JSON object of lists.

    Raises UsageError if there is no such file, or it has no categories; TableError if it is a Parquet file, but no
    matrix of ours; ModelError if it is a damaged model, or one whose categories contradict each other.
    """
    if path.suffix == ".parquet":
        return OfflineMatrix.from_parquet(path).learnt
    try:
        payload = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
    try:
        return msgspec.json.decode(payload, type=dict[str, tuple[str, ...]])
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        description = describe(payload, str(path))  # not a plain object of lists: then it is a model
    found = signature(description, None, str(path))
    learnt = learnt_of(found.categories, found.definitions)
    if not learnt and ATTRIBUTE not in description.attributes:
        raise UsageError(
            f"The model {path} has no categories.",
            "Attach the matrix that it learns from to the Booster (OfflineMatrix.attach), then save it.",
        )
    return learnt
