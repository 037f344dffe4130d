"""The application: which address is answered by what."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Query
from fastapi.exceptions import RequestValidationError
from prometheus_client import generate_latest
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response

from gridscore.errors import GridscoreError
from gridscore.operations.metrics import TYPE, Families
from gridscore.serve.control import PREFIX
from gridscore.serve.dashboard.app import is_page
from gridscore.serve.description import ERRORS, describing, name_of
from gridscore.serve.scores import PATH
from gridscore.sources.http.answer import failure, http_error, json_response

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

    from gridscore.serve.control import Control
    from gridscore.serve.dashboard.app import Dashboard
    from gridscore.serve.inference import Inference
    from gridscore.serve.live_jobs import LiveJobs
    from gridscore.serve.scores import Scores
    from gridscore.serve.streams import Streams
    from gridscore.sources.http.app import EventsApp


class Application:
    """All that is served.

    `problem`: why nothing can be scored now; empty if it can; `dashboard`: answers those who look at pages; None if
    there are none.
    """

    def __init__(
        self,
        jobs: LiveJobs,
        scores: Scores,
        streams: Streams,
        inference: Inference,
        control: Control,
        problem: Callable[[], Awaitable[str]],
        dashboard: Dashboard | None,
    ) -> None:
        self._jobs, self._scores, self._streams, self._inference = jobs, scores, streams, inference
        self._control, self._problem, self._dashboard = control, problem, dashboard
        self._events: EventsApp | None = None
        self._posts: ASGIApp | None = None
        self._routes = self._routed()

    def attach(self, events: EventsApp | None) -> None:
        """Take in what answers those who post events; None while it is closed."""
        self._events = events
        self._posts = None if events is None else events.asgi()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; scores go past the routes, which would cost as much as they do."""
        path = scope["path"]
        if scope["type"] == "websocket" and not self._streams.is_for(path):
            app: ASGIApp = json_response(404, {"error": "There is no stream at this address."})
        elif path.startswith(PATH):
            app = self._scores
        elif self._streams.is_for(path):
            app = self._streams
        elif path.startswith(PREFIX):
            app = self._control
        else:
            app = self._dashboard if self._dashboard is not None and is_page(path) else self._routes
        await app(scope, receive, send)

    def _routed(self) -> FastAPI:
        app = FastAPI(
            title="Gridscore",
            version=version("gridscore"),
            # The pages of FastAPI load scripts of others, which would run where the answers are.
            docs_url=None,
            redoc_url=None,
            responses=ERRORS,
            generate_unique_id_function=name_of,
            exception_handlers={
                HTTPException: http_error,
                RequestValidationError: _not_valid,
                GridscoreError: _not_possible,
                Exception: failure,
            },
        )
        app.get("/healthz", tags=["health"])(self._healthz)
        app.get("/metrics", tags=["health"], response_class=PlainTextResponse)(self._get_metrics)
        app.get("/jobs", tags=["jobs"])(self._list_jobs)
        app.get("/results/{job}/stream", tags=["results"], response_class=_EventStream)(_stream)
        app.include_router(self._inference.router())
        app.mount("/", self._post)
        self.describe = describing(app, self._control.routes, lambda: self._posts is not None)
        app.openapi = self.describe  # type: ignore[method-assign]  # as FastAPI says
        return app

    async def _healthz(self) -> Response:
        """Whether the cluster answers, and what waits. 503 if it does not."""
        problem = await self._problem()
        value: dict[str, Any] = {"status": problem or "ok"}
        if self._events is not None:
            state, counts = await self._events.health()
            value = {"status": problem or state, **counts}
        return json_response(200 if value["status"] == "ok" else 503, value)

    async def _get_metrics(self) -> Response:
        """Metrics, as Prometheus reads them."""
        families, prefix = Families(), "gridscore_serve"
        for name, record in sorted(self._jobs.records.items()):
            live = self._jobs.live(name)
            families.show(f"{prefix}_ready", "Whether a job scores requests.", float(live is not None), job=name)
            if live is not None:
                families.count(f"{prefix}_events", "Events scored on request.", live.stats.events, job=name)
                families.count(f"{prefix}_batches", "Micro-batches of requests.", live.stats.batches, job=name)
                families.show(f"{prefix}_waiting_events", "Events that wait to be scored.", live.waiting, job=name)
                of = {"job": name, "model": record.job.model.name}
                families.show(f"{prefix}_model_version", "Version of the model.", live.stats.version, **of)
        for status, count in sorted(self._scores.answers.items()):
            families.count(f"{prefix}_answers", "Answers to requests for scores.", count, status=str(status))
        families.show(f"{prefix}_listeners", "Streams of results.", self._streams.listeners)
        if self._events is not None:
            counts = self._events.counts()
            families.count(f"{prefix}_posted_events", "Posted and confirmed.", counts["confirmed"])
            families.count(f"{prefix}_refused_events", "Posted, but not events.", counts["refused"])
            families.show(f"{prefix}_posting_events", "Wait for the grid.", counts["waiting"])
            families.show(f"{prefix}_posting_bytes", "The same in bytes.", counts["waiting_bytes"])
        return Response(generate_latest(families), media_type=TYPE)

    async def _list_jobs(self) -> Response:
        """The jobs that are served, and why one does not score requests."""
        jobs = [
            {
                "job": name,
                "state": record.state,
                "revision": record.revision,
                "events": record.job.events,
                "results": record.job.results,
                "model": record.job.model.name,
                "version": None if (live := self._jobs.live(name)) is None else live.stats.version,
                "problem": self._jobs.problem(name),
            }
            for name, record in sorted(self._jobs.records.items())
        ]
        return json_response(200, jobs)

    async def _post(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._posts or json_response(404, {"error": "There is nothing at this address, or not now."})
        await app(scope, receive, send)


class _EventStream(Response):
    media_type = "text/event-stream"


async def _stream(
    job: str,
    decision: Annotated[list[str], Query()] = [],  # noqa: ARG001, B006 -- it describes it, and FastAPI copies it
    last_event_id: str | None = None,  # noqa: ARG001
) -> Response:
    """Results of a job as they are written, as server-sent events; of some decisions only, or on from a place.

    Comes here only where there is no such job.
    """
    return json_response(404, {"error": f"There is no job `{job}` here."})


async def _not_valid(_request: Request, error: Exception) -> Response:
    return json_response(400, {"error": str(error)})


async def _not_possible(_request: Request, error: Exception) -> Response:
    return json_response(503, {"error": str(error)}, {"Retry-After": "1"})
