"""Metrics against scikit-learn's, their intervals, and how far scores have moved."""

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from gridscore.errors import ModelError
from gridscore.models.metrics import intervals, measure, psi


@pytest.fixture(scope="module")
def scored():
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 2, 400).astype(np.float64)
    scores = np.clip(labels * 0.3 + generator.random(400) * 0.7, 0.01, 0.99).round(2).astype(np.float32)
    return labels, scores


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("auc", lambda y, s, w: sklearn_metrics.roc_auc_score(y, s, sample_weight=w)),
        ("log_loss", lambda y, s, w: sklearn_metrics.log_loss(y, s.astype(np.float64), sample_weight=w)),
        ("brier", lambda y, s, w: sklearn_metrics.brier_score_loss(y, s, sample_weight=w)),
        ("accuracy", lambda y, s, w: sklearn_metrics.accuracy_score(y, s >= 0.5, sample_weight=w)),
        ("rmse", lambda y, s, w: sklearn_metrics.root_mean_squared_error(y, s, sample_weight=w)),
        ("mae", lambda y, s, w: sklearn_metrics.mean_absolute_error(y, s, sample_weight=w)),
    ],
)
def test_a_metric_is_that_of_scikit_learn(scored, name, theirs):
    labels, scores = scored
    weights = np.random.default_rng(2).integers(0, 4, 400).astype(np.float64)
    ours = measure(name, labels, scores)
    assert ours(None) == pytest.approx(theirs(labels, scores, None), rel=1e-6)
    assert ours(weights) == pytest.approx(theirs(labels, scores, weights), rel=1e-6)


def test_several_classes_have_accuracy_and_log_loss():
    generator = np.random.default_rng(1)
    scores = generator.dirichlet([1, 1, 1], 200).astype(np.float32)
    labels = generator.integers(0, 3, 200).astype(np.float64)
    assert measure("accuracy", labels, scores)(None) == (scores.argmax(axis=1) == labels).mean()
    expected = sklearn_metrics.log_loss(labels, scores / scores.sum(axis=1, keepdims=True))
    assert measure("log_loss", labels, scores)(None) == pytest.approx(expected, rel=1e-5)
    chosen = np.array([0, 2, 1, 2], np.float32)  # as of `multi:softmax`
    assert measure("accuracy", np.array([0.0, 1, 1, 0]), chosen)(None) == 0.5


@pytest.mark.parametrize(
    ("name", "labels", "scores", "says"),
    [
        ("auc", [1, 1], [0.1, 0.2], "labels that are 0 and 1, and both"),
        ("auc", [0, 1], [[0.1, 0.9], [0.2, 0.8]], "gives several"),
        ("rmse", [0, 1], [[0.1, 0.9], [0.2, 0.8]], "gives several"),
        ("log_loss", [0, 1], [0.1, 3.0], "probabilities"),
        ("brier", [0, 2], [0.1, 0.2], "labels that are 0 and 1"),
        ("accuracy", [0, 1], [0.5, 3.2], "numbers of classes, or labels that are 0 and 1"),
        ("accuracy", [0, 1], [[0.6, 0.9], [0.2, 0.1]], "a score for each target"),
        ("log_loss", [0, 1], [[0.6, 0.9], [0.2, 0.1]], "a score for each target"),
        ("accuracy", [0, 2], [[0.1, 0.9], [0.2, 0.8]], "the model's 2 classes"),
    ],
)
def test_a_metric_that_is_not_for_such_scores_is_refused(name, labels, scores, says):
    with pytest.raises(ModelError, match=says):
        measure(name, np.array(labels, np.float64), np.array(scores, np.float32))


def test_an_interval_holds_its_value_and_narrows_with_more_rows(scored):
    labels, scores = scored
    (few,), _ = intervals([measure("auc", labels[:100], scores[:100])], 100)
    (many,), _ = intervals([measure("auc", labels, scores)], 400)
    assert few.low < few.value < few.high
    assert many.high - many.low < few.high - few.low


def test_what_two_models_have_in_common_does_not_widen_their_difference(scored):
    labels, scores = scored
    both = [measure("auc", labels, scores), measure("auc", labels, scores)]
    (_, theirs), less = intervals(both, 400)
    assert (less.value, less.low, less.high) == (0.0, 0.0, 0.0)
    assert theirs.high > theirs.low


def test_the_stability_index_grows_with_the_shift():
    reference = np.random.default_rng(1).random(10_000).astype(np.float32)
    found = [psi(reference, np.clip(reference + shift, 0, 1).astype(np.float32)) for shift in (0, 0.02, 0.1, 0.5)]
    assert found == sorted(found)
    assert found[0] == 0
    assert found[1] < 0.1
    assert found[3] > 0.25
    assert psi(np.zeros(10, np.float32), np.zeros(10, np.float32)) == 0
    assert psi(np.zeros(10, np.float32), np.ones(10, np.float32)) > 1
    two = np.repeat(np.array([0.1, 0.9], np.float32), 50)  # as of a model with one split
    assert psi(two, two + np.float32(0.01)) == 0
    assert psi(two, 1 - two**2) > 1
