"""Dense products on the CPU: blocks of rows on several threads."""

from collections.abc import Callable

import numpy as np

from arraycnn.arrays import Array
from arraycnn.backends.cpu import tuning
from arraycnn.backends.cpu.device import CpuDevice, cuts
from arraycnn.backends.reference.dense import DensePrimitives


class CpuDense(CpuDevice, DensePrimitives):
    """See the base class for what is computed."""

    def dense(self, x: Array, weight: Array, bias: Array | None, relu: bool = False) -> Array:
        h = self.new_buffer((weight.shape[0], x.shape[0]), weight.dtype)  # (O, N)

        def multiply(rows: slice) -> None:
            part = np.matmul(weight[rows], x.T, out=h[rows])
            if bias is not None:
                np.add(part, bias[rows, None], out=part)
            if relu:
                np.maximum(part, 0, out=part)

        self._each_row_block(multiply, weight.shape[0], x.size)
        return h.T

    def dense_input_grad(self, grad_output: Array, weight: Array) -> Array:
        grad = self.new_buffer((weight.shape[1], grad_output.shape[0]), weight.dtype)  # (I, N)

        def multiply(rows: slice) -> None:
            np.matmul(weight.T[rows], grad_output.T, out=grad[rows])

        self._each_row_block(multiply, weight.shape[1], grad_output.size)
        return grad.T

    def dense_weight_grad(self, x: Array, grad_output: Array) -> Array:
        grad = np.empty((grad_output.shape[1], x.shape[1]), x.dtype)  # (O, I)

        def multiply(rows: slice) -> None:
            np.matmul(grad_output.T[rows], x, out=grad[rows])

        self._each_row_block(multiply, grad.shape[0], x.size)
        return grad

    def _each_row_block(self, multiply: Callable[[slice], None], rows: int, products: int) -> None:
        """Call ``multiply`` for the rows of a result, each of ``products`` multiply-adds."""
        seconds = rows * products * tuning.SECONDS_PER_DENSE_MULTIPLY_ADD
        step = tuning.DENSE_ROWS if seconds > tuning.THREAD_SECONDS else max(1, rows)
        self.workers.run(multiply, cuts(rows, step), seconds)
