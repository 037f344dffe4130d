from typing import Any, TypeAlias

from numpy.typing import NDArray

Column: TypeAlias = bytes | list[int] | tuple[tuple[bytes, ...], NDArray[Any]]

def zip_objects(rows: int, literals: tuple[bytes, ...], columns: tuple[Column, ...], /) -> list[bytes]: ...
