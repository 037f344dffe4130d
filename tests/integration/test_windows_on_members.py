"""Windows on a real member: over a load, a killed worker and an update, scores are those of a history, bit for bit."""

import asyncio
import json
from collections import defaultdict

import numpy as np
import pandas as pd
import pytest
import scoring

from gridscore.client import connect
from gridscore.features import offline_matrix
from gridscore.job import parse_job
from gridscore.scoring.window_states import keep_seconds, map_of

JOB = """\
job: {name}
events: events.{name}
event_key: card
order_by: time
schema: {{card: string, merchant: string, amount: float, time: {{type: timestamp, unit: s}}}}
windows: {{card: card}}
features:
  amount: amount
  log_amount: sum(amount, card, "1h")
  age: seconds_since_last(card)
  share: amount / mean(amount, card, last=5)
  home: not seen(merchant, card, "1d")
model: {{name: {name}, alias: champion}}
results: results.{name}
"""
ROUNDS, CARDS, LOADED = 30, 100, 5


def rounds():
    draw = np.random.default_rng(3)
    for number in range(ROUNDS):
        yield {
            f"c{card}": {
                "card": f"c{card}",
                "merchant": f"m{draw.integers(0, 20)}",
                "amount": round(float(draw.gamma(2, 20)), 2),
                "time": 1.7e9 + number * 600 + card,
            }
            for card in range(CARDS)
        }


async def test_scores_with_windows_are_those_of_the_history_though_a_worker_is_killed(cluster, unique, tmp_path):
    name, model = f"job-{unique}", scoring.booster()
    job, events = parse_job(JOB.format(name=name), "test"), list(rounds())
    found = defaultdict(dict)

    async def collect(client):
        async with await client.results(f"results.{name}", start="oldest") as stream:
            async for result in stream:
                found[result.key].setdefault(result.value["sequence"], set()).add(result.score)

    async with connect(members=cluster.addresses, cluster_name=cluster.cluster_name) as client:
        await client.push_model(model, name, alias="champion")
        await client.submit(job, suspended=True)
        file = tmp_path / "history.jsonl"
        file.write_text("".join(json.dumps(event) + "\n" for each in events[:LOADED] for event in each.values()))
        for new in (CARDS, 0):
            loaded = await scoring.command(cluster, "state", "load", name, str(file))
            assert f"{CARDS} states ({new} new) are in the grid" in loaded.stdout, loaded.output
        await client.jobs.resume(name)
        first = second = await scoring.start_worker(cluster, name)
        try:
            collecting = asyncio.create_task(collect(client))
            for each in events[LOADED : ROUNDS // 2]:
                await client.put_events(job.events, each)
            await scoring.until(lambda: sum(map(len, found.values())) >= CARDS)
            first.kill()
            second = await scoring.start_worker(cluster, name)
            # Windows stay, though there is one more.
            more = parse_job(JOB.replace("age: s", 'age: 0 * count(card, "3h") + s').format(name=name), "test")
            with pytest.warns(UserWarning, match="these begin anew, empty: `count"):
                assert (await client.submit(more, update=True)).revision == 2
            for each in events[ROUNDS // 2 :]:
                await client.put_events(job.events, each)
            await scoring.until(lambda: sum(map(len, found.values())) == (ROUNDS - LOADED) * CARDS)
            states = await client.grid.map(map_of(name))
            assert await states.size() == CARDS
            view = await states.get_entry_view("c7")
            assert view.ttl == keep_seconds(job) * 1000
            shown = await scoring.command(cluster, "state", name, "c7")
            assert "sum(amount, card, '1h')" in shown.stdout
            assert f"c7 in `{map_of(name)}`: newest event at 2023-11-15T03:03:27.000+00:00" in shown.stdout
        finally:
            collecting.cancel()
            for process in (first, second):
                if process.returncode is None:
                    process.kill()
                await process.wait()

    history = pd.DataFrame([event for each in events for event in each.values()])
    matrix = offline_matrix(job, history)
    scores = scoring.predict(model, np.asarray(matrix.values)).astype(np.float32)
    expected = {f"c{card}": scores[card::CARDS][LOADED:] for card in range(CARDS)}
    for card, by_sequence in found.items():
        got = [by_sequence[sequence] for sequence in sorted(by_sequence)]
        assert all(len(each) == 1 for each in got)
        assert np.array([next(iter(each)) for each in got], np.float32).tobytes() == expected[card].tobytes()
