"""Control by REST: what a command asks of `gridscore serve`, so that it needs no route to the members."""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gridscore.cli.output import say
from gridscore.errors import ConnectionFailedError, GridError, GridscoreError, RefusedError, SettingsError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = 90.0  # a server waits ten for its turn, and then takes a minute at most
MOST_BYTES = 32 << 20  # of an answer
_MOST_KEY = 16 << 10  # bytes of a token


class Verb(NamedTuple):
    """A verb of control: its method and the words of its address, what goes with it, and what is made of the answer."""

    method: str
    words: tuple[str | int, ...]
    body: dict[str, Any] | None = None
    query: dict[str, Any] | None = None
    made: Callable[[Any], Any] = lambda value: value

    def ask(self, server: str) -> Any:
        """What the server answers. Raises GridscoreError if it refuses, or does not answer."""
        answer = _answer(_Server.of(server), self)
        try:
            return self.made(answer)
        except (KeyError, TypeError, ValueError) as error:
            text = f"{server} answers otherwise than this command understands: {error!r}."
            raise GridError(text, "Is it of another version? `gridscore --version` says which this is.") from None

    @property
    def path(self) -> str:
        """The address at a server."""
        given = {name: value for name, value in (self.query or {}).items() if value is not None}
        path = "/".join(urllib.parse.quote(str(word), safe="") for word in self.words)
        return f"/control/{path}{f'?{urllib.parse.urlencode(given)}' if given else ''}"


class _Server(NamedTuple):
    address: str
    key: str
    context: ssl.SSLContext | None
    is_here: bool

    @classmethod
    def of(cls, address: str) -> _Server:
        try:
            parts = urllib.parse.urlsplit(address)
            host, _ = parts.hostname, parts.port
            address.encode("ascii")
            (host or "").encode("idna")
        except ValueError:
            host, parts = None, urllib.parse.urlsplit("")
        more = parts.query or parts.fragment
        if parts.scheme not in ("http", "https") or not host or parts.username is not None or more:
            raise SettingsError(
                "--server is not the address of a server.",
                "As in https://scores.example.com:8080. The key stands in GRIDSCORE_KEY, or in the file that "
                "GRIDSCORE_KEY_FILE names.",
            )
        key, is_here = _key(), _is_here(host)
        if parts.scheme == "http" and key and not is_here:
            say(f"The key goes to {host} without encryption. Use https.", "yellow")
        context = _context() if parts.scheme == "https" else None
        return cls(address.rstrip("/"), key, context, is_here)


def _answer(server: _Server, verb: Verb) -> Any:
    headers = {"Accept": "application/json", "User-Agent": "gridscore"}
    if server.key:
        headers["Authorization"] = f"Bearer {server.key}"
    data = None
    if verb.body is not None:
        data, headers["Content-Type"] = json.dumps(verb.body).encode(), "application/json"
    request = urllib.request.Request(server.address + verb.path, data, headers, method=verb.method)  # noqa: S310
    handlers: list[Any] = [_NoRedirection, urllib.request.HTTPSHandler(context=server.context)]
    if server.is_here:
        handlers.append(urllib.request.ProxyHandler({}))
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=SECONDS) as answer:
            text = _read(answer, time.monotonic() + SECONDS)
    except urllib.error.HTTPError as error:
        with error:
            raise _refusal(server, error) from None
    except urllib.error.URLError as error:
        raise _unreachable(server, verb, error.reason) from None
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(server, verb, error) from None
    if len(text) > MOST_BYTES:
        raise GridError(f"The answer of {server.address} has more than {MOST_BYTES:,} bytes.", "Ask for less.")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise _not_ours(server) from None


def _read(answer: http.client.HTTPResponse, until: float) -> bytes:
    """The answer, up to a byte more than it may have. Raises TimeoutError if it is not there by then."""
    parts, size = list[bytes](), 0
    while size <= MOST_BYTES and (part := answer.read1(1 << 20)):
        parts.append(part)
        size += len(part)
        if time.monotonic() > until:
            raise TimeoutError(f"it is not whole after {SECONDS:.0f} s")
    return b"".join(parts)


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    """The key is for the server that was named, and no other."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _refusal(server: _Server, error: urllib.error.HTTPError) -> GridscoreError:
    """The error that a server has answered; a command without a server would have met the same."""
    try:
        said = json.loads(error.read(1 << 20))
    except (OSError, ValueError, RecursionError, http.client.HTTPException):
        said = None
    said = said if isinstance(said, dict) else {}
    status, text = error.code, str(said.get("detail") or said.get("error") or "")
    if status == 401:
        key = "The key is wrong, has expired or was revoked" if server.key else "The server asks for a key"
        return RefusedError(
            f"{key}: {server.address} refuses.", "GRIDSCORE_KEY has it, or the file GRIDSCORE_KEY_FILE."
        )
    if 300 <= status < 400:
        where = error.headers.get("Location", "another address")
        return RefusedError(f"{server.address} leads to {where}.", "Name the server itself.")
    if "detail" not in said and (status in (404, 405) or not text):
        return _not_ours(server, status)
    made = (RefusedError if status == 403 else GridError if status >= 500 else GridscoreError)(
        text, str(said.get("hint") or ("`gridscore key create` makes another key." if status == 403 else ""))
    )
    code = said.get("exit_code")
    if isinstance(code, int) and 0 < code < 128 and status != 403:
        made.exit_code = code
    return made


def _not_ours(server: _Server, status: int = 200) -> GridError:
    return GridError(
        f"{server.address} does not answer as control does (HTTP {status}).",
        "Is it `gridscore serve`, and as new as this command? `gridscore --version`",
    )


def _unreachable(server: _Server, verb: Verb, reason: BaseException | str) -> GridError:
    """The error of a server that cannot be reached, or was not heard of again: then it may have done what was asked."""
    if isinstance(reason, ssl.SSLCertVerificationError):
        return ConnectionFailedError(
            f"The certificate of {server.address} cannot be trusted: {reason.verify_message}.",
            "GRIDSCORE_SERVER_CA names a file with the certificate of its authority (PEM).",
        )
    if isinstance(reason, ConnectionRefusedError) or verb.method == "GET":
        what = f"within {SECONDS:.0f} s" if isinstance(reason, TimeoutError) else f"({reason})"
        hint = "Does `gridscore serve` run there? --server or GRIDSCORE_SERVER names it."
        return ConnectionFailedError(f"{server.address} does not answer {what}.", hint)
    return GridError(
        f"{server.address} did not answer ({reason}): whether it was done is not known.",
        "See what has come of it before you ask again: `gridscore key log`.",
    )


def _key() -> str:
    """From the environment or a file: an argument would show in the list of processes."""
    key, name = os.environ.get("GRIDSCORE_KEY", ""), os.environ.get("GRIDSCORE_KEY_FILE")
    if not key and name:
        with Path(name).open("rb") as file:
            key = file.read(_MOST_KEY + 1).decode("latin-1").strip()
    if len(key) > _MOST_KEY or not all("!" <= each <= "~" for each in key):
        where = "GRIDSCORE_KEY" if os.environ.get("GRIDSCORE_KEY") else f"`{name}`"
        raise SettingsError(f"{where} does not hold a key.", "`gridscore key create` makes one, in a line.")
    return key


def _context() -> ssl.SSLContext:
    name = os.environ.get("GRIDSCORE_SERVER_CA") or None
    try:
        return ssl.create_default_context(cafile=name)
    except ssl.SSLError:
        raise SettingsError(f"GRIDSCORE_SERVER_CA: `{name}` holds no certificates.", "Name a PEM file.") from None


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def needs_members() -> UsageError:
    """The error of a command that control does not have."""
    return UsageError(
        "This command, or what it was given, needs a route to the members: a server (GRIDSCORE_SERVER) does not do it.",
        "Run it where they can be reached, and name one: --members HOST:PORT.",
    )
