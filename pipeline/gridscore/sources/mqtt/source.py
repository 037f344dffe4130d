"""The MQTT source: events from the messages of devices, acknowledged to the broker once the grid has them.

The broker keeps a session for the source: what it has not acknowledged, and what comes while it is away, comes again,
under the same key.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from gridscore.sources.base import Batch, Poison
from gridscore.sources.mqtt.link import MqttLink
from gridscore.sources.mqtt.messages import MessageDecoder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gridscore.grid import Grid
    from gridscore.sources.mqtt.settings import MqttSourceSettings

# Batches on their way into the grid. What comes meanwhile is the next one: many small batches would cost far more.
_UNDER_WAY = 2


class MqttSource:
    """Reads topics of an MQTT broker. See `gridscore.sources.base.Source`."""

    def __init__(self, _grid: Grid, name: str, settings: MqttSourceSettings) -> None:
        self._settings = settings
        self._client_id = settings.client_id or f"gridscore-{name}"
        self._decoder = MessageDecoder(settings)
        self._link: MqttLink | None = None
        self._room = asyncio.Semaphore(_UNDER_WAY)

    async def open(self) -> None:
        self._link = MqttLink(self._settings, self._client_id)
        await self._link.connect()
        await self._link.subscribe(self._decoder.filters)

    async def batches(self) -> AsyncIterator[Batch]:
        link, decode = self._opened, self._decoder.decode
        while True:
            await link.wait()
            await self._room.acquire()
            link.check()
            entries: list[tuple[Any, bytes]] = []
            poison: list[Poison] = []
            receipts: list[bytes] = []
            for message in link.take():
                if message.receipt:
                    receipts.append(message.receipt)
                event = decode(message)
                if isinstance(event, Poison):
                    poison.append(event)
                elif event is not None:
                    entries.append(event)
            yield Batch(entries, poison, receipts)

    async def acknowledge(self, batch: Batch) -> None:
        self._room.release()
        self._opened.acknowledge(batch.position)

    async def close(self) -> None:
        if self._link is not None:
            await self._link.close()

    @property
    def _opened(self) -> MqttLink:
        assert self._link is not None  # noqa: S101 -- the runner opens first
        return self._link
