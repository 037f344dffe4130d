"""Whether sources and sinks are well: each rule, when it holds, and when it does not."""

from dataclasses import replace

import msgspec
import pytest
from test_health import position, status

from gridscore.cli.jobs import print_plugs
from gridscore.cli.status import _show
from gridscore.grid.heap import MemberHeap
from gridscore.operations.flow import Flow, History, to_json
from gridscore.operations.health import Level, Look
from gridscore.operations.plug_health import examine_sink, examine_source
from gridscore.operations.sink_status import SinkProcess, SinkStatus
from gridscore.operations.status import Overview
from gridscore.operations.status_lines import sink_lines, source_lines
from gridscore.producer.room import WaitingForJob, WaitingForMemory
from gridscore.sinks.records import SinkRecord
from gridscore.sources.status import SourceRecord, SourceStatus


def source(name="clicks", *, failure="", dead_letters=0, **figures):
    figures = {"state": "running", **figures}
    process = SourceRecord("p", 1, name, "kafka", "events.flights", **figures)
    failed = SourceRecord("q", 1, name, "kafka", "events.flights", "host", 7, state="failed", error=failure, error_at=9)
    return SourceStatus(
        name, [] if failure and figures["state"] == "running" else [process], failed if failure else None, dead_letters
    )


def sink(name="alerts", *, unread=0, offset=100, full=0.0, failure="", lost=0, dead_letters=0, killed=False, **process):
    process = {"id": "a", "state": "delivering", **process}
    living = [SinkProcess(seen_at=1, sink=name, **process)] if process["state"] else []
    return SinkStatus(
        SinkRecord(name, "kafka", "results.flights", "oldest", "2026-01-01T00:00:00Z", failure),
        unread,
        lost,
        dead_letters,
        0,
        [position(owner="a" if living or killed else "", unread=unread, offset=offset, full=full)],
        living,
    )


def codes(found, level=Level.PROBLEM):
    assert all(each.text and not each.text.endswith(":") for each in found)
    assert [each.level for each in found] == sorted((each.level for each in found), reverse=True)
    return [each.code for each in found if each.level is level]


def sink_codes(*looks, level=Level.PROBLEM, **options):
    return codes(examine_sink([Look(float(at), each) for at, each in enumerate(looks)], **options), level)


def test_what_runs_is_well():
    assert examine_source([source()] * 6) == []
    assert sink_codes(*[sink()] * 6) == []
    assert sink_codes(*[sink(unread=50, offset=100 * n) for n in range(1, 7)]) == []


def test_what_a_dead_process_had_is_not_owned():
    assert (sink().partitions, sink(state="").partitions) == (1, 0)


def test_a_source_that_failed_says_why_until_it_runs():
    (found,) = examine_source([source(failure="no such topic")])
    assert (found.code, found.level) == ("failed", Level.PROBLEM)
    assert "no such topic" in found.text
    assert "host, process 7" in found.text
    assert "gridscore source forget clicks" in found.advice
    beside = source(failure="no such topic", state="waiting")
    assert beside.state == "waiting"
    assert codes(examine_source([beside])) == []
    assert codes(examine_source([beside]), Level.NOTE) == ["failed", "waiting"]


def test_a_source_that_cannot_read_is_a_problem_if_it_lasts():
    away = source(state="interrupted", error="the broker is away")
    assert codes(examine_source([away, away])) == ["interrupted"]
    assert codes(examine_source([source(), away])) == []
    (found,) = examine_source([away])
    assert (found.text, found.advice) == ("It cannot read now: the broker is away", "It tries again by itself.")


def test_what_interrupts_a_source_is_not_blamed_on_the_other_side_if_it_is_the_cluster():
    cut_off = source(state="interrupted", error="no confirmation", waits_for="the cluster")
    (found,) = examine_source([cut_off])
    assert found.text == "It cannot put anything now: no confirmation"
    assert "Are all members well?" in found.advice
    away = sink(state="waiting", error="no confirmation", waits_for="the cluster")
    (found,) = examine_sink([Look(0.0, away)])
    assert found.text == "It waits for the cluster: no confirmation"
    assert "Bring it back" not in found.advice


def test_what_one_of_several_processes_says_is_not_said_of_all():
    beside = SourceRecord("b", 1, "clicks", "kafka", "events.flights", state="running", error="old", error_at=9)
    away = source(state="interrupted", error="the broker is away")
    (found,) = examine_source([replace(away, processes=[beside, *away.processes])])
    assert found.text == "1 of its 2 processes cannot read now: the broker is away"
    starts = source(state="starting")
    (found,) = examine_source([replace(starts, processes=[beside, *starts.processes])])
    assert found.text == "1 of its 2 processes is starting: nothing is read yet."
    one, other = sink(state="waiting", error="away"), sink(id="b")
    (found,) = examine_sink([Look(0.0, replace(one, processes=[*other.processes, *one.processes]))])
    assert found.text == "1 of its 2 processes waits for its destination: away"


def test_what_never_begins_is_a_problem():
    assert codes(examine_source([source(state="starting")] * 2)) == ["starting"]
    assert codes(examine_source([source(state="starting"), source()])) == []
    assert sink_codes(*[sink(state="starting", unread=5)] * 2) == ["starting"]
    assert sink_codes(sink(state="starting"), sink()) == []


def test_a_source_whose_map_nobody_reads_is_a_problem():
    nobody = replace(source(), unread={"events.flights"})
    assert codes(examine_source([nobody] * 2)) == ["no_job"]
    assert codes(examine_source([nobody, source()])) == []
    assert codes(examine_source([replace(source(failure="x"), unread={"events.flights"})])) == ["failed"]


def test_what_the_other_side_removed_is_a_problem_for_a_day():
    day = 86_400_000
    lossy = source(lost=3, lost_at=5)
    (found,) = examine_source([lossy])
    assert (found.code, found.level) == ("loss", Level.PROBLEM)
    assert found.text == "3 events were removed before they were read."
    later = replace(lossy, processes=[msgspec.structs.replace(each, seen_at=day + 5) for each in lossy.processes])
    assert codes(examine_source([later])) == []
    assert codes(examine_source([later]), Level.NOTE) == ["loss"]
    assert later.to_json()["lost"] == 3


def test_a_source_that_waits_for_room_is_worth_a_word():
    paused = source(state="paused", waiting="there are 20 dead letters, and the limit is 20")
    (found,) = examine_source([paused, paused])
    assert (found.code, found.level) == ("paused", Level.PROBLEM)
    assert "dead-letters list clicks" in found.advice
    waits = source(state="waiting", waiting="events.flights has no room", dead_letters=3)
    assert codes(examine_source([waits, waits])) == []
    assert codes(examine_source([waits, waits]), Level.NOTE) == ["waiting", "dead_letters"]
    assert codes(examine_source([waits, source()]), Level.NOTE) == []


def test_a_source_that_waits_is_judged_and_advised_by_what_it_waits_for():
    heap = WaitingForMemory(map_name="m", seconds=3.0, heap=MemberHeap("a:1", 95 << 20, 100 << 20), stops=True)
    place = {"partition": 1, "unread": 9, "capacity": 9, "owned": True, "partitions": 1}
    job = WaitingForJob(map_name="m", job="j", seconds=1.0, state="RUNNING", **place)
    for reason, scored in ((heap, False), (job, True)):
        (finding,) = examine_source([source(state="waiting", waiting=str(reason))])
        assert str(reason) in finding.text
        assert finding.level is (Level.NOTE if scored else Level.PROBLEM)
        assert ("have been scored. More workers would help." in finding.advice) == scored
        assert ("Remove entries" in finding.advice) == (not scored)
        assert codes(examine_source([source(state="waiting", waiting=str(reason)), source()])) == []


def test_a_sink_that_failed_says_why():
    failed = sink(state="", failure="no such table")
    assert failed.state == "failed"
    assert failed.error == "no such table"
    (found,) = examine_sink([Look(0.0, failed)])
    assert (found.code, "no such table" in found.text) == ("failed", True)
    # Another process of it goes on.
    assert sink(failure="no such table").state == "delivering"
    assert sink_codes(sink(failure="no such table")) == []
    assert sink_codes(sink(failure="no such table"), level=Level.NOTE) == ["failed"]


def test_a_sink_that_was_killed_is_a_problem():
    killed = sink(state="", unread=5, killed=True)
    assert killed.state == "failed"
    (found,) = examine_sink([Look(0.0, killed)])
    assert (found.code, found.level) == ("failed", Level.PROBLEM)
    assert found.text == "It did not stop in order; 5 results wait. Killed, cut off or hanging: a."
    assert "`gridscore sink forget alerts`" in found.advice
    assert sink_codes(sink(), killed) == []


def test_one_partition_of_a_sink_that_stands_still_is_told():
    looks = []
    for at in range(6):
        stands = sink(unread=5)
        looks.append(replace(stands, positions=[*stands.positions, position(offset=100 + 10 * at)]))
    (found,) = examine_sink([Look(float(at), each) for at, each in enumerate(looks)])
    assert (found.code, found.text[:33]) == ("stuck", "1 partition of 2 stands still: no")


def test_a_sink_that_is_stopped_is_a_problem_only_when_results_will_be_lost():
    assert sink(state="").state == "stopped"
    assert sink_codes(sink(state="", unread=5)) == []
    assert sink_codes(sink(state="", unread=5), level=Level.NOTE) == ["stopped"]
    assert sink_codes(sink(state="", unread=5, full=0.9)) == ["journal_full"]
    assert sink_codes(sink(), sink(state="", unread=5), level=Level.NOTE) == []


@pytest.mark.parametrize("state", ["", "delivering"])
def test_when_results_will_be_overwritten_is_told(state):
    looks = []
    for at, unread in enumerate([1000, 1050, 1100, 1150, 1200, 1250]):
        look = sink(state=state, unread=unread, offset=100 + at)
        ring = {"full": unread / 3690, "room": 3690 - unread}
        looks.append(replace(look, positions=[replace(each, **ring) for each in look.positions]))
    found = examine_sink([Look(float(at), each) for at, each in enumerate(looks)])
    assert [each.text for each in found][:1] == ["Partition 0 loses unread results in 49 s at this rate."]


def test_a_destination_that_is_away_is_a_problem_if_it_lasts():
    away = sink(state="waiting", error="connection refused", unread=9)
    assert sink_codes(*[away] * 6) == ["away"]
    assert sink_codes(*[away] * 5, sink()) == []


def test_a_sink_that_is_paused_is_a_problem_if_it_lasts():
    paused = sink(state="paused", error="there are 20 dead letters, and the limit is 20", unread=9)
    assert sink_codes(*[paused] * 6) == ["paused"]
    assert sink_codes(*[paused] * 5, sink()) == []


def test_lag_that_grows_and_a_standstill_are_problems():
    growing = [sink(unread=1_000 * n, offset=10 * n) for n in range(1, 8)]
    assert sink_codes(*growing) == ["lag"]
    assert sink_codes(*growing, late_seconds=10_000.0) == []
    assert sink_codes(*growing[:2]) == []
    assert sink_codes(*[sink(unread=9)] * 6) == ["stuck"]
    (finding,) = examine_sink([Look(float(at), sink(unread=1)) for at in range(6)])
    assert "though 1 result waits." in finding.text


def test_what_was_lost_or_refused_is_worth_a_word():
    assert sink_codes(sink(lost=3, dead_letters=1), level=Level.NOTE) == ["loss", "dead_letters"]
    full = sink(unread=9, full=0.9)
    assert sink_codes(full, level=Level.NOTE) == ["journal_nearly_full"]
    unread = SinkStatus(full.record, None, 0, 0, 0, (), full.processes, "No answer.")
    assert sink_codes(unread) == ["no_journal"]
    assert sink_codes(unread, sink()) == sink_codes(sink(), unread) == []


def test_findings_come_in_the_order_of_an_events_way():
    history = History(seconds=3.0)
    flow = Flow(Overview(0.0, [status(workers=())], []), [source(failure="x")], [sink(state="", failure="y")])
    history.add(flow)
    found = history.findings()
    assert [name for name, _ in found] == ["clicks", "flights", "alerts"]
    assert not found.all_well
    value = to_json(flow, found)
    assert [value[part][0]["healthy"] for part in ("sources", "jobs", "sinks")] == [False] * 3
    assert value["sinks"][0]["findings"][0]["code"] == "failed"
    assert value["sources"][0]["failure"]["error"] == "x"


def test_looks_that_are_old_are_forgotten():
    history = History(seconds=3.0)
    away, well = sink(state="waiting", error="away"), sink()
    history.add(Flow(Overview(0.0, [], []), (), [well]))
    for at in (1.0, 2.0, 3.5):
        history.add(Flow(Overview(at, [], []), (), [away]))
    assert [each.code for each in history.findings().sinks["alerts"]] == ["away"]
    history.replace(Flow(Overview(3.5, [], []), (), [well]))
    assert history.findings().all_well


def test_events_that_come_where_there_is_no_job_are_a_problem():
    def found(*flows):
        history = History()
        for at, (jobs, unread) in enumerate(flows):
            history.add(Flow(Overview(float(at), jobs, []), unread=unread))
        return {name: [each.code for each in said] for name, said in history.findings().maps.items()}

    assert found(([], {"events.a": 5, "events.b": 7}), ([], {"events.a": 6, "events.b": 7})) == {"events.a": ["no_job"]}
    assert found(([], {"events.a": 5})) == {}  # one look shows no trend
    assert found(([status()], {}), ([], {"events.a": 5}), ([], {"events.a": 6})) == {}
    assert found(([], {"events.a": 5}), ([], {"events.a": 6}), ([status()], {})) == {}


def test_people_are_told_of_sources_and_sinks(capsys, monkeypatch):
    monkeypatch.setattr("gridscore.cli.output.console.width", 300)
    flow = Flow(Overview(0.0, [], []), [source(failure="no such topic")], [sink(unread=17, rate=900.0)])
    print_plugs([each.to_json() for each in flow.sources], [each.to_json() for each in flow.sinks])
    printed = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split() for line in printed if line}
    assert rows["clicks"][1:4] == ["kafka", "events.flights", "failed"]
    assert "no such topic" in " ".join(rows["clicks"])
    assert rows["alerts"][3:8] == ["delivering", "1", "0", "900", "17"]

    (only,) = flow.sinks
    _show("sink", only.record.name, only.state, sink_lines(only), examine_sink([Look(0.0, only)]))
    (failed,) = flow.sources
    _show("source", failed.name, failed.state, source_lines(failed), examine_source([failed]))
    told = capsys.readouterr().out
    assert "sink alerts: well, delivering" in told
    assert "900 results/s, lag 17, 1 of 1 partitions owned" in told
    assert "source clicks: not well, failed" in told
    assert "It has failed (host, process 7): no such topic" in told
