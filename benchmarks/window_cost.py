"""`python -m benchmarks.window_cost`: CPU and bytes of windows in a worker, without a cluster.

Of an event and window function: adding it (the kernel, and its keys and values). Of an event: what the state of its
entity costs on top, read from an entry as the grid has it, and made one to write. Each batch is of as many entities as
events, the dearest case.
"""

from __future__ import annotations

import random
import statistics
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from gridscore.cli.output import print_json, print_table
from gridscore.features import EventDecoder
from gridscore.features.window_kernel import head_of
from gridscore.features.window_parts import Parts
from gridscore.features.windows import Windows
from gridscore.grid.copies import payload
from gridscore.grid.wire import json_data
from gridscore.job import parse_job
from gridscore.scoring.window_states import Entry, encode_entry

if TYPE_CHECKING:
    from gridscore.features import EventColumns

_JOB = """\
job: cost
events: events.cost
order_by: time
schema: {card: string, amount: float, merchant: string, time: {type: timestamp, unit: s}}
windows: {card: card}
features:
  a: sum(amount, card, "1h")
  b: count(card, "10m")
  c: mean(amount, card, "1d")
  d: seconds_since_last(card)
  e: 'seen(merchant, card, "30d")'
  f: max(amount, card, "1d")
model: cost
results: results.cost
"""


def _measure(payments: int, batch: int, rounds: int) -> dict[str, float]:
    """The cost at entities that have so many payments in their windows."""
    job, draw = parse_job(_JOB, "the benchmark's job"), random.Random(1)
    windows, decoder = Windows(job), EventDecoder(job)
    parts, began = Parts(job, windows.layouts, 0), 1.7e9

    def events(number: int) -> EventColumns:
        at = began + number * 86_400 / max(payments, 1)
        rows = [
            {"card": f"c{card}", "amount": draw.randrange(9_999) / 10, "merchant": f"m{draw.randrange(50)}", "time": at}
            for card in range(batch)
        ]
        return decoder.decode_all([msgspec.json.encode(row) for row in rows])

    states: list[dict[str, bytes]] = [{}]
    for number in range(payments):
        columns = events(number)
        states = windows.apply(columns, windows.inputs(columns), states)[1]
    add, read, write = list[float](), list[float](), list[float]()
    decode = msgspec.json.Decoder(Entry).decode
    clock, tag, names = time.process_time_ns, parts.tags[0], parts.series[0]
    values = [json_data(encode_entry(Entry(tag, 1, state, 1, names))) for state in states[0].values()]
    for number in range(rounds):
        columns = events(payments + number)
        times = [clock()]
        _, after = windows.apply(columns, windows.inputs(columns), states, list(range(batch)))
        times.append(clock())
        texts = [encode_entry(Entry(tag, 1, state, 1, names)) for state in after[0].values()]
        times.append(clock())
        for value in values:
            head_of(decode(payload(value)).state)
        times.append(clock())
        for took, (begin, end) in zip((add, write, read), pairwise(times), strict=True):
            took.append((end - begin) / batch / 1_000)
    return {
        "payments": payments,
        "batch": batch,
        "add_us_a_function": round(statistics.median(add) / windows.calls, 3),
        "write_us": round(statistics.median(write), 3),
        "read_us": round(statistics.median(read), 3),
        "state_bytes": round(statistics.mean(map(len, states[0].values()))),
        "entry_bytes": round(statistics.mean(map(len, texts))),
    }


def main(
    *,
    rounds: Annotated[int, typer.Option(min=3, max=1_000)] = 30,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure what windows cost a worker.

    Example: python -m benchmarks.window_cost
    """
    found = [_measure(payments, batch, rounds) for payments in (1, 24, 200) for batch in (1, 256, 4_096)]
    if as_json:
        print_json({"functions": 6, "found": found})
        return
    titles = ("PAYMENTS", "BATCH", "ADD µs A FUNCTION", "WRITE µs", "READ µs", "STATE BYTES", "ENTRY BYTES")
    print_table(titles, [tuple(each.values()) for each in found], empty="")


if __name__ == "__main__":
    typer.run(main)
