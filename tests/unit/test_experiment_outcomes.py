"""What labels say of an experiment: metrics and intervals, when they end one, and what a look reads from the grid."""

import asyncio
import json
import time
from functools import partial
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import xgboost as xgb
from scipy import stats
from sklearn import metrics
from test_bad_records import JOB
from test_experiments import NOW, begun, counts, eventually, experiment, nothing_left, takes_part
from test_stub_grid import booster

from gridscore.cli import experiment as command
from gridscore.errors import GridscoreError, JobFileError, UsageError
from gridscore.grid.records import Records
from gridscore.job import parse_job
from gridscore.models import outcomes
from gridscore.models.experiment import EXPERIMENTS_MAP, experiment_in, judged, waits_for
from gridscore.models.outcomes import Bound, Labelled, Outcome, Outcomes, Rows, _students, outcomes_of
from gridscore.models.variants import GROUPS
from gridscore.operations.health import Level, Look, examine
from gridscore.operations.status import Observer
from gridscore.scoring import outcomes as looks
from gridscore.scoring.outcomes import Look as LabelLook
from gridscore.scoring.trial import Trial, key_of
from gridscore.testing import StubCluster

AT = int(NOW * 1000) - 1_000
DECISIONS, COSTS = ("approve", "decline"), {"approve": (0.0, 100.0), "decline": (5.0, 0.0)}


def rows(labels, scores, groups=None):
    scores = np.asarray(scores, np.float32)
    groups = np.arange(len(scores)) % GROUPS if groups is None else groups
    return Rows(np.asarray(labels, np.float64), scores, (scores >= 0.7).astype(np.int64), np.asarray(groups))


def drawn(random, count, good=1.0):
    labels = (random.random(count) < 0.3).astype(float)
    return labels, 1 / (1 + np.exp(-good * (2 * labels - 1) - random.normal(size=count)))


def found_of(bound, *variants, least=100, tried=1):
    found = outcomes_of([bound], variants, least, DECISIONS, COSTS, tried)
    return found[0] if found else None


# ---------------------------------------------------------------------- metrics and intervals


def test_each_metric_is_that_of_scikit_learn_and_the_challenger_is_compared_with_the_champion():
    random = np.random.default_rng(1)
    both = [drawn(random, 800), drawn(random, 600, good=0.5)]

    def right(labels, scores):
        scores = scores.astype(np.float32)
        decided = scores >= np.float32(0.7)
        return {
            "auc": metrics.roc_auc_score(labels, scores),
            "log_loss": metrics.log_loss(labels, scores),
            "brier": np.mean((scores - labels) ** 2),
            "accuracy": np.mean((scores >= 0.5) == labels),
            "precision": metrics.precision_score(labels, decided),
            "recall": metrics.recall_score(labels, decided),
            "cost": np.where(decided, np.where(labels, 0, 5), np.where(labels, 100, 0)).mean(),
        }

    champion, challenger = (right(*each) for each in both)
    for name, value in challenger.items():
        decision = "decline" if name in ("precision", "recall") else ""
        rising = name in ("auc", "accuracy", "precision", "recall")
        alone = found_of(Bound(name, decision, **{"at_least" if rising else "at_most": 0.5}), *(rows(*e) for e in both))
        assert (alone.value, alone.champion, alone.problem) == (pytest.approx(value, rel=1e-5), None, "")
        assert alone.low < alone.value < alone.high
        beside = found_of(Bound(name, decision, worse_by=0.1), *(rows(*each) for each in both))
        worse = (champion[name] - value) * (1 if rising else -1)
        assert (beside.champion, beside.worse) == (
            pytest.approx(champion[name], rel=1e-5),
            pytest.approx(worse, rel=1e-4),
        )
        assert beside.low < beside.worse < beside.high
        assert worse > 0  # of that challenger


def test_whoever_looks_again_and_again_ends_a_challenger_that_is_no_worse_in_one_of_twenty_at_most(monkeypatch):
    """Labels of 3 alike events an entity come little by little, and all is looked at 25 times."""
    random, bound = np.random.default_rng(2), Bound("brier", worse_by=0.0)
    columns = []
    for _ in range(50):
        pairs = [(*drawn(random, 600), random.integers(0, GROUPS, 600)) for _ in range(2)]
        columns.append([[np.repeat(each, 3) for each in pair] for pair in pairs])

    def ended():
        counts_ = [int(60 * 1.15**look) for look in range(25)]
        return sum(
            any(
                found_of(bound, *(rows(*(each[:n] for each in one)) for one in both), least=60).low > 0 for n in counts_
            )
            for both in columns
        )

    assert ended() <= 2
    monkeypatch.setattr(outcomes, "_width", lambda *_: 1.96)
    assert ended() > 4  # as those do who take the interval of one look


def test_a_challenger_that_is_worse_is_found_and_entities_count_not_events():
    random = np.random.default_rng(3)
    champion, bad = drawn(random, 600, good=2.0), drawn(random, 600, good=0.2)
    assert found_of(Bound("auc", at_least=0.9), rows(*champion), rows(*bad)).high < 0.9
    assert found_of(Bound("auc", worse_by=0.05), rows(*champion), rows(*bad)).low > 0.05
    labels, scores = drawn(random, 60)
    few = found_of(Bound("brier", at_most=0.1), rows([], []), rows(labels, scores, np.arange(60)), least=50)
    often = [np.repeat(each, 100) for each in (labels, scores, np.arange(60))]
    many = found_of(Bound("brier", at_most=0.1), rows([], []), rows(*often), least=5_000)
    assert (many.low, many.high) == pytest.approx((few.low, few.high), rel=1e-3)


def test_intervals_are_wider_the_more_is_tried_and_the_fewer_groups_there_are():
    made = rows(*drawn(np.random.default_rng(4), 640))
    bounds = [Bound("brier", at_most=0.1), Bound("auc", at_least=0.9)]

    def width(found):
        return found.high - found.low

    one = found_of(bounds[0], made, made)
    assert width(outcomes_of(bounds, [made, made], 100, DECISIONS, COSTS, 1)[0]) > width(one)
    assert width(found_of(bounds[0], made, made, tried=4)) > width(one)
    assert "of 4 groups" in found_of(bounds[0], made, made._replace(groups=made.groups % 4)).problem


def decided(random, count, share, precision, recall=None):
    """Rows of which a share is declined, rightly as often as said; or a share is positive, and found as often."""
    first = random.random(count) < share
    if recall is None:
        labels, declined = np.where(first, random.random(count) < precision, random.random(count) < 0.01), first
    else:
        labels, declined = first, first & (random.random(count) < recall)
    return Rows(
        labels.astype(float), labels.astype(np.float32), np.where(declined, 1, 0), random.integers(0, GROUPS, count)
    )


@pytest.mark.parametrize(
    ("count", "share", "precision", "recall", "bound"),
    [
        (200, 0.02, 0.1, None, {"at_least": 0.05}),
        (500, 0.01, 0.1, None, {"at_least": 0.05}),
        (500, 0.02, 0.1, None, {"at_least": 0.05}),
        (2_000, 0.01, 0.1, None, {"at_least": 0.05}),
        (2_000, 0.02, 0.1, None, {"at_least": 0.05}),
        (200, 0.02, None, 0.4, {"at_least": 0.3}),
        (500, 0.02, None, 0.3, {"at_least": 0.2}),
        (2_000, 0.02, None, 0.3, {"at_least": 0.25}),
    ],
)
def test_a_good_challenger_of_which_few_rows_count_is_ended_in_one_of_twenty_at_most(
    count, share, precision, recall, bound
):
    random = np.random.default_rng(8)
    asked = Bound("precision" if recall is None else "recall", "decline", **bound)
    ended = 0
    for _ in range(100):
        theirs, found = decided(random, count, share, precision, recall), []
        for _ in range(4):  # looks
            found.append(found_of(asked, rows([], []), theirs, least=count))
            theirs = Rows(
                *map(
                    np.concatenate,
                    zip(theirs[:4], decided(random, count // 4, share, precision, recall)[:4], strict=True),
                )
            )
        ended += any(each.low is not None and max(asked.room(each.low), asked.room(each.high)) < 0 for each in found)
    assert ended <= 5


@pytest.mark.parametrize(("share", "precision"), [(0.02, 0.5), (0.02, 0.3), (0.01, 0.3)])
def test_nor_is_one_of_few_labels_that_is_as_good_as_a_champion_of_many(share, precision):
    random, asked, ended = np.random.default_rng(9), Bound("precision", "decline", worse_by=0.1), 0
    for _ in range(60):
        both, found = [decided(random, 3_800, share, precision), decided(random, 200, share, precision)], []
        for _ in range(4):
            found.append(found_of(asked, *both, least=200))
            more = [decided(random, 3_800, share, precision), decided(random, 200, share, precision)]
            both = [
                Rows(*map(np.concatenate, zip(old[:4], new[:4], strict=True)))
                for old, new in zip(both, more, strict=True)
            ]
        ended += any(each.low is not None and each.low > 0.1 for each in found)
    assert ended <= 3


def test_a_bad_one_is_ended_once_enough_rows_count_and_alike_rows_have_an_interval():
    random = np.random.default_rng(10)
    for bound, theirs in (
        (Bound("precision", "decline", at_least=0.3), decided(random, 5_000, 0.02, 0.0)),
        (Bound("recall", "decline", at_least=0.3), decided(random, 5_000, 0.02, None, 0.0)),
        (Bound("accuracy", at_least=0.3), rows([1] * 300, [0.1] * 300)),
        (Bound("cost", at_most=30), rows([1] * 300, [0.1] * 300)),
    ):
        found = found_of(bound, rows([], []), theirs)
        assert found.low < found.value < found.high
        assert max(bound.room(found.low), bound.room(found.high)) < 0


def test_alike_groups_have_no_interval_and_both_sides_need_rows_that_count():
    alike, many = rows([1, 0] * 64, [0.9, 0.1] * 64), decided(np.random.default_rng(11), 5_000, 0.02, 0.5)
    found = found_of(Bound("auc", at_least=0.8), rows([], []), alike)
    assert (found.value, found.low, found.high) == (1.0, None, None)
    assert "how far `auc` may be off cannot be said" in found.problem
    few = decided(np.random.default_rng(12), 200, 0.02, 0.5)
    for both in ((many, few), (few, many)):
        assert "count for it, and 30 are needed" in found_of(Bound("precision", "decline", worse_by=0.0), *both).problem


@pytest.mark.parametrize("freedom", [7, 15, 63])
def test_few_groups_widen_intervals_as_students_distribution_says(freedom):
    for normal in (1.96, 3.0, 3.6):
        right = stats.t.ppf(stats.norm.cdf(normal), freedom)
        assert _students(normal, freedom) == pytest.approx(right, rel=0.02)


@pytest.mark.parametrize(
    ("bound", "labels", "scores", "groups", "problem"),
    [
        (Bound("auc", at_least=0.8), [1] * 200, [0.5] * 200, None, "needs labels that are 0 and 1, and both of them"),
        (Bound("brier", at_most=0.1), [3] * 200, [0.5] * 200, None, "needs labels that are 0 and 1"),
        (Bound("log_loss", at_most=0.1), [1] * 200, [7.5] * 200, None, "needs scores that are probabilities"),
        (Bound("precision", "decline", at_least=0.1), [1] * 200, [0.5] * 200, None, "cannot be said of so few labels"),
        (
            Bound("brier", at_most=0.1),
            [1, 0] * 100,
            [0.5] * 200,
            [5] * 200,
            "are of 1 groups of entities; 8 of",
        ),
        (Bound("recall", "decline", at_least=0.1), [1] + [0] * 199, [0.5] * 200, None, "cannot be said"),
    ],
)
def test_what_labels_cannot_say_is_a_problem_and_ends_nothing(bound, labels, scores, groups, problem):
    found = found_of(bound, rows([], []), rows(labels, scores, groups))
    assert problem in found.problem
    assert found.value is None
    known = Outcomes(number=1, at=AT, labels={"challenger": Labelled(200, 200)}, found=(found,))
    now = experiment(limits={"outcomes": [msgspec.to_builtins(bound)], "least_labels": 100}, outcomes=known)
    assert judged(now, counts((9_000,), (9_000,)), counts(), 600.0, NOW) == now  # nor does it go on


def test_too_few_labels_say_nothing():
    made = rows(*drawn(np.random.default_rng(5), 99))
    assert found_of(Bound("auc", at_least=0.99), made, made) is None
    more = rows(*drawn(np.random.default_rng(5), 500))
    assert found_of(Bound("auc", worse_by=0.0), made, more) is None  # the champion has too few


def test_a_part_of_the_labels_stands_for_all_and_its_interval_is_that_of_the_part():
    labels, scores = drawn(np.random.default_rng(13), 6_400)
    every = rows(labels, scores)
    part = rows(labels[:1_600], scores[:1_600])
    bound = Bound("brier", at_most=0.9)
    assert found_of(bound, every, part, least=6_400) is None
    of_all, found = (found_of(bound, every, each, least=6_400) for each in (every, part._replace(one_of=4)))
    assert found.value == pytest.approx(of_all.value, abs=0.02)
    assert found.high - found.low > 1.8 * (of_all.high - of_all.low)


# ---------------------------------------------------------------------- what is to be done


def outcome(value, low, high, **more):
    return Outcome("challenger", 0, value=value, low=low, high=high, **more)


@pytest.mark.parametrize(
    ("bound", "found", "of_step", "expected"),
    [
        ({"at_least": 0.8}, outcome(0.9, 0.85, 0.95), 100, 1),
        ({"at_least": 0.8}, outcome(0.9, 0.85, 0.95), 99, 0),
        ({"at_least": 0.8}, outcome(0.79, 0.70, 0.85), 100, 0),  # perhaps by chance: it neither ends nor goes on
        ({"at_least": 0.8}, outcome(0.7, 0.6, 0.79), 0, "auc: 0.7 by 250 labels (95 %: 0.6 to 0.79); the bound is"),
        ({"worse_by": 0.02}, outcome(0.9, -0.01, 0.03, champion=0.91, worse=0.01), 100, 1),
        ({"worse_by": 0.02}, outcome(0.9, 0.0, 0.06, champion=0.93, worse=0.03), 100, 0),
        (
            {"worse_by": 0.02},
            outcome(0.8, 0.03, 0.2, champion=0.9, worse=0.1),
            100,
            "auc: 0.8 by 250 labels, the champion's 0.9: worse by 0.1 (95 %: 0.03 to 0.2); the bound is at most 0.02",
        ),
    ],
)
def test_a_step_waits_for_labels_and_what_is_not_kept_ends_the_challenger(bound, found, of_step, expected):
    known = Outcomes(number=3, at=AT, labels={"challenger": Labelled(250, of_step)}, found=(found,))
    limits = {"least": 100, "outcomes": [{"name": "auc", **bound}], "least_labels": 100}
    before = experiment(limits=limits, outcomes=known)
    after = judged(before, counts((1_000,), (200,)), counts(), 60.0, NOW)
    if isinstance(expected, str):
        assert after.state == "ended"
        assert after.why.startswith(expected)
        assert not after.challengers[0].told
    else:
        assert (after.step, after.state) == (expected, "running")
        if expected:  # labels of the step before say nothing of this one
            assert judged(after, counts((9_000,), (9_000,)), counts(), 60.0, NOW) == after


GOOD = {"number": 3, "at": AT, "labels": {"challenger": Labelled(250, 120)}, "found": (outcome(0.9, 0.85, 0.95),)}


@pytest.mark.parametrize(
    ("known", "events", "waits"),
    [
        (GOOD, 200, ""),
        (GOOD, 60, "100 events of the challenger in this step, of which it has 60"),
        (GOOD | {"step": 1}, 200, "a look at the labels"),
        ({}, 200, "a look at the labels"),
        (GOOD | {"at": AT - 120_000}, 200, "a look at the labels"),
        (GOOD | {"at": AT - 120_000, "seconds": 1.0}, 200, ""),  # looks that take a second are that far apart
        (GOOD | {"problem": "there are none in the map `x`"}, 200, "labels: there are none in the map `x`"),
        (
            GOOD | {"labels": {"challenger": Labelled(250, 99)}},
            200,
            "100 labels of events of this step, of which there are 99",
        ),
        (GOOD | {"found": (outcome(0.75, 0.7, 0.85),)}, 200, "`auc`, which is 0.75, to be at least 0.8"),
        (GOOD | {"found": ()}, 200, "`auc`: too few labels"),
        (GOOD | {"found": (Outcome("challenger", 0, problem="too alike"),)}, 200, "`auc`: too alike"),
    ],
)
def test_a_step_says_what_it_waits_for_and_goes_on_by_nothing_old(known, events, waits):
    limits = {"least": 100, "outcomes": [{"name": "auc", "at_least": 0.8}], "least_labels": 100}
    before, total = experiment(limits=limits, outcomes=Outcomes(**known)), counts((1_000,), (events,))
    assert waits_for(before, total, NOW) == waits
    assert judged(before, total, counts(), 60.0, NOW).step == (not waits)


def test_of_several_only_the_challenger_that_does_not_keep_its_bound_ends():
    found = (
        Outcome("challenger", 0, value=0.9, low=0.85, high=0.95),
        Outcome("challenger-2", 0, value=0.6, low=0.5, high=0.7),
    )
    before = experiment(
        kind="split",
        steps=[30],
        every=0,
        challengers=[{"version": 2}, {"version": 3}],
        limits={"outcomes": [{"name": "auc", "at_least": 0.8}], "least_labels": 100},
        outcomes=Outcomes(labels={name: Labelled(200, 200) for name in ("challenger", "challenger-2")}, found=found),
    )
    after = judged(before, counts(), counts(), 1.0, NOW)
    assert [each.state for each in after.challengers] == ["running", "ended"]
    assert (after.state, after.since) == ("running", before.since)
    assert after.why.startswith("challenger-2 v3: auc: 0.6 by 200 labels")


# ---------------------------------------------------------------------- what a look reads

LABELLED = JOB + "labels: {map: labels.payments, positive: [fraud], cost: {}}\n"


async def put(grid, name, entries):
    from hazelcast.core import HazelcastJsonValue

    proxy = await grid.map(name)
    for key, value in entries.items():
        await proxy.set(key, HazelcastJsonValue(json.dumps(value)))


def result(n, variant, at=2_000, **more):
    return {"score": n / 100, "sequence": n, "epoch": 1, "variant": variant, "version": 1, "scored_at": at, **more}


async def looked(stub, job, **changes):
    client = await stub.client()
    tried = experiment(**{"begun": "1970-01-01T00:00:01Z", "since": "1970-01-01T00:00:03Z", **changes})
    key = key_of(job, tried.key, {}) if tried.key else None
    return await LabelLook(client.grid, job, Trial(tried, key=key)).outcomes()


LIMITS = {"outcomes": [{"name": "brier", "at_most": 0.9}], "least_labels": 5}


async def test_a_label_that_comes_late_twice_or_corrected_counts_once_and_others_do_not_count():
    job = parse_job(LABELLED, "test")
    async with StubCluster(partitions=5) as stub:
        grid = (await stub.client()).grid
        theirs = {f"c{n}": result(n, "challenger", 2_000 + 2_000 * (n % 2)) for n in range(20)}
        others = {f"o{n}": result(n, "champion") for n in range(30)}
        before = {f"b{n}": result(n, "challenger", 500) for n in range(9)}  # of an experiment before
        alone = {f"a{n}": {**result(n, ""), "variant": None} for n in range(9)}
        strange = {"s1": result(1, "challenger-4"), "s2": result(1, "x"), "s3": {"score": "?", "variant": "champion"}}
        await put(grid, "results.payments", theirs | others | before | alone | strange)
        first = await looked(stub, job, limits=LIMITS)
        assert (first.labels["challenger"], first.found) == (Labelled(0, 0), ())

        await put(grid, "labels.payments", {key: {"label": "fraud"} for key in theirs | before | alone | strange})
        await put(
            grid, "labels.payments", {"c0": {"label": "fraud"}, "c1": {"label": "good"}, "gone": {"label": "good"}}
        )
        await put(grid, "labels.payments", {f"o{n}": {"label": "good"} for n in range(7)})
        for number in (1, 2):
            found = await looked(stub, job, limits=LIMITS, outcomes=Outcomes(number=number))
            assert (found.number, found.labels) == (
                number + 1,
                {"champion": Labelled(7, 0), "challenger": Labelled(20, 10)},
            )
            right = np.mean([(n / 100 - (n != 1)) ** 2 for n in range(20)])
            assert found.found[0].value == pytest.approx(right, rel=1e-5)


async def test_of_very_many_labels_a_part_is_read_and_all_are_counted_as_they_may_be(monkeypatch):
    monkeypatch.setattr(looks, "MOST_ROWS", 100)
    job = parse_job(LABELLED, "test")
    async with StubCluster(partitions=5) as stub:
        grid = (await stub.client()).grid
        await put(grid, "results.payments", {f"c{n}": result(n % 100, "challenger") for n in range(1_000)})
        await put(grid, "labels.payments", {f"c{n}": {"label": "fraud"} for n in range(1_000)})
        look = LabelLook(grid, job, Trial(experiment(limits=LIMITS, begun="1970-01-01T00:00:01Z", since="")))
        found = await look.outcomes()
        assert sum(map(len, look._rows)) <= 50
        assert 500 < found.labels["challenger"].all < 1_600
        right = np.mean([(n / 100 - 1) ** 2 for n in range(100)])
        assert found.found[0].value == pytest.approx(right, abs=0.1)


async def test_a_challenger_with_a_small_share_is_judged_by_all_of_its_labels(monkeypatch):
    monkeypatch.setattr(looks, "MOST_ROWS", 400)
    job = parse_job(LABELLED, "test")
    async with StubCluster(partitions=5) as stub:
        grid = (await stub.client()).grid
        theirs = {f"c{n}": result(n, "challenger", 2_000 + 2_000 * (n % 2)) for n in range(40)}
        others = {f"o{n}": result(n % 100, "champion") for n in range(4_000)}
        await put(grid, "results.payments", theirs | others)
        await put(grid, "labels.payments", {key: {"label": "good"} for key in theirs | others})
        bound = {"outcomes": [{"name": "brier", "worse_by": 0.1}], "least_labels": 40}
        found = await looked(stub, job, limits=bound)
        assert found.labels["challenger"] == Labelled(40, 20)
        assert 3_000 < found.labels["champion"].all < 5_000
        (judged_,) = found.found
        assert judged_.value == pytest.approx(np.mean([(n / 100) ** 2 for n in range(40)]), rel=1e-5)
        assert judged_.champion == pytest.approx(np.mean([(n / 100) ** 2 for n in range(100)]), abs=0.08)


async def test_more_labels_than_are_kept_can_be_asked_for(monkeypatch):
    monkeypatch.setattr(looks, "MOST_ROWS", 200)
    job = parse_job(LABELLED, "test")
    async with StubCluster(partitions=5) as stub:
        grid = (await stub.client()).grid
        await put(grid, "results.payments", {f"c{n}": result(n % 100, "challenger", 4_000) for n in range(2_000)})
        await put(grid, "labels.payments", {f"c{n}": {"label": n % 2} for n in range(2_000)})
        found = await looked(stub, job, limits={**LIMITS, "least_labels": 1_000})
        assert found.labels["challenger"].of_step > 1_000
        assert [each.bound for each in found.found] == [0]


async def test_of_a_shadow_with_very_many_labels_the_same_events_are_compared(monkeypatch):
    monkeypatch.setattr(looks, "MOST_ROWS", 100)
    job = parse_job(LABELLED, "test")
    async with StubCluster(partitions=5) as stub:
        grid = (await stub.client()).grid
        await put(grid, "results.payments", {f"k{n}": result(n % 100, "champion") for n in range(900)})
        beside = {f"k{n}": {**result(n % 100, "challenger"), "score": 0.5} for n in range(0, 900, 20)}
        await put(grid, "shadow.results.payments", beside)
        await put(grid, "labels.payments", {f"k{n}": {"label": "good"} for n in range(900)})
        tried = experiment(kind="shadow", steps=[], every=0, limits=LIMITS, begun="1970-01-01T00:00:01Z", since="")
        look = LabelLook(grid, job, Trial(tried))
        found = await look.outcomes()
        champion, challenger = ({row.key for row in each} for each in look._rows)
        assert challenger < champion
        taken = sum(found.labels[each].all for each in ("champion", "challenger")) / 945
        assert 0.4 < taken < 1.8


async def test_a_shadow_is_compared_with_what_the_champion_gave_the_same_event():
    job = parse_job(LABELLED, "test")
    async with StubCluster(partitions=5) as stub:
        grid = (await stub.client()).grid
        await put(grid, "results.payments", {f"k{n}": result(n, "champion") for n in range(40)})
        beside = {f"k{n}": {**result(n, "challenger"), "score": 0.5} for n in range(30)}
        beside["k0"]["sequence"] = 77  # of another event
        await put(grid, "shadow.results.payments", beside)
        await put(grid, "labels.payments", {f"k{n}": {"label": "good"} for n in range(35)})
        bound = {"outcomes": [{"name": "brier", "worse_by": 0.9}], "least_labels": 5}
        found = await looked(stub, job, kind="shadow", steps=[], every=0, limits=bound)
        assert [found.labels[each].all for each in ("champion", "challenger")] == [35, 29]
        assert found.found[0].value == pytest.approx(0.25)
        assert found.found[0].champion == pytest.approx(np.mean([(n / 100) ** 2 for n in range(35)]), rel=1e-5)


async def test_entities_by_an_expression_are_those_of_the_events():
    job = parse_job(LABELLED.replace("schema: {", "schema: {customer: string?, "), "test")
    async with StubCluster(partitions=5) as stub:
        grid = (await stub.client()).grid
        await put(grid, "results.payments", {f"k{n}": result(n, "challenger") for n in range(40)})
        events = {f"k{n}": {"amount": 5, "customer": f"c{n % 7}"} for n in range(30)}
        events["k5"] = {"amount": 5}  # nobody's
        await put(grid, "events.payments", {**events, "k6": {"amount": "broken"}})
        await put(grid, "labels.payments", {f"k{n}": {"label": "good"} for n in range(40)})
        tried = experiment(key="customer", limits=LIMITS, begun="1970-01-01T00:00:01Z", since="")
        look = LabelLook(grid, job, Trial(tried, key=key_of(job, "customer", {})))
        found = await look.outcomes()
        assert found.labels["challenger"].all == 28
        draws = tried.draws([f"c{n}".encode() for n in range(7)])
        assert {row.group for each in look._rows for row in each} == set((draws % GROUPS).tolist())


async def test_labels_with_keys_of_their_own_and_invalid_ones():
    text = JOB + "labels: {map: labels.payments, key: amount}\nresult: {include: [amount]}\n"
    job = parse_job(text, "test")
    async with StubCluster(partitions=5) as stub:
        grid = (await stub.client()).grid
        await put(grid, "results.payments", {f"k{n}": result(n, "challenger", amount=float(n)) for n in range(40)})
        await put(grid, "labels.payments", {f"{float(n)}": {"label": 1 if n else "?"} for n in range(20)})
        found = await looked(stub, job, limits=LIMITS)
        assert (found.labels["challenger"].all, found.invalid) == (19, 1)


async def test_labels_of_which_there_are_none_and_of_which_none_can_be_used_are_a_problem():
    job = parse_job(JOB + "labels: {map: labels.payments}\n", "test")
    async with StubCluster(partitions=5) as stub:
        grid = (await stub.client()).grid
        await put(grid, "results.payments", {f"k{n}": result(n, "challenger") for n in range(40)})
        assert (await looked(stub, job, limits=LIMITS)).problem == "there are none in the map `labels.payments`"
        await put(grid, "labels.payments", {"other": {"label": 1}})
        assert (await looked(stub, job, limits=LIMITS)).problem == ""  # they may come
        await put(grid, "labels.payments", {f"k{n}": {"label": "fraud"} for n in range(7)})
        found = await looked(stub, job, limits=LIMITS)
        assert found.problem.startswith("none of 7 in the map `labels.payments` can be used: 'fraud' is not a number")
        await put(grid, "labels.payments", {"k8": {"label": 1}})
        assert (await looked(stub, job, limits=LIMITS)).problem == ""


# ---------------------------------------------------------------------- on a cluster


def upside_down():
    given = np.linspace(0, 2, 400, dtype=np.float32).reshape(-1, 1)
    right = booster(6).inplace_predict(given, validate_features=False) > 0.5
    matrix = xgb.DMatrix(given, (~right).astype(int), feature_names=["share"])
    return xgb.train({"objective": "binary:logistic", "nthread": 1}, matrix, 9)


async def test_a_canary_that_labels_show_to_be_worse_ends_by_itself_and_everybody_is_told(monkeypatch):
    monkeypatch.setattr(outcomes, "LOOK_SECONDS", 0.3)
    monkeypatch.setattr(outcomes, "_RARE", 1)
    async with StubCluster(partitions=5) as stub:
        client = await begun(stub, rounds=(6,))
        await client.cancel("payments")
        text = JOB + "labels: {map: labels.payments}\nexperiment: {steps: [50, 100], every: 60s, max_psi: 50}\n"
        await client.submit(parse_job(text, "test"))
        await client.push_model(upside_down(), "payments")
        async with stub.worker("first"), stub.worker("second"):
            bound = {"name": "log_loss", "worse_by": 0.05}
            found = await client.start_experiment("payments", 2, outcomes=[bound], least_labels=50, why="a drill")
            assert (found.steps, found.every, found.limits.psi) == ((50.0, 100.0), 60.0, 50.0)
            await takes_part(client, found)
            events = {f"e{n}": {"amount": n % 200} for n in range(600)}
            await client.put_events("events.payments", events)
            made = await stub.results("results.payments", 600)
            assert {each["variant"] for each in made.values()} == {"champion", "challenger"}
            given = np.array([[event["amount"] / 100] for event in events.values()], np.float32)
            truth = booster(6).inplace_predict(given, validate_features=False) > 0.5
            await put(
                client.grid, "labels.payments", {k: {"label": bool(t)} for k, t in zip(events, truth, strict=True)}
            )
            ended = await eventually(lambda: is_told(client))
            assert "the bound is at most 0.05 worse than the champion's" in ended.why
            shown = (await client.experiment("payments")).to_json()
            assert (shown["variants"][1]["state"], shown["outcomes"][0]["metric"]) == ("ended", "log_loss")
            assert shown["variants"][1]["labels"] > 200
            log = [each for each in await client.models.log("payments") if each.action == "experiment end"]
            assert [(each.version, each.why) for each in log] == [(2, ended.why)]
            alerts = await stub.results("alerts.payments", 1)
            (key, alert), *_ = alerts.items()
            assert key == f"payments/payments v2/experiment/{found.id}"
            assert (alert["state"], alert["measure"], alert["why"]) == ("started", "experiment", ended.why)

            async def is_over():
                await client.put_events("events.payments", {"late": {"amount": 5}})
                return "variant" not in (await stub.results("results.payments", 601))["late"]

            await eventually(is_over)
            await client.stop_experiment("payments")
            assert (await stub.results("alerts.payments", 1))[key]["state"] == "ended"
            assert await nothing_left(client)


async def test_a_canary_that_waits_for_labels_in_vain_says_so_until_they_come(monkeypatch):
    monkeypatch.setattr(outcomes, "LOOK_SECONDS", 0.3)
    monkeypatch.setattr(outcomes, "_RARE", 1)
    async with StubCluster(partitions=5) as stub:
        client = await begun(stub, rounds=(6,))
        await client.cancel("payments")
        await client.submit(parse_job(JOB + "labels: {map: labels.payments}\n", "test"))
        await client.push_model(booster(7), "payments")
        async with stub.worker():
            bound = {"name": "log_loss", "at_most": 50.0}
            options = {"steps": [50, 100], "every": 0.5, "least": 5, "outcomes": [bound], "least_labels": 40}
            found = await client.start_experiment("payments", 2, **options)
            await takes_part(client, found)
            events = {f"e{n}": {"amount": n % 200} for n in range(300)}
            await client.put_events("events.payments", events)
            await stub.results("results.payments", 300)
            (key,) = alerts = await stub.results("alerts.payments", 1, seconds=30)
            assert key == f"payments/payments v2/labels/{found.id}"
            said = "there are none in the map `labels.payments`"
            assert [alerts[key][what] for what in ("measure", "state", "why")] == ["labels", "started", said]
            standing = await client.experiment("payments")
            assert (standing.experiment.step, standing.to_json()["waits"]) == (0, f"labels: {said}")
            assert standing.text.partition(";")[2].startswith(f" the next step waits for labels: {said}; champion")
            looked_at = Look(0.0, (await Observer(client.grid, "payments").look()).jobs[0])
            told = {each.code: each for each in examine([looked_at])}
            assert told["step_waits"].text == f"The next step of the experiment waits for labels: {said}."
            assert told["step_waits"].level is Level.NOTE

            await put(client.grid, "labels.payments", {name: {"label": n % 2} for n, name in enumerate(events)})

            async def goes_on():
                return (await client.experiment("payments")).experiment.step == 1

            async def is_over():
                return (await stub.results("alerts.payments", 1))[key]["state"] == "ended"

            await eventually(goes_on)
            await eventually(is_over)
            assert (await client.experiment("payments")).waits == ""  # it is at the last one

            await (await client.grid.map("labels.payments")).clear()

            async def is_told_again():
                return not await is_over()

            await eventually(is_told_again)
            await client.stop_experiment("payments")
            assert await is_over()
            assert await nothing_left(client)


async def test_a_record_that_becomes_unreadable_while_labels_are_looked_at_ends_nothing_else(monkeypatch):
    class Looked:
        count = 0

        def __init__(self, *_):
            Looked.count += 1

        async def outcomes(self):
            return Outcomes(number=Looked.count)

    monkeypatch.setattr(outcomes, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(looks, "PUBLISH_SECONDS", 0.0)
    monkeypatch.setattr(looks, "Look", Looked)
    bound = {"name": "auc", "at_least": 0.5}
    trial = SimpleNamespace(experiment=experiment(limits={"least_labels": 1, "outcomes": [bound]}))
    async with StubCluster(partitions=5) as stub:
        grid = (await stub.client()).grid
        await put(grid, EXPERIMENTS_MAP, {"payments": {"id": "e1", "limits": "what?"}})
        members = SimpleNamespace(rank=lambda _name: 0)
        looking = asyncio.create_task(
            looks.look_at_labels(grid, Records(grid, EXPERIMENTS_MAP), parse_job(JOB, "test"), members, lambda: trial)
        )

        async def goes_on():
            assert not looking.done(), looking.exception()
            return Looked.count > 2

        await eventually(goes_on)
        looking.cancel()


class Watched:
    """Workers that look at the labels of an experiment, in the test's time."""

    def __init__(self, grid, monkeypatch, workers):
        self._grid, self._records, self._now = grid, Records(grid, EXPERIMENTS_MAP), 0.0
        self._turns = [0] * workers
        self.looks, self.fails = [0] * workers, set()
        monkeypatch.setattr(grid, "clock", lambda: self._now)
        monkeypatch.setattr(looks, "PUBLISH_SECONDS", 0.0)
        monkeypatch.setattr(
            looks, "Look", lambda _grid, _job, trial: SimpleNamespace(outcomes=partial(self._look, trial))
        )

    async def _look(self, trial):
        self.looks[trial.rank] += 1
        if trial.rank in self.fails:
            raise GridscoreError("there is no room here")
        return Outcomes(number=trial.experiment.outcomes.number + 1, at=int(time.time() * 1000))

    async def begin(self):
        self._known = tried = experiment(since="1970-01-01T00:00:03Z", limits=LIMITS)
        await put(self._grid, EXPERIMENTS_MAP, {"payments": tried.to_json()})
        everybody = set(range(len(self._turns)))
        self._tasks = [
            asyncio.create_task(
                looks.look_at_labels(
                    self._grid,
                    self._records,
                    parse_job(LABELLED, "test"),
                    SimpleNamespace(rank=lambda _name, rank=rank: rank, group=lambda _name: everybody),
                    partial(self._current, rank),
                )
            )
            for rank in everybody
        ]

    def _current(self, rank):
        self._turns[rank] += 1
        return SimpleNamespace(rank=rank, experiment=self._known)

    async def go_on(self, pauses):
        """Let that many pauses between two looks go by; gives what is noted then."""
        for _ in range(pauses * 5):
            self._now += outcomes.LOOK_SECONDS / 5
            before = [*self._turns]
            async with asyncio.timeout(20):  # two turns, of which one is wholly of this time
                while any(now < then + 2 for now, then in zip(self._turns, before, strict=True)):
                    await asyncio.sleep(0)
            self._known = experiment_in(await self._records.get("payments"))
        return self._known.outcomes

    async def alerts(self):
        found = await Records(self._grid, "alerts.payments").all()
        return [(each.value["state"], each.value["why"]) for each in found.values()]

    def end(self):
        for each in self._tasks:
            each.cancel()


async def test_who_cannot_look_at_labels_leaves_it_to_the_others_and_alarms_nobody(monkeypatch):
    async with StubCluster(partitions=5) as stub:
        watched = Watched((await stub.client()).grid, monkeypatch, 3)
        watched.fails = {0}
        await watched.begin()
        assert (await watched.go_on(2)).problem == "there is no room here"
        after = await watched.go_on(98)
        assert after.number > 30  # one in three pauses, as the second one does
        assert after.problem == ""
        assert not after.is_old(time.time())
        assert 2 <= watched.looks[0] <= 5  # it tries again, rarely
        assert watched.looks[2] == 0
        assert await watched.alerts() == []
        watched.fails = set()
        await watched.go_on(40)
        before = [*watched.looks]
        await watched.go_on(10)
        assert [now > then for now, then in zip(watched.looks, before, strict=True)] == [True, False, False]
        watched.end()


@pytest.mark.parametrize("workers", [1, 3])
async def test_labels_that_nobody_can_look_at_alarm_until_somebody_can(monkeypatch, workers):
    async with StubCluster(partitions=5) as stub:
        watched = Watched((await stub.client()).grid, monkeypatch, workers)
        watched.fails = set(range(workers))
        await watched.begin()
        await watched.go_on(4)
        assert await watched.alerts() == [("started", "there is no room here")]
        watched.fails = set()
        assert (await watched.go_on(8)).problem == ""
        assert [state for state, _ in await watched.alerts()] == ["ended"]
        watched.end()


async def test_an_alert_of_labels_is_ended_if_the_experiment_ends_just_then():
    async with StubCluster(partitions=5) as stub:
        grid, job = (await stub.client()).grid, parse_job(LABELLED, "test")
        waits = experiment(since="1970-01-01T00:00:03Z", limits=LIMITS, outcomes=Outcomes(number=1, problem="none"))
        await put(grid, EXPERIMENTS_MAP, {"payments": waits.ended(0, "shift", "now", told=True).to_json()})
        await looks._tell(grid, Records(grid, EXPERIMENTS_MAP), job, waits, Outcomes(number=2, problem="none"))
        ((_, alert),) = (await stub.results("alerts.payments", 1)).items()
        assert (alert["measure"], alert["state"]) == ("labels", "ended")


async def is_told(client):
    each = (await client.experiment("payments")).experiment.challengers[0]
    return each if each.state == "ended" and each.told else None


# ---------------------------------------------------------------------- words


def test_the_job_file_and_the_command_say_it_in_the_same_words():
    text = "experiment: {split: 20, outcomes: [{name: auc, at_least: 0.8}, {name: log_loss, worse_by: 0.02}]}\n"
    job = parse_job(LABELLED + text, "test")
    said = [command._bound("auc,at_least=0.8"), command._bound("log_loss, worse_by = 0.02")]
    assert said == [each.model_dump(exclude_none=True) for each in job.experiment.outcomes]
    assert job.experiment.labels_needed == 200
    with pytest.raises(UsageError, match="`at_least=x` is not a bound"):
        command._bound("auc,at_least=x")


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        ("steps: [5, 5]", "the steps do not ascend"),
        ("split: 5, shadow: true", "give one of them"),
        ("every: 5m, split: 5", "`every` is for a canary"),
        ("outcomes: [{name: auc, at_most: 0.5}]", "`auc` takes `at_least` or `worse_by`"),
        ("outcomes: [{name: auc}]", "one of them only"),
        ("outcomes: [{name: recall, at_least: 0.5}]", "`recall` is that of a `decision`"),
        ("outcomes: [{name: auc, at_least: 0.5, decision: x}]", "`auc` is not that of a `decision`"),
        ("outcomes: [{name: recall, at_least: 0.5, decision: x}]", "which is not one of the `decisions`"),
        ("outcomes: [{name: cost, at_most: 5}]", "say nothing of `cost`"),
        ("outcomes: [{name: auc, atleast: 5}]", "did you mean `at_least`"),
        ("step: [5]", "did you mean `steps`"),
        ("least_labels: 0", "it must be at least 1"),
        ("least_labels: 100001", "it must be at most 100,000"),
    ],
)
def test_a_job_file_that_asks_for_what_cannot_be_is_refused(lines, match):
    with pytest.raises(JobFileError, match=match):
        parse_job(f"{LABELLED.replace(', cost: {}', '')}experiment: {{{lines}}}\n", "test")
    with pytest.raises(JobFileError, match="needs `labels`"):
        parse_job(f"{JOB}experiment: {{outcomes: [{{name: auc, at_least: 0.5}}]}}\n", "test")
