"""The report of the benchmark: figures as they were measured, floors judged both ways, missing parts said."""

import math
from xml.etree import ElementTree as ET

import pytest

from benchmarks import judgement, plots, report, sections, view
from benchmarks.markdown import NOT_MEASURED, number, spread_text, table
from benchmarks.outcome import (
    FORMAT,
    Growth,
    Latency,
    Machine,
    Outcome,
    Run,
    Saturation,
    Spike,
    SpikeBin,
    Spread,
    Status,
    SystemNote,
    Throughput,
    WorkNote,
)

TRIED = "## What was tried, what paid, what did not\n\nThis | as it is.\n"
STAGES = {"decode": 0.5, "predict": 1.5}


def runs(rates, scorer_us, service_us, stages=None):
    """A run a round, of 1,000 events."""
    return [
        Run(at, 1_000, 1_000 / rate, scorer_us * 1e-3, service_us * 1e-3, 0.0, 0.25, stages or {})
        for at, rate in enumerate(rates, 1)
    ]


def throughput(system, rates, scorer_us=4.0, service_us=6.0, *, work="card", status=Status.MEASURED, reason=""):
    stages = STAGES if system == "gridscore" else None
    kept = runs(rates, scorer_us, service_us, stages)
    return Throughput(work, system, status, reason, 1_000, 0 if system.startswith("limit-") else 1_500, kept)


def latency(system, rate, p50, p99, p999, *, part=None, saturated=False):
    curve = [(0.0, p50 / 2), (50.0, p50), (99.0, p99), (99.9, p999), (100.0, 2 * p999)]
    return Latency(
        "card", system, rate, part, Status.MEASURED, "", saturated, 6.0, 3_000, 2_000 if saturated else 3_000,
        p50, p99 / 2, p99, p999, 2 * p999, 0.1, 0.95 if rate > 5_000 else 0.2, 9.0, 12.0, 0.1, curve,
    )  # fmt: skip


def spike(system):
    bins = [SpikeBin(at / 2, 500, 500, 2.0, 80.0 if 10 <= at < 20 else 5.0 + at) for at in range(36)]
    return Spike("card", system, Status.MEASURED, "", 1_000.0, 10.0, 5.0, 10.0, 7.5, 80.0, 1.5, bins)


@pytest.fixture
def empty():
    """Of a benchmark that has just begun."""
    return Outcome(
        format=FORMAT,
        started_at="2026-01-02T03:04:05Z",
        seconds=3_000.0,
        command=["--works", "card", "--out", "somewhere/private"],
        git_commit="abc123+",
        machine=Machine("Some CPU", 2, 24 << 30, "Linux 6", "CPython 3.11.7"),
        versions={"xgboost-cpu": "3.2.0", "hazelcast": "5.6.0"},
        settings={"quick": False, "members": 2, "latency_s": 20.0},
    )


@pytest.fixture
def outcome(empty):
    """Of a benchmark with all parts; Gridscore is twice as fast as Jet with a dictionary."""
    empty.complete = True
    empty.works = [
        WorkNote("card", "the usual", 300_000, 12, 100, 90, 1_000),
        WorkNote("wide", "200 features", 100_000, 200, 100, 90, 1_000),
    ]
    empty.systems = [
        SystemNote("gridscore", "Gridscore, one worker process", "As installed."),
        SystemNote("by-hand", "a loop written by hand", "No contracts."),
        SystemNote("jet-dictionary", "Jet, a dictionary", "Tuned | well."),
        SystemNote("jet-imap", "Jet, mapUsingIMap", "Tuned."),
        SystemNote("http", "a web server", "One by one.", 0.1, in_grid=False, takes_backlog=False),
    ]
    empty.throughput = [
        throughput("http", [900, 1_000, 1_100], 800, 0),
        throughput("gridscore", [100_000, 120_000, 110_000]),
        throughput("by-hand", [150_000, 150_000, 150_000], 3, 5),
        throughput("jet-dictionary", [50_000, 60_000, 55_000], 10, 6),
        throughput("jet-imap", [], status=Status.FAILED, reason="It did\nnot | start."),
        throughput("limit-drain", [500_000, 600_000, 550_000], 1, 2),
        throughput("gridscore", [20_000, 20_000], work="wide"),
        throughput("jet-dictionary", [10_000, 20_000], work="wide"),
    ]
    empty.saturation = [Saturation("card", "gridscore", Status.MEASURED, "", 2_000, 4.0, 15_000.0, 0.97, 8.0, 12.0)]
    empty.latency = [
        latency("jet-dictionary", 500.0, 1.5, 5.0, 20.0),
        latency("gridscore", 500.0, 1.25, 6.0, 29.0),
        latency("gridscore", 2_000.0, 2.0, 8.0, 31.0),
        latency("jet-dictionary", 2_000.0, 3.0, 30.0, 20.0),
        latency("gridscore", 10_000.0, 20.0, 80.0, 200.0),
        latency("jet-dictionary", 10_000.0, 900.0, 1_900.0, 2_000.0, saturated=True),
        latency("gridscore", 7_500.0, 20.0, 80.0, 200.0, part=0.5),
    ]
    empty.spikes = [spike("gridscore"), spike("jet-dictionary")]
    empty.growth = [
        Growth("jobs", 4, Status.MEASURED, "", 1_000, 0.01, 5.0, 7.0, 250_000_000),
        Growth("jobs", 1, Status.MEASURED, "", 1_000, 0.01, 4.0, 6.0, 240_000_000),
        Growth("partitions", 1_999, Status.FAILED, "no memory"),
    ]
    return empty


def verdict(outcome, beginning):
    (found,) = (each for each in judgement.judge(outcome) if each.floor.startswith(beginning))
    return found


def rows(text):
    """Cells of a table by the first of them, without bold."""
    lines = [[cell.strip(" *") for cell in line.strip("|").split(" | ")] for line in text.splitlines()]
    return {line[0]: line[1:] for line in lines}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (123_456.0, "123,000"), (999.6, "1,000"), (12.345, "12.3"), (9.996, "10.0"), (1.0, "1.00"),
        (0.12345, "0.123"), (0.0123, "0.012"), (None, "\N{EN DASH}"), (math.nan, "\N{EN DASH}"), (-2.345, "-2.35"),
    ],
)  # fmt: skip
def test_numbers_have_three_significant_digits(value, text):
    assert number(value) == text


def test_a_spread_is_median_lowest_and_highest():
    assert spread_text(Spread.of([1.2, 1.5, 1.3])) == "1.30 (1.20\N{EN DASH}1.50)"
    assert spread_text(Spread.of([1.25])) == "1.25"
    assert spread_text(Spread.of([])) == "\N{EN DASH}"


def test_tables_leave_out_empty_columns_and_escape_bars():
    assert table(("", "a", "b"), [("x", "", "1|2")]).splitlines() == ["|  | b |", "| --- | ---: |", "| x | 1\\|2 |"]


def test_throughput_has_every_system_beside_ours(outcome):
    # When
    found = rows(sections.throughput(outcome, "card"))

    # Then
    dash = "\N{EN DASH}"
    assert list(found)[2:] == ["gridscore", "by-hand", "jet-dictionary", "jet-imap", "http"]
    assert found["gridscore"][:6] == [f"110,000 (100,000{dash}120,000)", dash, "10.0", "4.00", "6.00", "1,500"]
    assert found["jet-dictionary"][:6] == [f"55,000 (50,000{dash}60,000)", "2.00", "16.0", "10.0", "6.00", "1,500"]
    assert found["jet-imap"][:2] == [dash, dash]
    assert found["jet-imap"][-1] == "failed: It did not \\| start."
    assert "live: 1,000 events" in found["http"][-1]
    assert "limit-drain" not in found


def test_limits_are_beside_the_loop_by_hand_and_ours(outcome):
    found = rows(sections.limits(outcome, "card"))

    assert list(found)[2:] == ["drain the journal", "by-hand", "gridscore"]
    assert found["by-hand"][1] == "0.733 (0.667\N{EN DASH}0.800)"


def test_stages_are_of_each_work(outcome):
    found = rows(sections.stages(outcome))

    assert found["predict"][:2] == ["1.50", "1.50"]
    assert found["the whole worker"][:2] == ["4.00", "4.00"]


def test_floors_are_judged_both_ways(outcome):
    # Throughput: 2.00 times, and 0.73 of the loop in the median, but 0.67 in one round
    assert verdict(outcome, "Events/s beside `jet-dictionary`").text == "reached"
    assert verdict(outcome, "Events/s beside `by-hand`").text == "reached"
    assert verdict(outcome, "Events/s beside `by-hand`").found == "0.733 (0.667\N{EN DASH}0.800) times"
    # CPU: 10 of 16
    assert verdict(outcome, "CPU").found == "0.625 of it"
    assert verdict(outcome, "CPU").reached
    # Latency: 1.25 of 1.5, 6 of 5, 29 of 20 (allowed 30), then 31 of 20
    assert verdict(outcome, "p50 from due to seen at 500").reached
    assert not verdict(outcome, "p99 from due to seen at 500").reached
    assert verdict(outcome, "p99.9 from due to seen at 500").reached
    assert not verdict(outcome, "p99.9 from due to seen at 2,000").reached
    assert verdict(outcome, "p99.9 from due to seen at 2,000").text == "not reached"
    assert verdict(outcome, "The aim").reached


@pytest.mark.parametrize(
    ("rates", "text"),
    [
        ([70_000, 80_000, 75_000], "reached, in every round"),
        ([60_000, 80_000, 75_000], "reached"),
        ([60_000, 80_000, 71_000], "not reached"),
        ([40_000, 60_000, 50_000], "not reached, in no round"),
    ],
)
def test_the_median_decides_and_rounds_are_told(outcome, rates, text):
    # Given
    outcome.throughput = [throughput("gridscore", rates), throughput("jet-dictionary", [50_000, 60_000, 55_000])]

    # Then
    assert verdict(outcome, "Events/s beside `jet-dictionary`").text == text


def test_what_was_not_measured_is_not_judged(outcome, empty):
    assert verdict(outcome, "Events/s beside `jet-imap`").text == "not measured in this run"
    assert "failed" in verdict(outcome, "Events/s beside `jet-imap`").found
    assert verdict(outcome, "Events/s beside `jet-replicated`").reached is None
    empty.throughput, empty.latency = [], []
    assert {each.reached for each in judgement.judge(empty)} == {None}


def test_no_floor_is_reached_by_wrong_scores(outcome):
    outcome.throughput[1] = throughput("gridscore", [900_000] * 3, status=Status.WRONG, reason="1 of 500")

    assert verdict(outcome, "Events/s beside `jet-dictionary`").reached is False
    assert verdict(outcome, "CPU").reached is False


def test_who_keeps_the_rate_is_better_whatever_the_percentiles_are(outcome):
    # Given
    outcome.latency = [
        latency("gridscore", 500.0, 9.0, 9.0, 9.0),
        latency("jet-dictionary", 500.0, 1.0, 1.0, 1.0, saturated=True),
        latency("gridscore", 2_000.0, 1.0, 1.0, 1.0, saturated=True),
        latency("jet-dictionary", 2_000.0, 9.0, 9.0, 9.0),
    ]

    # Then
    assert verdict(outcome, "p50 from due to seen at 500").reached
    assert not verdict(outcome, "p50 from due to seen at 2,000").reached
    assert "Gridscore could not keep the rate" in verdict(outcome, "p50 from due to seen at 2,000").found


def test_percentiles_of_several_rounds_are_judged_by_the_median_of_their_ratios(outcome):
    # Given
    name = "p99.9 from due to seen at 500"
    ours, theirs = (30.0, 300.0, 20.0), (20.0, 30.0, 40.0)
    pairs = zip(("gridscore",) * 3 + ("jet-dictionary",) * 3, (*ours, *theirs), strict=True)
    rounds = [latency(system, 500.0, 1.0, 1.0, value) for system, value in pairs]

    # When
    outcome.latency = [rounds[0], rounds[3]]
    outcome.latency_again = [rounds[1], rounds[4], rounds[5], rounds[2]]

    # Then
    assert verdict(outcome, name).text == "reached"
    assert (
        verdict(outcome, name).found
        == f"{spread_text(Spread(30, 20, 300))} ms, and {spread_text(Spread(30, 20, 40))} ms"
    )
    outcome.latency_again[-1] = latency("gridscore", 500.0, 1.0, 1.0, 400.0)
    assert verdict(outcome, name).text == "not reached"
    outcome.latency_again.pop()
    assert verdict(outcome, name).text == "not reached"


def test_latency_marks_the_saturated_and_a_busy_sender(outcome):
    # When
    found = rows(sections.latency(outcome, 10_000.0))

    # Then
    assert found["gridscore"][:6] == ["0.300", "20.0", "40.0", "80.0", "200", "400"]
    assert found["gridscore"][-1] == "sender and listener may be the limit"
    assert "saturated" in found["jet-dictionary"][-1]
    assert "saturated" not in sections.latency(outcome, 500.0)


def test_growth_is_in_order_with_memory(outcome):
    found = rows(sections.growth(outcome, "jobs"))

    assert list(found)[2:] == ["1", "4"]
    assert found["4"] == ["100,000", "5.00", "7.00", "250"]
    assert "no memory" in sections.growth(outcome, "partitions")


def test_the_page_has_all_parts(outcome):
    # When
    page = report.page(outcome, TRIED, "full.json")

    # Then
    assert "`python -m benchmarks --works card`" in page
    assert "private" not in page
    assert "`abc123`, with changes" in page
    assert "0.250 cores in the median" in page
    assert "### wide: 200 features" in page
    assert "### 10,000 events a second" in page
    assert "Tuned | well." in page
    assert page.endswith(TRIED)
    assert "did not come to its end" not in page
    assert page.count("<picture>") == 5
    assert "\n\n\n" not in page


def test_missing_parts_are_said_in_a_line_each(empty):
    # When
    page = report.page(empty, TRIED, "full.json")

    # Then
    assert "did not come to its end" in page
    assert "<picture>" not in page
    for heading in (
        "### card",
        "## Limits, and where each microsecond goes",
        "## Latency",
        "### Through a spike",
        "## Growth",
    ):
        _, _, rest = page.partition(f"{heading}\n")
        assert NOT_MEASURED in rest.partition("\n#")[0], heading


def test_plots_are_small_and_the_same_each_time_and_go_with_their_data(outcome, tmp_path):
    # When
    first = plots.draw(outcome, tmp_path)
    drawn = {path: path.read_bytes() for path in first}
    outcome.growth.clear()
    plots.draw(outcome, tmp_path)

    # Then
    assert {path.name for path in first} == {f"{name}{theme}.svg" for name in plots.PLOTS for theme in plots.THEMES}
    for path in first:
        ET.fromstring(drawn[path])  # noqa: S314 -- of our own making
        assert len(drawn[path]) < 100_000
        assert path.name.startswith("growth") != path.exists()
        assert not path.exists() or path.read_bytes() == drawn[path]


def test_the_paragraph_says_what_was_reached(outcome):
    text = " ".join(report.paragraph(outcome).split())

    assert (
        "scores 2.00 times as many events a second as Jet with lookups in a dictionary, with 0.625 of its CPU" in text
    )
    assert "Of the 9 floors it set itself, 7 were reached." in text
    assert "2.00 ms (p50)" in text


def test_the_paragraph_goes_between_its_markers():
    assert (
        report.with_paragraph(f"a\n{report.BEGIN}\nold\n{report.END}\nb\n", "new")
        == f"a\n{report.BEGIN}\nnew\n{report.END}\nb\n"
    )
    with pytest.raises(report.UsageError, match="no place"):
        report.with_paragraph("nothing", "new")


def test_the_command_writes_a_page_and_leaves_the_readme_alone(empty, tmp_path):
    # Given
    readme = report.README.read_bytes()
    empty.save(tmp_path / "mine.json")

    # When
    report.main(tmp_path / "mine.json", tmp_path / "pages" / "mine.md")

    # Then
    assert "from `mine.json`" in (tmp_path / "pages" / "mine.md").read_text()
    assert report.README.read_bytes() == readme


def test_what_is_no_outcome_is_said(tmp_path):
    (tmp_path / "x.json").write_text("{}")

    with pytest.raises(report.UsageError, match="is not an outcome"):
        report.load(tmp_path / "x.json")


def test_the_committed_page_is_what_the_committed_outcome_makes():
    if not report.RESULT.exists():
        pytest.skip(f"No benchmark has been committed yet: there is no {report.RESULT.relative_to(report.ROOT)}.")

    # Given
    outcome = report.load(report.RESULT)

    # When
    page = report.page(outcome, report.TRIED.read_text(encoding="utf-8"), report.RESULT.name)

    # Then
    assert report.PAGE.read_text(encoding="utf-8") == page, "Run: python -m benchmarks.report"
    for name in view.plots(outcome):
        for theme in plots.THEMES:
            assert (report.PAGE.parent / report.PAGE.stem / f"{name}{theme}.svg").exists()


def test_the_readme_has_the_paragraph_that_the_committed_outcome_makes():
    outcome = report.load(report.RESULT) if report.RESULT.exists() else None
    readme = report.README.read_text(encoding="utf-8")

    assert report.with_paragraph(readme, report.paragraph(outcome)) == readme, "Run: python -m benchmarks.report"
