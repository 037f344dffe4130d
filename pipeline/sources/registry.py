"""The kinds of sources, by name. One line a plug; nothing of it is imported before somebody asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from pipeline.errors import UsageError
from pipeline.job.plugs.environment import from_environment
from pipeline.job.plugs.kinds import PlugKind

if TYPE_CHECKING:
    from pipeline.grid import Grid
    from pipeline.job.plugs.base import SourceSettings
    from pipeline.sources.base import Source


def _kind(name: str, title: str, summary: str, example: str, extra: str = "") -> PlugKind:
    """A kind: its settings are `pipeline.job.plugs.NAME_source:TITLESourceSettings`, its class is `TITLESource`."""
    settings = f"pipeline.job.plugs.{name}_source:{title}SourceSettings"
    return PlugKind(name, settings, f"pipeline.sources.{name}:{title}Source", summary, example, extra)


_ALL = (
    _kind(
        "kafka",
        "Kafka",
        "Messages of a Kafka topic.",
        "--brokers localhost:9092 --topic payments --to events.payments",
        extra="kafka",
    ),
    _kind(
        "http",
        "Http",
        "What others post: web pages, tills, anything that speaks HTTP.",
        "--to events.purchases --key purchase --results results.purchases",
        extra="http",
    ),
    _kind(
        "logfile",
        "Logfile",
        "Lines of log files, as they grow and are rotated.",
        "--path '/var/log/nginx/access.log*' --format combined --to events.requests",
        extra="logfile",
    ),
    _kind(
        "mqtt",
        "Mqtt",
        "Messages of an MQTT broker's topics.",
        "--broker mqtt://localhost:1883 --topic 'tills/+/purchases' --key purchase --to events.purchases",
        extra="mqtt",
    ),
    _kind(
        "postgres",
        "Postgres",
        "Rows of a PostgreSQL table or query, loaded once or kept current.",
        "--database 'postgresql://app:${DB_PASSWORD}@localhost/shop' --table customers --key id --to lookups.customers",
        extra="postgres",
    ),
)
KINDS: dict[str, PlugKind] = {kind.name: kind for kind in _ALL}


def available() -> list[str]:
    """The kinds of sources that this version has."""
    return [name for name, kind in KINDS.items() if kind.exists]


def kind_of(settings: SourceSettings) -> str:
    """The kind that settings are for: each plug's have a field for it, with one value."""
    kind: str = settings.kind  # type: ignore[attr-defined]
    return kind


def name_of(settings: SourceSettings, name: str | None = None) -> str:
    """What a source is called: as its settings say, as it is called where they stand, or after its kind and its map."""
    return settings.name or name or f"{kind_of(settings)}-{settings.to}".replace(":", "-")[:64]


def settings_class(kind: str) -> type[SourceSettings]:
    """The settings of a kind of source.

    Raises:
        UsageError: There is no such kind.
    """
    return cast("type[SourceSettings]", _of(kind).settings_class())


def make(kind: str, grid: Grid, name: str, settings: SourceSettings) -> Source:
    """A source, not opened yet.

    Raises:
        UsageError: There is no such kind, or its libraries are not installed.
    """
    return cast("Source", _of(kind).make(grid, name, settings))


def check(settings: SourceSettings) -> None:
    """See that a source can be made of settings, before anybody connects.

    Raises:
        SettingsError: An environment variable that they name is not set.
        UsageError: The libraries of its kind are not installed.
    """
    _of(kind_of(settings)).plug_class()
    from_environment(settings)


def _of(kind: str) -> PlugKind:
    if kind not in KINDS:
        raise UsageError(f"There is no source `{kind}`.", f"Sources are: {', '.join(available())}.")
    return KINDS[kind]
