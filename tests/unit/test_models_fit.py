"""A version scores for a job only as it was trained: names, order, kinds, categories, definitions of features."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import xgboost as xgb

from gridscore.errors import ModelError, ModelMismatchError
from gridscore.features import OfflineMatrix, definitions_of, offline_matrix
from gridscore.job import Job
from gridscore.models import check_fit
from gridscore.models.candidate import Candidate
from gridscore.models.fit import changed_features, fit_warnings
from gridscore.models.version import ModelVersion
from gridscore.testing import StubCluster

HISTORY = pd.DataFrame(
    {
        "carrier": ["AA", "UA", "DL", "AA"] * 20,
        "code": [1, 2, 3, 1] * 20,
        "late": [True, False, True, False] * 20,
        "amount": np.linspace(1, 90, 80),
    }
)
SHOPS = {"shop": pd.DataFrame({"code": [1, 2, 3], "size": [5.0, 6.0, 7.0], "rank": [1, 2, 3]})}
LABELS = (HISTORY.index % 3 == 0).astype(int)


def job(name="late", **changed):
    features = {"carrier": "category(carrier)", "amount": "log1p(amount)", "size": "shop.size", **changed}
    return Job.model_validate(
        {
            "job": name,
            "events": "e",
            "results": "r",
            "model": "m",
            "schema": {"carrier": "string", "code": "int", "late": "bool?", "amount": "float"},
            "lookups": {"shop": {"map": "l", "key": "code", "fields": {"size": "float", "rank": "int"}}},
            "features": features,
        }
    )


def candidate(model, **options):
    return Candidate.check(model, "m", **{"metrics": None, "categories": None, **options})


def trained(given, *, attach=True, types=None):
    """A model of the matrix that the job makes of the history."""
    matrix = offline_matrix(given, HISTORY, SHOPS)
    data = xgb.DMatrix(
        matrix.values, LABELS, feature_names=list(matrix.names), feature_types=types, enable_categorical=True
    )
    booster = xgb.train({"objective": "binary:logistic", "nthread": 1}, data, 3)
    if attach:
        matrix.attach(booster)
    return booster


def version_of(model, **options):
    return candidate(model, **options).version


def refused(given, version, **options):
    with pytest.raises(ModelMismatchError) as caught:
        check_fit(given, version, **options)
    return caught.value.message


def test_the_job_that_a_model_was_trained_for_takes_it_without_a_word():
    version = version_of(trained(job()), jobs={"late": job()})

    check_fit(job(), version)
    assert fit_warnings({"late": job()}, version) == []
    assert version_of(trained(job(), attach=True, types=["c", "q", "float"]), jobs={"late": job()}).definitions


def test_features_of_a_job_must_match_in_name_and_order():
    version = version_of(trained(job()))

    message = refused(job(sizes="1", hour="2"), version)
    assert "only in the job: sizes (is it `size`?), hour" not in message  # `size` is there, too
    assert "only in the job: sizes, hour" in message
    other = Job.model_validate({**job().to_json(), "features": {"carriers": "category(carrier)", "amount": "1"}})
    message = refused(other, version)
    assert "only in the job: carriers (is it `carrier`?)" in message
    assert "only in the model: carrier, size" in message
    turned = Job.model_validate({**job().to_json(), "features": dict(reversed(job().to_json()["features"].items()))})
    assert "the order is not:\n     1. the job: size   the model: carrier" in refused(turned, version)


@pytest.mark.parametrize("types", [None, ["c", "float", "float"]], ids=["numbers", "categorical"])
@pytest.mark.parametrize("expression", ["code", '1 if carrier == "AA" else 0', "shop.rank"])
def test_a_category_of_texts_is_not_a_number_of_the_same_name(types, expression):
    version = version_of(trained(job(), types=types))

    message = refused(job(carrier=expression), version, allow_changed=True)

    assert "`carrier`: trained as a category (AA, DL, UA), the job makes a number of it: " in message


def test_a_refusal_stays_short_however_long_the_expressions_are():
    long = "amount" + " + amount" * 90
    some = {f"f{number}": long for number in range(15)}
    version = version_of(trained(job(**dict.fromkeys(some, "category(carrier)"))))
    message = refused(job(**some), version)
    assert len(message) < 5_000
    assert message.count("the job makes a number of it") == 10
    assert "… and 5 more" in message


def test_categories_that_a_dataframe_recorded_are_compared_like_attached_ones():
    """The score would be inverted: `full` is code 0 of the model, and 1 of the job."""
    frame = pd.DataFrame({"body": pd.Categorical(["full", "light"] * 40)})
    booster = xgb.train(
        {"objective": "binary:logistic", "nthread": 1}, xgb.DMatrix(frame, LABELS, enable_categorical=True), 3
    )
    given = Job.model_validate(
        {
            **job().to_json(),
            "schema": {"body": "string"},
            "lookups": {},
            "features": {"body": '1 if body == "full" else 0'},
        }
    )

    with pytest.raises(ModelMismatchError, match=r"For the job `late`:\n  `body`: trained as a category \(full, light"):
        candidate(booster, jobs={"late": given})


def test_codes_without_texts_can_be_codes_of_the_job_and_nothing_else():
    booster = trained(job(carrier="code"), attach=False, types=["c", "float", "float"])
    version = version_of(booster)

    for code in ("code", "shop.rank"):
        check_fit(job(carrier=code), version)
    message = refused(job(), version)
    assert "`carrier`: trained as a category of which the model has only codes" in message
    assert "the job makes a category of texts: `category(carrier)`" in message
    assert "the job computes a number: `1 if late else 0`" in refused(job(carrier="1 if late else 0"), version)
    named = version_of(booster, categories={"carrier": ["-", "AA", "DL", "UA"]})
    check_fit(job(), named)


async def test_a_number_of_the_attached_matrix_may_be_a_code_and_scores_as_it_was_trained():
    types = ["c", "float", "float"]
    given = job(carrier="floor(amount) % 5").model_copy(update={"events": "events.e", "results": "results.r"})
    booster = trained(given, types=types)
    assert "the job computes a number" in refused(job(carrier="floor(amount) % 4"), version_of(booster))
    bare = version_of(trained(given, attach=False, types=types))
    assert "does not say that training did the same: attach the matrix" in refused(given, bare)

    matrix = offline_matrix(given, HISTORY, SHOPS)
    data = xgb.DMatrix(matrix.values, feature_names=list(given.features), feature_types=types, enable_categorical=True)
    assert len(set(expected := booster.predict(data).tolist())) > 5
    async with StubCluster() as cluster:
        client = await cluster.client()
        await client.put_events("l", {n: {"size": n + 4.0, "rank": n} for n in (1, 2, 3)})
        await client.push_model(booster, "m", alias="champion")
        await client.submit(given)
        async with cluster.worker("worker"):
            await client.put_events("events.e", dict(enumerate(HISTORY.to_dict("records"))))
            results = await cluster.results("results.r", len(HISTORY), seconds=60)
    assert [results[key]["score"] for key in range(len(HISTORY))] == expected


def test_a_number_is_not_a_category_of_the_same_name():
    version = version_of(trained(job(carrier="code"), attach=False))

    assert "trained as a number, the job makes a category of texts" in refused(job(), version)


def test_a_category_of_numbers_is_not_one_of_other_texts():
    version = version_of(trained(job()))

    message = refused(job(carrier="category(code)"), version, allow_changed=True)

    assert "trained as a category (AA, DL, UA), the job's are numbers: `category(code)`" in message


def test_categories_of_numbers_are_written_as_the_job_writes_them():
    """pandas writes floats as `1.0`: the job would find no category at all, without a word."""
    frame = pd.DataFrame({"z": pd.Categorical(["1.0", "2.0"] * 40)})
    booster = xgb.train(
        {"objective": "binary:logistic", "nthread": 1}, xgb.DMatrix(frame, LABELS, enable_categorical=True), 3
    )
    for kind, good, bad in (
        ("float", ["1", "x"], ["1.0", "01", "1e3", "-0"]),
        ("float", ["0.5", "x"], ["0.50", "nan"]),
        ("int", [str(2**53 + 1), "x"], ["1.5", "1.0", "01"]),
    ):
        changes = {"schema": {"z": kind}, "lookups": {}, "features": {"z": "category(z)"}}
        given = Job.model_validate({**job().to_json(), **changes})
        candidate(booster, jobs={"late": given}, categories={"z": good})
        message = refused(given, version_of(booster, categories={"z": bad}))
        assert "`z`: trained as a category (" in message
        assert "the job's are numbers: `category(z)`, which writes one as `1`, not as `1.0` or `01`" in message
        assert "(1.0, 2.0), the job's are numbers" in refused(given, version_of(booster))


def test_a_matrix_is_not_attached_to_a_model_of_other_features():
    matrix = offline_matrix(job(), HISTORY, SHOPS)
    turned = pd.DataFrame(matrix.values, columns=matrix.names)[sorted(matrix.names)]
    for frame, says in (
        (turned, "these features in another order"),
        (turned.rename(columns={"size": "sizes"}), "other features: amount, carrier, sizes"),
    ):
        booster = xgb.train({"nthread": 1}, xgb.DMatrix(frame, LABELS), 1)
        with pytest.raises(ModelError, match=says) as caught:
            matrix.attach(booster)
        assert "carrier, amount, size" in caught.value.hint
        assert (booster.feature_names, booster.attr("gridscore")) == (list(frame.columns), None)


def test_attached_categories_that_contradict_the_trained_ones_are_refused_unless_given():
    part = HISTORY[HISTORY.carrier != "AA"]
    frame = pd.DataFrame({"carrier": pd.Categorical(part.carrier), "amount": part.amount, "size": part.amount})
    data = xgb.DMatrix(frame, LABELS[part.index], enable_categorical=True)
    booster = xgb.train({"objective": "binary:logistic", "nthread": 1}, data, 3)
    assert version_of(booster).categories == {"carrier": ("DL", "UA")}
    offline_matrix(job(), HISTORY, SHOPS).attach(booster)

    assert "attached to it, from number 1 on: trained with DL, UA; attached AA, DL, UA" in _why_not(booster)
    booster.set_attr(gridscore=booster.attr("gridscore").replace('"AA","DL","UA"', '"DL","UB"'))
    assert "attached to it, from number 2 on: trained with UA; attached UB" in _why_not(booster)
    given = version_of(booster, categories={"carrier": ["DL", "UA"]})
    assert given.categories == {"carrier": ("DL", "UA")}


def test_categories_of_a_continued_model_keep_their_codes():
    earlier = offline_matrix(job(), HISTORY[HISTORY.carrier != "AA"], SHOPS)
    first = xgb.train({"nthread": 1}, xgb.DMatrix(earlier.values, LABELS[: len(earlier)]), 2)
    earlier.attach(first)

    def continued(matrix):
        data = xgb.DMatrix(matrix.values, LABELS, feature_names=list(matrix.names))
        return xgb.train({"nthread": 1}, data, 2, xgb_model=first)

    other = offline_matrix(job(), HISTORY, SHOPS)
    booster = continued(other)
    with pytest.raises(ModelError, match="other codes of `carrier`: it has DL, UA; the matrix AA, DL, UA") as caught:
        other.attach(booster)
    assert "--categories-from" in caught.value.hint
    assert version_of(booster).categories == earlier.categories

    for categories in (earlier.categories, {"carrier": ["DL", "UA", "AA"]}):
        longer = offline_matrix(job(), HISTORY, SHOPS, categories)
        booster = continued(longer)
        longer.attach(booster)
        assert version_of(booster).categories == {"carrier": tuple(categories["carrier"])}
    booster.set_attr(gridscore=None)
    other.attach(booster)
    booster.set_attr(gridscore="{")
    other.attach(booster)
    assert version_of(booster).categories == other.categories


def test_a_matrix_is_attached_to_an_estimator_like_to_its_booster():
    matrix = offline_matrix(job(), HISTORY, SHOPS)
    estimator = xgb.XGBClassifier(n_estimators=2, n_jobs=1).fit(matrix.values, LABELS)
    matrix.attach(estimator)
    assert version_of(estimator).categories == matrix.categories
    estimator.set_params(missing=-999.0)
    with pytest.raises(ModelError, match="takes -999 for missing"):
        matrix.attach(estimator)
    with pytest.raises(ModelError, match="not been fitted"):
        matrix.attach(xgb.XGBClassifier())


def test_an_estimator_that_takes_a_number_for_missing_is_refused():
    matrix = offline_matrix(job(), HISTORY, SHOPS)
    for missing in (0.0, np.nan):
        model = xgb.XGBRegressor(n_estimators=2, n_jobs=1, missing=missing).fit(matrix.values, LABELS)
        matrix.attach(model.get_booster())
        if missing == 0:
            assert "takes 0 for missing" in _why_not(model)
        else:
            assert version_of(model).rounds == 2


async def test_a_push_from_python_says_what_early_stopping_left():
    matrix = offline_matrix(job(), HISTORY, SHOPS)
    model = xgb.XGBRegressor(n_estimators=50, n_jobs=1, early_stopping_rounds=2, learning_rate=1)
    model.fit(matrix.values, LABELS, eval_set=[(matrix.values, 1 - LABELS)], verbose=False)  # noqa: PD011
    matrix.attach(model.get_booster())
    async with StubCluster() as cluster:
        client = await cluster.client()
        with pytest.warns(UserWarning, match="Early stopping found round 1 of 3 the best"):
            await client.push_model(model.get_booster(), "m")
        assert (await client.push_model(model, "m")).rounds == 1  # as the estimator itself predicts


def test_texts_that_xgboost_has_cut_are_refused_until_somebody_names_them():
    places = ["Zürich", "Genève", "Bern", "Chur"]
    frame = pd.DataFrame({"carrier": pd.Categorical(places * 20), "amount": HISTORY.amount, "size": HISTORY.amount})
    booster = xgb.train(
        {"objective": "binary:logistic", "nthread": 1}, xgb.DMatrix(frame, LABELS, enable_categorical=True), 3
    )
    if xgb.__version__ >= "3.4":  # keeps them
        assert version_of(booster).categories == {"carrier": tuple(sorted(places))}
    else:
        assert "categories of `carrier` are not all ASCII" in _why_not(booster)

    check_fit(job(), version_of(booster, categories={"carrier": sorted(places)}), allow_changed=True)


def _why_not(booster):
    with pytest.raises(ModelError) as caught:
        candidate(booster)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"amount": "log(amount)"}, "`amount`: trained with `log1p(amount)`, the job has `log(amount)`"),
        (
            {"size": {"expression": "shop.size", "default": 2}},
            "`size`: trained with `shop.size`, the job has `shop.size, default 2.0`",
        ),
    ],
)
def test_a_feature_of_another_definition_is_refused_unless_it_is_allowed(changed, says):
    version = version_of(trained(job()))
    given = job(**changed)

    assert says in refused(given, version)
    with pytest.raises(ModelMismatchError, match="--allow-changed-features"):
        candidate(trained(job()), jobs={"late": given})

    check_fit(given, version, allow_changed=True)
    assert says in fit_warnings({"late": given}, version)[0]


def test_types_and_lookups_belong_to_a_definition_and_spelling_does_not():
    version = version_of(trained(job(extra="late", total="code")))
    given = job(extra="late", total="code").to_json()

    spelled = {**given, "features": {**given["features"], "amount": "log1p( (amount) )"}}
    spelled["schema"] = {**given["schema"], "late": "bool", "unused": "string"}
    check_fit(Job.from_json(spelled), version)
    typed = {**given, "schema": {**given["schema"], "amount": "int"}}
    assert "the type of the field `amount`: trained with `float`, the job has `int`" in refused(
        Job.from_json(typed), version
    )
    keyed = {**given, "lookups": {"shop": {**given["lookups"]["shop"], "key": "code + 1"}}}
    assert "the key of the lookup `shop`: trained with `code`, the job has `code + 1`" in refused(
        Job.from_json(keyed), version
    )
    defaulted = json.loads(json.dumps(given))
    defaulted["lookups"]["shop"]["fields"]["size"] = {"type": "float", "default": 1.0}
    assert "`shop.size`: trained with `float`, the job has `float, default 1.0`" in refused(
        Job.from_json(defaulted), version
    )


def test_what_a_name_means_belongs_to_a_definition_and_how_a_number_is_written_does_not():
    features = {"rate": "amount / 100", "double": "rate * 2", "age": "epoch(at)", "few": "amount in [1, 2]"}
    features["size"] = "shop.size"

    def given(fields=None, size=None, **changed):
        schema = {"amount": "float", "at": {"type": "timestamp", "unit": "s"}, **(fields or {})}
        lookups = {"shop": {"map": "l", "key": "amount", "fields": {"size": size or {"type": "float", "default": 0}}}}
        made = {"schema": schema, "lookups": lookups, "features": {**features, **changed}}
        return Job.model_validate({**job().to_json(), **made})

    def changes(trained_with, of):
        version = SimpleNamespace(definitions=definitions_of(trained_with))
        return changed_features(of, version)

    plain, shadowed = given(), given({"rate": "float"})
    assert changes(plain, shadowed) == ["the field `rate`: training did not read it, the job does"]
    assert changes(shadowed, plain) == ["the field `rate`: training read it, the job does not"]
    for field in ({"type": "timestamp", "unit": "ms"}, {"type": "timestamp", "unit": "s", "json": "then"}):
        (line,) = changes(plain, given({"at": field}))
        assert line.startswith("the type of the field `at`: trained with `timestamp, unit s`, the job has `timestamp, ")
    (line,) = changes(plain, given({"amount": {"type": "float", "json": "usd"}}))
    assert "`float, json 'usd'`" in line
    spelled = given(None, {"type": "float", "default": 0.0}, double="rate * 2.0", few="amount in (1.0, 2)")
    assert changes(plain, spelled) == changes(spelled, plain) == []
    for other in ({"double": "rate * 2.5"}, {"few": "amount in (1, 3)"}, {"rate": "amount / 10"}):
        assert len(changes(plain, given(**other))) == 1
    assert len(changes(plain, given(None, {"type": "float", "default": 1}))) == 1


def test_long_definitions_are_compared_whole_and_kept_short():
    long = f"amount in {list(range(400))}"
    booster = trained(job(amount=long))
    version = version_of(booster)

    check_fit(job(amount=long), version)
    assert len(booster.attr("gridscore")) < 1_000
    (change,) = changed_features(job(amount=f"not ({long})"), version)
    assert len(change) < 700


def test_definitions_travel_by_file_and_registry_and_a_model_without_them_gets_a_note(tmp_path):
    matrix = offline_matrix(job(), HISTORY, SHOPS)
    matrix.to_parquet(tmp_path / "matrix.parquet")
    again = OfflineMatrix.from_parquet(tmp_path / "matrix.parquet")
    assert again.definitions == matrix.definitions
    assert again.categories == matrix.categories

    checked = candidate(trained(job()))
    stored = ModelVersion.from_json(json.loads(json.dumps(checked.metadata())), "m", 3)
    assert stored.definitions == matrix.definitions

    bare = version_of(trained(job(), attach=False), categories={"carrier": ["AA", "DL", "UA"]})
    check_fit(job(), bare)
    (note,) = fit_warnings({"late": job()}, bare)
    assert "does not say how its features were made" in note


def test_hostile_definitions_are_refused_or_only_compared():
    booster = trained(job())
    attribute = json.loads(booster.attr("gridscore"))
    for wrong in ({"features": {"amount": 1}}, {"features": {"a": "x" * 5_000}}, {"surprise": {}}, [], "x"):
        booster.set_attr(gridscore=json.dumps({**attribute, "definitions": wrong}))
        assert "The attribute `gridscore`" in _why_not(booster)
    booster.set_attr(
        gridscore=json.dumps({**attribute, "definitions": {"features": {"amount": "__import__('os')", "gone": "1"}}})
    )
    version = version_of(booster)
    assert changed_features(job(), version) == [
        "`amount`: trained with `__import__('os')`, the job has `log1p(amount)`"
    ]


def test_every_job_that_differs_is_told():
    booster = trained(job())
    other = Job.model_validate({**job().to_json(), "features": {"carrier": "category(carrier)", "x": "1"}})

    with pytest.raises(ModelMismatchError, match=r"For the job `b`:\n  only in the job: x") as caught:
        candidate(booster, jobs={"a": job("a"), "b": other, "c": job("c", amount="amount")})
    assert "job `a`" not in caught.value.message
    assert "For the job `c`:\n  `amount`: trained with" in caught.value.message


def test_a_margin_belongs_to_the_definitions():
    version = version_of(trained(job()))
    given = Job.model_validate({**job().to_json(), "margin": "amount / 100"})

    assert "the margin: trained with none, the job has `amount / 100`" in refused(given, version)


def several(objective, **parameters):
    given = job()
    matrix = offline_matrix(given, HISTORY, SHOPS)
    labels = np.arange(len(LABELS)) % 3
    if not objective.startswith("multi:") and "quantile_alpha" not in parameters:
        labels = np.stack([labels, labels + 1], axis=1) / (1 if objective == "reg:squarederror" else 3)
    data = xgb.DMatrix(matrix.values, labels, feature_names=list(matrix.names))
    booster = xgb.train({"objective": objective, "nthread": 1, **parameters}, data, 3)
    matrix.attach(booster)
    return booster


@pytest.mark.parametrize(
    ("objective", "parameters", "outputs"),
    [
        ("multi:softprob", {"num_class": 3}, 3),
        ("multi:softmax", {"num_class": 3}, 1),
        ("reg:squarederror", {}, 2),
        ("reg:quantileerror", {"quantile_alpha": [0.1, 0.5, 0.9]}, 3),
    ],
)
def test_decisions_are_refused_for_a_model_with_several_outputs(objective, parameters, outputs):
    booster = several(objective, **parameters)
    deciding = Job.model_validate(
        {**job().to_json(), "decisions": [{"decision": "a", "at_least": 0.5}, {"decision": "b"}]}
    )
    version = version_of(booster)

    assert version.outputs == outputs
    check_fit(job(), version)
    if outputs == 1:
        check_fit(deciding, version)
        return
    with pytest.raises(ModelMismatchError, match=f"the model gives {outputs} scores per event") as caught:
        candidate(booster, jobs={"late": deciding})
    assert "multi:softmax" in caught.value.hint
    assert f"gives {outputs} scores" in refused(deciding, version, allow_changed=True)


@pytest.mark.parametrize("objective", ["binary:logistic", "reg:logistic"])
@pytest.mark.parametrize("names", [["no", "yes"], ["a", "b", "c"]])
def test_the_targets_of_a_model_are_not_classes(objective, names):
    booster = several(objective)
    naming = Job.model_validate({**job().to_json(), "classes": names})

    with pytest.raises(ModelMismatchError, match="gives 2 scores per event, each of a target of its own"):
        candidate(booster, jobs={"late": naming})
    assert "they are not classes" in refused(naming, version_of(booster), allow_changed=True)
    offline_matrix(job(), HISTORY, SHOPS).attach(booster, labels=names)
    with pytest.raises(ModelError, match=f"has no classes, and {len(names)} labels for them"):
        version_of(booster)


def test_a_margin_is_refused_for_a_model_that_begins_with_one_for_each_class():
    given = Job.model_validate({**job().to_json(), "margin": "amount / 100"})
    for objective in ("multi:softmax", "multi:softprob"):
        version = version_of(several(objective, num_class=3))
        assert "`margin` is one number" in refused(given, version, allow_changed=True)
