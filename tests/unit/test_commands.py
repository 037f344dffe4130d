"""The command line as a whole: which modules a command imports."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from gridscore import containers
from gridscore.cli import _commands, _named, options
from gridscore.cli.backtest import check_page
from gridscore.cli.state import moment_of
from gridscore.errors import GridscoreError, UsageError
from gridscore.job.life import _begin
from gridscore.models import mlflow_models, signing


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["jobs", "--json"], "jobs"),
        (["-v", "dead-letters", "list"], "dead-letters"),
        (["-vv", "status"], "status"),
        (["--", "status"], "status"),
        (["--help", "jobs"], ""),
        (["-h"], ""),
        (["job", "check"], "job"),
        (["jbos"], ""),
        ([], ""),
        (["--version"], ""),
    ],
)
def test_only_the_command_that_is_named_is_imported(words, name):
    assert _named(words) == name


def test_what_would_be_an_option_is_not_offered_as_a_name(monkeypatch):
    monkeypatch.setattr(options, "run_on", lambda *_: ["--yes", "-x", "a-b", "a;b", "a b"])
    assert options.job_names(SimpleNamespace(params={})) == ["a-b"]


def test_alone_a_command_is_what_it_is_among_all():
    both = [CliRunner().invoke(_commands(only), ["submit", "--help"]).stdout for only in ("submit", None)]
    assert both[0] == both[1]
    assert "Submit a job file" in both[0]


def test_the_list_of_commands_is_what_it_is_with_all_of_them():
    both = [CliRunner().invoke(_commands(only), ["--help"]).stdout for only in ("", None)]
    assert both[0] == both[1]
    assert "dead-letters" in both[0]


def test_the_list_of_commands_imports_none_of_them():
    code = "import sys; from gridscore.cli import main; sys.argv[1:] = ['--help']\n"
    code += "try:\n    main()\nexcept SystemExit:\n"
    code += "    print([name for name in sys.modules if name.startswith('gridscore.')])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = ["cli", "cli.options", "cli.output", "errors", "texts"]
    assert sorted(json.loads(ended.stdout.splitlines()[-1].replace("'", '"'))) == [f"gridscore.{each}" for each in ours]


def test_a_light_command_imports_nothing_heavy():
    code = "import sys; from gridscore.cli import main; sys.argv[1:] = ['jobs', '--help']\n"
    code += "try:\n    main()\nexcept SystemExit:\n"
    code += "    print([name for name in ('numpy', 'hazelcast', 'xgboost') if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("read", [moment_of, _begin], ids=["until", "from"])
def test_a_date_alone_gets_advice_that_can_be_followed(read):
    with pytest.raises(GridscoreError, match="has no time zone") as refused:
        read("2026-01-31")
    assert refused.value.hint.split()[1] == "2026-01-31T00:00:00Z"
    read("2026-01-31T00:00:00Z")


def test_a_typing_error_gets_a_suggestion_from_all_commands():
    ended = subprocess.run(
        [sys.executable, "-m", "gridscore.cli", "statsu"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert "status" in ended.stderr


def test_a_module_that_the_image_for_workers_lacks_is_named_without_a_traceback():
    code = "import sys; from gridscore.cli import main; sys.modules['pandas'] = None; main()"
    words = ["load", "jobs/payments/job.yaml", "--lookups", "jobs/payments/lookups"]
    ended = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: The module `pandas` is not installed here.\n")
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("module", "extra", "needs"),
    [
        ("docker", "docker", containers._engine),
        ("mlflow", "mlflow", lambda: mlflow_models.downloaded("models:/late/1", None)),
        ("cryptography.exceptions", "signing", lambda: signing.sign(None, None, None)),
        ("cryptography.exceptions", "signing", lambda: signing.check_signature(None, [])),
        ("matplotlib", "backtest", lambda: check_page(Path("page.html"))),
    ],
)
def test_an_extra_that_is_missing_is_named_in_one_way(module, extra, needs, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=f"needs the extra `{extra}`: the module `{module}.* is not") as caught:
        needs()
    assert caught.value.hint == f"pip install 'gridscore[{extra}]'"
