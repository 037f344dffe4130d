"""A process that is nothing but a worker: what it imports, and its settings."""

from __future__ import annotations

import gc
import sys

_NOT_NEEDED = ("pandas", "pyarrow", "sklearn")
"""What XGBoost imports if it is installed, for callers with data frames and estimators.

It takes more memory, and a longer start, than all the rest of a worker.
"""


def import_xgboost() -> None:
    """Import XGBoost without what a worker does not need of it.

    Only for processes that are nothing but workers: `xgboost.sklearn` has no estimators afterwards. Call it from the
    main thread, before any other imports anything. Does nothing if XGBoost was imported before.
    """
    if "xgboost" in sys.modules:
        return
    hidden = [name for name in _NOT_NEEDED if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # Python's way to say that there is no such module
    try:
        import xgboost  # noqa: F401
    finally:
        for name in hidden:
            del sys.modules[name]


def tune() -> None:
    """Set this process up for scoring; call it once, after everything is imported and before the first batch.

    A batch makes many small objects and drops them all again by counting references. The garbage collector would look
    at them in vain, several times a batch: it gets a longer leash, and never looks at what was there before.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(25_000, 50, 100)
