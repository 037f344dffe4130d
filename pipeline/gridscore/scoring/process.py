"""A process that is nothing but a worker: what it imports, its settings, and its age."""

from __future__ import annotations

import gc
import sys
import time
from types import ModuleType

import psutil

_NOT_NEEDED = ("pandas", "pyarrow", "sklearn", "xgboost.sklearn")
"""What XGBoost imports if it is installed, for callers with data frames and estimators.

It takes more memory, and a longer start, than all the rest of a worker.
"""

_SPARSE = ("coo_array", "coo_matrix", "csc_array", "csc_matrix", "csr_array", "csr_matrix")
"""What XGBoost wants of SciPy, only to ask whether its data are one of these."""


def import_xgboost() -> None:
    """Import XGBoost without what a worker does not need of it.

    Only for processes that are nothing but workers: neither `xgboost.sklearn` nor SciPy can be used afterwards. Call it
    from the main thread, before any other imports anything. Does nothing if XGBoost was imported before.
    """
    if "xgboost" in sys.modules:
        return
    hidden = [name for name in _NOT_NEEDED if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # Python's way to say that there is no such module
    if "scipy" not in sys.modules:
        # It stays: XGBoost imports it anew with each matrix.
        sparse = sys.modules["scipy.sparse"] = ModuleType("scipy.sparse")
        sparse.__dict__.update({kind: type(kind, (), {}) for kind in _SPARSE})
        scipy = sys.modules["scipy"] = ModuleType("scipy")
        scipy.__dict__["sparse"] = sparse
    try:
        import xgboost
    except (ImportError, AttributeError):  # another version, which wants more of SciPy
        for name in [name for name in sys.modules if name.partition(".")[0] in ("scipy", "xgboost")]:
            del sys.modules[name]
        import xgboost  # noqa: F401
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


def tune() -> None:
    """Set this process up for scoring; call it once, after everything is imported and before the first batch.

    A batch makes many small objects and drops them all again by counting references. The garbage collector would look
    at them in vain, several times a batch: it gets a longer leash, and never looks at what was there before.
    """
    gc.enable()
    gc.collect()
    gc.freeze()
    gc.set_threshold(25_000, 50, 100)


def age() -> float:
    """Seconds since this process was started."""
    created = float(psutil.Process().create_time())
    if sys.platform == "linux":
        # Times since the machine was started are exact; as a time of day that moment is known to a second only.
        return time.clock_gettime(time.CLOCK_BOOTTIME) - (created - float(psutil.boot_time()))
    return time.time() - created
