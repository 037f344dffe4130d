"""The Open Inference Protocol, version 2, by REST: any of its clients asks models of the registry with features.

Tensors of requests and answers are JSON, or binary data behind it.
"""

from __future__ import annotations

import asyncio
import math
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
from fastapi import APIRouter
from msgspec import Meta
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from gridscore.errors import GridscoreError, ModelError, UsageError
from gridscore.serve.micro_batches import BATCH, SaturatedError
from gridscore.sources.http.answer import json_response, later

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gridscore.models.version import ModelVersion
    from gridscore.serve.live_models import LiveModels
    from gridscore.sources.http.requests import Bodies

# Header that says how many bytes of a body are JSON, where binary data follow.
LENGTH = "inference-header-content-length"

INPUT, OUTPUT = "features", "predict"  # names of the only tensors; other servers of XGBoost call their output so, too
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
    data: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class InferRequest(msgspec.Struct):
    """The JSON of a request."""

    inputs: Annotated[list[_Input], Meta(min_length=1, max_length=1)]
    id: Annotated[str, Meta(max_length=1_000)] | None = None
    parameters: dict[str, Any] = {}
    outputs: Annotated[list[_Output], Meta(max_length=1)] = []


class _Question(msgspec.Struct, frozen=True):
    """A request, read."""

    rows: Any  # float32, of shape (n, features)
    id: str | None
    binary: bool  # whether the answer's tensor is wanted as binary data


_request = msgspec.json.Decoder(InferRequest).decode
_numbers = msgspec.json.Decoder(list[float]).decode
_gaps = msgspec.json.Decoder(list[float | bool | list[float | bool | None] | None]).decode

SECONDS = 10.0  # how long a request waits for its scores, and before that, the first for a version, until it is loaded


class Inference:
    """Answers requests of the protocol. `problem`: why nothing can be asked now; empty if it can."""

    def __init__(self, models: LiveModels, problem: Callable[[], Awaitable[str]], bodies: Bodies) -> None:
        self._models, self._problem, self._bodies = models, problem, bodies

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/v2", tags=["inference"])
        router.get("/health/live")(self._live)
        router.get("/health/ready")(self._ready)
        router.get("")(self._server)
        number = {"name": "number", "in": "path", "required": True, "schema": {"type": "string"}}
        for path, more in (("/models/{name}", {}), ("/models/{name}/versions/{number}", {"parameters": [number]})):
            router.get(path, openapi_extra=more)(self._model)
            router.get(f"{path}/ready", openapi_extra=more)(self._model_ready)
            router.post(f"{path}/infer", openapi_extra=more)(self._infer)
        return router

    async def _live(self) -> Response:
        """Whether this process answers."""
        return json_response(200, {"live": True})

    async def _ready(self) -> Response:
        """Whether the cluster answers, so that models can be asked. 503 if not."""
        problem = await self._problem()
        return json_response(503 if problem else 200, {"ready": not problem, **({"error": problem} if problem else {})})

    async def _server(self) -> Response:
        """Name and version of this server, and what it offers beyond the protocol."""
        value = {"name": "gridscore", "version": version("gridscore"), "extensions": ["binary_tensor_data"]}
        return json_response(200, value)

    async def _model(self, request: Request, name: str) -> Response:
        """What a model takes and gives; without a version, that of `champion`."""
        found = await _known(self._models.version(name, _number(request)))
        numbers = [str(each) for each in await _known(self._models.numbers(name))]
        return json_response(200, _metadata(found, numbers))

    async def _model_ready(self, request: Request, name: str) -> Response:
        """Whether a model is loaded; asking for it loads it."""
        await _known(self._models.get(name, _number(request)))
        return json_response(200, {"ready": True})

    async def _infer(self, request: Request, name: str) -> Response:
        """Scores of rows of features, as the model gives them: no lookups, no decisions."""
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise HTTPException(415, "A compressed body is not understood.")
        body = bytearray()
        try:
            async with asyncio.timeout(SECONDS):
                live = await _known(self._models.get(name, _number(request)))
            await self._bodies.receive(request, body)
            found = live.version
            _refuse_margin(found)
            asked = question(bytes(body), request.headers.get(LENGTH), len(found.features), BATCH)
            scores = await live.predict(asked.rows, request.scope.get("gridscore.has_left", lambda: False), SECONDS)
        except (UsageError, ModelError) as error:
            raise HTTPException(400, str(error)) from None
        except SaturatedError as error:
            raise later(503, error.message) from None
        except TimeoutError:
            raise HTTPException(504, f"There was no answer within {SECONDS:g} s.") from None
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        finally:
            self._bodies.held -= len(body)
        content, headers = answer(asked, name, found.version, scores)
        return Response(content, headers=headers)


async def _known(looking: Awaitable[Any]) -> Any:
    """What was looked up in the registry; or an answer that says why it cannot be used."""
    try:
        return await looking
    except (ModelError, UsageError) as error:
        raise HTTPException(404, str(error)) from None
    except GridscoreError as error:
        raise later(503, str(error)) from None


def _refuse_margin(found: ModelVersion) -> None:
    if found.margin:
        raise UsageError(
            f"The scores of {found} begin with a margin (`{found.margin}`), which a request of features does not have.",
            "Send events to a job with that margin: POST /score/JOB.",
        )


def _number(request: Request) -> int | None:
    """The version that a request names, if it does."""
    text = request.path_params.get("number")
    if text is not None and not (text.isdecimal() and text.isascii() and len(text) <= 9):
        raise HTTPException(404, f"`{text[:20]}` is not a version.")
    return None if text is None else int(text)


def _metadata(found: ModelVersion, numbers: list[str]) -> dict[str, Any]:
    outputs = [] if found.outputs in (None, 1) else [found.outputs]
    return {
        "name": found.name,
        "versions": numbers,
        "platform": "xgboost",
        "inputs": [
            {
                "name": INPUT,
                "datatype": "FP32",
                "shape": [-1, len(found.features)],
                "parameters": {
                    "features": found.features,
                    "categories": found.categories,
                    "encodings": found.definitions.encodings if found.definitions is not None else {},
                },
            }
        ],
        "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, *outputs]}],
        "parameters": {"version": str(found.version), "objective": found.objective, "metrics": found.metrics},
    }


def question(body: bytes, length: str | None, features: int, most: int) -> _Question:
    """Read a request.

    `length`: bytes of it that are JSON; all if None; `features`: columns that the model has; `most`: rows at most.
    Raises UsageError if it is not one, or not for the model.
    """
    cut = len(body)
    if length is not None:
        if not length.isdecimal() or len(length) > 18 or not 0 < int(length) <= len(body):
            raise UsageError(f"`{LENGTH}: {length[:20]}` is not a number of the body's {len(body):,} bytes.")
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
