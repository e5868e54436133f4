"""Batch normalisation on CUDA, in two or three launches.

What the kernels are not made for, complex numbers or mixed types, goes to the base class.
"""

from typing import Any

from arraycnn.arrays import Array
from arraycnn.backends.cuda.launch import ROW_CHUNK, Launching, accumulator, chunks_of
from arraycnn.backends.memory_format import buffer_of
from arraycnn.backends.reference.normalization import NormalizationPrimitives

REDUCE_THREADS, REDUCE_CHUNK = 256, 4096  # as in normalization.cu


class CudaNormalization(Launching, NormalizationPrimitives):
    """Sums over rows in two passes: chunks side by side, then the chunks' results in order."""

    def channel_moments(self, x: Array) -> tuple[Array, Array]:
        rows, channels, length = self._rows(x)
        chunks = chunks_of(length, REDUCE_CHUNK)
        partial = self.xp.empty((2, channels, chunks), accumulator(x.dtype))
        result = self.xp.empty((2, channels), x.dtype)
        element = self.element(x)
        self._reduce(f"chunk_moments<{element}>", channels * chunks, rows, *partial, length, chunks)
        self._reduce(f"merge_moments<{element}>", channels, *partial, *result, length, chunks)
        return result[0], result[1]

    def scale_shift(self, x: Array, scale: Array, shift: Array, relu: bool = False) -> Array:
        element = self.element(x, scale, shift)
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
        if self.element(x) is None:
            return super().channel_sum(x)
        rows, channels, length = self._rows(x)
        return self._row_sums(rows, channels, length, x.dtype)

    def batch_norm_grad(
        self, x: Array, mean: Array, inverse_std: Array, scale: Array, grad_output: Array,
        y: Array | None = None,
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        element = self.element(x, mean, inverse_std, scale, grad_output)
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
        elements = f"{self.element(rows)},{self.element(sums)}"
        chunk = REDUCE_CHUNK if chunks > 1 else max(1, length)
        self._reduce(f"row_sum<{elements}>", count * chunks, rows, sums, length, chunks, chunk)

    def _reduce(self, instance: str, blocks: int, *args: Any) -> None:
        self.kernels.launch(instance, (blocks,), (REDUCE_THREADS,), *args)
