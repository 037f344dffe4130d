"""The job file: what it gives, and what it says of every mistake."""

# ruff: noqa: E501 -- messages are compared as a person reads them, in one line

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from gridscore.errors import JobFileError
from gridscore.job import Job, job_json_schema, load_job, parse_job
from gridscore.job.plugs.secrets import plain_secrets

FLIGHTS = """\
job: flights
events: events.flights
schema:
  carrier: string
  origin: string
  tailnum: string?
  dep_delay: float?
  time_hour: timestamp
  sent_at: {type: timestamp, unit: ms, optional: true}
lookups:
  plane:
    map: lookups.planes
    key: tailnum
    fields: {year: float?, seats: {type: int, default: 0}}
  weather:
    map: lookups.weather
    key: [origin, time_hour]
    fields: {temp: float?}
features:
  dep_delay: dep_delay
  carrier: category(carrier)
  plane_age:
    expression: year(time_hour) - plane.year
    default: -1
  temp: weather.temp
model: flights
results: results.flights
result: {include: [carrier, sent_at]}
decisions:
  - {decision: late, at_least: 0.7}
  - {decision: watch, at_least: 0.4}
  - {decision: on time}
"""


def problems(text: str) -> list[str]:
    with pytest.raises(JobFileError) as caught:
        parse_job(text, "job.yaml")
    return [line.removeprefix("job.yaml ") for line in caught.value.message.splitlines()]


def changed(old: str, new: str) -> str:
    assert old in FLIGHTS
    return FLIGHTS.replace(old, new, 1)


def test_a_job_file_gives_a_typed_job():
    job = parse_job(FLIGHTS, "job.yaml")
    assert job.name == "flights"
    assert job.feature_names == ("dep_delay", "carrier", "plane_age", "temp")
    assert job.schema_["dep_delay"].optional
    assert not job.schema_["carrier"].optional
    assert job.schema_["sent_at"].unit == "ms"
    assert job.lookups["weather"].key == ("origin", "time_hour")
    assert job.lookups["plane"].fields["seats"].default == 0
    assert job.features["plane_age"].default == -1
    assert (job.model.name, job.model.alias, job.model.version) == ("flights", "champion", None)
    assert job.start == "oldest"
    assert job.decision_steps == ((0.4, 0.7), ("on time", "watch", "late"))


def test_a_job_survives_the_grid():
    job = parse_job(FLIGHTS, "job.yaml")
    assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job


def test_what_the_grid_holds_is_checked_as_well():
    value = parse_job(FLIGHTS, "job.yaml").to_json()
    value["features"]["temp"]["expression"] = "weather.tmp"
    with pytest.raises(ValueError, match=r"the lookup `weather` has no field `tmp`, did you mean `temp`\?"):
        Job.from_json(value)


def test_a_job_cannot_be_changed():
    job = parse_job(FLIGHTS, "job.yaml")
    with pytest.raises(ValueError, match="frozen"):
        job.name = "other"


def test_the_examples_are_valid():
    for path in sorted(Path(__file__).parents[2].glob("jobs/*/job.yaml")):
        assert load_job(path).feature_names


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("features:", "featuers:", "line 19: unknown key `featuers`, did you mean `features`?"),
        ("    default: -1", "    defualt: -1", "line 24: unknown key `defualt` in `features.plane_age`, did you mean `default`?"),
        ("    map: lookups.planes", "    mpa: lookups.planes", "line 12: unknown key `mpa` in `lookups.plane`, did you mean `map`?"),
        ("dep_delay: float?", "dep_delay: flaot?", "line 7: schema field `dep_delay`: `flaot` is not one of `float`, `int`, `string`, `bool`, `timestamp` or `array`, did you mean `float`?"),
        ("carrier: string", "carrier: [string, int]", "line 4: schema field `carrier`: an array is a list with the type of its items, as `[float]`, or with a mapping of their fields"),
        ("unit: ms", "unit: ns", "line 9: schema field `sent_at`: `ns` is not one of `iso`, `s` or `ms`"),
        ("unit: ms", "json: 'sent\"at'", "line 9: schema field `sent_at`: the `json` name can have no double quotes, backslashes or control characters"),
        ("unit: ms", r'json: "sent\nat"', "line 9: schema field `sent_at`: the `json` name can have no double quotes, backslashes or control characters"),
        ("default: 0", r"json: 'se\ats'", r"line 14: lookup `plane`: fields.seats.json: the `json` name can have no double quotes, backslashes or control characters"),
        ("type: timestamp, unit: ms", "type: float, unit: ms", "line 9: schema field `sent_at`: `unit` is for timestamps, this is a float"),
        ("  origin: string", "  class: string", "line 5: schema field `class`: `class` cannot be a name in expressions: use letters, digits and `_`, no digit first, no Python keyword"),
        ("default: 0", "default: few", "line 14: lookup `plane`: fields.seats: `default: few` is not of the type int"),
        ("default: 0", "default: 0.5", "line 14: lookup `plane`: fields.seats: `default: 0.5` is not of the type int"),
        ("default: 0", "default: true", "line 14: lookup `plane`: fields.seats: `default: true` is not of the type int"),
        ("default: 0", "default: [0]", "line 14: lookup `plane`: fields.seats: `default` must be a number, a string, true or false"),
        ("default: 0", "default: 1e999", "line 14: lookup `plane`: fields.seats: `default: inf` is not of the type int"),
        ("key: tailnum", "key: tailnumber", "line 13: lookup `plane`: key: there is no event field or earlier feature `tailnumber`, did you mean `tailnum`?"),
        ("key: tailnum", "key: tailnum == 'x'", "line 13: lookup `plane`: key: `tailnum == 'x'` is true or false: a key is a string or a whole number"),
        ("key: tailnum", "key: {a: b}", "line 13: lookup `plane`: key[1]: it must be a text, not a mapping"),
        ("key: tailnum", "key: tailnum\n    separator: '-'", "line 11: lookup `plane`: `separator` is for a composite key, which is a list"),
        ("key: tailnum", "key: tailnum\n    columns: [a, b]", "line 11: lookup `plane`: `columns` names 2, but `key` has 1"),
        ("map: lookups.planes", "map: events.flights", "line 12: lookup `plane`: map: `events.flights` is the job's event or result map"),
        ("events: events.flights", "events: gridscore.jobs", "line 2: `events`: `gridscore.jobs`: maps called `gridscore.*` are kept for Gridscore itself"),
        ("results: results.flights", "results: windows.flights", "line 27: `results`: `windows.flights`: maps called `windows.*` are kept for Gridscore itself"),
        ("map: lookups.planes", "map: dead-letters.flights", "line 12: lookup `plane`: map: `dead-letters.flights`: maps called `dead-letters.*` are kept for Gridscore itself"),
        ("events: events.flights", "events: a map", "line 2: `events`: `a map` cannot be the name of a map: use letters, digits and `_ . : -`"),
        ("results: results.flights", "results: events.flights", "line 27: `results`: results cannot go to the event map: every result would be an event"),
        ("job: flights", "job: a/b", "line 1: `job`: `a/b` cannot be a name here: use letters, digits and `_ . -`, a letter or digit first"),
        ("default: -1", "default: old", "line 24: feature `plane_age`: it must be a number, not `old`"),
        ("default: -1", "default: .inf", "line 24: feature `plane_age`: it must be a number, not `.inf`"),
        ("temp: weather.temp", "temp: origin", "line 25: feature `temp`: the value is a string, a feature is a number: use `category(...)` or compare it"),
        ("temp: weather.temp", "temp: time_hour", "line 25: feature `temp`: the value is a timestamp, a feature is a number: use `epoch(...)` or a part such as `hour(...)`"),
        ("temp: weather.temp", "temp<: weather.temp", "line 25: feature `temp<`: `temp<` cannot be the name of a feature: use no brackets, quotes, or spaces at its ends"),
        ("dep_delay: dep_delay\n  car", "dep_delay: temp\n  car", "line 20: feature `dep_delay`: `temp` is a feature defined further down: move it up"),
        ("model: flights", "model: {name: flights, alias: a, version: 3}", "line 26: `model`: give an `alias` to follow or a fixed `version`, not both"),
        ("model: flights", "model: {name: flights, version: three}", "line 26: `model.version`: it must be a whole number, not `three`"),
        ("model: flights", "model: {alias: champion}", "line 26: `model`: the key `name` is missing"),
        ("[carrier, sent_at]", "[carier]", "line 28: `result.include[1]`: there is no event field `carier`, did you mean `carrier`?"),
        ("[carrier, sent_at]", "[carrier, carrier]", "line 28: `result.include[2]`: `carrier` is here twice"),
        ("[carrier, sent_at]", "[score]", "line 28: `result.include[1]`: `score` is a field of every result already; give the event field another name with `json`"),
        ("at_least: 0.4", "at_least: 0.8", "line 31: `decisions[2]`: `at_least: 0.8` is not below the 0.7 before it: decisions go from high to low"),
        ("decision: watch, at_least: 0.4", "decision: watch", "line 31: `decisions[2]`: only the last decision, for all lower scores, can be without `at_least`, or `when`"),
        ("decision: on time", "decision: on time, at_least: 0", "line 32: `decisions[3]`: the last decision is for all lower scores: leave its `at_least` out"),
        ("decision: watch", "decision: late", "line 31: `decisions[2]`: the decision `late` is here twice"),
        ("at_least: 0.7", "at_least: high", "line 30: `decisions[1].at_least`: it must be a number, not `high`"),
        ("events: events.flights\n", "", "line 1: the key `events` is missing"),
        ("results: results.flights", "results: results.flights\nstart: middle", "line 28: `start`: `middle` is not one of `oldest` or `latest`"),
        ("results: results.flights", "results: results.flights\njob: again", "line 28: the key `job` is here twice, first in line 1"),
        ("job: flights", "job: &a flights", "line 1: anchors and aliases (`&`, `*`) cannot be used here; put the text in quotes if it is one"),
        ("job: flights", "job: !!python/name:os.system flights", "line 1: tags cannot be used here: `tag:yaml.org,2002:python/name:os.system`"),
        ("model: flights", "model: [flights", "line 27: not valid YAML: did not find expected ',' or ']'"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_line(old, new, expected):
    assert expected in problems(changed(old, new))


def test_all_mistakes_are_told_at_once_in_the_order_of_lines():
    text = changed("carrier: string", "carrier: strnig").replace("year(time_hour)", "yaer(time_hour)")
    text = text.replace("tailnum\n", "tail\n").replace("[carrier, sent_at]", "[carrier, sent]")
    assert problems(text) == [
        "line 4: schema field `carrier`: `strnig` is not one of `float`, `int`, `string`, `bool`, `timestamp` or `array`, did you mean `string`?",
        "line 13: lookup `plane`: key: there is no event field or earlier feature `tail`, did you mean `tailnum`?",
        "line 23: feature `plane_age`: there is no function `yaer`, did you mean `year`?",
        "line 28: `result.include[2]`: there is no event field `sent`, did you mean `sent_at`?",
    ]


def test_what_depends_on_a_mistake_is_not_told_again():
    assert len(problems(changed("dep_delay: float?", "dep_delay: flaot"))) == 1
    assert len(problems(changed("    key: tailnum\n", "    keys: tailnum\n"))) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "line 1: the file is empty"),
        ("# nothing\n", "line 1: the file is empty"),
        ("~", "line 1: the file is empty"),
        ("- 1\n", "line 1: it must be a mapping (`key: value`), not a list"),
        ("hello", "line 1: it must be a mapping (`key: value`), not `hello`"),
        ("a: 1\n---\nb: 2\n", "line 2: a job file is one document: `---` begins a second one"),
        ("[" * 100, "line 1: nested more than 16 levels deep"),
        ("a: " + "x" * (1 << 20), "line 1: the file is larger than 1024 KiB"),
        ("? [a]\n: b", "line 1: a key must be plain text"),
        ("a: \x00", 'line 1: not valid YAML: unacceptable character #x0000: control characters are not allowed in "job.yaml"'),
    ],
)  # fmt: skip
def test_yaml_that_is_no_job_file(text, expected):
    found = problems(text)
    assert any(line.startswith(expected.partition(' in "job')[0]) for line in found), found


def test_aliases_cannot_explode():
    bomb = "a: &a [x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(20)
    )
    assert problems(bomb) == [
        "line 1: anchors and aliases (`&`, `*`) cannot be used here; put the text in quotes if it is one"
    ]


def test_many_mistakes_are_cut_short():
    text = FLIGHTS + "".join(f"unknown{i}: 1\n" for i in range(40))
    found = problems(text)
    assert len(found) == 26
    assert found[-1] == "... and 15 more"


def test_a_key_may_be_no_and_a_number_an_expression():
    job = parse_job(changed("temp: weather.temp", "no: 1\n  yes: true\n  off: 1.50"), "job.yaml")
    assert [job.features[name].expression for name in ("no", "yes", "off")] == ["1", "True", "1.5"]


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(JobFileError, match="There is no job file"):
        load_job(tmp_path / "none.yaml")
    (tmp_path / "job.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(JobFileError, match="not UTF-8 text, at byte 0"):
        load_job(tmp_path / "job.yaml")
    with pytest.raises(JobFileError, match="cannot be read: Is a directory"):
        load_job(tmp_path)


def test_a_byte_order_mark_does_not_matter(tmp_path):
    (tmp_path / "job.yaml").write_text(FLIGHTS, encoding="utf-8-sig")
    assert load_job(tmp_path / "job.yaml").name == "flights"


def test_the_json_schema_knows_short_and_long_forms():
    schema = job_json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(schema["required"]) == {"job", "events", "model", "results"}
    assert schema["dependentRequired"] == {"features": ["schema"]}
    assert schema["additionalProperties"] is False
    assert "schema_" not in schema["properties"]
    definitions = schema["$defs"]
    assert "float?" in definitions["FieldType"]["anyOf"][0]["enum"]
    assert definitions["Feature"]["anyOf"][0] == {"type": ["string", "number", "boolean"]}
    assert definitions["ModelRef"]["anyOf"][0] == {"type": "string"}
    assert definitions["Lookup"]["properties"]["key"]["anyOf"][0]["type"] == ["string", "number"]
    assert all("description" in value or "$ref" in value for value in schema["properties"].values())


def test_the_documentation_shows_a_valid_job_with_every_key():
    text = (Path(__file__).parents[2] / "docs" / "job-file.md").read_text()
    job = parse_job(text.partition("```yaml\n")[2].partition("```")[0], "docs/job-file.md")
    assert job.decision_steps == ((0.5,), ("on time", "late"))
    for key in [*job_json_schema()["properties"], *job_json_schema()["$defs"]["Lookup"]["properties"]]:
        assert f"| `{key}` |" in text, key


PLUGS = (
    FLIGHTS
    + """\
sources:
  clicks: {kind: kafka, brokers: ["k:9092"], topic: clicks}
sinks:
  history:
    kind: files
    folder: /data
    max_age: 5m
  other: {kind: files, folder: x, from: results.other}
"""
)


def test_sources_and_sinks_have_the_maps_of_their_job():
    job = parse_job(PLUGS, "job.yaml")
    assert job.sources["clicks"].to == "events.flights"
    assert {name: sink.results for name, sink in job.sinks.items()} == {
        "history": "results.flights",
        "other": "results.other",
    }
    assert job.sinks["history"].max_age == "5m"
    assert parse_job(FLIGHTS, "job.yaml").sinks == {}


SECRETS = (
    FLIGHTS
    + """\
sources:
  clicks:
    kind: kafka
    brokers: ["k:1"]
    topic: clicks
    set: {sasl.password: "hunter2", enable.ssl.certificate.verification: false, fetch.min.bytes: 10}
  tills: {kind: mqtt, topic: [t], username: u, password: "hunter2"}
sinks:
  a: {kind: postgres, table: t, database: "postgresql://app:hunter2@db/shop"}
  b: {kind: postgres, table: t, database: "host=db password=hunter2"}
  c: {kind: webhook, url: "https://u:hunter2@h.example.com", secret: ["${S}"]}
  d: {kind: webhook, url: "https://h.example.com", secret: ["${S}"], headers: {Authorization: "Bearer hunter2"}}
"""
)


def test_a_secret_in_a_job_file_is_refused_and_not_shown():
    said = problems(SECRETS)
    places = ["`set.sasl.password`", "`password`", "`database`", "`database`", "`url`", "`headers.Authorization`"]
    assert [place in problem for place, problem in zip(places, said, strict=True)] == [True] * 6
    assert all("is not written here: write `${NAME}`" in problem for problem in said)
    assert "hunter2" not in "".join(said)
    assert "hunter2" not in "".join(problems(SECRETS.replace('password: "hunter2"}', "password: [hunter2]}")))


@pytest.mark.parametrize(
    "name",
    [
        *("ssl.key.pem", "ssl.key.password", "ssl.keystore.password", "sasl.oauthbearer.client.secret"),
        *("sasl.oauthbearer.config", "sasl.oauthbearer.assertion.private.key.passphrase", "basic.auth.user.info"),
        *("sasl.jaas.config", "a.property.of.tomorrow"),
    ],
)
def test_a_property_is_a_secret_unless_it_is_known_not_to_be(name):
    (said,) = problems(SECRETS.partition("  tills")[0].replace("sasl.password", name))
    assert f"`set.{name}`" in said
    assert "hunter2" not in said


def test_properties_that_are_no_secrets_are_written_as_they_are():
    plain = {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "app",
        "client.id": "a",
        "ssl.ca.location": "ca.pem",
        "ssl.ca.pem": "-----BEGIN",
        "compression.type": "lz4",
        "queuing.strategy": "f",
        "sasl.oauthbearer.token.endpoint.url": "https://x/t",
        "isolation.level": "read_committed",
        "acks": "all",
        "ssl.endpoint.identification.algorithm": "none",
        "client.dns.lookup": "use_all_dns_ips",
        "new": "-1.5",
    }
    assert list(plain_secrets({"kind": "kafka", "set": plain})) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"dsn": "host=db password = hunter2"},
        {"dsn": "host=db password='hunter2'"},
        {"dsn": "postgresql:///db?user=u&pass%77ord=hunter2"},
        *({"url": f"https://h.example.com/x?{name}=hunter2"} for name in ("token", "api_key", "sig", "a=1&X-Api-Key")),
        *(
            {"url": f"https://h.example.com/x?{name}=hunter2"}
            for name in ("apitoken", "accesstoken", "jwt", "clientsecret")
        ),
        {"url": "https://tok_live_hunter2@h.example.com/x"},
        {"url": "https://hooks.example.com/services/T0/B0/aBcD1234eFgH5678iJkL9012"},
        {"url": "https://hooks.example.com/0b0e51b3-4b5c-4c53-9d0a-3f1b2f6a7c11/in?page=1"},
        *({"headers": {name: "hunter2"}} for name in ("Cookie", "X-Auth", "X-Auth-Key", "X-Anything")),
        {"ca": "-----BEGIN EC PRIVATE KEY-----"},
    ],
)
def test_a_secret_is_found_in_whatever_form_it_is_taken(settings):
    assert [path[0] for path in plain_secrets(settings)] == list(settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"dsn": "host=db password = ${P}"},
        {"dsn": "host=db password='${P}'"},
        {"url": "https://h.example.com/x?token=${T}&page=1"},
        {"url": "https://user:${P}@h.example.com/decisions-of-all-our-shops/2026/v1?customer=1"},
        {"url": "https://${TOKEN}@h.example.com/services/T0/B0/${HOOK}"},
        {"dsn": "postgresql://app@db.example.com/shop"},
        {"headers": {"User-Agent": "shop", "Cookie": "${C}", "X-Request-Id": "a"}},
    ],
)
def test_what_is_not_a_secret_in_a_text_is_taken(settings):
    assert list(plain_secrets(settings)) == []


def test_a_reference_without_quotes_where_yaml_needs_them_is_told():
    (said,) = problems(SECRETS.replace('"hunter2"', "${PASSWORD}"))
    assert said.endswith("within `{ }` and `[ ]`, `${NAME}` needs quotes")


def test_secrets_of_the_environment_numbers_and_booleans_are_taken():
    job = parse_job(SECRETS.replace("hunter2", "${PASSWORD}"), "job.yaml")
    assert job.sources["clicks"].set["enable.ssl.certificate.verification"] == "false"
    assert job.sources["clicks"].set["fetch.min.bytes"] == "10"
    assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("  history:", "  clicks:", "flights-clicks"),
        ("folder: /data", "folder: /data\n    name: flights-clicks", "flights-clicks"),
        ("topic: clicks", "topic: clicks, name: flights", "flights"),
    ],
)
def test_a_source_and_a_sink_have_names_of_their_own(old, new, name):
    (said,) = problems(PLUGS.replace(old, new, 1))
    assert f"are called `{name}`, and would share their dead letters" in said


def test_sources_and_sinks_survive_the_grid():
    job = parse_job(PLUGS, "job.yaml")
    assert job.to_json()["sinks"]["other"] == {"kind": "files", "folder": "x", "from": "results.other"}
    assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job
    assert not {"sources", "sinks"} & parse_job(FLIGHTS, "job.yaml").to_json().keys()


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            "kind: files\n",
            "kind: file\n",
            "line 37: sink `history`: `kind`: `file` is not a kind of sink, did you mean `files`?",
        ),
        (
            "kind: kafka",
            "kind: kafak",
            "line 34: source `clicks`: `kind`: `kafak` is not a kind of source, did you mean `kafka`?",
        ),
        ("    kind: files\n", "", "line 36: sink `history`: the key `kind` is missing"),
        (
            "max_age",
            "max_ag",
            "line 39: unknown key `max_ag` in `sinks.history`, did you mean `max_age`?",
        ),
        (
            "max_age: 5m",
            "max_age: 5",
            "line 39: sink `history`: `max_age`: `5` is not a time span: write a whole number and a unit, as `90s`, `15m`, `1h` or `2d`",
        ),
        (
            "max_age: 5m",
            "format: csv",
            "line 39: sink `history`: `format`: `csv` is not one of `parquet` or `jsonl`",
        ),
        (
            "max_age: 5m",
            "gzip: true",
            "line 36: sink `history`: `gzip` is for `format: jsonl`; Parquet is compressed within",
        ),
        (
            "from: results.other",
            "frm: results.other",
            "line 40: unknown key `frm` in `sinks.other`, did you mean `from`?",
        ),
        ("    folder: /data\n", "", "line 36: sink `history`: the key `folder` is missing"),
        (
            "  history:\n",
            "  hi story:\n",
            "line 36: sink `hi story`: `hi story` cannot be a name here: use letters, digits and `_ . -`, a letter or digit first",
        ),
    ],
)
def test_a_mistake_in_a_source_or_sink_has_its_line(old, new, problem):
    assert old in PLUGS
    assert problems(PLUGS.replace(old, new, 1)) == [problem]


def test_the_schema_knows_every_kind():
    schema = job_json_schema()
    for section, kind in (("sources", "KafkaSourceSettings"), ("sinks", "FilesSinkSettings")):
        assert {"$ref": f"#/$defs/{kind}"} in schema["properties"][section]["additionalProperties"]["oneOf"]
        assert "kind" in schema["$defs"][kind]["required"]
    assert "from" in schema["$defs"]["FilesSinkSettings"]["properties"]
    assert "from" not in schema["$defs"]["FilesSinkSettings"]["required"]


def test_a_file_full_of_mistakes_is_read_in_no_time():
    names = "\n".join(f"  f{i}: {' + '.join(f'nope{i}_{j}' for j in range(60))}" for i in range(900))
    zones = "\n".join(f'  z{i}: hour(time_hour, "Amerca/Z{i}")' for i in range(90))
    began = time.process_time()
    assert len(problems(changed("  temp: weather.temp", f"{names}\n{zones}"))) == 26
    assert len(problems(changed("  temp: weather.temp", f"{zones}"))) == 26
    assert time.process_time() - began < 10


def test_features_of_features_of_features_cost_what_they_are():
    doubled = "\n".join(f"  f{i}: f{i - 1} + f{i - 1}" for i in range(1, 900))
    began = time.process_time()
    parse_job(changed("  temp: weather.temp", f"  f0: dep_delay\n{doubled}"), "job.yaml")
    assert time.process_time() - began < 5


EVERYTHING = {
    "job": "j",
    "description": "d",
    "events": "e",
    "schema": {"a": "float", "t": {"type": "timestamp", "unit": "ms", "optional": True, "json": "T"}},
    "lookups": {
        "l": {
            "map": "m",
            "key": ["a", "t"],
            "separator": "|",
            "columns": ["a", "b"],
            "fields": {"x": {"type": "float", "default": 1, "optional": True}},
            "mode": "copy",
            "max_entries": 10,
        }
    },
    "features": {"f": {"expression": "a", "default": 1}},
    "margin": {"expression": "a", "default": 1},
    "model": {"name": "m", "alias": "c"},
    "results": "r",
    "result": {"include": ["a"]},
    "decisions": [{"decision": "x", "at_least": 0.5}, {"decision": "y"}],
    "start": "oldest",
    "on_loss": "rescan",
    "retain": "all",
    "audit": "off",
    "peak_rate": 10,
    "headroom": "30s",
    "sources": {"s": {"kind": "http", "port": 1}},
    "sinks": {"t": {"kind": "files", "folder": "f", "max_age": "5m"}},
}
WRONG = (30, -1.5, True, None, "x y", [1], {"a": 1})


def places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield from places(each, (*path, key))


def test_whatever_is_set_wrongly_is_told_in_words():
    assert parse_job(json.dumps(EVERYTHING), "x").retain == "all"
    told = set()
    for *parents, key in filter(None, places(EVERYTHING)):
        for wrong in WRONG:
            data = json.loads(json.dumps(EVERYTHING))
            part = data
            for each in parents:
                part = part[each]
            part[key] = wrong
            try:
                parse_job(json.dumps(data), "x")
            except JobFileError as error:
                told.update(error.message.splitlines())
    assert len(told) > 200
    odd = re.compile(r"\[\w*\(|[Ff]unction|literal|[Ii]nput should|validator|\bNone\b|\bdict|\bstr\b|\{|.{300}")
    assert [text for text in told if odd.search(text)] == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("retain: 30", "`retain`: `30` is not a time span: write a whole number and a unit, as `90s`, `15m`, `1h` or `2d`; or `all`"),
        ("retain: 36526d", "`retain`: `36526d` is longer than 100 years; or `all`"),
        ("lateness: 91d", "`lateness`: `91d`: an event may be 90 days late at most; or `none`"),
        ("audit: no", "`audit`: `no` is not a time span: write a whole number and a unit, as `90s`, `15m`, `1h` or `2d`; or `off`"),
        ("headroom: 30", "`headroom`: `30` is not a time span: write a whole number and a unit, as `90s`, `15m`, `1h` or `2d`"),
        ("peak_rate: fast", "`peak_rate`: it must be a number, not `fast`"),
        ("peak_rate: -1", "`peak_rate`: it must be more than 0.0, not `-1`"),
        ("margin: late", "`margin.expression`: there is no event field or earlier feature `late`, did you mean `plane`?"),
        ("margin: origin", "`margin.expression`: the value is a string, a margin is a number"),
        ("margin: category(origin)", "`margin.expression`: `category` can only be used in a feature"),
        ("margin: {expresion: 1}", "unknown key `expresion` in `margin`, did you mean `expression`?"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_told_in_one_sentence(line, said):
    assert f"line 28: {said}" in problems(changed("results: results.flights", f"results: results.flights\n{line}"))


def test_a_journal_that_no_member_can_have_is_not_asked_for():
    said = "a `peak_rate` of 100,000,000 for the `headroom` of 30s is more than the 1,000,000,000 events that a journal can hold"
    assert f"line 1: {said}" in problems(
        changed("results: results.flights", "results: results.flights\npeak_rate: 100000000")
    )


def test_the_features_of_a_job_are_bounded_together():
    sums = "\n  ".join(f"f{n}: " + " + ".join(f"dep_delay * {k}" for k in range(94)) for n in range(200))
    (found,) = problems(changed("temp: weather.temp", f"temp: weather.temp\n  {sums}"))
    assert "the features up to this one come to more than 30,000 operations" in found


LISTED = """\
job: shop
events: events.shop
schema: {amount: float, country: string, radius: {type: float, json: mean radius}, new: bool?}
features:
  - amount
  - country
  - mean radius
  - ratio: {expression: amount / radius, default: 0}
    late: ratio > 1
  - new
model: shop
results: results.shop
"""


def test_features_that_are_the_field_itself_are_listed():
    job = parse_job(LISTED, "job.yaml")
    written = LISTED.replace("- amount\n", "  amount: amount\n").replace(
        "- country\n", "  country: category(country)\n"
    )
    written = written.replace("- mean radius\n", "  mean radius: radius\n").replace("- ratio", "  ratio")
    assert job == parse_job(written.replace("- new\n", "  new: new\n"), "job.yaml")
    assert list(job.features) == ["amount", "country", "mean radius", "ratio", "late", "new"]


def test_what_is_wrong_in_a_list_of_features_has_its_line():
    text = LISTED.replace("- amount\n", "- amuont\n").replace("- new\n", "- country\n  - 3\n  - [new]\n")
    assert problems(text.replace("ratio > 1", "ratoi > 1")) == [
        "line 5: feature `amuont`: there is no event field `amuont`, did you mean `amount`?",
        "line 9: feature `late`: there is no event field or earlier feature `ratoi`, did you mean `ratio`?",
        "line 10: the feature `country` is here twice",
        "line 11: `features[6]`: it must be the name of a field, or `name: expression`",
        "line 12: `features[7]`: it must be the name of a field, or `name: expression`",
    ]
    assert problems(LISTED.replace("default: 0", "default: zero")) == [
        "line 8: feature `ratio`: it must be a number, not `zero`"
    ]
    assert problems(re.sub("schema.*\n", "", LISTED)) == [
        "line 1: the key `schema` is missing: without it, leave out `features` as well"
    ]
    assert problems(LISTED.replace("amount: float", "amount: flaot")) == [
        "line 3: schema field `amount`: `flaot` is not one of `float`, `int`, `string`, `bool`, `timestamp` or `array`, did you mean `float`?"
    ]
    assert problems(re.sub(r"features:(.|\n)*model", "features: []\nmodel", LISTED)) == [
        "line 4: `features`: it is empty"
    ]


def test_a_long_list_of_features_takes_no_time():
    began = time.process_time()
    found = problems(LISTED.replace("- new\n", "- amount\n  - amuont\n  " * 20_000 + "- new\n"))
    assert found[-1].startswith("... and ")
    assert time.process_time() - began < 10
