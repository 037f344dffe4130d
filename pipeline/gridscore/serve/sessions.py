"""Sessions: cookies that say which key was shown, signed with what the grid knows of that key.

No server stores them, so any server accepts them. A session ends with its time or with its key, whichever is first.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from typing import TYPE_CHECKING, NamedTuple

from gridscore.keys import Role
from gridscore.sources.http.gate import TOKEN_ID

if TYPE_CHECKING:
    from gridscore.keys import Key
    from gridscore.sources.http.gate import Guard

SECONDS = 12 * 3600  # how long a session lasts at most
_FORM = re.compile(r"(([0-9a-f]{12})\.([0-9]{1,12})\.[\w-]{16})\.([0-9a-f]{64})", re.ASCII)


class Visit(NamedTuple):
    """Who asks for a page."""

    key: Key | None  # that was shown; None if none is asked for
    session: str = ""  # of it

    @property
    def by(self) -> str:
        """What logs call it."""
        return "" if self.key is None else "token" if self.key.id == TOKEN_ID else self.key.id

    @property
    def token(self) -> str:
        """What its forms hold."""
        return "" if self.key is None else form_token(self.key, self.session)

    def has(self, role: Role) -> bool:
        """Whether it has a role, perhaps for some names only; where nobody has to show anything, all may read."""
        return role is Role.READ if self.key is None else role in self.key.roles

    def may(self, role: Role, name: str | None) -> bool:
        """Whether it has a role for a job or model; None for what is of all."""
        return role is Role.READ if self.key is None else self.key.allows((role,), name)


def session_of(key: Key) -> str:
    """A new session of who has shown a key."""
    text = f"{key.id}.{int(time.time()) + SECONDS}.{secrets.token_urlsafe(12)}"
    return f"{text}.{_signed(key, 'session', text)}"


async def key_of(guard: Guard, session: str) -> Key | None:
    """The key of a session, as long as both are good; errors as of `Guard.find`."""
    matched = _FORM.fullmatch(session)
    if matched is None or int(matched[3]) <= time.time():
        return None
    key = await guard.of(matched[2])
    return key if key is not None and hmac.compare_digest(matched[4], _signed(key, "session", matched[1])) else None


def form_token(key: Key, session: str) -> str:
    """What a form of a session holds, which no page of others can know."""
    return _signed(key, "form", session)


def is_form_token(key: Key, session: str, shown: str) -> bool:
    """Whether a form comes from a page of the session."""
    return hmac.compare_digest(shown.encode(), form_token(key, session).encode())


def _signed(key: Key, what: str, text: str) -> str:
    return hmac.new(bytes.fromhex(key.digest), f"gridscore {what} {text}".encode(), hashlib.sha256).hexdigest()
