"""A connection to a cluster, as programs open it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from gridscore.client.client import Client
from gridscore.errors import UsageError
from gridscore.grid import GridSettings, or_local_cluster
from gridscore.grid import connect as connect_grid

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from types import TracebackType

    from gridscore.client.blocking import BlockingClient


class Connection:
    """A connection to be opened: by `async with` for a `Client`, by `with` or `open` for a `BlockingClient`."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        self._opened: Any = None

    async def __aenter__(self) -> Client:
        self._refuse_to_open_twice()
        self._opened = opened = _connected(self._settings)
        try:
            return await opened.__aenter__()
        except BaseException:
            self._opened = None
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        opened, self._opened = self._opened, None
        await opened.__aexit__(kind, error, trace)

    def open(self) -> BlockingClient:
        """Open it for plain calls; `close` of what this returns ends it. For notebooks, where `with` is in the way."""
        from gridscore.client.blocking import BlockingClient

        return BlockingClient(_connected(self._settings))

    def __enter__(self) -> BlockingClient:
        self._refuse_to_open_twice()
        self._opened = opened = self.open()
        return opened

    def __exit__(self, *_: object) -> None:
        opened, self._opened = self._opened, None
        opened.close()

    def _refuse_to_open_twice(self) -> None:
        if self._opened is not None:  # it would not be known which one an exit closes
            raise UsageError("This connection is open already.", "Call `gridscore.connect` for each `with`.")


@asynccontextmanager
async def _connected(settings: Mapping[str, Any]) -> AsyncIterator[Client]:
    async with await connect_grid(or_local_cluster(GridSettings.load(**settings))) as grid:
        client = Client(grid)
        try:
            yield client
        finally:
            client.stop_waiting()


def connect(**settings: Any) -> Connection:
    """A connection to a cluster, opened by `with`, or by `async with` in a coroutine.

    Example: `with connect(members=["host:5701"]) as client: print(client.result("results.flights", "UA 1"))`.

    Args:
        **settings: Fields of `GridSettings`; what is not given comes from `GRIDSCORE_*`, the settings file, or the
            cluster that `gridscore up` runs on this machine.

    Raises:
        ConnectionFailedError: No member answered, or the cluster refused this client; when it is opened.
        SettingsError: The settings are not valid; when it is opened.
    """
    return Connection(settings)
