"""Parts of the states of windows: what tells one from another, so that an update of the job keeps those that it leaves.

A state is a head and a part a series. A part holds the newest events of an entity for as long as it has been kept: one
that a job does not have is dropped, one that a state does not have begins empty, and whoever writes a state writes all
parts of its job. So no part has a hole, however often jobs change, and whichever of their workers hold the state. A
window that comes back begins anew: nobody wrote its states meanwhile.
"""

from __future__ import annotations

import hashlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from gridscore.features import window_kernel
from gridscore.features.definitions import window_fields
from gridscore.job.check import compile_keys

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from gridscore.features.windows import Layout
    from gridscore.job import Job
    from gridscore.job.nodes import Node

_FORMAT = 2  # of states: another one begins anew
_SIZE = 6  # bytes of the name of a part or column


class Parts:
    """What the states of a job's windows are made of.

    Args:
        run: Tells this run of the job from others: states of these begin anew.
        begun: By frame, the revision that brought a window, if that was an update: as `run`.

    Attributes:
        frames: Of each window, what all of its parts depend on: whose events, in which order, how late.
        tags: Of each window, its frame in this run and since it was brought.
        series: Of each window, the names of its parts, one after the other.
        columns: Of each window, the names of what its events are asked for.
    """

    def __init__(
        self, job: Job, layouts: Sequence[Layout], run: Hashable, begun: Mapping[str, int] = MappingProxyType({})
    ) -> None:
        self._layouts = layouts
        self.frames, self.tags = list[str](), list[str]()
        self.series, self.columns = list[bytes](), list[bytes]()
        routes = job.routes_windows
        for layout in layouts:
            key = job.windows[layout.name]
            routed = layout.name if routes else None
            fields = window_fields(job, compile_keys(key, job.schema_))
            frame = _digest((_FORMAT, routed, key, job.order_by, fields, job.lateness_seconds), 12).hex()
            self.frames.append(frame)
            self.tags.append(_digest((frame, run, begun.get(frame)), 12).hex())
            columns = [(_plain(node), window_fields(job, [node])) for node in layout.columns]
            self.columns.append(b"".join(_digest(column, _SIZE) for column in columns))
            held = [((each[:2], columns[int(each.column)]), each.bare) for each in layout.series]
            self.series.append(b"".join(_named(_digest(what, _SIZE), bare) for what, bare in held))

    def fitted(self, number: int, state: bytes, parts: bytes) -> bytes:
        """A state of a window with the parts that the job has, made of one whose parts have these names.

        Raises ValueError if it is not such a state.
        """
        names = names_of(parts)
        head, theirs = window_kernel.cut(state, [bool(name[-1] & 1) for name in names])
        known = dict(zip(names, theirs, strict=True))
        own = zip(names_of(self.series[number]), self._layouts[number].series, strict=True)
        return head + b"".join(window_kernel.last_of(known.get(name, b""), each) for name, each in own)


def names_of(names: bytes) -> list[bytes]:
    """The names of parts or columns, each by itself."""
    return [names[begin : begin + _SIZE] for begin in range(0, len(names), _SIZE)]


def _named(digest: bytes, bare: float) -> bytes:
    """With a last bit that says whether the part keeps no values: how long it is can be seen without its series."""
    return digest[:-1] + bytes([digest[-1] & 0xFE | bool(bare)])


def _digest(what: Any, size: int) -> bytes:
    return hashlib.blake2b(repr(what).encode(), digest_size=size).digest()


def _plain(node: Node) -> tuple[Any, ...]:
    """Without whether it may be missing, which changes nothing that is there."""
    return (node.op, node.value, *map(_plain, node.args))
