"""Scores on request: `POST /score/JOB` with one event, or a list of them.

Computed here, an event is neither put nor written anywhere. With `record=true` it is put into the job's event map, and
the answer is the stream's result: so windows, labels and sinks see it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.datastructures import Headers, QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from gridscore.client import Client
from gridscore.errors import EventRejectedError, GridscoreError, NoResultError
from gridscore.serve.live_jobs import LiveJob, UnservedError
from gridscore.serve.micro_batches import BATCH
from gridscore.serve.tasks import unless_left
from gridscore.sources.http.answer import failure, http_error, json_response, later
from gridscore.sources.http.events import MAX_KEY, EventReader, array_slices, elements_of
from gridscore.sources.http.requests import flag, seconds

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from gridscore.grid import Grid
    from gridscore.job import JobRecord
    from gridscore.results.stream import Result
    from gridscore.serve.live_jobs import Answers, LiveJobs
    from gridscore.serve.settings import ServeSettings
    from gridscore.sources.http.requests import Bodies

PATH = "/score/"

SECONDS = 2.0  # how long a request waits, unless it says something else
MAX_RECORDED = 100  # most events of a request that are put into the grid
MAX_RECORDING = 1_000  # events of all requests that may wait for the stream


class Scores:
    """Answers requests for scores."""

    def __init__(self, grid: Grid, settings: ServeSettings, jobs: LiveJobs, bodies: Bodies) -> None:
        self._grid, self._jobs, self._bodies = grid, jobs, bodies
        self._reader = EventReader(settings.key, settings.max_event)
        self._has_keys = bool(settings.key)
        self._max_event = settings.max_event
        self._client = Client(grid)
        self._recording = 0
        self.answers: Counter[int] = Counter()  # how many there were, by status

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer without a router before it: this is the path that must be short."""
        request = Request(scope, receive)
        try:
            response = await self._answer(request)
        except HTTPException as error:
            response = await http_error(request, error)
        except ClientDisconnect:
            response = Response(status_code=400)  # nobody reads it
        except Exception as error:  # noqa: BLE001 -- as a router would
            response = await failure(request, error)
        self.answers[response.status_code] += 1
        await response(scope, receive, send)

    def close(self) -> None:
        """End what waits for results of the stream."""
        self._client.stop_waiting()

    async def _answer(self, request: Request) -> Response:
        scope = request.scope
        if scope["method"] != "POST":
            raise HTTPException(405, "Send events with POST.", headers={"Allow": "POST"})
        name, wait, record = scope["path"][len(PATH) :], SECONDS, False
        if scope["query_string"]:
            query = QueryParams(scope["query_string"])
            wait = seconds("timeout", query.get("timeout", str(SECONDS)))
            record = flag("record", query.get("record", "false"))
        _check(request.headers)
        if not self._grid.is_connected:
            raise later(503, "The connection to the grid is lost.")
        body = bytearray()
        try:
            job = self._jobs.record(name) if record else self._jobs.get(name)
            await self._bodies.receive(request, body)
            texts, single = await _events(bytes(body))
            if not isinstance(job, LiveJob):
                return await self._record(request, job, texts, wait, single=single)
            if (large := max(map(len, texts), default=0)) > self._max_event:
                raise HTTPException(400, f"An event has {large:,} bytes; the limit is {self._max_event:,}.")
            keys = self._keys(request, texts, single=single) if job.needs_keys else None
            answers = await job.score(texts, scope.get("gridscore.has_left", lambda: False), wait, keys)
        except UnservedError as error:
            if error.status == 503:
                raise later(503, str(error)) from None
            raise HTTPException(error.status, str(error)) from None
        except TimeoutError:
            raise HTTPException(504, f"It was not scored within {wait:g} s.") from None
        except GridscoreError as error:
            raise later(503, str(error)) from None
        finally:
            self._bodies.held -= len(body)
        return _respond(answers, single=single)

    def _keys(self, request: Request, texts: list[bytes], *, single: bool) -> list[str | None] | None:
        """The keys that events would get if they were put, None where they would get any: experiments go by them."""
        prefix = request.query_params.get("key")
        if prefix is None and not self._has_keys:
            return None
        entries = (
            self._reader.read([text], number, prefix, single=single).entries for number, text in enumerate(texts)
        )
        return [found[0][0] if found else None for found in entries]

    # ------------------------------------------------------------------ through the grid

    async def _record(
        self, request: Request, job: JobRecord, texts: list[bytes], wait: float, *, single: bool
    ) -> Response:
        key = request.query_params.get("key")
        if key is not None and not 1 <= len(key) <= MAX_KEY:
            raise HTTPException(400, f"A key has 1 to {MAX_KEY} characters.")
        if len(texts) > MAX_RECORDED:
            raise HTTPException(400, f"A request records {MAX_RECORDED} events at most; POST /events takes any number.")
        if self._recording + len(texts) > MAX_RECORDING:
            raise later(503, "Too many wait for results of the stream.")
        self._recording += len(texts)
        try:
            asked = [self._recorded(job, text, key, wait, number, single) for number, text in enumerate(texts)]
            answers = await unless_left(request.receive, asyncio.gather(*asked))
        finally:
            self._recording -= len(texts)
        if not single:
            return json_response(200, [value for _, value in answers])
        [(status, value)] = answers
        return json_response(status, value, {"Retry-After": "1"} if status == 503 else None)

    async def _recorded(
        self, job: JobRecord, text: bytes, prefix: str | None, wait: float, number: int, single: bool
    ) -> tuple[int, dict[str, Any]]:
        """Put an event, and wait; returns what it is worth in HTTP, and what to answer."""
        read = self._reader.read([text], number, prefix, single=single)
        if read.errors:
            [error] = read.errors
            return 413 if error.too_large else 422, {"error": error.error, "stage": "decode", "recorded": False}
        [(key, _)] = read.entries
        try:
            result: Result = await self._client.score(job.job.events, key, text, results=job.job.results, timeout=wait)
        except EventRejectedError as error:
            rejected = {"error": error.reason, "stage": error.stage, "dead_letter": error.letter}
            return 422, {"key": key, **rejected, "recorded": True}
        except NoResultError as error:
            return 504, {"key": key, "error": str(error), "recorded": error.put}
        except GridscoreError as error:
            return 503, {"key": key, "error": str(error), "recorded": False}
        return 200, {"key": key, **result.value}


class _Scored(Response):
    """An answer that is JSON already, without what a Response can do beside it: there are many a second."""

    status_code = 200

    def __init__(self, text: bytes) -> None:
        self.body = text

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(self.body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


def _check(headers: Headers) -> None:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, f"`{kind}` is not understood: send application/json.")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise HTTPException(415, "A compressed body is not understood.")


async def _events(body: bytes) -> tuple[list[bytes], bool]:
    """The texts of the events, and whether it is one event rather than a list."""
    start = body.lstrip()[:1]
    if not start:
        raise HTTPException(400, "There is no event in the body.")
    if start != b"[":
        return [body], True
    texts: list[bytes] = []
    try:
        for bounds in array_slices(body):
            if bounds is not None:
                texts += elements_of(body, *bounds)
            if len(texts) > BATCH:
                raise HTTPException(400, f"A request has {BATCH:,} events at most.")
            await asyncio.sleep(0)  # others have their turn
    except ValueError as error:
        raise HTTPException(400, f"{str(error).capitalize()}.") from None
    return texts, False


def _respond(answers: Answers, *, single: bool) -> Response:
    if single:
        [answer] = answers
        if isinstance(answer, bytes):
            return _Scored(answer)
        return json_response(422, {"error": answer.error, "stage": answer.stage})
    texts = [
        each if isinstance(each, bytes) else msgspec.json.encode({"error": each.error, "stage": each.stage})
        for each in answers
    ]
    return _Scored(b"[%b]" % b",".join(texts))
