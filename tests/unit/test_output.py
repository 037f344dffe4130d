"""What commands print: nothing in the data speaks to the terminal or to rich, and tables stay readable."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from gridscore import cli
from gridscore.cli import output, watch
from gridscore.cli.output import json_text, print_table, safe, visible
from gridscore.errors import UsageError
from gridscore.results.stream import Result
from gridscore.texts import with_moments

EVIL = "a\x1b[31m\x07\r\n\x9b2J\u202e\x7f[/bold][red]:smile:\udcff"


@pytest.fixture
def screen(monkeypatch):
    """Replaces the console by one of a width; returns what was printed."""

    def made(width):
        file = io.StringIO()
        monkeypatch.setattr(
            output, "console", Console(file=file, width=width, emoji=False, force_terminal=True, color_system=None)
        )
        return file.getvalue

    return made


def test_controls_are_spelled_out():
    assert visible(EVIL) == r"a\x1b[31m\x07\x0d\x0a\x9b2J\u202e\x7f[/bold][red]:smile:\udcff"
    assert visible("a\n\tb\r", layout=True) == "a\n\tb\\x0d"
    assert visible("grün, 東京, 🙂, \\x1b") == "grün, 東京, 🙂, \\x1b"


def test_json_is_still_the_same_value():
    text = json_text({EVIL: EVIL}, indent=2)
    assert json.loads(text) == {EVIL: EVIL}
    assert visible(text, layout=True) == text
    assert json_text("grün") == '"grün"'


def test_warnings_of_python_are_those_of_commands(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(output, "errors", Console(file=file, width=80))
    cli._warn(UserWarning(f"windows begin anew {EVIL}"), UserWarning, "client.py", 7)
    assert file.getvalue().startswith("warning: windows begin anew a\\x1b[31m")
    assert "client.py" not in file.getvalue()


def test_a_table_shows_what_is_in_the_data(screen):
    printed = screen(120)
    print_table(("KEY", "ERROR"), [(EVIL, "[/bold] [b] :x:"), ("[red]", 1.5)], empty="")
    text = printed()
    assert visible(EVIL) in text
    assert "[/bold] [b] :x:" in text
    assert "[red]" in text


def test_an_empty_table_says_so_with_any_name(screen):
    printed = screen(80)
    print_table(("A",), [], empty="The job [/x] has none.")
    assert printed() == "The job [/x] has none.\n"


def test_a_narrow_terminal_folds_the_last_column_only(screen):
    printed = screen(80)
    columns = ("JOB", "STATE", "WORKERS", "PARTITIONS", "EVENTS", "MODEL")
    print_table(columns, [("flights-of-2013", "WAITING", 1, 271, 12_345_678, "word " * 12)], empty="")
    lines = printed().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == list(columns)
    assert lines[1].split()[:5] == ["flights-of-2013", "WAITING", "1", "271", "12,345,678"]
    assert " ".join(lines[1:]).count("word") == 12


def test_a_terminal_too_narrow_for_the_figures_has_a_line_for_each(screen):
    printed = screen(24)
    rows = [("flights-of-2013", 12_345_678, 99_999, ""), ("payments", 0, None, "late " * 9)]
    print_table(("JOB", "EVENTS", "LAG", "WHY"), rows, empty="")
    one, two = printed().rstrip().split("\n\n")
    assert [line.split() for line in one.splitlines()] == [
        ["JOB", "flights-of-2013"],
        ["EVENTS", "12,345,678"],
        ["LAG", "99,999"],
    ]
    assert max(map(len, two.splitlines())) <= 24
    assert two.split()[:6] == ["JOB", "payments", "EVENTS", "0", "LAG", "-"]  # not known, as in a table
    assert two.count("late") == 9


def test_times_of_records_are_as_all_of_json_has_them():
    record = {
        "name": "x",
        "seen_at": 1_764_470_000_123,
        "error_at": 0,
        "lost_at": 2**53 - 1,
        "jobs": [{"committed_at": 1_764_470_000_000}],
    }
    assert with_moments(record) == {
        "name": "x",
        "seen_at": "2025-11-30T02:33:20.123Z",
        "error_at": None,
        "lost_at": None,  # no calendar has it
        "jobs": [{"committed_at": "2025-11-30T02:33:20.000Z"}],
    }


def test_long_keys_are_cut(screen):
    printed = screen(200)
    print_table(("KEY", "ERROR"), [("k" * 1000, "e" * 100)], empty="")
    row = printed().splitlines()[1]
    assert row.startswith("k" * 59 + "… ")
    assert "e" * 100 in row


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ({"score": 0.5, "version": 1, "decision": "late"}, "key                               0.5000  late        v1"),
        ({"score": 0.5, "version": 1, "epoch": 7}, "key                               0.5000              v1"),
        ({"score": [0.25, 1.0], "version": 1}, "key                               0.2500 1.0000              v1"),
        ({"x": 1}, 'key                               {"x": 1}'),
        ({"score": None, "version": 1}, 'key                               {"score": null, "version": 1}'),
        ({"score": "high", "version": 1}, 'key                               {"score": "high", "version": 1}'),
        ({"score": ["a"], "version": 1}, 'key                               {"score": ["a"], "version": 1}'),
        ({"score": [], "version": 1}, 'key                               {"score": [], "version": 1}'),
        ({"score": True, "version": 1}, 'key                               {"score": true, "version": 1}'),
        ({"score": 0.5}, 'key                               {"score": 0.5}'),
        ({}, "key                               {}"),
    ],
)
def test_watch_shows_results_and_other_entries(value, line):
    assert watch._line(Result("key", value)) == line


def test_watch_shows_anything_in_one_short_line():
    value = {"score": 10**400, "version": [1], "decision": {"a": EVIL}, "long": "x" * 10_000, EVIL: [EVIL] * 99}
    for each in (value, {"x": "y" * 10_000}):
        line = watch._line(Result(EVIL * 50, each))
        assert line == visible(line)
        assert len(line) < 1_000


def test_safe_text_is_not_markup(screen):
    printed = screen(80)
    data = "[/bold] [x] end\\"
    output.console.print(f"[bold]{safe(data)}[/] ok", highlight=False)
    assert printed() == "[/bold] [x] end\\ ok\n"


# ---------------------------------------------------------------------- the command


def gridscore(*arguments, stdout=subprocess.PIPE):
    return subprocess.run(
        [sys.executable, "-m", "gridscore.cli", *arguments],
        env={**os.environ, "COLUMNS": "40"},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_output_that_cannot_be_written_is_one_line():
    with Path("/dev/full").open("w") as full:
        done = gridscore("job", "schema", stdout=full)
    assert done.returncode == 1
    assert done.stderr.startswith("error: The output cannot be written: No space left on device.\n")
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_errors_neither_fold_in_a_pipe_nor_reach_the_terminal(tmp_path):
    done = gridscore("job", "check", str(tmp_path / "no\x1b[31m [/bold] file with a name of more than forty letters"))
    assert done.returncode == 2
    assert r"no\x1b[31m [/bold] file with a name of more than forty letters" in done.stderr.splitlines()[0]


@pytest.mark.parametrize(("columns", "lines"), [("200", "500"), ("100", "30"), ("60", "20")])
def test_no_line_is_longer_than_the_terminal_is_wide(columns, lines):
    controller, terminal = pty.openpty()
    try:
        termios.tcsetwinsize(terminal, (30, 100))
        shown = "print(console.width, console.height)"
        script = f"import termios; from gridscore.cli.output import console; {shown}; "
        script += f"termios.tcsetwinsize(1, (24, 80)); {shown}"
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "COLUMNS": columns, "LINES": lines, "TERM": "xterm"},
            stdout=terminal,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
            timeout=60,
        )
        assert os.read(controller, 100).split() == [b"100", b"30", b"80", b"24"]
    finally:
        os.close(terminal)
        os.close(controller)


@pytest.mark.parametrize("as_json", [False, True])
def test_nobody_is_asked_without_a_terminal_or_where_a_script_reads(monkeypatch, as_json):
    monkeypatch.setattr(output.sys, "stdin", SimpleNamespace(isatty=lambda: as_json))
    with pytest.raises(UsageError, match="This needs confirmation, and there is no terminal") as raised:
        output.confirmed("Remove it?", as_json=as_json)
    assert raised.value.hint == "Give --yes, or --dry-run."


def test_the_users_answer_counts_and_the_question_is_not_output(monkeypatch, capsys):
    for answer, sure in (("y\n", True), ("\n", False)):
        monkeypatch.setattr(output.sys, "stdin", stdin := io.StringIO(answer))
        stdin.isatty = lambda: True
        assert output.confirmed("Remove it?") is sure
    assert capsys.readouterr().out.strip() == ""
