"""The grid room: all that speaks Hazelcast, and the only room that does.

Connecting, the journal protocol, one-put-per-partition writes, compare-and-set records, live local copies of lookup
maps, the embedded member.
"""

from gridscore.grid.connection import Grid, connect, or_local_cluster
from gridscore.grid.records import Record, Records
from gridscore.grid.settings import GridSettings

__all__ = ["Grid", "GridSettings", "Record", "Records", "connect", "or_local_cluster"]
