"""The CPU backend's loops over register blocks: convolution and its weight gradient, also those of
Winograd's minimal filtering with its transforms (see `compiled.winograd`), and dense samples."""

from typing import Any

import numpy as np
from numba import types
from numba.extending import register_jitable

from arraycnn.backends.compiled.jit import BOOL, INT, NUMBERS, TABLE, In, Out, float32, kernel
from arraycnn.backends.compiled.llvm import (
    LANES,
    PRODUCT_COLUMNS,
    PRODUCT_ROWS,
    ROWS,
    VECTORS,
    correlation_tile,
    linear_map,
    product_tile,
)
from arraycnn.backends.cpu.tuning import COMPILED_KERNELS, COMPILED_M
from arraycnn.backends.cpu.winograd import minimal_filtering

M = COMPILED_M
_matrices = {r: minimal_filtering(M, r) for r in COMPILED_KERNELS}
_input = {r: found.input.tolist() for r, found in _matrices.items()}
_adjoint = {-r: found.output.tolist() for r, found in _matrices.items()}
to_points_tile = linear_map(_input | _adjoint)
to_outputs_tile = linear_map({r: found.output.T.tolist() for r, found in _matrices.items()})


def _largest_half(size: int, limit: int) -> int:
    """The largest of limit, limit/2, … that is no larger than ``size``."""
    while limit > size:
        limit //= 2
    return limit


_block_of = register_jitable(_largest_half)


@kernel(types.Array(types.float32, 3, "A", readonly=True), Out(1), INT, INT)
def pack(kernels: Any, packed: Any, start: int, stop: int) -> None:
    """Kernels (G, outputs/G, inputs/G·taps) in blocks of outputs, which become neighbours."""
    outputs, done = kernels.shape[1], start * kernels.shape[1] * kernels.shape[2]
    for group in range(start, stop):
        first = 0
        while first < outputs:
            block = _block_of(outputs - first, ROWS)
            for tap in range(kernels.shape[2]):
                for output in range(first, first + block):
                    packed[done] = kernels[group, output, tap]
                    done += 1
            first += block


@kernel(
    In(4), In(1), In(1), Out(4), INT, TABLE, TABLE, NUMBERS, NUMBERS,
    INT, INT, BOOL,
)  # fmt: skip
def correlate(
    x: Any, w: Any, bias: Any, y: Any, groups: int, rows: Any, runs: Any, kernel: Any, steps: Any,
    start: int, stop: int, relu: bool,
) -> None:  # fmt: skip
    """The runs ``start`` … of y (O, OH, OW, N) = bias + w · patches of x.

    w has, for each group and block of outputs, (C/groups, *kernel, block). A run is some
    columns of a row; ``rows`` says [first tap, taps, first input] for each row, ``runs`` [first
    column, column after the last, first tap, taps, first input] for the columns; ``steps`` are
    those of taps and of inputs from tap to tap, vertically and horizontally.
    """
    channels, height, width, batch = x.shape[0] // groups, x.shape[1], x.shape[2], x.shape[3]
    outputs, out_plane = y.shape[0] // groups, y.shape[1] * y.shape[2] * batch
    taps, plane = kernel[0] * kernel[1], height * width * batch
    for part in range(start, stop):
        row, run = rows[part // runs.shape[0]], runs[part % runs.shape[0]]
        length = (run[1] - run[0]) * batch
        patch = (row[2] * width + run[4]) * batch
        tap = row[0] * kernel[1] + run[2]
        place = (part // runs.shape[0] * y.shape[2] + run[0]) * batch
        done = 0
        while done < length:
            at, vectors = done, min(VECTORS, (length - done) // LANES)
            done = at + vectors * LANES if vectors else length
            for group in range(groups):
                first = 0
                while first < outputs:
                    block = _block_of(outputs - first, ROWS)
                    output = group * outputs + first
                    correlation_tile(
                        x.ctypes.data + 4 * (group * channels * plane + patch + at),
                        w.ctypes.data + 4 * (output * channels * taps + tap * block),
                        bias.ctypes.data + 4 * output,
                        y.ctypes.data + 4 * (output * out_plane + place + at),
                        channels, row[1], run[3],
                        plane, steps[1] * width * batch, steps[3] * batch,
                        taps * block, steps[0] * kernel[1] * block, steps[2] * block,
                        out_plane, relu, block, vectors, done - at,
                    )  # fmt: skip
                    first += block


@kernel(In(4), In(4), Out(4), INT, NUMBERS, INT, INT, INT, sums=True)
def add_weight_grad(
    x: Any, delta: Any, grad: Any, groups: int, window: Any, columns: int, start: int, step: int
) -> None:
    """Add Δ · what it comes from to ``grad`` (O, C/groups, *kernel), for every ``step``-th part.

    A part is ``columns`` columns of a row of Δ; ``window`` holds stride, padding before and
    dilation, vertically and horizontally.
    """
    channels, height, width, batch = x.shape[0] // groups, x.shape[1], x.shape[2], x.shape[3]
    outputs, out_height, out_width = delta.shape[0] // groups, delta.shape[1], delta.shape[2]
    kernel_height, kernel_width = grad.shape[2], grad.shape[3]
    taps, plane, out_plane = kernel_height * kernel_width, height * width, out_height * out_width
    pieces = (out_width + columns - 1) // columns
    for part in range(start, out_height * pieces, step):
        row, left = part // pieces, part % pieces * columns
        right = min(left + columns, out_width)
        for group in range(groups):
            o = 0
            while o < outputs:
                some = _block_of(outputs - o, PRODUCT_ROWS)
                c = 0
                while c < channels:
                    others = _block_of(channels - c, PRODUCT_COLUMNS)
                    for i in range(kernel_height):
                        above = row * window[0] - window[2] + i * window[4]
                        if above < 0 or above >= height:
                            continue
                        for j in range(kernel_width):
                            shift = j * window[5] - window[3]
                            first = max(left, -(shift // window[1]))
                            last = min(right, (width - 1 - shift) // window[1] + 1)
                            if first >= last:
                                continue
                            length, repeats = (last - first) * batch, 1
                            if window[1] > 1:
                                length, repeats = batch, last - first
                            output, channel = group * outputs + o, group * channels + c
                            beside = first * window[1] + shift
                            product_tile(
                                delta.ctypes.data
                                + 4 * (output * out_plane + row * out_width + first) * batch,
                                x.ctypes.data
                                + 4 * (channel * plane + above * width + beside) * batch,
                                grad.ctypes.data
                                + 4 * ((output * channels + c) * taps + i * kernel_width + j),
                                length, repeats, out_plane * batch, batch,
                                plane * batch, window[1] * batch, channels * taps, taps,
                                some, others,
                            )  # fmt: skip
                    c += others
                o += some


@kernel(In(2), In(1), In(1), Out(1), BOOL, sums=True)
def dense_sample(w: Any, x: Any, bias: Any, h: Any, relu: bool) -> None:
    for output in range(h.size):
        total, weights = bias[output], w[output]
        for i in range(weights.size):
            total += weights[i] * x[i]
        h[output] = float32(0) if relu and total < float32(0) else total


@kernel(In(4), In(1), Out(5), INT, INT, INT, INT, INT)
def to_points(
    x: Any, zeros: Any, values: Any, width: int, row: int, sample: int, taps: int, before: int
) -> None:
    """values[p, c, r, g, n]: group g of the row ``row`` + r of x at the points.

    x is (C, H, W, N), values (points, C, rows, groups, n) for the samples from ``sample`` on. Group
    g has the ``taps`` columns from g·`M` − ``before`` on; outside of x there are ``zeros``, at
    least n. ``width`` is that of the kernel, negative where x is a gradient with respect to
    outputs, which the adjoint map takes to the points.
    """
    channels, height, columns, batch = x.shape
    points, _, rows, groups, samples = values.shape
    sources, targets = np.empty(taps, np.int64), np.empty(points, np.int64)
    for channel in range(channels):
        for r in range(rows):
            inside = 0 <= row + r < height
            start = ((channel * height + row + r) * columns) * batch + sample
            for group in range(groups):
                for tap in range(taps):
                    column = group * M - before + tap
                    if inside and 0 <= column < columns:
                        sources[tap] = x.ctypes.data + 4 * (start + column * batch)
                    else:
                        sources[tap] = zeros.ctypes.data
                for point in range(points):
                    index = ((point * channels + channel) * rows + r) * groups + group
                    targets[point] = values.ctypes.data + 4 * index * samples
                for done in range(0, samples, LANES):
                    to_points_tile(
                        sources.ctypes.data, targets.ctypes.data, 4 * done, zeros.ctypes.data,
                        False, width, min(LANES, samples - done),
                    )  # fmt: skip


@kernel(In(5), In(1), Out(4), Out(1), INT, INT, INT, BOOL)
def to_outputs(
    values: Any, bias: Any, y: Any, waste: Any, width: int, row: int, sample: int, relu: bool
) -> None:
    """The outputs y[o, row + r, g·`M` + i, n], see `to_points`; the rest is ``waste``."""
    height, columns, batch = y.shape[1:]
    points, outputs, rows, groups, samples = values.shape
    sources, targets = np.empty(points, np.int64), np.empty(M, np.int64)
    for output in range(outputs):
        for r in range(rows):
            start = ((output * height + row + r) * columns) * batch + sample
            for group in range(groups):
                for point in range(points):
                    index = ((point * outputs + output) * rows + r) * groups + group
                    sources[point] = values.ctypes.data + 4 * index * samples
                for i in range(M):
                    column = group * M + i
                    if column < columns:
                        targets[i] = y.ctypes.data + 4 * (start + column * batch)
                    else:
                        targets[i] = waste.ctypes.data
                for done in range(0, samples, LANES):
                    to_outputs_tile(
                        sources.ctypes.data, targets.ctypes.data, 4 * done,
                        bias.ctypes.data + 4 * output, relu, width, min(LANES, samples - done),
                    )  # fmt: skip


@kernel(In(1), Out(1), sums=True)
def magnitude(values: Any, total: Any) -> None:
    """Σ |values|, not a number or infinite where one of them is."""
    magnitudes = float32(0)
    for i in range(values.size):
        magnitudes += abs(values[i])
    total[0] = magnitudes
