"""Replaying dead letters: the event is put into its map again, under its own key bytes, and scored like a new one.

Those of one key are replayed one after the other, the oldest first. For each, in order:

1. *Refuse* if the dead letter does not hold the whole event.
2. *Claim* it, by compare-and-set on the dead letter: of several that replay at once, one does it, and the others
   are refused. A claim whose owner has died is free again after three minutes.
3. Look at what the event map has under the key now, and *refuse* if a newer event has taken it.
4. Write the event, by compare-and-set against what was seen, so that no event in between is overwritten.
5. When that is acknowledged, with its backup, remove the dead letter, if it is still the one that was claimed. If the
   event has failed again meanwhile, its dead letter was written again, and stays.

So each event is put once. After a crash between 4 and 5 the dead letter is still there, and a later replay puts the
event a second time: it is scored twice, with one result.

What a source has read is replayed in the same way, as the bytes that it was, if these are JSON.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from gridscore.dead_letters.letters import SOURCE_STAGE, decode, encode, id_of, list_letters, map_of
from gridscore.errors import JobError
from gridscore.grid import transport, wire
from gridscore.grid.copies import payload
from gridscore.grid.entries import put_absent, remove_same, replace_same, value_of
from gridscore.grid.records import INDETERMINATE
from gridscore.grid.transport import HOLD_SECONDS
from gridscore.grid.writer import MapWriter, partition_of
from gridscore.job import Jobs
from gridscore.job.life import ENDED

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from gridscore.dead_letters.letters import DeadLetter
    from gridscore.grid import Grid

_ATTEMPTS = 5
_AT_ONCE = 64
_NO_TEXT = bytes(4)
PUT_SECONDS = 30.0  # how long after its claim a process may put an event
# A claim is free after this time: the process that made it has died, and what it has sent is done, or never will be.
# Members that hang do what they were sent when they go on; the others take one for dead after a minute.
CLAIM_SECONDS = PUT_SECONDS + HOLD_SECONDS + 130.0


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of a dead letter."""

    id: str
    key: str = ""  # of its event, as text
    refusal: str = ""  # why it was not replayed; empty if it was


def summary(done: Sequence[Replayed], *, of_job: bool) -> dict[str, Any]:
    """How many were replayed, and which were not, by their IDs; for scripts."""
    refused = sorted((each for each in done if each.refusal), key=lambda each: each.id)
    plain = [{"id": each.id, "key": each.key, "reason": each.refusal} for each in refused]
    return {"replayed": len(done) - len(refused), "refused": plain, "what": "events" if of_job else "results"}


async def letter_ids(grid: Grid, job: str) -> list[str]:
    """The dead letters of a job, in no order."""
    keys = await transport.map_keys(grid.client, map_of(job))
    return [found for key in keys if (found := id_of(key)) is not None]


async def replay(
    grid: Grid, job: str, ids: Sequence[str], *, force: bool = False, of_job: bool = True
) -> AsyncIterator[Replayed]:
    """Replay dead letters; yields each when it is done: those of a key in their order, others in none.

    After a `HazelcastError`, more may have been done than was yielded.

    `force`: overwrite a newer event that has the key meanwhile; `of_job`: whether they are a job's, which must not have
    ended, or a source's; not a sink's. Raises JobError if there is neither such a job, nor dead letters of a source of
    that name; or the job has ended and would not score them.
    """
    record = await Jobs(grid).find(job) if of_job else None
    if record is None and of_job:
        _, letters = await list_letters(grid, job, 1)
        if not letters or letters[0].dead.stage != SOURCE_STAGE:
            await Jobs(grid).get(job)  # raises that there is none
    elif record is not None and record.state in ENDED:
        raise JobError(
            f"The job `{job}` is {record.state}: nobody would score the events.", "Submit or resume it first."
        )
    replayer = _Replayer(grid, job, force=force)
    chains, strangers = await replayer.chains(ids)
    for each in strangers:
        yield each
    for begin in range(0, len(chains), _AT_ONCE):
        tasks = [asyncio.create_task(replayer.run(chain)) for chain in chains[begin : begin + _AT_ONCE]]
        try:
            for done in asyncio.as_completed(tasks):
                for each in await done:
                    yield each
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class _Busy(NamedTuple):
    """Why a dead letter is not replayed now, nor those behind it under its key."""

    reason: str


_LATE = _Busy("this process was held up for so long that somebody else may be replaying it; try again")


class _Replayer:
    def __init__(self, grid: Grid, job: str, *, force: bool) -> None:
        self._grid, self._job, self._force = grid, job, force
        self._letters = MapWriter(grid, map_of(job))

    async def chains(self, ids: Sequence[str]) -> tuple[list[list[str]], list[Replayed]]:
        """The dead letters of each key, the oldest first; and the IDs that have none."""
        by_key: dict[tuple[str, str], list[tuple[str, int, str]]] = {}
        strangers = []
        for begin in range(0, len(ids), _AT_ONCE):
            some = ids[begin : begin + _AT_ONCE]
            for letter_id, (_, value) in zip(some, await asyncio.gather(*map(self._read, some)), strict=True):
                dead = None if value is None else decode(value)
                if dead is None:
                    text = f"`{self._job}` has no dead letter `{letter_id}`"
                    if value is not None:
                        text = f"`{letter_id}` is not a dead letter: it was not written by Gridscore"
                    strangers.append(Replayed(letter_id, refusal=text))
                    continue
                by_key.setdefault((dead.map, dead.key_data or letter_id), []).append(
                    # By time: after a rescan, or in a journal that has begun again, sequences do not grow.
                    (dead.at, dead.sequence, letter_id)
                )
        return [[letter_id for _, _, letter_id in sorted(chain)] for chain in by_key.values()], strangers

    async def run(self, chain: Sequence[str]) -> list[Replayed]:
        """Replay the dead letters of one key, one after the other."""
        done: list[Replayed] = []
        before: bytes | None = None  # what we have put under the key
        for index, letter_id in enumerate(chain):
            entry = await self._read(letter_id)
            dead = None if entry[1] is None else decode(entry[1])
            if dead is None:
                done.append(Replayed(letter_id, refusal="it is gone: somebody else has dealt with it"))
                continue
            refusal = _unfit(dead) or await self._replay(dead, entry, before)
            done.append(Replayed(letter_id, dead.key, refusal.reason if isinstance(refusal, _Busy) else refusal))
            if not refusal:
                before = dead.raw_bytes
            elif isinstance(refusal, _Busy):
                text = f"the older dead letter {letter_id} of its key comes first"
                done += [Replayed(each, dead.key, text) for each in chain[index + 1 :]]
                break
        return done

    async def _replay(self, dead: DeadLetter, entry: _Entry, before: bytes | None) -> str | _Busy:
        until = time.monotonic() + PUT_SECONDS
        if _is_claimed(dead):
            return _Busy("somebody else is replaying it; if they have died, it is free in three minutes")
        claim = f"{int(time.time() * 1000)}-{uuid.uuid4().hex}"
        claimed = wire.json_data(encode(msgspec.structs.replace(dead, claim=claim)))
        if not await self._exchange(entry, claimed):
            return _Busy("somebody else is dealing with it; try again")
        refusal = await _put(self._grid, dead, force=self._force, before=before, until=until)
        entry = entry._replace(value=claimed)
        if refusal:
            await self._exchange(entry, wire.json_data(encode(msgspec.structs.replace(dead, claim=""))))
            return refusal
        await remove_same(self._grid, self._letters.map_name, entry.key, claimed)
        return ""

    async def _read(self, letter_id: str) -> _Entry:
        key = self._letters.serialize_key(letter_id)
        return _Entry(key, await value_of(self._grid, self._letters.map_name, key))

    async def _exchange(self, entry: _Entry, after: bytes) -> bool:
        """Replace a dead letter if it has not changed; whether it is the new one."""
        for _ in range(_ATTEMPTS):
            try:
                if await replace_same(self._grid, self._letters.map_name, entry.key, entry.value or b"", after):
                    return True
            except INDETERMINATE:
                pass
            now = await value_of(self._grid, self._letters.map_name, entry.key)
            if now != entry.value:
                return now == after
        return False


class _Entry(NamedTuple):
    """A serialized key of the dead-letter map, and its value, if it has one."""

    key: bytes
    value: bytes | None


def _is_claimed(dead: DeadLetter) -> bool:
    at = dead.claim.partition("-")[0]
    return at.isdecimal() and len(at) < 20 and abs(time.time() * 1000 - int(at)) < CLAIM_SECONDS * 1000


def _unfit(dead: DeadLetter) -> str:
    """Why an event cannot be put from its dead letter; empty if it can."""
    raw = dead.raw_bytes
    if len(raw) < dead.size:
        return f"only {len(raw):,} of the event's {dead.size:,} bytes were kept; put it again from where it came"
    if not dead.key_bytes:
        return "the dead letter has no key"
    if dead.stage == SOURCE_STAGE:
        try:
            msgspec.json.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return "its bytes are not JSON, so no job could score it; put it again as JSON"
    if not raw or raw.startswith(_NO_TEXT):  # serialized by Hazelcast; no text begins like this
        return "its value is neither JSON nor a string, which no job can score; put it again as JSON"
    return ""


async def _put(grid: Grid, dead: DeadLetter, *, force: bool, before: bytes | None, until: float) -> str | _Busy:
    """Put the event under its key, or replace the older one that we have put there; returns why not, or nothing."""
    raw, key = dead.raw_bytes, dead.key_bytes
    partition = partition_of(key, grid.partition_count)
    writer = MapWriter(grid, dead.map)
    await writer.prepare()
    if force:
        if time.monotonic() > until:
            return _LATE
        try:
            await writer.put_partition(partition, [key], [raw], once=False, until=until)
        except transport.NotSentError:
            return _LATE
        return ""
    for _ in range(_ATTEMPTS):
        now = await value_of(grid, dead.map, key)
        if now is not None and payload(now) not in (raw, before):
            return "a newer event has its key; --force would overwrite that"
        if time.monotonic() > until:
            return _LATE
        try:
            if await _compare_and_put(grid, dead.map, key, now, raw, until):
                return ""
        except (*INDETERMINATE, transport.NotSentError):
            continue  # doing it twice does no harm, and the next look sees whether something came meanwhile
    return _Busy("others keep writing its key, or the cluster keeps changing; try again")


async def _compare_and_put(grid: Grid, name: str, key: bytes, now: bytes | None, raw: bytes, until: float) -> bool:
    """Write if the map still has what was seen; writing the same value again makes an event again."""
    if now is None:
        return await put_absent(grid, name, key, raw, until=until)
    after = now if payload(now) == raw else wire.json_data(raw)
    return await replace_same(grid, name, key, now, after, until=until)
