"""The description of all that is served, for programs: OpenAPI, of the routes and of what answers beside them."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from fastapi import APIRouter, Query
from fastapi.openapi.utils import get_openapi

from gridscore.serve.inference import InferRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastapi import FastAPI
    from fastapi.routing import APIRoute
    from starlette.routing import BaseRoute


def schema_of(name: str) -> dict[str, Any]:
    """A reference to a schema of `_SCHEMAS`."""
    return {"$ref": f"#/components/schemas/{name}"}


_SCHEMAS = {
    "Event": {"type": "object"},
    # What is answered in the place of what was asked for.
    "Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
    "Unavailable": {"type": "object"},  # an error, or what a probe says is wrong
    "Problem": {
        "type": "object",
        "required": ["title", "status", "detail"],
        "properties": {
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "hint": {"type": "string"},
            "exit_code": {"type": "integer"},
        },
    },
}
_EVENTS = {"oneOf": [schema_of("Event"), {"type": "array", "items": schema_of("Event")}]}
_EVENT = {"amount": 12.5, "customer": "c1"}
_INFER = {"inputs": [{"name": "features", "shape": [1, 2], "datatype": "FP32", "data": [12.5, 0.3]}]}


def _object(means: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"description": means, "content": {"application/json": {"schema": schema or {"type": "object"}}}}


ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": _object("What is wrong with the request", schema_of("Error")),
    "5XX": _object("Not possible now", schema_of("Unavailable")),
}

Time = Annotated[str, Query(pattern=r"^[0-9]{1,6}(\.[0-9]{1,3})?(s|ms)?$", examples=["2s", "500ms"])]


def describing(
    app: FastAPI, control: Sequence[BaseRoute], takes_events: Callable[[], bool]
) -> Callable[[], dict[str, Any]]:
    """What describes an application, in the place of its own `openapi`."""

    @cache  # or who asks again and again would hold up all others
    def describe(*, with_events: bool) -> dict[str, Any]:
        routes = [*app.routes, *control, *_scores.routes, *(_events.routes if with_events else ())]
        value = get_openapi(title=app.title, version=app.version, routes=routes)
        [schema], more = msgspec.json.schema_components([InferRequest], ref_template="#/components/schemas/{name}")
        for path, methods in value["paths"].items():
            if path.endswith("/infer"):
                methods["post"]["requestBody"] = _body(schema, _INFER)
        schemas = {**value.get("components", {}).get("schemas", {}), **_SCHEMAS, **more}
        value["components"] = {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
        value["security"] = [{}, {"key": []}]
        return value

    return lambda: describe(with_events=takes_events())


def name_of(route: APIRoute) -> str:
    """What the method of a generated client is called."""
    return route.name.strip("_") + ("_version" if "{number}" in route.path else "")


def _body(schema: dict[str, Any], example: Any) -> dict[str, Any]:
    # Posts may be text as well, and lines; but those who generate clients know only this of it.
    return {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}


_scores = APIRouter(tags=["scores"], responses=ERRORS, generate_unique_id_function=name_of)
_events = APIRouter(tags=["events"], responses=ERRORS, generate_unique_id_function=name_of)


@_scores.post("/score/{job}", openapi_extra={"requestBody": _body(_EVENTS, _EVENT)})
async def _score(job: str, timeout: Time = "2s", *, record: bool = False, key: str | None = None) -> None:  # noqa: ASYNC109 -- it is text
    """Score one event, a JSON object, or a list of them, as the job's stream does."""


@_events.post(
    "/events/{map}",
    status_code=202,
    responses={207: _object("Some are not events"), 400: _object("Nothing of it is an event, or the request is wrong")},
    openapi_extra={"requestBody": _body(_EVENTS, _EVENT)},
)
async def _post_events(map: str, key: str | None = None) -> None:  # noqa: A002 -- as in the path
    """Put events into a map: an object, or a list of them."""


@_events.get("/results/{map}/{key}")
async def _get_result(
    map: str,  # noqa: A002 -- as in the path
    key: str,
    wait: Time = "0",
    after: Annotated[str | None, Query(pattern="^(-1|[0-9]{1,18})$")] = None,
) -> None:
    """The result of a key; `wait` for one, of an event after a sequence."""
