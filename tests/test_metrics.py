"""Metrics against scikit-learn's definitions written out, ties and NaN included."""

import math

import numpy as np
import pytest

from arraycnn import metrics

SCORES = np.array(
    [[0.1, 0.7, 0.2], [0.5, 0.2, 0.3], [0.3, 0.3, 0.4], [0.4, 0.4, 0.2]], dtype=np.float32
)
LABELS = np.array([1, 2, 2, 1])


def test_accuracy():
    assert metrics.accuracy(SCORES, LABELS) == 0.5
    assert type(metrics.accuracy(SCORES, LABELS)) is float


def test_top_k():
    assert metrics.top_k_accuracy(SCORES, LABELS, k=1) == 0.5
    assert metrics.top_k_accuracy(SCORES, LABELS, k=2) == 1.0
    assert metrics.top_k_accuracy(SCORES, LABELS, k=3) == 1.0


def test_the_first_of_equal_scores_wins():
    scores = np.zeros((3, 4))
    labels = np.array([0, 1, 2])
    assert metrics.accuracy(scores, labels) == pytest.approx(1 / 3)
    assert metrics.top_k_accuracy(scores, labels, k=2) == pytest.approx(2 / 3)


@pytest.mark.parametrize("k", [1, 2, 3, 6])
@pytest.mark.parametrize("shape", [(50, 6), (7, 6, 4), (5, 6, 3, 2)])
def test_top_k_equals_a_stable_sort(k, shape):
    rng = np.random.default_rng(k)
    scores = rng.integers(0, 5, shape).astype(np.float64)
    scores[0, 0] = -math.inf
    labels = rng.integers(0, 6, (shape[0], *shape[2:]))
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    expected = np.mean((best == labels[:, None]).any(axis=1))
    assert metrics.top_k_accuracy(scores, labels, k=k) == pytest.approx(expected)
    if k == 1:
        assert metrics.accuracy(scores, labels) == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_nan_scores_are_wrong(k):
    scores = SCORES.copy()
    scores[0, 1] = math.nan  # would be the label
    scores[2] = math.nan
    assert metrics.top_k_accuracy(scores, LABELS, k=k) <= 0.5
    assert metrics.confusion_matrix(scores, LABELS).sum() == 2


def test_confusion_matrix():
    matrix = metrics.confusion_matrix(SCORES, LABELS)
    np.testing.assert_array_equal(matrix, [[0, 0, 0], [1, 1, 0], [1, 0, 1]])
    assert matrix.dtype == np.int64
    assert np.trace(matrix) / matrix.sum() == metrics.accuracy(SCORES, LABELS)


def test_confusion_matrix_of_pixels_and_of_nothing():
    rng = np.random.default_rng(0)
    scores, labels = rng.standard_normal((4, 3, 5, 6)), rng.integers(0, 3, (4, 5, 6))
    matrix = metrics.confusion_matrix(scores, labels)
    np.testing.assert_array_equal(matrix.sum(axis=1), np.bincount(labels.ravel()))
    assert not metrics.confusion_matrix(scores[:0], labels[:0]).any()


@pytest.mark.parametrize(
    "metric", [metrics.accuracy, metrics.top_k_accuracy, metrics.confusion_matrix]
)
class TestBadInput:
    def test_shapes(self, metric):
        with pytest.raises(ValueError, match=r"labels must have shape \(4,\).*got \(3,\)"):
            metric(SCORES, LABELS[:3])
        with pytest.raises(ValueError, match="scores must have shape"):
            metric(SCORES[0], LABELS)

    def test_labels_of_another_dtype(self, metric):
        with pytest.raises(TypeError, match="labels must be integer class indices, got float64"):
            metric(SCORES, LABELS.astype(np.float64))

    def test_no_arrays(self, metric):
        with pytest.raises(TypeError, match="expected a NumPy or CuPy array"):
            metric(SCORES.tolist(), LABELS)


@pytest.mark.parametrize("metric", [metrics.accuracy, lambda s, y: metrics.top_k_accuracy(s, y, 1)])
def test_accuracy_of_nothing(metric):
    with pytest.raises(ValueError, match="undefined"):
        metric(SCORES[:0], LABELS[:0])


@pytest.mark.parametrize("k", [0, 4, 1.5])
def test_bad_k(k):
    with pytest.raises((ValueError, TypeError), match="k must be"):
        metrics.top_k_accuracy(SCORES, LABELS, k=k)


@pytest.mark.parametrize("label", [-1, 3])
def test_label_that_is_no_class(label):
    labels = np.array([1, 2, 2, label])
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.2"):
        metrics.confusion_matrix(SCORES, labels)
    assert metrics.accuracy(SCORES, labels) == 0.5


class TestOneLogit:
    """A single column of scores predicts class 1 above 0."""

    scores = np.array([[0.5], [-0.5], [0.0], [2.0], [math.nan]], np.float32)
    labels = np.array([1, 0, 0, 0, 1])

    def test_accuracy(self):
        assert metrics.accuracy(self.scores, self.labels) == 0.6
        assert metrics.top_k_accuracy(self.scores, self.labels, k=1) == 0.6

    def test_confusion_matrix(self):
        matrix = metrics.confusion_matrix(self.scores, self.labels)
        np.testing.assert_array_equal(matrix, [[2, 1], [0, 1]])


class TestIgnoredLabels:
    def test_count_neither_way(self):
        labels = np.array([1, 2, 2, 0])
        assert metrics.accuracy(SCORES, labels, ignore_index=2) == 1.0
        assert metrics.accuracy(SCORES, labels, ignore_index=-1) == 0.75

    def test_only_them(self):
        with pytest.raises(ValueError, match="no labels that count"):
            metrics.accuracy(SCORES, np.full(4, 7), ignore_index=7)
