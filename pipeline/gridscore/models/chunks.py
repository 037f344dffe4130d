"""The bytes of models in the grid, in entries of a mebibyte, under `model/upload/number`."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any

from gridscore.errors import ModelError
from gridscore.grid import transport, wire
from gridscore.grid.entries import value_of
from gridscore.grid.records import INDETERMINATE
from gridscore.models.version import CHUNK

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from gridscore.grid import Grid
    from gridscore.models.record import StoredSample
    from gridscore.models.version import ModelVersion

CHUNKS_MAP = "gridscore.model-chunks"

_AT_ONCE = 4
_ATTEMPTS = 3
_BYTE_ARRAY = -12


class Chunks:
    """Writes and reads the chunks of uploads. An upload's name is its own: no chunk is ever written twice."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    async def write(
        self, name: str, upload: str, payload: bytes, step: Callable[[int], Awaitable[None]] | None = None
    ) -> int:
        """Put all chunks; returns how many. `step` is awaited with the number of bytes written so far.

        Raises HazelcastError if the cluster did not take them; some may be there.
        """
        chunks = await self._grid.map(CHUNKS_MAP)
        count = -(-len(payload) // CHUNK)
        for start in range(0, count, _AT_ONCE):
            numbers = range(start, min(start + _AT_ONCE, count))
            try:
                # A group, not gather: when one fails, none of the others is left writing.
                async with asyncio.TaskGroup() as group:
                    for number in numbers:
                        part = bytearray(payload[number * CHUNK : (number + 1) * CHUNK])
                        group.create_task(_put(chunks, f"{name}/{upload}/{number}", part))
            except ExceptionGroup as failed:
                raise failed.exceptions[0] from None
            if step is not None:
                await step(min(numbers.stop * CHUNK, len(payload)))
        return count

    async def read(self, version: ModelVersion | StoredSample, upload: str) -> bytes:
        """All bytes of a version, or a sample, checked against its SHA-256.

        Raises ModelError if a chunk is missing or is not what was pushed.
        """
        whole = bytearray()
        for start in range(0, version.chunks, _AT_ONCE):
            numbers = range(start, min(start + _AT_ONCE, version.chunks))
            for part in await asyncio.gather(*(self._get(f"{version.name}/{upload}/{n}") for n in numbers)):
                expected = min(CHUNK, version.size - len(whole))
                if part is None or len(part) != expected:
                    found = "missing" if part is None else "not what was pushed"
                    raise ModelError(f"A part of {version} is {found} in the grid.", "Push it again.")
                whole += part
        payload = bytes(whole)
        if await asyncio.to_thread(lambda: hashlib.sha256(payload).hexdigest()) != version.sha256:
            raise ModelError(
                f"The bytes of {version} in the grid are not what was pushed: their SHA-256 differs.", "Push it again."
            )
        return payload

    async def uploads(self, name: str) -> dict[str, list[str]]:
        """The uploads of a model that have chunks, each with their keys."""
        chunks = await self._grid.map(CHUNKS_MAP)
        found: dict[str, list[str]] = {}
        for key in await chunks.key_set():
            parts = key.split("/") if isinstance(key, str) else []
            if len(parts) == 3 and parts[0] == name:
                found.setdefault(parts[1], []).append(key)
        return found

    async def delete(self, keys: Iterable[str]) -> None:
        chunks = await self._grid.map(CHUNKS_MAP)
        for key in keys:
            await chunks.delete(key)

    async def _get(self, key: str) -> bytes | None:
        # The client would unpickle what somebody else may have put there, so only a byte array is looked into.
        data = transport.key_data(self._grid.client, key)
        value = await value_of(self._grid, CHUNKS_MAP, data)
        if value is None:
            return None
        return value[12:] if wire.type_of(value) == _BYTE_ARRAY else b""


async def _put(chunks: Any, key: str, part: bytearray) -> None:
    """Put one chunk; whether an attempt without an answer happened does not matter, the bytes are the same."""
    for left in reversed(range(_ATTEMPTS)):
        try:
            await chunks.set(key, part)
        except INDETERMINATE:
            if not left:
                raise
        else:
            return
