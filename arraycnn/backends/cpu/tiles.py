"""Tiles of a convolution on the CPU: regions of the output, and the input that they need."""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from arraycnn.arrays import Shape
from arraycnn.backends.cpu import tuning
from arraycnn.backends.reference.convolution import Region, region_runs
from arraycnn.geometry import Window


class Block(NamedTuple):
    """The padded input of a region, where it lies in the input's buffer (C, *S, N)."""

    sizes: Shape  # (*sizes, n)
    offset: int  # elements before it, in each channel of the buffer
    inside: tuple[slice, ...]  # the part of the buffer that it has, …
    inner: tuple[slice, ...]  # … where that stands in the block, …
    borders: list[tuple[slice, ...]]  # … and the zeros around it


class Tile(NamedTuple):
    """A region of the output that is computed at a time."""

    region: Region
    sizes: Shape  # of the region
    block: Block
    rows: slice  # matrices of the output …
    run: slice  # … and the elements of each


def block_of(window: Window, batch: int, region: Region) -> Block:
    """The padded input of a region of the output, which may reach beyond it."""
    sizes, inside, inner, offset = [], [], [], 0
    for part, s, (before, _), extent, i in zip(
        region[:-1], window.stride, window.padding, window.extent, window.input_size, strict=True
    ):
        start, stop = part.start * s - before, (part.stop - 1) * s - before + extent
        first = min(max(0, start), i)
        last = max(first, min(stop, i))
        sizes.append(stop - start)
        inside.append(slice(first, last))
        inner.append(slice(first - start, last - start))
        offset = offset * i + start
    samples = region[-1]
    everything = (slice(None),)
    borders = [
        everything * axis + (border,)
        for axis, (place, size) in enumerate(zip(inner, sizes, strict=True), 1)
        for border in (slice(0, place.start), slice(place.stop, size))
        if border.start < border.stop
    ]
    return Block(
        (*sizes, samples.stop - samples.start),
        offset * batch + samples.start,
        (*everything, *inside, samples),
        (*everything, *inner),
        borders,
    )


def shares_rows(window: Window, batch: int) -> bool:
    """Whether patches of output rows overlap, and rows are long enough to be multiplied alone."""
    return (
        window.stride[0] < window.kernel_size[0]
        and window.dilation[0] == 1
        and math.prod(window.output_size[1:]) * batch >= tuning.COLUMN_LENGTHS[0]
    )


def column_length(column: int, limit: int) -> int:
    """How many columns of ``column`` bytes each are made at a time."""
    shortest, longest = tuning.COLUMN_LENGTHS
    length = min(longest, max(shortest, tuning.COLUMN_TILE_BYTES // column))
    return min(length, max(1, limit // column))


@lru_cache(maxsize=512)
def column_tiles(window: Window, batch: int, column: int, limit: int, tasks: int = 1) -> list[Tile]:
    """Tiles whose columns, of ``column`` bytes each, are still in cache when they are multiplied,
    and take no more than ``limit`` unless a single column does; at least ``tasks`` where there are
    rows enough."""
    if not batch:
        return []
    shortest, longest = tuning.COLUMN_LENGTHS
    most = max(1, limit // column)
    if not shares_rows(window, batch):
        share = -(-window.positions * batch // tasks)
        length = min(longest, max(shortest, min(tuning.COLUMN_TILE_BYTES // column, share)), most)
        return [
            tile_of(window, batch, region, slice(0, 1), run)
            for region, run in region_runs((*window.output_size, batch), length)
        ]
    length = min(longest, max(shortest, tuning.COLUMN_TILE_BYTES // (3 * column)), most)
    found = region_runs((*window.output_size[1:], batch), length)
    extent, stride, rows = window.kernel_size[0], window.stride[0], window.output_size[0]
    lines = min(tuning.COLUMN_TILE_BYTES, limit) // (column // extent * found[0][1].stop)
    blocks = row_blocks_for([run for _, run in found], tasks)
    return [
        tile_of(window, batch, (part, *region), part, run)
        for part in row_blocks(rows, 1 + (lines - extent) // stride, blocks)
        for region, run in found
    ]


def tile_of(window: Window, batch: int, region: Region, rows: slice, run: slice) -> Tile:
    sizes = tuple(part.stop - part.start for part in region)
    return Tile(region, sizes, block_of(window, batch, region), rows, run)


def row_blocks(rows: int, most: int, count: int) -> Iterator[slice]:
    """Equal blocks of at most ``most`` rows, but at least one, and about ``count`` at least."""
    step = -(-rows // max(1, count, -(-rows // max(1, most))))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def row_blocks_for(runs: list[slice], tasks: int) -> int:
    """Blocks of rows that make ``tasks`` tiles with each of the runs; runs of different lengths
    are no equal shares."""
    equal = runs[-1].stop - runs[-1].start == runs[0].stop
    return tasks // len(runs) if equal else tasks


def tasks_of(seconds: float) -> int:
    """Tasks that so much work should have, to be shared out to threads."""
    if seconds < tuning.THREAD_SECONDS:
        return 1
    return 2 if seconds < tuning.SHARED_TASKS * tuning.THREAD_SECONDS else tuning.SHARED_TASKS


def column_bytes(window: Window, batch: int, column: int, limit: int) -> int:
    """Bytes of the columns that are held at a time, at most."""
    if not batch:
        return 0
    tile = column_tiles(window, batch, column, limit)[0]
    length: int = tile.run.stop
    if not shares_rows(window, batch):
        return length * column
    lines: int = (tile.rows.stop - 1) * window.stride[0] + window.kernel_size[0]
    return length * column // window.kernel_size[0] * lines
