"""The first events of a history, as JSON has them: for a first job file, and for tests of a new project."""

from __future__ import annotations

import datetime as dt
import decimal
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_SAMPLE = 10_000  # rows of a history that are looked at


def sample_of(path: Path) -> Iterable[dict[str, Any]]:
    """The first rows of a table. Raises TableError if it cannot be read."""
    import pandas as pd

    from gridscore.features import tables
    from gridscore.features.cells import JSON_LINES

    if path.name.lower().endswith(JSON_LINES):
        with tables.read_chunks(path, None, _SAMPLE) as (_, frames):
            frame = next(frames, pd.DataFrame())
    else:
        frame = tables.read_table(path).head(_SAMPLE)
    if path.name.lower().endswith((".csv", ".csv.gz")):
        frame = _with_zeros(frame, path)
    columns = {str(name): _values(column) for name, column in frame.items()}
    return (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))


def _with_zeros(frame: Any, path: Path) -> Any:
    """The table with texts where whole numbers of CSV begin with a zero, as post codes do."""
    import pandas as pd

    texts = pd.read_csv(path, dtype=str, nrows=len(frame), keep_default_na=False)
    codes = [name for name in texts if texts[name].str.fullmatch(r"0[0-9]+").any()]
    return frame.assign(**{name: texts[name].where(texts[name] != "", None).astype(object) for name in codes})


def _values(column: Any) -> list[Any]:
    missing = column.isna().tolist()
    return [None if lacks else _value(value) for value, lacks in zip(column.tolist(), missing, strict=True)]


def _value(value: Any) -> Any:
    if isinstance(value, dt.date):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        value = float(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
