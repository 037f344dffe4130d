"""What a source promises, and what it may rely on.

The runner (`gridscore.sources.runner`) drives a source so:

1. `open`.
2. It iterates `batches`, and puts the entries of each into the map, in order; several batches may be under way.
3. When every entry of a batch *and of all batches before it* is confirmed by the grid with its backups, and its poison
   is in the dead letters, it calls `acknowledge` with the batch. This is the only moment at which a source may
   move its position for good. After a crash, what was not acknowledged is read again: at least once into the grid, and
   once under each key, as keys follow from where an event came from.
4. `close`, whatever happened.

A source that others push to (`PushedSource`) has no position, and nobody reads anything again. It has a stream a map,
none of which waits for another, and each batch is acknowledged, or refused, by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from gridscore.errors import GridscoreError
from gridscore.job.plugs.base import SourceSettings
from gridscore.job.plugs.kinds import PlugKinds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from gridscore.client.room import Waiting


class SourceInterruptedError(GridscoreError):
    """The other side is away, or refuses for now. Trying again may heal it: the runner opens the source anew."""

    exit_code = 3


class Poison(NamedTuple):
    """Something that is not an event: it goes to the dead letters of the source.

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
    """What a source has read in one go.

    Attributes:
        entries: Keys (`str` or `int`) and JSON texts in UTF-8, in order. A text of None removes the key's event (a
            tombstone).
        poison: What was not an event.
        position: For the source itself: what `acknowledge` needs to know.
        map_name: The map to put them into, if it is not the source's `to`. A source that names maps must have checked
            that its settings allow them.
        withdraw: Set by the runner of a pushed batch: drops what of it is not under way yet. Then it is refused.
    """

    entries: Sequence[tuple[Any, bytes | None]]
    poison: Sequence[Poison] = field(default_factory=tuple)
    position: Any = None
    map_name: str | None = None
    withdraw: Callable[[], None] | None = None


class Source(Protocol):
    """Reads from one place. Made anew for each attempt.

    One that has an end may say how far it is by a property `progress`: bytes or anything else that are done, and that
    there are, or None as long as it does not know.
    """

    async def open(self) -> None:
        """Connect, and find out what can be found out: credentials, names, permissions.

        Raises:
            SourceInterruptedError: It cannot now, and may later.
            GridscoreError: It cannot, and trying again would not heal it: one message for people.
        """

    def batches(self) -> AsyncIterator[Batch]:
        """What there is, from the position on; waits for more. Ends only when a finite source is at its end.

        The runner asks for no further batch while the grid has no room: a source that is pushed to must wait, or
        refuse.

        Raises:
            GridscoreError: As `open`.
        """
        ...

    async def acknowledge(self, batch: Batch) -> None:
        """The grid has everything of this batch and of those before it."""

    async def close(self) -> None:
        """Let everything go; what was not acknowledged stays unread. Raises nothing."""


@runtime_checkable
class PushedSource(Source, Protocol):
    """Takes what others send, who wait for an answer and send again what was refused. It bounds what waits."""

    @property
    def most_held(self) -> tuple[int, int, int]:
        """Events, bytes and batches that may wait for partitions without room; what comes then for these is refused."""
        ...

    def streams(self) -> Sequence[AsyncIterator[Batch]]:
        """Instead of `batches`: one for each map. In each, writes of a key keep their order."""
        ...

    def refuse(self, batch: Batch, error: Exception) -> None:
        """The grid did not confirm a batch, some of which may be there; the source goes on."""

    def waits(self, map_name: str, waiting: Waiting | None) -> None:
        """Nothing can be put into a map now, and why; or None, when it can again."""


def key_of(fields: Mapping[str, Any], names: Sequence[str]) -> str | int:
    """The key that fields make: the value of one, or the values of several joined by `|`.

    Raises:
        ValueError: One is not there, or is neither text nor a whole number.
    """
    parts: list[str | int] = []
    for name in names:
        part = fields.get(name)
        if isinstance(part, bool) or not isinstance(part, (str, int)) or part == "":
            raise ValueError(f"The field `{name}` makes the key, and is {'missing' if part is None else 'not a key'}.")
        parts.append(part)
    return parts[0] if len(parts) == 1 else "|".join(map(str, parts))


KINDS = PlugKinds[SourceSettings, Source]("source")


def name_of(settings: SourceSettings, name: str | None = None) -> str:
    """What a source is called: as its settings say, as it is called where they stand, or after its kind and its map."""
    return settings.name or name or f"{KINDS.of(settings).name}-{settings.to}".replace(":", "-")[:64]
