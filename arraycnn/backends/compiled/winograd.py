"""Minimal filtering (see `cpu.winograd`) with compiled kernels: the same transforms and products.

A convolution along rows with k taps takes m + k − 1 products for m outputs instead of m·k. Tiles of
rows and samples are transformed, multiplied and collected while they are in cache; the products
over channels and over the kernel's rows are those of a convolution with a kernel of one column, a
group of it for every point.
"""

import importlib
import math
from functools import lru_cache
from itertools import pairwise, product, starmap
from typing import Any

import numpy as np

from arraycnn.arrays import Array, Shape
from arraycnn.backends.compiled.positions import positions
from arraycnn.backends.cpu.columns import FLOPS
from arraycnn.backends.cpu.memory import Scratch
from arraycnn.backends.cpu.threads import Workers
from arraycnn.backends.cpu.winograd import Filter, minimal_filter
from arraycnn.backends.memory_format import Layout, buffer_of
from arraycnn.geometry import Window, conv_window

OUTPUTS = 4  # m
WIDTHS = (3, 5)  # of kernels for which there are transforms
CHANNELS = 24  # fewer leave too little to do between the transforms
SAMPLES = 16  # of a tile
TILE_BYTES = 2 << 20  # of it …
LEAST_ROWS = 4  # … unless these take more
PACK_SECONDS = 1e-9  # a guess at the time of one value of a kernel
LARGEST = 1e30  # a sum of magnitudes that is far from an overflow
ZEROS = np.zeros(SAMPLES, np.float32)


class CompiledFilters(Layout):
    """Convolution and its gradients by minimal filtering; None where it overflows."""

    scratch: Scratch
    workers: Workers
    workspace_limit: int
    _kernels: Any

    def _filters(self, window: Window, x: Array, weight_shape: Shape) -> bool:
        """Whether a convolution with one group, or a gradient of it, is better done here."""
        channels = weight_shape[:2]
        return is_worth_filtering(window, x.shape[0], *channels, self.workspace_limit)

    @property
    def _filter_kernels(self) -> Any:
        return importlib.import_module("arraycnn.backends.compiled.transforms")  # imports Numba

    def _filtered(
        self, x: Array, weight: Array, bias: Array | None, window: Window, relu: bool
    ) -> Array | None:
        """A convolution with the kernels ``weight`` (O, C, kh, kw)."""
        outputs, channels, height, width = weight.shape
        rule = minimal_filter(OUTPUTS, width)
        y = self.empty((x.shape[0], outputs, *window.output_size), np.float32)
        source, target = buffer_of(x), buffer_of(y)
        kernels = self.new_buffer((rule.points, *weight.shape[:3]), np.float32)
        rule.of_kernels(weight, kernels)
        kernels = kernels.reshape(rule.points, outputs, -1)  # (P, O, C·kh)
        packed = self.new_buffer((kernels.size,), np.float32)
        pack = self._kernels.pack.compiled
        self.workers.run(
            lambda point: pack(kernels, packed, point, point + 1),
            rule.points,
            kernels.size * PACK_SECONDS,
            blas=False,
        )
        zeros = np.zeros(rule.points * outputs, np.float32)
        offsets = np.zeros(outputs, np.float32) if bias is None else np.ascontiguousarray(bias)
        tiles = _tiles(window, x.shape[0], channels, outputs)
        sizes = np.empty(len(tiles), np.float32)
        correlate = self._kernels.correlate.compiled
        from_points = self._filter_kernels.from_points.compiled
        magnitude = self._filter_kernels.magnitude.compiled

        def compute(index: int) -> None:
            rows, samples = tiles[index]
            seen = self._seen_at_points(source, rule, window, rows, samples)
            count, groups, batch = rows.stop - rows.start, seen.shape[3], seen.shape[4]
            shape = (rule.points, outputs, count, groups, batch)
            products = self.scratch("products", shape, np.float32)
            tables = _rows_of(seen.shape[2], height, groups, batch)
            correlate(
                _in_line(seen), packed, zeros, _in_line(products), rule.points, *tables, 0,
                len(tables[0]) * len(tables[1]), False,
            )  # fmt: skip
            magnitude(products.reshape(-1), sizes, index)
            waste = self.scratch("waste", (batch,), np.float32)
            place = rows.start, samples.start
            from_points(products, offsets, target, waste, width, *place, relu)

        self.workers.run(compute, len(tiles), _seconds(y.size, weight.shape), blas=False)
        return y if np.all(sizes < LARGEST) else None

    def _filtered_weight_grad(
        self, x: Array, grad_output: Array, weight_shape: Shape, window: Window, parts: int
    ) -> Array | None:
        """δK, summed up in ``parts`` parts."""
        outputs, channels, height, width = weight_shape
        rule = minimal_filter(OUTPUTS, width)
        source, delta = buffer_of(x), buffer_of(grad_output)
        tiles = _tiles(window, x.shape[0], channels, outputs)
        sums = np.zeros((parts, rule.points * outputs, channels, 1, height), np.float32)
        numbers = np.array((1, 1, 0, 0, 1, 1))
        to_points = self._filter_kernels.to_points.compiled
        add_weight_grad = self._kernels.add_weight_grad.compiled

        def add(part: int) -> None:
            for rows, samples in tiles[part::parts]:
                seen = self._seen_at_points(source, rule, window, rows, samples)
                count, groups, batch = rows.stop - rows.start, seen.shape[3], seen.shape[4]
                shape = (rule.points, outputs, count, groups, batch)
                slopes = self.scratch("products", shape, np.float32)
                place = rows.start, samples.start
                to_points(delta, ZEROS, slopes, -width, *place, OUTPUTS, 0)
                add_weight_grad(
                    _in_line(seen), _in_line(slopes), sums[part], rule.points, numbers, count, 0, 1,
                )  # fmt: skip

        self.workers.run(add, parts, _seconds(grad_output.size, weight_shape), blas=False)
        with np.errstate(over="ignore", invalid="ignore"):
            total = sums.sum(axis=0).reshape(rule.points, outputs, channels, height)
            if not np.abs(total).sum() < LARGEST:
                return None
        return np.ascontiguousarray(rule.to_kernels(total))

    def _seen_at_points(
        self, source: Array, rule: Filter, window: Window, rows: slice, samples: slice
    ) -> Array:
        """What a tile sees: (P, C, rows + kh − 1, groups, samples), zeros above and below."""
        (above, _), (left, _) = window.padding
        lines = rows.stop - rows.start + window.kernel_size[0] - 1
        groups = -(-window.output_size[1] // OUTPUTS)
        shape = (rule.points, source.shape[0], lines, groups, samples.stop - samples.start)
        values = self.scratch("points", shape, np.float32)
        place = rows.start - above, samples.start
        to_points = self._filter_kernels.to_points.compiled
        to_points(source, ZEROS, values, window.kernel_size[1], *place, rule.points, left)
        return values


@lru_cache(maxsize=512)
def is_worth_filtering(window: Window, batch: int, outputs: int, channels: int, limit: int) -> bool:
    """Whether minimal filtering is made for the convolution, faster, and within ``limit`` bytes."""
    if window.ndim != 2 or {*window.stride, *window.dilation} != {1}:
        return False
    width = window.output_size[1]
    return (
        window.kernel_size[1] in WIDTHS
        and min(channels, outputs) >= CHANNELS
        and batch >= SAMPLES
        and -(-width // OUTPUTS) * OUTPUTS <= 1.3 * width
        and _tile_bytes(window, LEAST_ROWS, channels, outputs) <= min(limit, 4 * TILE_BYTES)
    )


def _tile_bytes(window: Window, rows: int, channels: int, outputs: int) -> int:
    """Bytes that the values at all points of ``rows`` rows take, of the input and of the output."""
    (height, width), columns = window.kernel_size, window.output_size[1]
    values = (OUTPUTS + width - 1) * -(-columns // OUTPUTS) * SAMPLES
    return 4 * values * (channels * (rows + height - 1) + outputs * rows)


@lru_cache(maxsize=512)
def _tiles(window: Window, batch: int, channels: int, outputs: int) -> list[tuple[slice, slice]]:
    """Rows and samples of tiles whose values at all points stay in cache."""
    height = window.output_size[0]
    rows = min(LEAST_ROWS, height)
    while rows < height and _tile_bytes(window, rows + 1, channels, outputs) <= TILE_BYTES:
        rows += 1
    count = -(-height // rows)
    cuts = [height * index // count for index in range(count + 1)]  # as many for all, or one less
    pieces = [slice(start, min(start + SAMPLES, batch)) for start in range(0, batch, SAMPLES)]
    return list(product(starmap(slice, pairwise(cuts)), pieces))


def _in_line(values: Array) -> Array:
    """Values (P, C, rows, groups, n) as planes (P·C, 1, rows, groups·n) of one row each."""
    return values.reshape(-1, 1, values.shape[2], values.shape[3] * values.shape[4])


@lru_cache(maxsize=512)
def _rows_of(lines: int, height: int, groups: int, batch: int) -> tuple[Array, ...]:
    """Tables for `cpu_kernels.correlate` of a kernel of one column without padding."""
    return positions(conv_window((1, lines), (1, height)), groups * batch, False)


def _seconds(outputs: int, weight_shape: Shape) -> float:
    return outputs * math.prod(weight_shape[1:]) / FLOPS
