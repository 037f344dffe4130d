"""The source of log files, on real files: what comes, under which key, and that nothing comes twice."""

import asyncio
import errno
import gzip
import json
import os
import shutil
from contextlib import aclosing, asynccontextmanager

import pytest

from gridscore.dead_letters.letters import POSITIONS_MAP
from gridscore.errors import UsageError
from gridscore.sources.base import SourceInterruptedError
from gridscore.sources.logfile import source as logfile
from gridscore.sources.logfile.settings import LogfileSourceSettings
from gridscore.sources.logfile.source import LogfileSource
from gridscore.sources.logfile.tail import Tail
from gridscore.sources.position import PositionTakenError
from gridscore.testing import StubCluster

SECONDS = 20


@pytest.fixture
async def grid():
    async with StubCluster() as cluster:
        yield (await cluster.client()).grid


@pytest.fixture
def log(tmp_path):
    return tmp_path / "app.log"


@pytest.fixture
def settings(tmp_path):
    def make(**more):
        more.setdefault("path", [str(tmp_path / "app.log*")])
        more.setdefault("until_end", True)
        return LogfileSourceSettings(to="events.x", **more)

    return make


@asynccontextmanager
async def opened(grid, settings):
    source = LogfileSource(grid, "s", settings)
    try:
        await source.open()
        yield source
    finally:
        await source.close()


async def drain(grid, settings, *, acknowledge=True):
    """Events and poison up to the end of all files."""
    entries, poison = [], []
    async with opened(grid, settings) as source, asyncio.timeout(SECONDS):
        async for batch in source.batches():
            entries += batch.entries
            poison += batch.poison
            if acknowledge:
                await source.acknowledge(batch)
    return entries, poison


class Following:
    """A source that goes on in the background."""

    def __init__(self, source):
        self.source = source
        self.entries, self.poison = [], []

    async def run(self):
        async with aclosing(self.source.batches()) as batches:
            async for batch in batches:
                self.entries += batch.entries
                self.poison += batch.poison
                await self.source.acknowledge(batch)

    async def until(self, *found):
        async with asyncio.timeout(SECONDS):
            while numbers(self.entries) != list(found):
                await asyncio.sleep(0.005)


@asynccontextmanager
async def following(grid, settings):
    async with opened(grid, settings) as source:
        made = Following(source)
        task = asyncio.create_task(made.run())
        yield made
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert len(dict(made.entries)) == len(made.entries)


def lines(*found):
    return "".join(f'{{"n":{n}}}\n' for n in found)


def append(path, text):
    with path.open("a", encoding="utf-8", newline="") as file:
        file.write(text)


def numbers(entries):
    return [json.loads(text)["n"] for _, text in entries]


async def test_a_second_start_goes_on_where_the_first_has_ended(grid, settings, log):
    append(log, lines(1, 2))
    first, _ = await drain(grid, settings())
    append(log, lines(3))
    second, _ = await drain(grid, settings())
    third, _ = await drain(grid, settings())
    assert (numbers(first), numbers(second), third) == ([1, 2], [3], [])
    assert not dict(first).keys() & dict(second).keys()


async def test_what_is_not_acknowledged_comes_again_under_the_same_keys(grid, settings, log):
    append(log, lines(1, 2))
    first, _ = await drain(grid, settings(), acknowledge=False)
    append(log, lines(3))
    second, _ = await drain(grid, settings())
    assert second[:2] == first


async def test_bad_lines_are_dead_letters_with_file_and_line(grid, settings, log):
    log.write_bytes(b'{"n":1}\r\nbroken\n\n{"n":"\xff"}\n' + b'{"n":"' + b"x" * 200 + b'"}\n{"n":2}\n')
    entries, poison = await drain(grid, settings(max_event=100))
    assert numbers(entries) == [1, 2]
    assert [each.origin.partition(" ")[0] for each in poison] == [f"{log}:{line}" for line in (2, 4, 5)]
    assert "100 bytes" in poison[2].error
    assert len({each.key for each in poison}) == 3


async def test_a_line_that_never_ends_does_not_fill_the_memory(grid, settings, log, monkeypatch):
    monkeypatch.setattr(logfile, "CHUNK", 64)
    log.write_bytes(b"x" * 10_000 + b"\n" + lines(1).encode())
    entries, poison = await drain(grid, settings(max_event=100))
    assert numbers(entries) == [1]
    assert len(poison) == 1
    assert len(poison[0].raw) < 300


async def test_chunks_do_not_matter(grid, settings, log, monkeypatch):
    append(log, lines(*range(500)))
    monkeypatch.setattr(logfile, "CHUNK", 7)
    assert numbers((await drain(grid, settings()))[0]) == list(range(500))


async def test_keys_may_come_from_fields(grid, settings, log):
    append(log, '{"n":1,"a":"x"}\n{"n":2}\n{"n":true,"a":"y"}\n')
    entries, poison = await drain(grid, settings(key=["a", "n"]))
    assert [key for key, _ in entries] == ["x|1"]
    assert ["`a`" in poison[0].error, "`n`" in poison[1].error] == [True, True]


async def test_a_renamed_file_is_followed_and_the_new_one_read(grid, settings, log):
    append(log, lines(1))
    async with following(grid, settings(until_end=False)) as found:
        await found.until(1)
        log.rename(log.with_name("app.log.1"))
        append(log.with_name("app.log.1"), lines(2))
        await found.until(1, 2)
        append(log, lines(3))
        await found.until(1, 2, 3)


async def test_a_file_that_is_renamed_out_of_sight_is_read_to_its_end(grid, settings, log):
    append(log, lines(1))
    only = settings(until_end=False, path=[str(log)])
    async with following(grid, only) as found:
        await found.until(1)
        log.rename(log.with_name("old"))
        append(log.with_name("old"), lines(2))
        append(log, lines(3))
        async with asyncio.timeout(SECONDS):
            while sorted(numbers(found.entries)) != [1, 2, 3]:
                await asyncio.sleep(0.005)


async def test_a_file_that_was_renamed_out_of_sight_while_nobody_looked_is_read_to_its_end(grid, settings, log):
    only = settings(path=[str(log)])
    append(log, lines(1))
    await drain(grid, only)
    append(log, lines(2))
    log.rename(log.with_name("old"))
    append(log, lines(3))
    assert sorted(numbers((await drain(grid, only))[0])) == [2, 3]


async def test_a_truncated_file_starts_over_under_new_keys(grid, settings, log):
    append(log, lines(1, 2, 3))
    async with following(grid, settings(until_end=False)) as found:
        await found.until(1, 2, 3)
        os.truncate(log, 0)
        append(log, lines(1))
        await found.until(1, 2, 3, 1)


async def test_a_copy_before_the_truncation_brings_nothing_twice_and_loses_nothing(grid, settings, log):
    append(log, lines(1, 2))
    await drain(grid, settings())
    append(log, lines(3))
    shutil.copy(log, log.with_name("app.log.1"))
    os.truncate(log, 0)
    append(log, lines(1))
    entries, _ = await drain(grid, settings())
    assert sorted(numbers(entries)) == [1, 3]
    assert (await drain(grid, settings()))[0] == []


async def test_a_copy_beside_its_original_is_left_alone(grid, settings, log):
    append(log, lines(1, 2))
    async with following(grid, settings(until_end=False)) as found:
        await found.until(1, 2)
        shutil.copy(log, log.with_name("app.log.1"))
        append(log, lines(3))
        await found.until(1, 2, 3)


async def test_files_with_the_same_beginning_are_different_files(grid, settings, tmp_path):
    csv = settings(path=[str(tmp_path / "*.csv")], format="csv", types={"n": "int"})
    (tmp_path / "a.csv").write_text("n\n")
    await drain(grid, csv)
    (tmp_path / "a.csv").write_text("n\n1\n")
    (tmp_path / "b.csv").write_text("n\n2\n")
    entries, _ = await drain(grid, csv)
    assert sorted(numbers(entries)) == [1, 2]
    assert len(dict(entries)) == 2


async def test_a_truncated_file_with_the_same_header_gets_other_keys(grid, settings, tmp_path):
    csv = settings(path=[str(tmp_path / "a.csv*")], format="csv", types={"n": "int"})
    path = tmp_path / "a.csv"
    path.write_text("n\n1\n2\n")
    first, _ = await drain(grid, csv)
    shutil.copy(path, tmp_path / "a.csv.1")
    path.write_text("n\n3\n")
    second, _ = await drain(grid, csv)
    assert numbers(second) == [3]
    assert not dict(first).keys() & dict(second).keys()


@pytest.mark.parametrize("size", [3, 300])
async def test_a_packed_file_is_recognized(grid, settings, log, size):
    append(log, lines(*range(size)))
    await drain(grid, settings())
    append(log, lines(size))  # written before it is rotated, and not read yet
    packed = log.with_name("app.log.1.gz")
    packed.write_bytes(gzip.compress(log.read_bytes()))
    log.unlink()
    append(log, lines(size + 1))
    entries, _ = await drain(grid, settings())
    assert sorted(numbers(entries)) == [size, size + 1]
    assert (await drain(grid, settings()))[0] == []


@pytest.mark.parametrize("size", [3, 300])
async def test_a_file_that_is_packed_while_it_is_followed_comes_once(grid, settings, log, size):
    before = list(range(size))
    append(log, lines(*before))
    async with following(grid, settings(until_end=False)) as found:
        await found.until(*before)
        packed = log.with_name("app.log.1.gz")
        packed.write_bytes(gzip.compress(log.read_bytes()))
        log.unlink()
        for more in range(size, size + 3):  # all files are looked at between two of them
            append(log, lines(more))
            await found.until(*before, *range(size, more + 1))


async def test_a_packed_file_that_nobody_has_read_is_read_once(grid, settings, log):
    packed = log.with_name("app.log.7.gz")
    packed.write_bytes(gzip.compress(lines(1, 2).encode()))
    assert numbers((await drain(grid, settings()))[0]) == [1, 2]
    assert (await drain(grid, settings()))[0] == []


async def test_a_packed_file_is_read_when_it_is_whole(grid, settings, log):
    packed = log.with_name("app.log.1.gz")
    content = gzip.compress(lines(*range(10_000)).encode())
    packed.write_bytes(content[: len(content) // 2])
    async with following(grid, settings(until_end=False)) as found:
        packed.write_bytes(content)
        await found.until(*range(10_000))


async def test_a_broken_packed_file_is_a_dead_letter(grid, settings, log):
    packed = log.with_name("app.log.1.gz")
    packed.write_bytes(gzip.compress(lines(1).encode())[:-4] + b"abcd")
    entries, poison = await drain(grid, settings())
    assert len(poison) == 1
    assert "unpacked" in poison[0].error
    assert len(entries) <= 1


async def test_half_a_line_waits_for_its_end(grid, settings, log):
    append(log, '{"n"')
    async with following(grid, settings(until_end=False)) as found:
        append(log, ":1}\n{")
        await found.until(1)
        append(log, '"n":2}\n')
        await found.until(1, 2)
    assert not found.poison


async def test_half_a_line_is_taken_at_the_end_and_only_there(grid, settings, log):
    append(log, lines(1) + '{"n":2}')
    assert numbers((await drain(grid, settings()))[0]) == [1, 2]
    append(log, "\n" + lines(3))
    assert numbers((await drain(grid, settings()))[0]) == [3]


async def test_new_files_are_found(grid, settings, tmp_path):
    (tmp_path / "a").mkdir()
    append(tmp_path / "a" / "1.log", lines(1))
    async with following(grid, settings(until_end=False, path=[str(tmp_path / "**" / "*.log")])) as found:
        await found.until(1)
        (tmp_path / "b").mkdir()
        append(tmp_path / "b" / "2.log", lines(2))
        await found.until(1, 2)


async def test_latest_is_the_end_of_files_that_are_there_and_not_of_new_ones(grid, settings, log):
    latest = settings(start="latest")
    append(log, lines(1))
    assert (await drain(grid, latest))[0] == []
    append(log, lines(2))
    append(log.with_name("app.log.x"), lines(3))
    assert sorted(numbers((await drain(grid, latest))[0])) == [2, 3]


async def test_a_csv_record_may_have_lines_and_a_stray_quote_harms_only_its_own(grid, settings, log, monkeypatch):
    text = 'n,text\r\n1,"a\r\nb"\r\n2,ok"ok\r\n3,"open\r\n4,x\r\n5,"y\n\nz"\n'
    for chunk in (5, 1 << 18):
        monkeypatch.setattr(logfile, "CHUNK", chunk)
        path = log.with_name(f"{chunk}.csv")
        path.write_text(text.replace("ok", f"ok{chunk}"), newline="")  # the same content would be taken for a copy
        csv = settings(path=[str(path)], format="csv", types={"n": "int"})
        entries, poison = await drain(grid, csv)
        # The open quote takes what follows up to the next quote, as nobody can know better, and is refused with it.
        assert numbers(entries)[:2] == [1, 2]
        assert json.loads(entries[0][1])["text"] == "a\r\nb"
        assert poison


async def test_a_file_without_a_header_is_a_dead_letter(grid, settings, tmp_path):
    (tmp_path / "a.csv").write_text("n,n\n1,2\n")
    entries, poison = await drain(grid, settings(path=[str(tmp_path / "a.csv")], format="csv"))
    assert not entries
    assert "column twice" in poison[0].error


async def test_nothing_to_read_is_an_error_if_it_must_end(grid, settings):
    with pytest.raises(UsageError, match="nothing to read"):
        await drain(grid, settings())


async def test_a_file_that_comes_later_is_read(grid, settings, log):
    async with following(grid, settings(until_end=False)) as found:
        append(log, lines(1))
        await found.until(1)


async def test_two_processes_do_not_follow_the_same_file(grid, settings, log):
    append(log, lines(1))
    async with opened(grid, settings()) as one, opened(grid, settings()) as other:
        async with aclosing(one.batches()) as batches:
            await one.acknowledge(await anext(batches))
        async with aclosing(other.batches()) as batches:
            batch = await anext(batches)
            with pytest.raises(PositionTakenError):
                await other.acknowledge(batch)


async def test_a_position_that_the_cluster_has_lost_is_written_again(log, settings, caplog):
    append(log, lines(1))
    async with StubCluster() as cluster:
        grid = (await cluster.client()).grid
        async with opened(grid, settings(until_end=False)) as source, aclosing(source.batches()) as batches:
            await source.acknowledge(await anext(batches))
            for partition in range(cluster.partitions):
                cluster.regress(POSITIONS_MAP, partition)
            append(log, lines(1, 2))
            await source.acknowledge(await anext(batches))
        assert "has lost the position" in caplog.text
        # It is there again, and of this process.
        entries, _ = await drain(grid, settings())
        assert not entries


async def test_a_disk_that_fails_is_waited_for(grid, settings, log, monkeypatch):
    append(log, lines(1))

    def failing(*_arguments, **_options):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    async with opened(grid, settings()) as source, aclosing(source.batches()) as batches:
        monkeypatch.setattr(Tail, "read", failing)
        with pytest.raises(SourceInterruptedError, match="cannot be read"):
            await anext(batches)


async def test_a_replay_waits_as_long_as_it_was(grid, settings, log):
    times = ["2025-01-01T00:00:00Z", "2025-01-01T00:00:10Z", "2025-01-01T00:00:05Z", "2025-01-01T00:00:20Z"]
    append(log, "".join(json.dumps({"n": n, "t": time}) + "\n" for n, time in enumerate(times)))
    loop = asyncio.get_running_loop()
    at = []
    async with opened(grid, settings(replay_speed="100", time_field="t")) as source:
        async for batch in source.batches():
            at += [(each, loop.time()) for each in numbers(batch.entries)]
    assert [each for each, _ in at] == [0, 1, 2, 3]
    begin = at[0][1]
    assert [second - begin >= least for (_, second), least in zip(at, (0, 0.099, 0.099, 0.199), strict=True)] == [
        True
    ] * 4


async def test_progress_is_in_bytes(grid, settings, log):
    append(log, lines(1, 2))
    async with opened(grid, settings()) as source:
        assert source.progress == (0, log.stat().st_size)
        async for batch in source.batches():
            await source.acknowledge(batch)
        assert source.progress == (log.stat().st_size, log.stat().st_size)


async def test_packed_files_count_with_their_bytes_on_the_disk(grid, settings, log):
    append(log, lines(1, 2))
    packed = log.with_name("app.log.1.gz")
    packed.write_bytes(gzip.compress(lines(3, 4).encode()))
    total = log.stat().st_size + packed.stat().st_size
    async with opened(grid, settings()) as source:
        assert source.progress[1] == total
        async for batch in source.batches():
            await source.acknowledge(batch)
        assert source.progress == (total, total)
    async with opened(grid, settings(until_end=False)) as source:
        assert source.progress is None
