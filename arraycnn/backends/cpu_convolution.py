"""Convolution on the CPU: the reference in tiles that stay in cache, on several threads."""

import math
from functools import lru_cache
from typing import Any

import numpy as np

from arraycnn.backends.convolution import (
    ConvolutionPrimitives,
    adjoint_kernels,
    grouped,
    tile_runs,
)
from arraycnn.backends.layout import buffer_of
from arraycnn.backends.memory import BlockPool, Scratch
from arraycnn.backends.threads import Workers
from arraycnn.geometry import Window
from arraycnn.types import Array, Shape

TILE_BYTES = 2 << 20  # a column tile this large is still in cache when it is multiplied
TILE_LENGTHS = (256, 8192)  # shorter tiles starve the matrix product, longer ones gain nothing
ACCUMULATOR_BYTES = 160 << 10  # a weight gradient this small stays in cache from tile to tile
PARTIAL_SUMS = 4  # weight gradients are added up in so many parts, however many threads there are
FLOPS = 1e11  # a guess at multiply-adds per second of one core …
BYTES = 1e10  # … and at bytes copied, to see what is worth a thread


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
        h = self.empty((x.shape[0], weight.shape[0], *window.output_size), x.dtype)
        rows = grouped(buffer_of(h), groups)  # (G, O/G, L·N)
        kernels = weight.reshape(groups, weight.shape[0] // groups, -1)  # (G, O/G, C/G·taps)
        offsets = None if bias is None else bias.reshape(groups, -1, 1)  # (G, O/G, 1)
        columns = _Columns(self, x, window, groups, rows.shape[1])

        def multiply(index: int) -> None:
            run, v = columns.fill(index)
            tile = rows[:, :, run]
            np.matmul(kernels, v, out=tile)
            if offsets is not None:
                np.add(tile, offsets, out=tile)
            if relu:
                np.maximum(tile, _zeros(tile.shape[-1], tile.dtype), out=tile)

        self.workers.run(multiply, len(columns), columns.seconds(rows.shape[1]))
        return h

    def convolution_weight_grad(
        self, x: Array, grad_output: Array, weight_shape: Shape, window: Window, groups: int
    ) -> Array:
        channel_bytes = math.prod(weight_shape[2:]) * weight_shape[0] * x.dtype.itemsize
        block = max(1, ACCUMULATOR_BYTES // channel_bytes)
        if groups == 1 and block < x.shape[1] and not window.is_pointwise:
            return self._weight_grad_by_channels(x, grad_output, weight_shape, window, block)
        delta = grouped(buffer_of(grad_output), groups)  # (G, O/G, L·N)
        columns = _Columns(self, x, window, groups, delta.shape[1])
        parts = min(PARTIAL_SUMS, len(columns))
        shape = (groups, delta.shape[1], columns.rows)
        sums = np.zeros((max(1, parts), *shape), x.dtype)

        def accumulate(part: int) -> None:
            product = self.scratch("product", shape, x.dtype)
            for index in range(part, len(columns), parts):
                run, v = columns.fill(index)
                np.matmul(delta[:, :, run], v.conj().swapaxes(1, 2), out=product)
                np.add(sums[part], product, out=sums[part])

        self.workers.run(accumulate, parts, columns.seconds(delta.shape[1]))
        for part in range(1, parts):
            sums[0] += sums[part]
        return sums[0].reshape(weight_shape)

    def _weight_grad_by_channels(
        self, x: Array, grad_output: Array, weight_shape: Shape, window: Window, block: int
    ) -> Array:
        """Input channels in blocks: each part of δK is small enough to stay in cache."""
        delta = grouped(buffer_of(grad_output), 1)
        grad = np.zeros(weight_shape, x.dtype)
        starts = range(0, x.shape[1], block)

        def accumulate(part: int) -> None:
            channels = slice(starts[part], min(starts[part] + block, x.shape[1]))
            columns = _Columns(self, x[:, channels], window, 1, delta.shape[1])
            shape = (1, delta.shape[1], columns.rows)
            product, total = (self.scratch(n, shape, x.dtype) for n in ("product", "total"))
            total[...] = 0
            for index in range(len(columns)):
                run, v = columns.fill(index)
                np.matmul(delta[:, :, run], v.conj().swapaxes(1, 2), out=product)
                np.add(total, product, out=total)
            grad[:, channels] = total.reshape(grad[:, channels].shape)

        seconds = _Columns(self, x, window, 1, delta.shape[1]).seconds(delta.shape[1])
        self.workers.run(accumulate, len(starts), seconds)
        return grad

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
        per_group = channels // groups
        block = max(1, -(-per_group // max(1, 4 // groups)))
        blocks = [(g, c) for g in range(groups) for c in range(0, per_group, block)]
        taps = window.taps

        def scatter(part: int) -> None:
            group, start = blocks[part]
            stop = min(start + block, per_group)
            target = padded[group * per_group + start : group * per_group + stop]
            target[...] = 0
            kernel = np.ascontiguousarray(kernels[group, start * taps : stop * taps])
            length = self._tile_length(kernel.shape[0] * weight.dtype.itemsize)
            for tile, run in tile_runs(window, batch, length):
                shape = (kernel.shape[0], run.stop - run.start)
                columns = self.scratch("columns", shape, weight.dtype)
                np.matmul(kernel, delta[group][:, run], out=columns)
                self._add_columns(target, columns, window, tile)

        flops = delta.size * per_group * taps
        self.workers.run(scatter, len(blocks), flops / FLOPS)
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
        kernels = adjoint_kernels(weight, 1).reshape(1, inputs, -1)  # (1, C, O·taps)
        columns = _Columns(self, grad_output, direct, 1, inputs)
        grad_x = self.empty(x.shape, x.dtype)
        source, target = grouped(buffer_of(x), 1), grouped(buffer_of(grad_x), 1)  # (1, C, L·N)
        parts = min(PARTIAL_SUMS, len(columns))
        sums = np.zeros((max(1, parts), *kernels.shape), x.dtype)

        def accumulate(part: int) -> None:
            product = self.scratch("product", kernels.shape, x.dtype)
            for index in range(part, len(columns), parts):
                run, v = columns.fill(index)
                np.matmul(kernels, v, out=target[:, :, run])
                np.matmul(source[:, :, run].conj(), v.swapaxes(1, 2), out=product)
                np.add(sums[part], product, out=sums[part])

        self.workers.run(accumulate, parts, 2 * columns.seconds(inputs))
        for part in range(1, parts):
            sums[0] += sums[part]
        flipped = sums[0].reshape(inputs, outputs, *weight.shape[2:])  # (C, O, *kernel)
        return grad_x, adjoint_kernels(flipped, 1).conj()

    def _tile_length(self, column_bytes: int) -> int:
        shortest, longest = TILE_LENGTHS
        length = min(longest, max(shortest, TILE_BYTES // column_bytes))
        return min(length, super()._tile_length(column_bytes))


class _Columns:
    """The columns of an input, made tile by tile into scratch memory of the calling thread."""

    def __init__(
        self, backend: CpuConvolution, x: Array, window: Window, groups: int, outputs: int
    ) -> None:
        self.backend, self.groups, self.pointwise = backend, groups, window.is_pointwise
        self.rows: int = x.shape[1] // groups * window.taps
        self.bytes: int = self.rows * groups * x.dtype.itemsize
        length = backend._tile_length(self.bytes + self.pointwise * outputs * x.dtype.itemsize)
        self.tiles = tile_runs(window, x.shape[0], length)
        if self.pointwise:
            self.seen = grouped(buffer_of(x), groups)  # (G, C/G, L·N)
        else:
            self.seen = backend._seen(x, window)  # (C, *kernel, *out, N)
        self.before = (slice(None),) * (1 + window.ndim)

    def __len__(self) -> int:
        return len(self.tiles)

    def seconds(self, outputs: int) -> float:
        """A guess at the time to make all columns and multiply them with ``outputs`` rows."""
        length: int = self.tiles[-1][1].stop if self.tiles else 0
        return length * (self.groups * self.rows * outputs / FLOPS + self.bytes / BYTES)

    def fill(self, index: int) -> tuple[slice, Array]:
        """A run of output elements and its columns (G, C/G·taps, run), lent until the next call."""
        tile, run = self.tiles[index]
        if self.pointwise:
            return run, self.seen[:, :, run]
        part = self.seen[self.before + tile]
        columns = self.backend.scratch("columns", part.shape, part.dtype)
        np.copyto(columns, part)
        return run, columns.reshape(self.groups, self.rows, -1)


def _zeros(length: int, dtype: Any) -> Array:
    """Zeros to compare with: several times faster than comparing with a number."""
    return _longer_zeros(-(-length // 4096) * 4096, dtype)[:length]


@lru_cache(maxsize=64)
def _longer_zeros(length: int, dtype: Any) -> Array:
    return np.zeros(length, dtype)
