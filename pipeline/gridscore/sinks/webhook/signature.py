"""Signatures of web hooks (https://www.standardwebhooks.com), which the libraries listed there check."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import TYPE_CHECKING

from gridscore.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

ID, TIMESTAMP, SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"  # names of the headers
_PREFIX = "whsec_"
_VERSION = "v1"


def decode_secret(secret: str) -> bytes:
    """The key in a secret. Raises UsageError if it is not a secret of a web hook. The message does not show it."""
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

    `keys`: from `decode_secret`; one signature for each; `identity`: the value of `webhook-id`; `timestamp`: the value
    of `webhook-timestamp`: seconds since 1970.
    """
    signed = b"%s.%d." % (identity.encode(), timestamp) + body
    return " ".join(f"{_VERSION},{base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()}" for key in keys)
