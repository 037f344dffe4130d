"""The features room: from events to the float32 matrix that a model scores; live and offline, with the same code.

It offers :class:`EventDecoder` (JSON to :class:`EventColumns`), :class:`LookupTable` (a lookup map in columns),
:class:`FeaturePlan` (events to matrix), and :func:`offline_matrix` (a history to the same matrix). What travels with a
model to say how its features were made is in `features.definitions`; how a table becomes the JSON that a producer puts
into the grid is in `features.tables`.
"""

from __future__ import annotations

from gridscore.features.columns import EventColumns
from gridscore.features.definitions import ATTRIBUTE, Attribute, Definitions, definitions_of
from gridscore.features.events import DecodeError, Event, EventDecoder
from gridscore.features.lookup_table import LookupTable
from gridscore.features.offline import OfflineMatrix, booster_of, filled_tables, offline_matrix, parameters_of
from gridscore.features.plan import FeaturePlan
from gridscore.features.program import class_numbers

__all__ = [
    "ATTRIBUTE",
    "Attribute",
    "DecodeError",
    "Definitions",
    "Event",
    "EventColumns",
    "EventDecoder",
    "FeaturePlan",
    "LookupTable",
    "OfflineMatrix",
    "booster_of",
    "class_numbers",
    "definitions_of",
    "filled_tables",
    "offline_matrix",
    "parameters_of",
]
