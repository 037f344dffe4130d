"""Control: the verbs of the command line by REST, below `/control/`; each needs a role, and what changes is noted.

Errors are problems (RFC 9457) with the message, the hint and the exit code of the command line.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from hazelcast.errors import HazelcastError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from gridscore.errors import (
    BadRecordError,
    ConflictError,
    GridError,
    GridscoreError,
    JobNotFoundError,
    JournalMissingError,
    MapNotFoundError,
    ModelNotFoundError,
    UsageError,
)
from gridscore.serve.acting import UncertainError
from gridscore.serve.description import name_of, schema_of
from gridscore.serve.sessions import Visit
from gridscore.serve.verbs import VERBS, Asked, NotPermittedError
from gridscore.sources.http.answer import failure, json_response, refusal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.responses import Response
    from starlette.types import Message, Receive, Scope, Send

    from gridscore.grid import Grid
    from gridscore.keys import Role
    from gridscore.serve.acting import Acting
    from gridscore.serve.observation import Observation
    from gridscore.serve.verbs import Work
    from gridscore.sources.http.gate import Guard
    from gridscore.sources.http.requests import Bodies

PREFIX = "/control/"

READ_SECONDS = 25.0  # how long the cluster may take to answer a question
READING = 4  # questions of a kind at once: some read every record of the cluster
MAX_JSON = 2 << 20  # bytes of a body that is not a model
PROBLEM = "application/problem+json"

PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": "Why not, and what to do", "content": {PROBLEM: {"schema": schema_of("Problem")}}}
    for status in ("4XX", "5XX")
}

_STATUS: tuple[tuple[type[GridscoreError], int], ...] = (
    (NotPermittedError, 403),
    (JobNotFoundError, 404),
    (ModelNotFoundError, 404),
    (UsageError, 400),
    (ConflictError, 409),
    (BadRecordError, 409),
    (JournalMissingError, 409),
    (MapNotFoundError, 409),
    (UncertainError, 504),
    (GridError, 503),
)


class Control:
    """Answers requests of those who look after jobs and models."""

    def __init__(self, grid: Grid, guard: Guard, acting: Acting, observation: Observation, bodies: Bodies) -> None:
        self._grid, self._guard, self._acting = grid, guard, acting
        self._observation, self._bodies = observation, bodies
        self._app = FastAPI(
            openapi_url=None,
            docs_url=None,
            redoc_url=None,
            redirect_slashes=False,
            generate_unique_id_function=name_of,
            exception_handlers={
                HTTPException: _refused,
                RequestValidationError: _refused,
                GridscoreError: _refused,
                HazelcastError: _refused,
                TimeoutError: _refused,
                Exception: failure,
            },
        )
        for method, path, role, work in VERBS:
            self._app.add_api_route(
                PREFIX + path,
                self._answering(method, path, role, work),
                methods=[method],
                responses=PROBLEMS,
                tags=["control"],
                openapi_extra={"x-role": role},
            )
        self.routes = self._app.routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, whose body is received before anything is done; pages of other origins get nothing."""
        request, body = Request(scope, receive), bytearray()
        try:
            self._check_head(request)
            await self._bodies.receive(request, body)
            _check(request, body)
            await self._app(scope, _again(bytes(body), receive), send)
        except HTTPException as error:
            await (await _refused(request, error))(scope, receive, send)
        except ClientDisconnect:
            pass
        finally:
            self._bodies.held -= len(body)

    def _check_head(self, request: Request) -> None:
        if text := self._guard.refuses_page(request.headers):
            raise HTTPException(403, text)
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise HTTPException(415, "A compressed body is not understood.")

    def _answering(self, method: str, path: str, role: Role, work: Work) -> Callable[..., Awaitable[Response]]:
        """What FastAPI calls, with the parameters of a verb."""
        named = re.search(r"{(\w+)}", path)
        reading = asyncio.Semaphore(READING)

        async def answer(request: Request, **given: Any) -> Response:
            name = given.pop(named[1]) if named else None
            asked = Asked(self._grid, Visit(request.scope.get("gridscore.key")), role, self._observation)
            asked.need(name)
            if method != "GET":
                return json_response(200, await self._acting.do(asked, work, name, given))
            async with asyncio.timeout(READ_SECONDS), reading:
                return json_response(200, await work(asked, *([] if name is None else [name]), **given))

        parameters = list(inspect.signature(work, eval_str=True).parameters.values())[1:]
        first = inspect.Parameter("request", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Request)
        only = inspect.Parameter.KEYWORD_ONLY
        answer.__signature__ = inspect.Signature([first, *(each.replace(kind=only) for each in parameters)])  # type: ignore[attr-defined]
        answer.__name__, answer.__doc__ = work.__name__, work.__doc__
        return answer


def _check(request: Request, body: bytearray) -> None:
    """Refuse JSON that nobody can read; FastAPI's reader takes lone surrogates, and nests without a bound."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not body or kind == "application/octet-stream":
        return
    if len(body) > MAX_JSON:
        raise HTTPException(413, f"The body has more than {MAX_JSON:,} bytes.")
    try:
        msgspec.json.decode(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"The body is not JSON: {error}") from None


def _again(body: bytes, receive: Receive) -> Receive:
    """Gives a body that was received already."""
    pieces: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return pieces.pop() if pieces else await receive()

    return again


def status_of(error: GridscoreError) -> int:
    """The status of an answer that says it."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 409)


async def _refused(_request: Request, error: Exception) -> Response:
    """The answer to a request that was refused, as a problem."""
    status, headers = 503, {"Retry-After": "1"}
    more: dict[str, Any] = {}
    if isinstance(error, HTTPException):
        status, headers, detail = error.status_code, dict(error.headers or {}), str(error.detail)
    elif isinstance(error, RequestValidationError):
        status, headers = 400, {}
        detail = "; ".join(f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg']}" for each in error.errors()[:20])
    elif isinstance(error, GridscoreError):
        status = status_of(error)
        headers = headers if status == 503 else {}
        detail, more = error.message, {"hint": error.hint, "exit_code": error.exit_code}
    elif isinstance(error, TimeoutError):
        detail = f"It took more than {READ_SECONDS:.0f} seconds: others ask as well, or there is much to look at."
        more = {"hint": "Ask again when less is asked for."}
    else:
        detail = "The cluster does not answer."
    value = {"title": HTTPStatus(status).phrase, "status": status, "detail": detail, **more}
    answer = refusal if status in (408, 413) else json_response  # there may be more of the body
    made = answer(status, value, headers)
    made.headers["Content-Type"] = PROBLEM
    return made
