"""A first job file: whatever it is made of, it is one that `job check` passes."""

import contextlib
import datetime as dt
import json
import re
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import xgboost as xgb
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from gridscore.cli import _commands
from gridscore.errors import UsageError
from gridscore.features import EventDecoder, FeaturePlan
from gridscore.job import load_job, parse_job
from gridscore.job.template import name_of, shell, text_of_events

EVENTS = [
    {
        "id": f"e{n}",
        "amount": 1.5 * n,
        "count": n,
        "country": ["DE", "FR"][n % 2],
        "vip": n > 5,
        "at": "2026-01-31T12:00:00Z",
        "device": {"os": "linux" if n else None, "ram": 8},
        "items": [n],
        "mean radius": 1,
        "a[b]": 1,
        "nothing": None,
    }
    for n in range(100)
]
SCHEMA = {
    "amount": "float",
    "count": "int",
    "country": "string",
    "vip": "bool",
    "device_os": "string?",
    "device_ram": "int",
    "mean_radius": "int",
}


def command(*words, code=0):
    done = CliRunner().invoke(_commands(), ["job", *map(str, words)])
    if code:
        assert isinstance(done.exception, UsageError)
        assert done.exception.exit_code == code
    else:
        assert done.exit_code == 0, done.output
    return done


def test_it_has_the_fields_of_events_and_says_what_it_left_out():
    text = text_of_events(shell("shop"), EVENTS)
    job = parse_job(text, "job.yaml")

    assert {name: str(kind) for name, kind in job.schema_.items()} == SCHEMA
    assert job.features["device.os"].expression == "category(device_os)"
    for line in (
        '# "id": its texts are all different, as keys are',
        '# "at": it is a time: declare it a timestamp, and make features of it, as `hour(it)`',
        '# "items": its values are arrays: declare it as `[float]` or `[{price: float}]`, and take `len(it)`',
        '# "a[b]": its name cannot be a feature\'s',
    ):
        assert line in text
    texts = [json.dumps(event).encode() for event in EVENTS]
    categories = {"country": ("DE",), "device.os": ("linux",)}
    assert len(FeaturePlan(job, {}, categories).matrix(EventDecoder(job).decode_all(texts))) == 100


def test_a_dot_in_the_name_of_a_field_within_an_object_is_told():
    text = text_of_events(shell("shop"), [{"a": {"b.c": 1, "d": 2}, "e.f": 3}])
    job = parse_job(text, "job.yaml")

    assert '# "a.b.c": it lies in an object, and has a dot in its own name' in text
    assert list(job.features) == ["a.d", "e.f"]
    events, bad = EventDecoder(job).decode_good([b'{"a": {"b.c": 1, "d": 2}, "e.f": 3}'])
    assert FeaturePlan(job, {}, {}).matrix(events).tolist() == [[2, 3]], bad


NAMES = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from('ab.: -#"😀')), max_size=8)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(NAMES, JSON, max_size=6), max_size=5), st.text(max_size=80))
def test_of_any_events_it_is_a_job_file(events, name):
    with contextlib.suppress(UsageError):  # no field could be a feature
        parse_job(text_of_events(shell(name_of(name)), events), "job.yaml")


def test_what_its_comments_show_can_be_used():
    for events in (EVENTS, [{"land": "DE"}], [{"mean radius": 1}]):
        text = text_of_events(shell("shop"), events)
        used = re.sub(r"(?m)^# (result:|decisions:|lookups:|  - |  customer: )", r"\1", text).replace(
            "key: customer", "key: '\"x\"'"
        )
        job = parse_job(used, "job.yaml")
        assert (len(job.decisions), len(job.result.include), len(job.lookups)) == (2, 1, 1)


def test_of_a_model_it_is_the_shortest_job_written_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frame = pd.DataFrame({"mean radius": np.arange(40.0), "yes": [True, False] * 20, "n": range(40)})
    xgb.XGBClassifier(n_estimators=2, n_jobs=1).fit(frame, frame["yes"]).save_model("my model.ubj")
    command("init", "--model", "my model.ubj")
    command("check", "job.yaml", "--model", "my model.ubj")

    job = load_job("job.yaml")
    assert (job.name, job.events, job.feature_names) == ("my-model", "events.my-model", ("mean radius", "yes", "n"))
    assert [str(kind) for kind in job.schema_.values()] == ["float", "bool", "int"]
    before = (tmp_path / "job.yaml").read_bytes()
    refused = command("init", "--model", "my model.ubj", code=2)
    assert "exists already" in str(refused.exception)
    assert (tmp_path / "job.yaml").read_bytes() == before


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_of_a_history_it_has_the_columns(tmp_path, kind):
    left_out = ("device", "items") if kind == "csv" else ("items",)
    frame = pd.DataFrame([{k: v for k, v in event.items() if k not in left_out} for event in EVENTS])
    path, file = tmp_path / f"shop.{kind}", tmp_path / "made.yaml"
    if kind == "csv":
        frame.to_csv(path, index=False)
    elif kind == "parquet":
        frame.to_parquet(path)
    else:
        path.write_text("".join(f"{json.dumps(event)}\n" for event in EVENTS))
    command("init", file, "--history", path, "--name", "sales")
    command("check", file)

    job = load_job(file)
    assert job.name == "sales"
    schema = SCHEMA if kind != "csv" else {k: v for k, v in SCHEMA.items() if "device" not in k}
    assert {name: str(kind) for name, kind in job.schema_.items()} == schema


def test_it_is_made_of_one_thing():
    command("init", code=2)
    command("init", "--model", "a", "--history", "b", code=2)
    with pytest.raises(UsageError, match="cannot have this name"):
        shell("-")


def test_names_that_yaml_has_words_for_are_names_in_it():
    events = [{"null": 1, "true": 2, "score": 3, "label": "x", "version": 4}]
    text = text_of_events(shell("words"), events)
    job = parse_job(text, "job.yaml")
    assert {name: each.expression for name, each in job.features.items()} == {
        "null": "null",
        "true": "true",
        "score": "score",
        "label": "category(label)",
        "version": "version",
    }
    used = re.sub(r"(?m)^# (result:|decisions:|  - )", r"\1", text)
    assert parse_job(used, "job.yaml").decisions[0].at_least == 0.9
    reserved = text_of_events(shell("words"), [{"score": 1}])
    assert "result:" not in reserved
    parse_job(re.sub(r"(?m)^# (decisions:|  - )", r"\1", reserved), "job.yaml")


def test_why_a_text_is_left_out_is_true():
    events = [{"n": n, "city": f"c{n % 60}", "day": "2026-01-31", "at": "2026-01-31 12:00:00"} for n in range(120)]
    text = text_of_events(shell("shop"), events)
    for line in (
        '# "city": it has 60 different texts, which may be too many for a category',
        '# "day": it is a date, or a time without an offset from UTC, which a timestamp needs',
        '# "at": it is a date, or a time without an offset from UTC, which a timestamp needs',
        "# This was guessed: take out the label",
    ):
        assert line in text


def test_more_fields_than_a_job_can_have_are_told_of():
    job_of = {}
    for count in (1_000, 1_001):
        job_of[count] = text_of_events(shell("wide"), [{f"c{n}": 1.5 for n in range(count)}])
        assert len(parse_job(job_of[count], "job.yaml").features) == 1_000
    assert ["more fields than 1,000" in text for text in job_of.values()] == [False, True]


def test_cells_are_what_events_have(tmp_path):
    path, file = tmp_path / "shop.csv", tmp_path / "job.yaml"
    path.write_text("zip,high\n01000,1.5\n20000,inf\n,2\n")
    command("init", file, "--history", path)
    assert {name: str(kind) for name, kind in load_job(file).schema_.items()} == {"zip": "string?", "high": "float?"}

    money, other = tmp_path / "money.parquet", tmp_path / "other.yaml"
    pd.DataFrame({"price": [Decimal("1.50"), None], "day": [dt.date(2026, 1, 31)] * 2}).to_parquet(money)
    command("init", other, "--history", money)
    assert {name: str(kind) for name, kind in load_job(other).schema_.items()} == {"price": "float?"}
