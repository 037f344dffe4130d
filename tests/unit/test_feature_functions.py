"""Python functions as features: what a job file may say, what functions get, and what becomes of bad ones.

Functions are called in this process and in one of their own, which is ended, hangs, and is short of memory.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import psutil
import pytest
import xgboost as xgb
from serving import booster, client, serving
from typer.testing import CliRunner

import gridscore
from gridscore import function_calls
from gridscore.cli import _commands
from gridscore.errors import FunctionError, JobFileError, TableError
from gridscore.features import (
    EventDecoder,
    FeaturePlan,
    definitions_of,
    function_process,
    functions,
    offline_matrix,
)
from gridscore.features.function_process import FunctionProcess
from gridscore.function_calls import distribution_of
from gridscore.group.reader import Cursor
from gridscore.job import Job, parse_job
from gridscore.models import loaded_from
from gridscore.models.fit import fit_warnings
from gridscore.scoring.rehearsal import Given, Rehearsal, page_of_texts
from gridscore.scoring.window_states import HistoryStates
from gridscore.testing import StubCluster

MODULE = """
import os, sys, time
from json import loads
from pathlib import Path

import numpy as np

BAD = 13.0
CALLS, DAMAGES = [], []


def risk(amount, country, known, at):
    assert amount.dtype == np.float64 and country.dtype == object and known.dtype == np.bool_, country.dtype
    assert at.dtype == "datetime64[us]"
    amount[np.isnan(amount)] = -1.0  # what it gets is its own
    hour = (at - at.astype("datetime64[D]")) / np.timedelta64(1, "h")
    return np.where(country == "DE", amount * 1.1, amount / 3) + np.sin(np.nan_to_num(hour)) + known


def enrich(frame):
    assert str(frame["at"].dt.tz) == "UTC"
    frame["hour"] = frame["at"].dt.hour
    frame["large"] = frame["amount"] > 100
    CALLS.append(len(frame))
    return frame.sort_values("amount")  # rows keep their places by the index


def plain(amount):
    return amount


def raises(amount):
    if (amount == BAD).any():
        raise ValueError("no 13 here, \\ud800")
    return amount * 2


def leaves(amount):
    if (amount == BAD).any():
        sys.exit("goodbye")
    return amount * 2


def hangs(amount):
    while (amount == BAD).any():
        pass
    return amount * 2


def aborts(amount):
    if (amount == BAD).any():
        os.abort()
    return amount * 2


def forks(amount):
    if (amount == BAD).any():
        if os.fork() == 0:
            time.sleep(600)  # and has all pipes of its parent meanwhile
        os._exit(3)
    return amount * 2


def sleeps(amount):
    if (amount == BAD).any():
        time.sleep(600)
    return amount * 2


EVILS = [
    os.abort,
    lambda: os._exit(0),
    lambda: os.kill(os.getpid(), 11),
    lambda: os.kill(os.getpid(), 9),
    lambda: sum(iter(int, 1)),
    lambda: 1 / 0,
]


def evil(amount):
    for bad in amount[amount < 0]:
        EVILS[int(-bad) % len(EVILS)]()
    return amount * 2


def later(amount):
    if DAMAGES or (len(amount) > 2 and (amount == BAD).any()):
        os.abort()
    DAMAGES.extend(amount[amount == BAD])  # memory, say: it shows when somebody else uses it
    return amount * 2


def computes(amount):
    until = time.process_time() + amount[0]
    while time.process_time() < until:
        pass
    return amount * 2


def broken(amount):
    if Path(os.environ["MARK"]).exists():
        os.abort()
    return amount * 2


def centred(amount):
    return amount - amount.mean()


def greedy(amount):
    if (amount == BAD).any():
        return np.ones(1 << 31)
    return amount * 2


def loud(amount):
    os.write(1, b"x" * 5_000_000)
    print("y" * 5_000_000)
    print("z" * 5_000_000, file=sys.stderr, flush=True)
    sys.stdin.read()
    return amount * 2


def waits(amount):
    mark = Path(os.environ["MARK"])
    if mark.exists():
        mark.with_suffix(".there").touch()
        while mark.exists():
            time.sleep(0.01)
    return amount * 2


def environment(amount):
    return np.full(len(amount), sum("secret" in text for text in os.environ.values()))


RETURNS = {
    1: lambda n: 1.0,
    2: lambda n: np.ones(n + 1),
    3: lambda n: np.ones((n, 2)),
    4: lambda n: np.array(["1"] * n),
    5: lambda n: None,
    6: lambda n: pd.Series(pd.Timestamp("2026-01-01"), range(n)),
    7: lambda n: pd.Series(1.0, range(1, n + 1)),
    8: lambda n: np.ones(n, complex),
    9: lambda n: pd.Series([None] * n, dtype=object),
}


def returns(amount):
    global pd
    import pandas as pd
    return RETURNS[int(amount[0])](len(amount))


def missing(amount):
    return np.where(amount == 1, np.inf, np.where(amount == 2, np.nan, amount))


def nullable(amount):
    import pandas as pd
    return pd.Series([None, 1, 2] * len(amount), dtype="Int64")[: len(amount)]


def flighty(amount):
    failed = np.random.default_rng().random(len(amount)) < 0.3
    if failed.any():
        raise ValueError("not today")
    return amount


def counted(amount, before):
    if ((before == 1) & (amount == BAD)).any():
        raise ValueError("the second of a card cannot be 13")
    return before
"""
SCHEMA = "{amount: float?, country: string?, known: bool, at: timestamp?}"
RISK = 'risk: {python: "acme_pricing.risky:risk", of: [amount, country, known, at]}'


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with a distribution, as pip leaves it."""
    folder = tmp_path_factory.mktemp("site")
    info = folder / "acme_pricing-1.2.dist-info"
    for each in (folder / "acme_pricing", info):
        each.mkdir()
    (folder / "acme_pricing/__init__.py").touch()
    (folder / "acme_pricing/risky.py").write_text(MODULE)
    (folder / "acme_pricing/broken.py").write_text("import a_module_that_is_not_there\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-pricing\nVersion: 1.2\n")
    (info / "top_level.txt").write_text("acme_pricing\n")
    (info / "RECORD").write_text("acme_pricing/__init__.py,,\nacme_pricing/risky.py,,\n")
    return folder


@pytest.fixture(autouse=True)
def installed(site, monkeypatch):
    """The distribution can be imported, here and in children; nothing is allowed."""
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setenv("GRIDSCORE_PYTHON_ENV", "OTHER,MARK")
    monkeypatch.setattr(functions, "_allowed", set())
    function_calls._distributions.cache_clear()
    yield
    function_calls._distributions.cache_clear()


def job_of(features, schema=SCHEMA, more=""):
    listed = "\n".join(f"  {line}" for line in features.splitlines())
    return parse_job(
        f"job: j\nevents: events.j\nschema: {schema}\nfeatures:\n{listed}\nmodel: m\nresults: results.j\n{more}", "job"
    )


def one(name, more=""):
    """A job with one feature, by a function of the amount."""
    return job_of(f'x: {{python: "acme_pricing.risky:{name}", of: [amount]{more}}}', "{amount: float}")


def texts_of(count):
    rows = range(count)
    return [
        b'{"amount": %d.25, "country": "%s", "known": %s, "at": "2026-03-01T%02d:00:00.123456Z"}'
        % (n % 300, (b"DE", b"FR")[n % 2], (b"true", b"false")[n % 3 == 0], n % 24)
        if n % 7
        else b'{"known": false}'
        for n in rows
    ]


def amounts(*values):
    return [b'{"amount": %r}' % value for value in values]


def decoded(job, texts):
    return EventDecoder(job).decode_all(texts)


def made(job, events):
    """The features of events for which functions have been called."""
    return FeaturePlan(job, {}, {}).matrix(events)


async def called(job, texts, *, allowed=("acme_pricing",), **options):
    """What comes of some events in a process of its own."""
    process = FunctionProcess(job, {}, allowed, **options)
    try:
        return await process.apply(decoded(job, texts))
    finally:
        await process.close()


# ---------------------------------------------------------------------- the job file


def test_a_function_is_a_feature_of_the_job_and_of_its_definitions():
    job = job_of(
        f'{RISK}\nhour: {{python: "acme_pricing.risky:enrich", of: {{amount: amount + 1, at: at}}, column: hour, '
        "cpu: 5s, default: 0}\ntwice: 2 * risk"
    )
    assert Job.from_json(job.to_json()) == job
    assert [str(each) for each in job.features.values()] == [
        "python('acme_pricing.risky:risk', amount, country, known, at)",
        "python('acme_pricing.risky:enrich', {'amount': amount + 1, 'at': at})['hour']",
        "2 * risk",
    ]
    definitions = definitions_of(job)
    assert definitions.features["hour"].endswith("['hour'], default 0.0")
    assert set(definitions.fields) == {"amount", "country", "known", "at"}
    assert definitions.machine == {
        f"distribution of `acme_pricing.risky:{name}`": "acme-pricing 1.2" for name in ("enrich", "risk")
    }
    assert job.has_functions
    assert not job_of("amount: amount").has_functions


@pytest.mark.parametrize(
    ("feature", "problem"),
    [
        ("{of: [amount]}", "it needs an `expression`, or a function: `python`"),
        ("{expression: amount, python: 'a:b', of: [amount]}", "give an `expression` or `python`, not both"),
        ("{expression: amount, of: [amount]}", "`of` is for `python`"),
        ("{python: 'a:b'}", "`python` needs what the function takes: `of: [amount, country]`"),
        (
            "{python: 'a.b:c.d', of: [amount]}",
            "`a.b:c.d` is not a Python function of a module: write",
        ),
        ("{python: '__main__:f', of: [amount]}", "`__main__:f` is not a Python function of a module"),
        (
            "{python: 'system', of: [amount]}",
            "`system` is not a Python function of a module: write `package.module:function`",
        ),
        ("{python: 'os:system', of: [amount], cpu: 301s}", "`cpu: 301s`: a call may use 300 s at most"),
        ("{expression: amount, cpu: 5s}", "`cpu` is for `python`"),
        (
            "{python: 'a:b', of: [amuont]}",
            "there is no event field or earlier feature `amuont`, did you mean `amount`?",
        ),
        ("{python: 'a:b', of: {x: amount + country}}", "`+` needs two numbers or two strings"),
        ("{python: 'a:b', of: [code]}", "`code` depends on what training learns, which a Python function cannot take"),
        ("{python: 'a:b', of: [sum(amount)]}", "`sum` needs the name of a window"),
    ],
)
def test_what_cannot_be_called_is_told_with_its_line(feature, problem):
    with pytest.raises(JobFileError) as error:
        job_of(f"code: category(country)\nx: {feature}")
    assert problem in str(error.value)
    assert "line 6" in str(error.value)


def test_a_margin_cannot_be_a_function():
    with pytest.raises(JobFileError, match="make a feature with `python`, and name that here"):
        job_of("amount: amount", more='margin: {python: "a:b", of: [amount]}')


# ---------------------------------------------------------------------- what may be called


async def test_nothing_is_called_that_nobody_has_allowed():
    job = job_of(RISK)
    with pytest.raises(FunctionError, match="not allowed here") as error:
        made(job, decoded(job, texts_of(3)))
    assert 'allow_python("acme_pricing.risky")' in error.value.hint
    gridscore.allow_python("acme_pricing.riskyx", "acme")  # names of modules, and not their beginnings
    with pytest.raises(FunctionError, match="not allowed here"):
        offline_matrix(
            job, pd.DataFrame({"amount": [1.0], "country": "DE", "known": True, "at": "2026-01-01T00:00:00Z"})
        )
    process = FunctionProcess(job, {}, ["acme_pricing.broken"])
    with pytest.raises(FunctionError, match="not allowed here"):
        await process.start()
    assert process.pid is None


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("acme_pricing.risky:gone", "cannot be imported here: AttributeError"),
        ("acme_pricing.broken:x", "No module named 'a_module_that_is_not_there'"),
        ("acme_pricing.risky:loads", "is of `json`, which is not allowed"),
        ("acme_pricing.risky:BAD", "is not a function"),
    ],
)
async def test_what_cannot_be_imported_is_told_alike_here_and_there(target, problem):
    job = job_of(f'x: {{python: "{target}", of: [amount]}}')
    gridscore.allow_python("acme_pricing")
    with pytest.raises(FunctionError) as here:
        made(job, decoded(job, texts_of(3)))
    with pytest.raises(FunctionError) as there:
        await called(job, texts_of(3))
    assert problem in str(here.value)
    assert str(here.value) == str(there.value)


# ---------------------------------------------------------------------- the same bits


async def test_a_process_of_its_own_gives_the_same_bits_as_this_one_whatever_the_batches():
    enrich = 'python: "acme_pricing.risky:enrich", of: {amount: amount, at: at}'
    job = job_of(
        f"{RISK}\nhour: {{{enrich}, column: hour}}\nlarge: {{{enrich}, column: large}}\n"
        'twice: {python: "acme_pricing.risky:plain", of: [risk * 2 + hour]}\nsum: twice + large'
    )
    texts = texts_of(4_500)
    gridscore.allow_python("acme_pricing.risky")
    expected = made(job, decoded(job, texts))
    assert np.isnan(expected[0]).sum() == 3  # no time, so no hour
    assert np.isfinite(expected[1]).all()

    process = FunctionProcess(job, {}, ["acme_pricing"])
    try:
        events, failed = await process.apply(decoded(job, texts))
        assert not failed
        assert made(job, events).tobytes() == expected.tobytes()
        for begin, size in ((0, 1), (1, 1), (10, 3), (100, 777)):
            events, _ = await process.apply(decoded(job, texts[begin : begin + size]))
            assert made(job, events).tobytes() == expected[begin : begin + size].tobytes()
            some = made(job, decoded(job, texts[begin : begin + size]))
            assert some.tobytes() == expected[begin : begin + size].tobytes()
    finally:
        await process.close()
    assert not (await called(job, []))[1]


def test_columns_of_one_frame_are_one_call():
    enrich = 'python: "acme_pricing.risky:enrich", of: {amount: amount, at: at}'
    job = job_of(f"hour: {{{enrich}, column: hour}}\nlarge: {{{enrich}, column: large}}")
    gridscore.allow_python("acme_pricing")
    from acme_pricing import risky

    risky.CALLS.clear()
    made(job, decoded(job, texts_of(20)))
    assert risky.CALLS == [20]


def test_training_matrix_and_its_rows_that_fail():
    job = job_of('x: {python: "acme_pricing.risky:raises", of: [amount]}', "{amount: float}")
    gridscore.allow_python("acme_pricing")
    history = pd.DataFrame({"amount": [1.0, 13.0, 3.0]})
    with pytest.raises(TableError, match=r"row 2: `acme_pricing.risky:raises` raised ValueError: no 13 here"):
        offline_matrix(job, history)
    matrix = offline_matrix(job, history, skip_bad=True)
    assert np.asarray(matrix.values).ravel().tolist() == [2.0, 6.0]
    assert matrix.skipped == 1


def test_a_history_refuses_a_function_that_looks_at_other_rows():
    gridscore.allow_python("acme_pricing")
    history = pd.DataFrame({"amount": np.arange(300.0)})
    with pytest.raises(FunctionError, match=r"risky:centred` gives the same event 105.5 among some events, and 127.5 "):
        offline_matrix(one("centred"), history)
    assert len(offline_matrix(one("plain"), history).values) == 300


# ---------------------------------------------------------------------- bad ones


def only_13(job, events, failed, place, texts):
    """Only that event has failed; all others have their feature. Returns why."""
    assert list(failed) == [place]
    rest = [text for row, text in enumerate(texts) if row != place]
    expected = np.array([[2 * EventDecoder(job).decode(text).amount] for text in rest], np.float32)
    assert made(job, events).tobytes() == expected.tobytes()
    return failed[place]


@pytest.mark.parametrize("name", ["raises", "leaves"])
async def test_one_event_of_thousands_for_which_a_function_raises_is_set_aside_with_the_traceback(name):
    texts = amounts(*range(20, 20 + 4_096))
    texts[1_234] = b'{"amount": 13}'
    job = one(name)
    events, failed = await called(job, texts)
    why = only_13(job, events, failed, 1_234, texts)
    exception = "ValueError: no 13 here, \\ud800" if name == "raises" else "SystemExit: goodbye"
    assert why.startswith(f"`acme_pricing.risky:{name}` raised {exception}\n")
    assert 'risky.py", line' in why
    assert f"in {name}" in why
    assert "function_calls.py" not in why  # ours says nothing to them

    gridscore.allow_python("acme_pricing")
    with pytest.raises(FunctionError) as error:
        made(job, decoded(job, texts))
    assert error.value.message == why


async def test_an_event_that_hangs_a_function_is_set_aside_and_the_process_is_another():
    texts = amounts(*range(20, 20 + 512))
    job = one("hangs")
    process = FunctionProcess(job, {}, ["acme_pricing"])
    try:
        await process.apply(decoded(job, texts))
        first = process.pid
        texts[77] = b'{"amount": 13}'
        why = only_13(job, *await process.apply(decoded(job, texts)), 77, texts)
        assert why == "`acme_pricing.risky:hangs` used more than 1 s of processor time, and its process was ended"
        assert process.pid != first
        texts[77] = b'{"amount": 14}'
        assert not (await process.apply(decoded(job, texts)))[1]
        assert process.most[0] >= 256  # and calls are large again
    finally:
        await process.close()
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("forks", "has ended its process (code 3)"),
        ("sleeps", "gave no answer in 1 s, and its process was ended"),
    ],
)
async def test_an_event_that_ends_the_process_or_waits_for_ever_is_set_aside(name, told, monkeypatch):
    monkeypatch.setattr(function_process, "TICK", 0.05)
    monkeypatch.setattr(function_process, "WAIT_SECONDS", 1.0)
    texts = amounts(*range(20, 20 + 4_096))
    texts[4_095] = b'{"amount": 13}'
    job = one(name)
    assert only_13(job, *await called(job, texts), 4_095, texts) == f"`acme_pricing.risky:{name}` {told}"


async def test_of_events_that_end_the_process_in_any_way_each_is_set_aside_and_no_other():
    values = np.arange(3_000.0)
    guilty = {5: -1, 6: -2, 700: -3, 701: -4, 702: -5, 2_999: -6}
    for row, value in guilty.items():
        values[row] = value
    texts, job = amounts(*values.tolist()), one("evil")
    process = FunctionProcess(job, {}, ["acme_pricing"])
    try:
        await process.apply(decoded(job, amounts(1, 2)))
        events, failed = await process.apply(decoded(job, texts))
    finally:
        await process.close()
    assert list(failed) == sorted(guilty)
    ends = ["(SIGABRT)", "(code 0)", "(SIGSEGV)", "(SIGKILL)", "of processor time", "raised ZeroDivisionError"]
    for value, why in zip(guilty.values(), failed.values(), strict=True):
        assert ends[-value % len(ends)] in why
    good = np.delete(values, list(guilty))
    assert made(job, events).tobytes() == (2 * good).astype(np.float32).tobytes()


async def test_an_event_that_is_called_in_a_process_which_another_has_damaged_is_not_set_aside():
    texts = amounts(*range(20, 20 + 64))
    texts[30] = b'{"amount": 13}'
    events, failed = await called(job := one("later"), texts)
    assert not failed
    assert len(made(job, events)) == 64


async def test_a_function_that_ends_its_process_for_every_event_is_told(monkeypatch):
    monkeypatch.setattr(function_process, "_LONGEST_PAUSE", 0.05)
    process = FunctionProcess(job := one("aborts"), {}, ["acme_pricing"])
    try:
        asked, told = asyncio.create_task(process.apply(decoded(job, amounts(*[13] * 4)))), set()
        while not asked.done():
            told.add(process.trouble)
            await asyncio.sleep(0.005)
        events, failed = await asked
        assert not events
        assert list(failed) == list(range(4))
        ends = "`acme_pricing.risky:aborts` has ended its process (SIGABRT), 8 times in a row"
        assert f"{ends}; its events become dead letters" in told
        assert process.trouble == ""  # nothing waits any more
        assert not (await process.apply(decoded(job, amounts(1, 2))))[1]
    finally:
        await process.close()


async def test_a_function_that_no_longer_answers_what_it_has_answered_makes_no_dead_letters(tmp_path, monkeypatch):
    monkeypatch.setenv("MARK", str(mark := tmp_path / "mark"))
    process = FunctionProcess(job := one("broken"), {}, ["acme_pricing"])
    try:
        await process.apply(decoded(job, amounts(1, 2)))
        mark.touch()
        for _ in range(2):
            with pytest.raises(FunctionError, match=r"does not start: SIGABRT\."):
                await process.apply(decoded(job, amounts(3)))
            assert "no longer answers a call that it has answered: SIGABRT" in process.trouble
        mark.unlink()
        events, failed = await process.apply(decoded(job, amounts(3)))
        assert not failed
        assert made(job, events).ravel().tolist() == [6.0]
        assert process.trouble == ""
    finally:
        await process.close()


async def test_a_function_that_is_uninstalled_meanwhile_is_told_as_long_as_it_is(monkeypatch):
    process = FunctionProcess(job := one("plain"), {}, ["acme_pricing"])
    try:
        await process.apply(decoded(job, amounts(1, 2)))
        there = process.calls
        gone = [call._replace(target="acme_pricing.gone:plain") for call in there]
        monkeypatch.setattr(process, "calls", gone)
        await process.close()
        for _ in range(2):
            with pytest.raises(FunctionError, match=r"No module named 'acme_pricing\.gone'"):
                await process.apply(decoded(job, amounts(3)))
            assert "No module named 'acme_pricing.gone'" in process.trouble
        monkeypatch.setattr(process, "calls", there)
        assert not (await process.apply(decoded(job, amounts(3))))[1]
        assert process.trouble == ""
    finally:
        await process.close()


@contextlib.asynccontextmanager
async def in_a_call(tmp_path, monkeypatch, *, warm):
    """A process that computes an event, as long as a mark is there; it may wait for a second, by quick looks."""
    monkeypatch.setenv("MARK", str(mark := tmp_path / "mark"))
    monkeypatch.setattr(function_process, "TICK", 0.05)
    monkeypatch.setattr(function_process, "WAIT_SECONDS", 1.0)
    process = FunctionProcess(job := one("waits"), {}, ["acme_pricing"])
    try:
        if warm:
            await process.apply(decoded(job, amounts(1)))
        mark.touch()
        asked = asyncio.create_task(process.apply(decoded(job, amounts(7))))
        await there(mark)
        yield process, mark, asked
        events, failed = await asked
        assert not failed
        assert made(job, events).ravel().tolist() == [14.0]
    finally:
        await process.close()


async def there(mark):
    """A function has seen the mark."""
    seen = mark.with_suffix(".there")
    async with asyncio.timeout(60):
        while not seen.exists():
            await asyncio.sleep(0.01)
    seen.unlink()


async def test_a_process_that_is_stopped_for_longer_than_it_may_wait_costs_no_event(tmp_path, monkeypatch):
    async with in_a_call(tmp_path, monkeypatch, warm=True) as (process, mark, asked):
        os.kill(pid := process.pid, signal.SIGSTOP)
        async with asyncio.timeout(60):
            while f"{pid} for its Python functions is stopped" not in process.trouble:
                await asyncio.sleep(0.01)
        await asyncio.sleep(2)
        assert not asked.done()
        mark.unlink()
        os.kill(pid, signal.SIGCONT)
    assert process.trouble == ""


async def test_a_worker_that_is_paused_for_longer_than_a_call_may_wait_costs_no_event(tmp_path, monkeypatch):
    async with in_a_call(tmp_path, monkeypatch, warm=True) as (process, mark, asked):
        pid = process.pid
        time.sleep(2)  # noqa: ASYNC251 -- so the event loop stands still
        await asyncio.sleep(0)
        mark.unlink()
        await asked
        assert process.pid == pid


async def test_an_event_alone_survives_processes_that_are_killed_one_after_the_other(tmp_path, monkeypatch):
    async with in_a_call(tmp_path, monkeypatch, warm=False) as (process, mark, _):
        for _ in range(2):
            os.kill(process.pid, signal.SIGKILL)
            await there(mark)
        mark.unlink()


async def test_a_call_on_a_machine_that_is_busy_may_take_longer_than_it_may_compute():
    process = FunctionProcess(job := one("computes"), {}, ["acme_pricing"])
    busy = []
    try:
        await process.apply(decoded(job, amounts(0)))
        core = psutil.Process(pid := process.pid).cpu_affinity()[:1]
        psutil.Process(pid).cpu_affinity(core)
        for _ in range(4):
            busy.append(subprocess.Popen([sys.executable, "-c", "while True: pass"]))  # noqa: ASYNC220
            psutil.Process(busy[-1].pid).cpu_affinity(core)
        began = time.monotonic()
        _, failed = await process.apply(decoded(job, amounts(0.7)))
        assert not failed
        assert process.pid == pid
        assert time.monotonic() - began > 1.0
    finally:
        for each in busy:
            each.kill()
            each.wait()
        await process.close()


async def test_a_function_has_so_much_memory_and_no_more():
    texts = amounts(*range(20, 20 + 64))
    texts[5] = b'{"amount": 13}'
    why = only_13(one("greedy"), *await called(one("greedy"), texts, memory=1 << 30), 5, texts)
    assert "MemoryError" in why


async def test_what_a_function_prints_and_reads_is_nobodys():
    events, failed = await called(job := one("loud"), amounts(1, 2))
    assert not failed
    assert made(job, events).ravel().tolist() == [2.0, 4.0]


@pytest.mark.parametrize(("name", "seen"), [("GRIDSCORE_PASSWORD", 0), ("HOMEBREW_TOKEN", 0), ("OTHER", 1)])
async def test_a_function_sees_of_the_environment_what_is_named_and_no_passwords(monkeypatch, name, seen):
    monkeypatch.setenv(name, "a secret")
    events, _ = await called(job := one("environment"), amounts(1, 2))
    assert made(job, events).ravel().tolist() == [seen, seen]


async def test_what_is_no_number_for_each_event_is_told():
    problems = {
        1: "of the shape () for 2 rows",
        2: "of the shape (3,) for 2 rows",
        3: "of the shape (2, 2) for 2 rows",
        4: "of the type <U1: a feature is a number",
        5: "of the shape () for 2 rows",
        6: "a feature is a number",
        7: "an index of their own for 2 rows",
        8: "of the type complex128: a feature is a number",
        9: "of the type object: a feature is a number",
    }
    process = FunctionProcess(job := one("returns"), {}, ["acme_pricing"])
    try:
        for number, problem in problems.items():
            events, failed = await process.apply(decoded(job, amounts(number, number)))
            assert not events
            assert list(failed) == [0, 1]
            assert problem in failed[0]
    finally:
        await process.close()


async def test_a_column_that_is_not_returned_is_named():
    job = job_of('x: {python: "acme_pricing.risky:enrich", of: {amount: amount, at: at}, column: hours}')
    assert "raised KeyError: 'hours'" in (await called(job, texts_of(2)))[1][0]


@pytest.mark.parametrize(("name", "expected"), [("missing", [np.nan, np.nan, 3.0]), ("nullable", [np.nan, 1.0, 2.0])])
async def test_what_is_missing_or_infinite_is_missing(name, expected):
    events, failed = await called(job := one(name), amounts(1, 2, 3))
    assert not failed
    np.testing.assert_array_equal(made(job, events).ravel(), expected)


async def test_a_batch_that_is_left_leaves_no_answer_for_the_next(tmp_path, monkeypatch):
    monkeypatch.setenv("MARK", str(mark := tmp_path / "mark"))
    process = FunctionProcess(job := one("waits"), {}, ["acme_pricing"])
    try:
        mark.touch()
        asked = asyncio.create_task(process.apply(decoded(job, amounts(1, 2))))
        await there(mark)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        assert process.pid is None
        mark.unlink()
        events, _ = await process.apply(decoded(job, amounts(7, 8)))
        assert made(job, events).ravel().tolist() == [14.0, 16.0]
    finally:
        await process.close()


WORKER = """
import asyncio, sys
from gridscore.features import EventDecoder
from gridscore.features.function_process import FunctionProcess
from gridscore.job import parse_job

async def main():
    job = parse_job(sys.argv[1], "job")
    process = FunctionProcess(job, {}, ["acme_pricing"])
    await process.start()
    print(process.pid, flush=True)
    await process.apply(EventDecoder(job).decode_all([b'{"amount": 1}']))

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, the call ends first")
def test_no_process_is_left_of_a_worker_that_is_killed_in_a_call(tmp_path, monkeypatch):
    monkeypatch.setenv("MARK", str(mark := tmp_path / "mark"))
    mark.touch()
    text = 'job: j\nevents: e.j\nschema: {amount: float}\nfeatures:\n  x: {python: "acme_pricing.risky:waits", of: '
    words = [sys.executable, "-c", WORKER, text + "[amount]}\nmodel: m\nresults: r.j\n"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as worker:
        child = psutil.Process(int(worker.stdout.readline()))
        asyncio.run(there(mark))
        worker.kill()
    end = time.monotonic() + 60
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.01)


# ---------------------------------------------------------------------- with windows


WINDOWED = """
job: cards
events: events.cards
event_key: card
order_by: time
schema: {card: string, amount: float, time: {type: timestamp, unit: s}}
windows: {card: card}
features:
  before: {python: "acme_pricing.risky:NAME", of: [amount, 'count(card, "30d")']}
  amount: amount
model: cards
results: results.cards
"""


def rehearsal_of(job, tmp_path):
    data = xgb.DMatrix(np.zeros((4, 2), np.float32), [0, 1, 0, 1], feature_names=["before", "amount"])
    xgb.train({"objective": "binary:logistic", "nthread": 1}, data, 1).save_model(tmp_path / "model.ubj")
    _, model = loaded_from(tmp_path / "model.ubj", "cards")
    return Rehearsal(job, model, Given({}, {}), HistoryStates(job))


def page(count):
    texts = [b'{"card": "c%d", "amount": %d, "time": %d}' % (n % 5, n % 15, n) for n in range(count)]
    keys = [b"\0\0\0\0\xff\xff\xff\xf5\0\0\0\2c%d" % (n % 5) for n in range(count)]
    return page_of_texts(texts, 0)._replace(keys=keys)


async def test_an_event_for_which_a_function_fails_is_in_no_window(tmp_path):
    job = parse_job(WINDOWED.replace("NAME", "counted"), "job")
    gridscore.allow_python("acme_pricing")
    rehearsal = rehearsal_of(job, tmp_path)
    _, rejected = await rehearsal.score(page(45), Cursor(0, 0))
    # By hand: the second event of a card that counts may not have an amount of 13.
    counts, bad = [0] * 5, []
    for n in range(45):
        if counts[n % 5] == 1 and n % 15 == 13:
            bad.append(n)
        else:
            counts[n % 5] += 1
    assert not bad or [each.sequence for each in rejected] == bad
    seen = rehearsal.plan.seen[1][:, 0]
    assert seen.max() == max(counts) - 1


async def test_a_function_that_fails_as_it_likes_holds_up_nobody(tmp_path):
    job = parse_job(
        WINDOWED.replace("NAME", "flighty").replace(
            "of: [amount, 'count(card, \"30d\")']", "of: ['count(card, \"30d\")']"
        ),
        "job",
    )
    gridscore.allow_python("acme_pricing")
    texts, rejected = await rehearsal_of(job, tmp_path).score(page(60), Cursor(0, 0))
    assert len(texts) + len(rejected) == 60
    assert len({each.sequence for each in rejected}) == len(rejected) > 0


def test_a_history_with_windows_has_no_row_that_fails():
    job = parse_job(WINDOWED.replace("NAME", "counted"), "job")
    gridscore.allow_python("acme_pricing")
    history = pd.DataFrame({"card": ["a", "a"], "amount": [1.0, 13.0], "time": [1.0, 2.0]})
    with pytest.raises(TableError, match=r"row 2: .* raised ValueError: the second of a card cannot be 13"):
        offline_matrix(job, history, skip_bad=True)


# ---------------------------------------------------------------------- what people see


async def test_a_server_says_as_long_as_it_lasts_that_a_function_cannot_be_called(tmp_path, monkeypatch):
    monkeypatch.setenv("MARK", str(mark := tmp_path / "mark"))
    async with StubCluster(partitions=4) as cluster:
        gridscore = await cluster.client()
        await gridscore.push_model(booster(features=("x",)), "m", alias="champion")
        await gridscore.submit(one("broken"))
        async with serving(cluster, "j", allow_python=("acme_pricing",)) as server, client(server) as http:

            async def scored():
                return (await http.post("/score/j", json={"amount": 3.0})).status_code

            async def problem():
                (job,) = (await http.get("/jobs")).json()
                return job["problem"]

            assert (await scored(), await problem()) == (200, "")
            mark.touch()
            os.kill(server.jobs.live("j")._functions.pid, signal.SIGKILL)
            assert await scored() == 503
            assert "no longer answers a call that it has answered: SIGABRT" in await problem()
            mark.unlink()
            assert (await scored(), await problem()) == (200, "")


def test_a_version_of_another_release_of_the_function_is_told(monkeypatch, tmp_path):
    job = one("plain")
    gridscore.allow_python("acme_pricing")
    matrix = offline_matrix(job, pd.DataFrame({"amount": [1.0, 2.0, 3.0, 4.0]}))
    booster = xgb.train({"objective": "binary:logistic", "nthread": 1}, xgb.DMatrix(matrix.values, [0, 1, 0, 1]), 1)
    matrix.attach(booster)
    booster.save_model(tmp_path / "model.ubj")
    version, _ = loaded_from(tmp_path / "model.ubj", "m")
    assert not fit_warnings({"j": job}, version)
    monkeypatch.setattr("importlib.metadata.version", lambda _name: "1.3")
    (warning,) = fit_warnings({"j": job}, version)
    assert "(acme-pricing 1.2; here acme-pricing 1.3): the function may return other values." in warning
    other = job_of('x: {python: "acme_pricing.risky:raises", of: [amount]}', "{amount: float}")
    assert any("was trained on features other than those" in each for each in fit_warnings({"j": other}, version))


def test_the_distribution_of_a_function_is_found_in_a_namespace_and_of_a_compiled_module(monkeypatch, tmp_path):
    for name, file in (
        ("acme_mail", "acme/mail/__init__.py"),
        ("acme_prices", "acme/prices.py"),
        ("fastrisk", "fastrisk.cpython-313-x86_64-linux-gnu.so"),
        ("fastrisk_more", "fastrisk_more.py"),
    ):
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "RECORD").write_text(f"{file},,\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert distribution_of("acme.prices:risk") == "acme_prices 1.0"
    assert distribution_of("acme.mail.text:risk") == "acme_mail 1.0, acme_prices 1.0"
    assert distribution_of("acme.mail:risk") == "acme_mail 1.0"
    assert distribution_of("fastrisk:risk") == "fastrisk 1.0"


def checked(path, *words):
    done = CliRunner().invoke(_commands("job"), ["job", "check", str(path), *words], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    return done.output


def test_job_check_says_what_is_here(tmp_path):
    path = tmp_path / "job.yaml"
    features = "\n".join(
        f'  f{n}: {{python: "{target}", of: [amount]}}'
        for n, target in enumerate(("acme_pricing.risky:risk", "acme_pricing.broken:x", "nowhere.at_all:x"))
    )
    path.write_text(f"job: j\nevents: e.j\nschema: {{amount: float}}\nfeatures:\n{features}\nmodel: m\nresults: r.j\n")
    shown = checked(path)
    assert "python('acme_pricing.risky:risk', amount)" in shown
    assert "acme-pricing 1.2" in shown
    assert "not installed here" in shown
    assert shown.count("not allowed here") == 3
    allowed = checked(path, "--allow-python", "acme_pricing")
    assert "can be called here" in allowed
    assert "No module named 'a_module_that_is_not_there'" in " ".join(allowed.split())
    wrong = CliRunner().invoke(_commands("job"), ["job", "check", str(path), "--allow-python", "acme;pricing"])
    assert "not the name of a module" in str(wrong.exception or wrong.output)
