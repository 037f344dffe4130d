"""What a source promises, and what it may rely on.

The runner (`gridscore.sources.runner`) works like this:

1. It calls `open`.
2. It iterates `batches`, and puts the entries of each into the map, in order; several batches may be under way.
3. When the grid has confirmed every entry of a batch *and of all batches before it*, with backups, and the batch's
   poison is in the dead letters, it calls `acknowledge`. Only then may the source move its position for good. After a
   crash, what was not acknowledged is read again: events are put at least once, but once under each key, since keys
   follow from where an event came from.
4. It calls `close`, whatever happened.

A source that others push to (`PushedSource`) has no position, and nothing is read again. It has a stream for each map;
streams do not wait for each other, and each batch is acknowledged, or refused, by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from gridscore.errors import GridscoreError
from gridscore.job.plugs.base import SourceSettings
from gridscore.job.plugs.kinds import PlugKinds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from gridscore.producer.room import Waiting


K = TypeVar("K")

# Characters of an event's key: it is kept several times over, and goes into each result and dead letter.
MAX_KEY = 1_024


class SourceInterruptedError(GridscoreError):
    """The other side is away, or refuses for now: the runner tries again, with a new source."""

    exit_code = 3


class Poison(NamedTuple):
    """Something that is not an event: it goes to the source's dead letters.

    Attributes:
        origin: Where it came from, for people and as an identity: `clicks/3@1042`.
        key: The key that it would have had.
        error: Why it is not an event.
    """

    origin: str
    key: Any
    raw: bytes
    error: str


@dataclass(slots=True)
class Batch:
    """What a source has read at once.

    Attributes:
        entries: Keys (`str` or `int`) and JSON texts in UTF-8, in order. A text of None removes the key's event (a
            tombstone).
        position: For the source itself: what `acknowledge` needs to know.
        map_name: The map to put them into, if it is not the source's `to`. A source that names maps must have checked
            that its settings allow them.
        lost: Events before these that the other side removed before they were read.
        withdraw: Set by the runner for a pushed batch: drops the entries that are not under way yet, and refuses it.
    """

    entries: Sequence[tuple[Any, bytes | None]]
    poison: Sequence[Poison] = field(default_factory=tuple)
    position: Any = None
    map_name: str | None = None
    lost: int = 0
    withdraw: Callable[[], None] | None = None


class Source(Protocol):
    """Reads from one place, for one attempt.

    A source that has an end may have a property `progress`: how much is done, and how much there is, in bytes or any
    other unit; None while that is not known. One whose other side keeps its positions may have a method `positions`:
    the offsets that were acknowledged, by item and part; and then it goes back to those that `Beginning` tells of.
    """

    async def open(self) -> None:
        """Connect, and check what can be checked: credentials, names, permissions.

        Raises:
            SourceInterruptedError: It cannot now, but may later.
            GridscoreError: It cannot, and a retry would not help: the message is for people.
        """

    def batches(self) -> AsyncIterator[Batch]:
        """All batches from the position on; waits for more, and ends only if the source has an end. Raises as `open`.

        The runner asks for no batch while the grid has no room.
        """
        ...

    async def acknowledge(self, batch: Batch) -> None:
        """The grid has everything of this batch and of those before it."""

    async def close(self) -> None:
        """Release everything; what was not acknowledged stays unread. Raises nothing."""


@runtime_checkable
class PushedSource(Source, Protocol):
    """Takes what senders push, who wait for an answer and send again what was refused. It limits what waits."""

    @property
    def most_held(self) -> tuple[int, int, int]:
        """Events, bytes and batches that may wait for partitions without room; more for these is refused."""
        ...

    def streams(self) -> Sequence[AsyncIterator[Batch]]:
        """One for each map, instead of `batches`. Within each, writes of a key keep their order."""
        ...

    def refuse(self, batch: Batch, error: Exception) -> None:
        """The grid did not confirm a batch, though it may have some of it; the source goes on."""

    def waits(self, map_name: str, waiting: Waiting | None) -> None:
        """Why nothing can be put into a map now; None when it can again."""


def key_of(fields: Mapping[str, Any], names: Sequence[str]) -> str | int:
    """The key made of fields: the value of one, or the values of several joined by `|`.

    Raises:
        ValueError: One is missing, or is neither a string nor a whole number; or the key is too long.
    """
    parts: list[str | int] = []
    for name in names:
        part = fields.get(name)
        if isinstance(part, bool) or not isinstance(part, (str, int)) or part == "":
            raise ValueError(f"The field `{name}` makes the key, and is {'missing' if part is None else 'not a key'}.")
        parts.append(part)
    return checked_key(parts[0] if len(parts) == 1 else "|".join(map(str, parts)))


def checked_key(key: K) -> K:
    """The key, if its length allows it.

    Raises:
        ValueError: It is too long.
    """
    if isinstance(key, str) and len(key) > MAX_KEY:
        raise ValueError(f"Its key has {len(key):,} characters; the limit is {MAX_KEY:,}.")
    return key


KINDS = PlugKinds[SourceSettings, Source]("source")
