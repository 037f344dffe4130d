"""Events that cannot be decoded in a good stream, in virtual time: each has its dead letter or is counted, and once."""

import json
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from world import JOB, World, _entries, _text, score_of

from gridscore.dead_letters import writer as letter_writer
from gridscore.dead_letters.letters import walk_letters
from gridscore.features import EventDecoder
from gridscore.features.events import DecodeError
from gridscore.grid.writer import MapWriter
from gridscore.job import parse_job
from gridscore.operations.status import job_status
from gridscore.testing import Fault

PARTITIONS = 8
KEPT, FLOOD = 60, 12_000

pytestmark = pytest.mark.usefixtures("quiet")


class Stream(World):
    """A world whose events are bytes, which the ledger does not read."""

    def __init__(self, **options):
        super().__init__(PARTITIONS, **options)
        self.cluster.on_change = lambda *_: None

    def put_texts(self, texts):
        self.ask(MapWriter(self.grid, "events.sim").put(texts.items()))

    def status(self):
        async def look():
            return await job_status(self.grid, await self.client.jobs.get("sim"))

        return self.ask(look())

    def done(self, seconds=120.0):
        """Let time pass until all is committed."""
        until = self.time.now + seconds
        while self.status().lag:
            assert self.time.now < until, "it is blocked"
            self.advance(1.0)
        return self.status()


def test_what_has_a_dead_letter_and_is_read_again_is_not_counted_as_without(monkeypatch):
    monkeypatch.setattr(letter_writer, "COUNT_SECONDS", 60.0)
    with closing(Stream(ring=4_096, job=f"{JOB}max_dead_letters: {KEPT}\n")) as world:
        name = world.start()
        world.advance(10.0)
        # Given a partition whose rejected events have all the dead letters that there may be, but whose result before
        # them is not acknowledged
        silence = Fault("silence", applied=False, request="Map.PutAll", map="results.sim")
        world.cluster.faults.append(silence)
        good, *bad = world.keys_of(3, KEPT + 1)
        for texts in ({good: b'{"amount":1}'}, dict.fromkeys(bad, b'{"amount":}')):
            world.put_texts(texts)
            world.time.advance(0.05)
        # When it is read again after a flood of others
        for wave in range(12):
            world.put_texts({f"flood{wave}-{number}": b"{" for number in range(FLOOD // 12)})
            world.time.advance(0.05)
        world.cluster.cut(name)
        world.cluster.heal()
        found = world.done().totals
        assert not silence.times
        assert (found["dead_letters"], found["unkept"]) == (KEPT, FLOOD)


def test_a_member_that_does_not_answer_neither_fills_the_memory_nor_leaves_events_without_a_dead_letter(monkeypatch):
    monkeypatch.setattr(letter_writer, "MOST_UNDER_WAY", 4_000)
    with closing(Stream(ring=4_096)) as world:
        name = world.start()
        world.advance(10.0)
        letters = world.workers[name].worker.runners["sim"]._letters
        silence = Fault("silence", applied=False, request="Map.GetAll", map="dead-letters.sim", times=100_000)
        world.cluster.faults.append(silence)
        for wave in range(20):
            world.put_texts({f"bad{wave}-{number}": b"{" * 75 for number in range(100)})
            world.time.advance(0.05)
        assert 4_000 < letters._under_way < 20_000
        silence.times = 0
        world.cluster.cut(name)
        world.cluster.heal()
        found = world.done().totals
        assert (found["dead_letters"], found["unkept"], letters._under_way) == (2_000, 0, 0)


def texts():
    amounts = st.one_of(st.integers(0, 999), st.floats(0, 999))
    return st.lists(amounts.map(lambda amount: json.dumps({"amount": amount, "note": "é"}).encode()), min_size=40)


flips = st.lists(
    st.tuples(
        st.integers(0, 10_000), st.integers(0, 10_000), st.sampled_from(("flip", "cut", "twice")), st.integers(0, 7)
    ),
    max_size=40,
)


def changed(texts, flips):
    texts = list(texts)
    for row, place, way, bit in flips:
        text = bytearray(texts[row % len(texts)])
        if text:
            at = place % len(text)
            text[at : at + 1] = {"flip": bytes([text[at] ^ 1 << bit]), "cut": b"", "twice": text[at : at + 1] * 2}[way]
        texts[row % len(texts)] = bytes(text)
    return texts


def is_good(decoder, text):
    try:
        decoder.decode(text)
    except DecodeError:
        return False
    return True


def amount_of(text):
    return float(json.loads(text.decode(errors="replace"))["amount"])


@given(texts(), flips, st.sampled_from(("nothing", "a worker", "an answer", "a write")), st.integers(0, 39))
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
def test_each_event_has_a_result_or_a_dead_letter_whatever_its_bytes(texts, flips, lost, at):
    decoder = EventDecoder(parse_job(JOB, "the test's"))
    events = {f"e{number}": text for number, text in enumerate(changed(texts, flips))}
    with closing(Stream(ring=256)) as world:
        name = world.start()
        world.advance(10.0)
        some = list(events)
        world.put_texts({key: events[key] for key in some[:at]})
        if lost in ("an answer", "a write"):
            fault = Fault("timeout", applied=lost == "an answer", request="Map.PutAll", map="dead-letters.*")
            world.cluster.faults.append(fault)
        world.put_texts({key: events[key] for key in some[at:]})
        if lost == "a worker":
            world.kill(name)
            world.start()
        totals = world.done().totals
        results = {_text(key): json.loads(_text(value)) for key, value in _entries(world.cluster, "results.sim")}

        async def letters():
            return [each async for _, each in walk_letters(world.grid, "sim")]

        dead = {each.key: each.raw_bytes for each in world.ask(letters())}
        good = {key for key, text in events.items() if is_good(decoder, text)}
        assert results.keys() == good
        assert dead == {key: text for key, text in events.items() if key not in good}
        assert (totals["unkept"], totals["lost"]) == (0, 0)
        assert all(results[key]["score"] == pytest.approx(score_of(amount_of(events[key]))) for key in good)
