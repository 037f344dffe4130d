"""Restore points: complete or not there, whatever is killed in between; and a cluster of them is as the one before."""

import asyncio
import errno
import json
import math
import os
import random
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from msgspec.structs import replace
from serving import booster
from typer.testing import CliRunner

from gridscore.cli import _commands
from gridscore.errors import GridError, JobError, UsageError
from gridscore.grid import Records, transport
from gridscore.grid.writer import MapWriter, partition_of
from gridscore.group import rescan
from gridscore.job import parse_job
from gridscore.job.plugs.base import SinkSettings
from gridscore.keys import Keys, Role
from gridscore.models.chunks import CHUNKS_MAP
from gridscore.operations import backup as backup_module
from gridscore.operations import backup_stores
from gridscore.operations.backup import BACKUPS_MAP, NOT_KEPT, Backup, BackupRecord, backups_of, forget_backup
from gridscore.operations.restore import Restore
from gridscore.operations.restore_points import KEPT, BackupError, Point, Points
from gridscore.operations.window_state import state_of
from gridscore.scoring.window_messages import key_in
from gridscore.scoring.window_stage import WindowStage
from gridscore.scoring.window_states import Entry, _decode, encode_entry, for_another_grid
from gridscore.sinks.records import register
from gridscore.sources.position import Beginning, Positions
from gridscore.sources.status import SourceStats
from gridscore.testing import StubCluster

JOB = """\
job: pay
events: events.pay
event_key: card
order_by: time
schema: {card: string, amount: float, time: {type: timestamp, unit: s}}
windows: {card: card}
lookups:
  customer: {map: customers, key: card, fields: {age: int}}
features:
  amount: sum(amount, card, "1h")
  age: customer.age
model: pay
results: results.pay
"""
OTHER_KEY = JOB.replace("event_key: card\n", "").replace("windows: {card: card}", "windows: {card: lower(card)}")
AT = 1_700_000_000.0
SECOND_DISK = Path("/dev/shm")  # noqa: S108 -- a file system beside that of other temporary files


class Killed(BaseException):
    """The process died here."""


class Fuse:
    """Counts what goes to the disk, and kills at one of these steps: before it is done, a write in the middle."""

    def __init__(self, monkeypatch):
        self.left = None
        for name in ("open", "fsync", "replace", "unlink"):
            monkeypatch.setattr(os, name, self._step(getattr(os, name)))
        opened = os.fdopen
        monkeypatch.setattr(os, "fdopen", lambda *given: Written(opened(*given), self))

    def burn(self):
        if self.left is not None:
            if not self.left:
                raise Killed
            self.left -= 1

    def _step(self, call):
        def step(*args, **kwargs):
            self.burn()
            return call(*args, **kwargs)

        return step


class Written:
    """A file that a process may die over."""

    def __init__(self, file, fuse):
        self._file, self._fuse = file, fuse
        self.flush, self.fileno = file.flush, file.fileno

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def write(self, data):
        try:
            self._fuse.burn()
        except Killed:
            self._file.write(data[: len(data) // 2])
            raise
        self._file.write(data)


def point(number, folder, entries, before=None, live=1_000):
    parts = folder.add(before.maps["windows.x"] if before else (), entries, live)
    return Point(number=number, at=AT + number, cluster="c", maps={"windows.x": parts})


def keys(count, value=b"0"):
    return {b"k%04d" % n: value for n in range(count)}


def test_a_crash_between_any_two_steps_leaves_the_point_before_or_the_next_one(tmp_path, monkeypatch):
    with_two = tmp_path / "two"
    folder = Points.write(with_two)
    first = point(1, folder, keys(50))
    folder.commit(first)
    folder.close()
    fuse, seen, steps = Fuse(monkeypatch), set(), 0
    while True:
        shutil.copytree(with_two, tmp_path / str(steps))
        fuse.left = None
        folder = Points.write(tmp_path / str(steps))
        fuse.left = steps
        try:
            folder.commit(point(2, folder, keys(70, b"1"), first))
        except Killed:
            fuse.left = None
        else:
            break
        folder.close()
        again = Points.write(tmp_path / str(steps))
        newest = again.read()
        seen.add(newest.number)
        assert again.entries(newest, "windows.x") == keys(50) if newest.number == 1 else keys(70, b"1")
        named = {part.sha256 for n in again.numbers() for part in again.read(n).maps["windows.x"]}
        assert {path.name for path in (again.store.path / "data").iterdir()} == named
        assert not list(again.store.path.rglob(".*.new"))
        again.close()
        steps += 1
    assert seen == {1, 2}
    assert steps >= 8


def test_what_has_not_changed_is_not_written_again(tmp_path):
    folder, draw = Points.write(tmp_path / "points"), random.Random(1)
    entries = {b"k%04d" % n: os.urandom(200) for n in range(5_000)}
    made = point(1, folder, entries)
    folder.commit(made)
    before = sum(path.stat().st_size for path in (folder.store.path / "data").iterdir())
    made = point(2, folder, {b"k0007": b"other"}, made, live=5_000)
    folder.commit(made)
    entries[b"k0007"] = b"other"
    assert sum(path.stat().st_size for path in (folder.store.path / "data").iterdir()) - before < 200
    for number in range(3, 120):
        changed = {b"k%04d" % draw.randrange(5_100): draw.choice([None, os.urandom(100)]) for _ in range(40)}
        entries |= changed
        made = point(number, folder, changed, made, live=len(entries))
        folder.commit(made)
        assert len(made.maps["windows.x"]) < 12
    assert folder.entries(made, "windows.x") == {key: text for key, text in entries.items() if text is not None}
    assert len(folder.numbers()) in (KEPT, KEPT + 1)  # and the last of the hour before
    assert sum(path.stat().st_size for path in (folder.store.path / "data").iterdir()) < 4 * before
    folder.close()


def test_old_points_go_and_one_an_hour_stays_for_a_day(tmp_path):
    folder = Points.write(tmp_path)
    for number in range(1, 101):
        folder.commit(Point(number=number, at=AT + number * 1_800, cluster="c"))
    assert folder.numbers()[-KEPT:] == list(range(91, 101))
    assert 20 <= len(folder.numbers()) <= KEPT + 24
    folder.close()


def test_what_was_changed_or_removed_is_noticed(tmp_path):
    folder = Points.write(tmp_path / "good")
    for number in (1, 2):
        folder.commit(point(number, folder, keys(number)))
    folder.close()
    for path in [each.relative_to(tmp_path / "good") for each in (tmp_path / "good").rglob("*") if each.is_file()]:
        if path.name in ("lock", "backup.json"):
            continue
        for damage in ("cut", "changed", "removed"):
            shutil.copytree(tmp_path / "good", tmp_path / "bad")
            bad = tmp_path / "bad" / path
            text = bad.read_bytes()
            if damage == "removed":
                bad.unlink()
            else:
                bad.write_bytes(text[:-1] + (b"" if damage == "cut" else bytes([text[-1] ^ 1])))
            found = Points.open(tmp_path / "bad")

            def read(found=found):
                for number in (1, 2):
                    found.entries(found.read(number), "windows.x")

            with pytest.raises(BackupError):
                read()
            if damage != "removed" and bad.parent.name == "points":
                with pytest.raises(BackupError):
                    Points.write(tmp_path / "bad")
            shutil.rmtree(tmp_path / "bad")


def test_a_point_cannot_name_files_elsewhere(tmp_path):
    folder = Points.write(tmp_path / "points")
    (tmp_path / "precious").write_bytes(b"x")
    parts = folder.add((), {b"k": b"../../precious"}, 1)
    with pytest.raises(BackupError, match="not one of it"):
        folder.commit(Point(number=1, at=AT, cluster="c", maps={CHUNKS_MAP: parts}))
    with pytest.raises(BackupError, match="not one of it"):
        folder.data("../../precious")
    folder.close()


def test_only_a_folder_of_ours_is_written_to_and_by_one_at_a_time(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match=r"photo\.jpg"):
        Points.write(tmp_path)
    with pytest.raises(UsageError, match="has no backup"):
        Points.open(tmp_path)
    mine = tmp_path / "mine" / "data" / "photo.jpg"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"")
    with pytest.raises(UsageError, match="`data` for one"):
        Points.write(tmp_path / "mine")
    folder = Points.write(tmp_path / "new")
    with pytest.raises(UsageError, match="Another process"):
        Points.write(tmp_path / "new")
    with pytest.raises(BackupError, match="no restore point yet"):
        folder.read()
    folder.close()
    Points.write(tmp_path / "new").close()


def test_what_is_not_there_is_refused():
    for words in (["backup", "--to", "s3://x"], ["restore", "--from", "s3://x"]):
        found = CliRunner().invoke(_commands(), words)
        assert isinstance(found.exception, UsageError)
        assert "cannot be kept at `s3://`" in found.exception.message


@pytest.mark.parametrize("words", [[], ["--to", "a", "--forget", "a"]])
def test_a_place_is_backed_up_to_or_forgotten(words):
    found = CliRunner().invoke(_commands(), ["backup", *words])
    assert isinstance(found.exception, UsageError)
    assert found.exception.hint == "Give exactly one of them."


# ---------------------------------------------------------------------- with a cluster


async def prepared(cluster, *, job=JOB):
    client = await cluster.client()
    await client.put_events("customers", {f"c{n}": {"age": 20 + n} for n in range(5)})
    await client.push_model(booster(3, ("amount", "age")), "pay", alias="champion", why="first")
    await client.push_model(booster(4, ("amount", "age")), "pay", description="better", tags={"by": "ana"})
    await client.promote_model("pay", 2, why="better")
    await Keys(client.grid).create([Role.SCORE], note="till")
    await client.submit(parse_job(job, "test"))
    return client


def payment(card, amount, second):
    return {card: {"card": card, "amount": amount, "time": AT + second}}


async def content(grid):
    """All that has to be the same in another cluster."""
    kept = ("gridscore.", "windows.", "dead-letters.", "customers")
    names = {n for n in await transport.map_names(grid.client) if n.startswith(kept)} - NOT_KEPT
    found = {n: dict(await transport.map_entries(grid.client, n)) for n in sorted(names)}
    return {n: entries for n, entries in found.items() if entries}  # workers name some maps before anything is there


async def backed_up(grid, path, **options):
    folder = Points.write(path)
    try:
        backup = Backup(grid, folder, **options)
        await backup.open()
        return await backup.look(10)
    finally:
        folder.close()


async def restored(grid, path, **options):
    folder = Points.open(path)
    restore = Restore(grid, folder, folder.read())
    steps = await restore.plan()
    await restore.run(steps, **options)
    return steps


async def test_an_empty_cluster_becomes_what_the_other_was(tmp_path):
    async with StubCluster(partitions=5) as one, StubCluster(partitions=7, seed=1) as two:
        client = await prepared(one)
        async with one.worker():
            await client.put_events("events.pay", payment("c1", 10, 0))
            await client.put_events("events.pay", payment("c1", 20, 1))
            await client.put_events("events.pay", {"bad": {"card": "other", "amount": 1, "time": AT}})
            await one.results("results.pay", 1)
            made = await backed_up(client.grid, tmp_path)
        assert (made.number, made.held) == (1, "")
        assert made.positions_at > 0
        async with two.worker():  # whose workers may run before
            other = await two.client()
            steps = await restored(other.grid, tmp_path)
            assert steps[-1].map == "gridscore.jobs"
            pairs = [(each.grid, each) for each in (client, other)]
            before, after = await content(client.grid), await content(other.grid)
            assert before.pop("windows.pay").keys() == after.pop("windows.pay").keys()
            assert before.keys() == after.keys()
            assert before == after
            states = [(await state_of(g, await c.jobs.get("pay"), "c1")).values for g, c in pairs]
            assert states[0] == states[1]
            assert len(before["dead-letters.pay"]) == 1
            # Windows go on where they were; an event that comes again counts again, as after a crash of a source.
            await other.put_events("events.pay", payment("c1", 20, 1))
            await other.put_events("events.pay", payment("c1", 30, 2))
            async with asyncio.timeout(10):
                while 80.0 not in (await state_of(other.grid, await other.jobs.get("pay"), "c1")).values.values():
                    await asyncio.sleep(0.01)
            (result,) = (await two.results("results.pay", 1)).values()
            assert result["version"] == 2
        log = await other.models.log("pay")
        assert [(each.action, each.why) for each in log][:2] == [("push", "first"), ("promote", "first")]


async def test_what_is_the_same_already_is_left_alone(tmp_path):
    async with StubCluster(partitions=5) as one, StubCluster(partitions=5, seed=1) as two:
        await backed_up((await prepared(one)).grid, tmp_path)
        grid = (await two.client()).grid
        assert any(step.missing for step in await restored(grid, tmp_path))
        writes = {name: two.requests[name] for name in two.requests if "put" in name.lower()}
        assert sum(writes.values()) > 10
        assert not any(step.missing or step.other for step in await restored(grid, tmp_path))
        after = {name: two.requests[name] for name in writes}
        assert sum(after.values()) - sum(writes.values()) <= 1 + 5, (writes, after)  # its record, and leases


async def test_what_another_cluster_has_is_never_changed(tmp_path):
    async with StubCluster(partitions=5) as one, StubCluster(partitions=5, seed=1) as two:
        await backed_up((await prepared(one)).grid, tmp_path)
        client = await two.client()
        await client.put_events("customers", {"c1": {"age": 99}})
        with pytest.raises(UsageError, match="1 in `customers`"):
            await restored(client.grid, tmp_path)
        assert not await Records(client.grid, "gridscore.jobs").all()
        await restored(client.grid, tmp_path, merge=True)
        customers = await client.grid.map("customers")
        assert (await customers.get("c1")).loads() == {"age": 99}
        assert (await customers.get("c2")).loads() == {"age": 22}
        assert (await client.jobs.get("pay")).name == "pay"


async def test_a_restore_that_was_interrupted_goes_on(tmp_path):
    async with StubCluster(partitions=5) as one, StubCluster(partitions=5, seed=1) as two:
        client = await prepared(one)
        await backed_up(client.grid, tmp_path)
        other = await two.client()

        def stop(done, _total):
            if done > 6:
                raise Killed

        with pytest.raises(Killed):
            await restored(other.grid, tmp_path, progress=stop)
        assert not await Records(other.grid, "gridscore.jobs").all()
        await restored(other.grid, tmp_path)
        assert await content(client.grid) == await content(other.grid)


async def test_positions_are_kept_once_everything_before_them_has_come_out(tmp_path):
    async with StubCluster(partitions=5) as cluster:
        client = await prepared(cluster)
        grid, folder = client.grid, Points.write(tmp_path)
        await register(grid, "out", "files", SinkSettings(results="results.pay"))
        positions = Positions(grid, "log")
        await positions.get("a")
        await positions.move("a", {"offset": 1})
        await client.put_events("events.pay", payment("c1", 10, 0))
        backup = Backup(grid, folder)
        for _ in range(3):
            made = await backup.look()
        # Nobody scores
        assert (made.positions, made.positions_at, made.held) == ({}, 0.0, "`pay` has 1 to go")
        assert (await backups_of(grid))[0].held == "`pay` has 1 to go"
        async with cluster.worker():
            await cluster.results("results.pay", 1)
            async with asyncio.timeout(10):
                while "`pay`" in backup._held:
                    await backup.look()
            # Nobody delivers
            assert (await backup.look()).positions == {}
            assert backup._held == "`out` has 1 to go"
            await Records(grid, "gridscore.sinks").delete("out")
            await positions.move("a", {"offset": 2})  # whose event is not there yet
            made = await backup.look()
            assert made.positions["log/a"]["position"] == {"offset": 1}
            assert (await backup.look()).positions["log/a"]["position"] == {"offset": 2}
        folder.close()


async def test_positions_wait_for_windows_that_are_written_after_the_results(tmp_path, monkeypatch):
    may_write, settle = asyncio.Event(), WindowStage._settle

    async def later(*given):
        await may_write.wait()
        await settle(*given)

    monkeypatch.setattr(WindowStage, "_settle", later)
    async with StubCluster(partitions=5) as cluster:
        client = await prepared(cluster, job=OTHER_KEY)
        grid, points = client.grid, Points.write(tmp_path)
        positions = Positions(grid, "log")
        await positions.get("a")
        await positions.move("a", {"offset": 1})
        backup = Backup(grid, points)
        async with cluster.worker():
            await client.put_events("events.pay", payment("c1", 10, 0))
            await cluster.results("results.pay", 1)
            async with asyncio.timeout(10):
                while "`pay`" in backup._held or not backup._held:
                    await backup.look()
            assert backup._held == "`windows:pay` has 1 to go"
            assert (await backup.look()).positions == {}
            may_write.set()
            made = await backup.look(10)
            assert made.positions["log/a"]["position"] == {"offset": 1}
            await same_states(client, points)
        points.close()


async def test_a_source_of_what_nobody_reads_begins_again(tmp_path):
    async with StubCluster(partitions=5) as cluster:
        client = await prepared(cluster)
        grid = client.grid
        for name in ("log", "rows", "other"):
            positions = Positions(grid, name)
            await positions.get("a")
            await positions.move("a", {"offset": 1})
            to = {"log": "events.pay", "rows": "customers", "other": "events.other"}[name]
            await Records(grid, "gridscore.sources").put(name, {"id": name, "seen_at": 1, "name": name, "map": to})
        assert set((await backed_up(grid, tmp_path / "a")).positions) == {"log/a", "rows/a"}
        left_out = await backed_up(grid, tmp_path / "b", without=["customers"])
        assert set(left_out.positions) == {"log/a"}
        assert "customers" not in left_out.maps
        with pytest.raises(UsageError, match="cannot be left out"):
            await backed_up(grid, tmp_path / "c", without=["gridscore.jobs"])


async def test_what_keeps_its_positions_itself_is_told_where_to_go_back_to(tmp_path):
    async with StubCluster(partitions=5) as one, StubCluster(partitions=5, seed=1) as two:
        client = await prepared(one)
        grid, folder = client.grid, Points.write(tmp_path)
        stats = SourceStats("orders", "kafka", "events.pay")
        record = {"id": "x", "seen_at": 1, "name": stats.name, "map": stats.map}
        records = Records(grid, "gridscore.sources")
        await records.put("p1", {**record, "positions": {"topic group": {"0": 7, "1": 9}}})
        await records.put("p2", {**record, "positions": {"topic group": {"1": 5}}})
        backup = Backup(grid, folder)
        assert (await backup.look(5)).positions["orders/topic group"]["position"]["restored"] == {"0": 7, "1": 5}
        await records.delete("p1")
        await records.put("p2", {**record, "positions": {"topic group": {"1": 6}}})
        await backup.look(5)
        folder.close()
        other = (await two.client()).grid
        await restored(other, tmp_path)
        beginning = Beginning(other, "orders", "topic group")
        assert await beginning.known()
        assert beginning.restored == {"0": 7, "1": 6}
        await beginning.note()
        again = Beginning(other, "orders", "topic group")
        assert await again.known()
        assert again.restored == {}


async def test_a_running_source_keeps_a_restore_from_starting(tmp_path):
    async with StubCluster(partitions=5) as one, StubCluster(partitions=5, seed=1) as two:
        await backed_up((await prepared(one)).grid, tmp_path)
        grid = (await two.client()).grid
        now = int(time.time() * 1000)
        await Records(grid, "gridscore.sources").put(
            "x", {"id": "x", "seen_at": now, "name": "log", "state": "running"}
        )
        with pytest.raises(JobError, match="The source `log` is running"):
            await restored(grid, tmp_path)


async def test_who_begins_at_the_end_begins_with_what_comes_after_the_restore(tmp_path):
    job = JOB.replace("results: results.pay", "results: results.pay\nstart: latest")
    async with StubCluster(partitions=5) as one, StubCluster(partitions=5, seed=1) as two:
        await backed_up((await prepared(one, job=job)).grid, tmp_path)
        client = await two.client()
        await restored(client.grid, tmp_path)
        await client.put_events("events.pay", payment("c1", 10, 0))  # before any worker is there
        async with two.worker():
            assert len(await two.results("results.pay", 1)) == 1


async def test_points_of_another_cluster_are_not_replaced_by_those_of_an_empty_one(tmp_path):
    async with StubCluster(partitions=5) as one, StubCluster(partitions=5, seed=1) as two:
        await backed_up((await prepared(one)).grid, tmp_path)
        grid = (await two.client()).grid
        with pytest.raises(UsageError, match="of another cluster"):
            await backed_up(grid, tmp_path)
        await restored(grid, tmp_path)
        assert (await backed_up(grid, tmp_path)).number == 2


@pytest.mark.parametrize(("is_there", "kept"), [(True, {"offset": 1}), (False, None)], ids=["there", "gone"])
async def test_after_an_earlier_point_was_restored_positions_are_not_ahead_of_the_states(tmp_path, is_there, kept):
    async with StubCluster(partitions=5) as one, StubCluster(partitions=5, seed=1) as two:
        client, points = await prepared(one), Points.write(tmp_path)
        positions = Positions(client.grid, "log")
        await positions.get("a")
        backup = Backup(client.grid, points)
        for offset in (1, 2):
            await positions.move("a", {"offset": offset})
            assert (await backup.look(10)).positions["log/a"]["position"] == {"offset": offset}
        other = await two.client()
        restore = Restore(other.grid, points, points.read(1))
        await restore.run(await restore.plan())
        if not is_there:
            points.store.remove("points", [f"{1:010d}"])
        await other.put_events("events.pay", payment("c1", 10, 0))  # nobody scores, so the positions are held
        for _ in range(2):  # the first process makes no point
            backup = Backup(other.grid, points, every=5)
            await backup.open()
            await backup._tell("the disk is full")
        made = await backup.look()
        assert (made.number, made.held) == (3, "`pay` has 1 to go")
        assert made.positions.get("log/a", {}).get("position") == kept
        assert [each.point for each in await backups_of(other.grid)] == [3]
        points.close()


async def test_a_restored_cluster_is_without_a_backup_until_somebody_starts_it(tmp_path):
    async with StubCluster(partitions=5) as one, StubCluster(partitions=5, seed=1) as two:
        made = await backed_up((await prepared(one)).grid, tmp_path, every=5)
        grid, points = (await two.client()).grid, Points.open(tmp_path)
        restore = Restore(grid, points, replace(made, at=made.at - 60))
        await restore.run(await restore.plan())
        points.close()
        assert [each.is_late for each in await backups_of(grid)] == [True]
        await backed_up(grid, tmp_path, every=5)
        assert [each.is_late for each in await backups_of(grid)] == [False]


def remove_all(path):
    for each in path.iterdir():
        shutil.rmtree(each) if each.is_dir() else each.unlink()


@pytest.mark.parametrize("damage", [shutil.rmtree, remove_all], ids=["removed", "emptied"])
async def test_a_place_that_is_gone_while_nothing_changes_is_noticed_and_made_whole(tmp_path, damage):
    async with StubCluster(partitions=5) as one, StubCluster(partitions=5, seed=1) as two:
        client, place = await prepared(one), tmp_path / "place"
        points = Points.write(place)
        backup = Backup(client.grid, points, every=5)
        for _ in range(2):
            assert (await backup.look(10)).number == 1
        before = points.id
        damage(place)
        assert (await backup.look(10)).number == 1
        assert backup.made == 2
        assert (await backup.look(10), backup.made) == (points.read(), 2)
        assert points.id != before  # or it would be taken for the other if that comes back
        told = [(each.point, each.error, each.is_late) for each in await backups_of(client.grid)]
        assert told == [(1, "", False), (1, backup_module._NOT_THERE, True)]  # people must hear of what is lost
        await forget_backup(client.grid, str(place))
        assert [(each.point, each.error) for each in await backups_of(client.grid)] == [(1, "")]
        with pytest.raises(UsageError, match="Another process"):
            Points.write(place)
        points.close()
        other = await two.client()
        await restored(other.grid, place)
        assert await content(client.grid) == await content(other.grid)


async def test_a_place_that_a_copy_of_it_has_taken_is_locked_again(tmp_path):
    async with StubCluster(partitions=5) as cluster:
        client, place = await prepared(cluster), tmp_path / "place"
        points = Points.write(place)
        backup = Backup(client.grid, points, every=5)
        made = await backup.look(10)
        place.rename(tmp_path / "away")
        shutil.copytree(tmp_path / "away", place)
        assert await backup.look(10) == made
        with pytest.raises(UsageError, match="Another process"):
            Points.write(place)
        points.close()


@pytest.mark.skipif(not SECOND_DISK.is_dir(), reason="needs a second disk")
@pytest.mark.parametrize("beneath", ["nothing", "an empty folder", "another backup"])
async def test_a_disk_that_is_gone_is_waited_for_and_not_filled_elsewhere(tmp_path, beneath):
    async with StubCluster(partitions=5) as cluster:
        client, mount = await prepared(cluster), tmp_path / "mount"
        if beneath == "another backup":
            await backed_up(client.grid, tmp_path / "root")
        with tempfile.TemporaryDirectory(dir=SECOND_DISK) as disk:
            mount.symlink_to(disk)
            points = Points.write(mount / "prod")
            backup = Backup(client.grid, points, every=5)
            await backup.look(10)
            mount.unlink()
            if beneath != "nothing":
                (tmp_path / "root").mkdir(exist_ok=True)
                mount.mkdir()
                (mount / "prod").symlink_to(tmp_path / "root")
            for _ in range(2):
                if beneath == "another backup":
                    await backup.look(10)
                    told = {each.error for each in await backups_of(client.grid)}
                    assert told == {"", backup_module._NOT_THERE}
                else:
                    with pytest.raises(UsageError, match="on another disk than before"):
                        await backup.look(10)
                    assert not [*tmp_path.rglob("backup.json")]
            shutil.rmtree(mount) if beneath != "nothing" else None
            mount.symlink_to(disk)
            await client.put_events("customers", {"c9": {"age": 9}})
            assert (await backup.look(10)).number == 2
            assert (await backups_of(client.grid))[0].error == ""
            points.close()


@pytest.mark.parametrize("kind", ["points", "data", "a part of a model"])
async def test_a_point_that_was_removed_is_made_anew_and_a_part_of_one_is_missed(tmp_path, kind):
    async with StubCluster(partitions=5) as cluster:
        client, points = await prepared(cluster), Points.write(tmp_path)
        backup = Backup(client.grid, points, every=5)
        await backup.look(10)
        await client.put_events("customers", {"c9": {"age": 9}})
        made = await backup.look(10)
        if kind == "points":
            (tmp_path / "points" / f"{2:010d}").unlink()
            assert (await backup.look(10)).maps == made.maps
            assert points.numbers() == [1, 2]
        else:
            name = (
                made.maps["customers"][0].sha256
                if kind == "data"
                else b"".join(points.entries(made, CHUNKS_MAP).values())[:64].decode()
            )
            (tmp_path / "data" / name).unlink()
            for _ in range(2):
                with pytest.raises(BackupError, match="cannot be read" if kind == "data" else "somebody has removed"):
                    await backup.look(10)
        points.close()


async def test_points_of_another_cluster_that_come_into_the_place_stay_as_they_are(tmp_path):
    async with StubCluster(partitions=5) as one, StubCluster(partitions=5, seed=1) as two:
        await backed_up((await prepared(two)).grid, tmp_path / "theirs")
        client, points = await prepared(one), Points.write(tmp_path / "ours")
        backup = Backup(client.grid, points, every=5)
        await backup.look(10)
        before = sorted((path, path.read_bytes()) for path in (tmp_path / "theirs").rglob("*") if path.is_file())
        (tmp_path / "ours").rename(tmp_path / "away")
        (tmp_path / "theirs").rename(tmp_path / "ours")
        for _ in range(3):
            with pytest.raises(UsageError, match="of another cluster"):
                await backup.look(10)
            await backup._tell("of another cluster")  # as it does when it runs
        (tmp_path / "ours").rename(tmp_path / "theirs")
        assert (
            sorted((path, path.read_bytes()) for path in (tmp_path / "theirs").rglob("*") if path.is_file()) == before
        )
        (tmp_path / "away").rename(tmp_path / "ours")
        await client.put_events("customers", {"c9": {"age": 9}})
        assert (await backup.look(10)).number == 2
        assert [(each.point, each.error) for each in await backups_of(client.grid)] == [(2, "")]
        points.close()


async def test_a_first_look_that_fails_is_told(tmp_path, monkeypatch):
    async with StubCluster(partitions=5) as cluster:
        client, points = await prepared(cluster), Points.write(tmp_path)
        backup = Backup(client.grid, points, every=5)
        await backup.open()
        monkeypatch.setattr(backup_stores, "_write", full_disk)
        running = asyncio.create_task(backup.run())
        async with asyncio.timeout(20):
            while not (found := await backups_of(client.grid)):
                await asyncio.sleep(0.01)
        (record,) = found
        assert (record.point, record.is_late) == (0, True)
        assert "No space left" in record.error
        assert record.text.startswith("no restore point in ")
        assert record.age < 60
        running.cancel()
        await asyncio.wait([running])
        points.close()


async def test_what_is_known_of_a_backup_that_runs_no_more_can_be_forgotten(tmp_path):
    async with StubCluster(partitions=5) as cluster:
        grid = (await prepared(cluster)).grid
        for name in ("a", "b"):
            await backed_up(grid, tmp_path / name, every=5)
        with pytest.raises(UsageError, match="runs"):
            await forget_backup(grid, str(tmp_path / "a"))
        for key, record in (await Records(grid, BACKUPS_MAP).all()).items():
            await Records(grid, BACKUPS_MAP).put(key, {**record.value, "at": 1})
        with pytest.raises(UsageError, match="knows of no backup to `elsewhere`") as raised:
            await forget_backup(grid, "elsewhere")
        assert f":{tmp_path / 'b'}`" in raised.value.hint
        assert (await forget_backup(grid, str(tmp_path / "a"))).endswith(str(tmp_path / "a"))
        (left,) = await backups_of(grid)
        assert await forget_backup(grid, left.to) == left.to
        assert await backups_of(grid) == []
        assert Points.open(tmp_path / "b").read().number == 1


async def test_what_a_cluster_was_restored_from_can_be_forgotten_and_taken_up_again(tmp_path):
    async with StubCluster(partitions=5) as one, StubCluster(partitions=5, seed=1) as two:
        made = await backed_up((await prepared(one)).grid, tmp_path, every=5)
        grid, points = (await two.client()).grid, Points.open(tmp_path)
        restore = Restore(grid, points, replace(made, at=made.at - 60))
        await restore.run(await restore.plan())
        points.close()
        await forget_backup(grid, str(tmp_path))
        assert await backups_of(grid) == []
        with pytest.raises(UsageError, match="knows of no backup"):
            await forget_backup(grid, str(tmp_path))
        assert (await backed_up(grid, tmp_path, every=5)).number == 2
        assert [(each.point, each.is_late) for each in await backups_of(grid)] == [(2, False)]


async def test_positions_that_are_held_up_do_not_ask_all_journals_all_the_time(tmp_path):
    async with StubCluster(partitions=5) as cluster:
        client, points = await prepared(cluster), Points.write(tmp_path)
        await register(client.grid, "out", "files", SinkSettings(results="results.pay"))
        await client.put_events("events.pay", payment("c1", 10, 0))  # nobody scores
        backup, asked = Backup(client.grid, points), "Map.EventJournalSubscribe"
        await backup.settle(0)
        before = cluster.requests[asked]
        await backup.settle(2)
        assert backup._held == "`pay` has 1 to go"
        assert cluster.requests[asked] - before == 5  # the one journal that holds it up, once
        points.close()


async def test_a_journal_that_has_begun_again_holds_up_positions_for_one_look_only(tmp_path):
    async with StubCluster(partitions=5) as cluster:
        client, points = await prepared(cluster), Points.write(tmp_path)
        await client.put_events("events.pay", payment("c1", 10, 0))
        backup = Backup(client.grid, points)
        await backup.look()
        assert backup._held == "`pay` has 1 to go"
        await (await client.grid.map("events.pay")).destroy()
        await backup.look()
        await backup.look()
        assert backup._held == ""
        points.close()


async def test_a_full_disk_leaves_the_point_before_and_is_made_good(tmp_path, monkeypatch):
    async with StubCluster(partitions=5) as cluster:
        client = await prepared(cluster)
        folder = Points.write(tmp_path)
        backup = Backup(client.grid, folder)
        await backup.look()
        await client.push_model(booster(6, ("amount", "age")), "pay")
        write = backup_stores._write
        monkeypatch.setattr(backup_stores, "_write", full_disk)
        with pytest.raises(OSError, match="No space"):
            await backup.look()
        assert Points.open(tmp_path).read().number == 1
        monkeypatch.setattr(backup_stores, "_write", write)
        assert (await backup.look()).number == 2
        folder.close()
        assert len(Points.open(tmp_path).entries(Points.open(tmp_path).read(), CHUNKS_MAP)) == 3


async def test_nothing_is_written_when_nothing_has_changed_and_the_age_is_known(tmp_path):
    async with StubCluster(partitions=5) as cluster:
        client = await prepared(cluster)
        folder = Points.write(tmp_path)
        backup = Backup(client.grid, folder, every=5)
        first = await backup.look(5)
        (before,) = await backups_of(client.grid)
        again = await backup.look()
        (after,) = await backups_of(client.grid)
        assert again == first
        assert after.at >= before.at
        assert not after.is_late
        assert await Records(client.grid, BACKUPS_MAP).get(folder.id) is not None
        folder.close()


async def test_a_model_that_changes_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    async with StubCluster(partitions=5) as cluster:
        client = await prepared(cluster)
        folder = Points.write(tmp_path)
        backup, read = Backup(client.grid, folder), Backup._parts
        times = 0

        async def parts(self, known):
            nonlocal times
            times += 1
            if times == 1:
                await client.delete_model("pay", 1)
            async for each in read(self, known):
                yield each

        monkeypatch.setattr(Backup, "_parts", parts)
        made = await backup.look()
        assert times == 2
        found = {key[12:].decode(): text for key, text in folder.entries(made, "gridscore.models").items()}
        assert list(json.loads(found["pay"])["versions"]) == ["2"]
        folder.close()


async def test_a_map_that_is_too_large_is_told_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr("gridscore.operations.backup.MOST_BYTES", 100)
    async with StubCluster(partitions=5) as cluster:
        client = await prepared(cluster)
        folder = Points.write(tmp_path)
        with pytest.raises(GridError, match="has more than"):
            await Backup(client.grid, folder).look()
        folder.close()


def test_a_state_says_nothing_of_journals_that_are_gone():
    state = (5).to_bytes(8, "little") + b"rest"
    text = encode_entry(Entry("tag", 3, state, 7))
    kept = _decode(for_another_grid(b"\0\0\0\0key", text))
    assert (kept.state, kept.windows, kept.at) == (b"\xff" * 8 + b"rest", "tag", 7)
    assert for_another_grid(key_in(1, 5, ":0:"), text) is None
    with pytest.raises(ValueError, match="array"):
        for_another_grid(b"\0\0\0\0key", b"[]")


@pytest.mark.parametrize(
    ("name", "key", "text", "why"),
    [
        ("events.pay", b"\0\0\0\0\xff\xff\xff\xf5\0\0\0\1a", b"{}", "not a map that is kept"),
        ("gridscore.leases", b"\0\0\0\0\xff\xff\xff\xf5\0\0\0\1a", b"{}", "not a map that is kept"),
        ("gridscore.keys", b"\0\0\0\0\xff\xff\xff\x9c\0\0\0\1a", b"{}", "neither a string nor"),  # Java's own
        ("gridscore.keys", b"\0\0\0\0\xff\xff\xff\xf5\0\0\0\1a", b"{", "cannot be used"),
        ("gridscore.keys", b"a", b"{}", "neither a string nor"),
        ("gridscore.jobs", b"\0\0\0\0\xff\xff\xff\xf5\0\0\0\1a", b'{"spec": 1}', "The job `a` cannot be used"),
        ("windows.pay", b"\0\0\0\0\xff\xff\xff\xf5\0\0\0\1a", b"[[[[", "cannot be used"),
    ],
)
async def test_what_no_backup_has_written_is_not_restored(tmp_path, name, key, text, why):
    folder = Points.write(tmp_path)
    made = Point(number=1, at=AT, cluster="c", maps={name: folder.add((), {key: text}, 1)})
    async with StubCluster(partitions=2) as cluster:
        with pytest.raises(BackupError, match=why):
            Restore((await cluster.client()).grid, folder, made)
    folder.close()


# ---------------------------------------------------------------------- what a look costs


@pytest.fixture
def read_states(monkeypatch):
    """Keys of states that looks ask for; `everything` where they read a partition."""
    found = []

    async def values(grid, name, partition, keys):
        found.extend(keys if name == "windows.pay" else ())
        return await read_values(grid, name, partition, keys)

    async def walk(grid, name, *given):
        found.extend(["everything"] * (name == "windows.pay"))
        async for page in walked(grid, name, *given):
            yield page

    read_values, walked = backup_module.values_of, backup_module.walk
    for name, value in {"values_of": values, "walk": walk, "_AT_ONCE": 0, "_ALL_STATES_SECONDS": math.inf}.items():
        monkeypatch.setattr(backup_module, name, value)
    return found


async def same_states(client, points):
    name = "windows.pay"
    there = dict(await transport.map_entries(client.grid.client, name))
    kept = points.entries(points.read(), name)
    assert kept == {key: value[12:] for key, value in there.items() if key[:4] == b"\0\0\0\0"}


@pytest.mark.parametrize("job", [JOB, OTHER_KEY], ids=["event key", "other key"])
async def test_a_look_asks_for_the_states_that_can_have_changed(tmp_path, read_states, job):
    async with StubCluster(partitions=5) as cluster:
        client = await prepared(cluster, job=job)
        points = Points.write(tmp_path)
        backup = Backup(client.grid, points, every=5)
        async with cluster.worker():
            await client.put_events("events.pay", {k: v for n in range(100) for k, v in payment(f"c{n}", n, n).items()})
            await cluster.results("results.pay", 100)
            await backup.look(10)
            await client.put_events("events.pay", payment("c7", 70, 200))
            for count in (1, 0):
                read_states.clear()
                await backup.look(10)
                await backup.look(10)
                assert len(set(read_states)) == count
                assert "everything" not in read_states
            await same_states(client, points)
        points.close()


@pytest.mark.usefixtures("read_states")
async def test_what_changes_while_a_look_reads_is_in_the_next(tmp_path, monkeypatch):
    async with StubCluster(partitions=2) as cluster:
        client = await prepared(cluster)
        points = Points.write(tmp_path)
        backup = Backup(client.grid, points, every=5)
        async with cluster.worker():
            await client.put_events("events.pay", payment("c1", 10, 0))
            await cluster.results("results.pay", 1)
            await backup.look(10)
            read, second, turn = backup_module.values_of, 0, asyncio.Lock()

            async def values(grid, name, partition, keys):
                nonlocal second
                found = await read(grid, name, partition, keys)
                async with turn:  # partitions are read side by side, but a backup settles once at a time
                    if name == "windows.pay" and second < 3:
                        second += 1
                        await client.put_events("events.pay", payment("c1", 10, second))
                        await backup.settle(10)  # it has its result, its state and its offset
                return found

            monkeypatch.setattr(backup_module, "values_of", values)
            await backup.look(10)
            assert second
            await backup.look(10)
            await backup.look(10)
            await same_states(client, points)
        points.close()


@pytest.mark.parametrize("step", range(4))
async def test_a_look_that_failed_does_not_count_and_leaves_nothing(tmp_path, read_states, monkeypatch, step):
    async with StubCluster(partitions=5) as cluster:
        client = await prepared(cluster)
        points = Points.write(tmp_path)
        backup = Backup(client.grid, points, every=5)
        async with cluster.worker():
            await client.put_events("events.pay", payment("c1", 10, 0))
            await cluster.results("results.pay", 1)
            await backup.look(10)
            before, steps, sync = {*tmp_path.rglob("*")}, [step], os.fsync

            def full(file):
                if not steps[0]:
                    raise OSError(errno.ENOSPC, "No space left on device")
                steps[0] -= 1
                sync(file)

            await client.put_events("events.pay", payment("c1", 20, 1))
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", full)
                with pytest.raises(OSError, match="No space"):
                    await backup.look(10)
            assert {*tmp_path.rglob("*")} == before
            await client.put_events("events.pay", payment("c2", 20, 2))
            assert (await backup.look(10)).number == 2
            await same_states(client, points)
            assert "everything" not in read_states[-2:]
        points.close()


async def test_states_are_read_whole_where_the_journal_does_not_tell(tmp_path, read_states):
    async with StubCluster(partitions=5, journals={"events.*": 8, "results.*": 100}) as cluster:
        client = await prepared(cluster)
        points = Points.write(tmp_path)
        backup = Backup(client.grid, points, every=5)
        async with cluster.worker():
            for turn in range(4):
                for n in range(60):
                    await client.put_events("events.pay", payment(f"c{n}", turn, 100 * turn + n))
                await cluster.results("results.pay", 60)
                read_states.clear()
                await backup.look(10)
                await same_states(client, points)
                assert "everything" in read_states
            # Whoever is suspended may get states of a history.
            await client.jobs.suspend("pay")
            read_states.clear()
            await backup.look()
            assert set(read_states) == {"everything"}
        points.close()


async def test_what_a_rescan_between_two_looks_has_changed_is_kept(tmp_path, read_states, monkeypatch):
    put, may_put = MapWriter.put_partition, asyncio.Event()
    may_put.set()

    async def held_up(self, *given, **options):
        await may_put.wait()
        await put(self, *given, **options)

    def put_states(self, *given, **options):
        of = held_up if self.map_name == "windows.pay" else put
        return of(self, *given, **options)

    monkeypatch.setattr(MapWriter, "put_partition", put_states)
    async with StubCluster(partitions=5) as cluster:
        client = await prepared(cluster)
        points = Points.write(tmp_path)
        backup = Backup(client.grid, points, every=5)
        async with cluster.worker():
            await client.put_events("events.pay", {k: v for n in range(20) for k, v in payment(f"c{n}", n, n).items()})
            await cluster.results("results.pay", 20)
            await backup.look(10)
            partition = partition_of(transport.key_data(client.grid.client, "c7"), 5)
            await (await client.grid.map("results.pay")).remove("c7")
            may_put.clear()
            await rescan.request(client.grid, "pay", [partition], "audit")
            await cluster.results("results.pay", 20)
            # Its state does not stand yet, so it is not done.
            assert await rescan.pending(client.grid, "pay")
            may_put.set()
            async with asyncio.timeout(30):
                while await rescan.pending(client.grid, "pay"):
                    await asyncio.sleep(0.01)
            read_states.clear()
            await backup.look(10)
            await same_states(client, points)
            assert "everything" in read_states
            read_states.clear()
            await backup.look(10)
            assert "everything" not in read_states
        points.close()


async def test_states_that_were_removed_are_removed_from_the_points(tmp_path, read_states, monkeypatch):
    async with StubCluster(partitions=5) as cluster:
        client = await prepared(cluster)
        points = Points.write(tmp_path)
        backup = Backup(client.grid, points, every=5)
        async with cluster.worker():
            await client.put_events("events.pay", {k: v for n in range(40) for k, v in payment(f"c{n}", n, n).items()})
            await cluster.results("results.pay", 40)
            await backup.look(10)
            await same_states(client, points)
            states = await client.grid.map("windows.pay")
            for n in range(10):
                await states.remove(f"c{n}")  # as somebody who erases a person, or the map's `max-idle-seconds`
            await backup.look(10)
            monkeypatch.setattr(backup_module, "_ALL_STATES_SECONDS", 25)  # one partition a look
            for _ in range(5):
                read_states.clear()
                await backup.look(10)
                assert read_states == ["everything"]
            await same_states(client, points)
        points.close()


def full_disk(path, data):
    """A disk that has room for a part, and for no point."""
    if path.parent.name == "points":
        raise OSError(errno.ENOSPC, "No space left on device")
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("age", "every", "error", "is_late"), [(9, 5, "", False), (11, 5, "", True), (25, 5, "", True)]
)
def test_a_point_is_late_that_is_twice_as_old_as_it_may_get(age, every, error, is_late):
    record = BackupRecord("there", int((time.time() - age) * 1000), 1, every=every, error=error)
    assert record.is_late == is_late


@pytest.mark.parametrize("held_up", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("reading", [0.05, 0.5, 1.0, 1.6])
def test_the_next_point_stands_before_the_last_is_too_old(held_up, reading):
    settling = held_up * backup_module._patience(5.0, reading)
    pause = backup_module._pause(5.0, reading, settling + reading)
    assert reading + pause + settling + reading <= 5.0
    assert pause >= reading


def test_a_large_cluster_is_not_read_all_the_time():
    assert backup_module._pause(5.0, 20.0, 21.0) == 20.0
    assert backup_module._pause(5.0, 200.0, 201.0) == 60.0
