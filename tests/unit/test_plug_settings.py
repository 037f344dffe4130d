"""Settings of plugs: as commands take them, and with what the environment has."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import typer
from pydantic import Field, SecretStr
from typer.testing import CliRunner

from gridscore.cli.plugs import chosen, command_of
from gridscore.errors import GridscoreError, SettingsError, UsageError
from gridscore.job.plugs.base import SinkSettings, SourceSettings
from gridscore.job.plugs.environment import from_environment
from gridscore.job.types import Duration, Strict
from gridscore.sinks import base as sinks
from gridscore.sources import base as sources
from gridscore.sources.kafka.settings import KafkaSourceSettings
from gridscore.sources.logfile.settings import LogfileSourceSettings
from gridscore.sources.postgres.settings import PostgresSourceSettings
from gridscore.sources.runner import runner_of
from gridscore.testing import StubCluster


class Inner(Strict):
    user: str = ""


class Settings(SourceSettings):
    """Anything that a plug may have."""

    kind: Literal["some"] = "some"
    brokers: tuple[str, ...] = Field(min_length=1, description="Where they are [host:port].")
    options: dict[str, str] = Field(default_factory=dict, description="Passed on.")
    counts: dict[str, int] = Field(default_factory=dict, description="Numbers.")
    secret: SecretStr | None = Field(default=None, description="A secret.")
    every: Duration = Field(default="5s", description="A time.")
    start: Literal["oldest", "latest"] = Field(default="oldest", description="A choice.")
    tls: bool = Field(default=True, description="A flag.")
    port: int = Field(default=1883, ge=1, description="A number.")
    place: Path | None = Field(default=None, description="A path.")
    inner: Inner = Inner()


class Named(SinkSettings):
    """One whose field has another name for people."""

    kind: Literal["named"] = "named"


def run(model, *arguments):
    """The settings and the connection that a command gets; its output if it does not."""
    got = []
    app = typer.Typer(rich_markup_mode="rich")
    app.command("some")(
        command_of(model, lambda *given: got.append(given), help_text="Help.", example="some --with `[it]`")
    )
    done = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    if isinstance(done.exception, GridscoreError):
        raise done.exception
    return got[0][:2] if got else done.output


def test_each_field_is_an_option():
    settings, connection = run(
        Settings,
        *("--to", "events.x", "--brokers", "a:1", "--brokers", "b:2", "--options", "k=v=w", "--options", "l="),
        *("--counts", "n=3", "--secret", "s", "--every", "2m", "--start", "latest", "--no-tls", "--port", "7"),
        *("--place", "some/file", "--max-wait", "30s", "--members", "h:5701", "--cluster-name", "c"),
    )
    assert settings.brokers == ("a:1", "b:2")
    assert settings.options == {"k": "v=w", "l": ""}
    assert settings.counts == {"n": 3}
    assert settings.secret.get_secret_value() == "s"
    assert (settings.every, settings.start, settings.tls, settings.port) == ("2m", "latest", False, 7)
    assert (settings.place, settings.max_wait) == (Path("some/file"), "30s")
    assert connection == (["h:5701"], "c", None, None)


def test_what_is_not_given_is_left_to_the_model():
    settings, _ = run(Settings, "--to", "events.x", "--brokers", "a:1")
    assert settings.model_fields_set == {"to", "brokers"}
    assert settings.tls is True


def test_an_alias_is_the_name_for_people():
    settings, _ = run(Named, "--from", "results.x")
    assert settings.results == "results.x"
    with pytest.raises(UsageError, match="--from: it must be given"):
        run(Named)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--to: it must be given.\n--brokers: it must be given."),
        (("--to", "gridscore.x", "--brokers", "a"), "--to: `gridscore.x`: maps called"),
        (("--to", "e", "--brokers", "a", "--options", "k"), "--options: `k` is not KEY=VALUE."),
        (("--to", "e", "--brokers", "a", "--options", "k=1", "--options", "k=2"), "--options: `k` is given twice."),
        (("--to", "e", "--brokers", "a", "--start", "soon"), "--start: input should be 'oldest' or 'latest'"),
        (("--to", "e", "--brokers", "a", "--port", "0"), "--port: input should be greater than or equal to 1"),
        (("--to", "e", "--brokers", "a", "--every", "soon"), "--every: `soon` is not a time span"),
    ],
)
def test_what_is_wrong_is_said_by_the_name_of_the_option(arguments, said):
    with pytest.raises(UsageError) as caught:
        run(Settings, *arguments)
    assert caught.value.message.startswith(said)


def test_help_says_what_each_is_for():
    said = run(Settings, "--help")
    for text in ("[host:port]. Repeatable. [required]", "KEY=VALUE", "[oldest|latest]", "[default: 5s]", "--no-tls"):
        assert text in said
    assert "Example: some --with `[it]`" in said
    assert "Undefined" not in said


def test_texts_are_taken_from_the_environment_and_hidden():
    settings = Settings(
        to="events.x",
        brokers=("${HOST}:1", "b"),
        options={"password": "a${PASS}b"},
        secret=SecretStr("${PASS}"),
        inner=Inner(user="${WHO}"),
    )
    made, hidden = from_environment(settings, {"HOST": "broker", "PASS": "hunter2", "WHO": "me"})
    assert made.brokers == ("broker:1", "b")
    assert made.options == {"password": "ahunter2b"}
    assert made.secret.get_secret_value() == "hunter2"
    assert made.inner.user == "me"
    assert settings.options == {"password": "a${PASS}b"}
    assert hidden.hide("no hunter2 at broker, me") == "no ${PASS} at ${HOST}, me"  # too short to be hidden


def test_an_address_is_hidden_as_libraries_show_it_too():
    settings = Settings(to="events.x", brokers=("${HOOK}",))
    _, hidden = from_environment(settings, {"HOOK": "https://me:pass1@h.example.com/hooks/T0B0?token=SE CRET"})
    for shown in ("https://h.example.com/hooks/T0B0?token=SE%20CRET", "GET /hooks/T0B0", "token=SE CRET", "with pass1"):
        said = hidden.hide(shown)
        assert "${HOOK}" in said
        assert not any(part in said for part in ("CRET", "T0B0", "pass1"))


def test_what_comes_from_the_environment_is_not_looked_at_again():
    settings = Settings(to="events.x", brokers=("${A}",))
    made, hidden = from_environment(settings, {"A": "x${B}y", "B": "no"})
    assert made.brokers == ("x${B}y",)
    assert hidden.hide("x${B}y") == "${A}"


def test_a_property_that_was_given_as_it_is_is_hidden():
    given = {
        "sasl.password": "hunter2",
        "ssl.key.pem": "-----BEGIN KEY",
        "client.id": "shop",
        "fetch.min.bytes": "1000",
    }
    _, hidden = from_environment(
        KafkaSourceSettings(to="events.x", brokers=("k:1",), topic="t", set=given), environment={}
    )
    assert hidden.hide("hunter2 -----BEGIN KEY shop 1000") == "********** ********** shop 1000"


def test_a_secret_that_was_given_is_hidden_too():
    settings = Settings(to="events.x", brokers=("a",), secret=SecretStr("hunter2"))
    made, hidden = from_environment(settings, {})
    assert made is settings
    assert hidden.hide("wrong: hunter2") == "wrong: **********"


@pytest.mark.parametrize(
    ("text", "said"), [("${NONE}", "NONE is not set"), ("${no name}", "does not name"), ("${BLANK}", "BLANK is empty")]
)
def test_a_variable_that_is_not_there_is_an_error_that_says_where(text, said):
    settings = Settings(to="events.x", brokers=("a",), options={"password": text})
    with pytest.raises(SettingsError, match=said) as caught:
        from_environment(settings, {"BLANK": ""})
    assert "`options.password`" in caught.value.message


def test_help_has_what_must_be_given_first_and_what_all_have_last():
    said = run(Settings, "--help")
    places = [said.index(f"{option} ") for option in ("--brokers", "--to", "--options", "--name", "--members")]
    assert places == sorted(places)
    assert said.index("Every source") < places[3] < said.index("Connection")


def test_help_and_errors_name_options_where_job_files_name_keys():
    said = run(sources.KINDS["logfile"].settings_class(), "--help")
    assert "what `--pattern` says" in said
    with pytest.raises(UsageError, match=r"^`--pattern` and the format `regex` belong together$"):
        run(sources.KINDS["logfile"].settings_class(), "--to", "events.x", "--path", "x", "--pattern", "(?P<a>.)")
    kafka = ("--to", "events.x", "--topic", "t", "--brokers", "k:1")
    with pytest.raises(UsageError, match=r"^--set: `group.id` is set by Gridscore: use `--group`$"):
        run(sources.KINDS["kafka"].settings_class(), *kafka, "--set", "group.id=x")
    with pytest.raises(UsageError, match=r"^`--format avro` and `--registry` go together"):
        run(sources.KINDS["kafka"].settings_class(), *kafka, "--format", "avro")
    with pytest.raises(UsageError, match=r"^--topic: `key key` cannot be"):
        run(sources.KINDS["kafka"].settings_class(), *kafka[:2], *kafka[4:], "--topic", "key key")


@pytest.mark.parametrize("registry", [sources, sinks])
def test_every_kind_that_is_there_has_settings_that_make_a_command(registry):
    assert registry.KINDS.available
    for kind in registry.KINDS.available:
        model = registry.KINDS[kind].settings_class()
        assert model.model_fields["kind"].default == kind
        assert "--name" in run(model, "--help")


@pytest.mark.parametrize("registry", [sources, sinks])
def test_the_example_of_every_kind_is_one_that_its_command_takes(registry):
    for kind in registry.KINDS.available:
        plug = registry.KINDS[kind]
        settings, _ = run(plug.settings_class(), *shlex.split(plug.example))
        assert settings.kind == plug.name


@pytest.mark.parametrize(("registry", "extra"), [(sources, "kafka"), (sinks, "webhook")])
def test_a_missing_extra_is_told_before_anybody_connects(registry, extra, monkeypatch):
    plug = registry.KINDS[extra]
    settings, _ = run(plug.settings_class(), *shlex.split(plug.example))
    monkeypatch.setenv("HOOK_SECRET", "whsec_x")
    module = plug.plug.partition(":")[0]
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, {"kafka": "confluent_kafka", "webhook": "aiohttp"}[extra], None)
    for gone in [name for name in sys.modules if name in ("gridscore.kafka", "gridscore.sinks.webhook.addresses")]:
        monkeypatch.delitem(sys.modules, gone)
    with pytest.raises(UsageError, match=f"needs the extra `{extra}`") as caught:
        registry.KINDS.check(settings)
    assert caught.value.hint == f"pip install 'gridscore[{extra}]'"


def test_a_variable_that_is_not_set_is_told_before_anybody_connects(monkeypatch):
    monkeypatch.delenv("DB_PASSWORD", raising=False)
    settings, _ = run(sinks.KINDS["postgres"].settings_class(), *shlex.split(sinks.KINDS["postgres"].example))
    with pytest.raises(SettingsError, match="DB_PASSWORD is not set"):
        sinks.KINDS.check(settings)


def entry(name=None):
    return Settings(to="events.x", brokers=("a",), name=name)


def test_entries_of_a_job_file_run_under_names_of_their_job():
    entries = {"a": entry(), "b": entry("other")}
    assert list(chosen(Path("j"), "job", "source", entries, None)) == ["job-a", "other"]
    assert list(chosen(Path("j"), "job", "source", entries, ["a", "a"])) == ["job-a"]


@pytest.mark.parametrize(
    ("job", "entries", "names", "said"),
    [
        ("job", {}, None, "j.yaml has no source."),
        ("job", {"a": entry()}, ["b"], "j.yaml has no source `b`."),
        ("j" * 63, {"a": entry()}, None, "the source `a` would be called"),
        ("job", {"a": entry("x"), "b": entry("x")}, None, "two sources are called `x`"),
    ],
)
def test_entries_that_cannot_run_are_told(job, entries, names, said):
    with pytest.raises(UsageError) as caught:
        chosen(Path("j.yaml"), job, "source", entries, names)
    assert said in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("registry", [sources, sinks])
def test_an_unknown_kind_is_refused_with_those_that_there_are(registry):
    with pytest.raises(UsageError, match="`tape`"):
        registry.KINDS["tape"]


def test_no_plug_is_imported_before_it_is_wanted():
    code = (
        "import sys, gridscore.cli as c; c._commands(); "
        "print([m for m in sys.modules if m.startswith(('gridscore.sources.', 'gridscore.sinks.'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "settings" not in done.stdout


@pytest.mark.parametrize(
    ("model", "given", "has_end"),
    [
        (LogfileSourceSettings, {"path": ["a.log"], "until_end": True}, True),
        (LogfileSourceSettings, {"path": ["a.log"]}, False),
        (PostgresSourceSettings, {"database": "postgresql://h/d", "table": "t", "key": ["id"]}, True),
        (PostgresSourceSettings, {"database": "postgresql://h/d", "table": "t", "key": ["id"], "notify": "c"}, False),
        (
            PostgresSourceSettings,
            {"database": "postgresql://h/d", "table": "t", "key": ["id"], "poll_column": "at"},
            False,
        ),
    ],
)
async def test_a_source_that_ends_by_itself_is_known_as_such(model, given, has_end):
    async with StubCluster(partitions=1) as cluster:
        assert runner_of(await cluster.connect(), model(to="events.x", **given)).has_end is has_end
