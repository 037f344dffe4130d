"""Prediction in place by XGBoost's C interface: what `Booster.inplace_predict` does, at less cost a call.

The Python wrapper looks at every call at what kind of table it was given, and writes a configuration anew. Here both
are known: a float32 matrix in C order, and all trees. See `XGBoosterPredictFromDense` in XGBoost's C API reference.
"""

from __future__ import annotations

import ctypes
import json
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CONFIGURATION = json.dumps(
    {
        "type": 0,  # values, not margins
        "training": False,
        "iteration_begin": 0,
        "iteration_end": 0,  # all trees
        "missing": float("nan"),
        "strict_shape": False,
        "cache_id": 0,
    }
).encode()
_FLOATS = ctypes.POINTER(ctypes.c_float)
_SIZES = ctypes.POINTER(ctypes.c_uint64)


@cache
def _library() -> Any:
    """The library that the package `xgboost` has loaded."""
    from xgboost.libpath import find_lib_path

    library = ctypes.CDLL(find_lib_path()[0])
    library.XGBGetLastError.restype = ctypes.c_char_p
    return library


class Predictor:
    """Predicts with one Booster, in the calling thread.

    Args:
        booster: The Booster; it must not be used by two threads at once.
    """

    def __init__(self, booster: Any) -> None:
        self._booster = booster  # keeps the handle alive
        self._handle = booster.handle
        self._library = _library()
        self._shape, self._dimensions, self._scores = _SIZES(), ctypes.c_uint64(), _FLOATS()
        self._proxy: Any = None  # what carries margins
        self._outputs = tuple(ctypes.byref(each) for each in (self._shape, self._dimensions, self._scores))

    def predict(self, matrix: NDArray[np.float32], margins: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Scores of the rows of a matrix; one that is not C-contiguous float32 is copied first.

        Args:
            matrix: Shape (n, features).
            margins: Shape (n,), instead of the model's base score.

        Returns:
            float32 of shape (n,), or (n, k) for a model with k outputs.

        Raises:
            xgboost.core.XGBoostError: The Booster cannot predict.
        """
        matrix = np.ascontiguousarray(matrix, np.float32)
        rows, columns = matrix.shape
        array = (
            f'{{"data":[{matrix.ctypes.data},true],"shape":[{rows},{columns}],'
            '"typestr":"<f4","version":3,"strides":null}'
        )
        failed = self._library.XGBoosterPredictFromDense(
            self._handle, array.encode(), _CONFIGURATION, self._carrier(margins), *self._outputs
        )
        if failed:
            from xgboost.core import XGBoostError

            raise XGBoostError(self._library.XGBGetLastError().decode())
        shape = tuple(self._shape[: self._dimensions.value])
        # The scores are in memory of the Booster's, and gone at its next prediction.
        return np.ctypeslib.as_array(self._scores, shape).copy()

    def _carrier(self, margins: NDArray[np.float32] | None) -> Any:
        """The handle of what has these margins beside the matrix; None if there are none."""
        if margins is None:
            return None
        from xgboost.core import _ProxyDMatrix

        proxy = self._proxy = _ProxyDMatrix()  # anew: one that has had margins takes no other number of them
        proxy.set_info(base_margin=margins)
        return proxy.handle
