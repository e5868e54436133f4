"""Optimizer updates on CUDA."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from arraycnn.arrays import Array
from arraycnn.backends.cuda.launch import TABLE_SIZE, TENSOR_TABLE, Launching
from arraycnn.backends.reference.updates import Rule, UpdatePrimitives, adam, adamw, sgd

UPDATE_CHUNK = 4096  # as in updates.cu


class CudaUpdates(Launching, UpdatePrimitives):
    """SGD, Adam and AdamW of all parameters in one launch."""

    def update_parameters(
        self, rule: Rule, arrays: Sequence[tuple[Array, ...]], **options: Any
    ) -> None:
        fused = _FUSED.get(rule)
        tables: dict[str, list[tuple[Array, ...]]] = {}
        others: list[tuple[Array, ...]] = []  # of another dtype, or with gaps in memory
        for parameter, gradient, *slots in arrays:
            element = self.element(parameter, gradient, *slots) if fused else None
            if element and all(array.flags.c_contiguous for array in (parameter, *slots)):
                tensors = (parameter, self.xp.ascontiguousarray(gradient), *slots)
                tables.setdefault(element, []).append(tensors)
            else:
                others.append((parameter, gradient, *slots))
        for element, group in tables.items():
            kernel, scalars = fused(**options)  # type: ignore[misc]
            for start in range(0, len(group), TABLE_SIZE):
                table, blocks = _table(group[start : start + TABLE_SIZE])
                self.kernels.launch(f"{kernel}<{element}>", (blocks,), (256,), table, *scalars)
        if others:
            super().update_parameters(rule, others, **options)


# The scalar arguments of the kernels in updates.cu.


def _sgd(
    *, step: int, lr: float, momentum: float, nesterov: bool, weight_decay: float
) -> tuple[str, tuple[float, ...]]:
    return "sgd_update", (lr, momentum, int(nesterov), weight_decay)


def _adam(
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    shrink: float = 1.0,
) -> tuple[str, tuple[float, ...]]:
    beta1, beta2 = betas
    corrections = lr / (1 - beta1**step), math.sqrt(1 - beta2**step)
    decay = 1 - beta1, beta2, 1 - beta2
    return "adam_update", (*corrections, *decay, eps, weight_decay, shrink)


def _adamw(*, lr: float, weight_decay: float, **rest: Any) -> tuple[str, tuple[float, ...]]:
    return _adam(lr=lr, weight_decay=0.0, shrink=1 - lr * weight_decay, **rest)


_FUSED: dict[Rule, Callable[..., tuple[str, tuple[float, ...]]]] = {
    sgd: _sgd,
    adam: _adam,
    adamw: _adamw,
}


def _table(tensors: Sequence[tuple[Array, ...]]) -> tuple[Array, int]:
    """The table of the tensors for updates.cu and the blocks that they need."""
    table = np.zeros(1, TENSOR_TABLE)
    blocks = 0
    for index, arrays in enumerate(tensors):
        for which, array in enumerate(arrays):
            table["pointers"][0, which, index] = array.data.ptr
        table["count"][0, index] = arrays[0].size
        blocks += -(-arrays[0].size // UPDATE_CHUNK)
        table["first_block"][0, index + 1] = blocks
    table["tensors"] = len(tensors)
    return table, blocks
