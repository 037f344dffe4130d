"""A model's life on the stub: notes, the log, going back, and files between clusters."""

import json
import zipfile

import numpy as np
import pandas as pd
import pytest
import xgboost as xgb
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from test_stub_grid import booster

from gridscore.errors import ModelError, UsageError
from gridscore.features import offline_matrix
from gridscore.job import parse_job
from gridscore.models import version_in
from gridscore.models.chunks import CHUNKS_MAP
from gridscore.models.record import MAX_LOG
from gridscore.models.sample import Sample
from gridscore.testing import StubCluster

JOB = """\
job: payments
events: events.payments
schema: {share: float, kind: string}
features: {share: share}
model: {name: payments, alias: champion}
results: results.payments
"""


SHARE = version_in(booster(1), "payments")


@pytest.fixture
async def client():
    async with StubCluster(partitions=5) as stub:
        yield await stub.client()


def actions(log):
    return [(entry.action, entry.version, entry.alias, entry.before, entry.why) for entry in log]


async def test_who_moved_what_and_why_is_in_the_log(client):
    await client.push_model(booster(3), "payments", alias="champion", why="first")
    await client.push_model(booster(4), "payments", description="more rounds", tags={"owner": "ana"})
    await client.promote_model("payments", 2, why="better")
    await client.promote_model("payments", 2, why="again, which changes nothing")
    await client.rollback_model("payments", why="worse")
    await client.models.describe("payments", 2, tags={"owner": "bo"})
    await client.promote_model("payments", 1, "old")
    await client.remove_alias("payments", "old", why="done")
    await client.delete_model("payments", 2)
    log = await client.models.log("payments")
    assert actions(log) == [
        ("push", 1, "", 0, "first"),
        ("promote", 1, "champion", 0, "first"),
        ("push", 2, "", 0, ""),
        ("describe", 2, "", 0, ""),
        ("promote", 2, "champion", 1, "better"),
        ("rollback", 1, "champion", 2, "worse"),
        ("describe", 2, "", 0, ""),
        ("promote", 1, "old", 0, ""),
        ("remove alias", 0, "old", 1, "done"),
        ("delete", 2, "", 0, ""),
    ]
    assert all("@" in entry.by and entry.at.endswith("Z") for entry in log)
    with pytest.raises(ModelError, match="There is no model `other`"):
        await client.models.log("other")


async def test_a_reason_that_is_too_long_changes_nothing(client):
    await client.push_model(booster(3), "payments")
    with pytest.raises(UsageError, match="A reason has 500 characters"):
        await client.promote_model("payments", 1, why="x" * 501)
    assert await client.models.aliases("payments") == {}
    await client.models.promote("payments", 1)
    await client.submit(parse_job(JOB, "test"))
    for reasons in ({"why": "x" * 501}, {"override": "x" * 501}):
        with pytest.raises(UsageError, match="A reason has 500 characters"):
            await client.submit(parse_job(JOB, "test"), update=True, model=booster(4), **reasons)
    assert [version.version for version in (await client.models.get("payments")).versions] == [1]


async def test_the_log_of_many_moves_is_bounded_in_the_grid(client):
    for rounds in (3, 4):
        await client.push_model(booster(rounds), "payments")
    for number in range(MAX_LOG):
        await client.models.promote("payments", 1 + number % 2)
    log = await client.models.log("payments")
    assert len(log) == MAX_LOG
    assert log[0].action == "promote"


async def test_an_alias_that_a_job_follows_is_not_removed(client):
    await client.push_model(booster(3), "payments", alias="champion")
    await client.submit(parse_job(JOB, "test"))
    with pytest.raises(ModelError, match="The job `payments` follows the alias `champion`"):
        await client.remove_alias("payments", "champion")
    await client.cancel("payments")
    await client.remove_alias("payments", "champion")
    assert await client.models.aliases("payments") == {}


async def test_a_release_is_in_the_log(client):
    await client.push_model(booster(3), "payments", alias="champion")
    await client.submit(parse_job(JOB, "test"))
    await client.submit(
        parse_job(JOB.replace("share: share", "share: share * 1"), "test"),
        update=True,
        model=booster(4),
        why="together",
    )
    await client.rollback("payments", why="apart")
    assert actions(await client.models.log("payments"))[2:] == [
        ("push", 2, "", 0, "together"),
        ("release", 2, "champion", 1, "together"),
        ("release", 1, "champion", 2, "apart"),
    ]


# ---------------------------------------------------------------------- what is pushed


def frame(count=300):
    generator = np.random.default_rng(3)
    values = pd.DataFrame({"share": generator.random(count)})
    return values, (values["share"] + generator.normal(0, 0.3, count) > 0.5).astype(int)


async def test_of_an_estimator_the_best_rounds_are_pushed_and_its_scores_are_what_it_predicts(client):
    values, labels = frame()
    estimator = xgb.XGBClassifier(n_estimators=60, early_stopping_rounds=3, n_jobs=1, learning_rate=0.8)
    estimator.fit(values, labels, eval_set=[frame(100)], verbose=False)
    assert estimator.best_iteration + 1 < estimator.get_booster().num_boosted_rounds()

    version = await client.push_model(estimator, "payments", alias="champion")  # a warning would be an error

    model = await client.models.load(version)
    assert version.rounds == estimator.best_iteration + 1
    expected = np.ascontiguousarray(estimator.predict_proba(values)[:, 1])
    assert model.predict(values.to_numpy(np.float32)).tobytes() == expected.tobytes()
    assert version.training.parameters["eta"] == "0.800000012"


async def test_a_pipeline_is_refused_with_what_to_do(client):
    values, labels = frame()
    pipeline = make_pipeline(StandardScaler(), xgb.XGBClassifier(n_estimators=2, n_jobs=1)).fit(values, labels)
    with pytest.raises(ModelError, match=r"A pipeline cannot be pushed.*\n.*pipeline\[-1\]"):
        await client.push_model(pipeline, "payments")


async def test_what_a_model_learnt_from_travels_with_it(client, tmp_path):
    values, _ = frame()
    matrix = offline_matrix(parse_job(JOB, "test"), values.assign(kind="x"))
    path = tmp_path / "matrix.parquet"
    matrix.to_parquet(path)
    assert type(matrix).from_parquet(path).fingerprint == matrix.fingerprint
    trained = booster(3)
    matrix.attach(trained)
    trained.save_model(tmp_path / "model.ubj")

    version = await client.push_model(tmp_path / "model.ubj", "payments")

    assert (version.training.sha256, version.training.rows) == (matrix.fingerprint, 300)
    matrix.values[7, 0] += 1  # noqa: PD011 -- it is not a frame
    assert matrix.fingerprint != version.training.sha256
    trained.set_attr(gridscore_training='{"rows": "many"}')
    with pytest.raises(ModelError, match="The attribute `gridscore_training` of The model is not valid"):
        await client.push_model(trained, "payments")


async def test_labels_of_classes_travel_with_the_model_and_are_those_of_its_jobs(client):
    values, _ = frame()
    matrix = offline_matrix(parse_job(JOB, "test"), values.assign(kind="x"))
    labels = np.repeat([0, 1, 2], 100)
    trained = xgb.XGBClassifier(n_estimators=2, n_jobs=1).fit(values, labels)
    for wrong in (["a", "b"], ["a", "b", "b"]):
        matrix.attach(trained, labels=wrong)
        with pytest.raises(ModelError, match=rf"has 3 classes, and {len(wrong)} labels"):
            await client.push_model(trained, "payments")
    matrix.attach(trained, labels=np.array(["low", "mid", "high"]))
    version = await client.push_model(trained, "payments", alias="champion")
    assert version.labels == ("low", "mid", "high")
    with pytest.raises(ModelError, match="the job's `classes` are high, low, mid, the model was trained with low, mid"):
        await client.submit(parse_job(f"{JOB}classes: [high, low, mid]\n", "test"))
    await client.submit(parse_job(f"{JOB}classes: [low, mid, high]\n", "test"))
    bare = parse_job("job: bare\nevents: events.bare\nmodel: payments\nresults: results.bare\n", "test")
    await client.submit(bare)
    assert (await client.jobs.get("bare")).job.classes == version.labels
    matrix.attach(binary := booster(2), labels=["no", "yes"])
    assert (await client.push_model(binary, "binary")).labels == ("no", "yes")


async def test_a_bar_shows_how_far_a_push_is(client, capsys):
    await client.push_model(booster(3), "payments", progress=True)
    assert "pushing" in capsys.readouterr().err
    await client.push_model(booster(4), "payments")
    assert capsys.readouterr().err == ""


# ---------------------------------------------------------------------- files


async def test_a_version_goes_to_another_cluster_with_what_is_noted_of_it(client, tmp_path):
    file, tags = tmp_path / "late.zip", {"owner": "ana"}
    await client.push_model(booster(3), "payments", alias="champion", metrics={"auc": 0.9}, description="d", tags=tags)
    exported = await client.export_model("payments", file)
    async with StubCluster(partitions=5) as stub:
        other = await stub.client()
        (version, is_new) = await other.import_model(file, "imported", alias="champion")
        about = (await other.models.get("imported")).noted_of(1)
        assert await other.models.fetch("imported", 1) == await client.models.fetch("payments", 1)
    assert (is_new, version.sha256, version.metrics) == (True, exported.sha256, {"auc": 0.9})
    assert (version.source, about.description, about.tags) == ("payments v1", "d", tags)

    with pytest.raises(ModelError, match="Name a file that is not there yet"):
        await client.export_model("payments", file)
    pulled = tmp_path / "late.ubj"
    await client.pull_model("payments", pulled)
    assert pulled.read_bytes() == await client.models.fetch("payments", 1)


def bundled(path, known, model=b"{L", compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("model", model)
        if known is not None:
            archive.writestr("version.json", known if isinstance(known, bytes) else json.dumps(known))
    return path


@pytest.mark.parametrize(
    ("known", "says"),
    [
        (None, "no item named 'version.json'"),
        (b"{", "truncated"),
        ({"name": "m", "version": 0}, ">= 1"),
        ({"name": "m", "version": 1, "about": {"tags": {"x": 1}}}, "Expected `str`"),
        ({"name": "m", "version": 1}, "damaged or incomplete"),
    ],
)
async def test_a_file_that_is_not_an_export_is_refused(client, tmp_path, known, says):
    with pytest.raises(ModelError, match=says):
        await client.import_model(bundled(tmp_path / "x.zip", known))


async def test_an_export_that_would_unfold_is_refused(client, tmp_path):
    bomb = bundled(tmp_path / "bomb.zip", {"name": "m", "version": 1}, bytes(1 << 24), zipfile.ZIP_DEFLATED)
    with pytest.raises(ModelError, match="its `model` is compressed"):
        await client.import_model(bomb)
    (tmp_path / "text.zip").write_text("no archive")
    for path in ("text.zip", "none.zip"):
        with pytest.raises(ModelError, match="model export` writes one"):
            await client.import_model(tmp_path / path)


# ---------------------------------------------------------------------- samples


async def test_a_sample_is_replaced_as_a_whole_and_leaves_nothing(client):
    for rows in (300_000, 10):
        values = np.random.default_rng(1).random((rows, 1)).astype(np.float32)
        sample = Sample(("share",), values, {}, np.zeros(rows))
        await client.models.store_sample("payments", sample, "late")
    found = await client.models.sample("payments")
    assert found.inputs(SHARE)[0].tobytes() == values.tobytes()
    assert found.labels.tolist() == [0.0] * 10
    chunks = await client.grid.map(CHUNKS_MAP)
    assert len(await chunks.key_set()) == 1
    await client.push_model(booster(3), "payments")  # which clears away what nobody knows
    assert len(await chunks.key_set()) == 2
    assert len(await client.models.sample("payments")) == 10
    await client.models.delete_all("payments")
    assert await chunks.key_set() == []
    assert await client.models.sample("payments") is None


def test_categories_of_a_sample_are_those_of_whoever_scores_it():
    generator = np.random.default_rng(1)
    values = pd.DataFrame({"kind": pd.Categorical(generator.choice(["a", "b", "c"], 200)), "x": generator.random(200)})
    trained = xgb.XGBClassifier(n_estimators=2, n_jobs=1).fit(values, generator.integers(0, 2, 200))
    version = version_in(trained, "m")
    codes = np.array([[0.5, 0], [0.5, 1], [0.5, 2], [0.5, np.nan], [0.5, 7]], np.float32)
    matrix, margins = Sample(("x", "kind"), codes, {"kind": ["c", "new", "a"]}).inputs(version)
    assert margins is None
    np.testing.assert_array_equal(matrix[:, 0], np.array([2, np.nan, 0, np.nan, np.nan], np.float32))
    np.testing.assert_array_equal(matrix[:, 1], codes[:, 0])
    with pytest.raises(ModelError, match="has a feature `kind`, which the sample does not have"):
        Sample(("x",), codes[:, :1], {}).inputs(version)


@pytest.mark.parametrize("damage", ["short", "empty", "format"])
def test_bytes_that_are_not_a_sample_are_refused(damage):
    payload = Sample(("a", "b"), np.zeros((3, 2), np.float32), {}, np.zeros(3)).pack()
    assert len(Sample.unpack(payload, "it")) == 3
    with pytest.raises(ModelError, match="it in the grid is not valid"):
        Sample.unpack(
            {"short": payload[:-1], "format": payload.replace(b"\x01", b"\x02", 1)}.get(damage, b"\x90"), "it"
        )


# ---------------------------------------------------------------------- comparison


async def test_two_versions_are_compared_by_what_is_known_and_by_their_scores(client, tmp_path):
    values, labels = frame()
    for depth in (2, 5):
        trained = xgb.XGBClassifier(n_estimators=5, n_jobs=1, max_depth=depth).fit(values, labels)
        await client.push_model(trained, "payments", alias="champion", metrics={"auc": depth / 10})
    path = tmp_path / "matrix.parquet"
    history = values.assign(kind="x", late=labels)
    offline_matrix(parse_job(JOB, "test"), history, keep=["late"]).to_parquet(path)

    found = await client.compare_models("payments", 1, 2, sample=path, label="late")

    facts = {fact.what: (fact.before, fact.after) for fact in found.facts if fact.differs}
    assert facts["parameter max_depth"] == ("2", "5")
    assert facts["metric auc"] == (0.2, 0.5)
    assert {"size"} <= facts.keys()
    assert not {"features", "objective", "trees"} & facts.keys()
    assert found.scores.rows == 300
    assert 0 < found.scores.mean_difference < found.scores.largest_difference
    assert found.scores.metrics["auc"][0] < found.scores.metrics["auc"][1]
    assert json.loads(json.dumps(found.to_json()))["facts"][0]["what"] == "objective"

    assert (await client.compare_models("payments", 1, 2)).scores is None
    await client.submit(parse_job(JOB, "test"))
    assert (await client.compare_models("payments", 1, 2)).scores is None  # there are no events
    events = {f"k{n}": {"share": float(share), "kind": "x"} for n, share in enumerate(values["share"][:50])}
    await client.put_events("events.payments", {**events, "bad": {"kind": "x"}})
    live = (await client.compare_models("payments", 1, 2)).scores
    assert (live.rows, live.of, live.metrics) == (50, "the latest events of payments", {})
    same = (await client.compare_models("payments", 2, 2, sample=path)).scores
    assert (same.equal, same.psi, same.largest_difference) == (300, 0, 0)
