"""Classification metrics of logits or probabilities; the results are on the host.

Scores have shape (N, classes, *S) and labels (N, *S), on the same backend. The predicted class is
the first of the highest scores; a single column of scores are logits, and predicts class 1 above 0
and class 0 elsewhere. A position with a NaN among its scores counts as wrong.
"""

from typing import Any

from arraycnn.arguments import as_count
from arraycnn.arrays import Array
from arraycnn.backends import Backend, backend_of


def accuracy(scores: Array, labels: Array, *, ignore_index: int | None = None) -> float:
    """Fraction of positions whose predicted class is the label.

    Args:
        ignore_index: a label whose positions do not count.

    Raises:
        ValueError: shapes that do not fit, no positions, arrays on different backends.
        TypeError: labels that are not integers.
    """
    backend = _check(scores, labels)
    counted = labels.size
    if ignore_index is not None:
        counted = int(backend.xp.count_nonzero(labels != ignore_index))
    return _fraction(count_correct(backend, scores, labels, ignore_index=ignore_index), counted)


def top_k_accuracy(scores: Array, labels: Array, k: int = 5) -> float:
    """Fraction of positions whose label is among the ``k`` highest scores.

    Of equal scores the lower class ranks higher, so k=1 is `accuracy`.

    Raises:
        ValueError: as `accuracy`, or ``k`` outside of 1..classes. TypeError: as `accuracy`.
    """
    backend = _check(scores, labels)
    if as_count("k", k) > scores.shape[1]:
        raise ValueError(f"k must be at most the number of classes, {scores.shape[1]}, got {k}")
    return _fraction(count_correct(backend, scores, labels, k), labels.size)


def count_correct(
    backend: Backend, scores: Array, labels: Array, k: int = 1, ignore_index: int | None = None
) -> Array:
    """Number of positions whose label is among the ``k`` highest scores, left on the device.

    Trusts its arguments; a label that is no class, or not to count, is never correct.
    """
    xp = backend.xp
    if k == 1:
        correct = _predicted(scores) == labels  # (N, *S)
        correct &= ~xp.isnan(scores.max(axis=1))
        if ignore_index is not None:
            correct &= labels != ignore_index
        return xp.count_nonzero(correct)
    classes = xp.arange(scores.shape[1]).reshape((1, -1) + (1,) * (scores.ndim - 2))
    is_label = classes == labels[:, None]  # (N, classes, *S)
    own = xp.where(is_label, scores, 0).sum(axis=1, keepdims=True)  # (N, 1, *S)
    ahead = (scores > own) | ((scores == own) & (classes < labels[:, None]))
    valid = is_label.any(axis=1) & ~xp.isnan(scores).any(axis=1)
    return xp.count_nonzero(valid & (xp.count_nonzero(ahead, axis=1) < k))


def confusion_matrix(scores: Array, labels: Array) -> Array:
    """Counts of (label, predicted class) pairs: int64 NumPy array of shape (classes, classes).

    Row = label, column = prediction; positions with a NaN score are left out.

    Raises:
        ValueError: shapes that do not fit, a label that is no class, arrays on different backends.
        TypeError: labels that are not integers.
    """
    backend = _check(scores, labels)
    xp = backend.xp
    classes = max(scores.shape[1], 2)
    if labels.size and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        raise ValueError(
            f"labels must be in 0..{classes - 1} for scores of {classes} classes, got values from "
            f"{int(labels.min())} to {int(labels.max())}"
        )
    valid = ~xp.isnan(scores.max(axis=1)) if scores.size else xp.zeros(labels.shape, dtype=bool)
    pairs = labels.astype(xp.int64) * classes + _predicted(scores)  # (N, *S)
    counts = xp.bincount(pairs[valid], minlength=classes * classes)
    return backend.to_numpy(counts).reshape(classes, classes)


def _predicted(scores: Array) -> Array:
    """The predicted class of each position, (N, *S)."""
    return scores.argmax(axis=1) if scores.shape[1] > 1 else scores[:, 0] > 0


def _fraction(correct: Any, counted: int) -> float:
    if counted == 0:
        raise ValueError("accuracy of no positions is undefined: there are no labels that count")
    return int(correct) / int(counted)


def _check(scores: Array, labels: Array) -> Backend:
    backend: Backend = backend_of(scores, labels)
    if scores.ndim < 2 or scores.shape[1] == 0:
        raise ValueError(
            f"scores must have shape (N, classes, *S) with at least one class, got {scores.shape}"
        )
    if labels.dtype.kind not in "iu":
        raise TypeError(
            f"labels must be integer class indices, got {labels.dtype}; convert one-hot labels "
            "with labels.argmax(axis=1)"
        )
    expected = (scores.shape[0], *scores.shape[2:])
    if tuple(labels.shape) != expected:
        raise ValueError(
            f"labels must have shape {expected} for scores of shape {tuple(scores.shape)}, got "
            f"{tuple(labels.shape)}"
        )
    return backend
