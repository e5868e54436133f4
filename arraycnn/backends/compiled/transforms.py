"""The loops of compiled minimal filtering, see `compiled.winograd`: into the points and back."""

from typing import Any

import numpy as np

from arraycnn.backends.compiled.llvm import LANES, linear_map
from arraycnn.backends.compiled.loops import BOOL, INT, float32, given, kernel, made
from arraycnn.backends.compiled.winograd import OUTPUTS, WIDTHS
from arraycnn.backends.cpu.winograd import minimal_filter

_rules = {width: minimal_filter(OUTPUTS, width) for width in WIDTHS}
_seen = {width: rule.seen.tolist() for width, rule in _rules.items()}
_spread = {-width: rule.spread.tolist() for width, rule in _rules.items()}
to_points_tile = linear_map(_seen | _spread)
collect_tile = linear_map({width: rule.spread.T.tolist() for width, rule in _rules.items()})


@kernel(given(4), given(1), made(5), INT, INT, INT, INT, INT)
def to_points(
    x: Any, zeros: Any, values: Any, width: int, row: int, sample: int, taps: int, before: int
) -> None:
    """values[p, c, r, g, n]: what group g of the row ``row`` + r of x is at the points.

    x is (C, H, W, N), values (points, C, rows, groups, n) for the samples from ``sample`` on. Group
    g has the ``taps`` columns from g·`OUTPUTS` − ``before`` on; outside of x there are ``zeros``,
    at least n. ``width`` is that of the kernel, negative where x is a gradient with respect to
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
                    column = group * OUTPUTS - before + tap
                    if inside and 0 <= column < columns:
                        sources[tap] = x.ctypes.data + 4 * (start + column * batch)
                    else:
                        sources[tap] = zeros.ctypes.data
                for point in range(points):
                    place = ((point * channels + channel) * rows + r) * groups + group
                    targets[point] = values.ctypes.data + 4 * place * samples
                for done in range(0, samples, LANES):
                    to_points_tile(
                        sources.ctypes.data, targets.ctypes.data, 4 * done, zeros.ctypes.data,
                        False, width, min(LANES, samples - done),
                    )  # fmt: skip


@kernel(given(5), given(1), made(4), made(1), INT, INT, INT, BOOL)
def from_points(
    values: Any, bias: Any, y: Any, waste: Any, width: int, row: int, sample: int, relu: bool
) -> None:
    """The outputs y[o, row + r, g·`OUTPUTS` + i, n], see `to_points`; the rest is ``waste``."""
    height, columns, batch = y.shape[1:]
    points, outputs, rows, groups, samples = values.shape
    sources, targets = np.empty(points, np.int64), np.empty(OUTPUTS, np.int64)
    for output in range(outputs):
        for r in range(rows):
            start = ((output * height + row + r) * columns) * batch + sample
            for group in range(groups):
                for point in range(points):
                    place = ((point * outputs + output) * rows + r) * groups + group
                    sources[point] = values.ctypes.data + 4 * place * samples
                for i in range(OUTPUTS):
                    column = group * OUTPUTS + i
                    if column < columns:
                        targets[i] = y.ctypes.data + 4 * (start + column * batch)
                    else:
                        targets[i] = waste.ctypes.data
                for done in range(0, samples, LANES):
                    collect_tile(
                        sources.ctypes.data, targets.ctypes.data, 4 * done,
                        bias.ctypes.data + 4 * output, relu, width, min(LANES, samples - done),
                    )  # fmt: skip


@kernel(given(1), made(1), INT, sums=True)
def magnitude(values: Any, sums: Any, index: int) -> None:
    """Σ |values|, not a number or infinite where one of them is."""
    total = float32(0)
    for i in range(values.size):
        total += abs(values[i])
    sums[index] = total
