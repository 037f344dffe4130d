"""How full the members' heaps are, as they report it when asked. What is used includes garbage."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hazelcast.errors import HazelcastError

from pipeline.errors import GridError
from pipeline.grid.management import read_heap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.grid.connection import Grid

HIGH = 0.8
"""Part of a heap from which on it is worth a word."""

FULL = 0.93
"""Part of a heap above which it is a problem: a member that is out of memory dies, and takes others along."""

HEAP_ADVICE = (
    "Remove entries or maps that nobody needs, or give the members more heap, or start more members. A journal keeps "
    "what is removed from its map until newer events overwrite it: a smaller `capacity` keeps less."
)

_ANSWER_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class MemberHeap:
    """A member's heap.

    Attributes:
        address: Where the cluster says that it is.
        used: Bytes in use; garbage that was not collected yet counts, too.
        most: Bytes that it may have.
        refusal: Why it is not known; the figures are 0 then.
    """

    address: str
    used: int = 0
    most: int = 0
    refusal: str = ""

    @property
    def share(self) -> float:
        """Part of it that is in use."""
        return self.used / self.most if self.most else 0.0

    def __str__(self) -> str:
        return f"member {self.address} uses {self.share:.0%} of its {size_text(self.most)} of heap"


def size_text(count: int) -> str:
    """Bytes for people: `256 MB`, `3.5 GB`."""
    megabytes = count / (1 << 20)
    if megabytes >= 1000:
        return f"{megabytes / 1024:.1f} GB"
    return f"{megabytes:.0f} MB"


async def look_at_heaps(grid: Grid, seconds: float = _ANSWER_SECONDS) -> list[MemberHeap]:
    """How full the heaps were when the members last measured them. One that does not tell is in the list, with why.

    Args:
        grid: The connection.
        seconds: How long answers are waited for.
    """

    async def look(member: Any) -> MemberHeap:
        address = _address(member)
        try:
            async with asyncio.timeout(seconds):
                sample, _ = await read_heap(grid, member.uuid, 0)
        except TimeoutError:
            return MemberHeap(address, refusal="it does not answer")
        except (HazelcastError, GridError) as error:
            return MemberHeap(address, refusal=str(error))
        return MemberHeap(address, sample.used, sample.most)

    return list(await asyncio.gather(*map(look, grid.members)))


def worst_of(heaps: Sequence[MemberHeap]) -> MemberHeap | None:
    """The fullest of those that are known."""
    return max((heap for heap in heaps if heap.most), key=lambda heap: heap.share, default=None)


def _address(member: Any) -> str:
    return f"{member.address.host}:{member.address.port}"
