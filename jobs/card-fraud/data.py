"""Makes the data of this example, the same in every run: `python jobs/card-fraud/data.py -o data`.

500 cards, 60 merchants, and their purchases of 90 days. Two in a hundred are fraud, of three kinds: a stolen number
typed in far from home, a stolen card emptied at night, and small tries at merchants that are known for it. Some of what
looks like fraud is a holiday.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

CARDS, MERCHANTS, PURCHASES, DAYS = 500, 60, 30_000, 90
FRAUD = 0.02
BEGIN = pd.Timestamp("2026-01-01T00:00:00Z")
COUNTRIES = ["DE", "FR", "IT", "NL", "PL", "US"]
CATEGORIES = ["grocery", "fuel", "restaurant", "electronics", "jewellery", "games"]


def cards(draw: np.random.Generator) -> pd.DataFrame:
    """The lookup `card`, by the number's last digits."""
    opened = BEGIN - pd.to_timedelta(draw.integers(30, 3_000, CARDS), unit="D")
    return pd.DataFrame(
        {
            "card": [f"c{i:04}" for i in range(CARDS)],
            "country": draw.choice(COUNTRIES, CARDS, p=[0.75, 0.08, 0.05, 0.05, 0.05, 0.02]),
            "mean_amount": draw.lognormal(3.4, 0.5, CARDS).round(2),
            "opened": opened.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
    )


def merchants(draw: np.random.Generator) -> pd.DataFrame:
    """The lookup `merchant_record`."""
    return pd.DataFrame(
        {
            "merchant": [f"m{i:02}" for i in range(MERCHANTS)],
            "country": draw.choice(COUNTRIES, MERCHANTS, p=[0.7, 0.06, 0.06, 0.06, 0.06, 0.06]),
            "category": draw.choice(CATEGORIES, MERCHANTS),
            "fraud_rate": (draw.beta(1, 60, MERCHANTS)).round(4),
        }
    )


def purchases(draw: np.random.Generator, cards: pd.DataFrame, merchants: pd.DataFrame) -> pd.DataFrame:
    """The history, in the order of time, with the label `fraud`."""
    fraud = draw.random(PURCHASES) < FRAUD
    kind = np.where(fraud, draw.integers(1, 4, PURCHASES), 0)
    card = draw.integers(0, CARDS, PURCHASES)
    # People buy at home, mostly; who typed in a stolen number buys wherever it works.
    at_home = {country: np.flatnonzero(merchants["country"] == country) for country in COUNTRIES}
    everywhere = np.arange(MERCHANTS)
    travels = (draw.random(PURCHASES) < 0.04) | (kind == 1)
    risky = np.argsort(merchants["fraud_rate"].to_numpy())[-10:]
    merchant = np.array(
        [
            draw.choice(risky if k == 3 else everywhere if away or not len(at_home[home]) else at_home[home])
            for k, away, home in zip(kind, travels, cards["country"].to_numpy()[card], strict=True)
        ]
    )
    usual = cards["mean_amount"].to_numpy()[card]
    factor = np.select([kind == 1, kind == 2, kind == 3], [4.0, 9.0, 0.15], 1.0)
    hour = np.where(kind == 2, draw.normal(2, 1.5, PURCHASES) % 24, draw.normal(15, 4, PURCHASES) % 24)
    entry = draw.choice(["contactless", "chip", "stripe", "manual"], PURCHASES, p=[0.6, 0.32, 0.03, 0.05])
    entry = np.where(kind == 1, "manual", np.where(kind == 2, "contactless", entry))
    time = BEGIN + pd.to_timedelta(draw.integers(0, DAYS, PURCHASES) * 86_400 + (hour * 3_600).astype(int), unit="s")
    frame = pd.DataFrame(
        {
            "purchase": "",
            "card": cards["card"].to_numpy()[card],
            "merchant": merchants["merchant"].to_numpy()[merchant],
            "amount": (usual * factor * draw.lognormal(0, 0.5, PURCHASES)).round(2),
            "entry": entry,
            "time": time,
            "fraud": fraud.astype(int),
        }
    ).sort_values("time", ignore_index=True)
    frame["purchase"] = [f"h{i:06}" for i in range(PURCHASES)]
    frame["time"] = frame["time"].dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    return frame


def write(folder: Path) -> dict[str, int]:
    """Write the tables to a folder; returns how many rows each has."""
    draw = np.random.default_rng(2026)
    of_cards, of_merchants = cards(draw), merchants(draw)
    tables = {
        "lookups/card.csv": of_cards,
        "lookups/merchant_record.csv": of_merchants,
        "history.csv": purchases(draw, of_cards, of_merchants),
    }
    (folder / "lookups").mkdir(parents=True, exist_ok=True)
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
