"""Restore points in a real database: each is one transaction, whatever ends it, and nobody sees the password."""

import logging
import random

import psycopg
import pytest
from scoring import until
from typer.testing import CliRunner

from gridscore.cli import _commands
from gridscore.errors import RefusedError, UsageError
from gridscore.operations import backup_database
from gridscore.operations.backup import Backup
from gridscore.operations.backup_database import Database
from gridscore.operations.backup_stores import BackupError
from gridscore.operations.restore import Restore
from gridscore.operations.restore_points import KEPT, Point, Points
from gridscore.testing import StubCluster

AT = 1_700_000_000.0
SOME = {b"k1": b"1", b"k2": b"2"}


def point(number, points, entries, before=None, live=1_000):
    parts = points.add(before.maps["windows.x"] if before else (), entries, live)
    return Point(number=number, at=AT + number, cluster="c", maps={"windows.x": parts})


def made(database, count=1):
    points, before = Points.write(database), None
    for number in range(1, count + 1):
        before = point(number, points, {b"k%d" % number: b"%d" % number}, before)
        points.commit(before)
    points.close()
    return before


def seen(database):
    points = Points.open(database)
    try:
        return {number: points.entries(points.read(number), "windows.x") for number in points.numbers()}
    finally:
        points.close()


def rows(postgres, database, statement="SELECT kind, name, part FROM gridscore_backup"):
    return postgres.execute(statement, database.rpartition("/")[2])


def test_a_connection_that_ends_before_any_statement_leaves_the_point_before_or_the_next_one(
    postgres, database, monkeypatch
):
    run, seen_points, step, server = Database._rows, set(), 0, database
    while True:
        rows(postgres, server, f"CREATE SCHEMA s{step}")
        database = f"{server}?options=-csearch_path%3Ds{step}"
        first, left = made(database), [step]

        def cut(self, statement, *values, left=left):
            if not left[0]:
                self._connection.close()  # as a server does that stops, or a network that fails
            left[0] -= 1
            return run(self, statement, *values)

        points = Points.write(database)
        with monkeypatch.context() as patch:
            patch.setattr(Database, "_rows", cut)
            try:
                points.commit(point(2, points, {b"k1": None, b"k2": b"x" * 100}, first))
            except BackupError:
                points.undo()
        points.close()
        found = seen(database)
        seen_points.add(max(found))
        assert found[1] == {b"k1": b"1"}
        if left[0] > 0:
            break
        assert found.get(2, {b"k2": b"x" * 100}) == {b"k2": b"x" * 100}
        step += 1
    assert step >= 4
    assert seen_points == {1, 2}


def test_what_was_not_committed_is_not_there(postgres, database):
    made(database)
    before = rows(postgres, database)
    points = Points.write(database)
    points.put(b"a part of a model")
    assert rows(postgres, database) == before
    points.undo()
    points.put(b"a part of a model")
    points.close()
    assert rows(postgres, database) == before


def test_old_points_are_removed_with_what_only_they_had(postgres, database):
    points, before, draw = Points.write(database), None, random.Random(1)
    expected = {}
    for number in range(1, 41):
        changed = {b"k%02d" % draw.randrange(50): draw.choice([None, b"%d" % number]) for _ in range(8)}
        expected |= changed
        before = point(number, points, changed, before, len(expected))
        points.commit(before)
    assert points.numbers()[-KEPT:] == list(range(31, 41))
    assert len(points.numbers()) <= KEPT + 1
    assert points.entries(before, "windows.x") == {key: text for key, text in expected.items() if text is not None}
    named = {part.sha256 for number in points.numbers() for part in points.read(number).maps["windows.x"]}
    assert {name for kind, name, _ in rows(postgres, database) if kind == "data"} == named
    points.close()


def test_large_pieces_are_several_rows(postgres, database, monkeypatch):
    monkeypatch.setattr(backup_database, "_ROW_BYTES", 1_000)
    entries = {b"k%d" % number: bytes([number % 256]) * 50 for number in range(100)}
    points = Points.write(database)
    points.commit(point(1, points, entries))
    points.close()
    assert max(part for _, _, part in rows(postgres, database)) > 4
    assert seen(database) == {1: entries}


@pytest.mark.parametrize(
    "damage",
    ["UPDATE {} SET data = substr(data, 1, 5) {}", "UPDATE {} SET data = data || 'x' {}", "DELETE FROM {} {}"],
)
@pytest.mark.parametrize("kind", ["points", "data"])
def test_what_was_changed_or_removed_is_noticed(postgres, database, damage, kind):
    made(database, 2)
    newest = max(name for each, name, _ in rows(postgres, database) if each == "points")
    where = f"WHERE kind = '{kind}'" + f" AND name = '{newest}'" * (kind == "points")
    rows(postgres, database, damage.format("gridscore_backup", where))
    if damage.startswith("DELETE") and kind == "points":
        assert list(seen(database)) == [1]  # it is not there, as if it had never been made
        return
    with pytest.raises(BackupError, match=r"damaged|SHA-256") as found:
        seen(database)
    assert "--point" in found.value.hint


def test_only_one_process_writes_and_who_was_cut_off_does_not_write_over_what_others_have(database, monkeypatch):
    monkeypatch.setattr(backup_database, "_LOCK_SECONDS", 1)
    before = made(database)
    points = Points.write(database)
    with pytest.raises(UsageError, match="Another process writes"):
        Points.write(database)
    points.store._connection.close()  # the first does not know it yet
    other = Points.write(database)
    other.commit(point(2, other, {b"k": b"other"}, before))
    with pytest.raises(UsageError, match="Another process writes"):
        points.commit(point(2, points, {b"k": b"mine"}, before))
    points.undo()
    other.close()
    with pytest.raises(BackupError, match="Another process has written"):
        points.commit(point(2, points, {b"k": b"mine"}, before))
    points.close()
    assert seen(database)[2] == {b"k1": b"1", b"k": b"other"}


def test_errors_say_what_is_wrong_and_no_password(postgres, database, caplog, unique):
    caplog.set_level(logging.DEBUG)
    with pytest.raises(UsageError, match="no backup"):
        Points.open(database)
    word = "own-secret"
    with pytest.raises(RefusedError, match="the user or the password"):
        Points.write(postgres.url(password=word))
    postgres.execute(f"CREATE ROLE r{unique} LOGIN PASSWORD '{word}'")
    mine = postgres.url(database.rpartition("/")[2], user=f"r{unique}", password=word)
    with pytest.raises(RefusedError, match="does not allow it"):
        Points.write(mine)
    shown = [caplog.text]
    for words in (["backup", "--to"], ["restore", "--from"]):
        for where in (mine, "postgresql://u:own-secret@127.0.0.1:1/x", "postgresql://u:own-secret@h:a/x"):
            found = CliRunner().invoke(_commands(), [*words, where])
            assert found.exit_code != 0
            shown += [found.output, str(found.exception), getattr(found.exception, "hint", "")]
    assert not [text for text in shown if "secret" in text]


def test_the_address_takes_its_password_from_the_environment(database, monkeypatch):
    made(database)
    password = psycopg.conninfo.conninfo_to_dict(database)["password"]
    monkeypatch.setenv("BACKUP_PASSWORD", password)
    found = CliRunner().invoke(
        _commands(), ["restore", "--point", "7", "--from", database.replace(password, "${BACKUP_PASSWORD}")]
    )
    assert "no restore point 7" in str(found.exception)
    assert password not in str(found.exception)


async def test_a_server_that_was_away_gets_the_next_point_and_an_empty_cluster_all_of_it(postgres, database):
    async with StubCluster(partitions=5) as one, StubCluster(partitions=7, seed=1) as two:
        client, other = await one.client(), await two.client()
        dead = await client.grid.map("dead-letters.x")
        await dead.put("a", 1)  # not JSON: it is passed over
        points = Points.write(database)
        backup = Backup(client.grid, points, every=1)
        await backup.open()
        await client.put_events("dead-letters.y", {"k": {"n": 1}})
        assert (await backup.look()).number == 1
        postgres.kill()
        await client.put_events("dead-letters.y", {"k": {"n": 2}})
        with pytest.raises(BackupError, match=r"cannot be reached|does not answer"):
            await backup.look()
        postgres.restart()

        async def is_back():
            try:
                return await backup.look()
            except BackupError:
                return None

        assert (await until(is_back)).number == 2
        points.close()
        found = Points.open(database)
        restore = Restore(other.grid, found, found.read())
        await restore.run(await restore.plan())
        found.close()
        letters = await other.grid.map("dead-letters.y")
        assert (await letters.get("k")).loads() == {"n": 2}


async def test_a_commit_of_unknown_fate_is_found_when_the_server_is_back(database, monkeypatch):
    async with StubCluster(partitions=5) as one:
        client, run = await one.client(), Database._rows
        points = Points.write(database)
        backup = Backup(client.grid, points)
        await client.put_events("dead-letters.y", {"k": {"n": 1}})
        await backup.look()

        def lost(self, statement, *values):
            found = run(self, statement, *values)
            if statement == "COMMIT":
                self.close()
                raise BackupError("the answer was lost")
            return found

        await client.put_events("dead-letters.y", {"k": {"n": 2}})
        with monkeypatch.context() as patch:
            patch.setattr(Database, "_rows", lost)
            with pytest.raises(BackupError, match="answer was lost"):
                await backup.look()
        await client.put_events("dead-letters.y", {"k": {"n": 3}})
        assert (await backup.look()).number == 3
        newest = points.entries(points.read(), "dead-letters.y")
        assert list(newest.values()) == [b'{"n":3}']
        points.close()


@pytest.mark.parametrize("damage", ["DROP TABLE gridscore_backup", "DELETE FROM gridscore_backup"])
async def test_a_table_that_was_emptied_while_nothing_changes_gets_a_whole_point(postgres, database, damage):
    async with StubCluster(partitions=5) as one:
        client = await one.client()
        points = Points.write(database)
        backup = Backup(client.grid, points, every=1)
        await client.put_events("dead-letters.y", {"k": {"n": 1}})
        for _ in range(2):
            await backup.look()
        assert backup.made == 1
        rows(postgres, database, damage)
        for _ in range(2):
            assert (await backup.look()).number == 1
        assert backup.made == 2
        assert [list(points.entries(points.read(), "dead-letters.y").values())] == [[b'{"n":1}']]
        points.close()
        points = Points.open(database)
        assert points.numbers() == [1]
        points.close()
