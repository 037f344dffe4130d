"""All members die at once under load; a new cluster is restored, and whatever was read has its result outside."""

import asyncio
import json
from collections import Counter
from contextlib import ExitStack, closing

import numpy as np
import pytest
import scoring

from gridscore.client import connect
from gridscore.errors import UsageError
from gridscore.grid.member import Cluster
from gridscore.job import parse_job
from gridscore.leash import LeashedProcess
from gridscore.operations.restore_points import Points
from gridscore.operations.window_state import state_of

# A window that no score depends on, so that events which come twice change none.
WINDOWS = {
    "lookups:": "order_by: time\nlateness: 1d\nwindows: {{user: user}}\nlookups:",
    "  amount: amount\n": '  amount: amount + 0 * count(user, "30d")\n',
    "  country: string?\n": "  country: string?\n  time: {{type: timestamp, unit: s}}\n",
}
BEFORE, AFTER = 4_000, 1_000


def job_of(name):
    text = scoring.JOB
    for old, new in WINDOWS.items():
        assert old in text
        text = text.replace(old, new)
    return parse_job(text.format(name=name, mode="copy"), "test")


def newest_point(place):
    """None if there is none yet."""
    try:
        with closing(Points.open(place)) as points:
            return points.read() if points.numbers() else None
    except UsageError:
        return None


def delivered(folder):
    """Scores by key, of all results that the sink's files have."""
    found = {}
    for path in folder.glob("*.jsonl"):
        for line in path.read_text().splitlines():
            result = json.loads(line)
            found.setdefault(result["key"], set()).add(result["score"])
    return found


class Feed:
    """A log and a topic that are written to all the time, in turns, and what they say."""

    def __init__(self, path, kafka, topic):
        self.path, self._kafka, self._topic = path, kafka, topic
        self.events = {}

    async def write(self, count, pause=0.0):
        for begin in range(len(self.events), len(self.events) + count, 100):
            new = {
                key: {**event, "time": 1.7e9 + number}
                for number, (key, event) in enumerate(scoring.events(100, begin).items(), begin)
            }
            lines = [json.dumps({**event, "id": key}) for key, event in new.items()]
            if begin % 200:
                await asyncio.to_thread(self._kafka.produce, self._topic, [(None, line.encode()) for line in lines])
            else:
                with self.path.open("a") as file:
                    file.writelines(line + "\n" for line in lines)
            self.events |= new
            await asyncio.sleep(pause)


@pytest.mark.parametrize("kind", ["folder", "postgres"])
async def test_all_members_die_at_once_and_all_that_was_read_has_its_result(kind, kafka, database, unique, tmp_path):
    name, results = f"job-{unique}", tmp_path / "results"
    place = str(tmp_path / "points") if kind == "folder" else database
    topic = kafka.create(f"events-{unique}")
    feed, job = Feed(tmp_path / "app.log", kafka, topic), job_of(name)
    with Cluster.start(2, port=0, heap="384m", register=False) as own, ExitStack() as stack:
        where = ("--members", own.addresses[0], "--members", own.addresses[1], "--cluster-name", own.cluster_name)
        sink = ("sink", "files", "--from", f"results.{name}", "--folder", results, "--format", "jsonl")
        to = ("--key", "id", "--to", f"events.{name}", "--name")
        kafka_source = ("source", "kafka", "--brokers", kafka.address, "--topic", topic, *to, f"topic-{unique}")
        commands = {
            "worker": ("worker", "--jobs", name, "--lease", "2"),
            "sink": (*sink, "--max-age", "1s", "--name", f"out-{unique}"),
            "logfile": ("source", "logfile", "--path", feed.path, *to, f"log-{unique}"),
            "kafka": (*kafka_source, "--set", "session.timeout.ms=6000"),
            "backup": ("backup", "--to", place, "--every", "1s"),
        }

        def start(*which, life=stack):
            return {
                each: life.enter_context(
                    LeashedProcess("gridscore.cli", [*map(str, commands[each]), *where], tmp_path / f"{each}.out")
                )
                for each in which
            }

        # Given a job, and a worker, a source, a sink and a backup that run
        async with connect(members=own.addresses, cluster_name=own.cluster_name) as client:
            await client.put_events(f"lookups.{name}", scoring.customers())
            await client.push_model(scoring.booster(), name, alias="champion")
            await client.submit(job)
            await feed.write(1_000)
            processes = start("worker")
            with ExitStack() as first_life:
                processes |= (others := start("logfile", "kafka", "sink", "backup", life=first_life))

                def backed_up():
                    for each, process in processes.items():
                        assert process.exit_code is None, (each, process.last_lines())
                    found = newest_point(place)
                    return found and len(found.positions) == 2

                await scoring.until(backed_up)
                # When all members die while more comes
                writing = asyncio.create_task(feed.write(BEFORE, 0.02))
                await scoring.until(lambda: len(delivered(results)) > 1_500)
                own.kill(0)
                own.kill(1)
                for each in others.values():
                    each._process.kill()
        await writing
        before, kept = Counter(event["user"] for event in feed.events.values()), newest_point(place)
        lost = len(feed.events) - len(delivered(results))
        assert lost > 0

        # Then a smaller one that is restored, for which the worker goes on to score, goes on where all had come out
        await asyncio.to_thread(own.restart, 0)
        told = await scoring.command(own, "restore", "--from", place, "--json")
        assert told.exit_code == 0, (told.output, told.exception)
        assert json.loads(told.stdout)["point"] == kept.number
        start("logfile", "kafka", "sink")
        await feed.write(AFTER, 0.02)
        await scoring.until(lambda: len(delivered(results)) >= len(feed.events))
        found, model = delivered(results), scoring.booster()
        expected = scoring.predict(model, scoring.expected_rows(feed.events.values()))
        assert found == {key: {float(np.float32(score))} for key, score in zip(feed.events, expected, strict=True)}
        status = await scoring.command(own, "status", "--for", "0", "--json")
        (backup,) = json.loads(status.stdout)["backups"]
        with closing(Points.open(place)) as points:
            assert (backup["point"], backup["to"]) == (kept.number, points.place)

        # And every window has each event, those that came again at most twice
        async with connect(members=own.addresses[:1], cluster_name=own.cluster_name) as client:
            came = set(await (await client.grid.map(job.events)).key_set())
            again = Counter(event["user"] for key, event in feed.events.items() if key in came)
            record, total = await client.jobs.get(name), Counter(event["user"] for event in feed.events.values())
            for user, count in total.items():
                (counted,) = (await state_of(client.grid, record, user)).values.values()
                assert count <= counted <= before[user] + again[user], (user, count, before[user], again[user])
            assert sum(again.values()) < len(feed.events), "no event was only in the states that were kept"
        said = "".join(path.read_text() for path in tmp_path.glob("*.out"))
        assert "restore point in" in said
        assert database.split("@")[0] not in said
