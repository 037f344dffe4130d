"""The features room: from events to the float32 matrix that a model scores; live and offline, with the same code.

It offers :class:`EventDecoder` (JSON to typed events), :class:`LookupTable` (entries of a lookup map in columns) and
:class:`FeaturePlan` (events to matrix).
"""

from __future__ import annotations

from pipeline.features.events import DecodeError, Event, EventDecoder
from pipeline.features.lookup_table import LookupTable
from pipeline.features.plan import FeaturePlan

__all__ = ["DecodeError", "Event", "EventDecoder", "FeaturePlan", "LookupTable"]
