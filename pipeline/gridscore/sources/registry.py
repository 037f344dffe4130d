"""The kinds of sources, by name. One line a plug; nothing of it is imported before it is asked for."""

from __future__ import annotations

from gridscore.job.plugs.base import SourceSettings
from gridscore.job.plugs.kinds import PlugKind, PlugKinds
from gridscore.sources.base import Source


def _kind(name: str, title: str, summary: str, example: str, extra: str = "") -> PlugKind:
    """A kind: its settings are `gridscore.job.plugs.NAME_source:TITLESourceSettings`, its class is `TITLESource`."""
    settings = f"gridscore.job.plugs.{name}_source:{title}SourceSettings"
    return PlugKind(name, settings, f"gridscore.sources.{name}:{title}Source", summary, example, extra)


KINDS = PlugKinds[SourceSettings, Source](
    "source",
    (
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
            "--database 'postgresql://app:${DB_PASSWORD}@localhost/shop' --table customers --key id "
            "--to lookups.customers",
            extra="postgres",
        ),
    ),
)


def name_of(settings: SourceSettings, name: str | None = None) -> str:
    """What a source is called: as its settings say, as it is called where they stand, or after its kind and its map."""
    return settings.name or name or f"{KINDS.of(settings).name}-{settings.to}".replace(":", "-")[:64]
