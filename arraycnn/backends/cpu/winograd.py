"""Columns that need fewer products: m outputs of k taps from m + k − 1 products instead of m·k.

Two polynomials with m and k coefficients can be multiplied through their values at m + k − 1 = P
points. The transpose of that algorithm computes m outputs of a filter with k taps (Winograd,
"Arithmetic complexity of computations", 1980; Lavin & Gray, "Fast algorithms for convolutional
neural networks", 2016). With V(n) the P × n matrix of powers of the points,

    y = V(m)ᵀ [V(k) g ⊙ V(P)⁻ᵀ d]        d: the P inputs that m neighbouring outputs see

Here it runs along the rows of images; the sums over channels and over the kernel's rows are matrix
products, one for each point, and the three transforms are products with small matrices. Only for
float32; its rounding errors are two to four times those of the plain sum. An infinity, a NaN or an
overflow spreads to all m outputs: the result must then be computed again with plain columns.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from arraycnn.arrays import Array
from arraycnn.backends.cpu.columns import (
    FLOPS,
    PRODUCTS,
    TILE_BYTES,
    Columns,
    Piece,
    blocks_of,
    overlapping,
    parts_of,
    row_blocks,
)
from arraycnn.backends.cpu.memory import Scratch
from arraycnn.backends.cpu.threads import one_blas_thread
from arraycnn.backends.memory_format import buffer_of
from arraycnn.geometry import Window, tiles

POINTS = (0, 1, -1, 2, -2, 0.5, -0.5)  # and ∞, where a polynomial's value is its last coefficient
COUNTS = (4, 6, 8)  # of points; more lose too many digits
LENGTHS = (128, 1024)  # of matrices, as in plain columns
TRANSFORM = 20  # multiply-adds in the time that one transformed value takes, and as many again
PASSES = 6  # the time of a piece, in that of its products alone, were they as fast as large ones
SMALL = 64  # for batches of this size
WORTHWHILE = 0.9  # of the time of plain columns
COPY = 8  # multiply-adds in the time that one value of a plain column takes

QUIETLY = np.errstate(over="ignore", invalid="ignore")  # plain columns warn where there is reason


class Filter(NamedTuple):
    """The matrices of m outputs with products at P points."""

    outputs: int  # m
    points: int  # P
    kernel: Array  # V(k), its rows scaled (P, k)
    seen: Array  # V(P)⁻ᵀ, its rows scaled to end in 1 (P, P)
    spread: Array  # V(m) (P, m)

    @QUIETLY
    def of_kernels(self, weight: Array, out: Array | None = None) -> Array:
        """V(k) g: kernels (O, C, kh, k) at the points, (P, O, C, kh)."""
        values = np.empty((self.points, *weight.shape[:3]), weight.dtype) if out is None else out
        with one_blas_thread:
            product(self.kernel, weight.reshape(-1, weight.shape[3]).T, values)
        return values

    @QUIETLY
    def to_kernels(self, values: Array) -> Array:
        """The adjoint of `of_kernels`."""
        with one_blas_thread:
            return np.tensordot(values, self.kernel, (0, 0))


class FilteredColumns(Columns):
    """Columns at P points: matrices (P, R, kh·C, L) for L groups of m outputs in each of R rows.

    A piece of a buffer is its part (R, C, columns, n). ``finite`` tells whether all results were.
    """

    def __init__(
        self, scratch: Scratch, limit: int, x: Array, window: Window, outputs: int, m: int
    ) -> None:
        self.scratch, self.window = scratch, window
        self.buffer = buffer_of(x)  # (C, H, W, N)
        self.filter = minimal_filter(m, window.kernel_size[1])
        self.groups, self.stack = 1, self.filter.points
        self.depth = window.kernel_size[0] * x.shape[1]
        self.per_channel = (-1, 1, 1)
        products = window.positions * x.shape[0] * self.depth * outputs * self.filter.points // m
        self.seconds = PASSES * products / FLOPS
        parts = parts_of(self.seconds)
        self.pieces = filtered_pieces(window, x.shape[0], x.shape[1], m, limit, parts)

    def kernels(self, weight: Array) -> Array:
        """V(k) g: weights (O, C, kh, kw) as matrices (P, 1, O, kh·C)."""
        values = self.filter.of_kernels(weight)  # (P, O, C, kh)
        return values.swapaxes(2, 3).reshape(len(values), 1, -1, self.depth)

    def weight_of(self, kernels: Array) -> Array:
        """The adjoint of `kernels`: (P, O, kh·C) → (O, C, kh, kw)."""
        self._check(kernels.sum())
        values = kernels.reshape(*kernels.shape[:2], self.window.kernel_size[0], -1)
        return self.filter.to_kernels(values).swapaxes(1, 2)

    def part(self, buffer: Array, index: int) -> Array:
        return buffer[(slice(None), *self.pieces[index].tile)].swapaxes(0, 1)

    @QUIETLY
    def fill(self, index: int) -> Array:
        """V(P)⁻ᵀ d: the columns (P, R, kh·C, L) of a piece."""
        rows, columns, samples = self.pieces[index].tile
        m, points = self.filter.outputs, self.filter.points
        count = -(-(columns.stop - columns.start) // m)
        whole = slice(columns.start, columns.start + count * m)
        block = self._block((rows, whole, samples))  # (C, lines, columns, n)
        channel, row, column, sample = block.strides
        channels, lines, _, batch = block.shape
        seen = np.lib.stride_tricks.as_strided(  # groups overlap
            block,
            (points, lines, channels, count, batch),
            (column, row, channel, m * column, sample),
        )
        values = self.scratch("columns", seen.shape, block.dtype)
        for part in self._row_blocks(seen):
            gathered = self.scratch("gathered", seen[:, part].shape, block.dtype)
            np.copyto(gathered, seen[:, part])
            product(self.filter.seen, gathered, values[:, part])
        return overlapping(values, rows.stop - rows.start, 1, self.depth, channels)

    @QUIETLY
    def at_points(self, buffer: Array, index: int) -> Array:
        """V(m) u: a piece of a buffer as matrices (P, R, C, L)."""
        part, m = self.part(buffer, index), self.filter.outputs  # (R, C, columns, n)
        rows, channels, columns, batch = part.shape
        count, rest = -(-columns // m), columns % m
        values = self.scratch(
            "values", (self.filter.points, rows, channels, count, batch), part.dtype
        )
        for block in self._row_blocks(values):
            shape = (m, *values[0, block].shape)
            gathered = self.scratch("gathered", shape, part.dtype)
            if rest:
                gathered[rest:, :, :, -1] = 0
            for mine, its in by_column(gathered, part[block]):
                np.copyto(mine, its)
            product(self.filter.spread, gathered, values[:, block])
        return values.reshape(len(values), rows, channels, count * batch)

    @QUIETLY
    def multiply(
        self, kernels: Array, columns: Array, out: Array, offsets: Array | None = None
    ) -> None:
        """V(m)ᵀ of the products, plus offsets, into the part (R, O, columns, n) of the output."""
        points, rows, _, length = columns.shape
        outputs, batch = out.shape[1], out.shape[3]
        step = max(1, PRODUCTS // (points * outputs * length))
        for y in range(0, rows, step):
            part = out[y : y + step]
            products = self.scratch("products", (points, len(part), outputs, length), out.dtype)
            np.matmul(kernels, columns[:, y : y + step], out=products)
            shape = (self.filter.outputs, len(part), outputs, length // batch, batch)
            collected = self.scratch("gathered", shape, out.dtype)
            product(self.filter.spread.T, products, collected)
            for mine, its in by_column(collected, part):
                if offsets is None:
                    np.copyto(its, mine)
                else:
                    np.add(mine, offsets, out=its)
            self._check(np.einsum("mrocn->", collected))

    @QUIETLY
    def correlate(self, factors: Array, columns: Array, total: Array) -> None:
        super().correlate(factors, columns, total)

    def _row_blocks(self, values: Array) -> Iterator[slice]:
        """Slices of the second dimension, so that the values in each stay in cache."""
        rows = values.shape[1]
        return row_blocks(rows, PRODUCTS * rows // max(1, values.size), 1)

    def _check(self, total: Array) -> None:
        if not np.isfinite(total):
            self.finite = False


def product(matrix: Array, values: Array, out: Array) -> None:
    """A matrix times all values (Q, ...) as one product, into ``out`` (P, ...)."""
    np.matmul(matrix, values.reshape(len(values), -1), out=out.reshape(len(out), -1))


def by_column(values: Array, part: Array) -> Iterator[tuple[Array, Array]]:
    """Values (m, R, C, count, n) and the columns of (R, C, columns, n) that they stand for."""
    m, count = len(values), part.shape[2] // len(values)
    whole = part[:, :, : count * m].reshape(*part.shape[:2], count, m, part.shape[3])
    yield values[:, :, :, :count], whole.transpose(3, 0, 1, 2, 4)
    rest = part[:, :, None, count * m :].transpose(3, 0, 1, 2, 4)
    yield values[: len(rest), :, :, -1:], rest


@lru_cache(maxsize=64)
def minimal_filter(outputs: int, taps: int) -> Filter:
    """The filter for m = ``outputs`` and k = ``taps``."""
    points = outputs + taps - 1

    def powers(length: int) -> Array:  # V(length)
        values = np.vander(POINTS[: points - 1], length, increasing=True)
        return np.vstack([values, np.eye(length)[-1]])

    seen = np.linalg.inv(powers(points)).T.round(12)
    last = np.array([row[np.flatnonzero(row)[-1]] for row in seen])[:, None]
    matrices = powers(taps) * last, seen / last, powers(outputs)
    return Filter(outputs, points, *(matrix.astype(np.float32) for matrix in matrices))


@lru_cache(maxsize=512)
def filter_outputs(window: Window, batch: int, inputs: int, outputs: int, limit: int) -> int | None:
    """The m that takes least time; None where plain columns take less, or are all there is."""
    steps = (*window.stride, *window.dilation)
    if window.ndim != 2 or window.kernel_size[1] == 1 or any(step != 1 for step in steps):
        return None
    (height, width), columns = window.kernel_size, window.output_size[1]

    def cost(m: int) -> float:  # of a row, in multiply-adds
        points = m + width - 1
        values = (points * inputs + m * outputs) * (1 + SMALL / batch)
        return -(-columns // m) * (points * height * inputs * outputs + TRANSFORM * values)

    def is_possible(m: int) -> bool:
        fits = 4 * (m + width - 1) * height * inputs <= limit
        return m > 0 and fits and -(-columns // m) * batch >= LENGTHS[0]

    possible = [points - width + 1 for points in COUNTS if is_possible(points - width + 1)]
    best = min(possible, key=cost, default=None)
    plain = columns * (window.taps * inputs * outputs + COPY * width * inputs)
    return best if best is not None and cost(best) < WORTHWHILE * plain else None


@lru_cache(maxsize=512)
def filtered_pieces(
    window: Window, batch: int, channels: int, m: int, limit: int, parts: int = 1
) -> list[Piece]:
    """Pieces whose columns take about ``TILE_BYTES`` and no more than ``limit``."""
    height, width = window.kernel_size
    rows, columns = window.output_size
    line = 4 * (m + width - 1) * channels
    shortest, longest = LENGTHS
    length = max(shortest, TILE_BYTES // (6 * height * line))
    length = min(length, longest, limit // (height * line))
    groups = list(tiles((-(-columns // m), batch), length))
    group, samples = groups[0]
    lines = min(TILE_BYTES, limit) // (line * group.stop * samples.stop)
    blocks = blocks_of([group for group, _ in groups], parts)
    return [
        Piece((part, slice(group.start * m, min(group.stop * m, columns)), samples), part, group)
        for part in row_blocks(rows, lines - height + 1, blocks)
        for group, samples in groups
    ]


def filtered_bytes(window: Window, batch: int, channels: int, m: int, limit: int) -> int:
    """Bytes of the columns that are held at a time, at most."""
    rows, columns, samples = filtered_pieces(window, batch, channels, m, limit)[0].tile
    lines, points = rows.stop + window.kernel_size[0] - 1, m + window.kernel_size[1] - 1
    size: int = 4 * points * channels * lines * -(-columns.stop // m) * samples.stop
    return size
