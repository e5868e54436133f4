"""Optimizer updates on CUDA."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from arraycnn.arrays import Array
from arraycnn.backends.cuda.launch import TABLE_SIZE, TENSOR_TABLE, Launching
from arraycnn.backends.reference.updates import UpdatePrimitives

UPDATE_CHUNK = 4096  # as in updates.cu


class CudaUpdates(Launching, UpdatePrimitives):
    """SGD and Adam over all parameters in one launch."""

    def sgd_update(
        self, parameters: Sequence[Array], gradients: Sequence[Array], velocities: Sequence[Array],
        *, lr: float, momentum: float, nesterov: bool, weight_decay: float,
    ) -> None:  # fmt: skip
        states = [velocities] if momentum else []

        def plain(chosen: list[list[Array]]) -> None:
            super(CudaUpdates, self).sgd_update(
                chosen[0], chosen[1], chosen[2] if momentum else (), lr=lr, momentum=momentum,
                nesterov=nesterov, weight_decay=weight_decay,
            )  # fmt: skip

        scalars = lr, momentum, int(nesterov), weight_decay
        self._update("sgd_update", [parameters, gradients, *states], scalars, plain)

    def adam_update(
        self, parameters: Sequence[Array], gradients: Sequence[Array],
        first_moments: Sequence[Array], second_moments: Sequence[Array], *, step: int, lr: float,
        beta1: float, beta2: float, eps: float, weight_decay: float, decoupled: bool,
    ) -> None:  # fmt: skip
        def plain(chosen: list[list[Array]]) -> None:
            super(CudaUpdates, self).adam_update(
                *chosen, step=step, lr=lr, beta1=beta1, beta2=beta2, eps=eps,
                weight_decay=weight_decay, decoupled=decoupled,
            )  # fmt: skip

        scalars = (
            lr / (1 - beta1**step),
            math.sqrt(1 - beta2**step),
            1 - beta1,
            beta2,
            1 - beta2,
            eps,
            0.0 if decoupled else weight_decay,
            1 - lr * weight_decay if decoupled else 1.0,
        )
        arrays = [parameters, gradients, first_moments, second_moments]
        self._update("adam_update", arrays, scalars, plain)

    def _update(
        self,
        kernel: str,
        arrays: Sequence[Sequence[Array]],
        scalars: tuple[float, ...],
        plain: Callable[[list[list[Array]]], None],
    ) -> None:
        """Launch over all tensors whose arrays have no gaps; leave the others to ``plain``."""
        tables: dict[str, list[tuple[Array, ...]]] = {}
        others: list[tuple[Array, ...]] = []
        for parameter, gradient, *states in zip(*arrays, strict=True):
            element = self.element(parameter, gradient, *states)
            if element and all(array.flags.c_contiguous for array in (parameter, *states)):
                tensors = (parameter, self.xp.ascontiguousarray(gradient), *states)
                tables.setdefault(element, []).append(tensors)
            else:
                others.append((parameter, gradient, *states))
        for element, group in tables.items():
            for start in range(0, len(group), TABLE_SIZE):
                table, blocks = _table(group[start : start + TABLE_SIZE])
                instance = f"{kernel}<{element}>"
                self.kernels.launch(instance, (blocks,), (256,), table, *scalars)
        if others:
            plain([list(column) for column in zip(*others, strict=True)])


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
