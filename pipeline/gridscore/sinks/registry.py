"""The kinds of sinks, by name. One line a plug; nothing is imported before it is asked for.

A new sink needs its settings in `job/plugs/<kind>_sink.py`, its plug in `sinks/<kind>.py`, a line here, and an extra in
`pyproject.toml` if it needs a library.
"""

from __future__ import annotations

from gridscore.job.plugs.base import SinkSettings
from gridscore.job.plugs.kinds import PlugKind, PlugKinds
from gridscore.sinks.base import Sink


def _kind(name: str, title: str, summary: str, example: str, extra: str = "") -> PlugKind:
    """A kind whose settings are `gridscore.job.plugs.NAME_sink:TITLESinkSettings`, and whose class is TITLESink."""
    settings = f"gridscore.job.plugs.{name}_sink:{title}SinkSettings"
    return PlugKind(name, settings, f"gridscore.sinks.{name}:{title}Sink", summary, example, extra)


KINDS = PlugKinds[SinkSettings, Sink](
    "sink",
    (
        _kind(
            "kafka",
            "Kafka",
            "Messages of a Kafka topic.",
            "--from results.payments --brokers localhost:9092 --topic scores",
            extra="kafka",
        ),
        _kind(
            "postgres",
            "Postgres",
            "Rows of a PostgreSQL table: the newest result of each key.",
            "--from results.payments --database 'postgresql://app:${DB_PASSWORD}@localhost/shop' --table scores",
            extra="postgres",
        ),
        _kind(
            "webhook",
            "Webhook",
            "Calls to a web server, each signed.",
            "--from results.payments --url https://shop.example.com/decisions --secret '${HOOK_SECRET}' "
            "--only decision=decline",
            extra="webhook",
        ),
        _kind(
            "files",
            "Files",
            "Parquet files or JSON lines in a folder.",
            "--from results.payments --folder scores --format jsonl",
        ),
    ),
)
