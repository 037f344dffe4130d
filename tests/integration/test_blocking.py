"""The Python door of scripts and notebooks, on a real member: plain calls, DataFrames in and out."""

import asyncio
import signal
import sys
import threading

import numpy as np
import pandas as pd
import pytest
import scoring

from gridscore import connect
from gridscore.errors import ConnectionFailedError, TableError, UsageError


def history(count):
    """Events as a notebook has them: numpy's numbers, a missing text, an id that pandas made a float of."""
    frame = pd.DataFrame.from_dict(scoring.events(count), orient="index")
    return frame.assign(order=[None, *range(1, count)], id=frame.index).reset_index(drop=True)


@pytest.fixture
def client(cluster):
    with connect(members=cluster.addresses, cluster_name=cluster.cluster_name) as client:
        yield client


def test_a_script_goes_from_tables_to_scores(client, unique):
    name, model = f"blocking-{unique}", scoring.booster()
    people = pd.DataFrame.from_dict(scoring.customers(), orient="index").reset_index(names="user")
    assert client.put_events(f"lookups.{name}", people, key="user") == len(people)
    client.push_model(model, name, alias="champion")
    client.submit(scoring.job(name))
    # As the job has it, the key of its lookup is known.
    assert client.put_events(f"lookups.{name}", people) == len(people)
    frame = history(200)
    with client.worker([name]), client.results(f"results.{name}") as stream:
        scores = client.score_frame(f"events.{name}", frame[:100], key="id", timeout=60)
        assert client.put_events(f"events.{name}", frame[100:].set_index("id")) == 100
        seen = {}
        while len(seen) < 200:
            result = next(stream)
            seen[result.key] = result.score
        table = stream.to_frame()
        with pytest.raises(UsageError, match="holds more than 10 results"):
            stream.to_frame(limit=10)
        assert client.result(f"results.{name}", "e7") == table.loc["e7"].to_dict()
        frauds = client.results(f"results.{name}", where={"country": "DE"})
        assert set(frauds.to_frame()["country"]) == {"DE"}
        frauds.close()
        one = client.score(f"events.{name}", "again", scoring.events(1)["e0"], timeout=60)

    rows = scoring.expected_rows(scoring.events(200).values())
    expected = dict(zip(frame["id"], map(np.float32, scoring.predict(model, rows)), strict=True))
    assert {key: np.float32(score) for key, score in seen.items()} == expected
    assert table["score"].astype(np.float32).to_dict() == expected
    assert scores["score"].astype(np.float32).to_dict() == {key: expected[key] for key in frame["id"][:100]}
    assert list(scores.index) == list(frame["id"][:100])
    assert np.float32(one.score) == expected["e0"]
    assert [record.name for record in client.jobs.all()].count(name) == 1
    assert client.models.get(name).versions[0].version == 1
    assert client.cancel(name) is not None


def test_rows_that_cannot_be_scored_say_why(client, unique):
    name = f"blocking-{unique}"
    client.put_events(f"lookups.{name}", scoring.customers())
    client.push_model(scoring.booster(), name, alias="champion")
    client.submit(scoring.job(name))
    frame = history(3).assign(amount=[1.0, None, 2.0])
    with client.worker([name]):
        scores = client.score_frame(f"events.{name}", frame, key="id", timeout=60)
    assert scores["score"].notna().tolist() == [True, False, True]
    assert "amount" in scores.loc["e1", "error"]
    with pytest.raises(UsageError, match="1 rows have the key"):
        client.score_frame(f"events.{name}", frame.assign(id=["a", "a", "b"]), key="id")
    client.cancel(name)


def test_tables_without_a_key_or_a_time_zone_are_refused(client, unique):
    frame = history(3)
    with pytest.raises(UsageError, match="index only counts"):
        client.put_events(f"events.{unique}", frame)
    with pytest.raises(TableError, match="no column `user_id`"):
        client.put_events(f"events.{unique}", frame, key="user_id")
    with pytest.raises(TableError, match="without a time zone"):
        client.put_events(f"events.{unique}", frame.assign(at=pd.Timestamp("2024-01-01")), key="id")
    with pytest.raises(UsageError, match="have their keys already"):
        client.put_events(f"events.{unique}", {"a": {}}, key="id")


def test_cells_become_what_a_producer_would_write(client, unique):
    times = pd.to_datetime(["2024-01-01T00:00:00.1234567Z", None])
    frame = pd.DataFrame(
        {
            "key": ["a", "b"],
            "whole": [1, None],
            "share": [0.1, None],
            "flag": [True, False],
            "at": times,
            "items": [[1, 2], None],
            "number": np.array([1, 2], dtype=np.int8),
        }
    )
    client.put_events(f"lookups.{unique}", frame, key="key")
    assert client.result(f"lookups.{unique}", "a") == {
        "key": "a",
        "whole": 1,
        "share": 0.1,
        "flag": True,
        "at": "2024-01-01T00:00:00.123457Z",
        "items": [1, 2],
        "number": 1,
    }
    assert client.result(f"lookups.{unique}", "b") == {
        **dict.fromkeys(["whole", "share", "at", "items"]),
        "key": "b",
        "flag": False,
        "number": 2,
    }


async def test_it_works_inside_a_running_loop_and_ends_with_its_connection(cluster, unique):
    connection = connect(members=cluster.addresses, cluster_name=cluster.cluster_name)
    client, other = connection.open(), connection.open()
    client.put_events(f"lookups.{unique}", {"a": {"x": 1}})
    assert client.result(f"lookups.{unique}", "a") == {"x": 1}
    client.close()
    client.close()
    assert other.result(f"lookups.{unique}", "a") == {"x": 1}
    other.close()
    with pytest.raises(UsageError, match="connection is closed"):
        client.result(f"lookups.{unique}", "a")
    assert not [thread for thread in threading.enumerate() if thread.name == "gridscore"]


def test_ctrl_c_ends_a_call_and_the_connection_goes_on(client, unique):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main, ended = threading.get_ident(), threading.Event()
        client.put_events(f"lookups.{unique}", {"a": {"x": 1}})

        async def waits_for_ever():
            try:
                while sys._current_frames()[main].f_code.co_name != "wait":
                    await asyncio.sleep(0.01)
                signal.pthread_kill(main, signal.SIGINT)
                await asyncio.Event().wait()
            finally:
                ended.set()

        with pytest.raises(KeyboardInterrupt):
            client._thread.run(waits_for_ever())
        assert ended.wait(30)
        assert client.result(f"lookups.{unique}", "a") == {"x": 1}
    finally:
        signal.signal(signal.SIGINT, before)


def test_who_is_not_there_is_said_and_no_thread_is_left():
    with pytest.raises(ConnectionFailedError), connect(members=["127.0.0.1:1"], connect_timeout=1):
        pass
    assert not [thread for thread in threading.enumerate() if thread.name == "gridscore"]
