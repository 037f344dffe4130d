"""The record of a model: what people note of versions, the log, and the bounds of both."""

import msgspec
import pytest

from gridscore.errors import ModelError
from gridscore.models import record as record_room
from gridscore.models.record import About, Entry, ModelRecord

CONTENT = "0" * 64


def entry(number=0):
    return Entry(at=f"t{number}", by="ana@host", action="promote", version=1, alias="champion")


def with_versions(count):
    record = ModelRecord()
    for number in range(count):
        record = record.begun(f"u{number}", 0.0).committed("m", f"u{number}", CONTENT)
    return record


def written(record):
    """As it comes back from the grid."""
    return ModelRecord.read(msgspec.json.decode(msgspec.json.encode(record.write())), "m")


def test_notes_are_set_replaced_and_removed_and_go_with_their_version():
    record = with_versions(2).described("m", 1, "first", {"owner": "ana", "ticket": "F-1"})
    record = record.described("m", 1, None, {"ticket": "F-2"}, ["owner"]).described("m", 0, "all", {})
    assert written(record).about == {0: About("all"), 1: About("first", {"ticket": "F-2"})}
    assert record.described("m", 1, "", {}, ["ticket"]).about == {0: About("all")}
    assert record.deleted("m", 1).about == {0: About("all")}
    with pytest.raises(ModelError, match=r"no tag `gone` of version 1 .*\nIts tags: ticket\."):
        record.described("m", 1, None, {}, ["gone"])
    with pytest.raises(ModelError, match="no version 3"):
        record.described("m", 3, "x", {})


@pytest.mark.parametrize(
    ("description", "tags"),
    [
        ("x" * 2_001, {}),
        (None, {"": "x"}),
        (None, {"x" * 101: "x"}),
        (None, {"x": "y" * 501}),
        (None, dict.fromkeys(map(str, range(51)), "")),
    ],
)
def test_notes_are_bounded(description, tags):
    with pytest.raises(ModelError, match="cannot be noted of version 1"):
        with_versions(1).described("m", 1, description, tags)


def test_the_notes_of_all_versions_together_are_bounded(monkeypatch):
    monkeypatch.setattr(record_room, "MAX_ABOUT", 100)
    record = with_versions(2).described("m", 1, "x" * 60, {})
    with pytest.raises(ModelError, match="Remove those of old versions"):
        record.described("m", 2, "x" * 60, {})


def test_the_log_keeps_the_latest_entries_of_what_has_changed(monkeypatch):
    monkeypatch.setattr(record_room, "MAX_LOG", 3)
    record = with_versions(1)
    assert record.logged(record, entry()).log == ()
    for number in range(5):
        record = record.logged(None, entry(number))
    assert [each.at for each in written(record).log] == ["t2", "t3", "t4"]
    assert len(written(record.emptied()).log) == 3


def test_an_alias_that_is_removed_leaves_its_place_to_others(monkeypatch):
    monkeypatch.setattr(record_room, "MAX_ALIASES", 2)
    record = with_versions(1).promoted("m", 1, "a", "t").promoted("m", 1, "b", "t")
    with pytest.raises(ModelError, match="which is the limit"):
        record.promoted("m", 1, "c", "t")
    record = record.without_alias("m", "a").promoted("m", 1, "c", "t")
    assert (record.aliases, set(record.history)) == ({"b": 1, "c": 1}, {"b", "c"})
    with pytest.raises(ModelError, match="has no alias `a`"):
        record.without_alias("m", "a")


def test_a_record_of_an_earlier_release_is_read():
    old = {"revision": 3, "last": 1, "versions": {"1": {"upload": "u", "content": CONTENT}}}
    assert ModelRecord.read(old, "m").log == ()
