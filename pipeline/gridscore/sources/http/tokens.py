"""Tokens of an OpenID Connect issuer: what who shows one may do, and which keys the issuer signs them with.

Nothing in a token decides how it is checked: the issuer is the settings', its keys come from it alone, and each key has
one algorithm, of which there are only those with public keys. A token only names the key.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import math
import ssl
from typing import TYPE_CHECKING, Any

import httpx
import jwt
import msgspec
from msgspec import structs

from gridscore.errors import GridError
from gridscore.job.plugs.http import private_address
from gridscore.keys import digest_of, granted
from gridscore.texts import visible

if TYPE_CHECKING:
    from gridscore.job.plugs.http import PostSettings
    from gridscore.keys import Key

_log = logging.getLogger(__name__)

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")

LEEWAY_SECONDS = 30  # by how much the issuer's clock may differ from ours
_LATEST = 1 << 37  # seconds since 1970 that a date can hold
MAX_TOKEN, MAX_DOCUMENT, MAX_KEYS = 16 << 10, 256 << 10, 100

FETCH_SECONDS = 5.0  # time to fetch the issuer's keys
# How long keys are used before they are fetched again, and for how long if they cannot be.
FRESH_SECONDS, KEPT_SECONDS = 600.0, 86_400.0

# Pause before keys are fetched again because one is unknown, and because it has failed.
UNKNOWN_SECONDS, FAILED_SECONDS = 60.0, 5.0


class _Discovery(msgspec.Struct):
    issuer: str
    jwks_uri: str


class _KeySet(msgspec.Struct):
    keys: list[dict[str, Any]]


class Tokens:
    """The tokens of one issuer."""

    def __init__(self, settings: PostSettings) -> None:
        self._issuer, self._claim = settings.oidc_issuer or "", settings.oidc_claim
        self._audience = settings.oidc_audience
        self._grants = {value: granted("", text) for value, text in settings.oidc_grant.items()}
        self._nothing = structs.replace(granted("", "read"), roles=())
        self._trust = ssl.create_default_context()
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_at = self._tried_at = -math.inf
        self._fetching: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Stop fetching keys."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)

    async def find(self, text: str) -> Key | None:
        """What who shows a token may do, perhaps nothing; None if it is not one.

        Raises GridError if the issuer does not say which keys it signs with.
        """
        if len(text) > MAX_TOKEN:
            return None
        try:
            name = jwt.get_unverified_header(text).get("kid")
        except jwt.InvalidTokenError:
            return None
        key = None if name is None else await self._key(name)
        if key is None:
            return None
        try:
            claims = jwt.decode(
                text,
                key,
                ALGORITHMS,
                options={"require": ["exp", "iss", "aud", "sub"], "enforce_minimum_key_length": True},
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_SECONDS,
            )
        except jwt.PyJWTError:
            return None
        values = _values(claims, self._claim)
        allowed = next((grant for value, grant in self._grants.items() if value in values), self._nothing)
        until = dt.datetime.fromtimestamp(min(int(claims["exp"]) + LEEWAY_SECONDS, _LATEST), dt.UTC)
        name = f"oidc:{visible(claims['sub'])}"[:100]
        return structs.replace(allowed, id=name, digest=digest_of(text), expires_at=until)

    async def _key(self, name: str) -> jwt.PyJWK | None:
        """The issuer's key of a name; what is known is used at once, and fetched again meanwhile."""
        now = asyncio.get_running_loop().time()
        has_failed, age = self._fetched_at < self._tried_at, now - self._fetched_at
        known = self._keys if age < KEPT_SECONDS else {}
        is_due = name not in known or age > FRESH_SECONDS
        is_idle = self._fetching is None or self._fetching.done()
        if is_due and is_idle and now - self._tried_at > (FAILED_SECONDS if has_failed else UNKNOWN_SECONDS):
            self._tried_at = now
            self._fetching = asyncio.create_task(self._fetch())
        if name in known:
            return known[name]
        if self._fetching is not None:
            await asyncio.shield(self._fetching)
        if self._fetched_at < self._tried_at:
            raise GridError("The issuer of tokens does not say which keys it signs with.")
        return self._keys.get(name)

    async def _fetch(self) -> None:
        at = self._tried_at
        try:
            # A proxy that the environment names sees nothing of TLS, but could answer for this machine in plain text.
            by_tls = self._issuer.startswith("https:")
            client = httpx.AsyncClient(verify=self._trust, trust_env=by_tls)
            async with asyncio.timeout(FETCH_SECONDS), client as http:
                address = f"{self._issuer.removesuffix('/')}/.well-known/openid-configuration"
                found = msgspec.json.decode(await _get(http, address), type=_Discovery)
                _check(self._issuer, found)
                keys = msgspec.json.decode(await _get(http, private_address(found.jwks_uri)), type=_KeySet)
        except (httpx.HTTPError, httpx.InvalidURL, msgspec.MsgspecError, OSError, RecursionError, ValueError) as error:
            why = visible(str(error)) or type(error).__name__
            _log.warning(
                "The keys of %s cannot be fetched: %s", self._issuer, why, extra={"action": "keys_not_fetched"}
            )
        else:
            self._keys = dict(filter(None, map(_read, keys.keys[:MAX_KEYS])))
            self._fetched_at = at


def _check(issuer: str, found: _Discovery) -> None:
    if found.issuer != issuer:
        raise ValueError(f"it calls itself `{found.issuer[:200]}`")
    if found.jwks_uri.partition(":")[0] != issuer.partition(":")[0]:
        raise ValueError(f"it says that they are at {found.jwks_uri[:200]}")


def _read(key: dict[str, Any]) -> tuple[str, jwt.PyJWK] | None:
    """A key and its name, if it can sign and everybody may know it."""
    name = key.get("kid")
    if not isinstance(name, str) or key.get("use", "sig") != "sig" or "d" in key:
        return None
    try:
        made = jwt.PyJWK(key)
    except Exception:  # noqa: BLE001 -- whatever is wrong with this one, others are good
        return None
    return (name, made) if made.algorithm_name in ALGORITHMS else None


async def _get(http: httpx.AsyncClient, address: str) -> bytes:
    """A document; no redirections, which could lead anywhere, and nothing compressed, which could be of any size."""
    body = bytearray()
    async with http.stream("GET", address, headers={"Accept-Encoding": "identity"}) as answer:
        if answer.status_code != 200:
            raise ValueError(f"{address} answers {answer.status_code}")
        async for chunk in answer.aiter_raw():
            body += chunk
            if len(body) > MAX_DOCUMENT:
                raise ValueError(f"{address} has more than {MAX_DOCUMENT:,} bytes")
    return bytes(body)


def _values(claims: dict[str, Any], name: str) -> list[Any]:
    """The values of a claim, which may have dots in its name, or be within another."""
    found: Any = claims.get(name)
    if found is None:
        found = claims
        for part in name.split("."):
            found = found.get(part) if isinstance(found, dict) else None
    if isinstance(found, str):
        # Only scopes are a list in one text: in a name that somebody gives himself a space means nothing.
        return found.split() if name in {"scope", "scp"} else [found]
    return found if isinstance(found, list) else []
