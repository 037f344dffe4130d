"""The gate before everything that is served: pages of other origins, and who may not, come no further.

It stands before the routes, so that whatever is added behind it is closed until `FREE` or `_needs` names it. Who is
refused waits for the answer, the longer the more often that has happened: guessing is slow.
"""

from __future__ import annotations

import asyncio
import hmac
import math
from collections import OrderedDict
from typing import TYPE_CHECKING

from hazelcast.errors import HazelcastError
from starlette.datastructures import Headers, QueryParams
from starlette.middleware.cors import CORSMiddleware

from gridscore.errors import GridError
from gridscore.keys import Keys, Rates, Role
from gridscore.sources.http.answer import json_response
from gridscore.sources.http.connections import address_of

if TYPE_CHECKING:
    from collections.abc import Hashable

    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

    from gridscore.grid import Grid
    from gridscore.job.plugs.http import PostSettings

FREE = frozenset(("/healthz", "/gridscore.js", "/v2/health/live", "/v2/health/ready"))
"""What anybody may ask for: probes and pages have no token."""

WAIT_SECONDS, LONGEST_SECONDS = 0.1, 2.0
"""How much longer each refusal of an address takes, and at most."""

FORGIVEN_SECONDS = 60.0
"""After so long without a refusal, an address begins anew."""

_ADDRESSES = 10_000


class Gate:
    """Lets requests pass to an application."""

    def __init__(self, app: ASGIApp, grid: Grid, settings: PostSettings) -> None:
        self._app, self._token, self._origins = app, settings.token.encode(), settings.allow_origin
        self._keys = Keys(grid) if settings.keys else None
        self._rates = Rates()
        self._refusals: OrderedDict[Hashable, tuple[int, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it.

        A browser asks before it sends JSON, but not before it sends plain text: so its origin is checked here, too.
        """
        if scope["path"] not in FREE:
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            if origin is not None and origin not in self._origins and "*" not in self._origins:
                text = f"Pages of {origin} may not send here: it must be started with the origin."
                await json_response(403, {"error": text})(scope, receive, send)
                return
            if self._token or self._keys is not None:
                refused = await self._refusal(scope, headers.get("authorization", ""))
                if refused is not None:
                    await refused(scope, receive, send)
                    return
        await self._app(scope, receive, send)

    async def _refusal(self, scope: Scope, authorization: str) -> Response | None:
        """The answer to who may not; None to who may."""
        scheme, _, rest = authorization.partition(" ")
        shown = rest.strip() if scheme.lower() == "bearer" else ""
        if self._token and hmac.compare_digest(shown.encode("latin-1"), self._token):
            return None
        if self._keys is not None:
            try:
                key = await self._keys.find(shown)
            except (HazelcastError, GridError):
                return json_response(503, {"error": "The keys cannot be looked up now."}, {"Retry-After": "1"})
            if key is not None:
                if wait := self._rates.wait(key, asyncio.get_running_loop().time()):
                    text = f"The key {key.id} is for {key.rate}, and that is used up."
                    return json_response(429, {"error": text}, {"Retry-After": f"{math.ceil(wait)}"})
                roles, name = _needs(scope)
                if key.allows(roles, name):
                    return None
                what = f" with `{name}`" if name else ", of all jobs and maps"
                text = f"The key {key.id} is not for this: it needs {' and '.join(roles)}{what}."
                return json_response(403, {"error": text})
        await asyncio.sleep(self._wait(address_of(scope["client"][0] if scope["client"] else "")))
        refused = {"error": f"The {'token' if self._keys is None else 'key'} is missing or wrong."}
        return json_response(401, refused, {"WWW-Authenticate": "Bearer"})

    def _wait(self, address: Hashable) -> float:
        now = asyncio.get_running_loop().time()
        count, at = self._refusals.pop(address, (0, now))
        count = 1 if now - at > FORGIVEN_SECONDS else count + 1
        self._refusals[address] = count, now
        if len(self._refusals) > _ADDRESSES:
            self._refusals.popitem(last=False)
        return min(count * WAIT_SECONDS, LONGEST_SECONDS)


def _needs(scope: Scope) -> tuple[tuple[Role, ...], str | None]:
    """The roles that a request needs, and the job, map or model that it is about.

    The name is cut out as the routes do it, from the same path.
    """
    path = scope["path"]
    parts = [*path.split("/"), "", ""]
    match parts[1]:
        case "score":  # whose door takes all that follows for the name
            recorded = QueryParams(scope["query_string"]).get("record") == "true"
            return (Role.SCORE, Role.INGEST) if recorded else (Role.SCORE,), path.removeprefix("/score/")
        case "events":
            return (Role.INGEST,), parts[2]
        case "results":
            return (Role.READ,), parts[2]
        case "v2":  # what server this is, any key may know
            return ((Role.SCORE,), parts[3]) if parts[2] == "models" else ((), None)
    return (Role.READ,), None


def gated(app: ASGIApp, grid: Grid, settings: PostSettings) -> ASGIApp:
    """An application behind a gate; browsers are told which pages may read its answers, refusals included."""
    gate = Gate(app, grid, settings)
    if not settings.allow_origin:
        return gate
    return CORSMiddleware(
        gate,
        allow_origins=settings.allow_origin,
        allow_methods=("GET", "POST"),
        allow_headers=("Authorization", "Content-Type", "Idempotency-Key"),
        # A beacon always claims to carry cookies. We ignore them.
        allow_credentials=True,
        expose_headers=("Retry-After",),
        max_age=86_400,
    )
