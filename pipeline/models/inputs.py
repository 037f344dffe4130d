"""What people type or write by hand for a push: metrics, and a file of categories."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def parse_metrics(texts: Iterable[str]) -> dict[str, float]:
    """Metrics from texts like `auc=0.93`.

    Raises:
        UsageError: One is not a name and a number.
    """
    metrics: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            metrics[name.strip()] = float(value)
        except ValueError:
            raise UsageError(f"The metric `{text}` is not a name and a number.", "Write `--metric auc=0.93`.") from None
    return metrics


def read_categories(path: Path) -> dict[str, tuple[str, ...]]:
    """Categories by feature, from a JSON file.

    Raises:
        UsageError: There is no such file, or it is not such an object.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, tuple[str, ...]])
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise UsageError(
            f"{path} does not hold categories: {error}.", 'Write {"feature": ["text of code 0", "text of code 1"]}.'
        ) from None
