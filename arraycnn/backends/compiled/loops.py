"""The CPU backend's loops for Numba: float32, on C-contiguous buffers (C, *S, N).

Each function computes a part of an operation, given by its first index and the one after its last,
so that threads can share the parts out. What it computes is said in `reference`, under the name
that `kernels.TABLE` gives it.
"""

from typing import Any

import numpy as np

from arraycnn.backends.compiled.jit import (
    BOOL,
    INT,
    NUMBERS,
    TAPS_IN,
    TAPS_OUT,
    In,
    Out,
    float32,
    kernel,
)
from arraycnn.backends.cpu.tuning import COMPILED_SUM_ELEMENTS as BLOCK


@kernel(In(2), Out(1), Out(1), INT, INT, sums=True)
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
            count = first + part.size
            gap = block_mean - total_mean
            total_square += square - np.float64(rest) * rest / part.size
            total_square += gap * gap * first * part.size / count
            total_mean += gap * part.size / count
        mean[row], var[row] = total_mean, total_square / length


@kernel(In(2), In(1), In(1), Out(2), BOOL, INT, INT)
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


@kernel(In(2), Out(1), INT, INT, sums=True)
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
    In(2), In(1), In(1), In(1), In(2), In(2), BOOL, Out(2), Out(1), Out(1),
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
            values = x[row, first : min(first + BLOCK, length)]
            slopes = delta[row, first : min(first + BLOCK, length)]
            if relu:
                output, passed = (
                    y[row, first : first + BLOCK],
                    grad[row, first : first + BLOCK],
                )
                for i in range(values.size):
                    passed[i] = slopes[i] if output[i] > zero else zero
                slopes = passed
            block_shift, block_product = float32(0), float32(0)
            for i in range(values.size):
                block_shift += slopes[i]
                block_product += slopes[i] * (values[i] - middle)
            shift += block_shift
            product += block_product
        grad_shift[row], grad_scale[row] = shift, product * inverse_std[row]
        factor = scale[row] * inverse_std[row]
        slope = float32(-factor * inverse_std[row] * grad_scale[row] / max(1, length))
        offset = float32(-factor * grad_shift[row] / max(1, length))
        values, target = x[row], grad[row]
        slopes = grad[row] if relu else delta[row]
        for i in range(length):
            target[i] = slopes[i] * factor + ((values[i] - middle) * slope + offset)


@kernel(In(1), Out(1), INT, INT)
def relu(x: Any, y: Any, start: int, stop: int) -> None:
    source, target = x[start:stop], y[start:stop]
    for i in range(target.size):
        target[i] = float32(0) if source[i] < float32(0) else source[i]


@kernel(In(1), In(1), Out(1), INT, INT)
def relu_grad(y: Any, delta: Any, grad: Any, start: int, stop: int) -> None:
    output, source, target = y[start:stop], delta[start:stop], grad[start:stop]
    for i in range(target.size):
        target[i] = source[i] if output[i] > float32(0) else float32(0)


@kernel(In(4), Out(4), NUMBERS, BOOL, INT, INT)
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
                        values = x[channel, above, beside]
                        for n in range(best.size):
                            old, new = best[n], values[n]
                            best[n] = old if (old >= new) | (old != old) else new  # a NaN stays


@kernel(In(4), Out(4), BOOL, INT, INT)
def max_pool_2x2(x: Any, y: Any, relu: bool, start: int, stop: int) -> None:
    """`max_pool` over 2×2 elements side by side, in one pass."""
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


@kernel(In(4), Out(4), TAPS_OUT, NUMBERS, BOOL, INT, INT)
def max_pool_argmax(
    x: Any, y: Any, argmax: Any, window: Any, relu: bool, start: int, stop: int
) -> None:
    """The maxima y and the first tap of each; ``window`` as for `max_pool`."""
    height, width = x.shape[1], x.shape[2]
    none, zero = np.uint8(window[0] * window[1]), float32(0)
    for channel in range(start, stop):
        for row in range(y.shape[1]):
            for column in range(y.shape[2]):
                best, taps = y[channel, row, column], argmax[channel, row, column]
                first = True
                for tap in range(window[0] * window[1]):
                    above = row * window[2] - window[4] + tap // window[1] * window[6]
                    beside = column * window[3] - window[5] + tap % window[1] * window[7]
                    if above < 0 or above >= height or beside < 0 or beside >= width:
                        continue
                    values, this = x[channel, above, beside], np.uint8(tap)
                    if first:
                        first = False
                        for n in range(best.size):
                            best[n], taps[n] = values[n], this
                    else:
                        for n in range(best.size):
                            old, new = best[n], values[n]
                            stays = (old >= new) | (old != old)  # a NaN does
                            best[n] = old if stays else new
                            taps[n] = taps[n] if stays else this
                if relu:
                    for n in range(best.size):
                        taps[n] = taps[n] if best[n] > zero else none
                        best[n] = zero if best[n] < zero else best[n]


@kernel(Out(4), TAPS_IN, In(4), NUMBERS, BOOL, INT, INT)
def max_pool_grad(
    grad: Any, argmax: Any, delta: Any, window: Any, disjoint: bool, start: int, stop: int
) -> None:
    """Each window's gradient goes to its maximum; ``window`` as for `max_pool`.

    Windows that are ``disjoint`` and side by side need no sums.
    """
    height, width = grad.shape[1], grad.shape[2]
    zero = float32(0)
    for channel in range(start, stop):
        if disjoint:
            grad[channel, delta.shape[1] * window[0] :] = zero
            grad[channel, :, delta.shape[2] * window[1] :] = zero
        else:
            grad[channel] = zero
        for row in range(delta.shape[1]):
            for column in range(delta.shape[2]):
                taps, slopes = argmax[channel, row, column], delta[channel, row, column]
                for tap in range(window[0] * window[1]):
                    above = row * window[2] - window[4] + tap // window[1] * window[6]
                    beside = column * window[3] - window[5] + tap % window[1] * window[7]
                    if above < 0 or above >= height or beside < 0 or beside >= width:
                        continue
                    target, this = grad[channel, above, beside], np.uint8(tap)
                    if disjoint:
                        for n in range(target.size):
                            target[n] = slopes[n] if taps[n] == this else zero
                    else:
                        for n in range(target.size):
                            target[n] += slopes[n] if taps[n] == this else zero
