"""Experiments: who is whose, what is to be done next, what may be chance, and what results, workers and people see."""

import asyncio
import json
import math
import zlib
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import xgboost as xgb
from serving import PLAIN, client, prepared, serving
from serving import booster as plain_booster
from test_bad_records import JOB
from test_stub_grid import booster
from typer.testing import CliRunner

from gridscore.cli import _commands
from gridscore.client import experiments
from gridscore.errors import ModelError, ModelMismatchError, UsageError
from gridscore.features import FeaturePlan
from gridscore.grid.records import Records
from gridscore.grid.wire import Page
from gridscore.group.reader import Arrival, Cursor
from gridscore.job import parse_job
from gridscore.models import LoadedModel
from gridscore.models.candidate import Candidate
from gridscore.models.experiment import EXPERIMENTS_MAP, LABELS, Experiment, Limits, judged, tell_alert
from gridscore.models.metrics import psi
from gridscore.models.variants import COUNTS_MAP, GROUPS, VARIANTS, Counted, Counts, Tally, compared, holm, shift_of
from gridscore.operations.status import Observer
from gridscore.operations.wipe import remnants, wipe
from gridscore.scoring import live_experiment, results
from gridscore.scoring.live_experiment import LiveExperiment
from gridscore.scoring.scorer import Scorer
from gridscore.scoring.stats import JobStats
from gridscore.scoring.trial import ActiveModel, Trial, key_of
from gridscore.testing import StubCluster


def experiment(**changes):
    value = {
        "id": "e1",
        "job": "payments",
        "submitted_at": "then",
        "model": "payments",
        "challengers": [{"version": 2}],
        "kind": "canary",
        "steps": [5, 25, 100],
        "every": 60,
        "since": "then",
        "by": "ana@here",
        **changes,
    }
    return msgspec.convert(value, Experiment)


def is_challengers(entity, salt, share):
    """The rule of the docs, without numpy."""
    number = zlib.crc32(entity.encode()) ^ zlib.crc32(salt.encode())
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        number = ((number ^ number >> shift) * factor) & 0xFFFFFFFF
    return number * 10_000 // 2**32 < round(share * 100)


# ---------------------------------------------------------------------- who is whose


@pytest.mark.parametrize("share", [0.01, 0.07, 5, 33.33, 100])
def test_who_is_the_challengers_is_a_matter_of_arithmetic(share):
    names = [f"customer-{n}" for n in range(5_000)] + ["", "ä", "\N{SNOWMAN}"]
    found = experiment(steps=[share], id="abc")
    taken = found.variants(found.draws([name.encode() for name in names])) == 1
    assert taken.tolist() == [is_challengers(name, "abc", share) for name in names]
    assert abs(taken.mean() - share / 100) < 0.02


def test_nobody_flips_as_the_share_grows_and_experiments_draw_anew():
    names = [b"%d" % n for n in range(10_000)]
    found = experiment(steps=[1, 5, 25, 60, 100])
    before = np.zeros(len(names), bool)
    for step in range(5):
        now = msgspec.structs.replace(found, step=step)
        taken = now.variants(now.draws(names)) == 1
        assert not (before & ~taken).any()
        before = taken
    assert before.all()
    first, other = (experiment(id=name, steps=[50]) for name in ("e1", "e2"))
    both = (first.variants(first.draws(names)) == 1) & (other.variants(other.draws(names)) == 1)
    assert abs(both.mean() - 0.25) < 0.02


def test_an_event_without_an_entity_is_the_champions():
    found = experiment(steps=[100])
    draws = found.draws([b"a", None, b"b"])
    assert (draws[1], found.variants(draws).tolist()) == (-1, [1, 0, 1])


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": []},
        {"steps": [5, 5]},
        {"steps": [101]},
        {"steps": [0]},
        {"kind": "shadow"},
        {"step": 3},
        {"every": -1},
    ],
)
def test_a_record_that_makes_no_sense_is_not_one(changes):
    with pytest.raises(msgspec.ValidationError):
        experiment(**changes)


def challengers(*numbers):
    return [{"version": number} for number in numbers]


def test_several_have_exact_shares_and_one_that_is_stopped_moves_nobody_between_the_others():
    names = [b"customer-%d" % n for n in range(20_000)]
    found = experiment(kind="split", steps=[20], challengers=challengers(2, 3, 4), id="abc")
    before = found.variants(found.draws(names))
    places = [
        next((n for n in (1, 2, 3) if is_challengers(name.decode(), "abc", 20 * n)), 0) for name in names
    ]  # the docs: below 20 % the first one's, below 40 % the second's, …
    assert before.tolist() == places
    assert np.abs(np.bincount(before) / len(names) - (0.4, 0.2, 0.2, 0.2)).max() < 0.02
    after = found.ended(1, "no better", "now", told=True)
    now = after.variants(after.draws(names))
    assert (now[before == 2] == 0).all()
    assert (now[before != 2] == before[before != 2]).all()
    assert (after.state, after.why) == ("running", "challenger-2 v3: no better")


@pytest.mark.parametrize(
    "changes",
    [
        {"challengers": challengers(2, 3)},  # of a canary
        {"kind": "split", "steps": [20], "challengers": challengers(2, 2)},
        {"kind": "split", "steps": [20], "challengers": challengers(2, 3, 4, 5, 6)},
        {"kind": "split", "steps": [34], "challengers": challengers(2, 3, 4)},
        {"challengers": []},
    ],
)
def test_challengers_that_make_no_sense_are_refused(changes):
    with pytest.raises(msgspec.ValidationError):
        experiment(**changes)


# ---------------------------------------------------------------------- what is to be done


def both(*variants, **more):
    return Counts(id="e1", variants=dict(zip(VARIANTS, variants, strict=False)), **more)


def counts(champion=(), challenger=(), **more):
    def counted(events=0, errors=0, us=1.0, bins=None):
        groups = [events // GROUPS + (n < events % GROUPS) for n in range(GROUPS)]
        bins = {12_224: events} if bins is None else bins
        return Counted(groups=tuple(groups), errors=errors, ns=int(us * 1_000 * (events + errors)), bins=bins)

    return both(counted(*champion), counted(*challenger), **more)


NOW = 1_700_000_000.0
LIMITS = {"errors": 0.01, "us_per_row": 5.0, "psi": 0.2, "least": 100}
WELL = counts((1_000,), (200,))


@pytest.mark.parametrize(
    ("total", "recent", "elapsed", "expected"),
    [
        (WELL, WELL, 59.9, (0, "running", "")),
        (WELL, WELL, 60.0, (1, "running", "")),
        (counts((1_000,), (99,)), counts(), 60.0, (0, "running", "")),
        (counts((1_000,), (90, 9)), counts(), 60.0, (0, "running", "")),
        (
            counts((1_000,), (190, 10)),
            counts(),
            60.0,
            (0, "ended", "errors: 10 of 200 events got no score, 5.00% more"),
        ),
        (counts((950, 50), (190, 10)), counts(), 60.0, (1, "running", "")),
        (counts((9_000,), (9_000, 9)), counts((200,), (100, 9)), 1, (0, "ended", "errors: 9 of 109")),
        (counts((1_000,), (200, 0, 5.1)), counts(), 60.0, (0, "ended", "latency: a row takes 5.1 µs; the limit is 5")),
        (counts((1_000,), (200, 0, 1, {12_249: 200})), counts(), 60.0, (0, "ended", "shift: the PSI of 200 scores is")),
    ],
)
def test_what_is_to_be_done_next(total, recent, elapsed, expected):
    after = judged(experiment(limits=LIMITS), total, recent, elapsed, NOW)
    step, state, why = expected
    assert (after.step, after.state) == (step, state)
    assert after.why.startswith(why)
    assert bool(after.why) is bool(why)
    assert (after.since == "2023-11-14T22:13:20.000Z") is (after != experiment(limits=LIMITS))


def test_each_step_needs_events_of_its_own_and_the_last_one_stays():
    first = judged(experiment(limits=LIMITS), WELL, WELL, 60.0, NOW)
    assert judged(first, counts((2_000,), (299,)), counts(), 600.0, NOW) == first
    second = judged(first, counts((2_000,), (300,)), counts(), 600.0, NOW)
    assert (second.step, second.share) == (2, 100)
    assert judged(second, counts((2_000,), (9_000,)), counts(), 600.0, NOW) == second
    ended = first.ended(0, "stopped", "later", told=True)
    assert (judged(ended, WELL, WELL, 600.0, NOW), ended.share) == (ended, 0)


# ---------------------------------------------------------------------- chance


def tallied(draws, scores, choices):
    tally = Tally()
    tally.add(draws, scores.astype(np.float32), ("no", "yes"), choices)
    return tally.counted()


def test_with_an_event_an_entity_it_is_the_test_of_two_proportions():
    random = np.random.default_rng(5)
    found, sizes, shares = [], (30_000, 20_000), (0.20, 0.21)
    for size, share in zip(sizes, shares, strict=True):
        yes = (random.random(size) < share).astype(int)
        found.append((tallied(random.integers(0, 2**32, size), yes * 0.5, yes), yes.mean()))
    result = {each.what: each for each in compared(both(found[0][0], found[1][0]), paired=False)}
    (_, p1), (_, p2) = found
    assert (result["yes"].champion, result["yes"].challenger) == pytest.approx((p1, p2))
    assert (result["score"].champion, result["no"].challenger) == pytest.approx((p1 / 2, 1 - p2))
    error = math.sqrt(sum(p * (1 - p) / n for p, n in zip((p1, p2), sizes, strict=True)))
    assert (result["yes"].most - result["yes"].less) / 2 == pytest.approx(1.96 * error, rel=0.25)


def test_many_events_of_an_entity_are_not_many_entities():
    """Of 200 experiments without any difference, about one in twenty says that there is one, and not most."""
    random = np.random.default_rng(6)
    wrong = 0
    for _ in range(200):
        variants = []
        for _ in range(2):
            likes = random.random(300)  # entities, with 40 alike events each
            draws = np.repeat(random.integers(0, 2**32, 300), 40)
            variants.append(
                tallied(draws, np.zeros(12_000), (random.random(12_000) < np.repeat(likes, 40)).astype(int))
            )
        found = compared(both(*variants), paired=False)
        wrong += next(each for each in found if each.what == "yes").p < 0.05
    assert 2 <= wrong <= 24


def test_the_more_is_compared_the_less_is_found_by_chance():
    """Of 200 reports of four challengers that are like the champion, at most about one in twenty names a difference."""
    random = np.random.default_rng(8)
    wrong = single = 0
    for _ in range(200):
        variants = [
            tallied(random.integers(0, 2**32, 2_000), np.zeros(2_000), (random.random(2_000) < 0.3).astype(int))
            for _ in range(5)
        ]
        found = compared(both(*variants), paired=False)
        assert len(found) == 12
        wrong += min(each.p for each in found) < 0.05
        single += min(each.p for each in compared(both(*variants[:2]), paired=False)) < 0.05
    assert wrong <= 16
    assert single <= 16


def test_p_values_are_adjusted_as_holm_says():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert (holm([]), holm([0.6, 0.7])) == ([], [1.0, 1.0])


def test_the_shift_of_bins_is_that_of_the_scores():
    random = np.random.default_rng(7)
    for before, after in (((2, 5), (2, 5)), ((2, 5), (3, 5)), ((2, 5), (5, 2))):
        one, other = (random.beta(*shape, 20_000).astype(np.float32) for shape in (before, after))
        none = np.zeros(20_000, np.int64)
        found = both(tallied(none, one, none), tallied(none, other, none))
        assert shift_of(found, "challenger") == pytest.approx(psi(one, other), rel=0.15, abs=0.01)
    signed = random.normal(size=5_000).astype(np.float32)
    drawn = tallied(np.zeros(5_000, np.int64), signed, np.zeros(5_000, int)).scores()
    assert np.abs(np.quantile(signed, (0.1, 0.5, 0.9)) - np.quantile(drawn, (0.1, 0.5, 0.9))).max() < 0.05
    assert shift_of(counts((1_000,), (50,)), "challenger", 100) is None


# ---------------------------------------------------------------------- what is scored

KINDS = """\
job: kinds
events: events.kinds
schema: {x: float, kind: string, who: string?}
features: {x: x, kind: category(kind)}
model: kinds
decisions:
  - {decision: high, when: score > 0.5 and x > 0}
  - {decision: low}
results: results.kinds
result: {include: [kind], features: all}
"""


def of_kinds(categories, number, objective="binary:logistic"):
    rows = np.random.default_rng(number).uniform(-1, 1, (300, 2)).astype(np.float32)
    rows[:, 1] = np.arange(300) % len(categories)
    data = xgb.DMatrix(rows, (rows[:, 0] + rows[:, 1] > number).astype(int), feature_names=["x", "kind"])
    data.feature_types = ["float", "c"]
    model = xgb.train({"objective": objective, "nthread": 1, "max_depth": 3}, data, 4)
    checked = Candidate.check(model, "kinds", metrics=None, categories={"kind": categories})
    version = msgspec.structs.replace(checked.version, version=number)
    return LoadedModel.load(version, checked.payload)


@pytest.fixture(params=[True, False], ids=["compiled", "python"])
def both_encoders(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(results, "_fast", None)


def versions_of_kinds():
    job = parse_job(KINDS, "test")
    models = [of_kinds(("a", "b", "c"), 1), of_kinds(("c", "a", "b", "d"), 2)]
    return job, [ActiveModel(model, FeaturePlan(job, {}, model.version.categories)) for model in models]


def arrival(events):
    texts = [json.dumps(event).encode() for event in events]
    keys = [bytes(4) + (-11).to_bytes(4, "big", signed=True) + bytes(4) + b"k%d" % n for n in range(len(texts))]
    return Arrival(0, Page(0, len(texts), list(range(len(texts))), keys, texts, {}, 0), Cursor(0, 1), 0, 0.0)


async def scored(job, active, events):
    batch = await Scorer(job, 1, {}, {}, JobStats()).score([arrival(events)], active)
    assert batch.rejected == []
    (part,) = batch.partitions
    return [json.loads(text) for text in part.texts]


class Drifting:
    def add(self, matrix, scores):
        self.rows = len(matrix)
        assert len(scores) == len(matrix)


EVENTS = [{"x": n / 50 - 1, "kind": "abcd"[n % 4], **({"who": f"w{n % 17}"} if n % 5 else {})} for n in range(100)]


@pytest.mark.usefixtures("both_encoders")
async def test_each_result_of_a_batch_is_what_its_version_gives_alone():
    job, (champion, challenger) = versions_of_kinds()
    found = experiment(steps=[40], key="who")
    trial, drifting = Trial(found, [challenger], key=key_of(job, "who", {})), Drifting()
    mixed = await scored(job, ActiveModel(champion.model, champion.plan, drifting, trial), EVENTS)
    alone = [await scored(job, each, EVENTS) for each in (champion, challenger)]
    expected = [is_challengers(event["who"], "e1", 40) if "who" in event else False for event in EVENTS]
    assert [each["variant"] == "challenger" for each in mixed] == expected
    assert 10 < sum(expected) < 90
    assert list(mixed[0]) == [*list(alone[0][0])[:4], "variant", *list(alone[0][0])[4:]]
    for number, (result, theirs) in enumerate(zip(mixed, expected, strict=True)):
        assert result.pop("variant") == ("challenger" if theirs else "champion")
        right = alone[theirs][number]
        assert {**result, "scored_at": 0} == {**right, "scored_at": 0}
    assert drifting.rows == expected.count(False)  # the baseline is the champion's
    total = trial.counts
    assert total.of("champion").events + total.nobodys == 100 - sum(expected)
    assert total.of("challenger").events == sum(expected)
    assert total.nobodys == 20
    assert set(total.of("challenger").chosen) <= {"high", "low"}
    assert sum(map(sum, total.of("challenger").chosen.values())) == total.of("challenger").events


async def test_what_the_challenger_cannot_score_is_the_champions_and_counted(monkeypatch):
    job, (champion, challenger) = versions_of_kinds()
    alone, right = await scored(job, champion, EVENTS), challenger.model._predict

    def some(matrix, margins=None):
        scores = right(matrix, margins).copy()
        scores[::3] = np.inf
        return scores

    def none(_matrix, _margins=None):
        raise RuntimeError("broken")

    for predict, error in ((some, ""), (none, "RuntimeError: broken")):
        trial = Trial(experiment(steps=[100]), [challenger])
        monkeypatch.setattr(challenger.model, "_predict", predict)
        mixed = await scored(job, ActiveModel(champion.model, champion.plan, trial=trial), EVENTS)
        champions = [number for number, each in enumerate(mixed) if each["variant"] == "champion"]
        assert champions == list(range(0, 100, 3 if predict is some else 1))
        assert all(mixed[n]["score"] == alone[n]["score"] and mixed[n]["version"] == 1 for n in champions)
        assert trial.counts.of("challenger").errors == len(champions)
        assert error in trial.counts.of("challenger").error
    trial = Trial(experiment(steps=[100]))
    assert {
        each["version"] for each in await scored(job, ActiveModel(champion.model, champion.plan, trial=trial), EVENTS)
    } == {1}
    assert trial.counts.of("challenger").behind == 100


# ---------------------------------------------------------------------- on a cluster


async def eventually(condition):
    async with asyncio.timeout(20):
        while not (found := await condition()):
            await asyncio.sleep(0.02)
    return found


async def begun(stub, *, rounds=(3, 6)):
    client = await stub.client()
    for number, each in enumerate(rounds):
        await client.push_model(booster(each), "payments", alias=None if number else "champion")
    await client.submit(parse_job(JOB, "test"))
    return client


async def has_begun(client, found):
    job = found.job
    workers = (await Observer(client.grid, job).look()).workers
    says = [each.jobs[job].experiment for each in workers if job in each.jobs]
    return says and set(says) == {found.id} and not (await client.experiment(job)).counts.of("challenger").error


async def takes_part(client, found):
    """Wait until all workers do."""
    await eventually(lambda: has_begun(client, found))


async def test_a_split_by_entity_is_exact_and_promoted_nothing_is_left_of_it():
    async with StubCluster(partitions=5) as stub:
        client = await begun(stub)
        async with stub.worker("first"), stub.worker("second"):
            await client.put_events("events.payments", {"e0": {"amount": 1.0}})
            before = await stub.results("results.payments", 1)
            assert "variant" not in before["e0"]
            found = await client.start_experiment("payments", 2, split=30, why="to see")
            await takes_part(client, found)
            events = {f"e{n}": {"amount": n % 200} for n in range(600)}
            await client.put_events("events.payments", events)
            made = await eventually(lambda: whole(stub, 600))
            for key, result in made.items():
                theirs = is_challengers(key, found.id, 30)
                assert (result["variant"], result["version"]) == (("challenger", 2) if theirs else ("champion", 1))
                row = np.array([[events[key]["amount"] / 100]], np.float32)
                model = booster(6 if theirs else 3)
                assert np.float32(result["score"]) == model.inplace_predict(row, validate_features=False)[0]
            theirs = sum(is_challengers(key, found.id, 30) for key in events)
            await eventually(lambda: counted(client, theirs))
            standing = await client.experiment("payments")
            assert standing.counts.of("champion").events == 600 - theirs
            (status,) = (await Observer(client.grid, "payments").look()).jobs
            assert status.to_json()["experiment"]["variants"][1]["events"] == theirs
            with pytest.raises(UsageError, match="has an experiment already, with version 2"):
                await client.start_experiment("payments", 2, split=10)
            with pytest.raises(ModelError, match="is the challenger of the job `payments`"):
                await client.delete_model("payments", 2)
            last = await client.promote_experiment("payments", why="better")
            assert last.counts.of("challenger").events == theirs
            await client.put_events("events.payments", {f"f{n}": {"amount": n} for n in range(100)})
            after = await stub.results("results.payments", 700)
            assert {(after[f"f{n}"]["version"], after[f"f{n}"].get("variant")) for n in range(100)} == {(2, None)}
        assert await nothing_left(client)
        log = [(each.action, each.version, each.why) for each in await client.models.log("payments")]
        assert log[-3:] == [
            ("experiment start", 2, "to see"),
            ("promote", 2, "better"),
            ("experiment promote", 2, "better"),
        ]


async def test_three_challengers_at_once_each_by_its_share_one_is_stopped_another_promoted():
    async with StubCluster(partitions=5) as stub:
        client = await begun(stub, rounds=(3, 6, 7, 8))
        async with stub.worker("first"), stub.worker("second"):
            found = await client.start_experiment("payments", 2, 3, 4, split=20)
            await takes_part(client, found)
            await eventually(lambda: all_loaded(client))
            events = {f"e{n}": {"amount": n % 200} for n in range(600)}
            whose = dict(
                zip(events, found.variants(found.draws([key.encode() for key in events])).tolist(), strict=True)
            )

            async def right(names, numbers):
                made = await stub.results("results.payments", 600)
                versions = {key: (VARIANTS[numbers[key]], numbers[key] + 1) for key in names}
                return all((made[key].get("variant"), made[key]["version"]) == versions[key] for key in names)

            await client.put_events("events.payments", events)
            await eventually(lambda: right(events, whose))
            made = await stub.results("results.payments", 600)
            for key, result in made.items():
                row = np.array([[events[key]["amount"] / 100]], np.float32)
                model = booster((3, 6, 7, 8)[whose[key]])
                assert np.float32(result["score"]) == model.inplace_predict(row, validate_features=False)[0]
            with pytest.raises(UsageError, match="There are several challengers: v2, v3, v4"):
                await client.promote_experiment("payments")
            with pytest.raises(UsageError, match="Version 9 is not a challenger"):
                await client.stop_experiment("payments", version=9)
            with pytest.raises(ModelError, match="is the challenger of the job"):
                await client.delete_model("payments", 4)

            stopped = await client.stop_experiment("payments", version=3, why="no better")
            assert [each["state"] for each in stopped.variants] == ["running", "running", "ended", "running"]
            again = await client.stop_experiment("payments", version=3)  # the same once more changes nothing
            assert again.experiment == stopped.experiment
            left = {key: 0 if number == 2 else number for key, number in whose.items()}
            moved = [key for key, number in whose.items() if number == 2]

            async def has_moved():
                await client.put_events("events.payments", {key: events[key] for key in moved[:1]})
                return await right(moved[:1], left)

            await eventually(has_moved)
            await client.put_events("events.payments", events)
            await eventually(lambda: right(events, left))
            counted_ = [1 + list(whose.values()).count(n) for n in (1, 3)]
            (status,) = (await Observer(client.grid, "payments").look()).jobs
            figures = status.to_json()["experiment"]["variants"]
            assert [each["variant"] for each in figures] == list(VARIANTS[:4])
            assert all(figures[n]["events"] >= counted_[n > 1] - 1 for n in (1, 3))
            await client.promote_experiment("payments", version=4, why="best")
            assert (await client.models.aliases("payments"))["champion"] == 4
        assert await nothing_left(client)
        log = [(each.action, each.version, each.why) for each in await client.models.log("payments")]
        assert log[-6:] == [
            ("experiment start", 2, ""),
            ("experiment start", 3, ""),
            ("experiment start", 4, ""),
            ("experiment stop", 3, "no better"),
            ("promote", 4, "best"),
            ("experiment promote", 4, "best"),
        ]


async def all_loaded(client):
    standing = await client.experiment("payments")
    return not any(standing.counts.of(name).error for name, _ in standing.experiment.named)


async def test_two_shadows_each_have_a_map_of_their_own():
    async with StubCluster(partitions=5) as stub:
        client = await begun(stub, rounds=(3, 6, 7))
        async with stub.worker("first"):
            found = await client.start_experiment("payments", 2, 3, shadow=True)
            await takes_part(client, found)
            await eventually(lambda: all_loaded(client))
            events = {f"e{n}": {"amount": n % 200} for n in range(300)}
            await client.put_events("events.payments", events)
            rows = np.array([[event["amount"] / 100] for event in events.values()], np.float32)
            for rounds, name, version, variant in (
                (3, "results.payments", 1, "champion"),
                (6, "shadow.results.payments", 2, "challenger"),
                (7, "shadow.results.payments.challenger-2", 3, "challenger-2"),
            ):
                made = await stub.results(name, 300)
                scores = np.array([made[key]["score"] for key in events], np.float32)
                assert scores.tobytes() == booster(rounds).inplace_predict(rows, validate_features=False).tobytes()
                assert {(each["version"], each["variant"]) for each in made.values()} == {(version, variant)}

            async def all_counted():
                counts = (await client.experiment("payments")).counts
                return all(counts.of(name).events == 300 for name in VARIANTS[:3])

            await eventually(all_counted)
            last = await client.stop_experiment("payments")
            assert {(each.variant, each.what) for each in last.compared()} == {
                ("challenger", "score"),
                ("challenger-2", "score"),
            }
            assert await nothing_left(client)
            assert not await client.grid.has_map("shadow.results.payments.challenger-2")


async def whole(stub, count):
    found = await stub.results("results.payments", count)
    return found if all("variant" in each for each in found.values()) else None


async def counted(client, events):
    return (await client.experiment("payments")).counts.of("challenger").events >= events


async def nothing_left(client):
    """Whether no map knows of the experiment any more."""
    for name in ("gridscore.experiments", "gridscore.experiment-counts"):
        assert await (await client.grid.map(name)).size() == 0, name
    assert not await client.grid.has_map("shadow.results.payments")
    return True


async def test_a_shadow_answers_nobody_and_what_it_scored_is_in_a_map_of_its_own():
    async with StubCluster(partitions=5) as stub:
        client = await begun(stub)
        async with stub.worker("first"):
            found = await client.start_experiment("payments", 2, shadow=True)
            await takes_part(client, found)
            events = {f"e{n}": {"amount": n % 200} for n in range(300)}
            await client.put_events("events.payments", events)
            made = await stub.results("results.payments", 300)
            beside = await stub.results("shadow.results.payments", 300)
            rows = np.array([[event["amount"] / 100] for event in events.values()], np.float32)
            for rounds, results_, version, variant in ((3, made, 1, "champion"), (6, beside, 2, "challenger")):
                scores = np.array([results_[key]["score"] for key in events], np.float32)
                assert scores.tobytes() == booster(rounds).inplace_predict(rows, validate_features=False).tobytes()
                assert {(each["version"], each["variant"]) for each in results_.values()} == {(version, variant)}
            await eventually(lambda: counted(client, 300))
            last = await client.stop_experiment("payments", why="seen enough")
            assert [last.counts.of(name).events for name in ("champion", "challenger")] == [300, 300]
            assert last.counts.unseen == 0
            assert {each.what for each in last.compared()} == {"score"}
            assert await nothing_left(client)
        with pytest.raises(UsageError, match="has no experiment"):
            await client.stop_experiment("payments")


async def test_a_shadow_with_other_categories_decides_as_it_would_alone():
    job, (champion, challenger) = versions_of_kinds()
    alone = await scored(job, challenger, EVENTS)
    async with StubCluster(partitions=5) as stub:
        client = await stub.client()
        for number, each in enumerate((champion, challenger), 1):
            payload = each.model._booster.save_raw("ubj")
            categories = each.model.version.categories
            added = await client.add_model(
                bytes(payload), "kinds", categories=categories, alias="champion" if number == 1 else None
            )
            assert added.version.version == number
        await client.submit(job)
        async with stub.worker("first"):
            found = await client.start_experiment("kinds", 2, shadow=True)
            await takes_part(client, found)
            await client.put_events("events.kinds", {f"k{n}": event for n, event in enumerate(EVENTS)})
            made = await stub.results("results.kinds", 100)
            beside = await stub.results("shadow.results.kinds", 100)
            assert {each["variant"] for each in made.values()} == {"champion"}
            assert all(set(each) & {"kind", "features"} == set() for each in beside.values())
            for n, right in enumerate(alone):
                assert (beside[f"k{n}"]["score"], beside[f"k{n}"]["decision"]) == (right["score"], right["decision"])
            assert {each["decision"] for each in beside.values()} == {"high", "low"}


WINDOWS = """\
job: cards
events: events.cards
event_key: card
order_by: time
schema: {card: string, amount: float, time: {type: timestamp, unit: s}}
windows: {card: card}
features: {share: 'sum(amount, card, "1h") / 1000'}
model: {name: payments, alias: champion}
results: results.cards
result: {features: all}
"""


@pytest.mark.parametrize("shadow", [False, True])
async def test_windows_are_the_same_for_both_variants(shadow):
    async with StubCluster(partitions=3) as stub:
        client = await stub.client()
        for number in (1, 2):
            await client.push_model(booster(3 * number), "payments", alias="champion" if number == 1 else None)
        await client.submit(parse_job(WINDOWS, "test"))
        async with stub.worker("first"):
            found = await client.start_experiment("cards", 2, **({"shadow": True} if shadow else {"split": 50}))
            await takes_part(client, found)
            for second in range(3):
                some = {
                    f"c{n}": {"card": f"c{n}", "amount": 7.0 * n, "time": 1_700_000_000 + second} for n in range(60)
                }
                await client.put_events("events.cards", some)
                await eventually(lambda: stub_has(stub, second))  # noqa: B023 -- it is awaited here
            made = await stub.results("results.cards", 60)
            beside = await eventually(lambda: same_events(stub, made)) if shadow else made
            for key, result in made.items():
                assert np.float32(result["features"]["share"]) == np.float32(
                    14.0 * int(key[1:]) / 1000
                )  # of those before it
                theirs = shadow or is_challengers(key, found.id, 50)
                row = np.array([[result["features"]["share"]]], np.float32)
                right = booster(6 if theirs else 3).inplace_predict(row, validate_features=False)[0]
                assert np.float32(beside[key]["score"]) == right


async def test_reasons_are_those_of_the_version_that_scored():
    async with StubCluster(partitions=5) as stub:
        client = await stub.client()
        for number in (1, 2):
            await client.push_model(booster(3 * number), "payments", alias="champion" if number == 1 else None)
        await client.submit(parse_job(JOB + "result: {reasons: {top: 1, budget: 1.0}}\n", "test"))
        async with stub.worker("first"):
            found = await client.start_experiment("payments", 2, split=50)
            await takes_part(client, found)
            await client.put_events("events.payments", {f"e{n}": {"amount": 5.0 * n} for n in range(30)})

            async def explained():
                made = await stub.results("results.payments", 30)
                return made if all("reasons" in each for each in made.values()) else None

            for key, result in (await eventually(explained)).items():
                row = xgb.DMatrix(np.array([[5.0 * int(key[1:]) / 100]], np.float32), feature_names=["share"])
                adds = booster(3 * result["version"]).predict(row, pred_contribs=True)[0][0]
                assert result["reasons"][0]["adds"] == pytest.approx(adds, abs=1e-5)
                assert (result["variant"] == "challenger") is (result["version"] == 2)


async def same_events(stub, made):
    found = await stub.results("shadow.results.cards", 60)
    return found if all(each["sequence"] == made[key]["sequence"] for key, each in found.items()) else None


async def stub_has(stub, second):
    found = await stub.results("results.cards", 60)
    return all((each["features"]["share"] or 0) >= 0.0069 * second * int(key[1:]) for key, each in found.items())


async def test_counts_outlive_an_update_of_the_job_and_hostile_ones_harm_nobody():
    async with StubCluster(partitions=5) as stub:
        client = await begun(stub)
        async with stub.worker("first"):
            found = await client.start_experiment("payments", 2, steps=[50, 100], every=3600, max_psi=0.2)
            await takes_part(client, found)
            await client.put_events("events.payments", {f"e{n}": {"amount": n} for n in range(100)})
            theirs = sum(is_challengers(f"e{n}", found.id, 50) for n in range(100))
            await eventually(lambda: counted(client, theirs))
            updated = JOB + "result: {include: [amount]}\n"
            await client.submit(parse_job(updated, "test"), update=True)
            hostile = msgspec.structs.replace(
                both(Counted(), Counted(groups=(2**53 - 1,) * GROUPS, sums=(1e100,) * GROUPS)), id=found.id
            )
            await Records(client.grid, "gridscore.experiment-counts").put("payments/x", hostile.to_json())
            await client.put_events("events.payments", {f"f{n}": {"amount": n} for n in range(100)})
            made = await stub.results("results.payments", 200)
            assert {made[f"f{n}"]["variant"] for n in range(100)} == {"champion", "challenger"}
            theirs += sum(is_challengers(f"f{n}", found.id, 50) for n in range(100))
            await eventually(lambda: counted(client, theirs + GROUPS * (2**53 - 1)))
            (status,) = (await Observer(client.grid, "payments").look()).jobs
            assert status.state == "RUNNING"
            json.dumps(status.to_json(), allow_nan=False)


async def test_who_judges_an_experiment_reads_nothing_of_other_jobs(monkeypatch):
    monkeypatch.setattr(live_experiment, "_LIST_SECONDS", 0.5)
    async with StubCluster(partitions=5) as stub:
        client, asks = await begun(stub), await stub.client("asks")
        written, others = Records(client.grid, COUNTS_MAP), Records(client.grid, EXPERIMENTS_MAP)
        for n in range(20):  # whoever reads one of these notes that it is broken
            await others.put(f"other-{n}", {"job": f"other-{n}"})
            await written.put(f"other-{n}/gone", {"id": 5})
        async with stub.worker("first") as worker:
            found = await client.start_experiment("payments", 2, split=50, max_errors=0.5, least=50)
            await takes_part(client, found)
            assert (await asks.experiment("payments")).experiment == found
            gone = msgspec.structs.replace(counts((100,), (40, 60)), id=found.id)
            await written.put("payments/gone", gone.to_json())  # of a worker that was killed

            async def is_ended():
                return (await asks.experiment("payments")).experiment.state == "ended"

            await eventually(is_ended)
            for grid in (worker._grid, asks.grid):
                assert [bad for bad in grid.bad_records.all() if bad.key.startswith("other-")] == []
        await client.stop_experiment("payments")
        assert (await written.keys("payments/"), len(await written.keys("other-"))) == (set(), 20)


@pytest.mark.parametrize("count", [1, 40])
async def test_more_workers_list_what_was_counted_no_more_often(monkeypatch, count):
    async with StubCluster(partitions=5) as stub:
        grid, now, lists = (await stub.client()).grid, 0.0, 0
        monkeypatch.setattr(grid, "clock", lambda: now)
        members = SimpleNamespace(worker="w0", group=lambda _name: {f"w{n}" for n in range(count)})
        live = LiveExperiment(grid, SimpleNamespace(name="payments"), {}, None, JobStats(), members)
        listed = live._counts.keys

        async def keys(prefix):
            nonlocal lists
            lists += 1
            return await listed(prefix)

        monkeypatch.setattr(live._counts, "keys", keys)
        for _ in range(100):
            now += count  # one of them judges each second
            await live._judge(experiment(since="2026-01-01T00:00:00Z"), members)
        assert lists == 10


async def test_a_worker_that_cannot_load_the_challenger_says_so_and_its_events_are_the_champions(monkeypatch):
    async with StubCluster(partitions=5) as stub:
        client = await begun(stub)
        async with stub.worker("first") as worker:
            await eventually(lambda: asyncio.sleep(0, any(each.is_scoring for each in worker.runners.values())))
            (runner,) = worker.runners.values()

            async def broken(_version):
                raise ModelError("there is no room here")

            monkeypatch.setattr(runner._model._models, "of", broken)
            await client.start_experiment("payments", 2, split=100)

            async def is_behind():
                (status,) = (await Observer(client.grid, "payments").look()).jobs
                counts = None if status.experiment is None else status.experiment.counts
                return counts is not None and "no room here" in counts.of("challenger").error

            await eventually(is_behind)
            await client.put_events("events.payments", {f"e{n}": {"amount": n} for n in range(100)})
            made = await stub.results("results.payments", 100)
            assert {(each["version"], each["variant"]) for each in made.values()} == {(1, "champion")}

            async def is_counted():
                return (await client.experiment("payments")).counts.of("challenger").behind == 100

            await eventually(is_counted)
            await client.cancel("payments")
        await wipe(client.grid, await remnants(client.grid, "payments", ["results"]))
        assert await nothing_left(client)


async def test_a_canary_whose_scores_shift_ends_by_itself_and_says_why():
    async with StubCluster(partitions=5) as stub:
        client = await begun(stub)
        rows = np.linspace(0, 2, 200, dtype=np.float32).reshape(-1, 1)
        matrix = xgb.DMatrix(rows, (rows[:, 0] < 1.5).astype(int), feature_names=["share"])
        await client.push_model(xgb.train({"objective": "binary:logistic", "nthread": 1}, matrix, 9), "payments")
        async with stub.worker("first") as first, stub.worker("second") as second:
            found = await client.start_experiment("payments", 3, steps=[50, 100], every=3600, max_psi=0.25, least=100)
            await takes_part(client, found)
            (runner,) = min(first, second, key=lambda worker: worker.id).runners.values()
            runner._experiment._judge = lambda _found: asyncio.sleep(0)  # as one of an older release
            await client.put_events("events.payments", {f"e{n}": {"amount": n % 200} for n in range(600)})

            async def has_ended():
                return (await client.experiment("payments")).experiment.state == "ended"

            await eventually(has_ended)
            (status,) = (await Observer(client.grid, "payments").look()).jobs
            assert "shift: the PSI of" in status.experiment.text
            assert (await client.models.log("payments"))[-1].action == "experiment end"

            async def is_over():
                await client.put_events("events.payments", {"late": {"amount": 5}})
                made = await stub.results("results.payments", 601)
                return "variant" not in made["late"]

            await eventually(is_over)
            with pytest.raises(UsageError, match="The experiment has ended: shift"):
                await client.promote_experiment("payments")
            await client.stop_experiment("payments")
            assert await nothing_left(client)


@pytest.mark.parametrize("is_forgotten", [True, False])
async def test_an_alert_that_is_put_while_the_experiment_is_stopped_is_ended(monkeypatch, is_forgotten):
    monkeypatch.setattr(experiments, "_WAIT_SECONDS", 0.1)
    hangs, goes_on, has_told = asyncio.Event(), asyncio.Event(), asyncio.Event()
    alert, tell, forget = live_experiment.tell_alert, LiveExperiment._tell, experiments.forget

    async def alert_late(*args, **options):
        hangs.set()
        await goes_on.wait()
        await alert(*args, **options)

    async def told(self, found, members):
        await tell(self, found, members)
        if hangs.is_set():
            has_told.set()

    async def forget_late(*args):
        if is_forgotten:
            await forget(*args)
        goes_on.set()
        await has_told.wait()
        if not is_forgotten:
            await forget(*args)

    monkeypatch.setattr(live_experiment, "tell_alert", alert_late)
    monkeypatch.setattr(LiveExperiment, "_tell", told)
    monkeypatch.setattr(experiments, "forget", forget_late)
    async with StubCluster(partitions=5) as stub:
        client = await begun(stub)
        async with stub.worker(), asyncio.timeout(30):
            found = await client.start_experiment("payments", 2, split=50, max_psi=0.0001, least=20)
            await takes_part(client, found)
            await client.put_events("events.payments", {f"e{n}": {"amount": n % 200} for n in range(600)})
            await hangs.wait()
            await client.stop_experiment("payments")
            (made,) = (await stub.results("alerts.payments", 1)).values()
            assert (made["measure"], made["state"]) == ("experiment", "ended")


async def test_an_experiment_that_ends_waits_for_no_labels_any_more():
    async with StubCluster(partitions=5) as stub:
        client = await begun(stub)
        async with stub.worker():
            found = await client.start_experiment("payments", 2, split=50, max_psi=0.0001, least=20)
            await takes_part(client, found)
            await tell_alert(client.grid, (await client.jobs.get("payments")).job, found, LABELS, "there are none")
            await client.put_events("events.payments", {f"e{n}": {"amount": n % 200} for n in range(600)})

            async def states():
                made = await stub.results("alerts.payments", 1)
                states = {each["measure"]: each["state"] for each in made.values()}
                return states == {"experiment": "started", "labels": "ended"}

            await eventually(states)


async def test_a_job_that_is_submitted_anew_has_no_experiment_and_its_version_can_go():
    async with StubCluster(partitions=5) as stub:
        client = await begun(stub)
        await client.start_experiment("payments", 2, split=100)
        await client.cancel("payments")
        await client.submit(parse_job(JOB, "test"))
        async with stub.worker("first"):
            await client.put_events("events.payments", {"a": {"amount": 5}})
            assert "variant" not in (await stub.results("results.payments", 1))["a"]
        await client.delete_model("payments", 2)
        await client.push_model(booster(7), "payments")
        assert (await client.start_experiment("payments", 3, split=5)).versions == "v3"


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"version": 1, "split": 5}, UsageError, "Version 1 of the model `payments` is the champion"),
        ({"version": 9, "split": 5}, ModelError, "has no version 9"),
        ({"version": 3, "split": 5}, ModelMismatchError, "would not score as it was trained"),
        ({"split": 5, "shadow": True}, UsageError, "give one of them"),
        ({}, UsageError, "a canary in steps, a split, or a shadow"),
        ({"steps": [50, 5]}, UsageError, "the steps do not ascend"),
        ({"split": 0}, UsageError, "0.01"),
        ({"split": 5, "every": 5.0}, UsageError, "Only a canary of several steps"),
        ({"split": 5, "key": "customer"}, UsageError, "--key: "),
        ({"split": 5, "key": " "}, UsageError, "--key: it is empty"),
        ({"split": 5, "key": "amount > 5"}, UsageError, "a key is a string or a whole number"),
        ({"split": 5, "max_psi": float("nan")}, UsageError, "There can be no such experiment"),
        ({"split": 5, "max_us": 1e10}, UsageError, "max_us: Input should be less than or equal to 1000000000"),
        ({"split": 5, "max_errors": 1.5}, UsageError, "max_errors: Input should be less than or equal to 1"),
        ({"split": 5, "least": 0}, UsageError, "least: Input should be greater than or equal to 1"),
        ({"split": 5, "least_labels": 0}, UsageError, "least_labels: Input should be greater than or equal to 1"),
        ({"split": 5, "least_labels": 100_001}, UsageError, "least_labels: Input should be less than or equal to 1"),
        ({"split": 5, "why": "x" * 501}, UsageError, "A reason has 500 characters"),
    ],
)
async def test_what_cannot_be_is_refused_with_the_reason_and_nothing_is_left(options, error, match):
    async with StubCluster(partitions=5) as stub:
        client = await begun(stub)
        matrix = xgb.DMatrix(np.zeros((9, 1), np.float32), np.arange(9) % 2, feature_names=["other"])
        await client.push_model(xgb.train({"objective": "binary:logistic"}, matrix, 1), "payments")
        with pytest.raises(error, match=match):
            await client.start_experiment("payments", options.pop("version", 2), **options)
        assert await nothing_left(client)


async def test_a_server_chooses_as_the_workers_do():
    async with StubCluster(partitions=5) as cluster:
        gridscore = await prepared(cluster, PLAIN)
        await gridscore.push_model(plain_booster(9, ("amount",)), "plain")
        found = await gridscore.start_experiment("plain", 2, split=50)
        async with serving(cluster, "plain") as server, client(server) as http:
            live = server.jobs.get("plain")
            await eventually(lambda: asyncio.sleep(0, live._experiment.trial and live._experiment.trial.challengers[0]))
            for name in map(str, range(30)):
                answer = (await http.post(f"/score/plain?key={name}", json={"amount": 7})).json()
                theirs = is_challengers(name, found.id, 50)
                assert (answer["variant"], answer["version"]) == (("challenger", 2) if theirs else ("champion", 1))
            assert (await http.post("/score/plain", json=[{"amount": 7}] * 3)).json()[2]["variant"] == "champion"


def test_the_command_says_what_it_needs():
    shown = CliRunner().invoke(
        _commands("experiment"), ["experiment", "start", "late", "--version", "3", "--steps", "a,5"]
    )
    assert isinstance(shown.exception, UsageError)
    assert "is not a list of percents" in shown.exception.message


def test_counts_that_were_written_are_read_again():
    tally = Tally()
    tally.add(np.arange(100), np.linspace(-5, 5, 100, dtype=np.float32), ("a", "b"), np.arange(100) % 2)
    made = both(Counted(), msgspec.structs.replace(tally.counted(), error="x"))
    assert msgspec.convert(json.loads(json.dumps(made.to_json())), Counts, str_keys=True) == made
    assert made.plus(made, -1).of("challenger").events == 0
    assert Limits() == Limits(least=500)
