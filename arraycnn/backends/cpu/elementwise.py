"""Dense, pooling, ReLU and batch norm on the CPU: few passes, in chunks that stay in cache."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from arraycnn.arrays import Array, Shape
from arraycnn.backends.cpu.memory import Scratch, zeros
from arraycnn.backends.cpu.threads import WORTHWHILE, Workers
from arraycnn.backends.memory_format import buffer_of
from arraycnn.backends.reference.elementwise import PointwisePrimitives
from arraycnn.backends.reference.normalization import NormalizationPrimitives, rows_of
from arraycnn.backends.reference.pooling import PoolingPrimitives, winner_dtype
from arraycnn.geometry import Window

CHUNK = 1 << 19  # elements that an operation works on at a time: calls cost more on two threads
SUM_BLOCK = 1024  # sums run over blocks this long, then over the blocks, which keeps them accurate
ZEROS = 4096  # that a ReLU compares with at a time
ROWS = 64  # of a dense product that one thread computes at a time
SECONDS = 2e-10  # a guess at the time of one pass over an element …
SECONDS_PER_PRODUCT = 2e-11  # … and of a multiply-add


class CpuElementwise(PoolingPrimitives, NormalizationPrimitives, PointwisePrimitives):
    """Chunked and threaded; see the base classes for what is computed."""

    scratch: Scratch
    workers: Workers

    def add(self, a: Array, b: Array, relu: bool = False) -> Array:
        a, b = self.batch_last(a), self.batch_last(b)
        y = self.empty(a.shape, a.dtype)
        first, second, target = map(_flat, (a, b, y))

        def sum_up(part: slice) -> None:
            np.add(first[part], second[part], out=target[part])
            if relu:
                rectify(target[part], target[part])

        self._each_chunk(sum_up, a.size, passes=3)
        return y

    def relu(self, x: Array, out: Array | None = None) -> Array:
        x = self.batch_last(x)
        y = self.empty(x.shape, x.dtype) if out is None else out
        source, target = _flat(x), _flat(y)

        self._each_chunk(lambda part: rectify(source[part], target[part]), x.size)
        return y

    def relu_grad(self, y: Array, grad_output: Array) -> Array:
        y, grad_output = self.batch_last(y), self.batch_last(grad_output)
        grad = self.empty(y.shape, y.dtype)
        output, source, target = map(_flat, (y, grad_output, grad))

        def select(part: slice) -> None:
            self._select(output[part], source[part], target[part])

        self._each_chunk(select, y.size, passes=3)
        return grad

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

    def max_pool(self, x: Array, window: Window, relu: bool = False) -> Array:
        y = self.empty((*x.shape[:2], *window.output_size), x.dtype)
        source, target = self.padded(x, window, -np.inf), buffer_of(y)
        places = window.tap_places

        def pool(channels: slice) -> None:
            part, best = source[channels], target[channels]
            np.maximum(part[places[0]], part[places[-1]], out=best)  # may be one and the same
            for place in places[1:-1]:
                np.maximum(best, part[place], out=best)
            if relu:
                flat = best.reshape(-1)
                rectify(flat, flat)

        self._each_channels(pool, source.shape, passes=2)
        return y

    def _winners(self, x: Array, y: Array, window: Window, relu: bool) -> Array:
        # A NaN is equal to nothing, so it would not be found below.
        if not is_partition(window) or not x.size or np.isnan(y.max()):
            return super()._winners(x, y, window, relu)
        winners = self.empty(y.shape, winner_dtype(window))
        source, maximum, target = map(buffer_of, (x, y, winners))

        def count(channels: slice) -> None:
            """The winner is as many taps from the first as are waited for in vain."""
            part, best, taps = source[channels], maximum[channels], target[channels]
            waits, differs = (self.scratch(name, best.shape, bool) for name in ("waits", "mask"))
            taps[...] = 0
            waits[...] = True
            for place in window.tap_places[:-1]:
                np.not_equal(part[place], best, out=differs)
                np.logical_and(waits, differs, out=waits)
                np.add(taps, waits.view(np.uint8), out=taps)
            if relu:  # then all are at least 0
                np.equal(best, 0, out=differs)
                nobody = np.multiply(differs.view(np.uint8), taps.dtype.type(window.taps))
                np.maximum(taps, nobody, out=taps)

        self._each_channels(count, source.shape, passes=2)
        return winners

    def max_pool_grad(self, winners: Array, grad_output: Array, window: Window) -> Array:
        if not is_partition(window) or not winners.size:
            return super().max_pool_grad(winners, grad_output, window)
        grad = self.empty((*winners.shape[:2], *window.input_size), grad_output.dtype)
        taps, delta, target = buffer_of(winners), _bits(buffer_of(grad_output)), buffer_of(grad)
        covered = [o * k for o, k in zip(window.output_size, window.kernel_size, strict=True)]

        def route(channels: slice) -> None:
            out = _bits(target)[channels]
            for axis, end in enumerate(covered, 1):  # what no window sees
                out[(slice(None),) * axis + (slice(end, None),)] = 0
            wins = self.scratch("mask", taps[channels].shape, bool)
            for tap, place in enumerate(window.tap_places):
                np.equal(taps[channels], tap, out=wins)
                np.multiply(delta[channels], wins, out=out[place])

        self._each_channels(route, target.shape, passes=3)
        return grad

    def channel_moments(self, x: Array) -> tuple[Array, Array]:
        rows = rows_of(x)  # (C, N·L)
        mean, var = (np.empty(rows.shape[0], x.dtype) for _ in range(2))

        def measure(channels: slice) -> None:
            part, count = rows[channels], rows.shape[1]
            runs = _runs(part.shape)
            # Shifted by the first run's mean, Σ(x − shift)² − n·(mean − shift)² loses few digits.
            shift = (_row_sums(part[:, runs[0]]) / runs[0].stop).astype(x.dtype)
            total, squares = np.zeros((2, part.shape[0]))
            for run in runs:
                centred = self._centred(part[:, run], shift)
                total += _row_sums(centred)
                squares += _row_dots(centred, centred)
            mean[channels] = shift + total / count
            var[channels] = (squares - total * total / count) / count

        self._each_channels(measure, rows.shape, passes=3, blas=True)
        return mean, var

    def scale_shift(self, x: Array, scale: Array, shift: Array, relu: bool = False) -> Array:
        y = self.empty(x.shape, x.dtype)
        source, target = rows_of(x), rows_of(y)

        def apply(channels: slice) -> None:
            for run in _runs(source[channels].shape):
                part = target[channels, run]
                np.multiply(source[channels, run], scale[channels, None], out=part)
                np.add(part, shift[channels, None], out=part)
                if relu:
                    flat = part.reshape(-1)  # rows are whole, or there is only one
                    rectify(flat, flat)

        self._each_channels(apply, source.shape, passes=3)
        return y

    def channel_sum(self, x: Array) -> Array:
        rows = rows_of(self.batch_last(x))  # (C, N·L)
        total = np.empty(rows.shape[0], x.dtype)

        def add(channels: slice) -> None:
            total[channels] = _row_sums(rows[channels])

        self._each_channels(add, rows.shape, passes=1, blas=True)
        return total

    def batch_norm_grad(
        self,
        x: Array,
        mean: Array,
        inverse_std: Array,
        scale: Array,
        grad_output: Array,
        y: Array | None = None,
    ) -> tuple[Array, Array, Array]:
        grad = self.empty(x.shape, x.dtype)
        source, delta, target = rows_of(x), rows_of(grad_output), rows_of(grad)
        output = None if y is None else rows_of(y)
        grad_scale, grad_shift = np.empty_like(mean), np.empty_like(mean)
        count = x.dtype.type(max(1, source.shape[1]))

        def differentiate(channels: slice) -> None:
            shift, total = np.zeros((2, len(mean[channels])))
            runs = _runs(source[channels].shape)
            for run in runs:
                passed = delta[channels, run]
                if output is not None:
                    passed = target[channels, run]
                    self._select(output[channels, run], delta[channels, run], passed)
                shift += _row_sums(passed)
                centred = self._centred(source[channels, run], mean[channels])
                total += _row_dots(passed, centred)
            grad_shift[channels], grad_scale[channels] = shift, total * inverse_std[channels]
            factor = scale[channels] * inverse_std[channels]
            slope = -factor * inverse_std[channels] * grad_scale[channels] / count
            offset = -factor * grad_shift[channels] / count
            for run in reversed(runs):  # the last ones are still in cache
                centred = self._centred(source[channels, run], mean[channels])
                part = target[channels, run]
                passed = delta[channels, run] if output is None else part
                np.multiply(passed, factor[:, None], out=part)
                np.multiply(centred, slope[:, None], out=centred)
                np.add(centred, offset[:, None], out=centred)
                np.add(part, centred, out=part)

        self._each_channels(differentiate, source.shape, passes=8, blas=True)
        return grad, grad_scale, grad_shift

    def _select(self, y: Array, delta: Array, out: Array) -> None:
        """What a ReLU lets through of ``delta``: that where its output y is above zero."""
        passes = self.scratch("mask", y.shape, bool)
        np.greater(y, 0, out=passes)
        np.multiply(_bits(delta), passes, out=_bits(out))

    def _centred(self, part: Array, mean: Array) -> Array:
        centred = self.scratch("centred", part.shape, part.dtype)
        return np.subtract(part, mean[:, None], out=centred)

    def _each_row_block(self, function: Callable[[slice], None], rows: int, products: int) -> None:
        """Call ``function`` for blocks of rows of a matrix product, ``products`` in each row."""
        seconds = rows * products * SECONDS_PER_PRODUCT
        self._each_slice(function, rows, ROWS if seconds > WORTHWHILE else rows, seconds, blas=True)

    def _each_chunk(self, function: Callable[[slice], None], size: int, passes: int = 2) -> None:
        """Call ``function`` for slices that cover ``size`` elements."""
        self._each_slice(function, size, CHUNK, size * passes * SECONDS)

    def _each_channels(
        self, function: Callable[[slice], None], shape: Shape, passes: int, blas: bool = False
    ) -> None:
        """Call ``function`` for slices of the first dimension, each about a chunk of elements."""
        size = math.prod(shape)
        step = max(1, CHUNK // max(1, size // max(1, shape[0])))
        self._each_slice(function, shape[0], step, size * passes * SECONDS, blas)

    def _each_slice(
        self,
        function: Callable[[slice], None],
        length: int,
        step: int,
        seconds: float,
        blas: bool = False,
    ) -> None:
        if length <= step and not blas:
            function(slice(0, length))
            return
        self.workers.run(
            lambda index: function(slice(index * step, min(length, (index + 1) * step))),
            -(-length // step) if length else 0,
            seconds,
            blas,
        )


def _flat(x: Array) -> Array:
    """The elements of a batch-last array as one row."""
    return buffer_of(x).reshape(-1)


def _bits(x: Array) -> Array:
    """The same memory as integers: times 0 or 1 they select exactly, infinities and NaNs too."""
    return x.view(f"i{x.dtype.itemsize}")


def rectify(x: Array, out: Array) -> None:
    """max(x, 0) of elements in a row, against zeros that stay in cache."""
    whole = x.size // ZEROS * ZEROS
    row = zeros(ZEROS, x.dtype)
    if whole:
        np.maximum(x[:whole].reshape(-1, ZEROS), row, out=out[:whole].reshape(-1, ZEROS))
    np.maximum(x[whole:], row[: x.size - whole], out=out[whole:])


@lru_cache(maxsize=512)
def is_partition(window: Window) -> bool:
    """Whether the windows lie side by side inside the input, none overlapping another."""
    return (
        window.stride == window.kernel_size
        and not any(before for before, _ in window.padding)
        and all(d == 1 for d in window.dilation)
        and all(
            o * k <= i
            for o, k, i in zip(
                window.output_size, window.kernel_size, window.input_size, strict=True
            )
        )
    )


def _runs(shape: Shape) -> list[slice]:
    """Slices of the second dimension, each about a chunk of elements."""
    step = max(1, CHUNK // max(1, shape[0]))
    return [slice(start, min(start + step, shape[1])) for start in range(0, shape[1], step)]


def _row_sums(rows: Array) -> Any:
    """Σ of each row in float64."""
    ones = _ones(rows.dtype)
    blocks, rest = _blocks(rows)
    return _sum(np.vecdot(ones, blocks)) + np.vecdot(ones[: rest.shape[1]], rest)


def _row_dots(a: Array, b: Array) -> Any:
    """Σ a·b of each row in float64."""
    (blocks, rest), (others, other_rest) = _blocks(a), _blocks(b)
    return _sum(np.vecdot(blocks, others)) + np.vecdot(rest, other_rest)


def _blocks(rows: Array) -> tuple[Array, Array]:
    """Rows (C, L) as blocks (C, L // SUM_BLOCK, SUM_BLOCK) and what is left of each.

    Dot products of blocks are faster than ``sum``, and where there are hundreds of them NumPy lets
    other threads run.
    """
    count = rows.shape[1] // SUM_BLOCK
    whole = count * SUM_BLOCK
    return rows[:, :whole].reshape(rows.shape[0], count, SUM_BLOCK), rows[:, whole:]


def _sum(sums: Array) -> Any:
    return sums.sum(axis=1, dtype=np.result_type(sums.dtype, np.float64))


@lru_cache(maxsize=8)
def _ones(dtype: Any) -> Array:
    return np.ones(SUM_BLOCK, dtype)
