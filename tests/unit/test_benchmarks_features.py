"""The hand-written features of the benchmark's peers are those of the pipeline, bit by bit."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from benchmarks import features
from benchmarks.work import WORKS
from gridscore.proving.bench.throughput import matrix_of

EVENTS = 2_000


@pytest.fixture(scope="module", params=["card", "wide", "fat"])
def work(request):
    return replace(WORKS[request.param], trees=20)


@pytest.fixture(scope="module")
def peer(work, tmp_path_factory):
    folder = tmp_path_factory.mktemp(work.name)
    work.save(folder)
    return features.Work(folder)


def test_scores_are_those_of_the_pipeline(work, peer):
    # Given
    texts = [text for _, text in work.events(EVENTS)]
    expected = matrix_of(work.job, texts)

    # When
    matrix, scores = peer.matrix(texts), peer.scores(texts)

    # Then
    assert matrix.dtype == scores.dtype == np.float32
    assert matrix.tobytes() == expected.tobytes()
    assert scores.tobytes() == work.booster().inplace_predict(expected, validate_features=False).tobytes()


def test_an_event_alone_scores_as_in_a_batch(work, peer):
    texts = [text for _, text in work.events(100)]

    alone = np.concatenate([peer.scores([text]) for text in texts])

    assert alone.tobytes() == peer.scores(texts).tobytes()


def test_results_carry_score_and_version(work, peer):
    texts = [text for _, text in work.events(3)]

    results = [msgspec.json.decode(text) for text in peer.results(texts)]

    assert [result["score"] for result in results] == peer.scores(texts).tolist()
    assert {(result["version"], result["model"]) for result in results} == {(1, "bench-card")}


def test_unknown_keys_have_no_lookups(work, peer):
    # Given
    text = b'{"id": 1, "amount": 12.5, "user": "nobody", "merchant": "nothing", "ts": 1700000000000}'

    # When
    row = peer.matrix([text])

    # Then
    assert row.tobytes() == matrix_of(work.job, [text]).tobytes()
    assert np.isnan(row[0, 4:12]).all()
