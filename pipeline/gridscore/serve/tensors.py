"""Tensors of the Open Inference Protocol: requests and answers, as JSON or with binary data behind it."""

from __future__ import annotations

import math
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from gridscore.errors import UsageError

LENGTH = "inference-header-content-length"
"""Header that says how many bytes of a body are JSON, where binary data follow."""

INPUT, OUTPUT = "features", "predict"
"""Names of the only tensors. Other servers of XGBoost call their output so, too."""

_TYPES = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}

Rows = np.ndarray[Any, Any]


class _Input(msgspec.Struct):
    name: str
    shape: Annotated[list[Annotated[int, Meta(ge=0)]], Meta(min_length=1, max_length=2)]
    datatype: str
    parameters: dict[str, Any] = {}
    data: msgspec.Raw = msgspec.Raw()


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class _Request(msgspec.Struct):
    inputs: Annotated[list[_Input], Meta(min_length=1, max_length=1)]
    id: Annotated[str, Meta(max_length=1_000)] | None = None
    parameters: dict[str, Any] = {}
    outputs: Annotated[list[_Output], Meta(max_length=1)] = []


class _Question(msgspec.Struct, frozen=True):
    """A request, read.

    Attributes:
        rows: float32, of shape (n, features).
        binary: Whether the answer's tensor is wanted as binary data.
    """

    rows: Any
    id: str | None
    binary: bool


_request = msgspec.json.Decoder(_Request).decode
_numbers = msgspec.json.Decoder(list[float]).decode
_gaps = msgspec.json.Decoder(list[float | bool | list[float | bool | None] | None]).decode


def question(body: bytes, length: str | None, features: int, most: int) -> _Question:
    """Read a request.

    Args:
        length: Bytes of it that are JSON; all if None.
        features: Columns that the model has.
        most: Rows at most.

    Raises:
        UsageError: It is not one, or not for the model.
    """
    cut = len(body)
    if length is not None:
        if not length.isdecimal() or not 0 < int(length) <= len(body):
            raise UsageError(f"`{LENGTH}: {length}` is not a number of the body's {len(body):,} bytes.")
        cut = int(length)
    try:
        request = _request(body[:cut])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"The request is not one of the Open Inference Protocol: {error}") from None
    [tensor] = request.inputs
    wanted = request.outputs[0] if request.outputs else None
    if wanted is not None and wanted.name != OUTPUT:
        raise UsageError(f"There is no output `{wanted.name}`: the only one is `{OUTPUT}`.")
    if tensor.name != INPUT:
        raise UsageError(f"There is no input `{tensor.name}`: the only one is `{INPUT}`.")
    if len(tensor.shape) != 2 or tensor.shape[1] != features:
        raise UsageError(f"The input has the shape {tensor.shape}: the model wants [rows, {features}].")
    if tensor.shape[0] > most:
        raise UsageError(f"The input has {tensor.shape[0]:,} rows; a request has {most:,} at most.")
    kind = _TYPES.get(tensor.datatype)
    if kind is None:
        raise UsageError(f"Data of the type {tensor.datatype} are not understood: send FP32, or codes of categories.")
    values = _values(tensor, kind, body[cut:])
    if values.size != math.prod(tensor.shape):
        raise UsageError(f"The input has {values.size:,} numbers, which is not the shape {tensor.shape}.")
    with np.errstate(over="ignore"):
        rows = values.reshape(tensor.shape).astype(np.float32)
    rows[np.isinf(rows)] = np.nan  # what is infinite, or too large for float32, is missing: in training, too
    binary = request.parameters if wanted is None else wanted.parameters
    name = "binary_data_output" if wanted is None else "binary_data"
    return _Question(rows, request.id, binary.get(name, False) is True)


def _values(tensor: _Input, kind: np.dtype[Any], binary: bytes) -> Rows:
    size = tensor.parameters.get("binary_data_size")
    if size is not None:
        if bytes(tensor.data):
            raise UsageError("The input has both `data` and `binary_data_size`.")
        expected = math.prod(tensor.shape) * kind.itemsize
        if type(size) is not int or not size == len(binary) == expected:
            raise UsageError(
                f"The input has {len(binary):,} bytes of binary data and says that it has {size!r}: its shape and type "
                f"make {expected:,}."
            )
        return np.frombuffer(binary, kind)
    if binary:
        raise UsageError("Binary data follow that no input names.")
    if not bytes(tensor.data):
        raise UsageError("The input has no `data`.")
    try:
        return np.array(_numbers(tensor.data))
    except msgspec.ValidationError:
        pass  # in rows, or with gaps
    try:
        # Gaps are null, for JSON has nothing else for them.
        return np.array(_gaps(tensor.data), dtype=np.float64).reshape(-1)
    except (msgspec.DecodeError, ValueError, TypeError):
        raise UsageError("The input's `data` are not numbers in rows of the same length.") from None


def answer(asked: _Question, name: str, version: int, scores: Rows) -> tuple[bytes, dict[str, str]]:
    """The body of an answer, and its headers."""
    output: dict[str, Any] = {"name": OUTPUT, "datatype": "FP32", "shape": list(scores.shape)}
    value: dict[str, Any] = {"model_name": name, "model_version": str(version), "outputs": [output]}
    if asked.id is not None:
        value["id"] = asked.id
    if not asked.binary:
        output["data"] = scores.reshape(-1).tolist()
        return msgspec.json.encode(value), {"Content-Type": "application/json"}
    data = np.ascontiguousarray(scores, dtype="<f4").tobytes()
    output["parameters"] = {"binary_data_size": len(data)}
    head = msgspec.json.encode(value)
    return head + data, {"Content-Type": "application/octet-stream", LENGTH: str(len(head))}
