"""A job file without features and schema: they are the model's own, read from the event as they are."""

import json

import numpy as np
import pandas as pd
import pytest
import xgboost as xgb
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer
from typer.testing import CliRunner

from gridscore.cli import _commands
from gridscore.errors import JobFileError, ModelMismatchError
from gridscore.features import EventDecoder, FeaturePlan, LookupTable, offline_matrix
from gridscore.job import Job, parse_job
from gridscore.job.completion import complete
from gridscore.models import check_fit, completed, version_in
from gridscore.models.fit import fit_warnings
from gridscore.testing import StubCluster

SHORTEST = "job: tumours\nevents: events.t\nmodel: tumours\nresults: results.t\n"


def shortest(more="", model="tumours"):
    return parse_job(SHORTEST.replace("model: tumours", f"model: {model}") + more, "job.yaml")


def of(names, types=(), texts=(), trained=None, more=""):
    return complete(shortest(more), names, types, texts, trained or {})


def fitted(frame, target, **options):
    return xgb.XGBClassifier(n_estimators=5, max_depth=3, n_jobs=1, **options).fit(frame, target)


def scores(job, model, texts):
    version = version_in(model, job.model.name)
    check_fit(job, version)
    events = EventDecoder(job).decode_all(texts)
    matrix = FeaturePlan(job, {}, version.categories).matrix(events)
    return model.get_booster().inplace_predict(matrix, validate_features=False)


def lines(frame):
    return [json.dumps(row).encode() for row in frame.to_dict("records")]


def test_four_lines_score_a_model_of_scikit_learn():
    frame, target = load_breast_cancer(return_X_y=True, as_frame=True)
    model = fitted(frame, target)
    job = completed(shortest(), version_in(model, "tumours"))

    assert job.feature_names == tuple(frame.columns)
    assert job.schema_["mean_radius"].key("mean_radius") == "mean radius"
    expected = model.predict_proba(frame)[:, 1].astype(np.float32)
    assert scores(job, model, lines(frame)).tobytes() == expected.tobytes()
    assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job


def test_the_types_are_the_model_s():
    frame = pd.DataFrame(
        {
            "amount": [1.5, 2.5, 3.5, 4.5] * 20,
            "count": [1, 2, 3, 4] * 20,
            "new": [True, False] * 40,
            "country": pd.Categorical(["DE", "FR", "IT", "DE"] * 20),
            "zone": pd.Categorical([0, 1, 2, 1] * 20),
        }
    )
    model = fitted(frame, frame["new"].astype(int) ^ (frame["amount"] > 2), enable_categorical=True)
    version = version_in(model, "tumours")
    job = completed(shortest(), version)

    assert {name: str(kind) for name, kind in job.schema_.items()} == {
        "amount": "float",
        "count": "int",
        "new": "bool",
        "country": "string",
        "zone": "int",
    }
    assert job.features["country"].expression == "category(country)"
    expected = model.predict_proba(frame)[:, 1].astype(np.float32)
    assert scores(job, model, lines(frame)).tobytes() == expected.tobytes()
    assert fit_warnings({"tumours": job}, version) == []


def test_what_the_file_says_of_a_field_stands():
    more = "schema: {age: 'float?', id: string, who: {type: int, json: person no}}\nresult: {include: [id]}\n"
    job = of(["age", "person no", "size"], more=more)

    assert {name: str(kind) for name, kind in job.schema_.items()} == {
        "age": "float?",
        "id": "string",
        "who": "int",
        "size": "float",
    }
    assert [feature.expression for feature in job.features.values()] == ["age", "who", "size"]


def test_types_that_training_knew():
    job = of(["new", "zip"], texts=["zip"], trained={"new": "bool", "zip": "int"})
    assert [str(kind) for kind in job.schema_.values()] == ["bool", "int"]


def test_names_that_are_alike_stay_apart():
    job = of(["a b", "a-b", "a_b", "größe", "§", "class", "len"])
    names = [kind.key(field) for field, kind in job.schema_.items()]
    assert names == ["a b", "a-b", "a_b", "größe", "§", "class", "len"]
    assert job.features["a_b"].expression == "a_b"


@given(st.lists(st.text(st.sampled_from("ab .-_1é"), min_size=1, max_size=6), min_size=1, max_size=8, unique=True))
def test_each_feature_is_the_field_of_its_name(names):
    try:
        job = of(names)
    except JobFileError:
        assert any(name != name.strip() for name in names)
        return
    event = {name: float(number) for number, name in enumerate(names)}
    matrix = FeaturePlan(job, {}, {}).matrix(EventDecoder(job).decode_all([json.dumps(event).encode()]))
    assert matrix.tolist() == [list(map(float, range(len(names))))]


def test_a_dot_goes_into_an_object():
    job = of(["id", "device.os.major", "device.ram"])
    decode = EventDecoder(job).decode_good
    texts = [
        {"id": 1, "device": {"os": {"major": 14, "minor": "x"}, "ram": 8}, "more": [1]},
        {"id": 2, "device.os.major": 15, "device.ram": 9},
        {"id": 3, "device": {"ram": 10}, "device.os.major": 16},
        {"id": 4, "device": {"os": None, "ram": 8}},
        {"id": 5, "device": {"os": {"major": "x"}, "ram": 8}},
        {"id": 6, "device": 7},
        {"id": 7, "device": {"os": {"major": None}, "ram": 8}},
    ]
    events, bad = decode([json.dumps(text).encode() for text in texts])

    assert FeaturePlan(job, {}, {}).matrix(events).tolist() == [[1, 14, 8], [2, 15, 9], [3, 16, 10]]
    assert bad == {
        3: "the field `device.os.major` is missing",
        4: "field `device.os.major`: expected a number, got a string",
        5: "field `device`: expected an object or null, got a whole number",
        6: "field `device.os.major`: expected a number, got null",
    }


def test_a_dot_is_part_of_a_name_where_the_object_would_be_a_feature():
    job = of(["a", "a.b"])
    events = EventDecoder(job).decode_all([b'{"a": 1, "a.b": 2}'])
    assert FeaturePlan(job, {}, {}).matrix(events).tolist() == [[1, 2]]


def test_nested_fields_in_tables_and_lookups():
    job = Job.model_validate(
        {
            "job": "n",
            "events": "e",
            "results": "r",
            "model": "m",
            "schema": {"os": {"type": "float?", "json": "$.device.os"}, "k": "string"},
            "lookups": {"shop": {"map": "l", "key": "k", "fields": {"x": {"type": "float", "json": "$.place.x"}}}},
            "features": {"os": "os", "x": "shop.x"},
        }
    )
    table = LookupTable(job.lookups["shop"])
    table.put("a", b'{"place": {"x": 5}}')
    events = EventDecoder(job).decode_all([b'{"k": "a", "device": {"os": 2}}', b'{"k": "a", "device": null}'])
    live = FeaturePlan(job, {"shop": table}, {}).matrix(events)
    frame = pd.DataFrame({"device.os": [2.0, None], "k": ["a", "a"]})
    offline = offline_matrix(job, frame, {"shop": pd.DataFrame({"k": ["a"], "place.x": [5]})})

    assert np.isnan(live[1, 0])
    assert live[0].tolist() == [2, 5]
    assert np.array_equal(offline.values, live, equal_nan=True)


@pytest.mark.parametrize("place", ["$.", "$.a..b", "$.a.", "$." + ".".join("a" * 17)])
def test_a_place_that_is_none(place):
    with pytest.raises(JobFileError, match="is not the place of a field"):
        shortest(f"schema: {{a: {{type: float, json: '{place}'}}}}\n")


def test_a_field_cannot_lie_in_another():
    with pytest.raises(JobFileError, match="schema field `b`: it lies within what `a` reads as float"):
        shortest("schema: {a: float, b: {type: float, json: $.a.c}}\n")


def test_features_without_a_schema_are_refused():
    with pytest.raises(JobFileError, match="the key `schema` is missing: without it, leave out `features` as well"):
        shortest("features: {a: a, b: log(a)}\n")


def test_what_does_not_fit_to_the_model_is_said():
    with pytest.raises(JobFileError, match=r"there is no event field `b`"):
        of(["a"], more="result: {include: [b]}\n")
    with pytest.raises(JobFileError, match=r"feature `a\\b` cannot be read"):
        of(["a\\b"])


def test_without_a_model_there_are_no_features():
    for use in (EventDecoder, lambda job: FeaturePlan(job, {}, {})):
        with pytest.raises(JobFileError, match="names no features: they are those of its model"):
            use(shortest())


def test_a_version_with_other_names_or_made_otherwise_is_refused():
    frame = pd.DataFrame({"a": np.arange(80.0), "b": np.arange(80.0) % 7})
    target = frame["b"] > 3
    job = completed(shortest(), version_in(fitted(frame, target), "tumours"))

    with pytest.raises(ModelMismatchError, match="only in the model: c"):
        check_fit(job, version_in(fitted(frame.rename(columns={"b": "c"}), target), "tumours"))
    made = parse_job(SHORTEST + "schema: {a: float, b: float}\nfeatures: {a: log1p(a), b: b}\n", "job.yaml")
    matrix = offline_matrix(made, frame)
    booster = xgb.train({"nthread": 1}, xgb.DMatrix(matrix.values, target, feature_names=["a", "b"]), 3)
    matrix.attach(booster)
    version = version_in(booster, "tumours")
    with pytest.raises(ModelMismatchError, match=r"`a`: trained with `log1p\(a\)`, the job has `a`"):
        check_fit(completed(shortest(), version), version)


async def test_it_is_submitted_with_the_features_of_its_model():
    async with StubCluster(partitions=5) as cluster:
        client = await cluster.client()
        frame = pd.DataFrame({"a b": np.arange(80.0), "c": np.arange(80.0) % 7})
        other = frame.rename(columns={"c": "d"})
        target = frame["c"] > 3
        await client.push_model(fitted(frame, target), "tumours", alias="champion")
        record = await client.submit(shortest())
        assert record.job.feature_names == ("a b", "c")
        assert (await client.submit(shortest())).revision == record.revision == 1
        with pytest.raises(ModelMismatchError, match="only in the model: d"):
            await client.push_model(fitted(other, target), "tumours", alias="champion")
        # Model and features change at once, and go back at once.
        record = await client.submit(shortest(), update=True, model=fitted(other, target))
        assert record.job.feature_names == ("a b", "d")
        assert (await client.version_of(record.job)).version == 2
        assert (await client.rollback("tumours")).job.feature_names == ("a b", "c")
        with pytest.raises(JobFileError, match="names no features"):
            await client.jobs.submit(shortest())


def test_a_field_that_was_meant_for_a_feature_of_another_name_is_refused():
    for name, place in (("mean radius", "mean radius"), ("mean.radius", "$.mean.radius")):
        with pytest.raises(JobFileError, match="is not the model's feature") as caught:
            of([name], more="schema: {mean_radius: float?}\n")
        assert f'`mean_radius: {{type: float?, json: "{place}"}}`' in caught.value.hint
        meant = of([name], more=f'schema: {{mean_radius: {{type: float?, json: "{place}"}}}}\n')
        assert list(meant.schema_) == ["mean_radius"]
        both = of([name], more="schema: {mean_radius: {type: float?, json: mean_radius}}\n")
        assert both.features[name].expression == "mean_radius_2"


def test_a_model_of_more_features_than_a_job_can_have_is_refused_as_that():
    with pytest.raises(JobFileError, match="has 1,001 features, a job has at most 1,000") as caught:
        of([f"c{n}" for n in range(1_001)])
    assert caught.value.hint == "Train on fewer columns."


def test_what_is_no_expression_is_told_without_the_model():
    with pytest.raises(JobFileError, match=r"decisions\[1\].when`: not an expression"):
        shortest("decisions:\n  - {decision: a, when: score > > 1}\n  - {decision: b}\n")


def test_rounds_after_the_best_are_told_of_before_the_model_is_pushed(tmp_path):
    frame = pd.DataFrame({"a": np.arange(40.0)})
    booster = fitted(frame, frame["a"] > 20).get_booster()
    booster.set_attr(best_iteration="1")
    booster.save_model(tmp_path / "model.ubj")
    (tmp_path / "job.yaml").write_text(SHORTEST)
    frame.to_csv(tmp_path / "history.csv", index=False)
    job, history, model = (str(tmp_path / name) for name in ("job.yaml", "history.csv", "model.ubj"))
    for words in (
        ["job", "check", job, "--model", model],
        ["features", job, history, "--model", model, "--score", "-o", str(tmp_path / "matrix.parquet")],
    ):
        done = CliRunner().invoke(_commands(), words)
        assert done.exit_code == 0, done.output
        assert "Early stopping found round 2 of 5 the best" in done.stderr
