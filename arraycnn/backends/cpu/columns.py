"""The columns of a convolution on the CPU, made piece by piece while they are in cache.

Rows of an image share their columns. Each input row is written once for every tap of the other
dimensions; what output row y sees is then the stretch of rows y·s … y·s + kh − 1, which lies there
as a matrix already:

    lines     (rows, kw·C, L)              each row of the input, for L outputs of a row
    columns   (output rows, kh·kw·C, L)    overlapping views of the lines

so kh times less is copied than with a column per output. Where rows do not overlap or are short,
all taps are written out, and a matrix runs over as many rows as it likes.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from arraycnn.arrays import Array, Shape
from arraycnn.backends.cpu.memory import Scratch
from arraycnn.backends.cpu.threads import WORTHWHILE
from arraycnn.backends.memory_format import buffer_of
from arraycnn.backends.reference.convolution import Tile, grouped, tile_runs
from arraycnn.geometry import Window

TILE_BYTES = 4 << 20  # columns this large are still in cache when they are multiplied
LENGTHS = (256, 8192)  # shorter matrices starve the product, longer ones gain nothing
PRODUCTS = 1 << 18  # numbers that are kept until they are added up
PIECES = 4  # at least, of work that is worth sharing
FLOPS = 1e11  # a guess at multiply-adds per second of one core …
BYTES = 1e10  # … and at bytes copied, to see what is worth a thread


class Piece(NamedTuple):
    """A piece of the output that is computed at a time."""

    tile: Tile
    rows: slice  # matrices of the output …
    run: slice  # … and the elements of each


class Columns:
    """What a convolution's outputs see, piece by piece: matrices (G, R, K, L).

    A buffer (C, *out, N) is cut into matrices (G, R, C/G, L) of L elements in each of R rows.
    """

    finite = True  # so far, as far as it matters

    def __init__(
        self, scratch: Scratch, limit: int, x: Array, window: Window, groups: int, outputs: int
    ) -> None:
        self.scratch, self.window = scratch, window
        self.groups = self.stack = groups
        self.buffer = buffer_of(x)  # (C, *S, N)
        self.shared = shares_rows(window, x.shape[0])
        self.depth: int = x.shape[1] // groups * window.taps  # K
        self.per_channel: Shape = (groups, 1, -1, 1)  # the shape in which a bias meets the matrices
        column = self.depth * groups * x.dtype.itemsize
        total = window.positions * x.shape[0]
        self.seconds = total * (self.depth * outputs / FLOPS + column / BYTES)
        if window.is_pointwise:  # nothing is copied
            column += outputs * x.dtype.itemsize
        self.pieces = pieces(window, x.shape[0], column, limit, parts_of(self.seconds))

    def __len__(self) -> int:
        return len(self.pieces)

    def kernels(self, weight: Array) -> Array:
        """Weights (O, C/G, *kernel) as matrices (G, 1, O/G, K), K in the order of the columns."""
        taps = weight.reshape(*weight.shape[:2], self.window.taps).swapaxes(1, 2)  # (O, taps, C/G)
        return taps.reshape(self.groups, 1, -1, self.depth)

    def weight_of(self, kernels: Array) -> Array:
        """The inverse of `kernels`: (G, O/G, K) → (O, C/G, *kernel)."""
        taps = kernels.reshape(-1, self.window.taps, self.depth // self.window.taps).swapaxes(1, 2)
        return taps.reshape(*taps.shape[:2], *self.window.kernel_size)

    def part(self, buffer: Array, index: int) -> Array:
        """A piece of a buffer (C, *out, N) as matrices (G, R, C/G, L)."""
        piece, rows = self.pieces[index], self.window.output_size[0] if self.shared else 1
        channels = grouped(buffer, self.groups)  # (G, C/G, L·N)
        matrices = channels.reshape(*channels.shape[:2], rows, channels.shape[2] // rows)
        return matrices[:, :, piece.rows, piece.run].swapaxes(1, 2)

    def fill(self, index: int) -> Array:
        """The columns (G, R, K, L) of a piece, lent to the thread until the next call."""
        if self.window.is_pointwise:
            return self.part(self.buffer, index)
        window, tile = self.window, self.pieces[index].tile
        block = self._block(tile)  # (C, *sizes, n)
        channel, *spatial, sample = block.strides
        taps = [step * d for step, d in zip(spatial, window.dilation, strict=True)]
        positions = [step * s for step, s in zip(spatial, window.stride, strict=True)]
        sizes = [part.stop - part.start for part in tile]
        own = int(self.shared)  # the first dimension whose taps are written out
        lines, line = (block.shape[1], spatial[0]) if self.shared else (1, 0)
        inputs = block.shape[0] // self.groups
        seen = np.lib.stride_tricks.as_strided(
            block,
            (self.groups, lines, *window.kernel_size[own:], inputs, *sizes[own:]),
            (inputs * channel, line, *taps[own:], channel, *positions[own:], sample),
        )
        filled = self.scratch("columns", seen.shape, seen.dtype)
        np.copyto(filled, seen)
        rows, step, span = (
            (sizes[0], window.stride[0], window.kernel_size[0]) if self.shared else (1, 1, 1)
        )
        return overlapping(filled, rows, step, self.depth, self.depth // span)

    def at_points(self, buffer: Array, index: int) -> Array:
        """A piece of a buffer as the factor of the columns in a sum over outputs."""
        return self.part(buffer, index)

    def multiply(
        self, kernels: Array, columns: Array, out: Array, offsets: Array | None = None
    ) -> None:
        """Products of `kernels` and the columns of a piece, plus offsets ``per_channel``, into that
        part of the output."""
        np.matmul(kernels, columns, out=out)
        if offsets is not None:
            np.add(out, offsets, out=out)

    def correlate(self, factors: Array, columns: Array, total: Array) -> None:
        """Add Σ a vᵀ over the rows: a (G, R, O/G, L), columns v (G, R, K, L), total (G, O/G, K)."""
        step = max(1, PRODUCTS // total.size)
        for y in range(0, columns.shape[1], step):
            rows = factors[:, y : y + step], columns[:, y : y + step].swapaxes(2, 3)
            shape = (total.shape[0], rows[0].shape[1], *total.shape[1:])
            products = self.scratch("products", shape, total.dtype)
            np.add(total, np.matmul(*rows, out=products).sum(axis=1), out=total)

    def _block(self, tile: Tile) -> Array:
        """The padded input that the outputs of a tile see: (C, *sizes, n)."""
        window = self.window
        inside, place, sizes = [], [], []
        for part, s, (before, _), extent, i in zip(
            tile[:-1], window.stride, window.padding, window.extent, window.input_size, strict=True
        ):
            start, stop = part.start * s - before, (part.stop - 1) * s - before + extent
            here = slice(max(0, start), max(0, min(stop, i)))
            inside.append(here)
            place.append(slice(here.start - start, here.stop - start))
            sizes.append(stop - start)
        found = self.buffer[(slice(None), *inside, tile[-1])]
        if found.shape[1:-1] == tuple(sizes):
            return found
        block = self.scratch("block", (found.shape[0], *sizes, found.shape[-1]), found.dtype)
        for axis, inner in enumerate(place, 1):
            for border in (slice(0, inner.start), slice(inner.stop, None)):
                block[(slice(None),) * axis + (border,)] = 0
        block[(slice(None), *place)] = found
        return block


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


def shares_rows(window: Window, batch: int) -> bool:
    """Whether output rows overlap in what they see, and are long enough to be multiplied alone."""
    return (
        window.stride[0] < window.kernel_size[0]
        and window.dilation[0] == 1
        and math.prod(window.output_size[1:]) * batch >= LENGTHS[0]
    )


@lru_cache(maxsize=512)
def pieces(window: Window, batch: int, column: int, limit: int, parts: int = 1) -> list[Piece]:
    """Pieces whose columns, of ``column`` bytes each, take about ``TILE_BYTES``, and no more than
    ``limit`` unless a single column does; at least ``parts`` where there are rows enough."""
    if not batch:
        return []
    shortest, longest = LENGTHS
    if not shares_rows(window, batch):
        share = -(-window.positions * batch // parts)
        length = min(
            longest, max(shortest, min(TILE_BYTES // column, share)), max(1, limit // column)
        )
        return [
            Piece(tile, slice(0, 1), run)
            for tile, run in tile_runs((*window.output_size, batch), length)
        ]
    length = min(longest, max(shortest, TILE_BYTES // (3 * column)), max(1, limit // column))
    found = tile_runs((*window.output_size[1:], batch), length)
    span, stride, rows = window.kernel_size[0], window.stride[0], window.output_size[0]
    lines = min(TILE_BYTES, limit) // (column // span * found[0][1].stop)
    blocks = blocks_of([run for _, run in found], parts)
    return [
        Piece((part, *tile), part, run)
        for part in row_blocks(rows, 1 + (lines - span) // stride, blocks)
        for tile, run in found
    ]


def row_blocks(rows: int, most: int, parts: int) -> Iterator[slice]:
    """Equal blocks of at most ``most`` rows, but at least one, and about ``parts`` at least."""
    step = -(-rows // max(1, parts, -(-rows // max(1, most))))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def blocks_of(runs: list[slice], parts: int) -> int:
    """Blocks of rows that make ``parts`` pieces with each of the runs; runs of different lengths
    are no equal shares."""
    equal = runs[-1].stop - runs[-1].start == runs[0].stop
    return parts // len(runs) if equal else parts


def parts_of(seconds: float) -> int:
    """Pieces that so much work should have, to be shared out to threads."""
    if seconds < WORTHWHILE:
        return 1
    return 2 if seconds < PIECES * WORTHWHILE else PIECES


def column_bytes(window: Window, batch: int, channels: int, itemsize: int, limit: int) -> int:
    """Bytes of the columns that are held at a time, at most."""
    if window.is_pointwise or not batch:
        return 0
    column = channels * window.taps * itemsize
    piece = pieces(window, batch, column, limit)[0]
    length: int = piece.run.stop
    if not shares_rows(window, batch):
        return length * column
    lines: int = (piece.rows.stop - 1) * window.stride[0] + window.kernel_size[0]
    return length * column // window.kernel_size[0] * lines
