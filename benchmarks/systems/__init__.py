"""The systems that are compared: a file each, behind the interface in `base`, and one registry of them all.

What a system needs is imported when it is asked for: a missing package makes that system unavailable, and no other.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from gridscore.errors import GridscoreError

if TYPE_CHECKING:
    from benchmarks.systems.base import System

SYSTEMS = {
    "gridscore": ("benchmarks.systems.gridscore", "Gridscore"),
    "gridscore-cores": ("benchmarks.systems.gridscore", "GridscoreCores"),
    "by-hand": ("benchmarks.systems.by_hand", "ByHand"),
    "jet-dictionary": ("benchmarks.systems.jet", "JetDictionary"),
    "jet-replicated": ("benchmarks.systems.jet", "JetReplicated"),
    "jet-imap": ("benchmarks.systems.jet", "JetIMap"),
    "kafka-consumer": ("benchmarks.systems.kafka", "KafkaConsumer"),
    "quix-streams": ("benchmarks.systems.kafka", "QuixStreams"),
    "entry-listener": ("benchmarks.systems.listener", "EntryListener"),
    "fastapi": ("benchmarks.systems.http", "FastApi"),
}
"""Module and class, by name, in the order of tables."""


class NotAvailableError(GridscoreError):
    """A system needs something that is not installed here."""


def system_class(name: str) -> type[System]:
    """The class of a system.

    Raises:
        NotAvailableError: There is no such system, or something that it needs is missing.
    """
    if name not in SYSTEMS:
        raise NotAvailableError(f"There is no system `{name}`.", f"There are {', '.join(SYSTEMS)}.")
    module, attribute = SYSTEMS[name]
    try:
        found: type[System] = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise NotAvailableError(
            f"`{error.name or module}` is not installed.", "Install it with: pip install -e '.[bench]'"
        ) from error
    except AttributeError:
        raise NotAvailableError(f"{module} has no class {attribute}.") from None
    return found
