"""Losses: each returns the loss and its gradient with respect to the prediction."""

from collections.abc import Callable
from typing import Any, Self, TypeAlias

from arraycnn.arguments import (
    as_count,
    as_probability,
    check_arrays,
    check_channel_vector,
    check_choice,
    check_shape,
    to_backend,
)
from arraycnn.arrays import Array, Shape
from arraycnn.backends import Backend
from arraycnn.backends.reference.loss import reduced
from arraycnn.functional.activation import sigmoid, softplus

REDUCTIONS = ("mean", "sum", "none")
Number: TypeAlias = Any  # an int, a float, or a 0-d array


class LossValue(tuple[Any, Any]):
    """What a loss returns: the pair ``(loss, grad)``, and beside it what its mean is over.

    Means of several batches weigh each by its denominator. A loss of one's own may return a plain
    pair, and is then taken for a mean over all targets.

    Args:
        denominator: what the sum of losses was divided by: the number of samples that count, or
            the sum of their weights; or a function that computes it.
        reduction: how the losses were reduced, ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: the label that does not count, or None.

    Example:
        >>> import numpy as np
        >>> from arraycnn import functional as F
        >>> value = F.mse_loss(np.ones((2, 3)), np.zeros((2, 3)))
        >>> loss, grad = value
        >>> float(loss), grad.shape, value.denominator
        (1.0, (2, 3), 6)
    """

    reduction: str
    ignore_index: int | None
    _denominator: Number | Callable[[], Number] | None

    def __new__(
        cls,
        loss: Number,
        grad: Any,
        denominator: Number | Callable[[], Number] | None = None,
        *,
        reduction: str = "mean",
        ignore_index: int | None = None,
    ) -> Self:
        self = super().__new__(cls, (loss, grad))
        self._denominator = denominator
        self.reduction = reduction
        self.ignore_index = ignore_index
        return self

    @property
    def denominator(self) -> Number | None:
        """What the sum of losses was divided by; None if it was not said."""
        return self._denominator() if callable(self._denominator) else self._denominator

    def paired(self, loss: Number, other: Any) -> Self:
        """The same counts with another pair, such as the loss and the outputs."""
        return type(self)(
            loss,
            other,
            self._denominator,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
        )


def softmax_cross_entropy(
    logits: Array,
    labels: Array,
    *,
    weight: Array | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> LossValue:
    """−log softmax(logits)[label], and its gradient softmax(logits) − target.

    Args:
        logits: (N, classes, *S). labels: integers (N, *S) in [0, classes).
        weight: (classes,), the weight of samples of each class; the mean is a weighted one.
        label_smoothing: ε in [0, 1]; the target is (1 − ε)·one-hot + ε / classes (Szegedy et al.,
            "Rethinking the Inception architecture", 2016).
        ignore_index: a label whose samples do not count.
        reduction: ``"mean"``, ``"sum"`` (0-d loss) or ``"none"`` (loss (N, *S)).

    Returns:
        (loss, grad_logits), see `LossValue`. The mean over no samples is NaN, as in PyTorch.

    Raises:
        TypeError: dtypes. ValueError: shapes that do not fit, labels out of range, bad options.
    """
    backend: Backend = check_arrays(logits=logits, optional={"weight": weight})
    check_choice("reduction", reduction, REDUCTIONS)
    label_smoothing = as_probability("label_smoothing", label_smoothing)
    if ignore_index is not None:
        ignore_index = as_count("ignore_index", ignore_index, minimum=None)
    if logits.ndim < 2 or logits.shape[1] < 1:
        raise ValueError(f"logits must be (N, classes, ...), got shape {tuple(logits.shape)}")
    classes = logits.shape[1]
    check_channel_vector("weight", weight, classes, "logits")
    labels = _labels(backend, labels, logits, ignore_index)
    loss, grad = backend.softmax_cross_entropy(
        logits, labels, weight, label_smoothing, ignore_index, reduction
    )

    def denominator() -> Number:
        if weight is None and ignore_index is None:
            return labels.size
        xp = backend.xp
        counted = xp.ones(labels.shape, bool) if ignore_index is None else labels != ignore_index
        if weight is None:
            return xp.count_nonzero(counted)
        return xp.sum(weight[xp.where(counted, labels, 0)] * counted)

    return LossValue(loss, grad, denominator, reduction=reduction, ignore_index=ignore_index)


def mse_loss(prediction: Array, target: Array, *, reduction: str = "mean") -> LossValue:
    """(prediction − target)² and its gradient, averaged over all elements or not.

    Raises:
        TypeError: dtypes. ValueError: shapes that differ, an unknown reduction.
    """
    backend = check_arrays(prediction=prediction)
    target = to_backend(backend, "target", target)
    check_arrays(prediction=prediction, target=target)
    check_choice("reduction", reduction, REDUCTIONS)
    check_shape("target", target.shape, prediction.shape, "like prediction")
    error = prediction - target
    pair = reduced(error * error, 2 * error, reduction, error.size)
    return LossValue(*pair, error.size, reduction=reduction)


def binary_cross_entropy_with_logits(
    logits: Array,
    targets: Array,
    *,
    weight: Array | None = None,
    pos_weight: Array | None = None,
    reduction: str = "mean",
) -> LossValue:
    """−t·log σ(x) − (1 − t)·log σ(−x) for targets t in [0, 1], and its gradient.

    ``weight`` multiplies each element's loss, ``pos_weight`` its first term; both broadcast to the
    shape of ``logits``. Computed by softplus, accurate for logits of any size.

    Raises:
        TypeError: dtypes. ValueError: shapes that do not fit, an unknown reduction.
    """
    backend = check_arrays(logits=logits)
    targets = to_backend(backend, "targets", targets)
    check_arrays(
        logits=logits,
        targets=targets,
        optional={"weight": weight, "pos_weight": pos_weight},
    )
    check_choice("reduction", reduction, REDUCTIONS)
    check_shape("targets", targets.shape, logits.shape, "like logits")
    for name, array in (("weight", weight), ("pos_weight", pos_weight)):
        if array is not None and not _broadcasts(array.shape, logits.shape):
            raise ValueError(
                f"{name} must broadcast to the shape of logits, {tuple(logits.shape)}, got "
                f"{tuple(array.shape)}"
            )
    positive = targets if pos_weight is None else targets * pos_weight
    negative = 1 - targets
    losses = positive * softplus(-logits) + negative * softplus(logits)
    grad = negative * sigmoid(logits) - positive * sigmoid(-logits)
    if weight is not None:
        losses, grad = losses * weight, grad * weight
    pair = reduced(losses, grad, reduction, losses.size)
    return LossValue(*pair, losses.size, reduction=reduction)


def _labels(backend: Backend, labels: Array, logits: Array, ignore_index: int | None) -> Array:
    """The labels on the backend, checked: integers, one per sample, each a class or ignored."""
    kind = getattr(getattr(labels, "dtype", None), "kind", None)
    if kind is None or kind not in "iu":
        got = type(labels).__name__ if kind is None else labels.dtype
        raise TypeError(
            f"labels must be an array of integer class indices, got {got}; convert them, e.g. "
            "numpy.asarray(labels).astype('int64'), or labels.argmax(axis=1) for one-hot labels"
        )
    check_shape("labels", labels.shape, (logits.shape[0], *logits.shape[2:]), "one per sample")
    backend.check_labels(labels, logits.shape[1], ignore_index)
    return backend.asarray(labels)


def _broadcasts(shape: Shape, target: Shape) -> bool:
    return len(shape) <= len(target) and all(
        size in (1, wanted) for size, wanted in zip(shape[::-1], target[::-1], strict=False)
    )
