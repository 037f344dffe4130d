"""The scorer: one micro-batch from journal pages to result texts. Decode, features, model, result; no grid in between.

One bad event harms nobody: what does not decode, or cannot be turned into features, is set aside with the reason, and
its neighbours are scored as if it had not been there.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import repeat
from typing import TYPE_CHECKING, Any

from pipeline.features import DecodeError, EventDecoder, FeaturePlan
from pipeline.worker.dead_letters import Rejected
from pipeline.worker.results import ResultEncoder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.features import LookupTable
    from pipeline.grid.copies import Fetcher
    from pipeline.job import Job
    from pipeline.models import LoadedModel
    from pipeline.worker.reader import Arrival
    from pipeline.worker.stats import JobStats

_FOREIGN_TYPES = {0: "null", -1: "a Portable", -2: "an IdentifiedDataSerializable", -55: "a Compact record"}


@dataclass(frozen=True, slots=True)
class ActiveModel:
    """A model and the features as that model wants them; exchanged as one, between two batches."""

    model: LoadedModel
    plan: FeaturePlan


@dataclass(slots=True)
class PartitionBatch:
    """What one batch has for one partition: results to write, then the offset to go on from."""

    partition: int
    next: int
    keys: list[bytes] = field(default_factory=list)
    texts: list[bytes] = field(default_factory=list)


Source = tuple[PartitionBatch, int, bytes, bytes]
"""Of an event: where its result goes, its sequence, serialized key and bytes."""


@dataclass(slots=True)
class ScoredBatch:
    """A batch, ready to be written."""

    partitions: list[PartitionBatch]
    rejected: list[Rejected]
    events: int


class Scorer:
    """Scores batches for one job.

    Args:
        job: What to do.
        tables: The lookup tables by name, those of mode `fetch` empty.
        fetchers: Where lookups of mode `fetch` come from, by name.
        stats: Where to count.
    """

    def __init__(
        self, job: Job, tables: Mapping[str, LookupTable], fetchers: Mapping[str, Fetcher], stats: JobStats
    ) -> None:
        self._decoder = EventDecoder(job)
        self._encoder = ResultEncoder(job)
        self._tables = tables
        self._fetchers = fetchers
        self._stats = stats

    async def score(self, arrivals: Sequence[Arrival], active: ActiveModel) -> ScoredBatch:
        """Score pages.

        Raises:
            HazelcastError: A lookup that is fetched per batch could not be; nothing has been counted.
            ModelError: The model cannot predict at all.
        """
        clock = time.thread_time_ns
        stage_ns = self._stats.stage_ns
        began = clock()
        events: list[Any] = []
        sources: list[Source] = []
        rejected: list[Rejected] = []
        batches: dict[int, PartitionBatch] = {}
        for partition, page in arrivals:
            batch = batches.get(partition)
            if batch is None:
                batch = batches[partition] = PartitionBatch(partition, page.next)
            batch.next = page.next
            self._decode(partition, page, batch, events, sources, rejected)
        stage_ns["decode"] += clock() - began

        for name, fetcher in self._fetchers.items():
            await self._fetch(active.plan, name, fetcher, events)

        began = clock()
        matrix = self._features(active.plan, events, sources, rejected)
        stage_ns["features"] += (after := clock()) - began
        if events:
            scores = active.model.predict(matrix)
            stage_ns["predict"] += (began := clock()) - after
            sequences = [source[1] for source in sources]
            texts = self._encoder.encode(events, scores, sequences, active.model.version)
            for (batch, _, key, _), text in zip(sources, texts, strict=True):
                batch.keys.append(key)
                batch.texts.append(text)
            stage_ns["encode"] += clock() - began
        return ScoredBatch(list(batches.values()), rejected, len(events))

    def _decode(
        self,
        partition: int,
        page: Any,
        batch: PartitionBatch,
        events: list[Any],
        sources: list[Source],
        rejected: list[Rejected],
    ) -> None:
        if not page.foreign:
            try:
                decoded = self._decoder.decode_all(page.values)
            except DecodeError:
                pass
            else:
                events.extend(decoded)
                sources.extend(zip(repeat(batch), page.sequences, page.keys, page.values))
                return
        for position, (sequence, key, value) in enumerate(zip(page.sequences, page.keys, page.values, strict=True)):
            if position in page.foreign:
                kind = _FOREIGN_TYPES.get(page.foreign[position], f"of Hazelcast type {page.foreign[position]}")
                reason = f"the value is {kind}; put JSON values (HazelcastJsonValue) or JSON strings"
                rejected.append(Rejected(partition, sequence, key, value, "decode", reason))
                continue
            try:
                event = self._decoder.decode(value)
            except DecodeError as error:
                rejected.append(Rejected(partition, sequence, key, value, "decode", str(error)))
            else:
                events.append(event)
                sources.append((batch, sequence, key, value))

    async def _fetch(self, plan: FeaturePlan, name: str, fetcher: Fetcher, events: list[Any]) -> None:
        keys = {key for key in plan.keys(events)[name] if key is not None}
        entries = await fetcher.fetch(keys)
        table = self._tables[name]
        table.clear()
        for key, payload in entries:
            table.put(key, payload)

    def _features(
        self,
        plan: FeaturePlan,
        events: list[Any],
        sources: list[Source],
        rejected: list[Rejected],
    ) -> Any:
        try:
            return plan.matrix(events)
        except Exception as error:
            bad = self._culprits(plan, events)
            if not bad:
                raise
            for position, reason in bad.items():
                batch, sequence, key, raw = sources[position]
                rejected.append(Rejected(batch.partition, sequence, key, raw, "features", reason or str(error)))
            events[:] = [event for i, event in enumerate(events) if i not in bad]
            sources[:] = [source for i, source in enumerate(sources) if i not in bad]
            return plan.matrix(events)

    @staticmethod
    def _culprits(plan: FeaturePlan, events: Sequence[Any]) -> dict[int, str]:
        bad: dict[int, str] = {}
        for position, event in enumerate(events):
            try:
                plan.matrix([event])
            except Exception as error:  # noqa: BLE001 -- whatever it is, it must not stop the others
                bad[position] = f"{type(error).__name__}: {error}"
        return bad
