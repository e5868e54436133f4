"""Softmax cross-entropy: the loss of classification and its gradient, together."""

from arraycnn.arrays import Array
from arraycnn.backends.memory_format import MemoryFormat, batch_view, buffer_of


class LossPrimitives(MemoryFormat):
    """Losses of logits (N, classes, *S) of any memory order."""

    def softmax_cross_entropy(
        self, logits: Array, labels: Array, weight: Array | None, label_smoothing: float,
        ignore_index: int | None, reduction: str,
    ) -> tuple[Array, Array]:  # fmt: skip
        """Σ t·(−log softmax(logits)) and softmax(logits)·Σ t − t, the sums over the classes.

        The target is t = weight·((1 − ε)·one-hot + ε / classes), ε being ``label_smoothing``, and 0
        where the label (N, *S) is ``ignore_index``. ``reduction`` is as in `reduced`; the mean is
        over the weights of the labels.
        """
        xp, classes = self.xp, logits.shape[1]
        per_class = (-1, *(1,) * (logits.ndim - 2))  # broadcasts over (N, classes, *S)
        class_rows = xp.arange(classes).reshape(-1, *(1,) * (logits.ndim - 1))  # over (*S, N)
        labels_row = buffer_of(self.batch_last(labels[:, None]))  # (1, *S, N)
        one_hot = batch_view(class_rows == labels_row)  # (N, classes, *S)
        if ignore_index is not None:
            one_hot &= (labels != ignore_index)[:, None]
        target = one_hot.astype(logits.dtype)
        if label_smoothing:
            counted = one_hot.any(axis=1, keepdims=True)
            target *= 1 - label_smoothing
            target += counted * logits.dtype.type(label_smoothing / classes)
        if weight is not None:
            target *= weight.reshape(per_class)
        shifted = logits
        if logits.size:
            shifted = logits - logits.max(axis=1, keepdims=True)
        log_probabilities = shifted - xp.log(xp.exp(shifted).sum(axis=1, keepdims=True))
        # A class that does not count may be impossible: 0·log 0 is 0 here.
        losses = -(target * xp.where(target != 0, log_probabilities, 0)).sum(axis=1)  # (N, *S)
        grad = xp.exp(log_probabilities) * target.sum(axis=1, keepdims=True) - target
        count: float = labels.size
        if reduction == "mean" and weight is not None:
            count = float((one_hot * weight.reshape(per_class)).sum())
        elif reduction == "mean" and ignore_index is not None:
            count = int(one_hot.sum())
        return reduced(losses, grad, reduction, count)

    def check_labels(self, labels: Array, classes: int, ignore_index: int | None) -> None:
        """Refuse labels, on this backend or in host memory, that are no class and not ignored."""
        wrong = (labels < 0) | (labels >= classes)
        if ignore_index is not None:
            wrong &= labels != ignore_index
        if wrong.any():
            raise ValueError(
                f"labels must be in [0, {classes}) for logits with {classes} classes, got "
                f"{int(labels[wrong][0])}; check the number of classes, or pass it as ignore_index"
            )


def reduced(losses: Array, grad: Array, reduction: str, count: float) -> tuple[Array, Array]:
    """Losses and gradients as they are ("none"), the loss summed up, or both divided by ``count``.

    The mean over nothing is NaN.
    """
    if reduction == "none":
        return losses, grad
    if reduction == "sum":
        return losses.sum(), grad
    if not count:
        return losses.sum() * float("nan"), grad
    return losses.sum() * (1 / count), grad * (1 / count)
