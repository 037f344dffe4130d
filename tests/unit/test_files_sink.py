"""The file sink: what is in its files, and that they are there only when they are whole."""

import asyncio
import errno
import json

import pandas as pd
import pytest

from gridscore.errors import SettingsError
from gridscore.grid.writer import MapWriter
from gridscore.job import Jobs, parse_job
from gridscore.sinks.base import Delivered, Delivery, SinkInterruptedError
from gridscore.sinks.files import sink as files
from gridscore.sinks.files.settings import FilesSinkSettings
from gridscore.sinks.files.sink import FilesSink
from gridscore.sinks.runner import runner_of
from gridscore.testing import StubCluster

MAP = "results.x"
AT = 1_700_000_000_123


def result(number, **more):
    value = {
        "score": number / 8,
        "decision": "decline",
        "model": "m",
        "version": 2,
        "sequence": number,
        "epoch": 1,
        "scored_at": AT,
        **more,
    }
    return Delivered(f"k{number}", json.dumps(value).encode(), value, 0, 100 + number, 7)


def settings(folder, **more):
    return FilesSinkSettings(results=MAP, folder=str(folder), **more)


async def written(cluster, folder, results, **more):
    """Deliver into files, and give their paths."""
    sink = FilesSink(await cluster.connect("sink"), "out", settings(folder, **more))
    await sink.open()
    assert list(await sink.deliver(Delivery(results, {0: 1}, 0.0))) == []
    await sink.close()
    return sorted(folder.iterdir())


async def test_a_parquet_file_has_the_result_in_columns(tmp_path):
    odd = Delivered(7, b'{"other": {"a": 1}}', {"other": {"a": 1}}, 0, 110, 7)
    async with StubCluster() as cluster:
        (path,) = await written(cluster, tmp_path, [result(0, country="DE", n=1), result(1, country=None, n=2.5), odd])
    assert path.name.startswith("out-")
    frame = pd.read_parquet(tmp_path)
    assert list(frame["key"]) == ["k0", "k1", "7"]
    assert list(frame["score"][:2]) == [0.0, 0.125]
    assert frame["scored_at"][0] == pd.Timestamp(AT, unit="ms", tz="UTC")
    assert list(frame["sink_sequence"]) == [100, 101, 110]
    assert set(frame["sink_epoch"]) == {7}
    assert list(frame["n"])[:2] == [1.0, 2.5]
    assert frame["country"][0] == "DE"
    assert frame["country"][1:].isna().all()
    assert frame["other"][2] == '{"a":1}'
    assert json.loads(frame["json"][0]) == result(0, country="DE", n=1).value


async def test_features_are_columns(tmp_path):
    many = [result(0, features={"a b": 0.1, "c": None}), result(1, features={"a b": 2, "c": 1}), result(2, features=7)]
    async with StubCluster() as cluster:
        await written(cluster, tmp_path, many)
    frame = pd.read_parquet(tmp_path)
    assert frame["features.a b"].tolist()[:2] == [0.1, 2.0]
    assert frame["features.c"][1] == 1.0
    assert frame[["features.a b", "features.c"]].isna().sum().tolist() == [1, 2]
    assert json.loads(frame["json"][0]) == many[0].value


async def test_scores_of_several_outputs_are_lists(tmp_path):
    async with StubCluster() as cluster:
        await written(cluster, tmp_path, [result(0, score=[0.25, 0.75])])
    assert list(pd.read_parquet(tmp_path)["score"][0]) == [0.25, 0.75]


@pytest.mark.parametrize("gzip", [False, True])
async def test_json_lines_are_the_results_with_their_keys(tmp_path, gzip):
    strange = Delivered("a\nb", b'{\n"key": 1,\n"x": "y"}', {"key": 1, "x": "y"}, 0, 110, 7)
    empty = Delivered("e", b"{}", {}, 0, 111, 7)
    async with StubCluster() as cluster:
        (path,) = await written(cluster, tmp_path, [result(0), strange, empty], format="jsonl", gzip=gzip)
    assert path.name.endswith(".jsonl.gz" if gzip else ".jsonl")
    frame = pd.read_json(path, lines=True)
    assert list(frame["key"]) == ["k0", "a\nb", "e"]
    assert frame["score"][0] == 0.0
    assert frame["x"][1] == "y"
    assert list(frame["sink_sequence"]) == [100, 110, 111]


async def test_files_of_one_sink_have_the_same_columns_whatever_is_in_them(tmp_path):
    job = """\
job: x
events: events.x
schema: {amount: float?, user: string?, count: int?, ok: bool?}
features: {amount: amount}
model: x
results: results.x
result: {include: [amount, user, count, ok]}
"""
    nothing = {"amount": None, "user": None, "count": None, "ok": None}
    async with StubCluster() as cluster:
        await Jobs(await cluster.connect("user")).submit(parse_job(job, "job.yaml"))
        folder = tmp_path / "out"
        await written(cluster, folder, [result(0, **nothing)])
        await written(cluster, folder, [result(1, amount=1, user="u", count=3, ok=True)])
    frame = pd.read_parquet(folder).set_index("key")
    assert frame.loc["k1", ["amount", "user", "count", "ok"]].to_list() == [1.0, "u", 3.0, True]


async def test_a_file_appears_only_when_it_is_complete(tmp_path, monkeypatch):
    seen = []

    def failing(*_):
        seen.extend(path.name for path in tmp_path.iterdir())
        raise OSError(errno.ENOSPC, "no space")

    async with StubCluster() as cluster:
        sink = FilesSink(await cluster.connect("sink"), "out", settings(tmp_path))
        await sink.open()
        monkeypatch.setattr(files, "_write_parquet", failing)
        with pytest.raises(SinkInterruptedError, match="No space left"):
            await sink.deliver(Delivery([result(0)], {0: 1}, 0.0))
    assert len(seen) == 1
    assert seen[0].startswith(".out-")
    assert list(tmp_path.iterdir()) == []


async def test_a_folder_that_cannot_be_has_one_clear_message(tmp_path):
    (tmp_path / "file").write_text("")
    async with StubCluster() as cluster:
        sink = FilesSink(await cluster.connect("sink"), "out", settings(tmp_path / "file"))
        with pytest.raises(SettingsError, match="cannot be written"):
            await sink.open()
        sink = FilesSink(await cluster.connect("sink"), "out", settings(tmp_path / "file" / "below"))
        with pytest.raises(SettingsError, match="Not a directory"):
            await sink.open()


async def test_the_runner_fills_files_and_commits_what_they_hold(tmp_path):
    async with StubCluster() as cluster:
        grid = await cluster.connect("user")
        entries = {r.key: r.text for r in map(result, range(250))}
        await MapWriter(grid, MAP).put(entries.items())
        runner = runner_of(await cluster.connect("sink"), settings(tmp_path, max_results=100, max_age="1s"))
        task = asyncio.create_task(runner.run())
        async with asyncio.timeout(20):
            while runner.stats.events < 250:
                await asyncio.sleep(0.01)
                for path in tmp_path.glob("*.parquet"):
                    pd.read_parquet(path)  # whole, whenever one looks
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    frames = [pd.read_parquet(path) for path in sorted(tmp_path.iterdir())]
    assert [len(frame) for frame in frames] == [100, 100, 50]
    together = pd.concat(frames)
    assert dict(zip(together["key"], together["json"].str.encode("utf-8"), strict=True)) == entries
    assert runner.name == "files-results.x"
