"""Runs in a container beside the others: puts payments, and keeps a ledger of what came of each; SIGTERM asks for it.

After SIGUSR1 it puts a tenth as many, after SIGUSR2 as many again.

It is given nothing of ours but the client, the job file, and what training and offline scoring say.
"""

import asyncio
import json
import signal
import sys
from collections import Counter

import numpy as np
import pandas as pd
import xgboost

from gridscore import connect, load_job, offline_matrix

KINDS = [{"customer": name, "amount": amount, "country": "DE"} for name in ("ann", "ida") for amount in (5.8, 990.0)]
SECONDS, SLOWER, BATCH, PATIENCE = 0.05, 0.5, 20, 60


async def main(run: str, model: str) -> None:
    stop, slower = asyncio.Event(), asyncio.Event()
    for number, call in (signal.SIGTERM, stop.set), (signal.SIGUSR1, slower.set), (signal.SIGUSR2, slower.clear):
        asyncio.get_running_loop().add_signal_handler(number, call)
    job = load_job("/job/job.yaml")
    learnt = offline_matrix(job, "/job/history.csv", "/job/lookups").categories
    matrix = offline_matrix(job, pd.DataFrame(KINDS), "/job/lookups", learnt)
    rows = xgboost.DMatrix(matrix.values, feature_names=list(matrix.names))
    expected = xgboost.Booster(model_file=model).predict(rows)
    seen: Counter[str] = Counter()
    wrong = sent = 0
    async with connect() as client:
        results = await client.results("results.payments")

        async def read() -> None:
            nonlocal wrong
            async for result in results:
                mine, _, number = result.key.partition("-")
                if mine == run:
                    seen[result.key] += 1
                    wrong += np.float32(result.score) != expected[int(number) % len(KINDS)]

        reading = asyncio.create_task(read())
        while not stop.is_set():
            numbers = range(sent, sent + BATCH)
            await client.put_events("events.payments", {f"{run}-{n}": KINDS[n % len(KINDS)] for n in numbers})
            sent += BATCH
            print(f"{sent} sent, {len(seen)} scored", flush=True)
            await asyncio.sleep(SLOWER if slower.is_set() else SECONDS)
        try:
            async with asyncio.timeout(PATIENCE):
                while len(seen) < sent:
                    await asyncio.sleep(0.1)
        except TimeoutError:
            pass
        reading.cancel()
    twice = sum(count - 1 for count in seen.values())
    print(json.dumps({"sent": sent, "lost": sent - len(seen), "wrong": int(wrong), "twice": twice}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
