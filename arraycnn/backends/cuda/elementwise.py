"""Pooling, normalisation and element-wise work on CUDA.

Every method is the namesake of a base class in one or two launches. What kernels are not made for,
complex numbers or unusual memory orders, goes to the base class.
"""

import math
from typing import Any

import numpy as np

from arraycnn.arrays import Array
from arraycnn.backends.cuda.launch import (
    ROW_CHUNK,
    Launching,
    accumulator,
    chunks_of,
    window_struct,
)
from arraycnn.backends.memory_format import batch_view, buffer_of
from arraycnn.backends.reference.elementwise import PointwisePrimitives
from arraycnn.backends.reference.normalization import NormalizationPrimitives
from arraycnn.backends.reference.pooling import PoolingPrimitives, winner_dtype
from arraycnn.geometry import Window
from arraycnn.rng import stream_key

REDUCE_THREADS, REDUCE_CHUNK = 256, 4096  # as in normalization.cu
TAPS = {np.dtype(np.uint8): "Byte", np.dtype(np.int32): "int"}  # the kernels' names


class CudaPooling(Launching, PoolingPrimitives):
    """Each thread takes one output position, or for gradients one input position, of a sample."""

    def max_pool(self, x: Array, window: Window, relu: bool = False) -> Array:
        return self._max_pool(x, window, None, relu)

    def max_pool_winners(self, x: Array, window: Window, relu: bool = False) -> tuple[Array, Array]:
        winners = self.empty((*x.shape[:2], *window.output_size), winner_dtype(window))
        return self._max_pool(x, window, buffer_of(winners), relu), winners

    def _max_pool(self, x: Array, window: Window, winners: Array | None, relu: bool) -> Array:
        y = self.empty((*x.shape[:2], *window.output_size), x.dtype)
        self._launch_columns(
            f"max_pool<{self._element(x)},{TAPS[winner_dtype(window)]}>",
            window.positions * x.shape[0], x.shape[1], buffer_of(self.batch_last(x)),
            buffer_of(y), winners, window_struct(window), x.shape[1], x.shape[0], int(relu),
        )  # fmt: skip
        return y

    def max_pool_grad(self, winners: Array, grad_output: Array, window: Window) -> Array:
        batch, channels = grad_output.shape[:2]
        grad = self.empty((batch, channels, *window.input_size), grad_output.dtype)
        self._launch_columns(
            f"max_pool_grad<{self._element(grad_output)},{TAPS[winners.dtype]}>",
            window.input_positions * batch, channels, buffer_of(self.batch_last(grad_output)),
            buffer_of(self.batch_last(winners)), buffer_of(grad), window_struct(window), channels,
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

    def plane_sum(self, x: Array) -> Array:
        x = self.batch_last(x)
        batch, channels = x.shape[:2]
        sums = self.empty((batch, channels), x.dtype)
        self._launch_elements(
            f"plane_sum<{self._element(x)}>", sums.size, buffer_of(x), buffer_of(sums), channels,
            math.prod(x.shape[2:]), batch,
        )  # fmt: skip
        return sums

    def _pool(self, kernel: str, positions: int, window: Window, *arrays: Array) -> None:
        batch, channels = arrays[0].shape[:2]
        self._launch_columns(
            f"{kernel}<{self._element(arrays[0])}>", positions * batch, channels,
            *map(buffer_of, arrays), window_struct(window), channels, batch,
        )  # fmt: skip


class CudaNormalization(Launching, NormalizationPrimitives):
    """Sums over rows in two passes: chunks side by side, then the chunks' results in order."""

    def channel_moments(self, x: Array) -> tuple[Array, Array]:
        rows, channels, length = self._rows(x)
        chunks = chunks_of(length, REDUCE_CHUNK)
        partial = self.xp.empty((2, channels, chunks), accumulator(x.dtype))
        result = self.xp.empty((2, channels), x.dtype)
        element = self._element(x)
        self._reduce(f"chunk_moments<{element}>", channels * chunks, rows, *partial, length, chunks)
        self._reduce(f"merge_moments<{element}>", channels, *partial, *result, length, chunks)
        return result[0], result[1]

    def scale_shift(self, x: Array, scale: Array, shift: Array, relu: bool = False) -> Array:
        element = self._element(x, scale, shift)
        if element is None:
            return super().scale_shift(x, scale, shift, relu)
        rows, channels, length = self._rows(x)
        y = self.empty(x.shape, x.dtype)
        chunks = chunks_of(length, ROW_CHUNK)
        self.kernels.launch(
            f"scale_shift<{element}>", (channels * chunks,), (256,), rows,
            self.xp.ascontiguousarray(scale), self.xp.ascontiguousarray(shift), buffer_of(y),
            length, chunks, int(relu),
        )  # fmt: skip
        return y

    def channel_sum(self, x: Array) -> Array:
        if self._element(x) is None:
            return super().channel_sum(x)
        rows, channels, length = self._rows(x)
        return self._row_sums(rows, channels, length, x.dtype)

    def batch_norm_grad(
        self,
        x: Array,
        mean: Array,
        inverse_std: Array,
        scale: Array,
        grad_output: Array,
        y: Array | None = None,
    ) -> tuple[Array, Array, Array]:
        element = self._element(x, mean, inverse_std, scale, grad_output)
        if element is None:
            return super().batch_norm_grad(x, mean, inverse_std, scale, grad_output, y)
        if y is not None:
            grad_output = self.relu_grad(y, grad_output)
        rows, channels, length = self._rows(x)
        delta = buffer_of(self.batch_last(grad_output))
        chunks = chunks_of(length, REDUCE_CHUNK)
        dtype = accumulator(x.dtype)
        statistics = [self.xp.ascontiguousarray(array) for array in (mean, inverse_std)]
        sums = self.xp.empty((2, channels, chunks), dtype)
        self._reduce(
            f"batch_norm_sums<{element}>", channels * chunks, rows, *statistics, delta, sums,
            length, chunks,
        )  # fmt: skip
        totals = self._row_sums(sums, 2 * channels, chunks, dtype)  # Σ Δ·x̂ and Σ Δ
        grad = self.empty(x.shape, x.dtype)
        self._reduce(
            f"batch_norm_apply<{element}>", channels * chunks, rows, *statistics,
            self.xp.ascontiguousarray(scale), delta, totals, buffer_of(grad), channels, length,
            chunks,
        )  # fmt: skip
        totals = totals.astype(x.dtype, copy=False)
        return grad, totals[:channels], totals[channels:]

    def _rows(self, x: Array) -> tuple[Array, int, int]:
        """The buffer of x, how many rows it has and how long they are."""
        buffer = buffer_of(self.batch_last(x))
        return buffer, buffer.shape[0], buffer.size // max(1, buffer.shape[0])

    def _row_sums(self, rows: Array, count: int, length: int, dtype: Any) -> Array:
        """The sums of ``count`` rows of a contiguous array: (count,) of ``dtype``."""
        chunks = chunks_of(length, REDUCE_CHUNK)
        sums = self.xp.empty(count, dtype)
        if chunks == 1:
            self._row_sum(rows, sums, count, length, 1)
            return sums
        partial = self.xp.empty((count, chunks), accumulator(rows.dtype))
        self._row_sum(rows, partial, count, length, chunks)
        self._row_sum(partial, sums, count, chunks, 1)
        return sums

    def _row_sum(self, rows: Array, sums: Array, count: int, length: int, chunks: int) -> None:
        elements = f"{self._element(rows)},{self._element(sums)}"
        chunk = REDUCE_CHUNK if chunks > 1 else max(1, length)
        self._reduce(f"row_sum<{elements}>", count * chunks, rows, sums, length, chunks, chunk)

    def _reduce(self, instance: str, blocks: int, *args: Any) -> None:
        self.kernels.launch(instance, (blocks,), (REDUCE_THREADS,), *args)


class CudaPointwise(Launching, PointwisePrimitives):
    """Element-wise kernels over arrays that lie in memory without gaps."""

    def add(self, a: Array, b: Array, relu: bool = False) -> Array:
        if a.ndim > 1 and all(buffer_of(x).flags.c_contiguous for x in (a, b)):
            return batch_view(super().add(buffer_of(a), buffer_of(b), relu))
        return super().add(a, b, relu)

    def relu(self, x: Array, out: Array | None = None) -> Array:
        # CuPy's functions return C order.
        if out is None and x.ndim > 1 and buffer_of(x).flags.c_contiguous:
            return batch_view(super().relu(buffer_of(x)))
        return super().relu(x, out)

    def relu_grad(self, y: Array, grad_output: Array) -> Array:
        element = self._element(y, grad_output)
        flat = _flat(y, grad_output)
        if element is None or flat is None:
            return super().relu_grad(y, grad_output)
        y_flat, delta = flat
        grad = self.xp.empty(delta.shape, delta.dtype)
        self._launch_elements(f"relu_grad<{element}>", grad.size, y_flat, delta, grad, grad.size)
        return grad if y_flat is y else batch_view(grad)

    def dropout(self, x: Array, p: float, seed: int, counter: int) -> Array:
        x = self.batch_last(x)
        y = self.empty(x.shape, x.dtype)
        scale = x.dtype.type(1 / (1 - p) if p < 1 else 0)
        key = self._captured_key(seed, counter)
        self._launch_elements(
            f"dropout<{self._element(x)}>", x.size, buffer_of(x), buffer_of(y), x.size, key,
            stream_key(seed, counter), round(p * 2**32), float(scale),
        )  # fmt: skip
        return y

    def _captured_key(self, seed: int, counter: int) -> Array | None:
        """Where the device finds the key of a stream, if not among the kernel's arguments."""
        return None


def _flat(*arrays: Array) -> tuple[Array, ...] | None:
    """The arrays, or their buffers, if they are all contiguous in the same order, else None."""
    if all(array.flags.c_contiguous for array in arrays):
        return arrays
    if arrays[0].ndim > 1:
        buffers = tuple(map(buffer_of, arrays))
        if all(buffer.flags.c_contiguous for buffer in buffers):
            return buffers
    return None
