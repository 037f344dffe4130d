"""Loaded models, one a process for each version, however many jobs score with it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import msgspec

from gridscore.models import LoadedModel, Registry

if TYPE_CHECKING:
    from gridscore.grid import Grid
    from gridscore.models import ModelVersion


class LoadedModels:
    """The models of one process, each there as long as somebody scores with it. All predict in one thread.

    Args:
        grid: The connection.
    """

    def __init__(self, grid: Grid) -> None:
        self._registry = Registry(grid)
        self._there: WeakValueDictionary[bytes, LoadedModel] = WeakValueDictionary()
        self._loading: dict[bytes, asyncio.Task[LoadedModel]] = {}

    async def of(self, version: ModelVersion) -> LoadedModel:
        """The model of a version: fetched, checked and proven by the first that asks, while the others wait.

        Raises:
            ModelError: It cannot be used. It is fetched anew for whoever asks next.
            HazelcastError: The cluster did not answer.
        """
        key = msgspec.json.encode(version)  # all that it is loaded with, the hash of its bytes included
        if (model := self._there.get(key)) is not None:
            return model
        if key not in self._loading:
            self._loading[key] = asyncio.create_task(self._load(key, version))
        return await asyncio.shield(self._loading[key])

    async def _load(self, key: bytes, version: ModelVersion) -> LoadedModel:
        try:
            payload = await self._registry.fetch(version.name, version.version)
            model = self._there[key] = await asyncio.to_thread(LoadedModel.load, version, payload)
            return model
        finally:
            del self._loading[key]
