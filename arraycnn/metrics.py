"""Classification metrics of logits or probabilities; the results are on the host.

Scores have shape (N, classes, *S) and labels (N, *S), on the same backend. The predicted class is
the first of the highest scores. A position with a NaN among its scores counts as wrong.
"""

from arraycnn.arguments import as_count
from arraycnn.arrays import Array
from arraycnn.backends import Backend, backend_of


def accuracy(scores: Array, labels: Array) -> float:
    """Fraction of positions whose predicted class is the label.

    Raises:
        ValueError: shapes that do not fit, no positions, arrays on different backends.
        TypeError: labels that are not integers.
    """
    return top_k_accuracy(scores, labels, k=1)


def top_k_accuracy(scores: Array, labels: Array, k: int = 5) -> float:
    """Fraction of positions whose label is among the ``k`` highest scores.

    Of equal scores the lower class ranks higher, so k=1 is `accuracy`.

    Raises:
        ValueError: as `accuracy`, or ``k`` outside of 1..classes. TypeError: as `accuracy`.
    """
    backend = _check(scores, labels)
    if as_count("k", k) > scores.shape[1]:
        raise ValueError(f"k must be at most the number of classes, {scores.shape[1]}, got {k}")
    if labels.size == 0:
        raise ValueError("accuracy of no positions is undefined: scores and labels are empty")
    return int(count_correct(backend, scores, labels, k)) / int(labels.size)


def count_correct(backend: Backend, scores: Array, labels: Array, k: int = 1) -> Array:
    """Number of positions whose label is among the ``k`` highest scores, left on the device.

    Trusts its arguments; a label that is no class is never correct.
    """
    xp = backend.xp
    if k == 1:
        valid = ~xp.isnan(scores.max(axis=1))  # (N, *S)
        return xp.count_nonzero(valid & (scores.argmax(axis=1) == labels))
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
    classes = scores.shape[1]
    if labels.size and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        raise ValueError(
            f"labels must be in 0..{classes - 1} for scores of {classes} classes, got values from "
            f"{int(labels.min())} to {int(labels.max())}"
        )
    valid = ~xp.isnan(scores.max(axis=1)) if scores.size else xp.zeros(labels.shape, dtype=bool)
    pairs = labels.astype(xp.int64) * classes + scores.argmax(axis=1)  # (N, *S)
    counts = xp.bincount(pairs[valid], minlength=classes * classes)
    return backend.to_numpy(counts).reshape(classes, classes)


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
