"""The kinds of sinks, by name. One line a plug; nothing is imported before somebody asks for it.

A new sink needs its settings in `pipeline/job/plugs/<kind>_sink.py`, its plug in `pipeline/sinks/<kind>.py`, a line
here, and an extra in `pyproject.toml` if it needs a library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from pipeline.errors import UsageError
from pipeline.job.plugs.environment import from_environment
from pipeline.job.plugs.kinds import PlugKind

if TYPE_CHECKING:
    from pipeline.grid import Grid
    from pipeline.job.plugs.base import SinkSettings
    from pipeline.sinks.base import Sink


def _kind(name: str, title: str, summary: str, example: str, extra: str = "") -> PlugKind:
    """A kind whose settings are `pipeline.job.plugs.NAME_sink:TITLESinkSettings`, and whose class is TITLESink."""
    settings = f"pipeline.job.plugs.{name}_sink:{title}SinkSettings"
    return PlugKind(name, settings, f"pipeline.sinks.{name}:{title}Sink", summary, example, extra)


KINDS: dict[str, PlugKind] = {
    kind.name: kind
    for kind in (
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
    )
}


def available() -> list[str]:
    """The kinds of sinks that this version has."""
    return [name for name, kind in KINDS.items() if kind.exists]


def kind_of(settings: SinkSettings) -> str:
    """The kind that settings are for."""
    return str(settings.kind)  # type: ignore[attr-defined]  # each plug adds its own, with its only value


def settings_class(kind: str) -> type[SinkSettings]:
    """The settings of a kind of sink.

    Raises:
        UsageError: There is no such kind.
    """
    return cast("type[SinkSettings]", _of(kind).settings_class())


def make(kind: str, grid: Grid, name: str, settings: SinkSettings) -> Sink:
    """A sink, not opened yet.

    Raises:
        UsageError: There is no such kind, or its libraries are not installed.
    """
    return cast("Sink", _of(kind).make(grid, name, settings))


def check(settings: SinkSettings) -> None:
    """See that a sink can be made of settings, before anybody connects.

    Raises:
        SettingsError: An environment variable that they name is not set.
        UsageError: The libraries of its kind are not installed.
    """
    _of(kind_of(settings)).plug_class()
    from_environment(settings)


def _of(kind: str) -> PlugKind:
    if kind not in KINDS:
        raise UsageError(f"There is no sink `{kind}`.", f"Sinks are: {', '.join(available())}.")
    return KINDS[kind]
