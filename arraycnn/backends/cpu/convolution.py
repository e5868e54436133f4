"""Convolution on the CPU: the reference in tiles that stay in cache, on several threads."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

from arraycnn.arrays import Array, Shape
from arraycnn.backends.cpu.columns import (
    BYTES,
    LENGTHS,
    TILE_BYTES,
    Columns,
    column_bytes,
    parts_of,
)
from arraycnn.backends.cpu.columns import FLOPS as FLOPS
from arraycnn.backends.cpu.memory import BlockPool, Scratch, zeros
from arraycnn.backends.cpu.threads import Workers, one_blas_thread
from arraycnn.backends.cpu.winograd import FilteredColumns, filter_outputs, filtered_bytes
from arraycnn.backends.memory_format import buffer_of
from arraycnn.backends.reference.convolution import (
    ConvolutionPrimitives,
    adjoint_kernels,
    grouped,
    tile_runs,
)
from arraycnn.geometry import Window

SMALL = 1 << 16  # elements in all columns of a convolution that is not worth cutting up
PARTIAL_SUMS = 4  # weight gradients are added up in so many parts, however many threads there are

T = TypeVar("T")


class CpuConvolution(ConvolutionPrimitives):
    """Tiled, threaded and with recycled memory; computes what `ConvolutionPrimitives` does."""

    blocks: BlockPool
    scratch: Scratch
    workers: Workers

    def convolution(
        self,
        x: Array,
        weight: Array,
        bias: Array | None,
        window: Window,
        groups: int,
        relu: bool = False,
    ) -> Array:
        if _is_small(window, *x.shape[:2]):
            with one_blas_thread:
                return super().convolution(x, weight, bias, window, groups, relu)

        def multiply(columns: Columns) -> Array:
            h = self.empty((x.shape[0], weight.shape[0], *window.output_size), x.dtype)
            kernels = columns.kernels(weight)
            offsets = None if bias is None else bias.reshape(columns.per_channel)

            def piece(index: int) -> None:
                out = columns.part(buffer_of(h), index)
                columns.multiply(kernels, columns.fill(index), out, offsets)
                if relu:
                    np.maximum(out, zeros(out.shape[-1], out.dtype), out=out)

            self.workers.run(piece, len(columns), columns.seconds)
            return h

        return self._with_columns(multiply, x, window, groups, weight.shape[0])

    def convolution_weight_grad(
        self, x: Array, grad_output: Array, weight_shape: Shape, window: Window, groups: int
    ) -> Array:
        if _is_small(window, *x.shape[:2]):
            with one_blas_thread:
                return super().convolution_weight_grad(x, grad_output, weight_shape, window, groups)

        def correlate(columns: Columns) -> Array:
            def piece(index: int, total: Array) -> None:
                delta = columns.at_points(buffer_of(grad_output), index)
                columns.correlate(delta, columns.fill(index).conj(), total)

            return self._sum_of_pieces(columns, weight_shape[0], piece)

        return self._with_columns(correlate, x, window, groups, weight_shape[0])

    def convolution_input_grad(
        self, grad_output: Array, weight: Array, window: Window, groups: int
    ) -> Array:
        direct = window.adjoint()
        channels = weight.shape[1] * groups
        # The columns of the wider side cost most: col2im has C of them, the convolution O.
        narrow = 2 * channels < weight.shape[0]
        if direct is not None and not narrow:
            kernels = adjoint_kernels(weight, groups)
            return self.convolution(grad_output, kernels, None, direct, groups)
        delta = grouped(buffer_of(grad_output), groups)  # (G, O/G, L·N)
        kernels = weight.reshape(groups, weight.shape[0] // groups, -1).conj().swapaxes(1, 2)
        batch = grad_output.shape[0]
        padded = self.new_buffer((channels, *window.padded_size, batch), weight.dtype)
        # Blocks of channels go to different threads: no two of them add to the same element.
        per_group, taps = channels // groups, window.taps
        column = channels * taps * weight.dtype.itemsize
        seconds = delta.size * per_group * taps / FLOPS + delta.shape[2] * column / BYTES
        parts = max(1, parts_of(seconds) // groups)
        while per_group % parts:  # in equal shares
            parts //= 2
        block = per_group // parts
        blocks = [(g, c) for g in range(groups) for c in range(0, per_group, block)]

        def scatter(part: int) -> None:
            group, start = blocks[part]
            stop = start + block
            target = padded[group * per_group + start : group * per_group + stop]
            target[...] = 0
            kernel = np.ascontiguousarray(kernels[group, start * taps : stop * taps])
            length = self._tile_length(kernel.shape[0] * weight.dtype.itemsize)
            for tile, run in tile_runs((*window.output_size, batch), length):
                shape = (kernel.shape[0], run.stop - run.start)
                columns = self.scratch("columns", shape, weight.dtype)
                np.matmul(kernel, delta[group][:, run], out=columns)
                sizes = tuple(part.stop - part.start for part in tile)
                columns = columns.reshape(stop - start, taps, *sizes)
                first = (
                    slice(p.start * s, None) for p, s in zip(tile, window.stride, strict=False)
                )
                seen = target[(slice(None), *first, tile[-1])]
                for tap, place in enumerate(tap_places(window, sizes[:-1])):
                    seen[place] += columns[:, tap]

        self.workers.run(scatter, len(blocks), seconds)
        return self.unpadded(padded, window)

    def convolution_grads(
        self, x: Array, grad_output: Array, weight: Array, window: Window, groups: int
    ) -> tuple[Array, Array]:
        # With unit stride the columns of Δ serve both: δx = K̃ columns(Δ), and since δK sums over
        # the same pairs of x and Δ, its flip is x columns(Δ)ᴴ. One filling instead of two.
        direct = window.adjoint()
        outputs, inputs = weight.shape[0], weight.shape[1]
        if direct is None or groups > 1 or outputs > 2 * inputs or window.is_pointwise:
            return super().convolution_grads(x, grad_output, weight, window, groups)
        kernels = adjoint_kernels(weight, 1)  # (C, O, *kernel)

        def differentiate(columns: Columns) -> tuple[Array, Array]:
            grad_x = self.empty(x.shape, x.dtype)
            flipped = columns.kernels(kernels)

            def piece(index: int, total: Array) -> None:
                v = columns.fill(index)
                columns.multiply(flipped, v, columns.part(buffer_of(grad_x), index))
                columns.correlate(columns.at_points(buffer_of(x), index).conj(), v, total)

            grad = self._sum_of_pieces(columns, inputs, piece)  # (C, O, *kernel)
            return grad_x, adjoint_kernels(grad, 1).conj()

        return self._with_columns(differentiate, grad_output, direct, 1, inputs)

    def workspace_bytes(self, window: Window, batch: int, channels: int, dtype: Any) -> int:
        if _is_small(window, batch, channels):
            return super().workspace_bytes(window, batch, channels, dtype)
        limit, m = self.workspace_limit, None
        most = column_bytes(window, batch, channels, dtype.itemsize, limit)
        if dtype == np.float32:  # how many outputs there are is not known here
            m = filter_outputs(window, batch, channels, channels, limit)
        return most if m is None else max(most, filtered_bytes(window, batch, channels, m, limit))

    def _with_columns(
        self, compute: Callable[[Columns], T], x: Array, window: Window, groups: int, outputs: int
    ) -> T:
        """``compute`` with the columns that need fewest products, and again with plain ones where
        the results of those are not finite."""
        limit, m = self.workspace_limit, None
        if groups == 1 and x.dtype == np.float32:
            m = filter_outputs(window, *x.shape[:2], outputs, limit)
        if m is not None:
            columns = FilteredColumns(self.scratch, limit, x, window, outputs, m)
            result = compute(columns)
            if columns.finite:
                return result
        return compute(Columns(self.scratch, limit, x, window, groups, outputs))

    def _sum_of_pieces(
        self, columns: Columns, outputs: int, piece: Callable[[int, Array], None]
    ) -> Array:
        """The weights of ``outputs`` channels whose kernels are the sum of what ``piece(i, total)``
        adds to a total."""
        parts = max(1, min(PARTIAL_SUMS, len(columns)))
        shape = (columns.stack, outputs // columns.groups, columns.depth)
        sums = np.zeros((parts, *shape), columns.buffer.dtype)

        def accumulate(part: int) -> None:
            for index in range(part, len(columns), parts):
                piece(index, sums[part])

        self.workers.run(accumulate, parts, 2 * columns.seconds)
        return columns.weight_of(sums.sum(axis=0))

    def _strided(self, buffer: Array, shape: Shape, strides: Shape) -> Array:
        return np.ndarray(shape, buffer.dtype, buffer, 0, strides)  # in a tenth of the time

    def _tile_length(self, column_bytes: int) -> int:
        shortest, longest = LENGTHS
        length = min(longest, max(shortest, TILE_BYTES // column_bytes))
        return min(length, super()._tile_length(column_bytes))


def _is_small(window: Window, batch: int, channels: int) -> bool:
    """Whether the columns are too few for anything but making and multiplying them."""
    return batch * channels * window.taps * window.positions <= SMALL


@lru_cache(maxsize=128)
def tap_places(window: Window, sizes: Shape) -> list[tuple[slice, ...]]:
    """What a tile of so many positions sees through each tap, from the first that it sees on."""
    return window.tap_slices(tuple(slice(0, size) for size in sizes))
