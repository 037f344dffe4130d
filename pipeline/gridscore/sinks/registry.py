"""The kinds of sinks, by name; see `gridscore.job.plugs.kinds`."""

from __future__ import annotations

from gridscore.job.plugs.base import SinkSettings
from gridscore.job.plugs.kinds import PlugKinds
from gridscore.sinks.base import Sink

KINDS = PlugKinds[SinkSettings, Sink]("sink")
