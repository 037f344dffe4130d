"""What a line of a log file becomes, format by format."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gridscore.sources.logfile.formats import access_time, format_of, seconds_of_time
from gridscore.sources.logfile.settings import LogfileSourceSettings


def parse(raw, header=b"", **settings):
    made = LogfileSourceSettings(to="events.x", path=["x.log"], **settings)
    return json.loads(format_of(made)(header).parse(raw).text)


def test_a_json_line_stays_as_it_is():
    made = LogfileSourceSettings(to="events.x", path=["x.log"])
    raw = b'{"b": 1.50, "a": "\xc3\xa4"}'
    assert format_of(made)(b"").parse(raw).text is raw


@pytest.mark.parametrize("raw", [b"[1]", b"3", b'{"a":', b"words", b'{"a":"\xff"}', b'{"a":NaN}'])
def test_what_is_no_json_object_is_refused(raw):
    with pytest.raises(ValueError):
        parse(raw)


def test_a_line_of_an_access_log_has_types():
    line = (
        b'203.0.113.9 - frank [10/Oct/2025:13:55:36 -0700] "GET /a?b=\\"c HTTP/1.1" 200 2326 '
        b'"http://example.com/" "Mozilla/5.0 (\\x58)" "more" 0.004'
    )
    assert parse(line, format="combined") == {
        "remote_host": "203.0.113.9",
        "remote_logname": None,
        "remote_user": "frank",
        "time": "2025-10-10T13:55:36-07:00",
        "request": 'GET /a?b="c HTTP/1.1',
        "method": "GET",
        "path": '/a?b="c',
        "protocol": "HTTP/1.1",
        "status": 200,
        "bytes": 2326,
        "referer": "http://example.com/",
        "user_agent": "Mozilla/5.0 (X)",
    }


def test_an_access_log_may_lack_what_a_request_lacks():
    found = parse(b'::1 - - [01/Jan/2026:00:00:00 +0000] "\\x16\\x03" 400 -', format="combined")
    assert (found["method"], found["bytes"], found["referer"], found["status"]) == (None, None, None, 400)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"nonsense",
        b'::1 - - [32/Jan/2026:00:00:00 +0000] "GET / HTTP/1.1" 200 1 "-" "-"',
        b'::1 - - [01/Foo/2026:00:00:00 +0000] "GET / HTTP/1.1" 200 1 "-" "-"',
    ],
)
def test_what_is_no_access_log_is_refused(line):
    with pytest.raises(ValueError):
        parse(line, format="combined")


def test_access_times_are_rfc_3339():
    assert access_time("29/Feb/2024:23:59:59 +0530") == "2024-02-29T23:59:59+05:30"


def test_csv_has_quotes_types_and_nulls():
    types = {"n": "int", "x": "float", "ok": "bool"}
    found = parse(b'7,,yes,"a ""b"",\r\nc"', b"n,x,ok,text", format="csv", types=types)
    assert found == {"n": 7, "x": None, "ok": True, "text": 'a "b",\r\nc'}
    assert parse(b',NA,,""', b"n,x,ok,text", format="csv", types=types) == dict.fromkeys(["n", "x", "ok", "text"])


@pytest.mark.parametrize("raw", [b"1", b"1,2,3", b"x,1", b"1_0,1", b"1,maybe", b'1,"open', b"1,\xff"])
def test_what_is_no_csv_record_is_refused(raw):
    with pytest.raises(ValueError):
        parse(raw, b"n,x", format="csv", types={"n": "int", "x": "float"})


def test_a_header_must_name_all_columns_once():
    for header in (b"a,a", b"a,"):
        with pytest.raises(ValueError, match="header"):
            parse(b"1,2", header, format="csv")


def test_an_expression_matches_the_whole_line():
    settings = {"format": "regex", "pattern": r"(?P<user>\w+) (?P<ms>\d+)ms(?: (?P<more>.*))?", "types": {"ms": "int"}}
    assert parse(b"ann 12ms", **settings) == {"user": "ann", "ms": 12, "more": None}
    with pytest.raises(ValueError, match="does not match"):
        parse(b" ann 12ms", **settings)


@pytest.mark.parametrize(
    "wrong",
    [
        {"format": "regex"},
        {"format": "regex", "pattern": "(unnamed)"},
        {"format": "regex", "pattern": "(?P<a>"},
        {"pattern": "(?P<a>.)"},
        {"types": {"a": "int"}},
        {"columns": ["a"]},
        {"format": "csv", "columns": ["a", "a"]},
        {"replay_speed": "0"},
        {"replay_speed": "2"},
        {"replay_speed": "fast"},
        {"path": []},
    ],
)
def test_settings_that_contradict_themselves_are_refused(wrong):
    with pytest.raises(ValidationError):
        LogfileSourceSettings(**{"to": "events.x", "path": ["x.log"], **wrong})


@given(st.one_of(st.binary(), st.text().map(str.encode)), st.sampled_from(["json", "combined", "csv"]))
def test_whatever_stands_in_a_file_is_an_event_or_refused(raw, form):
    try:
        found = parse(raw, b"a,b", format=form)
    except ValueError:
        return
    assert isinstance(found, dict)


def test_times_are_read_as_they_are_written():
    assert seconds_of_time("2025-01-01T00:00:00Z") == seconds_of_time(1735689600) == seconds_of_time(1735689600000)
    assert seconds_of_time("soon") is seconds_of_time(None) is seconds_of_time(True) is None
