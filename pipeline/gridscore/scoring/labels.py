"""The labels of a job: what came of events, joined with their results wherever these still are."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

import msgspec
from hazelcast.errors import HazelcastError

from gridscore.errors import UsageError
from gridscore.grid import transport
from gridscore.grid.copies import payload
from gridscore.grid.entries import values_of, walk

if TYPE_CHECKING:
    from gridscore.grid import Grid
    from gridscore.job.monitoring import Labels

MOST_ROWS = 5_000_000  # results, and labels with keys of their own, that a report takes: 40 bytes each
PAGE = 1_000
LARGEST = 3.4e38  # a float32

_decode = msgspec.json.Decoder(dict[str, Any]).decode


class KnownLabels:
    """The labels of a job, and what is wrong with some; `most`: how many with keys of their own are taken."""

    def __init__(self, grid: Grid, labels: Labels, most: int = MOST_ROWS) -> None:
        self._grid, self._labels, self._most = grid, labels, most
        self._by_key: dict[str, bytes] = {}
        self.matched = self.invalid = 0
        self.example = ""

    async def read(self) -> None:
        """Read all, if their keys are not those of results."""
        if self._labels.key is None:
            return
        for partition in range(self._grid.partition_count):
            async for entries in walk(self._grid, self._labels.map, partition, PAGE):
                for key, value in entries:
                    with contextlib.suppress(HazelcastError):  # a key of a kind that no event field has
                        self._by_key[str(transport.to_object(self._grid.client, key))] = value
                if len(self._by_key) > self._most:
                    name, most = self._labels.map, self._most
                    raise UsageError(f"`{name}` has more than {most:,} labels with keys of their own.")

    async def of(self, partition: int, results: dict[bytes, dict[str, Any]]) -> dict[bytes, bytes]:
        """The entries of some results, by the results' keys."""
        if (name := self._labels.key) is None:
            return await values_of(self._grid, self._labels.map, partition, results)
        wanted = {key: str(value) for key, result in results.items() if (value := result.get(name)) is not None}
        return {key: self._by_key[text] for key, text in wanted.items() if text in self._by_key}

    def number(self, entry: bytes | None) -> float:
        """The label as a number; NaN if there is none, or it cannot be used."""
        if entry is None:
            return math.nan
        self.matched += 1
        try:
            return label_of(payload(entry), self._labels)
        except ValueError as error:
            self.invalid += 1
            self.example = self.example or str(error)
            return math.nan


def label_of(text: bytes, labels: Labels) -> float:
    """The number that an entry of a map of labels stands for; NaN if it has none yet.

    Raises ValueError if it is not a number, and `positive` does not say what counts as 1.
    """
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        value = text.decode(errors="replace")  # a string that is not JSON is the label itself
    if isinstance(value, dict):
        value = value.get(labels.field)
    if value is None:
        return math.nan
    if labels.positive and not isinstance(value, list | dict):
        return float((str(value).lower() if isinstance(value, bool) else str(value)) in labels.positive)
    if not isinstance(value, bool | int | float) or not abs(value) <= LARGEST:
        raise ValueError(f"{str(value)[:100]!r} is not a number: name the texts that count as 1, `positive`")
    return float(value)


def result_of(value: bytes) -> dict[str, Any]:
    """A result; empty if it is not one of ours."""
    try:
        return _decode(payload(value))
    except (msgspec.DecodeError, RecursionError):
        return {}
