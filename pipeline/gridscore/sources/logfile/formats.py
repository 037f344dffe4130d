"""Formats of log files: they make an event of a line, or say why they cannot."""

from __future__ import annotations

import csv
import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from gridscore.features.cells import READERS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gridscore.features.cells import CellKind
    from gridscore.sources.logfile.settings import LogfileSourceSettings

_BOM = b"\xef\xbb\xbf"
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Parsed(NamedTuple):
    """An event: its fields, and its JSON text in UTF-8."""

    fields: dict[str, Any]
    text: bytes


class LogFormat:
    """The format of one file, which may have a header of its own.

    `quoted`: whether a record in quotes may span lines.
    """

    quoted = False

    def parse(self, raw: bytes) -> Parsed:
        """An event. `raw`: one record, without its line end. Raises ValueError if it is not an event."""
        raise NotImplementedError


class JsonLines(LogFormat):
    """One JSON object a line. The event is the text as it is."""

    def parse(self, raw: bytes) -> Parsed:
        try:
            return Parsed(_decode(raw), raw)
        except msgspec.ValidationError:
            raise ValueError("It is JSON, but not an object.") from None
        except (msgspec.DecodeError, RecursionError) as error:
            raise ValueError(f"It is not JSON: {error}") from None


class Csv(LogFormat):
    """A CSV record (RFC 4180): a field in quotes may hold delimiters, doubled quotes and line ends."""

    quoted = True

    def __init__(self, columns: Sequence[str], delimiter: str, types: Mapping[str, CellKind]) -> None:
        self._columns = columns
        self._delimiter = delimiter
        self._converters = [READERS[types.get(name, "string")] for name in columns]

    def parse(self, raw: bytes) -> Parsed:
        values = csv_values(raw, self._delimiter)
        if len(values) != len(self._columns):
            raise ValueError(f"It has {len(values)} fields where there are {len(self._columns)} columns.")
        fields = {
            name: _converted(name, convert, value)
            for name, convert, value in zip(self._columns, self._converters, values, strict=True)
        }
        return Parsed(fields, _encode(fields))


class Expression(LogFormat):
    """The named groups of a regular expression, which must match the whole line; unmatched groups are null."""

    def __init__(self, pattern: str, types: Mapping[str, CellKind]) -> None:
        self._match = re.compile(pattern).fullmatch
        names = re.compile(pattern).groupindex
        self._converters = [(name, READERS[types[name]] if name in types else str) for name in names]

    def parse(self, raw: bytes) -> Parsed:
        found = self._match(_text(raw))
        if found is None:
            raise ValueError("The pattern does not match.")
        fields = {}
        for name, convert in self._converters:
            value = found[name]
            fields[name] = None if value is None else _converted(name, convert, value)
        return Parsed(fields, _encode(fields))


class Combined(LogFormat):
    """A line of an access log: the combined format of Apache and nginx, or the common one, which lacks its end.

    A `-` is null. What follows the user agent, as with many servers, is left out.
    """

    _match = re.compile(
        # No time has a `[`, so what a client has put before it is searched once, and not from each `[`.
        r'(\S+) (\S+) (.+?) \[([^\[\]]+)\] "((?:[^"\\]|\\.)*+)" (\d{3}) (\d+|-)'
        r'(?: "((?:[^"\\]|\\.)*+)" "((?:[^"\\]|\\.)*+)".*)?'
    ).fullmatch

    def parse(self, raw: bytes) -> Parsed:
        found = self._match(_text(raw))
        if found is None:
            raise ValueError("It is not a line of an access log in the combined format.")
        host, logname, user, time, request, status, size, referer, agent = found.groups()
        request = _unescaped(request)
        method, path, protocol = _request(request)
        fields = {
            "remote_host": host,
            "remote_logname": None if logname == "-" else logname,
            "remote_user": None if user == "-" else user,
            "time": access_time(time),
            "request": None if request == "-" else request,
            "method": method,
            "path": path,
            "protocol": protocol,
            "status": int(status),
            "bytes": None if size == "-" else int(size),
            "referer": None if referer in (None, "-") else _unescaped(referer),
            "user_agent": None if agent in (None, "-") else _unescaped(agent),
        }
        return Parsed(fields, _encode(fields))


def format_of(settings: LogfileSourceSettings) -> Callable[[bytes], LogFormat]:
    """A function that makes a file's format from its first record, or raises a ValueError if that is not a header."""
    types = settings.types
    if settings.format == "json":
        return lambda _: JsonLines()
    if settings.format == "combined":
        return lambda _: Combined()
    if settings.format == "regex":
        return lambda _: Expression(settings.pattern or "", types)
    if settings.columns:
        return lambda _: Csv(settings.columns, settings.delimiter, types)
    return lambda header: Csv(_header(header, settings.delimiter), settings.delimiter, types)


def has_header(settings: LogfileSourceSettings) -> bool:
    """Whether the first record of a file is its header."""
    return settings.format == "csv" and not settings.columns


def csv_values(raw: bytes, delimiter: str) -> list[str]:
    """Fields of one record. Raises ValueError if it is not a record, is more than one, or ends within quotes."""
    try:
        rows = list(csv.reader([_text(raw)], delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise ValueError(f"It is not a CSV record: {error}") from None
    if len(rows) != 1:
        raise ValueError("It is not a CSV record.")
    return rows[0]


def is_open(raw: bytes, delimiter: str) -> bool:
    """Whether a CSV record goes on after this line end, because it is in quotes."""
    if raw.count(b'"') % 2 == 0:
        return False
    try:
        for _ in csv.reader([raw.decode("utf-8", "replace")], delimiter=delimiter, strict=True):
            pass
    except csv.Error as error:
        return "unexpected end" in str(error)
    return False


def without_bom(raw: bytes) -> bytes:
    """The first record of a file without a byte order mark."""
    return raw.removeprefix(_BOM)


def seconds_of_time(value: object) -> float | None:
    """Seconds since 1970 of a time: RFC 3339, or seconds or milliseconds since 1970; None if it is not a time."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        if not abs(value) < _NO_TIME:  # not a number, infinite, or a number that no float holds
            return None
        return value / 1000 if abs(value) > _MILLISECONDS else float(value)
    if isinstance(value, str):
        try:
            time = datetime.fromisoformat(value)
        except ValueError:
            return None
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    return None


_MILLISECONDS = 1e11  # as seconds, that is in the year 5138
_NO_TIME = 1e18
_MONTH_NAMES = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTHS = {name: number for number, name in enumerate(_MONTH_NAMES, 1)}
_ACCESS_TIME = re.compile(r"(\d\d)/([A-Z][a-z]{2})/(\d{4}):(\d\d:\d\d:\d\d) ([+-]\d\d)(\d\d)")
_ESCAPE = re.compile(rb'\\(x[0-9a-fA-F]{2}|["\\nrt])')
_ESCAPES = {b'"': b'"', b"\\": b"\\", b"n": b"\n", b"r": b"\r", b"t": b"\t"}
_REQUEST_PARTS = 3


@lru_cache(maxsize=4096)  # lines of one second have the same
def access_time(text: str) -> str:
    """Time of an access log, `10/Oct/2025:13:55:36 -0700`, as RFC 3339 has it.

    Raises ValueError if it is not a time.
    """
    found = _ACCESS_TIME.fullmatch(text)
    month = _MONTHS.get(found[2]) if found else None
    if found is None or month is None:
        raise ValueError(f"`{text}` is not a time of an access log.")
    day, _, year, clock, hours, minutes = found.groups()
    result = f"{year}-{month:02}-{day}T{clock}{hours}:{minutes}"
    datetime.fromisoformat(result)
    return result


def _request(request: str) -> tuple[str | None, str | None, str | None]:
    """Method, path and protocol; null each if it is not a request, as what port scanners send."""
    parts = request.split(" ")
    if len(parts) == _REQUEST_PARTS and parts[2].startswith("HTTP/"):
        return parts[0], parts[1], parts[2]
    return None, None, None


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text
    return _ESCAPE.sub(_escaped, text.encode()).decode("utf-8", "replace")


def _escaped(found: re.Match[bytes]) -> bytes:
    code = found[1]
    return bytes.fromhex(code[1:].decode()) if code[:1] == b"x" else _ESCAPES[code]


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"It is not UTF-8: {error.reason} at byte {error.start}.") from None


def _header(raw: bytes, delimiter: str) -> list[str]:
    names = [name.strip() for name in csv_values(raw, delimiter)]
    if not all(names):
        raise ValueError("The header has a column without a name.")
    if len(set(names)) != len(names):
        raise ValueError("The header has a column twice.")
    return names


def _converted(name: str, convert: Callable[[str], Any], value: str) -> Any:
    try:
        return convert(value)
    except ValueError:
        raise ValueError(f"`{name}`: {value[:100]!r} is not of its type.") from None
