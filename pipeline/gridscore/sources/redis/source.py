"""The Redis source: events from the entries of a stream, acknowledged (XACK) once the grid has them.

Redis keeps what it has given to a consumer until that is acknowledged. So a source first asks for what it was given
before a restart, then for new entries, and from time to time takes over what silent consumers hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from gridscore.errors import GridscoreError, RefusedError
from gridscore.job.types import seconds_of
from gridscore.sources.base import Batch, Poison, SourceInterruptedError, key_of
from gridscore.sources.position import Beginning

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Sequence

    from gridscore.grid import Grid
    from gridscore.sources.redis.settings import RedisSourceSettings

_log = logging.getLogger(__name__)

_ANSWER_SECONDS = 15.0
_WAIT_SECONDS = 1.0
# Of a batch. Redis only counts entries, so we adapt to those before, from one on: what was too large comes again.
_MOST_BYTES = 16 << 20
_BEGINNING = b"0-0"

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_number = msgspec.json.Decoder(int | float).decode

_Entries = list[tuple[bytes, dict[bytes, bytes]]]  # IDs and fields; deleted entries have no fields

# By the library's class and Redis's words: errors that a retry would not heal.
_REFUSED: Sequence[tuple[str, str, str]] = (
    ("^Authentication", "refuses the user or the password", "Look at `username` and `password`."),
    ("^NoPerm", "does not allow it to this user", "Give it ~STREAM +xgroup +xreadgroup +xautoclaim +xclaim +xack."),
    ("WRONGTYPE", "has no stream under this key", "Look at `stream`, and at the database's number."),
    ("DB index|invalid DB", "has no such database", "Look at the number at the end of the address."),
    ("unknown command", "is too old", "Redis 6.2 or later is needed."),
    ("^(Moved|Ask)Error", "is of a Redis cluster, and another node has this stream", "Give that one as `server`."),
    (
        r"CERTIFICATE|WRONG_VERSION|No such file",
        "is not trusted, or does not speak TLS",
        "Look at `ca_file`, and at the host's name.",
    ),
)


class RedisSource:
    """Reads a stream as a consumer of a group. See `gridscore.sources.base.Source`."""

    def __init__(self, grid: Grid, name: str, settings: RedisSourceSettings) -> None:
        self._settings, self._stream = settings, settings.stream
        self._group = settings.group or name
        self._beginning = Beginning(grid, name, f"{self._stream} {self._group}")
        self._member = (self._stream, self._group, settings.consumer or socket.gethostname())
        self._life = seconds_of(settings.claim_after)
        self._under_way: set[bytes] = set()
        self._count = 1
        url = urlsplit(settings.server)
        tls: dict[str, Any] = {"ssl": True, "ssl_check_hostname": True, "ssl_ca_certs": settings.ca_file}
        self._client: Any = Redis(
            host=url.hostname or "",
            port=url.port or 6379,
            db=int(url.path[1:] or 0),
            username=settings.username,
            password=settings.password,
            socket_timeout=_ANSWER_SECONDS,
            socket_connect_timeout=_ANSWER_SECONDS,
            # A retry would skip entries of a lost answer: we start over instead.
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            **(tls if url.scheme == "rediss" else {}),
        )

    async def open(self) -> None:
        latest = self._settings.start == "latest"
        begun = latest and await self._beginning.known()
        start = "$" if latest and not begun else _BEGINNING
        asked = self._client.xgroup_create(self._stream, self._group, start, mkstream=True)
        if await self._ask(asked, but="BUSYGROUP") and begun:
            _log.error(
                "%s: Redis has lost the group `%s`, and perhaps entries: the stream is read from its beginning",
                self._stream,
                self._group,
                extra={"action": "source_reset"},
            )
        if latest:
            await self._beginning.note()
        # Find out now whether this is allowed, not when the grid has the first events.
        await self.acknowledge(Batch((), position=[_BEGINNING]))
        await self._keep([_BEGINNING])

    async def batches(self) -> AsyncIterator[Batch]:
        keeping = asyncio.create_task(self._keep_under_way())
        try:
            last = _BEGINNING
            while found := await self._read(last):
                last = found[-1][0]
                yield self._batch(found)
            cursor, due = _BEGINNING, 0.0
            while True:
                if cursor != _BEGINNING or time.monotonic() >= due:
                    cursor, found = await self._claim(cursor)
                    due = time.monotonic() + self._life / 4
                else:
                    found = await self._read(b">")
                if found:
                    yield self._batch(found)
        finally:
            keeping.cancel()

    async def acknowledge(self, batch: Batch) -> None:
        await self._ask(self._client.xack(self._stream, self._group, *batch.position))
        self._under_way.difference_update(batch.position)

    async def close(self) -> None:
        with contextlib.suppress(RedisError, OSError):
            await self._client.aclose()

    # ------------------------------------------------------------------ what is asked of Redis

    async def _read(self, after: bytes) -> _Entries:
        """What we were given before, after an ID; for `>` new entries, or none after a second."""
        _, group, consumer = self._member
        block = int(min(_WAIT_SECONDS, self._life / 4) * 1000)
        answer = self._client.xreadgroup(group, consumer, {self._stream: after}, count=self._count, block=block)
        return next((found for _, found in await self._ask(answer) or ()), [])

    async def _claim(self, cursor: bytes) -> tuple[bytes, _Entries]:
        """Entries of silent consumers, from an ID on, and the ID to go on from."""
        idle = int(self._life * 1000)
        cursor, found, *_ = await self._ask(self._client.xautoclaim(*self._member, idle, cursor, count=self._count))
        # Before Redis 7, deleted entries have no ID.
        return cursor, [each for each in found if each[0] is not None and each[0] not in self._under_way]

    async def _keep(self, identities: Sequence[bytes]) -> None:
        await self._ask(self._client.xclaim(*self._member, 0, identities, justid=True))

    async def _keep_under_way(self) -> None:
        """Give signs of life, so that nobody takes over what waits for room in the grid."""
        while True:
            await asyncio.sleep(self._life / 4)
            if self._under_way:
                with contextlib.suppress(GridscoreError):  # the next read or acknowledgement reports it
                    await self._keep(list(self._under_way))

    async def _ask(self, answer: Awaitable[Any], *, but: str | None = None) -> Any:
        try:
            return await answer
        except (RedisError, OSError) as error:
            if but is not None and str(error).startswith(but):
                return None
            server, said = self._settings.server, str(error).rstrip(".") or "no answer in time"
            for pattern, what, hint in _REFUSED:
                if re.search(pattern, f"{type(error).__name__}: {said}"):
                    raise RefusedError(f"{server}, `{self._stream}`: it {what}: {said}.", hint) from error
            raise SourceInterruptedError(f"{server}, `{self._stream}`: {said}.") from error
        finally:
            # The library uses `asyncio.wait_for`, which may lose a cancellation before Python 3.12.
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise asyncio.CancelledError

    # ------------------------------------------------------------------ events

    def _batch(self, found: _Entries) -> Batch:
        batch = Batch(entries := [], poison := [], [identity for identity, _ in found])
        total = deleted = 0
        for identity, fields in found:
            if not fields:
                deleted += 1
                continue
            size = sum(len(name) + len(value) for name, value in fields.items())
            total += size
            origin = identity.decode()
            try:
                entries.append(self._event(f"{self._stream}/{origin}", fields, size))
            except (ValueError, RecursionError, msgspec.DecodeError) as error:
                where, key = f"{self._stream}@{origin}", f"{self._stream}/{origin}"
                poison.append(Poison(where, key, self._first_bytes(fields), str(error)))
        if deleted:
            batch.lost = deleted
            _log.error("%s: %d entries were deleted before the grid had them", self._stream, deleted)
        self._count = max(1, min(2 * self._count, self._settings.batch, _MOST_BYTES * len(found) // (total + 1)))
        self._under_way.update(batch.position)
        return batch

    def _first_bytes(self, fields: dict[bytes, bytes]) -> bytes:
        """What a dead letter keeps of an entry, which may have hundreds of megabytes: they are not copied."""
        left = limit = self._settings.max_event
        if text := fields.get((self._settings.field or "").encode()):
            return text[:limit]
        shown = {}
        for name, value in fields.items():
            if left <= 0:
                break
            shown[name[:left].decode(errors="replace")] = value[:left].decode(errors="replace")
            left -= len(name) + len(value)
        return _encode(shown)[:limit]

    def _event(self, key: str, fields: dict[bytes, bytes], size: int) -> tuple[str | int, bytes]:
        """An entry's key and JSON text; raises what `_batch` catches if it is not an event."""
        settings = self._settings
        if size > settings.max_event:
            raise ValueError(f"It has {size:,} bytes; the limit is {settings.max_event:,} (`max_event`).")
        if settings.field is not None:
            text = fields.get(settings.field.encode(), b"")
            if not text:
                raise ValueError(f"It has no field `{settings.field}`.")
            event = _decode(text)
            if not isinstance(event, dict):
                raise ValueError("It is JSON, but not an object.")
        else:
            event = {name.decode(): value.decode() for name, value in fields.items()}
            for name in event.keys() & set(settings.number):
                event[name] = _as_number(name, event[name])
            text = _encode(event)
        return key_of(event, settings.key) if settings.key else key, text


def _as_number(name: str, text: str) -> int | float:
    try:
        return _number(text)
    except msgspec.DecodeError:
        raise ValueError(f"Its field `{name}` is not a number.") from None
