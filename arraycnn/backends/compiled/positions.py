"""Where the positions of a convolution's output read: the tables of `correlation.correlate`."""

import math
from functools import lru_cache

import numpy as np

from arraycnn.arrays import Array, Shape
from arraycnn.backends.cpu import tuning
from arraycnn.geometry import Window


def plane_window(window: Window) -> tuple[Shape, Shape, Shape, Shape]:
    """Kernel, stride, padding before and dilation of a window over planes of rows and columns."""
    before = tuple(low for low, _ in window.padding)
    if window.is_pointwise:
        return (1, 1), (1, 1), (0, 0), (1, 1)
    if window.ndim == 1:
        one, none = (1,), (0,)
        return one + window.kernel_size, one + window.stride, none + before, one + window.dilation
    return window.kernel_size, window.stride, before, window.dilation


@lru_cache(maxsize=512)
def positions(window: Window, batch: int, adjoint: bool) -> tuple[Array, Array, Array, Array]:
    """Tables for `correlation.correlate`: rows, runs of columns, kernel and steps."""
    kernel, strides, before, dilation = plane_window(window)
    inputs, outputs = window.input_size, window.output_size
    if window.is_pointwise or window.ndim == 1:
        inputs, outputs = (1, math.prod(inputs)), (1, math.prod(outputs))
    axes = [
        _axis(sizes, adjoint)
        for sizes in zip(inputs, outputs, kernel, strides, before, dilation, strict=True)
    ]
    rows, columns = (table for table, _, _ in axes)
    longest = max(1, tuning.RUN_ELEMENTS // batch)
    runs: list[list[int]] = []
    for column, (tap, taps, index) in enumerate(columns):
        if runs:
            first, last, *previous, start = runs[-1]
            follows = index == start + column - first and column - first < longest
            if follows and previous == [tap, taps]:
                runs[-1][1] = last + 1
                continue
        runs.append([column, column + 1, tap, taps, index])
    steps = [step for _, *steps in axes for step in steps]
    return np.array(rows), np.array(runs), np.array(kernel), np.array(steps)


def _axis(sizes: tuple[int, ...], adjoint: bool) -> tuple[list[tuple[int, int, int]], int, int]:
    """For each position along an axis of a convolution's output, or its adjoint's: first tap,
    taps, and the index that the first tap reads; then the steps of taps and of these indices.

    Position o reads o·stride − before + tap·dilation, so the adjoint's position h reads
    (h + before − tap·dilation) / stride where that is whole.
    """
    inputs, outputs, kernel, stride, before, dilation = sizes
    tap_step, index_step = 1, dilation
    if adjoint:
        tap_step = -(stride // math.gcd(stride, dilation))
        index_step = -(dilation * tap_step // stride)
    table = []
    for position in range(inputs if adjoint else outputs):
        found = []
        for tap in range(kernel)[:: -1 if adjoint else 1]:
            if adjoint:  # from the last tap on, so that the input is read forwards
                index, rest = divmod(position + before - tap * dilation, stride)
                inside = rest == 0 and 0 <= index < outputs
            else:
                index = position * stride - before + tap * dilation
                inside = 0 <= index < inputs
            if inside:
                found.append((tap, index))
        table.append((found[0][0], len(found), found[0][1]) if found else (0, 0, 0))
    return table, tap_step, index_step
