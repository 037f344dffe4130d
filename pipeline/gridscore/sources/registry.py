"""The kinds of sources, by name; see `gridscore.job.plugs.kinds`."""

from __future__ import annotations

from gridscore.job.plugs.base import SourceSettings
from gridscore.job.plugs.kinds import PlugKinds
from gridscore.sources.base import Source

KINDS = PlugKinds[SourceSettings, Source]("source")


def name_of(settings: SourceSettings, name: str | None = None) -> str:
    """What a source is called: as its settings say, as it is called where they stand, or after its kind and its map."""
    return settings.name or name or f"{KINDS.of(settings).name}-{settings.to}".replace(":", "-")[:64]
