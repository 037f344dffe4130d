"""A process that is only a worker: what it imports, its settings, and its age."""

from __future__ import annotations

import gc
import sys
import time
from types import ModuleType

import psutil

_NOT_NEEDED = ("pandas", "pyarrow", "sklearn", "xgboost.sklearn")
"""What XGBoost imports where it is installed, for data frames and estimators.

It costs more memory, and start time, than all the rest of a worker.
"""

# What XGBoost imports from SciPy, only to ask whether its data are of these types.
_SPARSE = ("coo_array", "coo_matrix", "csc_array", "csc_matrix", "csr_array", "csr_matrix")


def import_xgboost() -> None:
    """Import XGBoost without the parts that a worker does not need; does nothing if it was imported before.

    Only for processes that are only workers: neither `xgboost.sklearn` nor SciPy can be used afterwards. Call it from
    the main thread, before another thread imports anything.
    """
    if "xgboost" in sys.modules:
        return
    hidden = [name for name in _NOT_NEEDED if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # to Python, there is no such module
    if "scipy" not in sys.modules:
        # It stays, for XGBoost imports it again with each matrix.
        sparse = sys.modules["scipy.sparse"] = ModuleType("scipy.sparse")
        sparse.__dict__.update({kind: type(kind, (), {}) for kind in _SPARSE})
        scipy = sys.modules["scipy"] = ModuleType("scipy")
        scipy.__dict__["sparse"] = sparse
    try:
        import xgboost
    except (ImportError, AttributeError):  # another version, which needs more of SciPy
        for name in [name for name in sys.modules if name.partition(".")[0] in ("scipy", "xgboost")]:
            del sys.modules[name]
        import xgboost  # noqa: F401
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


def tune() -> None:
    """Tune the garbage collector for scoring; call it once, after all imports and before the first batch.

    A batch makes many small objects, which reference counting frees. The collector would look at them in vain, several
    times a batch: it runs less often, and never looks at what was there before.
    """
    gc.enable()
    gc.collect()
    gc.freeze()
    gc.set_threshold(25_000, 50, 100)


def age() -> float:
    """Seconds since this process was started."""
    created = float(psutil.Process().create_time())
    if sys.platform == "linux":
        # Times since the machine's start are exact; as a time of day, that moment is known only to a second.
        return time.clock_gettime(time.CLOCK_BOOTTIME) - (created - float(psutil.boot_time()))
    return time.time() - created
