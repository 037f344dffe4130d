"""Windows with other keys than the events' on a real member: over the kill of a worker, scores are the history's."""

import asyncio
from collections import defaultdict

import numpy as np
import pandas as pd
import scoring

from gridscore.client import connect
from gridscore.features import offline_matrix
from gridscore.grid import transport
from gridscore.grid.management import first_config
from gridscore.job import parse_job
from gridscore.scoring.window_messages import answer_map, request_map
from gridscore.scoring.window_states import map_of

JOB = """\
job: {name}
events: events.{name}
order_by: time
schema: {{card: string, shop: int, amount: float, time: {{type: timestamp, unit: s}}}}
windows: {{card: card, shop: shop}}
features:
  amount: amount
  log_amount: sum(amount, card, "1h")
  age: seconds_since_last(card)
  share: amount / mean(amount, shop, last=5)
  home: count(shop, "1h", where=amount > 30)
model: {{name: {name}, alias: champion}}
results: results.{name}
late: late.{name}
"""
ROUNDS, CARDS = 10, 100


def rounds():
    """Events, each round with one of each card and shop, so that their order within it does not matter."""
    draw = np.random.default_rng(3)
    for number in range(ROUNDS):
        shops = draw.permutation(CARDS)
        yield {
            f"e{number}-{card}": {
                "card": f"c{card}",
                "shop": int(shops[card]),
                "amount": round(float(draw.gamma(2, 20)), 2),
                "time": 1.7e9 + number * 600 + card,
            }
            for card in range(CARDS)
        }


def late_events():
    """Events that are older than all others, by more than the lateness."""
    return {
        f"late{number}": {"card": f"c{number}", "shop": number, "amount": 1.0, "time": 1.6e9} for number in range(5)
    }


async def test_scores_are_those_of_the_history_though_a_worker_is_killed_and_nothing_is_left(cluster, unique):
    name, model = f"job-{unique}", scoring.booster()
    job, events = parse_job(JOB.format(name=name), "test"), list(rounds())
    found = defaultdict(set)
    maps = (map_of(name), request_map(name), answer_map(name), f"late.{name}")

    async def collect(client):
        async with await client.results(f"results.{name}", start="oldest") as stream:
            async for result in stream:
                found[result.key].add(result.score)

    async with connect(members=cluster.addresses, cluster_name=cluster.cluster_name) as client:
        await client.push_model(model, name, alias="champion")
        await client.submit(job)
        workers = [await scoring.start_worker(cluster, name) for _ in range(2)]
        collecting = asyncio.create_task(collect(client))
        try:
            for number, each in enumerate(events):
                await client.put_events(job.events, each)
                if number == ROUNDS // 2:
                    workers[0].kill()
                await scoring.until(lambda wanted=(number + 1) * CARDS: len(found) == wanted)
            await client.put_events(job.events, late_events())
            await scoring.until(lambda: len(found) == ROUNDS * CARDS + 5)
            late = [each.loads() for each in await (await client.grid.map(maps[3])).values()]
            assert {each["key"]: each["event"] for each in late} == late_events()
            assert all(set(each["late"]) == {"card", "shop"} and min(each["late"].values()) > 9e7 for each in late)
            assert (await first_config(client.grid)).map(maps[3]).expiry
            shown = await scoring.command(cluster, "status", name)
            assert f"late for windows (in `late.{name}`)" in " ".join(shown.stdout.split())
            sizes = [await transport.map_size(client.grid.client, each) for each in maps]
            assert sizes[0] > 2 * CARDS  # the states, and ledgers
            assert sizes[1] <= client.grid.partition_count
            shown = await scoring.command(cluster, "state", name, "c7")
            assert "sum(amount, card, '1h')" in shown.stdout
            checked = await scoring.command(cluster, "doctor")
            assert f"map {request_map(name)}: its journal holds" in checked.stdout
        finally:
            collecting.cancel()
            for process in workers:
                if process.returncode is None:
                    process.terminate()
                await process.wait()
        await client.cancel(name)

        async def wiped():
            done = await scoring.command(cluster, "wipe", name, "--results", "--events", "--yes")
            return done.exit_code == 0

        await scoring.until(wiped)
        assert not [each for each in maps if await client.grid.has_map(each)]

    for key in late_events():
        del found[key]
    history = pd.DataFrame([event for each in events for event in each.values()])
    matrix = offline_matrix(job, history)
    scores = scoring.predict(model, np.asarray(matrix.values)).astype(np.float32)
    expected = dict(zip([key for each in events for key in each], scores, strict=True))
    assert all(len(each) == 1 for each in found.values())
    assert {key: np.float32(next(iter(each))).tobytes() for key, each in found.items()} == {
        key: score.tobytes() for key, score in expected.items()
    }
