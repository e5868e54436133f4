"""Losses on CUDA."""

import numpy as np

from arraycnn.arrays import Array
from arraycnn.backends.cuda.launch import accumulator
from arraycnn.backends.cuda.normalization import CudaNormalization
from arraycnn.backends.memory_format import buffer_of
from arraycnn.backends.reference.loss import LossPrimitives, reduced

LOSS_COLUMNS, LOSS_ROWS = 32, 8  # as in loss.cu
NOT_A_LABEL = -(2**63)  # stands for the label to ignore where there is none


class CudaLoss(CudaNormalization, LossPrimitives):
    """Softmax cross-entropy without leaving the device: nothing waits for a number."""

    def softmax_cross_entropy(
        self, logits: Array, labels: Array, weight: Array | None, label_smoothing: float,
        ignore_index: int | None, reduction: str,
    ) -> tuple[Array, Array]:  # fmt: skip
        if not labels.size:
            losses = self.xp.zeros(labels.shape, logits.dtype)
            return reduced(losses, self.xp.zeros_like(logits), reduction, 0)
        xp, element, samples = self.xp, self.element(logits, weight), labels.size
        logits, classes = self.batch_last(logits), logits.shape[1]
        grad = self.empty(logits.shape, logits.dtype)
        dtype = accumulator(logits.dtype)
        places = buffer_of(labels.astype(np.int64, copy=False)[:, None])  # (1, *S, N)
        targets = xp.ascontiguousarray(places).reshape(samples)
        weight = None if weight is None else xp.ascontiguousarray(weight)
        ignored = NOT_A_LABEL if ignore_index is None else ignore_index
        total = None
        if reduction == "mean" and (weight is not None or ignore_index is not None):
            total = xp.empty(1, dtype)
            self.kernels.launch(
                f"label_total<{element}>", (1,), (1024,), targets, weight, total, classes, samples,
                ignored,
            )  # fmt: skip
        losses = self.empty((labels.shape[0], 1, *labels.shape[1:]), dtype)
        self.kernels.launch(
            f"softmax_cross_entropy<{element}>", (-(-samples // LOSS_COLUMNS),),
            (LOSS_COLUMNS, LOSS_ROWS), buffer_of(logits), targets, weight, total,
            buffer_of(losses), buffer_of(grad), classes, samples, ignored, label_smoothing,
            1 / samples if reduction == "mean" else 1.0,
        )  # fmt: skip
        if reduction == "none":
            return losses[:, 0].astype(logits.dtype, copy=False), grad
        return self._row_sums(buffer_of(losses), 1, samples, logits.dtype)[0], grad

    def check_labels(self, labels: Array, classes: int, ignore_index: int | None) -> None:
        """As the base class, but for labels that are only known when a captured graph runs."""
        if not self.owns(labels) or not self._is_capturing():
            super().check_labels(labels, classes, ignore_index)
