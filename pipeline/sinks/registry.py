"""Which sinks there are: one line for each. Nothing of a sink is imported before it is asked for.

A new sink needs its settings in `pipeline/job/plugs/<kind>_sink.py`, its plug in `pipeline/sinks/`, a line here, and an
extra in `pyproject.toml` if it needs a library.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.grid import Grid
    from pipeline.job.plugs.base import SinkSettings
    from pipeline.sinks.base import Sink


class Kind(NamedTuple):
    """A kind of sink.

    Attributes:
        settings: Where its settings are: `module:class`.
        plug: Where the sink is: `module:class`.
        extra: Of the distribution, that has its libraries; empty if it needs none.
    """

    settings: str
    plug: str
    extra: str = ""


KINDS: dict[str, Kind] = {
    "files": Kind("pipeline.job.plugs.files_sink:FilesSinkSettings", "pipeline.sinks.files:FilesSink"),
    "kafka": Kind("pipeline.job.plugs.kafka_sink:KafkaSinkSettings", "pipeline.sinks.kafka:KafkaSink", "kafka"),
    "postgres": Kind(
        "pipeline.job.plugs.postgres_sink:PostgresSinkSettings", "pipeline.sinks.postgres:PostgresSink", "postgres"
    ),
    "webhook": Kind(
        "pipeline.job.plugs.webhook_sink:WebhookSinkSettings", "pipeline.sinks.webhook:WebhookSink", "webhook"
    ),
}


def available() -> list[str]:
    """The kinds of sinks that this version has."""
    return [kind for kind in KINDS if importlib.util.find_spec(KINDS[kind].settings.partition(":")[0]) is not None]


def settings_class(kind: str) -> type[SinkSettings]:
    """The settings of a kind of sink.

    Raises:
        UsageError: There is no such kind.
    """
    return cast("type[SinkSettings]", _load(_kind(kind).settings))


def make(kind: str, grid: Grid, name: str, settings: SinkSettings) -> Sink:
    """A sink, not opened yet.

    Raises:
        UsageError: There is no such kind, or its libraries are not installed.
    """
    there = _kind(kind)
    try:
        plug: Any = _load(there.plug)
        return cast("Sink", plug(grid, name, settings))
    except ModuleNotFoundError as error:
        if not there.extra or (error.name or "").partition(".")[0] == "pipeline":
            raise
        raise UsageError(
            f"The sink `{kind}` needs the extra `{there.extra}`: the module `{error.name}` is not installed.",
            f"pip install 'gridscore[{there.extra}]'",
        ) from None


def _kind(kind: str) -> Kind:
    if kind not in KINDS:
        raise UsageError(f"There is no sink `{kind}`.", f"Sinks are: {', '.join(available())}.")
    return KINDS[kind]


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
