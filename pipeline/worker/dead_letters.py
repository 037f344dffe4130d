"""Dead letters: events that could not be scored, with the reason, their bytes, and where they came from.

They lie in the map `dead-letters.<job>` as JSON values, under a key made of partition, sequence and content, so that
one event met twice (after a crash, say) is one dead letter.

What a source reads and is no event lies there, too, under the name of the source: it has an origin, and no sequence.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import heapq
import logging
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from hazelcast.errors import HazelcastError

from pipeline.errors import GridError, JobError
from pipeline.grid import transport
from pipeline.grid.copies import payload
from pipeline.grid.entries import walk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pipeline.grid import Grid

_log = logging.getLogger(__name__)

MAX_RAW = 1 << 20
"""Bytes of an event that a dead letter keeps; what is longer is cut, and says so."""


class DeadLetter(msgspec.Struct, frozen=True):
    """An event that could not be scored, or something that a source has read and is no event.

    Attributes:
        job: That could not score it; or the source.
        map: The event map.
        partition: Of the event map; -1 if a source has read it.
        sequence: In that partition's journal; -1 if a source has read it.
        key: The event's key, as text.
        key_data: The serialized key, base64.
        stage: Where it failed: `decode`, `lookup`, `features` or `predict`; or `source`.
        error: Why.
        raw: The event's bytes, base64.
        size: Of the event, bytes; `raw` is cut to a mebibyte.
        at: When, RFC 3339.
        origin: Where a source has read it; empty for an event of a job.
    """

    job: str
    map: str
    partition: int
    sequence: int
    key: str
    key_data: str
    stage: str
    error: str
    raw: str
    size: int
    at: str
    origin: str = ""

    @property
    def id(self) -> str:
        """Its key in the dead-letter map."""
        if self.origin:
            return hashlib.sha256(f"{self.origin}\n{self.raw}".encode()).hexdigest()[:16]
        return _id(self.partition, self.sequence, self.key_data, self.raw)

    @property
    def raw_bytes(self) -> bytes:
        """The event's bytes."""
        return base64.b64decode(self.raw)


SOURCE_STAGE = "source"
"""Stage of what a source has read."""

_PAGE = 256


@dataclass(frozen=True, slots=True)
class Rejected:
    """An event as the scorer rejects it."""

    partition: int
    sequence: int
    key: bytes
    raw: bytes
    stage: str
    error: str


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(DeadLetter).decode


def map_of(job: str) -> str:
    """Name of a job's dead-letter map."""
    return f"dead-letters.{job}"


def letter_id(partition: int, sequence: int, key: bytes, raw: bytes) -> str:
    """Key of the dead letter that an event has, if it has one.

    Args:
        partition: Of the event map.
        sequence: In that partition's journal.
        key: Serialized.
        raw: The event's bytes.
    """
    return _id(partition, sequence, base64.b64encode(key).decode(), base64.b64encode(raw[:MAX_RAW]).decode())


def _id(partition: int, sequence: int, key_data: str, raw: str) -> str:
    return f"{partition}-{sequence}-{zlib.crc32((key_data + raw).encode()):08x}"


def letter(grid: Grid, job: str, map_name: str, rejected: Rejected) -> tuple[str, bytes]:
    """Key and JSON text of the dead letter of an event."""
    try:
        key = str(transport.to_object(grid.client, rejected.key))
    except Exception as error:  # noqa: BLE001 -- a key of a type we cannot read is no reason to lose the letter
        key = f"<{type(error).__name__}: {error}>"
    dead = DeadLetter(
        job=job,
        map=map_name,
        partition=rejected.partition,
        sequence=rejected.sequence,
        key=key[:1000],
        key_data=base64.b64encode(rejected.key).decode(),
        stage=rejected.stage,
        error=rejected.error[:4000],
        raw=base64.b64encode(rejected.raw[:MAX_RAW]).decode(),
        size=len(rejected.raw),
        at=_now(),
    )
    return dead.id, _encode(dead)


def letter_of_source(
    grid: Grid, source: str, map_name: str, *, origin: str, key: Any, raw: bytes, error: str
) -> tuple[str, bytes]:
    """Key and JSON text of the dead letter of what a source has read and is no event.

    Args:
        grid: The connection.
        source: Its name.
        map_name: Where the event would have gone.
        origin: Where it came from; it says which letters are the same.
        key: The key that the event would have had.
        raw: Its bytes.
        error: Why it is no event.
    """
    text = str(key).encode(errors="replace").decode()
    dead = DeadLetter(
        job=source,
        map=map_name,
        partition=-1,
        sequence=-1,
        key=text[:1000],
        key_data=base64.b64encode(_serialized(grid, key)).decode(),
        stage=SOURCE_STAGE,
        error=error.encode(errors="replace").decode()[:4000],
        raw=base64.b64encode(raw[:MAX_RAW]).decode(),
        size=len(raw),
        at=_now(),
        origin=origin.encode(errors="replace").decode()[:1000],
    )
    return dead.id, _encode(dead)


def _serialized(grid: Grid, key: Any) -> bytes:
    """The serialized key; nothing if it has no form that every client reads."""
    if not isinstance(key, str | int) or isinstance(key, bool):
        return b""
    try:
        return transport.key_data(grid.client, key)
    except (UnicodeEncodeError, HazelcastError):
        return b""


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def walk_letters(grid: Grid, job: str) -> AsyncIterator[DeadLetter]:
    """Every dead letter of a job, in no order; walks the map in pages: a schema change may have filled it.

    Raises:
        HazelcastError: The cluster did not answer.
    """
    name = map_of(job)
    for partition in range(grid.partition_count):
        async for entries in walk(grid, name, partition, _PAGE):
            for _, value in entries:
                try:
                    yield _decode(payload(value))
                except msgspec.DecodeError as error:
                    _log.warning("%s: an entry is no dead letter: %s", name, error, extra={"action": "foreign_record"})


async def list_letters(grid: Grid, job: str, limit: int) -> tuple[int, list[DeadLetter]]:
    """How many entries a job's dead-letter map has, and up to `limit` dead letters, the latest first."""
    latest: list[tuple[str, str, DeadLetter]] = []
    # Counted first: of letters that come meanwhile, the list may have more than the count says, and never less.
    total = await transport.map_size(grid.client, map_of(job))
    async for dead in walk_letters(grid, job):
        entry = (dead.at, dead.id, dead)
        if len(latest) < limit:
            heapq.heappush(latest, entry)
        else:
            heapq.heappushpop(latest, entry)
    return total, [dead for _, _, dead in sorted(latest, key=lambda entry: entry[:2], reverse=True)]


async def get_letter(grid: Grid, job: str, key: str) -> DeadLetter:
    """The dead letter with that key.

    Raises:
        JobError: There is none.
    """
    name = map_of(job)
    found = await (await grid.map(name)).get(key) if await grid.has_map(name) else None
    if found is None:
        raise JobError(
            f"The job `{job}` has no dead letter `{key}`.", f"`gridscore dead-letters list {job}` lists them."
        )
    return _read(found)


def _read(value: Any) -> DeadLetter:
    try:
        return _decode(value.to_string())
    except (AttributeError, msgspec.DecodeError) as error:
        raise GridError(
            f"An entry of the dead-letter map is no dead letter: {error}", "It was not written by Gridscore: remove it."
        ) from None
