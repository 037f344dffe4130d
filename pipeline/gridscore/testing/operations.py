"""The operations on maps that need nothing but the maps."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from gridscore.testing.messages import Reply, Request, boolean, done
from gridscore.testing.store import same

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gridscore.testing.cluster import StubCluster
    from gridscore.testing.store import Partition

_Operation = Callable[["StubCluster", Request, str], Reply]

# By type of the request; called with the request, whose first parameter is read already, and the name of the map.
OPERATIONS: dict[int, _Operation] = {}


def _operation(kind: int) -> Callable[[_Operation], _Operation]:
    def note(operation: _Operation) -> _Operation:
        OPERATIONS[kind] = operation
        return operation

    return note


def _partition(cluster: StubCluster, request: Request, name: str) -> Partition:
    return cluster.partition(name, request.partition)


@_operation(0x010100)
def _put(cluster: StubCluster, request: Request, name: str) -> Reply:
    return done(request).data(_partition(cluster, request, name).put(request.data(), request.data()))


@_operation(0x010F00)
def _set(cluster: StubCluster, request: Request, name: str) -> Reply:
    _partition(cluster, request, name).put(request.data(), request.data())
    return done(request)


@_operation(0x010200)
def _get(cluster: StubCluster, request: Request, name: str) -> Reply:
    return done(request).data(_partition(cluster, request, name).get(request.data()))


@_operation(0x010300)
def _remove(cluster: StubCluster, request: Request, name: str) -> Reply:
    return done(request).data(_partition(cluster, request, name).remove(request.data()))


@_operation(0x010900)
def _delete(cluster: StubCluster, request: Request, name: str) -> Reply:
    _partition(cluster, request, name).remove(request.data(), briefly=True)
    return done(request)


@_operation(0x010400)
def _replace(cluster: StubCluster, request: Request, name: str) -> Reply:
    key, value = request.data(), request.data()
    partition = _partition(cluster, request, name)
    return done(request).data(partition.put(key, value) if partition.get(key) is not None else None)


@_operation(0x010500)
def _replace_if_same(cluster: StubCluster, request: Request, name: str) -> Reply:
    key, expected, value = request.data(), request.data(), request.data()
    partition = _partition(cluster, request, name)
    if is_same := same(partition.get(key), expected):
        partition.put(key, value)
    return boolean(request, is_same)


@_operation(0x010800)
def _remove_if_same(cluster: StubCluster, request: Request, name: str) -> Reply:
    key, expected = request.data(), request.data()
    partition = _partition(cluster, request, name)
    if is_same := same(partition.get(key), expected):
        partition.remove(key)
    return boolean(request, is_same)


@_operation(0x010E00)
def _put_if_absent(cluster: StubCluster, request: Request, name: str) -> Reply:
    key, value = request.data(), request.data()
    partition = _partition(cluster, request, name)
    found = partition.get(key)
    if found is None:
        partition.put(key, value)
    return done(request).data(found)


@_operation(0x010600)
def _contains_key(cluster: StubCluster, request: Request, name: str) -> Reply:
    return boolean(request, _partition(cluster, request, name).get(request.data()) is not None)


@_operation(0x012300)
def _get_all(cluster: StubCluster, request: Request, name: str) -> Reply:
    partition = _partition(cluster, request, name)
    found = [(key, partition.get(key)) for key in request.list(request.data)]
    return done(request).list(part for key, value in found if value is not None for part in (key, value))


@_operation(0x012C00)
def _put_all(cluster: StubCluster, request: Request, name: str) -> Reply:
    partition = _partition(cluster, request, name)
    for key, value in request.list(lambda: (request.data(), request.data())):
        partition.put(key, value)
    return done(request)


def _entries(cluster: StubCluster, name: str) -> Iterator[tuple[bytes, bytes]]:
    for number in range(cluster.partitions):
        yield from cluster.partition(name, number)


@_operation(0x012500)
def _entry_set(cluster: StubCluster, request: Request, name: str) -> Reply:
    return done(request).list(part for entry in _entries(cluster, name) for part in entry)


@_operation(0x012200)
def _key_set(cluster: StubCluster, request: Request, name: str) -> Reply:
    return done(request).list(key for key, _ in _entries(cluster, name))


@_operation(0x012400)
def _values(cluster: StubCluster, request: Request, name: str) -> Reply:
    return done(request).list(value for _, value in _entries(cluster, name))


@_operation(0x012A00)
def _size(cluster: StubCluster, request: Request, name: str) -> Reply:
    size = sum(1 for _ in _entries(cluster, name))
    return Reply(request.type + 1, request.correlation, struct.pack("<i", size))


@_operation(0x012B00)
def _is_empty(cluster: StubCluster, request: Request, name: str) -> Reply:
    return boolean(request, next(_entries(cluster, name), None) is None)


@_operation(0x013800)
def _fetch_entries(cluster: StubCluster, request: Request, name: str) -> Reply:
    (batch,) = request.fixed("i")
    pointers = list(struct.iter_unpack("<ii", request.data()))
    index, entries = _partition(cluster, request, name).walk(pointers[-1][0], batch)
    packed = struct.pack("<ii", index, len(_partition(cluster, request, name)))
    return done(request).data(packed).list(part for entry in entries for part in entry)
