"""All members die at once under load; a new cluster is restored, and whatever was read has its result outside."""

import asyncio
import json
from contextlib import ExitStack

import numpy as np
import scoring

from gridscore.client import connect
from gridscore.grid.member import Cluster
from gridscore.leash import LeashedProcess
from gridscore.operations.restore_points import Folder

BEFORE, AFTER = 4_000, 1_000


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
            new = scoring.events(100, begin)
            lines = [json.dumps({**event, "id": key}) for key, event in new.items()]
            if begin % 200:
                await asyncio.to_thread(self._kafka.produce, self._topic, [(None, line.encode()) for line in lines])
            else:
                with self.path.open("a") as file:
                    file.writelines(line + "\n" for line in lines)
            self.events |= new
            await asyncio.sleep(pause)


async def test_all_members_die_at_once_and_all_that_was_read_has_its_result(kafka, unique, tmp_path):
    name, points, results = f"job-{unique}", tmp_path / "points", tmp_path / "results"
    topic = kafka.create(f"events-{unique}")
    feed, job = Feed(tmp_path / "app.log", kafka, topic), scoring.job(name)
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
            "backup": ("backup", "--to", points, "--every", "1s"),
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
                    numbers = Folder.open(points).numbers() if (points / "backup.json").exists() else []
                    return numbers and len(Folder.open(points).read().positions) == 2

                await scoring.until(backed_up)
                # When all members die while more comes
                writing = asyncio.create_task(feed.write(BEFORE, 0.02))
                await scoring.until(lambda: len(delivered(results)) > 1_500)
                own.kill(0)
                own.kill(1)
                for each in others.values():
                    each._process.kill()
        await writing
        kept = Folder.open(points).read()
        lost = len(feed.events) - len(delivered(results))
        assert lost > 0

        # Then a smaller one that is restored, for which the worker goes on to score, goes on where all had come out
        await asyncio.to_thread(own.restart, 0)
        told = await scoring.command(own, "restore", "--from", str(points), "--json")
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
        assert (backup["point"], backup["to"].partition(":")[2]) == (kept.number, str(points))
