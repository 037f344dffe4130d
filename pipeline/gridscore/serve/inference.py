"""The Open Inference Protocol, version 2, by REST: any of its clients asks models of the registry with features."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from gridscore.errors import GridscoreError, ModelError, UsageError
from gridscore.serve.micro_batches import BATCH, SaturatedError
from gridscore.serve.tensors import INPUT, LENGTH, OUTPUT, answer, question
from gridscore.sources.http.answer import json_response, later

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gridscore.models.version import ModelVersion
    from gridscore.serve.live_models import LiveModels
    from gridscore.sources.http.bodies import Bodies

SECONDS = 10.0
"""How long a request waits for its scores, and before that, the first for a version, until it is loaded."""


class Inference:
    """Answers requests of the protocol.

    Args:
        problem: Why nothing can be asked now; empty if it can.
    """

    def __init__(self, models: LiveModels, problem: Callable[[], Awaitable[str]], bodies: Bodies) -> None:
        self._models, self._problem, self._bodies = models, problem, bodies

    def router(self) -> APIRouter:
        """Its addresses."""
        router = APIRouter(prefix="/v2", tags=["inference"])
        router.get("/health/live")(self._live)
        router.get("/health/ready")(self._ready)
        router.get("")(self._server)
        for path in ("/models/{name}", "/models/{name}/versions/{number}"):
            router.get(path)(self._model)
            router.get(f"{path}/ready")(self._model_ready)
            router.post(f"{path}/infer")(self._infer)
        return router

    async def _live(self) -> Response:
        """Whether this process answers."""
        return json_response(200, {"live": True})

    async def _ready(self) -> Response:
        """Whether the cluster answers, so that models can be asked. 503 if not."""
        problem = await self._problem()
        return json_response(503 if problem else 200, {"ready": not problem, **({"error": problem} if problem else {})})

    async def _server(self) -> Response:
        """What this server is."""
        value = {"name": "gridscore", "version": version("gridscore"), "extensions": ["binary_tensor_data"]}
        return json_response(200, value)

    async def _model(self, name: str, number: str | None = None) -> Response:
        """What a model takes and gives; without a version, that of `champion`."""
        found = await _known(self._models.version(name, _number(number)))
        numbers = [str(each) for each in await _known(self._models.numbers(name))]
        return json_response(200, _metadata(found, numbers))

    async def _model_ready(self, name: str, number: str | None = None) -> Response:
        """Whether a model is loaded; asking for it loads it."""
        await _known(self._models.get(name, _number(number)))
        return json_response(200, {"ready": True})

    async def _infer(self, request: Request, name: str, number: str | None = None) -> Response:
        """Scores of rows of features, as the model gives them: no lookups, no decisions."""
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise HTTPException(415, "A compressed body is not understood.")
        body = bytearray()
        try:
            async with asyncio.timeout(SECONDS):
                live = await _known(self._models.get(name, _number(number)))
            await self._bodies.receive(request, body)
            found = live.version
            _refuse_margin(found)
            asked = question(bytes(body), request.headers.get(LENGTH), len(found.features), BATCH)
            scores = await live.predict(asked.rows, request.scope.get("gridscore.has_left", lambda: False), SECONDS)
        except (UsageError, ModelError) as error:
            raise HTTPException(400, str(error)) from None
        except SaturatedError as error:
            raise later(503, f"This server is saturated: {error.message}") from None
        except TimeoutError:
            raise HTTPException(504, f"There was no answer within {SECONDS:g} s.") from None
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        finally:
            self._bodies.held -= len(body)
        content, headers = answer(asked, name, found.version, scores)
        return Response(content, headers=headers)


async def _known(looking: Awaitable[Any]) -> Any:
    """What was looked for in the registry, or the answer that says why it is not to be had."""
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


def _number(text: str | None) -> int | None:
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
                "parameters": {"features": found.features, "categories": found.categories},
            }
        ],
        "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, *outputs]}],
        "parameters": {"version": str(found.version), "objective": found.objective, "metrics": found.metrics},
    }
