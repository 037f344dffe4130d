"""`--metrics` and `--log-format json` on a real member: each process tells Prometheus its part, the log programs."""

import json
import re
import signal

import httpx
from commands import until, with_client
from promtool import promtool, samples
from test_serve import EVENTS, JOB, booster

from gridscore.job import parse_job


def test_two_processes_a_source_and_a_sink_tell_their_parts(cluster, run, start, unique, tmp_path):
    name = f"told-{unique}"

    async def prepare(client):
        await client.put_events(f"lookups.{name}", {f"c{n}": {"age": 30 + n} for n in range(10)})
        await client.push_model(booster(), name, alias="champion")
        await client.submit(parse_job(JOB.format(name=name), "test"))

    with_client(cluster, prepare)
    options = ("--metrics", "0", "--log-format", "json")
    workers, log = start("worker", "--jobs", name, "--processes", "2", *options)
    source, source_log = start(
        "source", "http", "--to", f"events.{name}", "--port", "0", "--name", f"{name}-till", *options
    )

    def addresses(file, count):
        found = re.findall(r"Metrics are at (\S+)\.", file.read_text())
        return found if len(found) == count else None

    where = ("--from", f"results.{name}", "--folder", str(tmp_path / "out"), "--format", "jsonl", "--max-age", "1s")
    sink, sink_log = start("sink", "files", *where, "--name", f"{name}-file", *options)
    counts = {log: 2, source_log: 1, sink_log: 1}
    told = [each for file, count in counts.items() for each in until(lambda f=file, n=count: addresses(f, n))]
    assert all(each.startswith("http://127.0.0.1:") for each in told)

    def ask():
        texts = [httpx.get(each, timeout=30).text for each in told]
        return texts, [samples(each) for each in texts]

    def of(found, what):
        return [each[f"gridscore_worker_{what}", name] for each in found if (f"gridscore_worker_{what}", name) in each]

    until(lambda: sorted(of(ask()[1], "partitions")) == [135, 136])
    posting = until(lambda: re.search(r"Events are taken at (\S+?)\"", source_log.read_text()))[1]
    for event in EVENTS:
        assert httpx.post(posting, json=event, timeout=30).is_success
    until(lambda: sum(of(ask()[1], "events_total")) == len(EVENTS))
    # A member tells how large a ring is, and two looks whether it fills.
    until(lambda: of(ask()[1], "journal_left_seconds") == [float("inf")] * 2)
    until(lambda: ask()[1][3]["gridscore_sink_results_total", "files", f"{name}-file"] == len(EVENTS))
    # A worker commits once a second, and tells its lag as often.
    until(lambda: of(ask()[1], "lag_events") == [0, 0])
    texts, found = ask()
    for text in texts:
        assert promtool("check", "metrics", text=text) == ""
    assert of(found, "lag_events") == of(found, "journal_full_ratio") == [0, 0]
    assert of(found, "model_version") == of(found, "ready") == [1, 1]
    assert found[2]["gridscore_source_events_total", "http", f"{name}-till"] == len(EVENTS)
    taken = told[0].rpartition(":")[2].partition("/")[0]
    assert "--metrics takes another port" in run("worker", "--metrics", taken, code=2).stderr
    for process in (workers, source, sink):
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    records = [json.loads(line) for file in counts for line in file.read_text().splitlines()]
    assert len({each["pid"] for each in records if "job" in each}) == 2
    assert {each["job"] for each in records if "job" in each} == {name}
    assert any(each["message"] == "All workers stopped." for each in records)
