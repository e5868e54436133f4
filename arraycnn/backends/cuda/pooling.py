"""Pooling on CUDA: a launch for each operation."""

import math

import numpy as np

from arraycnn.arrays import Array
from arraycnn.backends.cuda.launch import Launching, window_struct
from arraycnn.backends.memory_format import buffer_of
from arraycnn.backends.reference.pooling import PoolingPrimitives, argmax_dtype
from arraycnn.geometry import Window

TAPS = {np.dtype(np.uint8): "Byte", np.dtype(np.int32): "int"}  # the kernels' names


class CudaPooling(Launching, PoolingPrimitives):
    """Each thread takes one output position, or for gradients one input position, of a sample."""

    def max_pool(self, x: Array, window: Window, relu: bool = False) -> Array:
        return self._max_pool(x, window, None, relu)

    def max_pool_argmax(self, x: Array, window: Window, relu: bool = False) -> tuple[Array, Array]:
        argmax = self.empty((*x.shape[:2], *window.output_size), argmax_dtype(window))
        return self._max_pool(x, window, buffer_of(argmax), relu), argmax

    def _max_pool(self, x: Array, window: Window, argmax: Array | None, relu: bool) -> Array:
        y = self.empty((*x.shape[:2], *window.output_size), x.dtype)
        self.launch_columns(
            f"max_pool<{self.element(x)},{TAPS[argmax_dtype(window)]}>",
            window.positions * x.shape[0], x.shape[1], buffer_of(self.batch_last(x)),
            buffer_of(y), argmax, window_struct(window), x.shape[1], x.shape[0], int(relu),
        )  # fmt: skip
        return y

    def max_pool_grad(self, argmax: Array, grad_output: Array, window: Window) -> Array:
        batch, channels = grad_output.shape[:2]
        grad = self.empty((batch, channels, *window.input_size), grad_output.dtype)
        self.launch_columns(
            f"max_pool_grad<{self.element(grad_output)},{TAPS[argmax.dtype]}>",
            window.input_positions * batch, channels, buffer_of(self.batch_last(grad_output)),
            buffer_of(self.batch_last(argmax)), buffer_of(grad), window_struct(window), channels,
            batch,
        )  # fmt: skip
        return grad

    def sum_pool(self, x: Array, window: Window) -> Array:
        y = self.empty((*x.shape[:2], *window.output_size), x.dtype)
        self._pool("sum_pool", window.positions, window, self.batch_last(x), y)
        return y

    def sum_pool_grad(self, grad_output: Array, window: Window) -> Array:
        grad = self.empty((*grad_output.shape[:2], *window.input_size), grad_output.dtype)
        operands = self.batch_last(grad_output), grad
        self._pool("sum_pool_grad", window.input_positions, window, *operands)
        return grad

    def global_sum_pool(self, x: Array) -> Array:
        x = self.batch_last(x)
        batch, channels = x.shape[:2]
        sums = self.empty((batch, channels), x.dtype)
        self.launch_elements(
            f"global_sum_pool<{self.element(x)}>", sums.size, buffer_of(x), buffer_of(sums),
            channels, math.prod(x.shape[2:]), batch,
        )  # fmt: skip
        return sums

    def _pool(self, kernel: str, positions: int, window: Window, *arrays: Array) -> None:
        batch, channels = arrays[0].shape[:2]
        self.launch_columns(
            f"{kernel}<{self.element(arrays[0])}>", positions * batch, channels,
            *map(buffer_of, arrays), window_struct(window), channels, batch,
        )  # fmt: skip
