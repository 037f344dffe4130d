"""Bringing dead letters back: the event goes into its map again, under its own key bytes, and is scored like a new one.

For each dead letter, in order:

1. Look at what the event map has under the key now.
2. *Refuse* if the dead letter does not hold the whole event, or if a newer event has taken the key.
3. Write the event, by compare-and-set against what was seen: nothing that came between is overwritten.
4. When that is acknowledged, with its backup, remove the dead letter.

A crash between 3 and 4 leaves the dead letter, and the event is scored once too often at worst: results are idempotent.
An event that fails again makes a dead letter of its own, with a new sequence.

What a source has read comes back in the same way, as the bytes that it was, if these are JSON.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from pipeline.errors import GridError, JobError
from pipeline.grid import transport, wire
from pipeline.grid.copies import payload
from pipeline.grid.entries import values_of
from pipeline.grid.records import INDETERMINATE
from pipeline.grid.writer import MapWriter, partition_of
from pipeline.job import Jobs
from pipeline.job.life import ENDED
from pipeline.worker.dead_letters import SOURCE_STAGE, get_letter, list_letters, map_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from pipeline.grid import Grid
    from pipeline.worker.dead_letters import DeadLetter

_ATTEMPTS = 5
_AT_ONCE = 64
_NO_TEXT = bytes(4)


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of a dead letter.

    Attributes:
        id: Of the dead letter.
        key: Of its event, as text.
        refusal: Why it was left as it is; empty if its event is in the event map again.
    """

    id: str
    key: str = ""
    refusal: str = ""


async def letter_ids(grid: Grid, job: str) -> list[str]:
    """The dead letters of a job, by partition and sequence."""
    name = map_of(job)
    if not await grid.has_map(name):
        return []
    return sorted(map(str, await (await grid.map(name)).key_set()), key=_place)


async def replay(
    grid: Grid, job: str, ids: Sequence[str], *, force: bool = False, of_job: bool = True
) -> AsyncIterator[Replayed]:
    """Bring dead letters back; yields each as it is done, in no order.

    Args:
        grid: The connection.
        job: Whose they are.
        ids: Of the dead letters.
        force: Take the place of a newer event that has the key meanwhile.
        of_job: Whether they are a job's, which must not have ended, or a source's; not a sink's.

    Raises:
        JobError: There is neither such a job, nor dead letters of a source of that name; or the job has ended and would
            not score them.
        HazelcastError: The cluster did not answer; what was not yielded may or may not have been done.
    """
    record = await Jobs(grid).find(job) if of_job else None
    if record is None and of_job:
        _, letters = await list_letters(grid, job, 1)
        if not letters or letters[0].stage != SOURCE_STAGE:
            await Jobs(grid).get(job)  # says that there is none
    elif record is not None and record.state in ENDED:
        raise JobError(
            f"The job `{job}` is {record.state}: nobody would score the events.", "Submit or resume it first."
        )
    for begin in range(0, len(ids), _AT_ONCE):
        tasks = [asyncio.create_task(_replay(grid, job, each, force=force)) for each in ids[begin : begin + _AT_ONCE]]
        try:
            for done in asyncio.as_completed(tasks):
                yield await done
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _replay(grid: Grid, job: str, letter_id: str, *, force: bool) -> Replayed:
    try:
        dead = await get_letter(grid, job, letter_id)
    except (JobError, GridError) as error:  # there is none, or it is no dead letter
        return Replayed(letter_id, refusal=error.message)
    refusal = _unfit(dead) or await _put(grid, dead, force=force)
    if refusal:
        return Replayed(letter_id, dead.key, refusal)
    await (await grid.map(map_of(job))).delete(letter_id)
    return Replayed(letter_id, dead.key)


def _unfit(dead: DeadLetter) -> str:
    """Why an event cannot be put from its dead letter; empty if it can."""
    try:
        raw, key = dead.raw_bytes, base64.b64decode(dead.key_data, validate=True)
    except (binascii.Error, ValueError):
        return "the dead letter is damaged"
    if len(raw) < dead.size:
        return f"only {len(raw):,} of the event's {dead.size:,} bytes were kept; put it again from where it came"
    if len(key) < 8:
        return "the dead letter has no key"
    if dead.stage == SOURCE_STAGE:
        try:
            msgspec.json.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return "its bytes are no JSON, so no job could score it; put it again as JSON"
    if not raw or raw.startswith(_NO_TEXT):  # serialized by Hazelcast: no text begins like that
        return "its value is neither JSON nor a string, which no job can score; put it again as JSON"
    return ""


async def _put(grid: Grid, dead: DeadLetter, *, force: bool) -> str:
    """Put the event under its key; returns why not, or nothing."""
    raw, key = dead.raw_bytes, base64.b64decode(dead.key_data)
    partition = partition_of(key, grid.partition_count)
    writer = MapWriter(grid, dead.map)
    await writer.prepare()
    if force:
        await writer.put_partition(partition, [key], [raw], once=False)
        return ""
    for _ in range(_ATTEMPTS):
        now = (await values_of(grid, dead.map, partition, [key])).get(key)
        if now is not None and payload(now) != raw:
            return "a newer event has its key; --force would overwrite that"
        try:
            if await _compare_and_put(grid, dead.map, partition, key, now, raw):
                return ""
        except INDETERMINATE:
            continue  # done or not: to do it once more does no harm, and looking first keeps what came meanwhile
    return "others keep writing its key, or the cluster keeps changing; try again"


async def _compare_and_put(grid: Grid, name: str, partition: int, key: bytes, now: bytes | None, raw: bytes) -> bool:
    """Write if the map still has what was seen; the same value again is an event again, of the same type."""
    if now is None:
        message = wire.encode_put_if_absent(name, key, raw)
        return bool(await transport.invoke(grid.client, message, partition, wire.decode_put_if_absent))
    message = wire.encode_replace_if_same(wire.replace_if_same_prefix(name, key), now, now)
    return bool(await transport.invoke(grid.client, message, partition, wire.decode_replace_if_same))


def _place(letter_id: str) -> tuple[int, int, str]:
    partition, sequence, *_ = (*letter_id.replace("--", "-", 1).split("-"), "", "")
    numbers = [int(each) if each.isdecimal() else -1 for each in (partition, sequence)]
    return numbers[0], numbers[1], letter_id
