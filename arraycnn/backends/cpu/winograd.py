"""Winograd's minimal filtering F(m, r): m outputs of r taps from m + r − 1 products, not m·r.

Two polynomials with m and r coefficients can be multiplied through their values at m + r − 1 = P
points. The transpose of that algorithm computes m outputs of a filter with r taps (Winograd,
"Arithmetic complexity of computations", 1980; Lavin & Gray, "Fast algorithms for convolutional
neural networks", 2016). With V(n) the P × n matrix of powers of the points,

    y = Aᵀ [G g ⊙ Bᵀ d]        G = V(r), Bᵀ = V(P)⁻ᵀ, A = V(m)
                               d: the P inputs of m neighbouring outputs, g: the r taps

Here it runs along the rows of images; the sums over channels and over the kernel's rows are matrix
products, one for each point, and the three transforms are products with small matrices. Only for
float32; its rounding errors are two to four times those of the plain sum. An infinity, a NaN or an
overflow spreads to all m outputs: such a result is given up.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from arraycnn.arrays import Array
from arraycnn.backends.cpu import tuning
from arraycnn.backends.cpu.columns import (
    Columns,
    Factor,
    column_seconds,
    overlapping,
    padded_block,
)
from arraycnn.backends.cpu.device import CpuDevice
from arraycnn.backends.cpu.memory import zeros
from arraycnn.backends.cpu.threads import OneBlasThread
from arraycnn.backends.cpu.tiles import (
    Tile,
    block_of,
    row_blocks,
    row_blocks_for,
    tasks_of,
    tile_of,
)
from arraycnn.backends.reference.algorithm import Problem
from arraycnn.geometry import Window, tiles

POINTS = (0, 1, -1, 2, -2, 0.5, -0.5)  # and ∞, where a polynomial's value is its last coefficient

QUIETLY = np.errstate(over="ignore", invalid="ignore")  # plain columns warn where there is reason


class Transforms(NamedTuple):
    """The matrices of F(m, r) with P = m + r − 1."""

    m: int
    points: int  # P
    filter: Array  # G, its rows scaled (P, r)
    input: Array  # Bᵀ, its rows scaled to end in 1 (P, P)
    output: Array  # A (P, m)


class Winograd(Columns):
    """Columns at P points: matrices (P, R, kh·C, L) for L groups of m outputs in each of R rows.

    What a backend does faster, it overrides: the transforms and the products.
    """

    shares = True

    def __init__(self, backend: CpuDevice, problem: Problem, m: int) -> None:
        self.transforms = minimal_filtering(m, problem.window.kernel_size[1])
        super().__init__(backend, problem)

    def plan(self, limit: int) -> None:
        window, batch, inputs, _, _, _ = self.problem
        (height, width), m = window.kernel_size, self.transforms.m
        self.seconds = column_seconds(self.problem) * relative_cost(self.problem, m)
        self.depth = height * inputs  # kh·C
        products = self.problem.multiply_adds * self.transforms.points / (m * width)
        self.work = tuning.WINOGRAD_SLOWNESS * products * tuning.SECONDS_PER_MULTIPLY_ADD
        self.tiles = winograd_tiles(window, batch, inputs, m, limit, tasks_of(self.work))
        self.workspace_bytes = winograd_bytes(window, batch, inputs, m, limit)

    def input_grad(self, grad_output: Array, weight: Array) -> Array | None:
        return None  # there is none but that of the adjoint convolution

    def factor(self, weight: Array, bias: Array | None = None, relu: bool = False) -> Factor:
        """G g: weights (O, C, kh, kw) as matrices (P, 1, O, kh·C)."""
        values = self.filter_transform(weight)  # (P, O, C, kh)
        kernels = values.swapaxes(2, 3).reshape(values.shape[0], 1, -1, self.depth)
        return Factor(kernels, None if bias is None else bias.reshape(-1, 1, 1), relu)

    def zero_sums(self, count: int) -> Array:
        shape = (count, self.transforms.points, self.problem.outputs, self.depth)
        return np.zeros(shape, self.problem.dtype)

    def weight_of(self, total: Array) -> Array | None:
        values = total.reshape(*total.shape[:2], self.problem.window.kernel_size[0], -1)
        return self.filter_of(values.swapaxes(2, 3))

    @QUIETLY
    def columns(self, buffer: Array, tile: Tile) -> Array:
        """Bᵀ d: (P, R, kh·C, L)."""
        m, points = self.transforms.m, self.transforms.points
        base, offset = padded_block(self.backend, buffer, tile.block)
        channel, row, column, sample = base.strides
        lines, width, samples = tile.block.sizes
        count = (width - points) // m + 1
        patches = np.ndarray(  # groups overlap
            (points, lines, base.shape[0], count, samples),
            base.dtype,
            base,
            offset,
            (column, row, channel, m * column, sample),
        )
        values = self.backend.scratch("columns", patches.shape, base.dtype)
        for part in self._row_blocks(patches):
            inputs = self.backend.scratch("groups", patches[:, part].shape, base.dtype)
            np.copyto(inputs, patches[:, part])
            transform(self.transforms.input, inputs, values[:, part])
        return overlapping(values, tile.sizes[0], 1, self.depth, base.shape[0])

    @QUIETLY
    def slopes(self, buffer: Array, tile: Tile) -> Array:
        """A u: (P, R, O, L)."""
        part, m = self._region(buffer, tile), self.transforms.m  # (R, O, columns, n)
        rows, channels, columns, samples = part.shape
        count, rest = -(-columns // m), columns % m
        shape = (self.transforms.points, rows, channels, count, samples)
        values = self.backend.scratch("values", shape, part.dtype)
        for block in self._row_blocks(values):
            outputs = self.backend.scratch("groups", (m, *values[0, block].shape), part.dtype)
            if rest:
                outputs[rest:, :, :, -1] = 0
            for ours, theirs in by_column(outputs, part[block]):
                np.copyto(ours, theirs)
            transform(self.transforms.output, outputs, values[:, block])
        return values.reshape(shape[0], rows, channels, count * samples)

    @QUIETLY
    def multiply(self, factor: Factor, columns: Array, target: Array, tile: Tile) -> bool:
        """Aᵀ of the products, plus offsets."""
        out, right = self._region(target, tile), True  # (R, O, columns, n)
        points, rows, _, length = columns.shape
        outputs, samples = out.shape[1], out.shape[3]
        step = max(1, tuning.PRODUCT_ELEMENTS // (points * outputs * length))
        for y in range(0, rows, step):
            part = out[y : y + step]
            size = part.shape[0], outputs
            products = self.backend.scratch("products", (points, *size, length), out.dtype)
            np.matmul(factor.kernels, columns[:, y : y + step], out=products)
            groups = self.transforms.m, *size, length // samples, samples
            results = self.backend.scratch("groups", groups, out.dtype)
            transform(self.transforms.output.T, products, results)
            for ours, theirs in by_column(results, part):
                if factor.offsets is None:
                    np.copyto(theirs, ours)
                else:
                    np.add(ours, factor.offsets, out=theirs)
            right = right and bool(np.isfinite(np.einsum("mrocn->", results)))
        if factor.relu:
            np.maximum(out, zeros(samples, out.dtype), out=out)
        return right

    @QUIETLY
    def correlate(self, slopes: Array, columns: Array, total: Array) -> None:
        super().correlate(slopes, columns, total)

    @QUIETLY
    def filter_transform(self, weight: Array) -> Array:
        """G g: kernels (O, C, kh, r) at the points, (P, O, C, kh)."""
        values = self.backend.new_buffer((self.transforms.points, *weight.shape[:3]), weight.dtype)
        with OneBlasThread():
            transform(self.transforms.filter, weight.reshape(-1, weight.shape[3]).T, values)
        return values

    @QUIETLY
    def filter_of(self, values: Array) -> Array | None:
        """The adjoint of `filter_transform`: (P, O, C, kh) → (O, C, kh, r), None where wrong."""
        with OneBlasThread():
            if not np.isfinite(values.sum()):
                return None
            return np.tensordot(values, self.transforms.filter, (0, 0))

    def _region(self, buffer: Array, tile: Tile) -> Array:
        """A tile of a buffer (C, *out, N) as (R, C, columns, n)."""
        return buffer[(slice(None), *tile.region)].swapaxes(0, 1)

    def _row_blocks(self, values: Array) -> Iterator[slice]:
        """Slices of the second dimension, so that the values in each stay in cache."""
        rows = values.shape[1]
        return row_blocks(rows, tuning.PRODUCT_ELEMENTS * rows // max(1, values.size), 1)


def transform(matrix: Array, values: Array, out: Array) -> None:
    """A matrix times all values (Q, ...) as one product, into ``out`` (P, ...)."""
    np.matmul(matrix, values.reshape(values.shape[0], -1), out=out.reshape(out.shape[0], -1))


def by_column(values: Array, part: Array) -> Iterator[tuple[Array, Array]]:
    """Values (m, R, C, count, n) and the columns of (R, C, columns, n) that they stand for."""
    m, count = values.shape[0], part.shape[2] // values.shape[0]
    whole = part[:, :, : count * m].reshape(*part.shape[:2], count, m, part.shape[3])
    yield values[:, :, :, :count], whole.transpose(3, 0, 1, 2, 4)
    rest = part[:, :, None, count * m :].transpose(3, 0, 1, 2, 4)
    yield values[: rest.shape[0], :, :, -1:], rest


@lru_cache(maxsize=64)
def minimal_filtering(m: int, r: int) -> Transforms:
    """The matrices of F(m, r)."""
    size = m + r - 1

    def powers(length: int) -> Array:  # V(length)
        values = np.vander(POINTS[: size - 1], length, increasing=True)
        return np.vstack([values, np.eye(length)[-1]])

    of_input = np.linalg.inv(powers(size)).T.round(12)
    last = np.array([row[np.flatnonzero(row)[-1]] for row in of_input])[:, None]
    matrices = powers(r) * last, of_input / last, powers(m)
    return Transforms(m, size, *(matrix.astype(np.float32) for matrix in matrices))


def is_stride_one(window: Window) -> bool:
    """Whether a window has two dimensions, and its patches are neighbours without gaps."""
    return window.ndim == 2 and {*window.stride, *window.dilation} == {1}


def best_m(problem: Problem, limit: int) -> int | None:
    """The m that takes least time among those that apply; None where there is none."""
    window, batch, inputs, _, groups, dtype = problem
    if groups > 1 or dtype != np.float32 or not is_stride_one(window):
        return None
    (height, width), columns = window.kernel_size, window.output_size[1]
    possible = [
        size - width + 1
        for size in tuning.INPUT_SIZES
        if size >= width > 1
        and 4 * size * height * inputs <= limit
        and -(-columns // (size - width + 1)) * batch >= tuning.WINOGRAD_LENGTHS[0]
    ]
    return min(possible, key=lambda m: relative_cost(problem, m), default=None)


def relative_cost(problem: Problem, m: int) -> float:
    """Time of F(m, r) to that of plain columns; above 1 where it gains too little."""
    window, batch, inputs, outputs, _, _ = problem
    (height, width), columns = window.kernel_size, window.output_size[1]
    points = m + width - 1
    values = (points * inputs + m * outputs) * (1 + tuning.SMALL_BATCH / batch)
    products = points * height * inputs * outputs
    cost = -(-columns // m) * (products + tuning.TRANSFORM_COST * values)
    plain = columns * (window.taps * inputs * outputs + tuning.COPY_COST * width * inputs)
    return cost / (tuning.WINOGRAD_GAIN * plain)


@lru_cache(maxsize=512)
def winograd_tiles(
    window: Window, batch: int, channels: int, m: int, limit: int, tasks: int = 1
) -> list[Tile]:
    """Tiles whose columns are still in cache when they are multiplied, within ``limit`` bytes."""
    height, width = window.kernel_size
    rows, columns = window.output_size
    line = 4 * (m + width - 1) * channels
    shortest, longest = tuning.WINOGRAD_LENGTHS
    length = max(shortest, tuning.COLUMN_TILE_BYTES // (6 * height * line))
    length = min(length, longest, limit // (height * line))
    groups = list(tiles((-(-columns // m), batch), length))
    group, samples = groups[0]
    lines = min(tuning.COLUMN_TILE_BYTES, limit) // (line * group.stop * samples.stop)
    blocks = row_blocks_for([group for group, _ in groups], tasks)
    return [
        winograd_tile(window, batch, part, slice(group.start * m, group.stop * m), samples)
        for part in row_blocks(rows, lines - height + 1, blocks)
        for group, samples in groups
    ]


def winograd_tile(window: Window, batch: int, rows: slice, columns: slice, samples: slice) -> Tile:
    """A tile with the input of all its groups of m outputs, the last of which may be short."""
    there = slice(columns.start, min(columns.stop, window.output_size[1]))
    tile = tile_of(window, batch, (rows, there, samples), rows, there)
    return tile._replace(block=block_of(window, batch, (rows, columns, samples)))


def winograd_bytes(window: Window, batch: int, channels: int, m: int, limit: int) -> int:
    """Bytes of the columns that are held at a time, at most."""
    rows, columns, samples = winograd_tiles(window, batch, channels, m, limit)[0].region
    lines, points = rows.stop + window.kernel_size[0] - 1, m + window.kernel_size[1] - 1
    size: int = 4 * points * channels * lines * -(-columns.stop // m) * samples.stop
    return size
