"""`gridscore bench job`: what it decides and says, without a cluster."""

from collections import Counter

import numpy as np
import pytest

from gridscore.errors import TableError
from gridscore.grid.capacity import Capacity, Source
from gridscore.grid.management import MemberConfig
from gridscore.grid.writer import partition_of
from gridscore.job import parse_job
from gridscore.proving.bench import card
from gridscore.proving.bench.own_job import Latency, advice
from gridscore.proving.bench.rounds import REST, Run, figures, predict, stage_figures
from gridscore.proving.bench.samples import MAX_BYTES, bounded, from_history, keys
from gridscore.proving.bench.temporary import _names
from gridscore.scoring.stats import STAGES

STAGE_MICROS = dict.fromkeys((*STAGES, REST), 1.0)
BUSY = {"events_per_s": 100_000, "cpu_us_per_event": 9.5}


def serialize(key):
    return b"\0\0\0\0\0\0\0\0" + key.encode()


def test_as_many_events_as_journal_and_memory_should_hold():
    large = Capacity(4_000, 250, Source.CONFIGURED)
    assert bounded(100_000, large, 90.0) == (100_000, "")
    count, why = bounded(2_000_000, large, 90.0)
    assert count == 750_000
    assert "the journal holds 1,000,000 entries" in why
    count, why = bounded(100_000, large, 10_000.0)
    assert count == MAX_BYTES // 10_000
    assert "128 MiB" in why
    _, why = bounded(100_000, Capacity(36, 271, Source.ASSUMED), 90.0)
    assert "seems to hold 9,756 entries" in why


@pytest.mark.parametrize("ring", [1, 7, 36])
def test_no_partition_gets_more_than_its_ring_holds(ring):
    capacity = Capacity(ring, 271, Source.CONFIGURED)
    count, _ = bounded(10**6, capacity, 1.0)
    found = list(keys(count, capacity, serialize))
    assert len(set(found)) == count
    assert max(Counter(partition_of(serialize(key), 271) for key in found).values()) <= ring


def test_names_of_the_same_family_come_first():
    assert _names("orders.card", "events", "bench-1") == ["orders.bench-1", "events.bench-1"]
    assert _names("a.b.c", "events", "bench-1") == ["a.b.bench-1", "events.bench-1"]
    assert _names("events.card", "events", "bench-1") == ["events.bench-1"]
    assert _names("orders", "events", "bench-1") == ["events.bench-1"]


def test_what_follows_a_map_is_seen():
    config = MemberConfig.parse(
        '<hazelcast xmlns="x"><map name="a.*"><map-store enabled="true"/><entry-listeners/></map>'
        '<map name="b.*"><map-store enabled="false"/></map><map name="c.*"><wan-replication-ref name="w"/></map>'
        "</hazelcast>"
    )
    assert set(config.map("a.x").followers) == {"map-store", "entry-listeners"}
    assert config.map("b.x").followers == ()
    assert config.map("c.x").followers == ("wan-replication-ref",)
    assert config.map("other").followers == ()


def test_a_history_gives_samples(tmp_path):
    job = card.card_job("job", "results.job")
    file = tmp_path / "history.csv"
    file.write_text("id,amount,user,merchant,ts\n1,2.5,u1,m1,1700000000000\n")
    found = from_history(file, job)
    assert found.texts == [b'{"id":1,"amount":2.5,"user":"u1","merchant":"m1","ts":1700000000000}']
    assert found.mean_bytes == len(found.texts[0])
    file.write_text("id\n1\n")
    with pytest.raises(TableError, match="no column"):
        from_history(file, job)


@pytest.mark.parametrize(("rows", "count"), [(3, 10), (5_000, 4_096), (5_000, 12_345), (4_097, 100_000)])
def test_so_many_rows_are_predicted(rows, count):
    batches = []
    run = predict(lambda batch: batches.append(len(batch)), np.zeros((rows, 2), np.float32), count, ())
    assert run.events == sum(batches) == count
    assert max(batches) <= 4_096
    assert run.member_cpu is None


def test_figures_are_medians_with_their_spread():
    runs = [Run(100, seconds, 0.001 * seconds, None, dict.fromkeys(STAGES, 0.0001)) for seconds in (1.0, 2.0, 4.0)]
    assert figures(runs) == {
        "events_per_s": 50,
        "events_per_s_min": 25,
        "events_per_s_max": 100,
        "cpu_us_per_event": 20.0,
        "member_cpu_us_per_event": None,
    }
    assert stage_figures(runs) == {**dict.fromkeys(STAGES, 1.0), REST: 20.0 - len(STAGES)}


def test_percentiles_of_latency():
    found = Latency(500, 10.0, np.arange(1.0, 1_001.0)).to_json()
    assert (found["p50_ms"], found["max_ms"], found["events"]) == (500.5, 1000.0, 1000)
    assert found["p90_ms"] < found["p99_ms"] < found["p99.9_ms"] < found["max_ms"]


# Jobs with windows are not measured.
@pytest.mark.parametrize("stage", [*(stage for stage in STAGES if stage != "windows"), REST])
def test_the_advice_names_the_largest_stage(stage):
    text = advice(card.card_job("job", "results.job"), 100, BUSY, {**STAGE_MICROS, stage: 4.5})
    assert text.startswith("One worker sustains about 100,000 events/s of this job; ")
    assert f"most of its CPU goes to {stage}: 4.5 of 9.5 µs per event." in text
    assert ("100 trees" in text) == (stage == "predict")


def test_the_advice_on_peaks_lookups_and_waiting():
    def job(*changes):
        text = card.job_text("job", "results.job")
        for old, new in changes:
            text = text.replace(old, new)
        return parse_job(text, "test")

    peak = job(("model:", "peak_rate: 250000\nmodel:"))
    assert "its peak rate of 250,000 needs 3 workers" in advice(peak, 100, BUSY, STAGE_MICROS)
    waits = {"events_per_s": 41_234, "cpu_us_per_event": 9.5}
    text = advice(job(), 100, waits, STAGE_MICROS)
    assert "about 41,000 events/s" in text
    assert "It waits 61% of the time" in text
    fetching = job(("key: user", "key: user\n    mode: fetch"))
    assert "asks the grid for its lookups (customer)" in advice(fetching, 100, waits, STAGE_MICROS)
