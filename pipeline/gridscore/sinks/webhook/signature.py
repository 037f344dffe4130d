"""Signatures of web hooks, as https://www.standardwebhooks.com has them: made by the sink, checked by receivers."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import time
from typing import TYPE_CHECKING

from gridscore.errors import GridscoreError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ID, TIMESTAMP, SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"
"""Names of the headers."""

TOLERANCE = 300.0
"""Seconds that the clocks of sender and receiver may differ by, the way included."""

_PREFIX = "whsec_"
_VERSION = "v1"


class SignatureError(GridscoreError):
    """A request was not signed with the secret, or not now: it must not be believed."""


def decode_secret(secret: str) -> bytes:
    """The key that a secret stands for.

    Raises:
        UsageError: It is not a secret of a web hook. The message does not show it.
    """
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(_PREFIX) or not 24 <= len(key) <= 64:
        raise UsageError(
            "The secret of a web hook is `whsec_` and 24 to 64 random bytes in Base64; this one is not.",
            "Make one: python -c \"import base64, os; print('whsec_' + base64.b64encode(os.urandom(32)).decode())\"",
        )
    return key


def sign(keys: Iterable[bytes], identity: str, timestamp: int, body: bytes) -> str:
    """The value of the header `webhook-signature`.

    Args:
        keys: As `decode_secret` gives them; one signature for each.
        identity: The value of `webhook-id`.
        timestamp: The value of `webhook-timestamp`: seconds since 1970.
        body: Of the request.
    """
    signed = b"%s.%d." % (identity.encode(), timestamp) + body
    return " ".join(f"{_VERSION},{base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()}" for key in keys)


def verify_webhook(
    secret: str, headers: Mapping[str, str], body: bytes, *, tolerance: float = TOLERANCE, now: float | None = None
) -> str:
    """Check that a request comes from who has the secret, was not changed, and is not an old one sent again.

    Call it with the body as it came, before it is decoded.

    Args:
        secret: `whsec_…`, the same that the sink has.
        headers: Of the request, in any case of letters.
        body: Of the request.
        tolerance: Seconds that the request may be old, or our clock be slow.
        now: Seconds since 1970; the clock's if None.

    Returns:
        The identity of the message: the same for the same results sent again.

    Raises:
        SignatureError: It must not be believed: answer with 401 or 400.
        UsageError: The secret is not valid.
    """
    key = decode_secret(secret)
    lower = {name.lower(): value for name, value in headers.items()}
    try:
        identity, timestamp, signatures = lower[ID], lower[TIMESTAMP], lower[SIGNATURE]
        fits = re.fullmatch(r"[0-9]{1,15}", timestamp) and f"{identity}{signatures}".encode()
    except (KeyError, UnicodeEncodeError):
        fits = None
    if not fits:
        raise SignatureError(f"The request has not the headers {ID}, {TIMESTAMP} and {SIGNATURE}.")
    at = int(timestamp)
    if abs((time.time() if now is None else now) - at) > tolerance:
        raise SignatureError(f"The request was signed more than {tolerance:.0f} seconds ago, or in the future.")
    expected = sign([key], identity, at, body).encode()
    matches = [hmac.compare_digest(expected, given.encode()) for given in signatures.split(" ")]
    if not any(matches):
        raise SignatureError("The request was not signed with this secret, or was changed on its way.")
    return identity
