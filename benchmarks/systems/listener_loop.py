"""What Hazelcast's tutorials suggest: an entry listener that scores each event as it comes, and puts its result.

Run as a module (`-h` says how); it prints `ready` when its listener is registered.
"""

from __future__ import annotations

import argparse
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hazelcast
from hazelcast.core import HazelcastJsonValue

from benchmarks.features import Work

if TYPE_CHECKING:
    from collections.abc import Callable

_WARM_UP = b'{"amount":1.0,"user":"","merchant":"","ts":0}'


class Loop:
    """Scores what is put into a map.

    Args:
        client: Of the cluster.
        events: Name of the map of events.
        results: Name of the map of results.
        work: What to do.

    Attributes:
        ended: Set when it cannot go on.
        error: Why.
    """

    def __init__(self, client: hazelcast.HazelcastClient, events: str, results: str, work: Work) -> None:
        self.ended = threading.Event()
        self.error: BaseException | None = None
        self._events = client.get_map(events).blocking()
        # `set` is a put that does not carry the value before it back to us.
        self._put: Callable[[Any, Any], Any] = client.get_map(results).set
        self._results = work.results

    def listen(self) -> None:
        """Begin; returns when the listener is registered."""
        self._results([_WARM_UP])
        self._events.add_entry_listener(include_value=True, added_func=self._came, updated_func=self._came)

    def _came(self, event: Any) -> None:
        # We are in the client's own thread, which must not wait for the put.
        try:
            [result] = self._results([event.value.to_string().encode()])
            self._put(event.key, HazelcastJsonValue(result.decode())).add_done_callback(self._was_put)
        except BaseException as error:  # noqa: BLE001 -- the client would log it and go on without a result
            self._end(error)

    def _was_put(self, put: Any) -> None:
        if not put.is_success():
            try:
                put.result()
            except Exception as error:  # noqa: BLE001
                self._end(error)

    def _end(self, error: BaseException) -> None:
        self.error = self.error or error
        self.ended.set()


def main() -> None:
    """Run it until SIGTERM.

    Raises:
        Exception: What an event could not be scored for, or its result not put.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("cluster_name", "events", "results"):
        parser.add_argument(name)
    parser.add_argument("files", type=Path)
    parser.add_argument("addresses", nargs="+")
    arguments = parser.parse_args()
    work = Work(arguments.files)
    client = hazelcast.HazelcastClient(
        cluster_name=arguments.cluster_name, cluster_members=arguments.addresses, statistics_enabled=False
    )
    loop = Loop(client, arguments.events, arguments.results, work)
    signal.signal(signal.SIGTERM, lambda *_: loop.ended.set())
    loop.listen()
    print("ready", flush=True)
    loop.ended.wait()
    client.shutdown()
    if loop.error is not None:
        raise loop.error


if __name__ == "__main__":
    main()
