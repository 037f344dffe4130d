"""A member's heap, as the member tells Management Center.

A member collects its metrics every few seconds (`metrics: collection-frequency-seconds`, 5 by default), and packs them
into a blob: two numbers, then a dictionary of words and the metrics, both deflated. Each word, and each description of
a metric, is written as its difference from the one before. We look for a few of some hundred metrics.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from gridscore.errors import GridError

_VERSION = 1
_MAX_BYTES = 16 << 20  # a blob that unpacks to more is not believed: a member with a hundred maps makes half a megabyte
_INT, _WORD, _WIDE = struct.Struct(">i"), struct.Struct(">iBB"), struct.Struct(">q")
_PREFIX, _METRIC, _DISCRIMINATOR, _DISCRIMINATOR_VALUE, _UNIT, _TARGETS, _TAGS = (1 << bit for bit in range(7))
_WANTED = {
    ("memory", "usedHeap"): "used",
    ("memory", "maxHeap"): "most",
    ("gc", "minorCount"): "minor",
    ("gc", "majorCount"): "major",
    ("gc", "unknownCount"): "unknown",
    ("partitions", "migrationQueueSize"): "migrations",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """A heap at one moment."""

    used: int  # bytes in use, uncollected garbage included
    most: int  # bytes that it may have
    collections: int  # how often garbage was collected; may lag by a second
    migrations: int = 0  # partitions that are still to be moved or copied to backups; only the oldest member knows


def heap_of(blob: bytes) -> Sample:
    """Read a blob. Raises GridError if we do not understand it, or it says nothing about the heap."""
    try:
        found = _find(blob)
        collections = found["minor"] + found["major"] + found.get("unknown", 0)
        sample = Sample(found["used"], found["most"], collections, found.get("migrations", 0))
    except (struct.error, zlib.error, LookupError, UnicodeDecodeError, ValueError) as error:
        raise GridError(f"What a member reports of its heap cannot be read: {error or type(error).__name__}") from None
    if sample.most <= 0 or sample.used < 0:
        raise GridError("A member does not report its heap.")
    return sample


def _find(blob: bytes) -> dict[str, int]:
    version, size = struct.unpack_from(">hi", blob)
    if version != _VERSION:
        raise ValueError(f"format {version}")
    words = _words(_inflate(blob[6 : 6 + size]))
    (count,) = _INT.unpack_from(blob, 6 + size)
    data, at = _inflate(blob[10 + size :]), 0
    prefix = metric = -1
    tags, found = 0, {}
    for _ in range(count):
        same = data[at]
        at += 1
        if not same & _PREFIX:
            (prefix,) = _INT.unpack_from(data, at)
            at += 4
        if not same & _METRIC:
            (metric,) = _INT.unpack_from(data, at)
            at += 4
        at += 4 * (not same & _DISCRIMINATOR) + 4 * (not same & _DISCRIMINATOR_VALUE)
        at += (not same & _UNIT) + (not same & _TARGETS)
        if not same & _TAGS:
            tags = data[at]
            at += 1
        at += 8 * tags
        name = _WANTED.get((words.get(prefix, ""), words.get(metric, "")))
        if name is not None and not tags and not data[at]:  # a whole number, of the member and not of a part of it
            (found[name],) = _WIDE.unpack_from(data, at + 1)
            if len(found) == len(_WANTED):
                break
        at += 9
    return found


def _words(data: bytes) -> dict[int, str]:
    words, word, at = {}, "", 4
    for _ in range(_INT.unpack_from(data)[0]):
        number, common, more = _WORD.unpack_from(data, at)
        at += 6 + 2 * more
        word = word[:common] + data[at - 2 * more : at].decode("utf-16-be")
        words[number] = word
    return words


def _inflate(data: bytes) -> bytes:
    inflater = zlib.decompressobj()
    text = inflater.decompress(data, _MAX_BYTES)
    if inflater.unconsumed_tail:
        raise ValueError("it is too large")
    return text
