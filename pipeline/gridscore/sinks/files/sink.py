"""The file sink: results as Parquet or JSON lines, in files that appear only when they are complete.

A delivery is a file: the runner collects results until there are enough, or until it is time. The file is written under
a hidden name, forced to disk, and renamed; only then may the offsets that it covers be committed. So readers of the
folder always see whole files, and a crash loses nothing: uncommitted results come again in another file, under the same
key, epoch and sequence.

A file that a process wrote after its lease had ended does no harm: each of its rows says how new it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import errno
import gzip
import os
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gridscore.errors import SettingsError
from gridscore.job import Jobs
from gridscore.job.types import seconds_of
from gridscore.sinks.base import SinkInterruptedError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from typing import BinaryIO

    import pyarrow as pa

    from gridscore.grid import Grid
    from gridscore.sinks.base import Delivered, Delivery, Refused
    from gridscore.sinks.files.settings import FilesSinkSettings

# Hidden files of killed processes are removed after this time; no file takes as long to write.
_LEFT_OVER_SECONDS = 3600.0

_HOPELESS = frozenset((errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG))

_OWN = ("key", "sink_epoch", "sink_sequence")

_encode = msgspec.json.Encoder().encode


class FilesSink:
    """Delivers into a folder.

    `grid`: the connection; the job that writes the results knows the types of event fields in them; `name`: of the
    sink; the names of its files begin with it.
    """

    def __init__(self, grid: Grid, name: str, settings: FilesSinkSettings) -> None:
        self._grid, self._name, self._settings = grid, name, settings
        self._folder = Path(settings.folder)
        self._types: dict[str, str] = {}
        self.identity = ""
        self.max_results = settings.max_results
        self.linger = seconds_of(settings.max_age)

    async def open(self) -> None:
        """Make the folder, and see whether a file can be written there."""
        for job in await Jobs(self._grid).all():
            if job.job.results == self._settings.results:
                self._types = {name: job.job.schema_[name].type for name in job.job.result.include}
        await self._do(self._prepare)

    async def taken(self, partitions: Mapping[int, str]) -> Mapping[int, int]:
        """Do nothing: earlier files stay."""
        del partitions
        return {}

    async def dropped(self, partitions: Collection[int]) -> None:
        """Do nothing: what was collected of them is not in any file."""

    async def deliver(self, delivery: Delivery) -> Sequence[Refused]:
        """Write a file; it is complete, and on the disk, when this returns."""
        await self._do(lambda: self._write_file(delivery.results))
        return ()

    async def close(self) -> None:
        """Do nothing: nothing is open between two files."""

    async def _do(self, work: Callable[[], None]) -> None:
        """Do something with files in a thread.

        Raises SinkInterruptedError if it failed for now: the disk is full, or a network drive is away; SettingsError if
        it can never succeed: this is not a folder, or not ours to write.
        """
        task = asyncio.get_running_loop().run_in_executor(None, work)
        try:
            await asyncio.shield(task)
        except OSError as error:
            text = f"`{self._folder}` cannot be written: {os.strerror(error.errno) if error.errno else error}."
            if error.errno in _HOPELESS or isinstance(error, FileExistsError):
                raise SettingsError(text, "Give a folder that this user may write, with --folder.") from None
            raise SinkInterruptedError(text, "Is the disk full, or a network drive away?") from None

    def _prepare(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        before = time.time() - _LEFT_OVER_SECONDS
        for left in self._folder.glob(f".{self._name}-*.part"):
            with contextlib.suppress(FileNotFoundError):  # another process removes them, too
                if left.stat().st_mtime < before:
                    left.unlink()
        probe = self._folder / f".{self._name}-{uuid.uuid4().hex}.part"
        try:
            with probe.open("xb") as file:
                os.fsync(file.fileno())
        finally:
            probe.unlink(missing_ok=True)

    def _write_file(self, results: Sequence[Delivered]) -> None:
        now = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%S%f")[:-3]
        # Sorted by time, and unique.
        stem = f"{self._name}-{now}-{uuid.uuid4().hex[:8]}"
        hidden = self._folder / f".{stem}.part"
        try:
            with hidden.open("xb") as file:
                if self._settings.format == "parquet":
                    ending = "parquet"
                    _write_parquet(file, _table(results, self._types))
                else:
                    ending = "jsonl.gz" if self._settings.gzip else "jsonl"
                    _write_lines(file, results, compress=self._settings.gzip)
                file.flush()
                os.fsync(file.fileno())
            hidden.rename(self._folder / f"{stem}.{ending}")
        finally:
            hidden.unlink(missing_ok=True)
        _sync_folder(self._folder)


def _sync_folder(folder: Path) -> None:
    """Force the new name of a file to disk; Windows does so by itself."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# ---------------------------------------------------------------------- JSON lines


def _write_lines(file: BinaryIO, results: Sequence[Delivered], *, compress: bool) -> None:
    lines = b"".join(map(_line, results))
    file.write(gzip.compress(lines, compresslevel=6) if compress else lines)


def _line(result: Delivered) -> bytes:
    value, text = result.value, result.text
    if not value or b"\n" in text or text[:1] != b"{" or not value.keys().isdisjoint(_OWN):
        # Another program wrote it, over several lines or with our names.
        own = {"key": result.key, "sink_epoch": result.epoch, "sink_sequence": result.sequence}
        return _encode({**own, **{name: each for name, each in value.items() if name not in own}}) + b"\n"
    return b'{"key":%b,"sink_epoch":%d,"sink_sequence":%d,%b\n' % (
        _encode(result.key),
        result.epoch,
        result.sequence,
        text[1:],
    )


# ---------------------------------------------------------------------- Parquet


def _write_parquet(file: BinaryIO, table: pa.Table) -> None:
    import pyarrow.parquet as pq

    pq.write_table(table, file, compression="zstd")


_RESULT = {
    "score": "score",
    "decision": "string",
    "model": "string",
    "version": "int",
    "revision": "int",
    "sequence": "int",
    "epoch": "int",
    "scored_at": "time",
}


def _table(results: Sequence[Delivered], types: Mapping[str, str]) -> pa.Table:
    """Results as columns; event fields with the types that the job says, or as they are found."""
    import pyarrow as pa

    values = [_flat(result.value) for result in results]

    def column(name: str, kind: str | None) -> pa.Array:
        return _column([value.get(name) for value in values], kind)

    columns = {
        "key": pa.array([str(result.key) for result in results], pa.string()),
        **{name: column(name, kind) for name, kind in _RESULT.items()},
        "sink_epoch": pa.array([result.epoch for result in results], pa.int64()),
        "sink_sequence": pa.array([result.sequence for result in results], pa.int64()),
    }
    for name in dict.fromkeys([*types, *(name for value in values for name in value)]):
        if name not in columns and name != "json":
            columns[name] = column(name, types.get(name))
    columns["json"] = pa.array([result.text.decode(errors="replace") for result in results], pa.string())
    return pa.table(columns)


def _flat(value: dict[str, Any]) -> dict[str, Any]:
    """The result with a field for each feature that it repeats."""
    features = value.get("features")
    if not isinstance(features, dict):
        return value
    rest = {name: each for name, each in value.items() if name != "features"}
    return rest | {f"features.{name}": each for name, each in features.items()}


def _column(values: list[Any], kind: str | None) -> pa.Array:
    """A column, without the values that are not of its kind."""
    import pyarrow as pa

    if kind is None:
        found = {type(value) for value in values} - {type(None)}
        kind = "bool" if found == {bool} else "float" if found and found <= {int, float} else "string"
    if kind == "score" and any(type(value) is list for value in values):  # of a model with several outputs
        return pa.array(map(_numbers, values), pa.list_(pa.float64()))
    if kind in ("float", "score"):
        return pa.array(map(_number, values), pa.float64())
    if kind == "bool":
        return pa.array([value if type(value) is bool else None for value in values], pa.bool_())
    if kind in ("int", "time"):
        fitting = [value if type(value) is int and -(2**63) <= value < 2**63 else None for value in values]
        return pa.array(fitting, pa.int64() if kind == "int" else pa.timestamp("ms", "UTC"))
    texts = [value if value is None or type(value) is str else _encode(value).decode() for value in values]
    return pa.array(texts, pa.string())


def _number(value: Any) -> float | None:
    try:
        return float(value) if type(value) in (int, float) else None
    except OverflowError:  # a whole number with hundreds of digits
        return None


def _numbers(value: Any) -> list[float | None] | None:
    fits = type(value) is list and {type(each) for each in value} <= {int, float, type(None)}
    return list(map(_number, value)) if fits else None
