"""The kinds of sources, by name. One line a plug; nothing is imported before somebody asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import UsageError
from pipeline.job.plugs.kinds import PlugKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.grid import Grid
    from pipeline.job.plugs.base import SourceSettings
    from pipeline.sources.base import Source


def _kind(name: str, title: str, extra: str, summary: str) -> PlugKind:
    """A kind whose settings are `pipeline.job.plugs.NAME_source:TITLESourceSettings`, and whose class is TITLESource."""
    settings = f"pipeline.job.plugs.{name}_source:{title}SourceSettings"
    return PlugKind(settings, f"pipeline.sources.{name}:{title}Source", extra, summary)


KINDS: dict[str, PlugKind] = {
    "kafka": _kind("kafka", "Kafka", "kafka", "Topics of a Kafka cluster."),
    "http": _kind("http", "Http", "http", "Events that others post: web pages, tills, anything that speaks HTTP."),
    "logfile": _kind("logfile", "Logfile", "logfile", "Log files, followed as they grow and are rotated."),
    "mqtt": _kind("mqtt", "Mqtt", "mqtt", "Topics of an MQTT broker."),
    "table": _kind("table", "Table", "", "Rows of CSV, Parquet or JSON lines files."),
    "postgres": _kind("postgres", "Postgres", "postgres", "Rows of a PostgreSQL query or table."),
}


def kind_of(settings: SourceSettings) -> str:
    """The kind that settings are for."""
    return str(settings.kind)  # type: ignore[attr-defined]  # each plug adds its own, with its only value


def source_class(kind: str) -> Callable[[Grid, str, SourceSettings], Source]:
    """The class of a kind.

    Raises:
        UsageError: There is no such kind, or its extra is not installed.
    """
    if kind not in KINDS:
        raise UsageError(f"`{kind}` is no kind of source.", f"There are: {', '.join(KINDS)}.")
    made: Callable[[Grid, str, SourceSettings], Source] = KINDS[kind].plug_class()
    return made
