"""Winograd's minimal filtering with compiled kernels: the driver of `cpu.winograd`.

Tiles of rows and samples are transformed, multiplied and transformed back while they are in cache;
the products over channels and over the kernel's rows are those of a convolution with a kernel of
one column, a group of it for every point.
"""

from functools import lru_cache
from itertools import pairwise, product

import numpy as np

from arraycnn.arrays import Array
from arraycnn.backends.compiled.device import FLOAT32, CompiledDevice
from arraycnn.backends.compiled.positions import positions
from arraycnn.backends.cpu import tuning
from arraycnn.backends.cpu.columns import Factor
from arraycnn.backends.cpu.tiles import Tile, tile_of
from arraycnn.backends.cpu.winograd import QUIETLY, Winograd, is_stride_one
from arraycnn.backends.reference.algorithm import Problem
from arraycnn.geometry import conv_window

ZEROS = np.zeros(tuning.COMPILED_SAMPLES, np.float32)
UNIT_WINDOW = np.array(
    (1, 1, 0, 0, 1, 1)
)  # stride, padding, dilation as `add_weight_grad` takes it


class CompiledWinograd(Winograd):
    """Columns at P points, as values (P, C, rows, groups of m, samples)."""

    backend: CompiledDevice
    shares = False  # two sums with kernels of one column cost less than the transform of another

    def __init__(self, backend: CompiledDevice, problem: Problem) -> None:
        super().__init__(backend, problem, tuning.COMPILED_M)
        self._no_bias = np.zeros(self.transforms.points * problem.outputs, FLOAT32)

    @staticmethod
    def applies(problem: Problem, limit: int) -> bool:
        """Whether it is made for a problem of float32, faster, and within ``limit`` bytes."""
        window, batch, inputs, outputs, groups, _ = problem
        if groups > 1 or not is_stride_one(window):
            return False
        width = window.output_size[1]
        return (
            window.kernel_size[1] in tuning.COMPILED_KERNELS
            and min(inputs, outputs) >= tuning.COMPILED_CHANNELS
            and batch >= tuning.COMPILED_SAMPLES
            and -(-width // tuning.COMPILED_M) * tuning.COMPILED_M <= tuning.COMPILED_WASTE * width
            and tile_bytes(problem, tuning.COMPILED_TILE_ROWS)
            <= min(limit, 4 * tuning.COMPILED_TILE_BYTES)
        )

    def plan(self, limit: int) -> None:
        products = self.transforms.points / (tuning.COMPILED_M * self.problem.window.kernel_size[1])
        self.seconds = products * direct_seconds(self.problem)
        self.work = self.problem.multiply_adds * tuning.SECONDS_PER_MULTIPLY_ADD
        self.tiles = compiled_tiles(self.problem)
        self.workspace_bytes = tile_bytes(self.problem, self.tiles[0].sizes[0])

    def factor(self, weight: Array, bias: Array | None = None, relu: bool = False) -> Factor:
        """G g, packed for `correlate`."""
        points, outputs = self.transforms.points, weight.shape[0]
        values = self.filter_transform(weight).reshape(points, outputs, -1)  # (P, O, C·kh)
        packed = self.backend.new_buffer((values.size,), FLOAT32)
        pack = self.backend.kernels.pack.compiled
        seconds = values.size * tuning.SECONDS_PER_PACKED_WEIGHT
        self.backend.workers.run(
            lambda point: pack(values, packed, point, point + 1), range(points), seconds, blas=False
        )
        offsets = self._no_bias[:outputs] if bias is None else np.ascontiguousarray(bias)
        return Factor(packed, offsets, relu)

    def zero_sums(self, count: int) -> Array:
        height = self.problem.window.kernel_size[0]
        rows = self.transforms.points * self.problem.outputs
        return np.zeros((count, rows, self.problem.inputs, 1, height), FLOAT32)

    @QUIETLY
    def weight_of(self, total: Array) -> Array | None:
        shape = self.transforms.points, self.problem.outputs, self.problem.inputs
        values = total.reshape(*shape, -1)  # (P, O, C, kh)
        if not np.abs(values).sum() < tuning.LARGEST_SUM:
            return None
        weight = self.filter_of(values)
        return None if weight is None else np.ascontiguousarray(weight)

    def columns(self, buffer: Array, tile: Tile) -> Array:
        """Bᵀ d: (P, C, rows + kh − 1, groups, samples), zeros above and below."""
        window = self.problem.window
        (above, _), (left, _) = window.padding
        lines = tile.sizes[0] + window.kernel_size[0] - 1
        values = self._values("columns", buffer.shape[0], lines, tile)
        first = tile.region[0].start - above, tile.region[2].start
        self.backend.kernels.to_points.compiled(
            buffer,
            ZEROS,
            values,
            window.kernel_size[1],
            *first,
            self.transforms.points,
            left,
        )
        return values

    def slopes(self, buffer: Array, tile: Tile) -> Array:
        """A u: (P, O, rows, groups, samples)."""
        values = self._values("products", buffer.shape[0], tile.sizes[0], tile)
        first = tile.region[0].start, tile.region[2].start
        width = self.problem.window.kernel_size[1]
        self.backend.kernels.to_points.compiled(
            buffer, ZEROS, values, -width, *first, tuning.COMPILED_M, 0
        )
        return values

    def multiply(self, factor: Factor, columns: Array, target: Array, tile: Tile) -> bool:
        """Aᵀ of the products, plus offsets."""
        points, _, lines, groups, samples = columns.shape
        products = self._values("products", target.shape[0], tile.sizes[0], tile)
        tables = line_positions(lines, self.problem.window.kernel_size[0], groups * samples)
        parts = len(tables[0]) * len(tables[1])
        kernel = self.backend.kernels
        kernel.correlate.compiled(
            in_line(columns), factor.kernels, self._no_bias, in_line(products), points, *tables, 0,
            parts, False,
        )  # fmt: skip
        size = self.backend.scratch("size", (1,), FLOAT32)
        kernel.magnitude.compiled(products.reshape(-1), size)
        waste = self.backend.scratch("waste", (samples,), FLOAT32)
        first = tile.region[0].start, tile.region[2].start
        width = self.problem.window.kernel_size[1]
        kernel.to_outputs.compiled(
            products, factor.offsets, target, waste, width, *first, factor.relu
        )
        return bool(size[0] < tuning.LARGEST_SUM)

    def correlate(self, slopes: Array, columns: Array, total: Array) -> None:
        self.backend.kernels.add_weight_grad.compiled(
            in_line(columns), in_line(slopes), total, self.transforms.points, UNIT_WINDOW,
            slopes.shape[2], 0, 1,
        )  # fmt: skip

    def _values(self, name: str, channels: int, lines: int, tile: Tile) -> Array:
        """Scratch memory for the values of a tile at all points."""
        groups = -(-tile.sizes[1] // tuning.COMPILED_M)
        shape = (self.transforms.points, channels, lines, groups, tile.sizes[2])
        return self.backend.scratch(name, shape, FLOAT32)


def direct_seconds(problem: Problem) -> float:
    """Roughly, of the sum over taps in registers, whose blocks hold several outputs of a group."""
    outputs = problem.outputs // problem.groups
    return problem.multiply_adds * tuning.DIRECT_NS_PER_MULTIPLY_ADD * (1 + 2 / outputs) * 1e-9


def tile_bytes(problem: Problem, rows: int) -> int:
    """Bytes that the values at all points of ``rows`` rows take, of the input and of the output."""
    (height, width), columns = problem.window.kernel_size, problem.window.output_size[1]
    values = (
        (tuning.COMPILED_M + width - 1) * -(-columns // tuning.COMPILED_M) * tuning.COMPILED_SAMPLES
    )
    return 4 * values * (problem.inputs * (rows + height - 1) + problem.outputs * rows)


def compiled_tiles(problem: Problem) -> list[Tile]:
    """Tiles of rows and samples whose values at all points stay in cache."""
    (height, width), batch = problem.window.output_size, problem.batch
    rows = min(tuning.COMPILED_TILE_ROWS, height)
    while rows < height and tile_bytes(problem, rows + 1) <= tuning.COMPILED_TILE_BYTES:
        rows += 1
    count = -(-height // rows)
    ends = [height * index // count for index in range(count + 1)]  # as many for all, or one less
    samples = [
        slice(start, min(start + tuning.COMPILED_SAMPLES, batch))
        for start in range(0, batch, tuning.COMPILED_SAMPLES)
    ]
    columns = slice(0, width)
    return [
        tile_of(problem.window, batch, (slice(*part), columns, some), slice(*part), columns)
        for part, some in product(pairwise(ends), samples)
    ]


def in_line(values: Array) -> Array:
    """Values (P, C, rows, groups, n) as planes (P·C, 1, rows, groups·n) of one row each."""
    return values.reshape(-1, 1, values.shape[2], values.shape[3] * values.shape[4])


@lru_cache(maxsize=512)
def line_positions(lines: int, height: int, length: int) -> tuple[Array, ...]:
    """Tables for `correlate` of a kernel of one column over ``lines`` of so many elements."""
    return positions(conv_window((1, lines), (1, height)), length, False)
