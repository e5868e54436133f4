"""Convolution on the CPU tile by tile: columns, and their products while they are in cache.

A tile is a region of the output, computed by matrix products of kernels and columns. Rows of an
image share plain columns: each input row is written once for every tap of the other dimensions. The
patches of output row y are then the stretch of rows y·s … y·s + kh − 1, which lies there as a
matrix already:

    lines     (rows, kw·C, L)              each row of the input, for L outputs of a row
    columns   (output rows, kh·kw·C, L)    overlapping views of the lines

so kh times less is copied than with a column per output. Where rows do not overlap or are short,
all taps are written out, and a matrix runs over as many rows as it likes.
"""

from collections.abc import Callable
from functools import lru_cache
from operator import mul
from typing import NamedTuple

import numpy as np

from arraycnn.arrays import Array, Shape
from arraycnn.backends.cpu import tuning
from arraycnn.backends.cpu.device import CpuDevice
from arraycnn.backends.cpu.memory import zeros
from arraycnn.backends.cpu.threads import OneBlasThread
from arraycnn.backends.cpu.tiles import (
    Block,
    Tile,
    column_bytes,
    column_length,
    column_tiles,
    shares_rows,
    tasks_of,
)
from arraycnn.backends.memory_format import buffer_of
from arraycnn.backends.reference.algorithm import Algorithm, Problem, im2col_seconds
from arraycnn.backends.reference.convolution import Im2col, adjoint_kernels, grouped, region_runs
from arraycnn.geometry import Window


class Factor(NamedTuple):
    """What the columns are multiplied by, and what is done to the products."""

    kernels: Array
    offsets: Array | None = None
    relu: bool = False


class Columns(Algorithm):
    """A convolution as products of kernels and columns, tile by tile, on several threads.

    Plain columns are matrices (G, R, K, L): L elements in each of R rows of the output. Subclasses
    have other kernels and columns, and may find the result of a tile to be wrong: then the next
    algorithm computes all.

    Attributes:
        tiles: regions that cover the output.
        work: seconds of one core at its best, which say whether threads are worth it.
    """

    backend: CpuDevice
    tiles: list[Tile]

    def __init__(self, backend: CpuDevice, problem: Problem) -> None:
        super().__init__(backend, problem)
        self.plan(backend.workspace_limit)

    def plan(self, limit: int) -> None:
        """Estimate the work, and cut it into tiles with no more than ``limit`` bytes of columns."""
        window, batch, inputs, outputs, groups, dtype = problem = self.problem
        self.seconds, self.workspace_bytes = column_seconds(problem), 0
        self.shares = not window.is_pointwise  # else there is nothing to share
        self.depth: int = inputs // groups * window.taps  # K
        self.shared = shares_rows(window, batch)
        self.rows = window.output_size[0] if self.shared else 1
        column = problem.column_bytes
        seconds = (
            self.depth * outputs * tuning.SECONDS_PER_MULTIPLY_ADD
            + column * tuning.SECONDS_PER_COPIED_BYTE
        )
        self.work: float = window.positions * batch * seconds
        if window.is_pointwise:  # nothing is copied
            column += outputs * dtype.itemsize
        else:
            self.workspace_bytes = column_bytes(window, batch, column, limit)
        self.tiles = column_tiles(window, batch, column, limit, tasks_of(self.work))

    def forward(self, x: Array, weight: Array, bias: Array | None, relu: bool) -> Array | None:
        window, batch, _, outputs, _, dtype = self.problem
        h = self.backend.empty((batch, outputs, *window.output_size), dtype)
        source, target = buffer_of(x), buffer_of(h)
        factor = self.factor(weight, bias, relu)
        wrong: list[Tile] = []

        def compute(tile: Tile) -> None:
            if not self.multiply(factor, self.columns(source, tile), target, tile):
                wrong.append(tile)

        self.backend.workers.run(compute, self.tiles, self.work)
        return None if wrong else h

    def weight_grad(self, x: Array, grad_output: Array) -> Array | None:
        source, delta = buffer_of(x), buffer_of(grad_output)

        def add(tile: Tile, total: Array) -> None:
            slopes = self.slopes(delta, tile)
            self.correlate(slopes, self.columns(source, tile).conj(), total)

        return self._sum(add)

    def adjoint_grads(
        self, grad_output: Array, x: Array, kernels: Array
    ) -> tuple[Array, Array] | None:
        # δx = K̃ columns(Δ) with the flipped kernels K̃, and since δK sums over the same pairs of x
        # and Δ, its flip is x columns(Δ)ᴴ. One filling instead of two.
        grad_x = self.backend.empty(x.shape, x.dtype)
        source, target, inputs = buffer_of(grad_output), buffer_of(grad_x), buffer_of(x)
        factor = self.factor(kernels)
        wrong: list[Tile] = []

        def add(tile: Tile, total: Array) -> None:
            columns = self.columns(source, tile)
            if not self.multiply(factor, columns, target, tile):
                wrong.append(tile)
            self.correlate(self.slopes(inputs, tile).conj(), columns, total)

        grad = self._sum(add)  # (C, O, *kernel)
        return None if wrong or grad is None else (grad_x, adjoint_kernels(grad, 1).conj())

    def _sum(self, add: Callable[[Tile, Array], None]) -> Array | None:
        """The weights whose kernels are the sum of what ``add(tile, total)`` adds to a total."""
        count = max(1, min(tuning.PARTIAL_SUMS, len(self.tiles)))
        sums = self.zero_sums(count)

        def accumulate(index: int) -> None:
            total = sums[index]
            for tile in self.tiles[index::count]:
                add(tile, total)

        self.backend.workers.run(accumulate, range(count), 2 * self.work)
        return self.weight_of(np.add.reduce(sums, axis=0))

    def factor(self, weight: Array, bias: Array | None = None, relu: bool = False) -> Factor:
        """Weights (O, C/G, *kernel) as kernels (G, 1, O/G, K), K in the order of the columns."""
        taps = weight.reshape(*weight.shape[:2], self.problem.window.taps).swapaxes(1, 2)
        kernels = taps.reshape(self.problem.groups, 1, -1, self.depth)  # from (O, taps, C/G)
        offsets = None if bias is None else bias.reshape(self.problem.groups, 1, -1, 1)
        return Factor(kernels, offsets, relu)

    def weight_of(self, total: Array) -> Array | None:
        """The adjoint of `factor`: a total (G, O/G, K) as weights, None where it is wrong."""
        window = self.problem.window
        taps = total.reshape(-1, window.taps, self.depth // window.taps).swapaxes(1, 2)
        return taps.reshape(*taps.shape[:2], *window.kernel_size)

    def zero_sums(self, count: int) -> Array:
        """``count`` totals for `correlate`, all zero."""
        outputs, groups = self.problem.outputs, self.problem.groups
        return np.zeros((count, groups, outputs // groups, self.depth), self.problem.dtype)

    def columns(self, buffer: Array, tile: Tile) -> Array:
        """The columns of a tile, from the buffer (C, *S, N); lent until the thread's next call."""
        window, groups = self.problem.window, self.problem.groups
        if window.is_pointwise:
            return self.slopes(buffer, tile)
        base, offset = padded_block(self.backend, buffer, tile.block)
        channel, *spatial, sample = base.strides
        inputs = base.shape[0] // groups
        own = int(self.shared)  # the first dimension whose taps are written out
        lines, line = (tile.block.sizes[0], spatial[0]) if self.shared else (1, 0)
        taps = map(mul, spatial[own:], window.dilation[own:])
        positions = map(mul, spatial[own:], window.stride[own:])
        patches = np.ndarray(
            (groups, lines, *window.kernel_size[own:], inputs, *tile.sizes[own:]),
            base.dtype,
            base,
            offset,
            (inputs * channel, line, *taps, channel, *positions, sample),
        )
        filled = self.backend.scratch("columns", patches.shape, patches.dtype)
        np.copyto(filled, patches)
        if self.shared:
            line_depth = self.depth // window.kernel_size[0]
            return overlapping(filled, tile.sizes[0], window.stride[0], self.depth, line_depth)
        return filled.reshape(groups, 1, self.depth, -1)

    def slopes(self, buffer: Array, tile: Tile) -> Array:
        """A tile of a buffer (O, *out, N), as the other factor in a sum over outputs."""
        channels = grouped(buffer, self.problem.groups)  # (G, O/G, L·N)
        length = channels.shape[2] // self.rows
        matrices = channels.reshape(channels.shape[0], channels.shape[1], self.rows, length)
        return matrices[:, :, tile.rows, tile.run].swapaxes(1, 2)  # (G, R, O/G, L)

    def multiply(self, factor: Factor, columns: Array, target: Array, tile: Tile) -> bool:
        """Write the products into a tile of ``target`` (O, *out, N); whether they are right."""
        out = self.slopes(target, tile)
        np.matmul(factor.kernels, columns, out=out)
        if factor.offsets is not None:
            np.add(out, factor.offsets, out=out)
        if factor.relu:
            np.maximum(out, zeros(out.shape[-1], out.dtype), out=out)
        return True

    def correlate(self, slopes: Array, columns: Array, total: Array) -> None:
        """Add Σ a vᵀ over rows: a (G, R, O, L), columns v (G, R, K, L), total (G, O, K)."""
        step = max(1, tuning.PRODUCT_ELEMENTS // total.size)
        for y in range(0, columns.shape[1], step):
            some = slopes[:, y : y + step]
            shape = (total.shape[0], some.shape[1], *total.shape[1:])
            products = self.backend.scratch("products", shape, total.dtype)
            np.matmul(some, columns[:, y : y + step].swapaxes(2, 3), out=products)
            np.add(total, np.add.reduce(products, axis=1), out=total)

    def input_grad(self, grad_output: Array, weight: Array) -> Array | None:
        """col2im: columns of x's size are added where they came from, blocks of channels at a time.

        They go to different threads: no two of them add to the same element.
        """
        window, batch, channels, outputs, groups, dtype = self.problem
        delta = grouped(buffer_of(grad_output), groups)  # (G, O/G, L·N)
        kernels = weight.reshape(groups, outputs // groups, -1).conj().swapaxes(1, 2)
        padded = self.backend.new_buffer((channels, *window.padded_size, batch), dtype)
        per_group, taps = channels // groups, window.taps
        tasks = max(1, tasks_of(self.work) // groups)
        while per_group % tasks:
            tasks //= 2
        block = per_group // tasks
        length = column_length(block * taps * dtype.itemsize, self.backend.workspace_limit)
        regions = scatter_regions(window, batch, length)

        def scatter(first: int) -> None:
            group, start = divmod(first, per_group)
            target = padded[first : first + block]
            target[...] = 0
            kernel = np.ascontiguousarray(kernels[group, start * taps : (start + block) * taps])
            for run, sizes, inputs, places in regions:
                shape = (kernel.shape[0], run.stop - run.start)
                columns = self.backend.scratch("columns", shape, dtype)
                np.matmul(kernel, delta[group][:, run], out=columns)
                columns = columns.reshape(block, taps, *sizes)
                patches = target[inputs]
                for tap, place in enumerate(places):
                    patches[place] += columns[:, tap]

        self.backend.workers.run(scatter, range(0, channels, block), self.work)
        return self.backend.unpadded(padded, window)


class SmallColumns(Columns):
    """Columns that are too few for anything but making and multiplying them."""

    def __init__(self, backend: CpuDevice, problem: Problem) -> None:
        super().__init__(backend, problem)
        self._plain = Im2col(backend, problem)
        self.workspace_bytes = self._plain.workspace_bytes

    def forward(self, x: Array, weight: Array, bias: Array | None, relu: bool) -> Array | None:
        with OneBlasThread():
            return self._plain.forward(x, weight, bias, relu)

    def weight_grad(self, x: Array, grad_output: Array) -> Array | None:
        with OneBlasThread():
            return self._plain.weight_grad(x, grad_output)


def padded_block(backend: CpuDevice, buffer: Array, block: Block) -> tuple[Array, int]:
    """An array with the block of every channel, and the bytes before it."""
    if not block.borders:
        return buffer, block.offset * buffer.itemsize
    padded = backend.scratch("block", (buffer.shape[0], *block.sizes), buffer.dtype)
    for border in block.borders:
        padded[border] = 0
    padded[block.inner] = buffer[block.inside]
    return padded, 0


def overlapping(lines: Array, rows: int, step: int, depth: int, line_depth: int) -> Array:
    """Lines (G, lines, ...), each of ``line_depth`` rows of a matrix, as columns (G, R, K, L): the
    r-th begins ``step``·r lines further and goes on into the lines that follow."""
    item, line = lines.itemsize, lines.size // (lines.shape[0] * lines.shape[1])
    length = line // line_depth
    return np.ndarray(
        (lines.shape[0], rows, depth, length),
        lines.dtype,
        lines,
        strides=(item * lines.shape[1] * line, item * step * line, item * length, item),
    )


def column_seconds(problem: Problem) -> float:
    """Roughly; rows that share their columns copy a line of each."""
    window = problem.window
    copied = 1 / window.kernel_size[0] if shares_rows(window, problem.batch) else 1.0
    return im2col_seconds(problem, 0.0 if window.is_pointwise else copied)


class ScatterRegion(NamedTuple):
    """A region of the output, and where in a padded buffer its columns are added."""

    run: slice
    sizes: Shape
    inputs: tuple[slice, ...]  # from the first patch on …
    places: list[tuple[slice, ...]]  # … those of each tap


@lru_cache(maxsize=512)
def scatter_regions(window: Window, batch: int, length: int) -> list[ScatterRegion]:
    """Regions of at most ``length`` columns."""
    regions, places = [], {}
    for region, run in region_runs((*window.output_size, batch), length):
        sizes = tuple(part.stop - part.start for part in region)
        if sizes not in places:
            places[sizes] = window.tap_slices(tuple(slice(0, size) for size in sizes[:-1]))
        starts = (part.start * s for part, s in zip(region[:-1], window.stride, strict=True))
        inputs = (slice(None), *(slice(start, None) for start in starts), region[-1])
        regions.append(ScatterRegion(run, sizes, inputs, places[sizes]))
    return regions
