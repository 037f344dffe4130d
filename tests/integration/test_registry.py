"""The registry on a real member: versions, aliases, interrupted and concurrent pushes, and bytes that are not ours."""

import asyncio
import hashlib
import json
import pickle
import struct

import numpy as np
import pytest
import pytest_asyncio
import xgboost as xgb
from hazelcast.core import HazelcastJsonValue
from hazelcast.protocol.codec import map_put_all_codec
from hazelcast.serialization.data import Data
from typer.testing import CliRunner

from gridscore.cli.model import app
from gridscore.errors import GridError, ModelError, ModelMismatchError, UsageError
from gridscore.grid import connect, transport
from gridscore.grid.writer import partition_of
from gridscore.job import Job
from gridscore.models import LoadedModel, Registry
from gridscore.models import record as record_room
from gridscore.models.chunks import CHUNKS_MAP
from gridscore.models.registry import MODELS_MAP, VERSIONS_MAP
from gridscore.models.version import CHUNK

NAMES = ["a", "b", "c"]


@pytest_asyncio.fixture
async def grid(grid_settings):
    async with await connect(grid_settings) as grid:
        yield grid


@pytest.fixture
def registry(grid):
    return Registry(grid)


@pytest.fixture
def name(unique):
    return f"model-{unique}"


def train(seed=0, rounds=3, names=NAMES, **parameters):
    generator = np.random.default_rng(seed)
    data = xgb.DMatrix(generator.random((300, 3)), generator.integers(0, 2, 300), feature_names=names)
    return xgb.train({"objective": "binary:logistic", "nthread": 1, "seed": seed, **parameters}, data, rounds)


def job_with(features):
    return Job.model_validate(
        {
            "job": "flights",
            "events": "e",
            "results": "r",
            "model": "m",
            "schema": {"x": "float"},
            "features": dict.fromkeys(features, "x"),
        }
    )


@pytest.fixture(scope="module")
def large():
    """A model of several chunks."""
    generator = np.random.default_rng(1)
    data = xgb.DMatrix(generator.random((6_000, 3)), generator.random(6_000), feature_names=NAMES)
    booster = xgb.train({"max_depth": 12, "min_child_weight": 0, "nthread": 2}, data, 120)
    assert len(booster.save_raw("ubj")) > 3 * CHUNK
    return booster


async def keys(grid, name):
    """What the grid holds of a model: metadata and chunks."""
    metadata, chunks = await grid.map(VERSIONS_MAP), await grid.map(CHUNKS_MAP)
    return [key for proxy in (metadata, chunks) for key in await proxy.key_set() if key.startswith(f"{name}/")]


async def until(condition, seconds=10.0):
    """Wait for a condition by looking at it, not for a time."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_model_comes_back_as_it_was_pushed(registry, name, large):
    progress = []

    version = await registry.push(
        large, name, metrics={"auc": 0.93}, progress=lambda done, total: progress.append((done, total))
    )
    payload = await registry.fetch(name, 1)

    assert payload == bytes(large.save_raw("ubj"))
    assert version.version == 1
    assert version.features == tuple(NAMES)
    assert version.sha256 == hashlib.sha256(payload).hexdigest()
    assert (version.size, version.chunks) == (len(payload), -(-len(payload) // CHUNK))
    assert version.metrics == {"auc": 0.93}
    assert version.xgboost_version == xgb.__version__
    assert version.created_at.endswith("Z")
    assert progress == sorted(progress)
    assert progress[-1] == (len(payload), len(payload))
    rows = np.random.default_rng(2).random((50, 3)).astype(np.float32)
    expected = large.predict(xgb.DMatrix(rows, feature_names=NAMES))
    assert LoadedModel.load(version, payload).predict(rows).tobytes() == expected.tobytes()


async def test_versions_count_up_and_aliases_point(registry, name):
    first = await registry.push(train(1), name, alias="champion")
    second = await registry.push(train(2), name, alias="challenger")

    assert (first.version, second.version) == (1, 2)
    assert await registry.resolve(name) == first
    assert await registry.resolve(name, alias="challenger") == second
    assert await registry.resolve(name, version=2) == second
    model = await registry.get(name)
    assert model.aliases == {"champion": 1, "challenger": 2}
    assert [v.version for v in model.versions] == [2, 1]
    assert name in [found.name for found in await registry.list()]


async def test_the_same_model_again_is_the_same_version(grid, registry, name):
    first = await registry.add(train(1), name)
    before = await keys(grid, name)

    again = await registry.add(train(1), name, alias="champion")

    assert first.is_new
    assert not again.is_new
    assert again.version == first.version == await registry.resolve(name)
    assert await keys(grid, name) == before
    assert (await registry.push(train(1), name, again=True)).version == 2
    other = await registry.add(train(1), name, categories={"a": ["x", "y"]})
    assert other.is_new
    assert other.version.categories == {"a": ("x", "y")}


async def test_promote_and_roll_back(registry, name):
    for seed in (1, 2, 3):
        await registry.push(train(seed), name)

    for version in (1, 3):
        assert (await registry.promote(name, version)).version == version
    assert (await registry.promote(name, previous=True)).version == 1
    assert (await registry.resolve(name)).version == 1
    assert (await registry.promote(name, previous=True)).version == 3
    moves = [move.version for move in (await registry.get(name)).history["champion"]]
    assert moves == [1, 3, 1, 3]
    await registry.promote(name, 3)
    assert len((await registry.get(name)).history["champion"]) == 4
    await registry.promote(name, 2, "fresh")
    with pytest.raises(ModelError, match="never pointed at another"):
        await registry.promote(name, previous=True, alias="fresh")
    with pytest.raises(UsageError, match="either a version"):
        await registry.promote(name)


async def test_the_history_of_an_alias_is_bounded(registry, name, monkeypatch):
    monkeypatch.setattr(record_room, "MAX_HISTORY", 3)
    for seed in (1, 2):
        await registry.push(train(seed), name)

    for version in (1, 2, 1, 2, 1):
        await registry.promote(name, version)

    assert [move.version for move in (await registry.get(name)).history["champion"]] == [1, 2, 1]


async def test_what_is_unknown_is_suggested(registry, name):
    await registry.push(train(1), name, alias="champion")

    with pytest.raises(ModelError, match=f"Did you mean `{name}`"):
        await registry.resolve(name[:-1])
    with pytest.raises(ModelError, match="Did you mean `champion`"):
        await registry.resolve(name, alias="champoin")
    with pytest.raises(ModelError, match=r"has no version 2\.\nIts versions: 1\."):
        await registry.resolve(name, version=2)
    with pytest.raises(ModelError, match="has no version 7"):
        await registry.promote(name, 7)
    for wrong in ("", "a/b", "x" * 101, ".."):
        with pytest.raises(UsageError, match="is not a model name"):
            await registry.push(train(1), wrong)
    with pytest.raises(UsageError, match="looks like a version"):
        await registry.push(train(1), name, alias="3")


async def test_features_that_jobs_do_not_have_are_refused_before_anything_is_written(grid, registry, name):
    with pytest.raises(ModelMismatchError, match="only in the job: hour"):
        await registry.push(train(1), name, jobs={"flights": job_with([*NAMES, "hour"])})
    assert await keys(grid, name) == []
    assert await (await grid.map(MODELS_MAP)).get(name) is None

    await registry.push(train(1), name, jobs={"flights": job_with(NAMES)})
    with pytest.raises(ModelMismatchError, match="the order is not"):
        await registry.promote(name, 1, jobs={"flights": job_with(NAMES[::-1])})
    assert (await registry.get(name)).aliases == {}


async def test_a_version_can_be_deleted_unless_an_alias_points_at_it(grid, registry, name):
    await registry.push(train(1), name, alias="champion")
    await registry.push(train(2), name)
    with pytest.raises(ModelError, match="is its `champion`"):
        await registry.delete(name, 1)

    await registry.delete(name, 2)

    assert [v.version for v in (await registry.get(name)).versions] == [1]
    assert len(await keys(grid, name)) == 2
    with pytest.raises(ModelError, match="no version 2"):
        await registry.fetch(name, 2)
    assert (await registry.push(train(2), name)).version == 3


async def test_a_promotion_is_announced(grid, name):
    registry, watcher = Registry(grid), Registry(grid)
    await registry.push(train(1), name)
    seen = asyncio.Event()
    stop = await watcher.watch(seen.set)

    await registry.promote(name, 1)
    async with asyncio.timeout(10):
        await seen.wait()

    await stop()
    assert (await watcher.resolve(name)).version == 1


async def test_concurrent_pushes_get_a_number_each(grid, name):
    pushed = await asyncio.gather(*(Registry(grid).push(train(seed), name, alias="latest") for seed in range(6)))

    assert sorted(version.version for version in pushed) == [1, 2, 3, 4, 5, 6]
    registry = Registry(grid)
    for version in pushed:
        assert hashlib.sha256(await registry.fetch(name, version.version)).hexdigest() == version.sha256
    assert len(await keys(grid, name)) == 12


async def test_concurrent_pushes_of_one_model_are_one_version(grid, name):
    pushed = await asyncio.gather(*(Registry(grid).add(train(1), name) for _ in range(5)))

    assert {added.version.version for added in pushed} == {1}
    assert sum(added.is_new for added in pushed) == 1
    assert len(await keys(grid, name)) == 2


async def test_an_interrupted_push_leaves_nothing(grid, registry, name, large):
    reached = asyncio.Event()
    task = asyncio.create_task(registry.push(large, name, progress=lambda *_: reached.set()))
    await reached.wait()

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    with pytest.raises(ModelError, match="There is no model"):
        await registry.resolve(name)
    assert name not in [model.name for model in await registry.list()]
    await registry.push(train(1), name)  # also removes a chunk that was still on its way
    assert len(await keys(grid, name)) == 2


async def test_a_push_that_the_cluster_refuses_leaves_nothing(grid, registry, name, monkeypatch):
    from hazelcast.errors import HazelcastInstanceNotActiveError

    async def refuse(*_):
        raise HazelcastInstanceNotActiveError("going down")

    monkeypatch.setattr("gridscore.models.chunks._put", refuse)
    with pytest.raises(GridError, match="did not take the model"):
        await registry.push(train(1), name)

    assert await keys(grid, name) == []
    with pytest.raises(ModelError, match="There is no model"):
        await registry.resolve(name)


async def die_while_pushing(registry, name, model, monkeypatch):
    """A push whose process is killed before the record is written: nobody cleans up."""

    class Killed(Exception):  # noqa: N818 -- it is a person's doing
        pass

    async def nothing(*_):
        return None

    def kill(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "_abandon", nothing)
        patch.setattr(record_room.ModelRecord, "committed", kill)
        with pytest.raises(Killed):
            await registry.push(model, name)


async def test_what_a_killed_push_left_is_never_visible_and_cleared_away_later(grid, registry, name, monkeypatch):
    await die_while_pushing(registry, name, train(1), monkeypatch)
    left = await keys(grid, name)
    assert len(left) == 2
    with pytest.raises(ModelError, match="There is no model"):
        await registry.resolve(name)

    await registry.push(train(2), name)  # it might still be under way: kept
    assert set(left) < set(await keys(grid, name))
    monkeypatch.setattr(record_room, "STALE_SECONDS", -1.0)
    await registry.push(train(3), name)

    assert not set(left) & set(await keys(grid, name))
    assert [v.version for v in (await registry.get(name)).versions] == [2, 1]


async def test_a_push_that_was_cleared_away_does_not_become_a_version(grid, registry, name, large, monkeypatch):
    other = Registry(grid)
    paused, cleared = asyncio.Event(), asyncio.Event()
    write = registry._chunks.write

    async def pause(*arguments):
        count = await write(*arguments)
        paused.set()
        await cleared.wait()
        return count

    monkeypatch.setattr(registry._chunks, "write", pause)
    slow = asyncio.create_task(registry.push(large, name))
    await paused.wait()
    with monkeypatch.context() as patch:
        patch.setattr(record_room, "STALE_SECONDS", -1.0)
        await other._clear_away(name)
    cleared.set()

    with pytest.raises(ModelError, match="another push cleared it away"):
        await slow
    assert await keys(grid, name) == []


async def the_only_chunk(grid, name):
    return next(key for key in await (await grid.map(CHUNKS_MAP)).key_set() if key.startswith(f"{name}/"))


async def test_bytes_that_were_changed_in_the_grid_are_refused(grid, registry, name):
    version = await registry.push(train(1), name)
    chunks, key = await grid.map(CHUNKS_MAP), await the_only_chunk(grid, name)
    payload = bytearray(await registry.fetch(name, 1))
    payload[1000] ^= 1

    await chunks.set(key, payload)
    with pytest.raises(ModelError, match="SHA-256 differs"):
        await registry.fetch(name, 1)
    await chunks.set(key, payload[:-1])
    with pytest.raises(ModelError, match="not what was pushed"):
        await registry.fetch(name, 1)
    await chunks.delete(key)
    with pytest.raises(ModelError, match=f"A part of {version} is missing"):
        await registry.fetch(name, 1)


async def test_a_pickle_in_place_of_a_chunk_is_not_opened(grid, registry, name, tmp_path):
    await registry.push(train(1), name)
    opened = tmp_path / "opened"

    class Bomb:
        def __reduce__(self):
            return (opened.touch, ())

    # Our own client would refuse to write it, so it is put as another program would.
    text = pickle.dumps(Bomb(), 0)
    key = transport.key_data(grid.client, await the_only_chunk(grid, name))
    value = Data(struct.pack(">iii", 0, -120, len(text)) + text)
    message = map_put_all_codec.encode_request(CHUNKS_MAP, [(Data(key), value)], False)
    await transport.invoke(grid.client, message, partition_of(key, grid.partition_count), lambda _: None)

    with pytest.raises(ModelError, match="not what was pushed"):
        await registry.fetch(name, 1)
    assert not opened.exists()
    pickle.loads(pickle.dumps(Bomb()))  # noqa: S301 -- the bomb is not a dud
    assert opened.exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 2**40),
        ("size", -1),
        ("chunks", 10**9),
        ("sha256", "x"),
        ("features", []),
        ("features", "abc"),
        ("features", ["a", "a", "b"]),
        ("categories", {"z": ["1"]}),
        ("feature_types", ["float"]),
        ("trees", "many"),
    ],
)
async def test_metadata_that_was_changed_in_the_grid_is_refused(grid, name, field, value):
    await Registry(grid).push(train(1), name, alias="champion")
    metadata = await grid.map(VERSIONS_MAP)
    key = next(key for key in await metadata.key_set() if key.startswith(f"{name}/"))
    changed = {**json.loads((await metadata.get(key)).to_string()), field: value}

    await metadata.set(key, HazelcastJsonValue(json.dumps(changed)))

    try:
        with pytest.raises(ModelError, match="is not valid"):
            await Registry(grid).resolve(name)
        assert name not in [model.name for model in await Registry(grid).list()]
    finally:  # others share the cluster, and look at all its records
        await metadata.delete(key)
        await (await grid.map(MODELS_MAP)).delete(name)


async def test_outputs_of_a_version_that_was_pushed_before_they_were_noted_are_read_from_its_file(grid, registry, name):
    await registry.push(train(1, objective="multi:softprob", num_class=2), name, alias="champion")
    metadata = await grid.map(VERSIONS_MAP)
    key = next(key for key in await metadata.key_set() if key.startswith(f"{name}/"))
    older = json.loads((await metadata.get(key)).to_string())
    assert (older.pop("outputs"), older.pop("classes")) == (2, 2)

    await metadata.set(key, HazelcastJsonValue(json.dumps(older)))

    fresh = Registry(grid)
    found = await fresh.resolve(name)
    assert (found.outputs, found.classes) == (2, 2)
    deciding = job_with(NAMES)
    deciding = Job.model_validate(
        {**deciding.to_json(), "decisions": [{"decision": "a", "at_least": 0.5}, {"decision": "b"}]}
    )
    with pytest.raises(ModelMismatchError, match="gives 2 scores per event"):
        await fresh.promote(name, 1, "other", jobs={"flights": deciding})


@pytest.mark.parametrize(
    "value",
    [
        '{"versions": 3}',
        '{"last": 0, "versions": {"1": {"upload": "x", "content": "y"}}}',
        '{"aliases": {"a": 1}}',
        "[]",
    ],
)
async def test_a_record_that_is_none_is_refused(grid, registry, name, value):
    await (await grid.map(MODELS_MAP)).set(name, HazelcastJsonValue(value))
    try:
        with pytest.raises((ModelError, GridError), match=r"is not valid|cannot be used"):
            await registry.resolve(name)
        assert name not in [model.name for model in await registry.list()]
    finally:
        await (await grid.map(MODELS_MAP)).delete(name)


# --------------------------------------------------------------------------- command line


@pytest.fixture
def gridscore(cluster):
    """Runs `gridscore model …` and gives the result."""
    where = [option for address in cluster.addresses for option in ("--members", address)]

    def run(*arguments):
        return CliRunner().invoke(app, [*map(str, arguments), *where, "--cluster-name", cluster.cluster_name])

    return run


def test_the_commands(gridscore, name, tmp_path):
    files = [tmp_path / f"{seed}.ubj" for seed in (1, 2)]
    for seed, file in enumerate(files):
        train(seed).save_model(file)
    mapping = tmp_path / "categories.json"
    mapping.write_text('{"a": ["x", "y"]}')

    pushed = gridscore("push", files[0], "--name", name, "--alias", "champion", "--metric", "auc=0.93")
    assert pushed.exit_code == 0, pushed.output
    assert f"is version 1 of the model {name}, now the `champion`" in pushed.output
    again = gridscore("push", files[0], "--name", name, "--json")
    assert json.loads(again.stdout)["new"] is False
    second = json.loads(gridscore("push", files[1], "--name", name, "--categories", mapping, "--json").stdout)
    assert (second["version"], second["categories"]) == (2, {"a": ["x", "y"]})

    assert "Version 2" in gridscore("promote", name, "--version", "2").output
    assert json.loads(gridscore("promote", name, "--previous", "--json").stdout)["version"] == 1
    listed = {model["name"]: model for model in json.loads(gridscore("list", "--json").stdout)}
    assert listed[name]["aliases"] == {"champion": 1}
    assert name in gridscore("list").output
    shown = json.loads(gridscore("show", name, "--json").stdout)
    assert (shown["version"], shown["aliases"], shown["metrics"]) == (1, ["champion"], {"auc": 0.93})
    assert "v1 → v2 → v1" in gridscore("show", name, "--version", "2").output

    assert gridscore("delete", name, "--version", "2").exit_code == 0
    assert isinstance(gridscore("delete", name, "--version", "1").exception, ModelError)
    assert isinstance(gridscore("push", files[0], "--name", name, "--metric", "auc=good").exception, UsageError)
    assert isinstance(gridscore("push", tmp_path / "none.ubj", "--name", name).exception, ModelError)
