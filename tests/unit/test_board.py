"""What `gridscore top` shows: it fits, says what is missing, and obeys nothing that is in the data."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console
from test_health import position, record, status
from test_plug_health import sink, source

from gridscore.cli import jobs
from gridscore.cli.board import Column, Scene, board, compact, table
from gridscore.cli.jobs import _place, _what_happens
from gridscore.errors import BadRecord, UsageError
from gridscore.job import JobState
from gridscore.job.life import JOBS_MAP
from gridscore.operations.flow import Flow, History, jobs_json, to_json
from gridscore.operations.status import JobFigures, Overview, WorkerRecord, replay_figures
from gridscore.texts import duration_text, milliseconds_text

BUSY = JobFigures(
    events=12_345_678,
    rate=118_234.5,
    partitions=136,
    version=3,
    rebalances=4,
    committed_at=9_500,
    latency_ms={"p50": 1.234, "p99": 48.5, "max": 212.0},
)


def overview(jobs=1, workers=2, **changes):
    records = [WorkerRecord(f"w{i}", 10_000, {}, host="machine-1", pid=4_700 + i) for i in range(workers)]
    statuses = []
    for number in range(jobs):
        name = f"flights-{number}" if number else "flights"
        job = record()
        job = replace(job, job=job.job.model_copy(update={"name": name}))
        records = [WorkerRecord(w.id, w.seen_at, {**w.jobs, name: BUSY}, w.host, w.pid) for w in records]
        each = status([position(owner="w0", unread=17)] * 271, workers=("w0", "w1"))
        totals = each.totals | {"rate": 236_469.0, "events": 24_691_356, "skipped": 0, "rescued": 0}
        fields = {
            "record": job,
            "totals": totals,
            "commit_age": 0.5,
            "figures": {w.id: BUSY for w in records},
            **changes,
        }
        statuses.append(replace(each, **fields))
    return Overview(0.0, statuses, records)


def shown(scene, width, height=None, hint=""):
    console = Console(width=width, height=height or 100, emoji=False, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(board(scene, width, height, hint=hint))
    return [line.rstrip() for line in capture.get().rstrip("\n").split("\n")]


def scene(seen, sources=(), sinks=(), **changes):
    history, flow = History(), Flow(seen, sources, sinks)
    history.add(flow)
    return Scene("dev · 3 members", "12:00:00", flow, history.findings(), **changes)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 132, 200])
def test_it_fits_any_terminal(width):
    lines = shown(scene(overview(jobs=2)), width, 24, "q quits")
    assert max(map(len, lines)) <= width
    assert any(line.startswith("flights") for line in lines)
    heads = [line for line in lines if line.startswith(("JOB", "WORKER"))]
    assert [head.split()[0] for head in heads] == ["JOB", "WORKER"]
    assert all("LAG" in head and "EVENTS/S" in head for head in heads)


def test_eighty_columns_show_what_matters():
    lines = shown(scene(overview()), 80, 24)
    jobs = next(line for line in lines if line.startswith("JOB"))
    assert jobs.split() == "JOB STATE OWNED EVENTS/S LAG P50 P99 COMMIT LOST DEAD MODEL".split()  # noqa: SIM905
    row = next(line for line in lines if line.startswith("flights"))
    assert row.split() == "flights RUNNING 271/271 236,469 4,607 1.2 ms 48 ms 0.5 s 0 0 v1".split()  # noqa: SIM905
    worker = next(line for line in lines if line.startswith("machine-1:4700"))
    assert worker.split()[:5] == ["machine-1:4700", "flights", "136", "118,234", "4,607"]


def test_a_wide_terminal_shows_everything():
    heads = [line.split() for line in shown(scene(overview()), 200) if line.startswith(("JOB", "WORKER"))]
    for title in ("P50", "REBALANCES", "SKIPPED", "RESCUED", "EVENTS"):
        assert title in heads[0]
        assert title in heads[1]


@pytest.mark.parametrize("height", [13, 16, 24])
def test_more_than_fits_is_said(height):
    lines = shown(scene(overview(jobs=9, workers=9)), 80, height)
    assert len(lines) <= height
    assert any(line.startswith("… ") and line.endswith(" more rows") for line in lines)
    assert any(line.startswith("flights") for line in lines)


def test_jobs_that_are_gone_or_invalid_are_listed_everywhere(monkeypatch, capsys):
    seen = overview(jobs=1)
    seen = replace(seen, workers=[*seen.workers, WorkerRecord("w9", 10_000, {}, orphaned=["old", "flights", "bad"])])
    flow, history = Flow(seen, bad_records=[BadRecord(JOBS_MAP, "bad", "it is not JSON", b"", b"")]), History()
    history.add(flow)
    found = history.findings()
    states = {"flights": "RUNNING", "old": "GONE", "bad": "INVALID"}
    lines = shown(Scene("dev", "12:00:00", flow, found), 80, 40)
    rows = {line.split()[0]: line.split()[1] for line in lines if line.split()[:1] and line.split()[0] in states}
    assert rows == states
    listed = to_json(flow, found)["jobs"]
    assert {each["name"]: each["state"] for each in listed} == states
    assert [each["healthy"] for each in listed] == [True, False, False]

    listed = jobs_json(flow)
    assert {each["name"]: each["state"] for each in listed} == states
    told = {"jobs": listed, "sources": [], "sinks": [], "bad_records": [each.to_json() for each in flow.bad_records]}
    monkeypatch.setattr(jobs, "ask", lambda *_, **__: told)
    jobs.jobs(SimpleNamespace(invoked_subcommand=None), connection=None)
    lines = capsys.readouterr().out.splitlines()
    assert {
        line.split()[0]: line.split()[1] for line in lines if line.split()[:1] and line.split()[0] in states
    } == states
    assert any("it is not JSON" in line for line in lines)
    with jobs.console.capture() as capture:
        jobs.jobs(SimpleNamespace(invoked_subcommand=None), connection=None)
    text = capture.get()
    assert "GONE" in text
    assert "old: Workers scored for it until the cluster was replaced" in text


def test_what_is_wrong_stands_below_with_advice():
    seen = overview(model_errors=["version 2: it wants other features \x1b[31m[/bold]"])
    lines = shown(scene(seen), 80, 24)
    text = " ".join(" ".join(lines[-4:]).split())
    assert "flights: A model version is refused, v1 stays in use: version 2: it wants other features" in text
    assert r"\x1b[31m[/bold]" in text
    assert "`gridscore model list`" in text


def test_no_jobs_and_no_workers_is_said():
    lines = shown(scene(Overview(0.0, [], [])), 80, 24)
    assert "No jobs. `gridscore submit FILE` submits one." in lines
    assert "No workers. `gridscore worker` starts one, anywhere." in lines


@pytest.mark.parametrize("width", [40, 60, 80, 100, 132, 200])
def test_sources_and_sinks_stand_beside_the_jobs(width):
    sources = [source(rate=1_234.0), source("failing", failure="no such topic")]
    sinks = [sink(unread=17, rate=900.0), sink("away", state="waiting", error="it is away")]
    lines = shown(scene(overview(), sources, sinks), width, 40)
    assert max(map(len, lines)) <= width
    heads = [line.split() for line in lines if line.startswith(("JOB", "SOURCE", "SINK", "WORKER"))]
    assert [head[0] for head in heads] == ["JOB", "SOURCE", "SINK", "WORKER"]
    rows = {line.split()[0]: line.split() for line in lines if line.startswith(("clicks", "failing", "alerts", "away"))}
    assert rows["clicks"][1] == "running"
    assert "1,234" in rows["clicks"]
    assert rows["failing"][1] == "failed"
    assert "17" in rows["alerts"]
    assert "900" in rows["alerts"]
    assert rows["away"][1] == "waiting"
    text = " ".join(" ".join(lines).split())
    assert "no such topic" in text
    assert "it is away" in text


@pytest.mark.parametrize("height", [16, 24])
def test_a_low_terminal_has_room_for_each(height):
    sources, sinks = [source(f"s{n}") for n in range(9)], [sink(f"t{n}") for n in range(9)]
    lines = shown(scene(overview(jobs=9, workers=9), sources, sinks), 80, height)
    assert len(lines) <= max(height, 20)
    assert [line.split()[0] for line in lines if line.startswith(("JOB", "SOURCE", "SINK", "WORKER"))]
    assert any(line.startswith("… ") and line.endswith(" more sinks") for line in lines)


def test_without_sources_and_sinks_nothing_is_said_of_them():
    assert not any(line.startswith(("SOURCE", "SINK")) for line in shown(scene(overview()), 80, 24))


def test_a_worker_without_jobs_is_shown():
    seen = Overview(0.0, [], [WorkerRecord("w", 10_000, {}, host="h", pid=1)])
    assert any(line.split()[:3] == ["h:1", "-", "-"] for line in shown(scene(seen), 80, 24))


def test_a_cluster_that_is_silent_is_said_above_the_last_figures():
    lines = shown(scene(overview(), silence="No answer from the cluster for 7 s."), 80, 24)
    assert lines[1] == "No answer from the cluster for 7 s."
    assert any(line.startswith("flights") for line in lines)
    assert shown(Scene("dev", "12:00:00", silence="Nothing yet."), 80)[1] == "Nothing yet."


def test_figures_that_grow_move_no_column():
    small, large = overview(), overview()
    small = replace(small, jobs=[replace(small.jobs[0], totals=small.jobs[0].totals | {"rate": 1.0})])
    heads = {shown(scene(each), 80, 24)[2] for each in (small, large)}
    assert len(heads) == 1


def test_columns_that_matter_less_go_first():
    columns = [
        Column("NAME", lambda row: row, left=True),
        Column("LEAST", lambda _: "1", keep=1),
        Column("MORE", lambda _: "2", keep=2),
        Column("MOST", lambda _: "3"),
    ]
    heads = {width: table(columns, ["x" * 40], width)[0].plain.split() for width in (100, 28, 22, 1)}
    assert heads[100] == ["NAME", "LEAST", "MORE", "MOST"]
    assert heads[28] == ["NAME", "MORE", "MOST"]
    assert heads[22] == heads[1] == ["NAME", "MOST"]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999_999, "999,999"), (1_000_000, "1e+06M"), (1_234_567, "1.23M"), (45_600_000_000, "45.6G")],
)
def test_counts_stay_short(number, text):
    assert compact(number) == text.replace("1e+06M", "1M")
    assert len(compact(number)) <= 7


def test_spans_and_latencies_are_readable():
    spans = [duration_text(seconds) for seconds in (0.34, 12, 119, 300, 7_200, 200_000)]
    assert spans == ["0.3 s", "12 s", "119 s", "5 min", "2 h", "2 d"]
    latencies = [milliseconds_text(each) for each in (None, 0.234, 1.26, 48.4, 1_234)]
    assert latencies == ["-", "0.23 ms", "1.3 ms", "48 ms", "1.2 s"]


# ---------------------------------------------------------------------- restart


def test_a_place_to_begin():
    assert [_place(each) for each in ("oldest", " latest", "committed")] == ["oldest", "latest", "committed"]
    assert _place("2026-01-31T12:00:00Z") == "2026-01-31T12:00:00Z"
    assert _place("2h") < _place("1h ago") < _place("90s")
    assert _place("2h").endswith("Z")
    with pytest.raises(UsageError):
        _place("999999999d")


def test_what_a_restart_means_is_told_in_events():
    before = status([position(unread=10), position(unread=0)], job=record(JobState.RUNNING))
    assert replay_figures(before, "oldest") == {"to_read": 2000, "scored_again": 1990, "left_out": 0}
    assert replay_figures(before, "latest") == {"to_read": 0, "scored_again": 0, "left_out": 10}
    assert replay_figures(before, "committed") == {"to_read": 10, "scored_again": 0, "left_out": 0}
    told = _what_happens(replay_figures(before, "oldest"), exact=True)
    assert told == "About 2,000 events are read from there, 1,990 of them scored before."
    assert "At most 2,000" in _what_happens(replay_figures(before, "2026-01-31T12:00:00Z"), exact=False)
    assert "10 events that nobody has read yet are left out" in _what_happens(
        replay_figures(before, "latest"), exact=True
    )


def test_an_error_of_several_lines_is_shown_without_escapes(monkeypatch):
    failed = replace(record(), state=JobState.FAILED, error="It cannot be scored.\nSubmit it again.")
    seen = overview(record=failed)
    lines = shown(scene(seen), 100, 40)
    assert any("It cannot be scored." in line for line in lines)
    assert not any("x0a" in line for line in lines)
    told = {"jobs": jobs_json(Flow(seen)), "sources": [], "sinks": [], "bad_records": []}
    monkeypatch.setattr(jobs, "ask", lambda *_, **__: told)
    with jobs.console.capture() as capture:
        jobs.jobs(SimpleNamespace(invoked_subcommand=None), connection=None)
    assert "It cannot be scored.\nSubmit it again." in capture.get()
