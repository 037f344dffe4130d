from typing import Any

from numpy.typing import NDArray

def predict(
    nodes: NDArray[Any],
    roots: NDArray[Any],
    depths: NDArray[Any],
    base: float,
    logistic: bool,
    matrix: NDArray[Any],
    columns: int,
    scores: NDArray[Any],
    /,
) -> None: ...
