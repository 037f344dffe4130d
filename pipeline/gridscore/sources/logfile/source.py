"""The source of log files: events from their lines, as files grow, are rotated, truncated and packed.

The key of an event follows from the file's identity and the line's position in it, or from fields. The grid keeps the
position up to which it has everything. So a line comes once, whatever happens to the name of its file.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from watchfiles import awatch

from gridscore.errors import UsageError
from gridscore.sources.base import Batch, Poison, SourceInterruptedError, key_of
from gridscore.sources.logfile.files import LogFiles
from gridscore.sources.logfile.formats import seconds_of_time
from gridscore.sources.logfile.positions import FilePositions
from gridscore.sources.logfile.tail import CHUNK

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gridscore.grid import Grid
    from gridscore.sources.logfile.formats import Parsed
    from gridscore.sources.logfile.settings import LogfileSourceSettings
    from gridscore.sources.logfile.tail import Record, Tail

_log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0  # pause between two looks at files whose changes the system does not report, as on network drives
GONE_SECONDS = 30.0  # how long to read a file that is out of sight: some programs write to the old one for a while
_FAIR_CHUNKS = 16
_PACED_CHUNK = 1 << 12  # small, as a position is kept after each, and a replay may be slow


class LogfileSource:
    """Reads log files. See `gridscore.sources.base.Source`."""

    def __init__(self, grid: Grid, name: str, settings: LogfileSourceSettings) -> None:
        self._settings = settings
        self._name = name
        self._positions = FilePositions(grid, name)
        self._files: LogFiles | None = None
        self._held = threading.Lock()  # by the reading thread, which cannot be stopped, only waited for
        self._changed = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        self._pace = _Pace(settings)
        self._chunk = _PACED_CHUNK if self._pace.speed else CHUNK
        self._idle: dict[str, float] = {}

    async def open(self) -> None:
        settings = self._settings
        self._files = LogFiles(settings, await self._positions.load())
        tails = await self._in_thread(self._files.scan)
        if not tails and not self._files.positions and not self._files.problems:
            patterns = ", ".join(settings.path)
            if settings.until_end:
                raise UsageError(f"There is nothing to read in {patterns}.", "Name files, or patterns: /var/log/*.log.")
            _log.warning("There is nothing to read in %s yet", patterns, extra={"action": "log_none"})
        for position in self._files.positions.values():
            if settings.start == "latest" and not position.at:
                await self._positions.save(position)
        if not settings.until_end:
            self._watch = asyncio.create_task(self._follow_changes())

    @property
    def progress(self) -> tuple[int, int] | None:
        """Bytes on disk that have been read, and that there are; None if it reads without end."""
        return self._files.progress if self._files is not None and self._settings.until_end else None

    async def batches(self) -> AsyncIterator[Batch]:
        files = self._opened
        while True:
            self._changed.clear()
            some = False
            for tail in await self._in_thread(files.scan):
                async for batch in self._read(tail):
                    some = True
                    yield batch
            if files.problems:
                yield Batch((), [Poison(origin, origin, b"", error) for origin, error in files.problems])
                files.problems.clear()
            if some:
                continue
            if self._settings.until_end:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), LOOK_SECONDS)

    async def acknowledge(self, batch: Batch) -> None:
        if batch.position is not None:
            await self._positions.save(batch.position)

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        if self._files is not None:
            await self._in_thread(self._files.close)

    @property
    def _opened(self) -> LogFiles:
        assert self._files is not None  # noqa: S101 -- the runner opens first
        return self._files

    async def _in_thread(self, do: Any, *arguments: Any) -> Any:
        def held() -> Any:
            with self._held:
                return do(*arguments)

        try:
            return await asyncio.to_thread(held)
        except OSError as error:  # a failing disk, or a network drive that is away
            raise SourceInterruptedError(f"The log files cannot be read: {error}") from error

    # ------------------------------------------------------------------ reading

    async def _read(self, tail: Tail) -> AsyncIterator[Batch]:
        """What a file has now, but not too much of it while others wait."""
        until_end, count = self._settings.until_end, 0
        while until_end or self._pace.speed or count < _FAIR_CHUNKS:
            batch, times = await self._in_thread(self._next, tail, until_end)
            if batch is None:
                break
            count += 1
            if not self._pace.speed:
                yield batch
                continue
            async for part in self._pace.parts(batch, times):
                yield part
        if count:
            self._idle.pop(tail.identity, None)
            return
        if tail.broken:
            if until_end:
                self._opened.problems.append((str(tail.path), f"The file cannot be unpacked: {tail.broken}"))
            await self._in_thread(self._opened.break_off, tail)
        elif tail.finished or (tail.gone and until_end):
            await self._in_thread(self._opened.drop, tail)
        elif tail.gone:
            since = self._idle.setdefault(tail.identity, time.monotonic())
            if time.monotonic() - since >= GONE_SECONDS:
                batch, _ = await self._in_thread(self._next, tail, True)
                await self._in_thread(self._opened.drop, tail)
                del self._idle[tail.identity]
                if batch is not None:
                    yield batch

    def _next(self, tail: Tail, to_end: bool) -> tuple[Batch | None, list[float | None]]:
        """In a thread: the next batch of a file with the times of its entries; None if there is nothing now."""
        was_finished, before = tail.finished, tail.offset
        records = tail.read(self._chunk, to_end=to_end)
        if not records and tail.offset == before and tail.finished == was_finished:
            return None, []
        entries: list[tuple[Any, bytes]] = []
        poison: list[Poison] = []
        times: list[float | None] = []
        parse, names, prefix = tail.form.parse, self._settings.key, f"{tail.identity}-"
        time_field = self._settings.time_field
        for record in records:
            try:
                fields, text = parse(record.raw) if not record.too_long else self._too_long()
                entries.append((key_of(fields, names) if names else f"{prefix}{record.offset}", text))
            except ValueError as error:
                poison.append(self._poison(tail, record, str(error)))
                continue
            if time_field is not None:
                times.append(seconds_of_time(fields.get(time_field)))
        return Batch(entries, poison, tail.position), times

    def _too_long(self) -> Parsed:
        raise ValueError(f"It is longer than {self._settings.max_event:,} bytes; this is its beginning.")

    def _poison(self, tail: Tail, record: Record, error: str) -> Poison:
        # Name and line number come again after each rotation; identity and offset never do.
        origin = f"{tail.path}:{record.line} ({tail.identity}@{record.offset})"
        return Poison(origin, f"{tail.identity}-{record.offset}", record.raw, error)

    # ------------------------------------------------------------------ waiting for more

    async def _follow_changes(self) -> None:
        """Wake the reader as soon as the system reports a change. It also looks by itself, but less often."""
        try:
            while True:
                folders = self._folders()
                if not folders:
                    await asyncio.sleep(LOOK_SECONDS)
                    continue
                recursive = any("**" in pattern for pattern in self._settings.path)
                async for _ in awatch(*folders, watch_filter=None, debounce=100, step=10, recursive=recursive):
                    self._changed.set()
        except (OSError, RuntimeError) as error:  # too many watches, or a file system without them
            _log.info("The system does not report changes of files, looking every %g s: %s", LOOK_SECONDS, error)

    def _folders(self) -> set[Path]:
        """Existing folders in which to look for files."""
        folders = set()
        for pattern in self._settings.path:
            path = Path(pattern).expanduser()
            fixed = path.parent
            while any(mark in str(fixed) for mark in "*?["):
                fixed = fixed.parent
            if fixed.is_dir():
                folders.add(fixed)
        return folders


class _Pace:
    """Replays a history at its own pace, or faster. `speed`: how many times faster; 0 for as fast as possible."""

    def __init__(self, settings: LogfileSourceSettings) -> None:
        self.speed = 0.0 if settings.replay_speed in (None, "max") else float(settings.replay_speed or 0)
        self._began = self._first = 0.0
        self._going = False

    async def parts(self, batch: Batch, times: list[float | None]) -> AsyncIterator[Batch]:
        """A batch in parts, each at its time; the last has the position."""
        due: list[Any] = []
        for entry, at in zip(batch.entries, times, strict=True):
            delay = 0.0 if at is None else self._delay(at)
            if delay > 0:
                if due:
                    yield Batch(due)
                    due = []
                await asyncio.sleep(delay)
            due.append(entry)
        yield Batch(due, batch.poison, batch.position)

    def _delay(self, at: float) -> float:
        """Seconds until the time of an event."""
        now = time.monotonic()
        if not self._going:
            self._going, self._began, self._first = True, now, at
        return self._began + (at - self._first) / self.speed - now
