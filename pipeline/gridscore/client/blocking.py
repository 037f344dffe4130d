"""The Python API for scripts and notebooks: every verb of the asynchronous client as a plain call.

The asynchronous client runs in a thread of its own, so this works inside a running event loop, as a notebook has, too.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

from gridscore.client.client import Client
from gridscore.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
    from contextlib import AbstractAsyncContextManager

    import pandas as pd

    from gridscore.models import Registry
    from gridscore.results.stream import Result, ResultStream

P = ParamSpec("P")
T = TypeVar("T")


class LoopThread:
    """An event loop in a thread of its own, which a script that ends without closing does not wait for."""

    def __init__(self) -> None:
        self._running: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(target=asyncio.run, args=(self._main(),), name="gridscore", daemon=True)
        self._thread.start()
        self._loop, self._ended = self._running.result()

    async def _main(self) -> None:
        ended = asyncio.Event()
        self._running.set_result((asyncio.get_running_loop(), ended))
        await ended.wait()

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self._thread.is_alive()

    def run(self, work: Awaitable[T]) -> T:
        """Wait for it; Ctrl-C cancels it.

        Raises:
            UsageError: The thread has ended, or it is the one that would wait.
        """
        if not self.is_alive or threading.current_thread() is self._thread:
            if inspect.iscoroutine(work):
                work.close()
            if not self.is_alive:
                raise UsageError("The connection is closed.", "Open another one: `gridscore.connect(...)`.")
            raise UsageError("A callback cannot wait for the cluster.", "Keep what it got, and ask afterwards.")

        async def waited() -> T:
            return await work

        future = asyncio.run_coroutine_threadsafe(waited(), self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def end(self) -> None:
        """End the thread, and what still runs in it."""
        if self.is_alive:
            self._loop.call_soon_threadsafe(self._ended.set)
            self._thread.join()


def _blocking(method: Callable[Concatenate[Client, P], Awaitable[T]]) -> Callable[Concatenate[BlockingClient, P], T]:
    @functools.wraps(method)
    def call(self: BlockingClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._thread.run(method(self._client, *args, **kwargs))

    return call


class BlockingClient:
    """A connection to a cluster, with the verbs of :class:`Client` as plain calls.

    Get one from `with gridscore.connect() as client`, or, in a notebook, from `gridscore.connect().open()`.
    """

    def __init__(self, connecting: AbstractAsyncContextManager[Client]) -> None:
        self._connecting = connecting
        self._thread = LoopThread()
        try:
            self._client = self._thread.run(connecting.__aenter__())
        except BaseException:
            self._thread.end()
            raise

    put_events = _blocking(Client.put_events)
    submit = _blocking(Client.submit)
    rollback = _blocking(Client.rollback)
    cancel = _blocking(Client.cancel)
    wipe = _blocking(Client.wipe)
    push_model = _blocking(Client.push_model)
    promote_model = _blocking(Client.promote_model)
    wait_until_live = _blocking(Client.wait_until_live)
    rollback_model = _blocking(Client.rollback_model)
    check_model = _blocking(Client.check_model)
    compare_models = _blocking(Client.compare_models)
    remove_alias = _blocking(Client.remove_alias)
    delete_model = _blocking(Client.delete_model)
    store_sample = _blocking(Client.store_sample)
    export_model = _blocking(Client.export_model)
    import_model = _blocking(Client.import_model)
    pull_model = _blocking(Client.pull_model)
    start_experiment = _blocking(Client.start_experiment)
    experiment = _blocking(Client.experiment)
    stop_experiment = _blocking(Client.stop_experiment)
    promote_experiment = _blocking(Client.promote_experiment)
    score = _blocking(Client.score)
    score_frame = _blocking(Client.score_frame)
    result = _blocking(Client.result)

    @property
    def models(self) -> Registry:
        """The model registry, its methods as plain calls."""
        registry: Registry = _Plain(self._client.models, self._thread)  # type: ignore[assignment]
        return registry

    @property
    def jobs(self) -> Any:
        """The jobs of the cluster, the methods of `Jobs` as plain calls."""
        return _Plain(self._client.jobs, self._thread)

    def results(self, map_name: str, **options: Any) -> BlockingResults:
        """Results of a map as they are written, for a `for`; the options are those of `Client.results`."""
        return BlockingResults(self._thread.run(self._client.results(map_name, **options)), self._thread)

    @contextmanager
    def worker(self, jobs: Collection[str] | None = None) -> Iterator[None]:
        """Score in this process while the `with` is entered: for trying out, since it shares the interpreter."""
        scoring = self._client.worker(jobs)
        self._thread.run(scoring.__aenter__())
        try:
            yield
        finally:
            self._thread.run(scoring.__aexit__(None, None, None))

    def close(self) -> None:
        """End the connection; again, it does nothing."""
        if self._thread.is_alive:
            try:
                self._thread.run(self._connecting.__aexit__(None, None, None))
            finally:
                self._thread.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class BlockingResults:
    """Results as they are written: `for result in client.results(...)`; see :class:`ResultStream`."""

    def __init__(self, stream: ResultStream, thread: LoopThread) -> None:
        self._stream, self._thread = stream, thread

    @property
    def position(self) -> Mapping[str, Any]:
        """The position after the last result that was taken."""
        return self._stream.position

    @property
    def lost(self) -> int:
        """Results that were overwritten before they were read."""
        return self._stream.lost

    def to_frame(self, limit: int = 1_000_000) -> pd.DataFrame:
        """The results that the map holds now: see `ResultStream.to_frame`."""
        return self._thread.run(self._stream.to_frame(limit))

    def close(self) -> None:
        """End the iteration."""
        self._thread.run(self._stream.close())

    def __iter__(self) -> Iterator[Result]:
        return self

    def __next__(self) -> Result:
        try:
            return self._thread.run(self._stream.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Plain:
    """An object whose coroutine functions are plain calls."""

    def __init__(self, what: Any, thread: LoopThread) -> None:
        self._what, self._thread = what, thread

    def __dir__(self) -> list[str]:
        return [name for name in dir(self._what) if not name.startswith("_")]

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._what, name)
        if not inspect.iscoroutinefunction(found):
            return found

        @functools.wraps(found)
        def call(*args: Any, **kwargs: Any) -> Any:
            return self._thread.run(found(*args, **kwargs))

        return call
