"""Makes the data of this example, the same in every run: `python jobs/machine-health/data.py -o data`.

The machines are made up. A crack grows in the bearing of each as Paris' law has it, faster the longer it is and the
more the machine has to do; the machine fails when it is through. Sensors see the crack only dimly, through noise, load
and the warmth of the day.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

TAUGHT, LATER = 80, 12
MOST_HOURS = 800
KNOWN_HOURS = 120.0
"""Remaining hours above which nobody can tell how many there are: the label is never more."""

BEGIN = pd.Timestamp("2025-01-01T00:00:00Z")


def readings(draw: np.random.Generator, machines: int, prefix: str = "m") -> pd.DataFrame:
    """A reading an hour of each machine until it fails, in the order of time, with the label `remaining`."""
    crack = 0.03 * draw.lognormal(0, 0.25, machines)
    weakness = 0.10 * draw.lognormal(0, 0.2, machines)
    usual = draw.uniform(0.6, 0.95, machines)
    begin = draw.integers(0, 200, machines)
    names = np.array([f"{prefix}{number:04}" for number in range(machines)])
    load, hours = usual.copy(), []
    for hour in range(MOST_HOURS):
        load = np.clip(usual + 0.8 * (load - usual) + draw.normal(0, 0.06, machines), 0.2, 1.2)
        day = np.sin(2 * np.pi * (begin + hour) / 24)
        noise = draw.normal(size=(3, machines))
        second = draw.integers(0, 600, machines)
        running = crack < 1
        hours.append(
            pd.DataFrame(
                {
                    "machine": names,
                    "time": BEGIN + pd.to_timedelta((begin + hour) * 3_600 + second, unit="s"),
                    "hours": hour,
                    "load": load.round(3),
                    "vibration": (1.2 + 5 * crack * load + 0.5 * np.abs(noise[0])).round(3),
                    "temperature": (38 + 20 * load + 25 * crack**2 + 3 * day + 1.5 * noise[1]).round(2),
                    "pressure": np.where(draw.random(machines) < 0.02, np.nan, 6 - crack + 0.2 * noise[2]).round(3),
                }
            )[running]
        )
        crack = np.minimum(crack + weakness * load**3 * crack**1.5, 1.0)
        if not running.any():
            break
    frame = pd.concat(hours).sort_values(["time", "machine"], ignore_index=True)
    left = frame.groupby("machine")["hours"].transform("max") - frame["hours"]
    frame["remaining"] = np.minimum(left, KNOWN_HOURS)
    frame["time"] = frame["time"].dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    return frame


def write(folder: Path) -> dict[str, int]:
    """Write the tables to a folder; returns how many rows each has."""
    draw = np.random.default_rng(2026)
    tables = {"history.csv": readings(draw, TAUGHT), "later.csv": readings(draw, LATER, "n")}
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_csv(folder / name, index=False)
    return {name: len(table) for name, table in tables.items()}


def main() -> None:
    """Make the data from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("data"), help="the folder to write to")
    folder = parser.parse_args().output
    for name, rows in write(folder).items():
        print(f"{folder / name}: {rows:,} rows")


if __name__ == "__main__":
    main()
