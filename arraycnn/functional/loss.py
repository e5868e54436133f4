"""Losses: each returns the loss and its gradient with respect to the prediction."""

from arraycnn.backends import Backend
from arraycnn.functional._arguments import channel_vector, check_choice, enter, moved_in
from arraycnn.functional.activation import log_softmax, sigmoid, softplus
from arraycnn.geometry import check_shape, count_of
from arraycnn.scalars import probability
from arraycnn.types import Array, Shape

REDUCTIONS = ("mean", "sum", "none")


def softmax_cross_entropy(
    logits: Array,
    labels: Array,
    *,
    weight: Array | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> tuple[Array, Array]:
    """−log softmax(logits)[label], and its gradient softmax(logits) − target.

    Args:
        logits: (N, classes, *S). labels: integers (N, *S) in [0, classes).
        weight: (classes,), the weight of samples of each class; the mean is a weighted one.
        label_smoothing: ε in [0, 1]; the target is (1 − ε)·one-hot + ε / classes (Szegedy et al.,
            "Rethinking the Inception architecture", 2016).
        ignore_index: a label whose samples do not count.
        reduction: ``"mean"``, ``"sum"`` (0-d loss) or ``"none"`` (loss (N, *S)).

    Returns:
        (loss, grad_logits). The mean over no samples is NaN, as in PyTorch.

    Raises:
        TypeError: dtypes. ValueError: shapes that do not fit, labels out of range, bad options.
    """
    backend = enter(logits=logits, optional={"weight": weight})
    xp = backend.xp
    check_choice("reduction", reduction, REDUCTIONS)
    label_smoothing = probability("label_smoothing", label_smoothing)
    if ignore_index is not None:
        ignore_index = count_of("ignore_index", ignore_index, minimum=None)
    if logits.ndim < 2 or logits.shape[1] < 1:
        raise ValueError(f"logits must be (N, classes, ...), got shape {tuple(logits.shape)}")
    classes = logits.shape[1]
    channel_vector("weight", weight, classes, "logits")
    labels = _labels(backend, labels, logits, ignore_index)

    per_class = (-1, *(1,) * (logits.ndim - 2))  # broadcasts over (N, classes, *S)
    one_hot = xp.arange(classes).reshape(per_class) == labels[:, None]
    if ignore_index is not None:
        one_hot &= (labels != ignore_index)[:, None]
    target = one_hot.astype(logits.dtype)
    if label_smoothing:
        counted = one_hot.any(axis=1, keepdims=True)
        target *= 1 - label_smoothing
        target += counted * logits.dtype.type(label_smoothing / classes)
    if weight is not None:
        target *= weight.reshape(per_class)
    log_probabilities = log_softmax(logits)
    # A class that does not count may be impossible: 0·log 0 is 0 here.
    losses = -(target * xp.where(target != 0, log_probabilities, 0)).sum(axis=1)  # (N, *S)
    grad = xp.exp(log_probabilities) * target.sum(axis=1, keepdims=True) - target
    if reduction == "mean" and weight is not None:
        return _reduced(losses, grad, reduction, float((one_hot * weight.reshape(per_class)).sum()))
    count = labels.size if ignore_index is None else int(one_hot.sum())
    return _reduced(losses, grad, reduction, count)


def mse_loss(prediction: Array, target: Array, *, reduction: str = "mean") -> tuple[Array, Array]:
    """(prediction − target)² and its gradient, averaged over all elements or not.

    Raises:
        TypeError: dtypes. ValueError: shapes that differ, an unknown reduction.
    """
    backend = enter(prediction=prediction)
    target = moved_in(backend, "target", target)
    enter(prediction=prediction, target=target)
    check_choice("reduction", reduction, REDUCTIONS)
    check_shape("target", target.shape, prediction.shape, "like prediction")
    error = prediction - target
    return _reduced(error * error, 2 * error, reduction, error.size)


def binary_cross_entropy_with_logits(
    logits: Array,
    targets: Array,
    *,
    weight: Array | None = None,
    pos_weight: Array | None = None,
    reduction: str = "mean",
) -> tuple[Array, Array]:
    """−t·log σ(x) − (1 − t)·log σ(−x) for targets t in [0, 1], and its gradient.

    ``weight`` multiplies each element's loss, ``pos_weight`` its first term; both broadcast to the
    shape of ``logits``. Computed by softplus, accurate for logits of any size.

    Raises:
        TypeError: dtypes. ValueError: shapes that do not fit, an unknown reduction.
    """
    backend = enter(logits=logits)
    targets = moved_in(backend, "targets", targets)
    enter(
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
    return _reduced(losses, grad, reduction, losses.size)


def _labels(backend: Backend, labels: Array, logits: Array, ignore_index: int | None) -> Array:
    """The labels on the backend, checked: integers, one per sample, each a class or ignored."""
    if not hasattr(labels, "dtype") or labels.dtype.kind not in "iu":
        got = getattr(labels, "dtype", type(labels).__name__)
        raise TypeError(
            f"labels must be an array of integer class indices, got {got}; convert them, e.g. "
            "labels.astype('int64'), or labels.argmax(axis=1) for one-hot labels"
        )
    check_shape("labels", labels.shape, (logits.shape[0], *logits.shape[2:]), "one per sample")
    classes = logits.shape[1]
    wrong = (labels < 0) | (labels >= classes)
    if ignore_index is not None:
        wrong &= labels != ignore_index
    if wrong.any():
        raise ValueError(
            f"labels must be in [0, {classes}) for logits with {classes} classes, got "
            f"{int(labels[wrong][0])}; check the number of classes, or pass it as ignore_index"
        )
    return backend.asarray(labels)


def _reduced(losses: Array, grad: Array, reduction: str, count: float) -> tuple[Array, Array]:
    if reduction == "none":
        return losses, grad
    if reduction == "sum":
        return losses.sum(), grad
    if not count:
        return losses.sum() * float("nan"), grad
    return losses.sum() * (1 / count), grad * (1 / count)


def _broadcasts(shape: Shape, target: Shape) -> bool:
    return len(shape) <= len(target) and all(
        size in (1, wanted) for size, wanted in zip(shape[::-1], target[::-1], strict=False)
    )
