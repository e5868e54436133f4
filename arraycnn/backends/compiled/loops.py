"""The CPU backend's loops for Numba: float32, on C-contiguous buffers (C, *S, N).

Each function computes a part of an operation, given by its first index and the one after its last,
so that threads can share the parts out. What it computes is said where the backend uses it, in
`compiled`. Importing this module imports Numba; a kernel is compiled, or read from Numba's cache
on disk, when it is first used.
"""

import sys
import threading
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import njit, types
from numba.core import event
from numba.extending import register_jitable

from arraycnn.backends.compiled.llvm import (
    LANES,
    PRODUCT_COLUMNS,
    PRODUCT_ROWS,
    ROWS,
    VECTORS,
    correlation_tile,
    product_tile,
)

BLOCK = 4096  # elements that are summed in float32 before float64 takes over, and stay in cache
VERSION: str = numba.__version__
float32: Any = np.float32
_lock = threading.Lock()


class Kernel:
    """A function that is compiled for one signature when it is first wanted."""

    def __init__(self, function: Callable[..., None], signature: Any, sums: bool) -> None:
        self._function, self._signature = function, signature
        # Sums may be taken in any fixed order; NaN and infinities stay what they are. Elsewhere an
        # operation rounds as in NumPy: x·scale + shift must cancel in a constant channel.
        self._fast = {"contract", "reassoc", "nsz"} if sums else False
        self._compiled: Callable[..., None] | None = None

    @property
    def compiled(self) -> Callable[..., None]:
        """The machine code."""
        if self._compiled is None:
            with _lock, event.install_listener("numba:compile", _announcement):
                self._compiled = self._compiled or self._compile()
        return self._compiled

    def _compile(self) -> Callable[..., None]:
        options = {"nogil": True, "fastmath": self._fast, "error_model": "numpy"}
        compiled: Callable[..., None]
        try:
            compiled = njit(self._signature, cache=True, **options)(self._function)
        except RuntimeError:  # there is nowhere to keep it
            compiled = njit(self._signature, **options)(self._function)
        return compiled


class _Announcement(event.Listener):  # type: ignore[misc]
    """Says once that Numba compiles; reading machine code from its cache is no compilation."""

    _told = False

    def on_start(self, event: Any) -> None:
        if not self._told:
            self._told = True
            print(
                "arraycnn: compiling its CPU kernels with Numba, which is done once and kept",
                file=sys.stderr,
            )

    def on_end(self, event: Any) -> None:
        """Nothing to say."""


_announcement = _Announcement()


def kernel(*arguments: Any, sums: bool = False) -> Callable[[Callable[..., None]], Kernel]:
    return lambda function: Kernel(function, types.void(*arguments), sums)


def given(ndim: int) -> Any:
    return types.Array(types.float32, ndim, "C", readonly=True)


def made(ndim: int) -> Any:
    return types.Array(types.float32, ndim, "C")


INT, FLOAT, BOOL = types.int64, types.float32, types.boolean
_TABLE = types.Array(types.int64, 2, "C", readonly=True)
_NUMBERS = types.Array(types.int64, 1, "C", readonly=True)
_TAPS = types.Array(types.uint8, 4, "C", readonly=True)
_TAPS_MADE = types.Array(types.uint8, 4, "C")


def _largest_half(size: int, limit: int) -> int:
    """The largest of limit, limit/2, … that is no larger than ``size``."""
    while limit > size:
        limit //= 2
    return limit


_block_of = register_jitable(_largest_half)


@kernel(types.Array(types.float32, 3, "A", readonly=True), made(1), INT, INT)
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
    given(4), given(1), given(1), made(4), INT, _TABLE, _TABLE, _NUMBERS, _NUMBERS,
    INT, INT, BOOL,
)  # fmt: skip
def correlate(
    x: Any, w: Any, bias: Any, y: Any, groups: int, rows: Any, runs: Any, kernel: Any, steps: Any,
    start: int, stop: int, relu: bool,
) -> None:  # fmt: skip
    """The parts ``start`` … of y (O, OH, OW, N) = bias + w · what its positions see of x.

    w has, for each group and block of outputs, (C/groups, *kernel, block). A part is a run of
    columns of a row; ``rows`` says [first tap, taps, first input] for each row, ``runs`` [first
    column, column after the last, first tap, taps, first input] for the columns; ``steps`` are
    those of taps and of inputs from tap to tap, vertically and horizontally.
    """
    channels, height, width, batch = x.shape[0] // groups, x.shape[1], x.shape[2], x.shape[3]
    outputs, out_plane = y.shape[0] // groups, y.shape[1] * y.shape[2] * batch
    taps = kernel[0] * kernel[1]
    for part in range(start, stop):
        row, run = rows[part // runs.shape[0]], runs[part % runs.shape[0]]
        length = (run[1] - run[0]) * batch
        seen = (row[2] * width + run[4]) * batch
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
                        x.ctypes.data + 4 * (group * channels * height * width * batch + seen + at),
                        w.ctypes.data + 4 * (output * channels * taps + tap * block),
                        bias.ctypes.data + 4 * output,
                        y.ctypes.data + 4 * (output * out_plane + place + at),
                        channels, row[1], run[3],
                        height * width * batch, steps[1] * width * batch, steps[3] * batch,
                        taps * block, steps[0] * kernel[1] * block, steps[2] * block,
                        out_plane, relu, block, vectors, done - at,
                    )  # fmt: skip
                    first += block


@kernel(given(4), given(4), made(4), INT, _NUMBERS, INT, INT, INT, sums=True)
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


@kernel(given(2), made(1), made(1), INT, INT, sums=True)
def moments(rows: Any, mean: Any, var: Any, start: int, stop: int) -> None:
    """Mean and variance of rows, block by block: Chan, Golub & LeVeque's merging of moments."""
    length = rows.shape[1]
    for row in range(start, stop):
        total_mean, total_square = 0.0, 0.0
        for first in range(0, length, BLOCK):
            part = rows[row, first : min(first + BLOCK, length)]
            block = float32(0)
            for i in range(part.size):
                block += part[i]
            middle = float32(block / float32(part.size))
            square, rest = float32(0), float32(0)
            for i in range(part.size):
                difference = part[i] - middle
                square += difference * difference
                rest += difference  # what rounding the middle left
            block_mean = np.float64(middle) + np.float64(rest) / part.size
            seen = first + part.size
            gap = block_mean - total_mean
            total_square += square - np.float64(rest) * rest / part.size
            total_square += gap * gap * first * part.size / seen
            total_mean += gap * part.size / seen
        mean[row], var[row] = total_mean, total_square / length


@kernel(given(2), given(1), given(1), made(2), BOOL, INT, INT)
def scale_shift(x: Any, scale: Any, shift: Any, y: Any, relu: bool, start: int, stop: int) -> None:
    zero = float32(0)
    for row in range(start, stop):
        source, target, a, b = x[row], y[row], scale[row], shift[row]
        if relu:
            for i in range(source.size):
                value = source[i] * a + b
                target[i] = zero if value < zero else value
        else:
            for i in range(source.size):
                target[i] = source[i] * a + b


@kernel(given(2), made(1), INT, INT, sums=True)
def row_sums(rows: Any, sums: Any, start: int, stop: int) -> None:
    for row in range(start, stop):
        total = 0.0
        for first in range(0, rows.shape[1], BLOCK):
            part = rows[row, first : min(first + BLOCK, rows.shape[1])]
            block = float32(0)
            for i in range(part.size):
                block += part[i]
            total += block
        sums[row] = total


@kernel(
    given(2), given(1), given(1), given(1), given(2), given(2), BOOL, made(2), made(1), made(1),
    INT, INT, sums=True,
)  # fmt: skip
def batch_norm_grad(
    x: Any, mean: Any, inverse_std: Any, scale: Any, delta: Any, y: Any, relu: bool, grad: Any,
    grad_scale: Any, grad_shift: Any, start: int, stop: int,
) -> None:  # fmt: skip
    """With ``relu``, what a ReLU lets through of delta stands in grad in between."""
    length, zero = x.shape[1], float32(0)
    for row in range(start, stop):
        middle = mean[row]
        shift, product = 0.0, 0.0
        for first in range(0, length, BLOCK):
            seen = x[row, first : min(first + BLOCK, length)]
            slopes = delta[row, first : min(first + BLOCK, length)]
            if relu:
                output, passed = y[row, first : first + BLOCK], grad[row, first : first + BLOCK]
                for i in range(seen.size):
                    passed[i] = slopes[i] if output[i] > zero else zero
                slopes = passed
            block_shift, block_product = float32(0), float32(0)
            for i in range(seen.size):
                block_shift += slopes[i]
                block_product += slopes[i] * (seen[i] - middle)
            shift += block_shift
            product += block_product
        grad_shift[row], grad_scale[row] = shift, product * inverse_std[row]
        factor = scale[row] * inverse_std[row]
        slope = float32(-factor * inverse_std[row] * grad_scale[row] / max(1, length))
        offset = float32(-factor * grad_shift[row] / max(1, length))
        seen, target = x[row], grad[row]
        slopes = grad[row] if relu else delta[row]
        for i in range(length):
            target[i] = slopes[i] * factor + ((seen[i] - middle) * slope + offset)


@kernel(given(2), given(1), given(1), made(1), BOOL, sums=True)
def dense_sample(w: Any, x: Any, bias: Any, h: Any, relu: bool) -> None:
    for output in range(h.size):
        total, weights = bias[output], w[output]
        for i in range(weights.size):
            total += weights[i] * x[i]
        h[output] = float32(0) if relu and total < float32(0) else total


@kernel(given(1), made(1), INT, INT)
def relu(x: Any, y: Any, start: int, stop: int) -> None:
    source, target = x[start:stop], y[start:stop]
    for i in range(target.size):
        target[i] = float32(0) if source[i] < float32(0) else source[i]


@kernel(given(1), given(1), made(1), INT, INT)
def relu_grad(y: Any, delta: Any, grad: Any, start: int, stop: int) -> None:
    output, source, target = y[start:stop], delta[start:stop], grad[start:stop]
    for i in range(target.size):
        target[i] = source[i] if output[i] > float32(0) else float32(0)


@kernel(given(4), made(4), _NUMBERS, BOOL, INT, INT)
def max_pool(x: Any, y: Any, window: Any, relu: bool, start: int, stop: int) -> None:
    """``window``: kernel, stride, padding before and dilation, vertically and horizontally."""
    height, width = x.shape[1], x.shape[2]
    least = float32(0) if relu else float32(-np.inf)
    for channel in range(start, stop):
        for row in range(y.shape[1]):
            for column in range(y.shape[2]):
                best = y[channel, row, column]
                best[:] = least
                for i in range(window[0]):
                    above = row * window[2] - window[4] + i * window[6]
                    if above < 0 or above >= height:
                        continue
                    for j in range(window[1]):
                        beside = column * window[3] - window[5] + j * window[7]
                        if beside < 0 or beside >= width:
                            continue
                        seen = x[channel, above, beside]
                        for n in range(best.size):
                            old, new = best[n], seen[n]
                            best[n] = old if (old >= new) | (old != old) else new  # a NaN stays


@kernel(given(4), made(4), BOOL, INT, INT)
def max_pool_of_pairs(x: Any, y: Any, relu: bool, start: int, stop: int) -> None:
    """`max_pool` over 2×2 elements side by side."""
    least = float32(0) if relu else float32(-np.inf)
    for channel in range(start, stop):
        for row in range(y.shape[1]):
            for column in range(y.shape[2]):
                best = y[channel, row, column]
                a, b = x[channel, 2 * row, 2 * column], x[channel, 2 * row, 2 * column + 1]
                c, d = x[channel, 2 * row + 1, 2 * column], x[channel, 2 * row + 1, 2 * column + 1]
                for n in range(best.size):
                    above = a[n] if (a[n] >= b[n]) | (a[n] != a[n]) else b[n]
                    below = c[n] if (c[n] >= d[n]) | (c[n] != c[n]) else d[n]
                    largest = above if (above >= below) | (above != above) else below
                    best[n] = least if largest < least else largest


@kernel(given(4), given(4), _TAPS_MADE, _NUMBERS, BOOL, INT, INT)
def max_pool_winners(
    x: Any, y: Any, winners: Any, window: Any, relu: bool, start: int, stop: int
) -> None:
    """The first tap of each window that sees the maximum y; ``window`` as for `max_pool`.

    With ``relu``, the number of taps where y is not above 0.
    """
    height, width = x.shape[1], x.shape[2]
    nobody = np.uint8(window[0] * window[1])
    for channel in range(start, stop):
        for row in range(y.shape[1]):
            for column in range(y.shape[2]):
                best, taps = y[channel, row, column], winners[channel, row, column]
                for tap in range(window[0] * window[1] - 1, -1, -1):  # the first has the last word
                    above = row * window[2] - window[4] + tap // window[1] * window[6]
                    beside = column * window[3] - window[5] + tap % window[1] * window[7]
                    if above < 0 or above >= height or beside < 0 or beside >= width:
                        continue
                    seen, this = x[channel, above, beside], np.uint8(tap)
                    for n in range(taps.size):
                        taps[n] = this if (seen[n] == best[n]) | (seen[n] != seen[n]) else taps[n]
                if relu:
                    for n in range(taps.size):
                        taps[n] = taps[n] if best[n] > float32(0) else nobody


@kernel(given(4), given(4), _TAPS_MADE, BOOL, INT, INT)
def max_pool_winners_of_pairs(
    x: Any, y: Any, winners: Any, relu: bool, start: int, stop: int
) -> None:
    """`max_pool_winners` over 2×2 elements side by side."""
    first, second, third, fourth = np.uint8(0), np.uint8(1), np.uint8(2), np.uint8(3)
    nobody, zero = np.uint8(4), float32(0)
    for channel in range(start, stop):
        for row in range(y.shape[1]):
            for column in range(y.shape[2]):
                best, taps = y[channel, row, column], winners[channel, row, column]
                a, b = x[channel, 2 * row, 2 * column], x[channel, 2 * row, 2 * column + 1]
                c = x[channel, 2 * row + 1, 2 * column]
                for n in range(taps.size):
                    later = third if (c[n] == best[n]) | (c[n] != c[n]) else fourth
                    later = second if (b[n] == best[n]) | (b[n] != b[n]) else later
                    later = first if (a[n] == best[n]) | (a[n] != a[n]) else later
                    taps[n] = later if (best[n] > zero) | (not relu) else nobody


@kernel(_TAPS, given(4), made(4), INT, INT)
def max_pool_grad_of_pairs(winners: Any, delta: Any, grad: Any, start: int, stop: int) -> None:
    """`max_pool_grad` over 2×2 elements side by side."""
    zero = float32(0)
    for channel in range(start, stop):
        grad[channel, 2 * delta.shape[1] :] = zero
        grad[channel, :, 2 * delta.shape[2] :] = zero
        for row in range(delta.shape[1]):
            for column in range(delta.shape[2]):
                taps, slopes = winners[channel, row, column], delta[channel, row, column]
                for tap in range(4):
                    target = grad[channel, 2 * row + tap // 2, 2 * column + tap % 2]
                    this = np.uint8(tap)
                    for n in range(target.size):
                        target[n] = slopes[n] if taps[n] == this else zero


@kernel(_TAPS, given(4), made(4), _NUMBERS, INT, INT)
def max_pool_grad(winners: Any, delta: Any, grad: Any, window: Any, start: int, stop: int) -> None:
    """Each window's gradient goes to its winner; ``window`` as for `max_pool`."""
    height, width = grad.shape[1], grad.shape[2]
    zero = float32(0)
    for channel in range(start, stop):
        grad[channel] = zero
        for row in range(delta.shape[1]):
            for column in range(delta.shape[2]):
                taps, slopes = winners[channel, row, column], delta[channel, row, column]
                for tap in range(window[0] * window[1]):
                    above = row * window[2] - window[4] + tap // window[1] * window[6]
                    beside = column * window[3] - window[5] + tap % window[1] * window[7]
                    if above < 0 or above >= height or beside < 0 or beside >= width:
                        continue
                    target, this = grad[channel, above, beside], np.uint8(tap)
                    for n in range(target.size):
                        target[n] += slopes[n] if taps[n] == this else zero


@kernel(made(1), given(1), made(1), FLOAT, FLOAT, FLOAT, BOOL)
def sgd(p: Any, g: Any, v: Any, lr: Any, momentum: Any, decay: Any, nesterov: bool) -> None:
    for i in range(p.size):
        slope = g[i] + decay * p[i] if decay != 0 else g[i]
        velocity = momentum * v[i] + slope
        v[i] = velocity
        p[i] -= lr * (slope + momentum * velocity if nesterov else velocity)


@kernel(
    made(1), given(1), made(1), made(1), FLOAT, FLOAT, FLOAT, FLOAT, FLOAT, FLOAT, FLOAT,
    FLOAT,
)  # fmt: skip
def adam(
    p: Any, g: Any, m: Any, v: Any, step_size: Any, share1: Any, beta2: Any, share2: Any, eps: Any,
    v_scale: Any, decay: Any, shrink: Any,
) -> None:  # fmt: skip
    """``share1`` and ``share2`` are 1 − β₁ and 1 − β₂."""
    for i in range(p.size):
        weight = p[i] * shrink
        slope = g[i] + decay * weight if decay != 0 else g[i]
        first = m[i] + share1 * (slope - m[i])
        second = beta2 * v[i] + share2 * slope * slope
        m[i], v[i] = first, second
        p[i] = weight - step_size * first / (np.sqrt(second) / v_scale + eps)
