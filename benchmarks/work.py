"""The works that are scored: the job, its events, its lookups and its model, the same for every system."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from gridscore.job import parse_job
from gridscore.proving.bench import card

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from gridscore.job import Job

WIDE_FEATURES = 200
HEAVY_TREES = 1_000
FAT_BYTES = 2_048
BIG_USERS = 1_000_000


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be scored.

    Attributes:
        name: `card`, or which way it differs from that.
        title: For people.
        count: Events of a throughput run.
        features: Of the model; 12, or more.
        trees: Of the model.
        event_bytes: About how long the JSON of an event is; longer than 90 by a note that nobody reads.
        users: Entries of the larger lookup.
    """

    name: str
    title: str
    count: int = 900_000
    features: int = 12
    trees: int = card.TREES
    event_bytes: int = 90
    users: int = card.USERS

    @property
    def job_text(self) -> str:
        """The job file, in YAML."""
        text = card.job_text("bench", "results.bench")
        if self.features == card.FEATURES:
            return text
        more = "".join(f"  more_{i}: amount * {i + 1} + customer.age\n" for i in range(self.features - card.FEATURES))
        head, tail = text.split("model: ", 1)
        return f"{head}{more}model: {tail}"

    @property
    def job(self) -> Job:
        """The job: events from `events.bench`, results to `results.bench`."""
        return parse_job(self.job_text, "the benchmark's job")

    @property
    def lookups(self) -> Mapping[str, tuple[str, dict[str, dict[str, float]]]]:
        """By name in the job: the map, and its entries."""
        return {
            "customer": ("lookups.bench-users", card.users(self.users)),
            "shop": ("lookups.bench-merchants", card.merchants()),
        }

    def events(self, count: int, first: int = 0) -> Iterator[tuple[str, bytes]]:
        """Keys (`e17` is the key of number 17) and JSON texts."""
        note = "x" * max(0, self.event_bytes - 90 - len(',"note":""'))
        more = b',"note":"' + note.encode() + b'"}' if note else b"}"
        for key, text in card.events(count, first=first, users=self.users):
            yield key, text[:-1] + more

    def booster(self) -> Any:
        """The model, an XGBoost Booster."""
        return card.booster(self.job, trees=self.trees)

    def save(self, folder: Path) -> None:
        """Write `model.ubj`, `features.json` (names in order), `customer.json` and `shop.json` (key to fields)."""
        self.booster().save_model(folder / "model.ubj")
        (folder / "features.json").write_text(json.dumps(list(self.job.feature_names)), encoding="utf-8")
        for name, (_, entries) in self.lookups.items():
            (folder / f"{name}.json").write_bytes(msgspec.json.encode(entries))


WORKS = {
    work.name: work
    for work in (
        Work("card", "12 features of 90-byte events, two lookups, 100 trees of depth 6"),
        Work("wide", f"{WIDE_FEATURES} features", count=300_000, features=WIDE_FEATURES),
        Work("heavy", f"{HEAVY_TREES:,} trees", count=100_000, trees=HEAVY_TREES),
        Work("fat", f"events of {FAT_BYTES:,} bytes", count=100_000, event_bytes=FAT_BYTES),
        Work("big", f"a lookup of {BIG_USERS:,} entries", count=300_000, users=BIG_USERS),
    )
}
