"""The compiled inner loops: used where they could be compiled when Gridscore was installed, and not forbidden.

Each has a twin in Python beside it that gives the same, slower. `GRIDSCORE_PURE=1` uses the Python twins.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

MODULES = (
    "gridscore.features._columns",
    "gridscore.features._maths",
    "gridscore.features._windows",
    "gridscore.grid._wire",
    "gridscore.models._forest",
    "gridscore.scoring._results",
)


def compiled(name: str) -> Any | None:
    """A compiled module; None if it is not there, or not wanted."""
    if os.environ.get("GRIDSCORE_PURE", "").lower() in {"1", "true", "yes"}:
        return None
    try:
        return import_module(name)
    except ImportError:
        return None


def describe() -> str:
    missing = [name for name in MODULES if compiled(name) is None]
    if not missing:
        return "inner loops compiled"
    return "inner loops in Python" if len(missing) == len(MODULES) else f"not compiled: {', '.join(missing)}"
