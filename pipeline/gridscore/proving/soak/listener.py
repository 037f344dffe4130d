"""The listener of a soak: a process that sees the results as a downstream application does, and writes them down.

An entry listener is best effort: after a lost connection it has missed some, so each new connection is noted, and what
it did not see is not lost. What was written, and when, is the recorder's business, which runs here as well. SIGTERM
ends both, after a last look at everything.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hazelcast.errors import HazelcastError

from gridscore.grid import GridSettings, connect
from gridscore.proving.soak.evidence import NOTICES, LineFile
from gridscore.proving.soak.recorder import Recorder
from gridscore.results.stream import listen

if TYPE_CHECKING:
    from gridscore.grid import Grid

_log = logging.getLogger(__name__)

READY = "listener.ready"
_FLUSH_SECONDS = 0.2


class Listener:
    """Writes down every result that it is told of."""

    def __init__(self, grid: Grid, map_name: str, folder: Path) -> None:
        self._grid, self._map_name = grid, map_name
        self._file = LineFile(folder / NOTICES)

    async def open(self) -> None:
        """Register. Results written from now on are seen, as long as the connections stand."""
        await listen(self._grid, self._map_name, self._arrived)
        self._grid.on_reconnect(self._reconnected)

    async def run(self) -> None:
        """Write to the file until cancelled."""
        try:
            while True:
                await asyncio.sleep(_FLUSH_SECONDS)
                self._file.flush()
        finally:
            self._file.close()

    def _arrived(self, event: Any) -> None:
        try:
            key, text = event.key, event.value.to_string()
        except (HazelcastError, AttributeError) as error:
            _log.error("A notification of `%s` cannot be read: %s", self._map_name, error)
            return
        self._file.add(_now(), key.encode(), text.encode())

    def _reconnected(self) -> None:
        self._file.add(b"#", _now(), b"connected")


def _now() -> bytes:
    return b"%d" % (time.time_ns() // 1_000_000)


async def _main(options: argparse.Namespace) -> None:
    settings = GridSettings.load(members=options.member, cluster_name=options.cluster_name)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with await connect(settings, name="gridscore-soak-listener") as grid:
        listener = Listener(grid, f"results.{options.job}", options.folder)
        recorder = Recorder(grid, options.job, options.folder)
        await listener.open()
        listening = asyncio.create_task(listener.run())
        recording = asyncio.create_task(recorder.run())
        waiting = asyncio.create_task(stop.wait())
        (options.folder / READY).touch()
        await asyncio.wait((listening, recording, waiting), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        recording.cancel()
        await asyncio.gather(recording, return_exceptions=True)
        if not recording.cancelled():
            recording.result()
        await recorder.finish()
        listening.cancel()
        await asyncio.gather(listening, waiting, return_exceptions=True)


def main() -> None:
    """Be the listener that the arguments describe."""
    parser = argparse.ArgumentParser(description="Records the results of a soak.")
    parser.add_argument("--member", action="append", required=True)
    parser.add_argument("--cluster-name", required=True)
    parser.add_argument("--job", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(_main(parser.parse_args()))


if __name__ == "__main__":
    main()
