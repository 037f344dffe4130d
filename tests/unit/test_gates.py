"""Each gate stops a bad model, says by how much, and leaves everything as it was; a reason goes on all the same."""

import asyncio
import re

import msgspec
import numpy as np
import pandas as pd
import pytest
import xgboost as xgb

from gridscore.client import gates as client_gates
from gridscore.errors import GateError, JobFileError, ModelError
from gridscore.features import offline_matrix
from gridscore.job import parse_job
from gridscore.models import Registry
from gridscore.models import gates as gates_room
from gridscore.models.candidate import Candidate
from gridscore.models.certificates import Certificate, keep
from gridscore.models.gates import judge
from gridscore.models.sample import Sample
from gridscore.testing import StubCluster

JOB = """\
job: payments
events: events.payments
schema: {share: float}
features: {share: share}
model: {name: payments, alias: champion}
results: results.payments
"""

GATES = {
    "golden": "golden: [{features: {share: 1.9}, at_least: 0.8}, {features: {share: 0.1}, at_most: 0.2}]",
    "metric": "metric: {name: auc, at_least: 0.9}",
    "champion": "champion: {name: log_loss, worse_by: 0.02}",
    "latency": "latency: {us_per_row: 1000}",
    "shift": "shift: {psi: 0.2, events: 200}",
}
SAYS = {
    "golden": r"golden row 1: the score is 0\.\d+, below 0\.8 by 0\.\d+",
    "metric": r"metric: auc is 0\.\d+ \(95 %: 0\S* to 0\.\d+\) on 400 rows: its lower end is below 0\.9 by 0\.\d+",
    "champion": r"champion: log_loss is \d\.\d+, that of version 1 0\.\d+: worse by .*, which is .* more than 0\.02",
    "latency": r"latency: a row takes 5,000 µs, 4,000 more than 1,000",
    "shift": r"shift: the PSI of 1\d\d events is \d+\.\d+ against version 1, \d+\.\d+ more than 0\.2",
}


def job(*gates):
    return parse_job(JOB + "gates:\n" + "".join(f"  {GATES[gate]}\n" for gate in gates), "test")


def rows(count=400, seed=1):
    values = np.random.default_rng(seed).uniform(0, 2, (count, 1)).astype(np.float32)
    return values, (values[:, 0] > 1).astype(np.float64)


def train(rounds=8, *, bad=False):
    values, labels = rows(seed=2)
    data = xgb.DMatrix(values, values[:, 0] < 0.3 if bad else labels, feature_names=["share"])
    return xgb.train({"objective": "binary:logistic", "nthread": 1, "max_depth": 2}, data, rounds)


GOOD, BETTER, BAD = train(), train(9), train(bad=True)


@pytest.fixture
async def client():
    async with StubCluster(partitions=5) as stub:
        client = await stub.client()
        await client.push_model(GOOD, "payments", alias="champion")
        yield client


async def with_rows(client):
    values, labels = rows()
    await client.models.store_sample("payments", Sample(("share",), values, {}, labels), "fraud")
    events = {f"k{n}": {"share": float(share)} for n, share in enumerate(rows(200, 3)[0][:, 0])}
    await client.put_events("events.payments", events)


@pytest.mark.parametrize("gate", GATES)
async def test_a_gate_stops_a_bad_model_whichever_way_it_comes_and_a_good_one_passes(client, gate, monkeypatch):
    monkeypatch.setattr(
        gates_room, "microseconds_a_row", lambda model: 5000 if model.version.sha256 == bad.sha256 else 5
    )
    bad = await client.push_model(BAD, "payments")
    await client.submit(job(gate))
    await with_rows(client)
    before = await client.models.get("payments"), await client.models.log("payments"), await client.jobs.get("payments")

    ways = [
        lambda: client.promote_model("payments", bad.version),
        lambda: client.push_model(BAD, "payments", alias="champion"),
        lambda: client.submit(job(gate), update=True, version=bad.version),
        lambda: client.submit(job(gate), update=True, model=BAD),
    ]
    for way in ways:
        with pytest.raises(GateError, match=SAYS[gate]) as caught:
            await way()
        assert "For the job `payments`: " in caught.value.message
    now = await client.models.get("payments"), await client.models.log("payments"), await client.jobs.get("payments")
    assert now == before

    (verdicts,) = (await client.check_model("payments", bad.version)).values()
    assert [verdict.passed for verdict in verdicts][:1] == [False]
    assert (await client.push_model(BETTER, "payments", alias="champion")).version == 3
    assert await client.models.aliases("payments") == {"champion": 3}
    assert (await client.rollback_model("payments")).version == 1


async def test_a_bad_model_that_is_new_is_not_even_stored(client):
    await client.submit(job("golden"))
    with pytest.raises(GateError):
        await client.push_model(BAD, "payments", alias="champion")
    assert [v.version for v in (await client.models.get("payments")).versions] == [1]
    assert (await client.push_model(BAD, "payments", alias="challenger")).version == 2  # which nobody follows


@pytest.mark.parametrize("released", [False, True])
async def test_a_reason_goes_on_all_the_same_and_is_in_the_log(client, released):
    await client.submit(job("golden"))
    if released:
        await client.submit(job("golden", "metric"), update=True, model=BAD, override="a drill")
    else:
        await client.push_model(BAD, "payments", alias="champion", override="a drill")
    assert await client.models.aliases("payments") == {"champion": 2}
    (entry,) = [entry for entry in await client.models.log("payments") if entry.override]
    assert (entry.action, entry.version) == ("override" if released else "promote", 2)
    assert entry.override == "a drill"
    assert re.search("For the job `payments`: golden row 1: .*; For the job `payments`: golden row 2", entry.failed)


async def test_a_reason_that_is_not_needed_is_not_in_the_log(client):
    await client.submit(job("golden"))
    await client.push_model(BETTER, "payments", alias="champion", override="in a hurry")
    assert [entry.override for entry in await client.models.log("payments")] == [""] * 4


async def test_undoing_a_release_does_not_ask(client):
    await client.submit(job("golden"))
    await client.submit(job("golden", "latency"), update=True, model=BAD, override="a drill")
    await client.rollback("payments")
    await client.rollback("payments")
    assert await client.models.aliases("payments") == {"champion": 2}


@pytest.mark.parametrize(
    ("gate", "says"),
    [
        ("metric", "the model has no labelled sample"),
        ("champion", "the model has no labelled sample"),
        ("shift", "cannot be judged: the journal of `events.payments` has no events"),
    ],
)
async def test_what_cannot_be_judged_has_not_passed(client, gate, says):
    await client.submit(job(gate))
    with pytest.raises(GateError, match=says):
        await client.push_model(BETTER, "payments", alias="champion")


async def test_what_the_gates_said_does_not_hold_for_another_champion(client, monkeypatch):
    await client.push_model(BETTER, "payments")
    await client.push_model(train(10), "payments")
    await client.submit(job("golden"))
    judge = client_gates.judge
    moved = asyncio.get_running_loop()

    def slowly(*arguments):
        asyncio.run_coroutine_threadsafe(Registry(client.grid).promote("payments", 3), moved).result(10)
        return judge(*arguments)

    monkeypatch.setattr(client_gates, "judge", slowly)
    with pytest.raises(ModelError, match="Somebody else moved the alias `champion`"):
        await client.promote_model("payments", 2)
    assert await client.models.aliases("payments") == {"champion": 3}


async def test_a_champion_that_cannot_be_loaded_does_not_stand_in_for_a_verdict(client, monkeypatch):
    await client.submit(job("champion"))
    await with_rows(client)
    load = Registry.load

    async def broken(registry, version):
        if version.version == 1:
            raise ModelError("its bytes are gone")
        return await load(registry, version)

    monkeypatch.setattr(Registry, "load", broken)
    with pytest.raises(GateError, match="champion: cannot be judged: its bytes are gone"):
        await client.push_model(BETTER, "payments", alias="champion")


async def test_the_first_champion_has_nothing_to_be_worse_than():
    async with StubCluster(partitions=5) as stub:
        client = await stub.client()
        values, labels = rows()
        await client.models.store_sample("payments", Sample(("share",), values, {}, labels), "fraud")
        gates = client._gates("payments", "champion", {"payments": job(*GATES)}, "")
        (verdicts,) = (await gates.verdicts((await client.models.check(GOOD, "payments")).model, None)).values()
        assert [(verdict.gate, verdict.passed) for verdict in verdicts] == [
            (name, True) for name in ("golden row 1", "golden row 2", "metric", "champion", "latency", "shift")
        ]


async def test_a_version_needs_a_certificate_of_its_parity(client):
    text = JOB + "gates:\n  parity: {events: 100}\n"
    await client.submit(parse_job(text, "test"))
    with pytest.raises(GateError, match="parity: there is no certificate: push the version without an alias"):
        await client.push_model(BETTER, "payments", alias="champion")
    await client.push_model(BETTER, "payments")
    found = Certificate(model="payments", version=2, job="payments", revision=1, at="2026-01-01T", served="here")
    for more, says in (
        ({"version": 1, "equal": 200}, "there is no certificate"),
        ({"job": "other", "equal": 200}, "there is no certificate"),
        ({"equal": 99}, "99 of 99 equal.*: 1 less than 100"),
        ({"equal": 200, "different": 3}, "200 of 203 equal.*: 3 differ"),
    ):
        await keep(client.grid, msgspec.structs.replace(found, **more))
        with pytest.raises(GateError, match=says):
            await client.promote_model("payments", 2)
    await keep(client.grid, msgspec.structs.replace(found, equal=100))
    # The very same model again is that version.
    assert (await client.push_model(BETTER, "payments", alias="champion")).version == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("metrics: {}", "unknown key `metrics` in `gates`, did you mean `metric`"),
        ("golden: [{features: {share: 1}}]", "a golden row says what its score is"),
        ("golden: [{features: {share: 1}, score: 1, margin: 2}]", "a golden row has a `margin`, and the job has none"),
        ("metric: {name: auc, at_most: 1}", "`auc` takes `at_least`, and only that"),
        ("shift: {psi: 0.1, events: 5}", "at least 100"),
        ("latency: {us_per_row: 0}", "more than 0"),
    ],
)
def test_gates_that_say_nothing_are_refused(text, says):
    with pytest.raises(JobFileError, match=says):
        parse_job(f"{JOB}gates:\n  {text}\n", "test")


@pytest.mark.parametrize(
    ("features", "says"),
    [
        ({"share": "a text"}, "a text for `share`, a number"),
        ({"other": 1}, "golden row 1 has a feature|lacks a feature"),
    ],
)
async def test_a_golden_row_that_is_not_of_the_model_says_so(client, features, says):
    found = job("golden").gates.golden[0].model_copy(update={"features": features})
    model = (await client.models.check(GOOD, "payments")).model
    gates = job("golden").gates.model_copy(update={"golden": (found,)})
    (verdict,) = gates_room.judge(gates, model, None, None, "")
    assert not verdict.passed
    assert re.search(says, verdict.text)


@pytest.mark.parametrize("gate", ["metric", "champion"])
async def test_a_sample_without_the_margins_of_the_job_judges_nothing(client, gate):
    await with_rows(client)
    await client.submit(parse_job(f"{JOB}margin: log1p(share)\ngates:\n  {GATES[gate]}\n", "test"))
    with pytest.raises(GateError, match=f"{gate}: cannot be judged: the sample has no margins, unlike the job"):
        await client.push_model(BETTER, "payments", alias="champion")


@pytest.mark.parametrize("margin", ["", "margin: log1p(share)\n"])
def test_a_sample_judges_no_version_that_was_trained_with_another_margin(margin):
    values, labels = rows()
    model = train().copy()
    offline_matrix(parse_job(JOB + margin, "test"), pd.DataFrame({"share": [1.0]})).attach(model)
    loaded = Candidate.check(model, "payments", metrics=None, categories=None).model
    gates = job("metric").gates
    found = {}
    for name, margins in (("with", np.zeros(len(values), np.float32)), ("without", None)):
        (verdict,) = judge(gates, loaded, None, Sample(("share",), values, {}, labels, margins), "")
        found[name] = verdict.text
    right, wrong = ("with", "without") if margin else ("without", "with")
    assert "auc is" in found[right]
    assert f"the sample has {'none' if margin else 'margins'}" in found[wrong]
    assert found[wrong].startswith("cannot be judged")
