"""The quality of what is scored: shares of missing values, unseen texts and lookup misses, of a sample of batches.

What is counted is of the last events: older counts fade, so that an input that breaks today shows whatever was before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from numpy.typing import NDArray

# So many batches are all counted, and one in so many afterwards: counting costs as much as a feature or two.
FIRST, EVERY = 64, 8

WINDOW = 10_000  # once twice as many events were counted, all counts are halved
_SAID = 32  # names of each kind that are published, those with the highest counts


class QualityCounter:
    """Counts of one feature plan."""

    def __init__(
        self,
        features: Sequence[str],  # names in the order of the matrix's columns
        lookups: Mapping[str, int],  # slots of the rows found in each lookup's table, by name
        # Slots of the texts that are made a category, or a number that was learnt, by feature.
        texts: Mapping[str, int],
        known: Mapping[str, Collection[str]],  # the texts that the model knows, by feature
    ) -> None:
        self._features = features
        self._lookups = list(lookups.items())
        self._texts = [(name, slot, frozenset(known.get(name, ())).__contains__) for name, slot in texts.items()]
        self._batches = 0
        self._events = 0.0
        self._missing = np.zeros(len(features))
        self._unseen = dict.fromkeys(texts, 0.0)
        self._misses = dict.fromkeys(lookups, 0.0)
        self._said: dict[str, Any] | None = None
        self.counted = 0  # events, which do not fade
        self.unseen = dict.fromkeys(texts, 0)  # of them, those with a text that the model does not know, by feature

    def is_due(self) -> bool:
        """Whether the next batch is one of the sample."""
        self._batches += 1
        return self._batches <= FIRST or self._batches % EVERY == 0

    def count(self, values: Sequence[Any], finite: NDArray[np.bool_], count: int) -> None:
        """Count a batch.

        `values`: of all slots; `finite`: where the matrix has a number, of shape (n, features); `count`: rows to look
        at, the first of n.
        """
        if self._events >= 2 * WINDOW:
            self._events /= 2
            self._missing /= 2
            for counts in (self._unseen, self._misses):
                for name in counts:
                    counts[name] /= 2
        self._events += count
        self.counted += count
        self._said = None
        self._missing += count - np.count_nonzero(finite[:count], axis=0)
        for name, slot in self._lookups:
            self._misses[name] += count - int(np.count_nonzero(values[slot][:count]))
        for name, slot, known in self._texts:
            texts = values[slot][:count]
            unseen = count - sum(map(known, texts)) - texts.count(None)
            self._unseen[name] += unseen
            self.unseen[name] += unseen

    def to_json(self) -> dict[str, Any]:
        """For the worker's record: events counted, and for how many of them what was missing; zeros are left out."""
        if self._said is None:
            self._said = {
                "events": round(self._events),
                "missing": _most(dict(zip(self._features, self._missing.tolist(), strict=True))),
                "unseen": _most(self._unseen),
                "misses": _most(self._misses),
            }
        return self._said


def _most(counts: Mapping[str, float]) -> dict[str, int]:
    some = [(name, round(count)) for name, count in counts.items() if count >= 0.5]
    return dict(sorted(some, key=lambda each: -each[1])[:_SAID])
