"""Dead letters: events that could not be scored, with the reason, their bytes, and where they came from.

They are JSON values in the map `dead-letters.<job>`, under an ID made of the event's partition, key and bytes: an event
that is met again (after a crash, by a restart from the oldest, or replayed in vain) is the same dead letter.

So is what a source has read that is not an event, under the source's name; its ID is made of where it came from.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import heapq
import logging
import math
import time
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import mmh3
import msgspec
from hazelcast.errors import HazelcastError

from gridscore.errors import GridError, JobNotFoundError
from gridscore.grid import entries, transport
from gridscore.grid.copies import payload
from gridscore.grid.records import Records, key_text
from gridscore.grid.writer import HASH_SEED
from gridscore.job import Jobs
from gridscore.texts import moment_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gridscore.grid import Grid
    from gridscore.job import JobRecord

_log = logging.getLogger(__name__)

MAX_RAW = 1 << 20  # bytes of an event that a dead letter keeps

# In a cluster with as many partitions as most have, the letters of a batch lie in few of them, not each in another: a
# message takes more time than a letter does.
_USUAL_PARTITIONS, _FEW = 271, 34


class DeadLetter(msgspec.Struct, frozen=True):
    """An event that could not be scored, or something that a source has read that is not an event."""

    job: str  # that could not score it; or the source
    map: str  # the event map
    partition: int  # of the event map; -1 if a source has read it
    # In that partition's journal, -1 if it was found in the map; for a source, a number that grows in the order of
    # reading.
    sequence: int
    key: str  # the event's key, as text
    key_data: str  # the serialized key, base64
    # Where it failed: `decode`, `lookup`, `windows`, `functions`, `features`, `predict` or `decide`; or `source`.
    stage: str
    error: str
    raw: str  # the event's bytes, base64, cut to a mebibyte
    size: int  # of the whole event, in bytes
    at: str  # when, RFC 3339
    origin: str = ""  # where a source has read it; empty for an event of a job
    claim: str = ""  # of the process that replays the event: when, in milliseconds since 1970, and a random text

    @property
    def id(self) -> str:
        """Its key in the dead-letter map."""
        if self.origin:
            return hashlib.sha256(f"{self.origin}\n{self.raw}".encode()).hexdigest()[:16]
        return _id(self.partition, self.key_data, self.raw, self.size)

    @property
    def at_ms(self) -> int:
        """When, in milliseconds since 1970; 0 if it does not say."""
        try:
            return int(dt.datetime.fromisoformat(self.at).timestamp() * 1000)
        except (ValueError, OverflowError):
            return 0

    @property
    def raw_bytes(self) -> bytes:
        """The event's bytes, as far as they are kept; `decode` has checked that they are valid."""
        return base64.b64decode(self.raw, validate=True)

    @property
    def key_bytes(self) -> bytes:
        """The serialized key, at least 8 bytes; empty if there is none. `decode` has checked that it is valid."""
        return base64.b64decode(self.key_data, validate=True)


class Listed(NamedTuple):
    """A dead letter, with its key in the map, which is not its ID if others wrote it."""

    id: str
    dead: DeadLetter

    def to_json(self, superseded: str = "") -> dict[str, Any]:
        """For scripts, its bytes also as text."""
        text = self.dead.raw_bytes.decode(errors="backslashreplace")
        return {"id": self.id, **msgspec.structs.asdict(self.dead), "text": text, "superseded": superseded}


SOURCE_STAGE = "source"  # stage of what a source has read
_PAGE = 256
_SHORTEST_KEY = 8


class Rejected(NamedTuple):
    """An event as the scorer rejects it."""

    partition: int
    sequence: int
    key: bytes
    raw: bytes
    stage: str
    error: str


encode = msgspec.json.Encoder().encode  # JSON text of a dead letter
_decode = msgspec.json.Decoder(DeadLetter).decode


def map_of(job: str) -> str:
    return f"dead-letters.{job}"


def letter_id(partition: int, key: bytes, raw: bytes) -> str:
    """ID of the dead letter that an event has, if it has one."""
    return _id(partition, base64.b64encode(key).decode(), base64.b64encode(raw[:MAX_RAW]).decode(), len(raw))


def _id(partition: int, key_data: str, raw: str, size: int) -> str:
    """The partition, and 16 digits of a hash: the first run of them whose ID lies in one of the `_FEW`."""
    digits = hashlib.sha512(f"{key_data}\n{raw}\n{size}".encode()).hexdigest().encode()
    head = b"%d-" % partition
    # As `partition_of`, which would take twice the time.
    hashed = (len(head) + 16).to_bytes(4, "big") + head
    for at in range(len(digits) - 15):
        if abs(mmh3.hash(hashed + digits[at : at + 16], HASH_SEED)) % _USUAL_PARTITIONS < _FEW:
            break
    return (head + digits[at : at + 16]).decode()


def text_of_key(grid: Grid, key: bytes) -> str:
    """A serialized key as people read it, cut to 1,000 characters."""
    try:
        return key_text(key)[:1000]
    except ValueError:
        pass  # it is something else, as it seldom is
    try:
        return str(transport.to_object(grid.client, key))[:1000]
    except Exception as error:  # noqa: BLE001 -- a key that we cannot read is no reason to lose its event
        return f"<{type(error).__name__}: {error}>"[:1000]


def letter(grid: Grid, job: str, map_name: str, rejected: Rejected, at: str) -> DeadLetter:
    """The dead letter of an event. `at`: when it was rejected."""
    return DeadLetter(
        job=job,
        map=map_name,
        partition=rejected.partition,
        sequence=rejected.sequence,
        key=text_of_key(grid, rejected.key),
        key_data=base64.b64encode(rejected.key).decode(),
        stage=rejected.stage,
        error=rejected.error[:4000],
        raw=base64.b64encode(rejected.raw[:MAX_RAW]).decode(),
        size=len(rejected.raw),
        at=at,
    )


def letter_of_source(
    grid: Grid, source: str, map_name: str, number: int, *, origin: str, key: Any, raw: bytes, error: str
) -> DeadLetter:
    """The dead letter of what a source has read that is not an event.

    `number`: among those that are written together; `origin`: where it came from; letters of one origin are the same.
    """
    text = str(key).encode(errors="replace").decode()
    return DeadLetter(
        job=source,
        map=map_name,
        partition=-1,
        sequence=time.time_ns() // 1000 + number,
        key=text[:1000],
        key_data=base64.b64encode(_serialized(grid, key)).decode(),
        stage=SOURCE_STAGE,
        error=error.encode(errors="replace").decode()[:4000],
        raw=base64.b64encode(raw[:MAX_RAW]).decode(),
        size=len(raw),
        at=moment_text(),
        origin=origin.encode(errors="replace").decode()[:1000],
    )


def _serialized(grid: Grid, key: Any) -> bytes:
    """The serialized key; empty if it has no form that every client reads."""
    if not isinstance(key, str | int) or isinstance(key, bool):
        return b""
    try:
        return transport.key_data(grid.client, key)
    except (UnicodeEncodeError, HazelcastError):
        return b""


def decode(value: bytes) -> DeadLetter | None:
    """The dead letter of a serialized value; None if it is damaged, or something else."""
    try:
        dead = _decode(payload(value))
        key, _ = dead.key_bytes, dead.raw_bytes
    except (ValueError, RecursionError):
        return None
    return dead if not key or len(key) >= _SHORTEST_KEY else None


def id_of(key: bytes) -> str | None:
    """The ID that a serialized key is; None if it is not a string, so that nobody can ask for it."""
    try:
        return key_text(key)
    except ValueError:
        return None


async def value_of(grid: Grid, job: str, letter_id: str) -> bytes | None:
    """The serialized value in the dead-letter map under an ID; None if there is none."""
    return await entries.value_of(grid, map_of(job), transport.key_data(grid.client, letter_id))


async def walk_entries(grid: Grid, job: str) -> AsyncIterator[tuple[int, list[tuple[bytes, bytes, DeadLetter | None]]]]:
    """Partitions of the dead-letter map, each with a page of its entries: serialized key and value, and the letter."""
    name = map_of(job)
    for partition in range(grid.partition_count):
        async for page in entries.walk(grid, name, partition, _PAGE):
            yield partition, [(key, value, decode(value)) for key, value in page]


async def walk_letters(grid: Grid, job: str) -> AsyncIterator[Listed]:
    """Every dead letter of a job, in no order; by pages, for a schema change may have filled the map.

    Entries that are not dead letters, or have keys that nobody can type, are left out, and logged once.
    """
    async for _, page in walk_entries(grid, job):
        for key, value, dead in page:
            if dead is not None and (found := id_of(key)) is not None:
                yield Listed(found, dead)
            elif grid.bad_records.is_new(name := map_of(job), key, value):
                _log.warning(
                    "%s: an entry is not a dead letter: %r", name, key[12:], extra={"action": "foreign_record"}
                )


async def list_letters(
    grid: Grid, job: str, limit: int, before: Listed | None = None, most: float = math.inf
) -> tuple[int, list[Listed]]:
    """How many entries a job's dead-letter map has, and up to `limit` dead letters, the latest first.

    `before`: only those that follow this one in the list; `most`: bytes of them all, though a single one may have more.
    """
    latest: list[tuple[str, str, Listed]] = []
    size, newest_left_out = 0, ("", "")
    end = (before.dead.at, before.id) if before is not None else None
    # Counted first: if letters come meanwhile, the list may have more than the count says, but never less.
    total = await transport.map_size(grid.client, map_of(job))
    async for listed in walk_letters(grid, job):
        place = listed.dead.at, listed.id
        if place <= newest_left_out or (end is not None and place >= end):
            continue
        heapq.heappush(latest, (*place, listed))
        size += _size(listed.dead)
        while len(latest) > limit or (size > most and len(latest) > 1):
            at, letter_id, left_out = heapq.heappop(latest)
            newest_left_out, size = (at, letter_id), size - _size(left_out.dead)
    return total, [listed for _, _, listed in sorted(latest, key=lambda entry: entry[:2], reverse=True)]


def _size(dead: DeadLetter) -> int:
    return len(dead.raw) + len(dead.key_data) + len(dead.error) + len(dead.key)


async def get_letter(grid: Grid, job: str, key: str) -> DeadLetter:
    """The dead letter with that key. Raises JobError if there is none."""
    value = await value_of(grid, job, key) if await grid.has_map(map_of(job)) else None
    if value is None:
        raise JobNotFoundError(
            f"The job `{job}` has no dead letter `{key}`.", f"`gridscore dead-letters list {job}` lists them."
        )
    found = decode(value)
    if found is None:
        raise GridError(
            f"`{key}` is not a dead letter: it was not written by Gridscore.",
            f"`gridscore dead-letters discard {job} {key}` removes it.",
        )
    return found


SINKS_MAP = "gridscore.sinks"
SOURCES_MAP = "gridscore.sources"
POSITIONS_MAP = "gridscore.positions"

Owner = Literal["job", "sink", "source"]


async def owner_of(grid: Grid, name: str) -> Owner | None:
    """What kind of thing has a name, as far as the grid knows: sources by their records, positions or dead letters."""
    if await Jobs(grid).find(name) is not None:
        return "job"
    if await Records(grid, SINKS_MAP).get(name) is not None:
        return "sink"
    if any(record.value.get("name") == name for record in (await Records(grid, SOURCES_MAP).all()).values()):
        return "source"
    if any(key.startswith(f"{name}/") for key in await Records(grid, POSITIONS_MAP).all()):
        return "source"
    if await grid.has_map(map_of(name)):
        async for _, dead in walk_letters(grid, name):
            return "source" if dead.stage == SOURCE_STAGE else None
    return None


async def job_of(grid: Grid, name: str) -> JobRecord | None:
    """The job of that name, if it is one; None for a source or a sink.

    Raises JobError if there is none of that name: a misspelt one is an error, not an empty list.
    """
    record = await Jobs(grid).find(name)
    if record is None and await owner_of(grid, name) is None and not await grid.has_map(map_of(name)):
        await Jobs(grid).get(name)
    return record
