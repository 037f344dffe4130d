"""Secrets that stand in a job file: they are refused, as the file goes into the cluster, where others read it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

# Keys whose values are secrets: `password`, `registry_password`, `sasl.password`, `Authorization`.
_SECRET = re.compile(r"(^|[._-])(password|passwd|secret|token|authorization|api-?key)$", re.IGNORECASE)
# The field that takes properties of a library. Which of them are secrets is known to the library only, and more come
# with each version of it (`ssl.key.pem`, `sasl.oauthbearer.config`): all may be, but for those that are known not to.
_PROPERTIES = "set"
_HARMLESS = re.compile(
    r"(^|\.)(acks|algorithm|assignor|claim\.name|codec|debug|family|fallback|file|id|keytab|level|list|location|lookup|"
    r"mechanisms?|method|name|partitioner|principal|protocol|rack|reset|scope|sigalgs|stores|strategy|suites|type|url|"
    r"username|(ca|certificate)\.pem)$"
)
_HARMLESS_VALUE = re.compile(r"-?[0-9]+(\.[0-9]+)?|true|false", re.IGNORECASE)
# A password as libpq takes it in a text: `host=db password = …`, `?password=…`.
_IN_TEXT = re.compile(r"(?:^|[\s?&'])(?:ssl)?password\s*=\s*(?!'?\$\{)[^\s&]", re.IGNORECASE)
# The field that takes headers of requests. Any may be a secret, but for those that are known not to.
_HEADERS = "headers"
_HARMLESS_HEADER = re.compile(
    r"accept(-.*)?|cache-control|content-.*|from|host|origin|prefer|referer|user-agent|via|x-(correlation|request|trace)-id"
    r"|x-(source|environment|version|content-type-options)",
    re.IGNORECASE,
)
# Names in the query of an address whose values are secrets.
_IN_QUERY = re.compile(
    r"(.*[._-])?(access_?key|api_?key|auth|code|credential|jwt|key|pass|passwd|sig|signature)"
    r"|.*(apikey|password|secret|token)",
    re.IGNORECASE,
)
# A part of an address's path that nobody would type: services take it as proof that they know who calls.
_IN_PATH = re.compile(r"/(?=[^/]*[0-9])(?=[^/]*[A-Za-z])[A-Za-z0-9_-]{20,}(?![^/])")
_KEY = "PRIVATE KEY-----"


def is_secret(path: Sequence[object]) -> bool:
    """Whether the value at a path of settings is a secret, or may be one."""
    names = [each for each in path if isinstance(each, str)]
    if any(_SECRET.search(name) for name in names):
        return True
    if _HEADERS in names[:-1]:
        return not _HARMLESS_HEADER.fullmatch(names[-1])
    return _PROPERTIES in names[:-1] and not _HARMLESS.search(names[-1])


def is_plain_secret(path: Sequence[object], text: str) -> bool:
    """Whether a text at a path of settings is a secret as it is, and not `${NAME}`."""
    if not text or "${" in text or not is_secret(path):
        return False
    return bool(_SECRET.search(str(path[-1]))) or not _HARMLESS_VALUE.fullmatch(text)


def plain_secrets(settings: Mapping[str, Any], *above: str) -> Iterator[tuple[str, ...]]:
    """The paths of secrets that stand in settings as they are, and not as `${NAME}`.

    `settings`: an entry of a job file, or a part of one; `above`: the path of that part.
    """
    for key, value in settings.items():
        path = (*above, key)
        if isinstance(value, dict):
            yield from plain_secrets(value, *path)
        elif any(is_plain_secret(path, text) or _has_password(text) for text in _texts(value)):
            yield path


def _texts(value: Any) -> list[str]:
    return [each for each in (value if isinstance(value, list | tuple) else [value]) if isinstance(each, str)]


def _has_password(text: str) -> bool:
    """Whether a text holds a password, as the address of a database may, a token in a query, or a private key."""
    if _IN_TEXT.search(text) or _KEY in text:
        return True
    try:
        parts = urlsplit(text if "://" in text else "")
        password = parts.password
        query = parse_qsl(parts.query)
    except ValueError:  # such as a port that is not a number
        return False
    if parts.scheme in ("http", "https"):
        password = password or parts.username  # a user alone is a token
        if _IN_PATH.search(parts.path):
            return True
    secrets = [password or "", *(value for name, value in query if _is_secret_parameter(name, parts.scheme))]
    return any(each and "${" not in each for each in secrets)


def _is_secret_parameter(name: str, scheme: str) -> bool:
    if scheme.startswith("http"):
        return bool(_IN_QUERY.fullmatch(name.replace("-", "_")))
    return name.lower() in ("password", "sslpassword")
