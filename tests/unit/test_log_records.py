"""The log for programs: one JSON object a line, with what it is about, and no secrets."""

import asyncio
import io
import json
import logging
import subprocess
import sys

import pytest
from rich.console import Console

from gridscore.cli import logs
from gridscore.job.plugs.environment import Hidden
from gridscore.log_records import JsonFormatter, about
from gridscore.sources import runner as runners
from gridscore.sources.base import SourceInterruptedError
from gridscore.sources.runner import SourceRunner
from gridscore.testing import StubCluster
from gridscore.testing.sources import Script, ScriptedSource


@pytest.fixture
def log(caplog):
    """A logger, and the records that it has written, parsed."""
    stream, logger = io.StringIO(), logging.getLogger("gridscore")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger.addHandler(handler)
    caplog.set_level(logging.INFO, "gridscore")
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logger.removeHandler(handler)


async def test_a_record_says_what_its_task_is_about_and_those_of_others_do_not(log):
    logger = logging.getLogger("gridscore.test")

    async def score(name):
        about("job", name)

        async def write():
            logger.warning("%s: a line\nand another \x1b[31m\u2028", name, extra={"partition": 7, "epoch": 3})

        await asyncio.create_task(write())

    await asyncio.gather(score("a"), score("b"))
    logger.error("nothing of a job", extra={"action": "x", "level": 9, "odd": object()})
    first, second, last = log()
    assert (first["job"], second["job"]) == ("a", "b")
    assert first["message"] == "a: a line\nand another \x1b[31m\u2028"
    assert (first["level"], first["logger"], first["partition"], first["epoch"]) == ("warning", logger.name, 7, 3)
    assert first["time"].endswith("+00:00")
    assert (last["level"], last["action"]) == ("error", "x")
    assert not {"job", "odd", "partition"} & set(last)


def test_an_exception_is_in_its_record(log):
    try:
        raise ValueError("as if")  # noqa: TRY301 -- its traceback is wanted
    except ValueError:
        logging.getLogger("gridscore.test").exception("it failed")
    [record] = log()
    assert "ValueError: as if" in record["exception"]


async def test_secrets_are_hidden_as_in_text(log, monkeypatch):
    monkeypatch.setattr(runners, "FIRST_PAUSE", 0.01)

    class Away(ScriptedSource):
        async def open(self):
            await super().open()
            if self._script.opened == 1:
                raise SourceInterruptedError("user:s3cr3t-w0rd@broker is away")

    script = Script([])
    async with StubCluster(partitions=5) as cluster:
        grid = await cluster.connect()
        hidden = Hidden((("s3cr3t-w0rd", "${WORD}"),))
        runner = SourceRunner(grid, "till", lambda: Away(script), kind="script", to="events.x", hidden=hidden)
        await runner.run()
    [said] = [each for each in log() if each.get("action") == "source_interrupted"]
    assert said["source"] == "till"
    assert "broker is away" in said["message"]
    assert "s3cr3t" not in json.dumps(log())


def test_what_a_command_prints_becomes_records(log):
    console = Console(file=logs._Notes(), force_terminal=True, color_system="truecolor", width=40, soft_wrap=True)
    console.print("[bold red]error:[/] no \\[such] job\nTry another.")
    console.print("warning: it is late")
    console.print("Connected, ", end="")
    console.print("[green]looking[/]")
    assert [(each["level"], each["message"]) for each in log()] == [
        ("error", "no [such] job"),
        ("info", "Try another."),
        ("warning", "it is late"),
        ("info", "Connected, looking"),
    ]
    assert not logs._Notes().isatty()


def test_lines_of_processes_are_passed_on_and_what_is_no_record_becomes_one(log, capsys):
    lines = ['{"level": "info", "message": "x"}', "Segmentation fault", "[1]", "7", '{"message": 1}', "[" * 100_000]
    for line in lines:
        logs.relay(line)
    assert capsys.readouterr().err.splitlines()[0] == lines[0]
    assert [each["message"] for each in log()] == lines[1:]


COMMANDS = ["worker", "source run job.yaml", "sink run job.yaml", "serve", "worker --processes 2"]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_prints_nothing_but_records(command, tmp_path):
    (tmp_path / "job.yaml").write_text("""\
job: a
events: events.a
schema: {x: float}
features: {x: x}
model: m
results: results.a
sources: {web: {kind: http, port: 0}}
sinks: {out: {kind: files, folder: out}}
""")
    words = [sys.executable, "-m", "gridscore.cli", *command.split(), "--log-format", "json", "--settings", "none.toml"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    records = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == 2, done.stderr
    assert any(each["level"] == "error" and "none.toml" in each["message"] for each in records), records
