"""What a notebook shows of jobs, models, results and experiments: tables of text, whatever names and values are."""

import re

import pytest
from IPython.core.error import UsageError
from test_bad_records import JOB
from test_stub_grid import booster

import gridscore
from gridscore import Result
from gridscore.client import notebook
from gridscore.grid.records import Record
from gridscore.job import parse_job
from gridscore.models.experiment import Standing, experiment_in
from gridscore.models.variants import Counts
from gridscore.testing import StubCluster
from gridscore.texts import html_table

HOSTILE = "<script>alert('x')</script>&\x1b[2J"
ESCAPED = "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;&amp;\\x1b[2J"


TABLE = '<table class="mathjax_ignore tex2jax_ignore">'  # no `$` begins a formula


def cells(shown):
    shown = shown.replace(TABLE, "")
    assert re.sub(r"</?(table|tr|th|td)>", "", shown).count("<") == 0
    return re.findall(r"<td>(.*?)</td>", shown)


def test_names_and_values_are_only_ever_text():
    shown = html_table({HOSTILE: HOSTILE, "n": None}, {HOSTILE: "x" * 1_000, "n": 1.5})
    assert shown.startswith(f"{TABLE}<tr><th>{ESCAPED}</th><th>n</th></tr>")
    assert cells(shown) == [ESCAPED, "", "x" * 199 + "…", "1.5"]
    assert cells(Result(HOSTILE, {"score": 0.5, "name": HOSTILE})._repr_html_()) == [ESCAPED, "0.5", ESCAPED]


def test_an_experiment_shows_what_it_says_and_what_was_counted():
    record = {"id": "i", "job": "late", "submitted_at": "s", "model": "m", "version": 2, "kind": "split", "by": "me"}
    record |= {"steps": [5.0], "since": "t", "state": "ended", "why": HOSTILE}  # as an earlier release wrote it
    experiment = experiment_in(Record("late", record, ""))
    assert cells(experiment._repr_html_()) == ["late", "m", "v2", "split", "0.0", "ended", ESCAPED]
    shown = cells(Standing(experiment, Counts(id="i"))._repr_html_())
    assert shown[-10:] == ["challenger", "2", "ended", ESCAPED, "0", "0", "0.0", "", "0", ""]


async def test_jobs_and_models_show_what_is_live():
    async with StubCluster() as stub:
        client = await stub.client()
        first = await client.push_model(booster(2), "payments", alias="champion", metrics={"auc": 0.91234})
        await client.push_model(booster(3), "payments")
        job = await client.submit(parse_job(JOB, "test"))
        model = await client.models.get("payments")
    assert cells(job._repr_html_())[:3] == ["payments", "WAITING", "1"]
    assert cells(first._repr_html_()) == ["payments", "1", "1", "2", first.created_at, "auc 0.9123"]
    assert [row[-1] for row in zip(*[iter(cells(model._repr_html_()))] * 7, strict=True)] == ["", "champion"]


@pytest.mark.parametrize("value", [{}, {"a": 1}])
def test_a_result_shows_its_key_first(value):
    assert cells(Result("k", value)._repr_html_())[0] == "k"


def test_of_few_events_nothing_is_made_that_a_bar_needs(monkeypatch):
    monkeypatch.delattr(notebook, "told_progress")
    assert list(notebook.counted(iter("abc"), 3)) == ["a", "b", "c"]


class Shell:
    def register_magic_function(self, function, *, magic_name):
        setattr(self, magic_name, function)


def test_a_command_that_fails_says_why_and_stops_the_notebook_without_a_traceback(capsys):
    shell = Shell()
    gridscore.load_ipython_extension(shell)
    shell.gridscore("--version")
    assert capsys.readouterr().out.startswith("gridscore ")
    with pytest.raises(UsageError, match="ended with exit code 2"):  # IPython's
        shell.gridscore("job check 'no where.yaml'")
    assert "no where.yaml" in capsys.readouterr().out
    with pytest.raises(UsageError, match="No closing quotation"):
        shell.gridscore("job check 'no where.yaml")
