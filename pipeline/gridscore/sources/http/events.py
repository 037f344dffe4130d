"""From the bytes of a request to events with keys, and what is wrong with the rest."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from ulid import ULID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

MAX_KEY = 512  # characters of a key


class EventError(NamedTuple):
    """Why something in a request is not an event."""

    number: int  # its index among the events of the request
    error: str
    too_large: bool = False  # whether its size is the reason


@dataclass(slots=True)
class RequestEvents:
    """Events of a request, with their keys, in order; and what was not an event."""

    entries: list[tuple[str, bytes]] = field(default_factory=list)
    errors: list[EventError] = field(default_factory=list)


class EventReader:
    """Checks that texts are JSON objects in UTF-8, and finds their keys.

    `key`: the fields that make the key; if empty, keys are ULIDs; `max_event`: most bytes of an event.
    """

    def __init__(self, key: Sequence[str], max_event: int) -> None:
        # The decoder checks and skips undeclared fields, which is much faster than making a dictionary.
        names = {f"key{number}": name for number, name in enumerate(key)}
        fields: list[Any] = [(slot, str | int | None, None) for slot in names]
        form = msgspec.defstruct("_Event", fields, rename=names, gc=False)
        self._decode: Callable[[bytes], Any] = msgspec.json.Decoder(form).decode
        self._names = names
        self._max_event = max_event

    def read(
        self, texts: Iterable[bytes], first: int = 0, prefix: str | None = None, *, single: bool = False
    ) -> RequestEvents:
        """Events of texts.

        `first`: index of the first in the request; `prefix`: the request's key: used as it is for a single event, else
        followed by the index; `single`: whether the request is one event.
        """
        taken = RequestEvents()
        entries, errors = taken.entries, taken.errors
        decode, names, limit = self._decode, self._names, self._max_event
        for index, text in enumerate(texts, first):
            if len(text) > limit:
                errors.append(EventError(index, f"the event has more than {limit:,} bytes", too_large=True))
                continue
            try:
                event = decode(text)
                if not text.isascii():
                    text.decode()  # the decoder does not check the texts of other fields
                if prefix is not None:
                    key = prefix if single else f"{prefix}-{index}"
                elif not names:
                    key = str(ULID())
                else:
                    key = self._key(event)
            except (ValueError, RecursionError) as error:
                errors.append(EventError(index, _reason(error)))
                continue
            entries.append((key, text))
        return taken

    def _key(self, event: Any) -> str:
        parts = []
        for slot, name in self._names.items():
            part = getattr(event, slot)
            if part is None:
                raise ValueError(f"the field `{name}`, which makes the key, is not there")
            text = str(part)
            if not text or len(text) > MAX_KEY:
                raise ValueError(f"the field `{name}` cannot be a key: it needs 1 to {MAX_KEY} characters")
            parts.append(text)
        key = "|".join(parts)
        if len(key) > MAX_KEY:
            raise ValueError(f"the key has {len(key)} characters; the limit is {MAX_KEY}")
        return key


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "the JSON is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "the text is not UTF-8"
    if isinstance(error, msgspec.ValidationError):
        _, of_field, name = str(error).partition("`$.")
        if of_field:
            return f"the field `{name.rstrip('`')}` cannot be a key: a string or a whole number is wanted"
        return "an event is a JSON object"
    if isinstance(error, msgspec.DecodeError):
        return f"not JSON: {error}"
    return str(error)


SLICE = 64 << 10  # bytes of a body to take apart in one go, if elements are not larger: all else waits only that long
_array = msgspec.json.Decoder(list[msgspec.Raw])

# A flat object, a text, or what changes the depth; it never backtracks.
_token = re.compile(rb'\{(?:[^{}\[\]"]++|"(?:[^"\\]++|\\.)*+")*+\}|"(?:[^"\\]++|\\.)*+"|[\[\]{},]', re.DOTALL)
_TOKENS = 10_000
_MAX_DEPTH = 1_000  # more than the decoder takes
_OPEN, _CLOSE, _COMMA = frozenset((b"[", b"{")), frozenset((b"]", b"}")), b","


def array_slices(body: bytes) -> Iterator[tuple[int, int] | None]:
    """Cut a JSON array into slices of whole elements, and check each; gives begin and end, and None for a pause.

    Many small elements would fill the memory as objects, and hold up everybody while they are made.

    Raises ValueError if it is not an array.
    """
    begin, end = body.index(b"[") + 1, len(body.rstrip())
    if body[end - 1 : end] != b"]" or end == begin - 1:
        raise ValueError("not a JSON array: it does not end with a bracket")
    end -= 1
    depth, last = 0, begin
    if end - begin > SLICE:
        for number, token in enumerate(_token.finditer(body, begin, end), 1):
            if not number % _TOKENS:
                yield None
            text = token[0]
            if text in _OPEN:
                depth += 1
                if depth > _MAX_DEPTH:
                    raise ValueError("the JSON is nested too deeply")
            elif text in _CLOSE:
                depth -= 1
            elif text == _COMMA and not depth and token.start() - last >= SLICE:
                yield _checked(body, last, token.start(), begin)
                last = token.end()
    if last > begin or body[last:end].strip():
        yield _checked(body, last, end, begin)


def _checked(body: bytes, begin: int, end: int, first: int) -> tuple[int, int]:
    if begin > first and not body[begin:end].strip():
        raise ValueError("not a JSON array: an element is missing at its end")
    elements_of(body, begin, end)
    return begin, end


def elements_of(body: bytes, begin: int, end: int) -> list[bytes]:
    """The texts of the elements of a slice. Raises ValueError if it is not one."""
    try:
        return list(map(bytes, _array.decode(b"[%b]" % body[begin:end])))
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    except msgspec.DecodeError as error:
        # With the byte's number in the body.
        said = re.sub(r"byte (\d+)", lambda found: f"byte {int(found[1]) - 1 + begin}", str(error))
        raise ValueError(f"not a JSON array: {said}") from None


class Lines:
    """Cuts a stream of bytes into lines, as it arrives. Blank lines are skipped.

    Of a line that is too long only the beginning is kept, one byte more than the limit, so that the reader sees that it
    is too long.
    """

    def __init__(self, max_event: int) -> None:
        self._max_line = max_event
        self._rest = bytearray()
        self._skipping = False

    @property
    def held(self) -> int:
        """Bytes of a line that is not whole yet."""
        return len(self._rest)

    def feed(self, chunk: bytes) -> list[bytes]:
        if self._skipping:
            _, newline, chunk = chunk.partition(b"\n")
            if not newline:
                return []
            self._skipping = False
        lines: list[bytes] = []
        if b"\n" in chunk:
            *lines, rest = (bytes(self._rest) + chunk).split(b"\n")
            lines = [stripped for line in lines if (stripped := line.strip())]
            self._rest = bytearray(rest)
        else:
            self._rest += chunk  # in place: a line may come byte by byte
        if len(self._rest) > self._max_line:
            lines.append(bytes(self._rest[: self._max_line + 1]))
            self._rest, self._skipping = bytearray(), True
        return lines

    def end(self) -> list[bytes]:
        """The last line, if it has no end."""
        rest, self._rest = bytes(self._rest).strip(), bytearray()
        return [rest] if rest else []
