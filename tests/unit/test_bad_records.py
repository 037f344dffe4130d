"""Control maps into which anybody has put anything: only that record suffers, and `repair` repairs or removes it."""

import asyncio
import json
import struct
from contextlib import asynccontextmanager

import msgspec
import pytest
from test_stub_grid import booster

from gridscore.dead_letters.letters import POSITIONS_MAP
from gridscore.errors import BadRecord, BadRecordError, GridscoreError, JobError
from gridscore.grid import transport, wire
from gridscore.grid.records import MAX_RECORD, Records
from gridscore.grid.writer import partition_of
from gridscore.group.lease_records import LEASES_MAP, lease_key, read_records
from gridscore.job import JobState, parse_job
from gridscore.job.plugs.base import SinkSettings
from gridscore.models import Registry
from gridscore.operations.flow import FlowObserver, History, to_json
from gridscore.operations.repair import control_maps, find_repairs, repair
from gridscore.operations.sink_status import SinkProcess
from gridscore.operations.status import JobFigures
from gridscore.operations.wipe import remnants
from gridscore.scoring.audit import audit
from gridscore.scoring.stats import JobStats
from gridscore.sinks.records import SinkStats
from gridscore.sinks.runner import SinkRunner
from gridscore.sources.http.settings import HttpSourceSettings
from gridscore.sources.logfile.settings import LogfileSourceSettings
from gridscore.sources.position import Positions, forget_all
from gridscore.sources.runner import runner_of
from gridscore.sources.status import running_sources
from gridscore.testing import StubCluster
from gridscore.testing.sinks import ListSink, Received

JOB = """\
job: payments
events: events.payments
schema: {amount: float}
features: {share: amount / 100}
model: {name: payments, alias: champion}
results: results.payments
"""
HUGE = 2**63 - 1


def data(kind, content):
    return struct.pack(">iii", 0, kind, len(content)) + content


def text(value):
    return wire.json_data(value.encode())


GARBAGE = {
    "portable": data(-1, b"\x00\x01\x02"),
    "compact": data(-55, b"\xff" * 40),
    "empty": b"",
    "string": data(-11, b'{"a": 1}'),
    "not utf-8": wire.json_data(b'{"a": "\xff"}'),
    "not json": text("{"),
    "list": text("[1]"),
    "nothing": text("{}"),
    "nested": text('{"spec": ' * 5_000 + "1" + "}" * 5_000),
    "nan": text('{"seen_at": NaN}'),
    "huge": text('{"n": 1e999}'),
    "integers": text(json.dumps(dict.fromkeys(("epoch", "seen_at", "began_at", "at", "since", "revision"), HUGE))),
    "negative": text(json.dumps(dict.fromkeys(("epoch", "offset", "seen_at", "began_at", "at", "since"), -7))),
    "wrong types": text(json.dumps(dict.fromkeys(("id", "seen_at", "spec", "kind", "map", "position", "by"), ()))),
}
ODD_KEYS = [struct.pack(">iii", 0, -7, 4711), data(-1, b"odd"), data(-11, b"\xff")]


async def put_raw(grid, map_name, key, value):
    message = wire.encode_put_all_json(wire.put_all_prefix(map_name), [key], [b"0"])
    partition = partition_of(key, grid.partition_count)
    await transport.invoke(grid.client, message, partition, wire.decode_nothing)
    prefix = wire.replace_if_same_prefix(map_name, key)
    message = wire.encode_replace_if_same(prefix, wire.json_data(b"0"), value)
    assert await transport.invoke(grid.client, message, partition, wire.decode_replace_if_same)


async def submitted(stub):
    client = await stub.client()
    model = booster()
    await client.push_model(model, "payments", alias="champion")
    await client.submit(parse_job(JOB, "test"))
    return client


@pytest.fixture
async def stub():
    async with StubCluster(partitions=5) as made:
        yield made


async def test_what_a_running_source_may_put_into_is_not_wiped(stub):
    client = await submitted(stub)
    await client.put_events("events.payments", {"a": {"amount": 1}})
    await client.cancel("payments")
    settings = HttpSourceSettings(to="events.clicks", also=("events.payments",), port=0)
    running = asyncio.create_task(runner_of(client.grid, settings, "shop").run())
    try:
        while not await running_sources(client.grid):
            await asyncio.sleep(0.01)
        with pytest.raises(JobError, match=r"The source `shop` runs: it uses `events\.payments`"):
            await remnants(client.grid, "payments", ["events"])
    finally:
        running.cancel()
        await asyncio.wait({running})
    assert await remnants(client.grid, "payments", ["events"])


@asynccontextmanager
async def plugs(stub, folder):
    """A source that reads 50 events from a file, and a sink: the source's runner, and what the sink has received."""
    (folder / "events.jsonl").write_text("".join(f'{{"id": "e{n}", "amount": {n}}}\n' for n in range(50)))
    settings = LogfileSourceSettings(to="events.payments", path=(str(folder / "events.jsonl"),), key=("id",))
    source, received = runner_of(await stub.connect("source"), settings, "file"), Received()
    sink = SinkRunner(
        await stub.connect("sink"), "list", "list", SinkSettings(results="results.payments"), lambda: ListSink(received)
    )
    tasks = [asyncio.create_task(each.run()) for each in (source, sink)]
    try:
        yield source, received
    finally:
        source.stop()
        tasks[1].cancel()
        (ended, _) = await asyncio.gather(*tasks, return_exceptions=True)
        assert ended is None


async def test_nothing_but_the_bad_records_suffers(stub, tmp_path):
    client = await submitted(stub)
    grid = client.grid
    entries = [(data(-11, f"{kind}/9{n}".encode()), value) for n, (kind, value) in enumerate(GARBAGE.items())]
    entries += [(key, text("{}")) for key in ODD_KEYS]
    maps = control_maps(5)
    for each in maps:
        for key, value in entries:
            await put_raw(grid, each.name, key, value)
    await put_raw(grid, "gridscore.eras", data(-11, b"large"), text('{"since": 1, "x": "%s"}' % ("x" * MAX_RECORD)))
    async with stub.worker("worker"), plugs(stub, tmp_path) as (source, received):
        await stub.results("results.payments", 50, seconds=20)
        async with asyncio.timeout(20):
            while len(received.results) < 50 or not await Positions(grid, "file").load():
                await asyncio.sleep(0.01)
        assert (len(received.results), source.stats.events) == (50, 50)
        found = await audit(grid, await client.jobs.get("payments"), repair=True)
        assert (found.events, found.results, found.missing, found.complete) == (50, 50, 0, True)
        history = History()
        async with asyncio.timeout(20):
            while True:  # they say once a second how they are
                flow = await FlowObserver(grid).look()
                plugged = [(each.name, each.state) for each in flow.sources]
                plugged += [(each.record.name, each.state) for each in flow.sinks]
                working = [each.workers for each in flow.overview.jobs]
                if (plugged, working) == ([("file", "running"), ("list", "delivering")], [1]):
                    break
                await asyncio.sleep(0.1)
        history.add(flow)
        (status,) = flow.overview.jobs
        assert (status.workers, status.lag is not None) == (1, True)
        json.dumps(to_json(flow, history.findings()), allow_nan=False)
        assert not history.findings().all_well
        assert {"gridscore.jobs", "gridscore.workers"} <= {each.map_name for each in flow.bad_records}
        assert [job.name for job in await client.jobs.all()] == ["payments"]
        assert [model.name for model in await Registry(grid).list()] == ["payments"]
        assert (await client.jobs.restart("payments", "oldest")).restarts == 1
        await client.jobs.suspend("payments")
    found = await find_repairs(grid)
    assert {each.bad.map_name for each in found} == {each.name for each in maps}
    for each in maps:
        assert len([one for one in found if one.bad.map_name == each.name]) == len(entries) + (
            each.name == "gridscore.eras"
        ), each.name
    assert all(one.bad.reason and one.means and one.value is None for one in found)
    for one in found:
        assert await repair(grid, one)
    assert await find_repairs(grid) == []
    assert (await client.jobs.get("payments")).state is JobState.SUSPENDED
    assert len(await read_records(grid, "payments")) == 5


@pytest.mark.parametrize(
    ("value", "offset"),
    [
        (text(f'{{"owner": "a", "epoch": {HUGE}, "offset": 7, "deadline": 1, "renewals": 3, "origin": 0}}'), 7),
        (text('{"owner": 5, "epoch": 2, "offset": 7, "deadline": 1, "renewals": 3, "origin": 1}'), 7),
        (text('{"owner": "a", "epoch": 2, "offset": -9, "deadline": 1, "renewals": 3}'), -1),
        # the last that can be read: what their next owner writes could not
        (text(f'{{"owner": "a", "epoch": {2**52 - 1}, "offset": 7, "origin": 0}}'), 7),
        (text(f'{{"owner": "a", "epoch": 2, "offset": 7, "origin": 0, "renewals": {2**53 - 1}}}'), 7),
        (text(f'{{"owner": "a", "epoch": 2, "offset": 7, "origin": 0, "lost": {2**62 - 1}}}'), 7),
        (GARBAGE["portable"], -1),
        (GARBAGE["nested"], -1),
    ],
    ids=["epoch", "owner", "offset", "last_epoch", "last_renewal", "last_lost", "portable", "nested"],
)
async def test_a_bad_lease_keeps_its_partition_only_and_what_it_still_says_is_kept(stub, value, offset):
    client = await submitted(stub)
    grid = client.grid
    await put_raw(grid, LEASES_MAP, lease_key("payments", 2, 5), value)
    keys = [f"e{i}" for i in range(40)]
    there = {key: partition_of(transport.key_data(grid.client, key), 5) for key in keys}
    others = sum(partition != 2 for partition in there.values())
    async with stub.worker("worker"):
        await client.put_events("events.payments", {key: {"amount": 1} for key in keys})
        await stub.results("results.payments", others, seconds=20)
        flow = await FlowObserver(grid, "payments").look()
        assert [(bad.map_name, bad.key) for bad in flow.bad_records] == [(LEASES_MAP, "payments/2")]
        assert [finding.code for _, found in History().findings() for finding in found] == []
        (one,) = await find_repairs(grid)
        assert one.value is not None
        assert one.value["offset"] == offset
        assert await repair(grid, one)
        assert await find_repairs(grid) == []
        # What was scored up to the offset is not scored again; without one, everything is.
        expected = others + max(0, len(keys) - others - max(offset, 0))
        await stub.results("results.payments", expected, seconds=20)
    epoch = (await read_records(grid, "payments"))[2].epoch
    assert epoch >= 3


async def test_a_bad_lease_is_named_where_a_job_is_to_start_over(stub):
    client = await submitted(stub)
    await client.cancel("payments")
    await put_raw(client.grid, LEASES_MAP, lease_key("payments", 2, 5), GARBAGE["list"])
    with pytest.raises(BadRecordError, match=r"`payments/2` in `gridscore.leases`"):
        await client.submit(parse_job(JOB, "test"))


@pytest.mark.parametrize("kind", ["portable", "nothing", "integers", "not json"])
async def test_a_bad_job_is_named_and_cancel_removes_it(stub, kind):
    client = await submitted(stub)
    await put_raw(client.grid, "gridscore.jobs", data(-11, b"payments"), GARBAGE[kind])
    for call in (client.jobs.get, client.jobs.suspend, client.jobs.resume, client.jobs.restart):
        with pytest.raises(GridscoreError, match=r"`payments` in `gridscore\.jobs`"):
            await call("payments")
    with pytest.raises(GridscoreError, match=r"`payments` in `gridscore\.jobs`"):
        await client.submit(parse_job(JOB, "test"), update=True)
    assert await client.cancel("payments") is None
    assert (await client.submit(parse_job(JOB, "test"))).state is JobState.WAITING


async def test_a_job_whose_record_was_removed_restarts_as_often_as_before(stub):
    client = await submitted(stub)
    async with stub.worker("worker"):
        await client.put_events("events.payments", {"a": {"amount": 1}})
        await stub.results("results.payments", 1, seconds=20)
        await client.jobs.restart("payments", "oldest")
        await rescored(client, 2)
        await client.jobs._records.delete("payments")
        await put_raw(client.grid, "gridscore.jobs", data(-11, b"payments"), GARBAGE["list"])
        assert await client.cancel("payments") is None
        record = await client.submit(parse_job(JOB, "test"))
        assert (record.restarts, record.revision, record.begin) == (1, 3, "")
        record = await client.jobs.restart("payments", "oldest")
        assert (record.restarts, record.revision) == (2, 4)
        await rescored(client, 4)


async def rescored(client, revision):
    """Wait until all results are of that revision of the job, or a later one."""
    async with asyncio.timeout(20):
        while (await client.result("results.payments", "a"))["revision"] < revision:
            await asyncio.sleep(0.05)


async def test_a_valid_record_of_a_job_that_cannot_be_compiled_is_only_bad_itself(stub):
    client = await submitted(stub)
    record = await client.jobs._records.get("payments")
    for name, expression in (("chain", "amount" + "<1" * 1_500), ("tower", "1<(" * 60 + "amount" + ")<1" * 60)):
        spec = {**record.value["spec"], "job": name, "features": {"share": {"expression": expression}}}
        await client.jobs._records.create(name, {**record.value, "name": name, "spec": spec})
    async with stub.worker("worker"):
        await client.put_events("events.payments", {"a": {"amount": 5}})
        await stub.results("results.payments", 1, seconds=20)
        flow = await FlowObserver(client.grid).look()
        assert [each.key for each in flow.bad_records] == [each.key for each in flow.invalid] == ["chain", "tower"]
        assert all("operations" in each.reason for each in flow.bad_records)
    assert await client.cancel("chain") is None


async def test_a_job_that_no_worker_could_compute_is_not_submitted(stub, monkeypatch):
    client = await stub.client()
    await client.push_model(booster(), "payments", alias="champion")

    def broken(*_):
        raise RecursionError("too deep")

    monkeypatch.setattr("gridscore.features.FeaturePlan", broken)
    with pytest.raises(JobError, match="RecursionError: too deep"):
        await client.submit(parse_job(JOB, "test"))
    assert await client.jobs.all() == []


async def test_a_source_does_not_start_over_because_a_position_is_bad(stub):
    grid = await stub.connect()
    await put_raw(grid, POSITIONS_MAP, data(-11, b"clicks/a.log"), GARBAGE["list"])
    await put_raw(grid, POSITIONS_MAP, data(-11, b"other/a.log"), GARBAGE["list"])
    with pytest.raises(GridscoreError, match=r"`clicks/a.log` in `gridscore.positions`"):
        await Positions(grid, "clicks").load()
    assert await Positions(grid, "sensors").load() == {}
    await forget_all(grid, "clicks")
    assert await Positions(grid, "clicks").load() == {}
    assert [one.bad.key for one in await find_repairs(grid)] == ["other/a.log"]


async def test_a_key_that_is_not_a_text_does_not_count_as_a_fault_of_the_listener(stub, caplog):
    grid = await stub.connect()
    called = asyncio.Event()
    stop = await Records(grid, "gridscore.jobs").watch(called.set)
    for key in ODD_KEYS:
        called.clear()
        await put_raw(grid, "gridscore.jobs", key, text("{}"))
        async with asyncio.timeout(10):
            await called.wait()
    await stop()
    assert [line for line in caplog.records if line.exc_info] == []


async def test_two_jobs_cannot_write_to_one_result_map(stub):
    client = await submitted(stub)
    other = JOB.replace("job: payments", "job: refunds").replace("events.payments", "events.refunds")
    with pytest.raises(JobError, match=r"The job `payments`, which is WAITING, writes to `results\.payments` already"):
        await client.submit(parse_job(other, "test"))
    await client.cancel("payments")
    assert (await client.jobs.get("payments")).state is JobState.CANCELLED
    await client.submit(parse_job(other, "test"))
    with pytest.raises(JobError, match=r"`refunds`, which is WAITING"):
        await client.submit(parse_job(JOB, "test"))


def test_messages_of_any_length_leave_the_records_of_their_writers_good():
    job = JobStats(model_error="x" * 40_000).to_json(0.0)
    assert msgspec.convert(job, JobFigures).model_error == "x" * 1_000
    sink = {"id": "1", "seen_at": 1, "sink": "s", **SinkStats(error="x" * 40_000).to_json()}
    assert msgspec.convert(sink, SinkProcess).error == "x" * 1_000


def test_a_bad_record_speaks_in_one_line_whatever_its_key_is():
    bad = BadRecord("jobs", "a\n2026-01-01 ERROR \x1b[2Jforged\u2028", "it is `\x1b`", b"", b"")
    assert str(bad) == (
        r"The control record `a\x0a2026-01-01 ERROR \x1b[2Jforged\u2028` in `jobs` cannot be used: it is `\x1b`"
    )
