"""Removing dead letters: chosen by age, by reason, because their keys have results, or one by one."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gridscore.dead_letters.letters import decode, map_of, walk_entries
from gridscore.grid import transport
from gridscore.grid.copies import payload
from gridscore.grid.entries import remove_same, value_of
from gridscore.grid.records import key_text
from gridscore.scoring.superseded import superseded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

    from gridscore.dead_letters.letters import DeadLetter
    from gridscore.grid import Grid
    from gridscore.job import Job

_Entry = tuple[bytes, bytes, "DeadLetter | None"]


@dataclass(frozen=True, slots=True)
class Choice:
    """Which dead letters to remove: those for which all conditions hold."""

    older_than: float | None = None  # seconds since they were written
    reason: str = ""  # a part of their error
    superseded: bool = False  # only those of a job whose event, or a newer one of its key, has a result
    ids: frozenset[str] = frozenset()  # only these

    @property
    def is_all(self) -> bool:
        """Whether there is no condition."""
        return self == Choice()

    def takes(self, dead: DeadLetter | None) -> bool:
        """Whether an entry is chosen, as far as it can tell by itself; None is one that is not a dead letter."""
        if dead is None:
            return self.is_all
        if self.older_than is not None and time.time() * 1000 - dead.at_ms < self.older_than * 1000:
            return False
        return self.reason.casefold() in dead.error.casefold()


@dataclass(slots=True)
class Removed:
    """What a removal has done, or would do."""

    looked: int = 0  # entries that were looked at
    letters: int = 0  # dead letters removed
    events: int = 0  # their events, removed from the event map
    # The chosen IDs whose dead letter was not removed: it does not exist, or has changed.
    left: set[str] = field(default_factory=set)

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        value = {"removed": self.letters, "events_removed": self.events}
        return {**value, "not_removed": sorted(self.left)} if self.left else value


async def remove(
    grid: Grid, name: str, choice: Choice, *, job: Job | None = None, with_events: bool = False, dry_run: bool = False
) -> AsyncIterator[Removed]:
    """Remove dead letters, a page at a time; yields the total after each. Those that change meanwhile stay.

    After a `HazelcastError`, more may have been removed than was yielded.

    `with_events`: remove their events as well, where the event map still has the same bytes.
    """
    done = Removed(left=set(choice.ids))
    pages = _of_ids(grid, name, choice.ids) if choice.ids else walk_entries(grid, name)
    async for _, entries in pages:
        done.looked += len(entries)
        chosen = [entry for entry in entries if choice.takes(entry[2]) or choice.ids]
        if choice.superseded and job is not None:
            over = await superseded(grid, job, (dead for *_, dead in chosen if dead is not None))
            chosen = [entry for entry in chosen if entry[2] is not None and entry[2].id in over]
        if dry_run:
            done.letters += len(chosen)
            yield done
            continue
        if with_events:
            done.events += sum(await asyncio.gather(*(_remove_event(grid, dead) for *_, dead in chosen)))
        gone = await asyncio.gather(*(remove_same(grid, map_of(name), key, value) for key, value, _ in chosen))
        done.letters += sum(gone)
        if choice.ids:
            done.left -= {key_text(key) for (key, *_), removed in zip(chosen, gone, strict=True) if removed}
        yield done


async def _of_ids(grid: Grid, name: str, ids: Collection[str]) -> AsyncIterator[tuple[int, list[_Entry]]]:
    for letter_id in sorted(ids):
        key = transport.key_data(grid.client, letter_id)
        value = await value_of(grid, map_of(name), key)
        yield -1, [] if value is None else [(key, value, decode(value))]


async def _remove_event(grid: Grid, dead: DeadLetter | None) -> bool:
    """Remove the event of a dead letter from the event map, if it is still the one that was rejected."""
    if dead is None or dead.origin or not (key := dead.key_bytes):
        return False
    value = await value_of(grid, dead.map, key) or b""
    text = payload(value) or value
    if not text or len(text) != dead.size or not text.startswith(dead.raw_bytes):
        return False
    return await remove_same(grid, dead.map, key, value)
