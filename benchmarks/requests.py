"""Requests: `POST /score` of `gridscore serve` beside FastAPI with a prediction a request, asked by `wrk`.

`python -m benchmarks.requests` starts a member and both servers, and asks them in turn: same events, same lookups, same
model, 64 connections that each have one request under way. It needs `wrk` (Debian's package of that name).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
import statistics
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx
import numpy as np

from benchmarks.crew import where
from benchmarks.ground import ground
from benchmarks.work import WORKS
from gridscore.errors import GridscoreError
from gridscore.job import Jobs
from gridscore.leash import LeashedProcess
from gridscore.models import Registry

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.ground import Ground

CONNECTIONS = 64
EVENTS = 1_000
_WAIT_SECONDS = 60.0
_LUA = """\
local bodies, number = {}, 0
for line in io.lines("%s") do bodies[#bodies + 1] = line end
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
request = function()
  number = number %% #bodies + 1
  return wrk.format(nil, nil, nil, bodies[number])
end
"""
_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


@dataclass(frozen=True, slots=True)
class Figures:
    """What `wrk` has measured in one run; times in milliseconds."""

    rate: float
    p50: float
    p99: float


async def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=10, help="of each run")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed: apt install wrk")
    async with ground(WORKS["card"], EVENTS, members=1, heap="512m", progress=print) as place:
        bed = place.bed
        await Registry(bed.grid).push(place.booster, bed.work.job.model.name, alias="champion")
        await Jobs(bed.grid).submit(bed.work.job)
        at = where(bed.cluster_name, bed.addresses)
        with (
            LeashedProcess("gridscore.cli", ["serve", "--port", "0", *at], bed.folder / "serve.log") as ours,
            LeashedProcess("benchmarks.systems.http_server", [str(bed.files)], bed.folder / "fastapi.log") as theirs,
        ):
            address, port = await said(ours, r"Serving at (\S+)"), await said(theirs, r"port (\d+)")
            addresses = {
                "gridscore serve": f"{address}/score/{bed.work.job.name}",
                "FastAPI": f"http://127.0.0.1:{port}/score",
            }
            for address in addresses.values():
                await _check(address, place)
            (bed.folder / "bodies").write_bytes(b"\n".join(place.texts))
            script = bed.folder / "post.lua"
            script.write_text(_LUA % (bed.folder / "bodies"), encoding="utf-8")
            await _compare(addresses, script, options.seconds, options.rounds)


async def _compare(addresses: dict[str, str], script: Path, seconds: int, rounds: int) -> None:
    found: dict[tuple[str, int], list[Figures]] = {}
    for connections in (CONNECTIONS, 1):
        for number in range(rounds):
            for name, address in addresses.items():
                load = os.getloadavg()[0]
                figures = await asyncio.to_thread(_wrk, address, script, connections, seconds)
                found.setdefault((name, connections), []).append(figures)
                print(f"{connections:3} connections, round {number + 1}: {name:16} {figures}, load before {load:.1f}")
    print("\nmedians:")
    for (name, connections), each in found.items():
        rate, p50, p99 = (statistics.median(getattr(one, field) for one in each) for field in ("rate", "p50", "p99"))
        print(f"{connections:3} connections, {name:16} {rate:10,.0f} requests/s, p50 {p50:.2f} ms, p99 {p99:.2f} ms")
    ours, theirs = ([one.rate for one in found[name, CONNECTIONS]] for name in addresses)
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    print(f"ratio of rates, by round: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")


def _wrk(address: str, script: Path, connections: int, seconds: int) -> Figures:
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(script), address]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in said or "Socket errors" in said:
        raise GridscoreError(f"Not all requests were answered:\n{said}")
    times = {
        percent: float(value) * _UNITS[unit] for percent, value, unit in re.findall(r"(\d+)% +([\d.]+)(\w+)", said)
    }
    [rate] = re.findall(r"Requests/sec: +([\d.]+)", said)
    return Figures(float(rate), times["50"], times["99"])


async def said(process: LeashedProcess, pattern: str) -> str:
    deadline = time.monotonic() + _WAIT_SECONDS
    while (found := re.search(pattern, process.log_file.read_text(encoding="utf-8"))) is None:
        if process.exit_code is not None or time.monotonic() > deadline:
            raise GridscoreError(f"A server does not come up:\n{process.last_lines()}")
        await asyncio.sleep(0.1)
    return found[1]


async def _check(address: str, place: Ground) -> None:
    """Wait until a server scores, and compare its scores with those that were computed offline."""
    deadline = time.monotonic() + _WAIT_SECONDS
    headers = {"Content-Type": "application/json"}
    async with httpx.AsyncClient() as http:
        while (await http.post(address, content=place.texts[0], headers=headers)).status_code != 200:  # OK
            if time.monotonic() > deadline:
                raise GridscoreError(f"{address} does not score.")
            await asyncio.sleep(0.1)
        answers = [await http.post(address, content=text, headers=headers) for text in place.texts[:100]]
    scores = np.array([answer.json()["score"] for answer in answers], np.float32)
    if not np.array_equal(scores, place.expected[:100]):
        raise GridscoreError(f"{address} gives other scores than were computed offline.")


if __name__ == "__main__":
    asyncio.run(main())
