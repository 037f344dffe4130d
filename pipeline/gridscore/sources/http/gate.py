"""The gate before everything that is served: pages of other origins, and who may not, come no further.

It stands before the routes, so that whatever is added behind it is closed until `FREE` or `_needs` names it, unless it
guards itself. Each refusal of an address takes longer than the one before, so that guessing is slow.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hmac
import ipaddress
import math
import re
from collections import OrderedDict
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from hazelcast.errors import HazelcastError
from starlette.datastructures import Headers, QueryParams
from starlette.middleware.cors import CORSMiddleware

from gridscore.errors import GridscoreError, missing_extra
from gridscore.keys import Key, Keys, Rates, Role, digest_of, granted
from gridscore.sources.http.answer import json_response
from gridscore.sources.http.connections import address_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable

    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

    from gridscore.grid import Grid
    from gridscore.job.plugs.http import PostSettings
    from gridscore.sources.http.tokens import Tokens

# What anybody may ask for: probes and pages have no token.
FREE = frozenset(("/healthz", "/gridscore.js", "/v2/health/live", "/v2/health/ready"))

WAIT_SECONDS, LONGEST_SECONDS = 0.1, 2.0  # how much longer each refusal of an address takes, and at most
FORGIVEN_SECONDS = 60.0  # after so long without a refusal, an address begins anew
_ADDRESSES = 10_000


SUBPROTOCOL = "gridscore"  # of a WebSocket; a key may follow it
TOKEN_ID = "0" * 12  # stands for the token where the ID of a key is asked for


class Guard:
    """Who somebody is, by the key, the token or the certificate that they show; it makes guessing slow.

    `asks`: whether anything must be shown; `takes_keys`: whether keys are, beside the token.
    """

    def __init__(self, grid: Grid, settings: PostSettings) -> None:
        self._token, self._all = settings.token.encode(), None
        if settings.token:
            digest = digest_of(settings.token)
            self._all = Key(id=TOKEN_ID, roles=tuple(Role), digest=digest, created_at=dt.datetime.now(dt.UTC))
        self._keys = Keys(grid) if settings.keys else None
        self._clients = {name: granted(f"cert:{name}"[:100], text) for name, text in settings.client_grant.items()}
        self._tokens = _tokens(settings) if settings.oidc_issuer else None
        self._rates = Rates()
        self.takes_keys = settings.keys
        self.asks = bool(settings.token or settings.keys or settings.oidc_issuer or settings.client_grant)
        self._refusals: OrderedDict[Hashable, tuple[int, float]] = OrderedDict()
        self._names = {settings.host, "localhost", *(urlsplit(each).hostname for each in settings.allow_origin)}

    def refuses_page(self, headers: Headers) -> str:
        """Why the page that a browser asks for may not; empty if it is of this very server, or there is none."""
        origin, host = headers.get("origin"), headers.get("host", "")
        if origin is not None and (not host or origin.partition("://")[2] != host):
            return "Pages of other origins may not ask here."
        if not self.asks and not self._is_ours(host):
            # Or a foreign page could read everything, by a name that resolves to this machine (DNS rebinding).
            return "The server does not know this name of its own: start it with `--allow-origin http://NAME:PORT`."
        return ""

    def _is_ours(self, host: str) -> bool:
        name = host.rpartition(":")[0] if re.search(r":[0-9]*$", host) else host
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return name.lower() in self._names
        return True

    async def close(self) -> None:
        """Stop asking the issuer of tokens."""
        if self._tokens is not None:
            await self._tokens.close()

    async def caller(self, scope: Scope, authorization: str) -> Key | None:
        """What the caller may do, by the header `Authorization`, or else by the certificate; errors as of `find`."""
        if not authorization and self._clients and (names := scope.get("gridscore.names")):
            return next((key for name, key in self._clients.items() if name in names), None)
        scheme, _, rest = authorization.partition(" ")
        shown = rest.strip() if scheme.lower() == "bearer" else ""
        begins = shown.startswith("ey")  # as `{"` is written in base64, and perhaps a token of the settings
        if self._tokens is not None and begins and not self._is_token(shown.encode("latin-1")):
            return await self._tokens.find(shown)
        return await self.find(shown.encode("latin-1"))

    async def find(self, shown: bytes) -> Key | None:
        """The key that somebody shows; None if it is not one.

        Raises:
            HazelcastError, GridscoreError: The keys cannot be looked up.
        """
        if self._is_token(shown):
            return self._all
        return None if self._keys is None else await self._keys.find(shown.decode("latin-1"))

    def _is_token(self, shown: bytes) -> bool:
        return bool(self._token) and hmac.compare_digest(shown, self._token)

    async def of(self, name: str) -> Key | None:
        """The key of an ID, as long as it is good; errors as of `find`."""
        if name == TOKEN_ID:
            return self._all
        return None if self._keys is None else await self._keys.get(name)

    async def is_good(self, key: Key) -> bool:
        """Whether what somebody has shown before is still good; errors as of `find`."""
        if ":" in key.id:  # others vouch for who shows it
            return not key.has_expired
        return await self.of(key.id) is not None

    def wait(self, key: Key) -> int:
        """Seconds until a request of this key may pass; 0 if it may now, and then it counts."""
        return math.ceil(self._rates.wait(key, asyncio.get_running_loop().time()))

    async def refuse(self, scope: Scope) -> None:
        """Wait before somebody is told that what they show is wrong."""
        await asyncio.sleep(self._wait(address_of(scope["client"][0] if scope["client"] else "")))

    def _wait(self, address: Hashable) -> float:
        now = asyncio.get_running_loop().time()
        count, at = self._refusals.pop(address, (0, now))
        count = 1 if now - at > FORGIVEN_SECONDS else count + 1
        self._refusals[address] = count, now
        if len(self._refusals) > _ADDRESSES:
            self._refusals.popitem(last=False)
        return min(count * WAIT_SECONDS, LONGEST_SECONDS)


class Gate:
    """Lets requests pass to an application.

    `guards_itself`: whether what answers at a path asks who comes, and from which page, by itself.
    """

    def __init__(
        self, app: ASGIApp, guard: Guard, origins: Collection[str], guards_itself: Callable[[str], bool]
    ) -> None:
        self._app, self._guard, self._origins, self._guards_itself = app, guard, origins, guards_itself

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it.

        A browser asks before it sends JSON, but not before it sends plain text or opens a WebSocket: so its origin is
        checked here, too. For a WebSocket it tells it even to the server that the page is of.
        """
        if scope["path"] not in FREE and not self._guards_itself(scope["path"]):
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            is_own = scope["type"] == "websocket" and not self._guard.refuses_page(headers)
            if origin is not None and not is_own and origin not in self._origins and "*" not in self._origins:
                text = f"Pages of {origin} may not send here: it must be started with the origin."
                await json_response(403, {"error": text})(scope, receive, send)
                return
            if self._guard.asks:
                shown = headers.get("authorization", "")
                if scope["type"] == "websocket" and scope["subprotocols"][:1] == [SUBPROTOCOL] and not shown:
                    shown = f"Bearer {' '.join(scope['subprotocols'][1:])}"  # a page can send no other header
                refused = await self._refusal(scope, shown)
                if refused is not None:
                    await refused(scope, receive, send)
                    return
        await self._app(scope, receive, send)

    async def _refusal(self, scope: Scope, authorization: str) -> Response | None:
        """The answer to who may not; None to who may."""
        try:
            key = await self._guard.caller(scope, authorization)
        except (HazelcastError, GridscoreError):
            return json_response(503, {"error": "The keys cannot be looked up now."}, {"Retry-After": "1"})
        if key is not None:
            if seconds := self._guard.wait(key):
                return json_response(429, {"error": used_up(key)}, {"Retry-After": f"{seconds}"})
            scope["gridscore.key"] = key
            roles, name = _needs(scope)
            if key.allows(roles, name):
                return None
            what = f" with `{name}`" if name else ", of all jobs and maps"
            text = f"The key {key.id} is not for this: it needs {' and '.join(roles)}{what}."
            return json_response(403, {"error": text})
        await self._guard.refuse(scope)
        what = f"The {'key' if self._guard.takes_keys else 'token'} is missing"
        is_known = not authorization and scope.get("gridscore.names")
        text = f"{what}, and no grant is for a name of this certificate." if is_known else f"{what} or wrong."
        return json_response(401, {"error": text}, {"WWW-Authenticate": "Bearer"})


def _tokens(settings: PostSettings) -> Tokens:
    try:
        from gridscore.sources.http.tokens import Tokens
    except ModuleNotFoundError as error:
        raise missing_extra("--oidc-issuer", "oidc", error) from None
    return Tokens(settings)


def used_up(key: Key) -> str:
    """What to say to who asks more often than the rate of the key."""
    return f"The key {key.id} is for {key.rate}, and that is used up."


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
        case "control":  # which asks by itself what the key may do
            return (), None
        case "v2":  # what server this is, any key may know
            return ((Role.SCORE,), parts[3]) if parts[2] == "models" else ((), None)
    return (Role.READ,), None


def gated(
    app: ASGIApp, guard: Guard, origins: Collection[str], guards_itself: Callable[[str], bool] = lambda _path: False
) -> ASGIApp:
    """An application behind a gate; browsers are told which pages may read its answers, refusals included."""
    gate = Gate(app, guard, origins, guards_itself)
    if not origins:
        return gate
    return CORSMiddleware(
        gate,
        allow_origins=tuple(origins),
        allow_methods=("GET", "POST"),
        allow_headers=("Authorization", "Content-Type", "Idempotency-Key"),
        # A beacon always claims to carry cookies. We ignore them.
        allow_credentials=True,
        expose_headers=("Retry-After",),
        max_age=86_400,
    )
