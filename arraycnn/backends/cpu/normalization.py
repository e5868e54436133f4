"""Batch normalisation on the CPU: sums in blocks, in chunks that stay in cache, on threads."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from arraycnn.arrays import Array, Shape
from arraycnn.backends.cpu import tuning
from arraycnn.backends.cpu.device import CpuDevice, cuts, row_cuts
from arraycnn.backends.cpu.elementwise import rectify, select_positive
from arraycnn.backends.reference.normalization import NormalizationPrimitives, rows_of


class CpuNormalization(CpuDevice, NormalizationPrimitives):
    """See the base class for what is computed."""

    def channel_moments(self, x: Array) -> tuple[Array, Array]:
        rows = rows_of(x)  # (C, N·L)
        mean, var = (np.empty(rows.shape[0], x.dtype) for _ in range(2))

        def measure(channels: slice) -> None:
            part, count = rows[channels], rows.shape[1]
            chunks = _columns(part.shape)
            # Shifted by the first chunk's mean, Σ(x − shift)² − n·(mean − shift)² loses few digits.
            shift = (_row_sums(part[:, chunks[0]]) / chunks[0].stop).astype(x.dtype)
            total, squares = np.zeros((2, part.shape[0]))
            for chunk in chunks:
                centred = self._centred(part[:, chunk], shift)
                total += _row_sums(centred)
                squares += _row_dots(centred, centred)
            mean[channels] = shift + total / count
            var[channels] = (squares - total * total / count) / count

        self._each_channels(measure, rows, passes=3)
        return mean, var

    def scale_shift(self, x: Array, scale: Array, shift: Array, relu: bool = False) -> Array:
        y = self.empty(x.shape, x.dtype)
        source, target = rows_of(x), rows_of(y)

        def apply(channels: slice) -> None:
            for chunk in _columns(source[channels].shape):
                part = target[channels, chunk]
                np.multiply(source[channels, chunk], scale[channels, None], out=part)
                np.add(part, shift[channels, None], out=part)
                if relu:
                    row = part.reshape(-1)  # rows are whole, or there is only one
                    rectify(row, row)

        self._each_channels(apply, source, passes=3, blas=False)
        return y

    def channel_sum(self, x: Array) -> Array:
        rows = rows_of(self.batch_last(x))  # (C, N·L)
        total = np.empty(rows.shape[0], x.dtype)

        def add(channels: slice) -> None:
            total[channels] = _row_sums(rows[channels])

        self._each_channels(add, rows, passes=1)
        return total

    def batch_norm_grad(
        self, x: Array, mean: Array, inverse_std: Array, scale: Array, grad_output: Array,
        y: Array | None = None,
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        grad = self.empty(x.shape, x.dtype)
        source, delta, target = rows_of(x), rows_of(grad_output), rows_of(grad)
        output = None if y is None else rows_of(y)
        grad_scale, grad_shift = np.empty_like(mean), np.empty_like(mean)
        count = x.dtype.type(max(1, source.shape[1]))

        def differentiate(channels: slice) -> None:
            shift, total = np.zeros((2, mean[channels].size))
            chunks = _columns(source[channels].shape)
            for chunk in chunks:
                passed = delta[channels, chunk]
                if output is not None:
                    passed = target[channels, chunk]
                    y_chunk, grad_chunk = output[channels, chunk], delta[channels, chunk]
                    select_positive(self.scratch, y_chunk, grad_chunk, passed)
                shift += _row_sums(passed)
                centred = self._centred(source[channels, chunk], mean[channels])
                total += _row_dots(passed, centred)
            grad_shift[channels], grad_scale[channels] = shift, total * inverse_std[channels]
            factor = scale[channels] * inverse_std[channels]
            slope = -factor * inverse_std[channels] * grad_scale[channels] / count
            offset = -factor * grad_shift[channels] / count
            for chunk in reversed(chunks):  # the last ones are still in cache
                centred = self._centred(source[channels, chunk], mean[channels])
                part = target[channels, chunk]
                passed = delta[channels, chunk] if output is None else part
                np.multiply(passed, factor[:, None], out=part)
                np.multiply(centred, slope[:, None], out=centred)
                np.add(centred, offset[:, None], out=centred)
                np.add(part, centred, out=part)

        self._each_channels(differentiate, source, passes=8)
        return grad, grad_scale, grad_shift

    def _centred(self, part: Array, mean: Array) -> Array:
        centred = self.scratch("centred", part.shape, part.dtype)
        return np.subtract(part, mean[:, None], out=centred)

    def _each_channels(
        self, function: Callable[[slice], None], rows: Array, passes: int, blas: bool = True
    ) -> None:
        """Call ``function`` for slices of the rows (C, N·L), each about a chunk of elements."""
        seconds = rows.size * passes * tuning.SECONDS_PER_PASS
        self.workers.run(function, row_cuts(rows.shape[0], rows.size), seconds, blas)


def _columns(shape: Shape) -> list[slice]:
    """Slices of the second dimension, each about a chunk of elements."""
    return cuts(shape[1], max(1, tuning.CHUNK_ELEMENTS // max(1, shape[0])))


def _row_sums(rows: Array) -> Any:
    """Σ of each row in float64."""
    ones = _ones(rows.dtype)
    blocks, rest = _blocks(rows)
    return _wide_sum(np.vecdot(ones, blocks)) + np.vecdot(ones[: rest.shape[1]], rest)


def _row_dots(a: Array, b: Array) -> Any:
    """Σ a·b of each row in float64."""
    (blocks, rest), (others, other_rest) = _blocks(a), _blocks(b)
    return _wide_sum(np.vecdot(blocks, others)) + np.vecdot(rest, other_rest)


def _blocks(rows: Array) -> tuple[Array, Array]:
    """Rows (C, L) as blocks (C, count, SUM_ELEMENTS) and what is left of each.

    Dot products of blocks are faster than ``sum``, and where there are hundreds of them NumPy lets
    other threads run.
    """
    count = rows.shape[1] // tuning.SUM_ELEMENTS
    whole = count * tuning.SUM_ELEMENTS
    return rows[:, :whole].reshape(rows.shape[0], count, tuning.SUM_ELEMENTS), rows[:, whole:]


def _wide_sum(sums: Array) -> Any:
    return np.add.reduce(sums, axis=1, dtype=np.result_type(sums.dtype, np.float64))


@lru_cache(maxsize=8)
def _ones(dtype: Any) -> Array:
    return np.ones(tuning.SUM_ELEMENTS, dtype)
