"""Convolution as matrix multiplication, and its two adjoints.

For an input x, im2col writes what each output position sees into a column of v. With the kernels as
rows of K (Chellapilla, Puri & Simard, "High performance convolutional neural networks for document
processing", 2006):

    forward   h  = K v + b          (O, L·N) = (O, C·taps) (C·taps, L·N) + (O, 1)
    backward  δK = Δ vᴴ             (O, C·taps) = (O, L·N) (L·N, C·taps)
              δx = col2im(Kᴴ Δ)     each input element collects from the columns that saw it

where L counts output positions and Δ is the loss's gradient with respect to h. The transposes are
conjugated so that both maps are the adjoints for complex arrays too. Columns are made, multiplied
and forgotten in tiles, so that they never take more than the backend's ``workspace_limit``.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from arraycnn.arrays import Array, Shape
from arraycnn.backends.memory_format import Layout, buffer_of
from arraycnn.geometry import Window, tiles

Tile = tuple[slice, ...]  # one slice per output dimension and one for the batch


class ConvolutionPrimitives(Layout):
    """im2col, col2im and convolution; arrays are (N, C, *S) in batch-last memory."""

    workspace_limit: int

    def convolution(
        self,
        x: Array,
        weight: Array,
        bias: Array | None,
        window: Window,
        groups: int,
        relu: bool = False,
    ) -> Array:
        """h = K v + b: x (N, C, *S), weight (O, C/groups, *kernel), bias (O,) → (N, O, *out).

        With ``relu``, max(h, 0), applied while a tile of h is at hand.
        """
        h = self.empty((x.shape[0], weight.shape[0], *window.output_size), x.dtype)
        rows = grouped(buffer_of(h), groups)  # (G, O/G, L·N)
        kernels = weight.reshape(groups, weight.shape[0] // groups, -1)  # (G, O/G, C/G·taps)
        offsets = None if bias is None else bias.reshape(groups, -1, 1)  # (G, O/G, 1)
        for run, columns in self._column_tiles(x, window, groups):
            tile = rows[:, :, run]
            self.xp.matmul(kernels, columns, out=tile)
            if offsets is not None:
                tile += offsets
            if relu:
                self.xp.maximum(tile, 0, out=tile)
        return h

    def convolution_weight_grad(
        self, x: Array, grad_output: Array, weight_shape: Shape, window: Window, groups: int
    ) -> Array:
        """δK = Δ vᴴ: x (N, C, *S), grad_output (N, O, *out) → ``weight_shape``."""
        delta = grouped(buffer_of(grad_output), groups)  # (G, O/G, L·N)
        grad = self.xp.zeros((groups, delta.shape[1], math.prod(weight_shape[1:])), x.dtype)
        for run, columns in self._column_tiles(x, window, groups):
            grad += delta[:, :, run] @ columns.conj().swapaxes(1, 2)
        return grad.reshape(weight_shape)

    def convolution_input_grad(
        self, grad_output: Array, weight: Array, window: Window, groups: int
    ) -> Array:
        """δx = col2im(Kᴴ Δ): grad_output (N, O, *out), weight (O, C/groups, *kernel) → (N, C, *S).

        With ``grad_output`` for x this is the transposed convolution.
        """
        delta = grouped(buffer_of(grad_output), groups)  # (G, O/G, L·N)
        kernels = weight.reshape(groups, weight.shape[0] // groups, -1)
        adjoint = kernels.conj().swapaxes(1, 2)  # (G, C/G·taps, O/G)
        channels = weight.shape[1] * groups
        if window.is_pointwise:
            grad = self.empty((grad_output.shape[0], channels, *window.input_size), weight.dtype)
            self.xp.matmul(adjoint, delta, out=grouped(buffer_of(grad), groups))
            return grad
        padded = self.xp.zeros((channels, *window.padded_size, grad_output.shape[0]), weight.dtype)
        for tile, run in self._tiles(window, grad_output.shape[0], channels, weight.dtype):
            self._add_columns(padded, adjoint @ delta[:, :, run], window, tile)
        return self.unpadded(padded, window)

    def convolution_grads(
        self, x: Array, grad_output: Array, weight: Array, window: Window, groups: int
    ) -> tuple[Array, Array]:
        """Both gradients of a convolution: δx and δK."""
        return (
            self.convolution_input_grad(grad_output, weight, window, groups),
            self.convolution_weight_grad(x, grad_output, weight.shape, window, groups),
        )

    def im2col(self, x: Array, window: Window) -> Array:
        """What each output position sees: (N, C, *S) → columns (C·taps, L·N)."""
        seen = self._seen(x, window).copy()  # (C, *kernel, *out, N)
        return seen.reshape(x.shape[1] * window.taps, window.positions * x.shape[0])

    def col2im(self, columns: Array, window: Window, batch: int) -> Array:
        """The adjoint of `im2col`: columns (C·taps, L·N) are added where they came from."""
        channels = columns.shape[0] // window.taps
        padded = self.xp.zeros((channels, *window.padded_size, batch), columns.dtype)
        everything = tuple(slice(0, size) for size in (*window.output_size, batch))
        self._add_columns(padded, columns, window, everything)
        return self.unpadded(padded, window)

    def workspace_bytes(self, window: Window, batch: int, channels: int, dtype: Any) -> int:
        """Bytes of the column matrix that a convolution over ``window`` makes at a time."""
        if window.is_pointwise:
            return 0
        column = channels * window.taps * int(dtype.itemsize)
        return min(window.positions * batch, self._tile_length(column)) * column

    def _column_tiles(self, x: Array, window: Window, groups: int) -> Iterator[tuple[slice, Array]]:
        """Runs of consecutive output elements and their columns (G, C/G·taps, run)."""
        batch, channels = x.shape[:2]
        if window.is_pointwise:
            yield slice(None), grouped(buffer_of(x), groups)
            return
        seen = self._seen(x, window)  # (C, *kernel, *out, N)
        scratch = None
        for tile, run in self._tiles(window, batch, channels, x.dtype):
            part = seen[(slice(None),) * (1 + window.ndim) + tile]
            if scratch is None:  # the first run is the longest
                scratch = self.xp.empty(part.size, x.dtype)
            columns = scratch[: part.size].reshape(part.shape)
            columns[...] = part
            yield run, columns.reshape(groups, channels // groups * window.taps, -1)

    def _tiles(
        self, window: Window, batch: int, channels: int, dtype: Any
    ) -> list[tuple[Tile, slice]]:
        """Tiles whose columns fit the workspace, and the runs they cover."""
        length = self._tile_length(channels * window.taps * dtype.itemsize)
        return tile_runs((*window.output_size, batch), length)

    def _tile_length(self, column_bytes: int) -> int:
        """How many columns of ``column_bytes`` each are made at a time."""
        return max(1, self.workspace_limit // column_bytes)

    def _seen(self, x: Array, window: Window) -> Array:
        """A view (C, *kernel, *out, N) of the padded input: element [c, tap, o, n] is what output
        position o sees through that tap."""
        padded = self.padded(x, window)
        channel, *spatial, sample = padded.strides
        shape = (x.shape[1], *window.kernel_size, *window.output_size, x.shape[0])
        taps = [step * d for step, d in zip(spatial, window.dilation, strict=True)]
        positions = [step * s for step, s in zip(spatial, window.stride, strict=True)]
        strides = (channel, *taps, *positions, sample)
        return self._strided(padded, shape, strides)

    def _strided(self, buffer: Array, shape: Shape, strides: Shape) -> Array:
        """A view of a contiguous array from its first element on."""
        return self.xp.lib.stride_tricks.as_strided(buffer, shape, strides)

    def _add_columns(self, padded: Array, columns: Array, window: Window, tile: Tile) -> None:
        """Add a tile's columns to the elements of the padded buffer (C, *padded, N) they saw."""
        sizes = [part.stop - part.start for part in tile]
        columns = columns.reshape(padded.shape[0], window.taps, *sizes)
        for tap, place in enumerate(window.tap_slices(tile[:-1])):
            padded[(*place, tile[-1])] += columns[:, tap]


def grouped(buffer: Array, groups: int) -> Array:
    """A buffer (C, ...) as the matrices (groups, C/groups, rest)."""
    return buffer.reshape(groups, buffer.shape[0] // groups, math.prod(buffer.shape[1:]))


def adjoint_kernels(weight: Array, groups: int) -> Array:
    """Kernels (O, C/groups, *kernel) of the adjoint convolution: flipped, conjugated, (C, O/groups,
    *kernel)."""
    flip = (slice(None, None, -1),) * (weight.ndim - 2)
    kernels = weight.reshape(groups, -1, *weight.shape[1:]).swapaxes(1, 2)  # (G, C/G, O/G, *kernel)
    flipped = kernels[(slice(None),) * 3 + flip].conj()
    return flipped.reshape(weight.shape[1] * groups, -1, *weight.shape[2:])


@lru_cache(maxsize=512)
def tile_runs(sizes: Shape, length: int) -> list[tuple[Tile, slice]]:
    """Tiles of at most ``length`` elements of a row-major block, and the runs they cover."""
    if not math.prod(sizes):
        return []
    runs, start = [], 0
    for tile in tiles(sizes, length):
        size = math.prod(part.stop - part.start for part in tile)
        runs.append((tile, slice(start, start + size)))
        start += size
    return runs
