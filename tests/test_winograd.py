"""Convolutions with fewer products: the same sums, and the plain ones where they are not."""

from typing import Any

import numpy as np
import pytest
from numerics import assert_close, put

from arraycnn.backends.cpu import CpuBackend
from arraycnn.backends.cpu.winograd import (
    COUNTS,
    FilteredColumns,
    filter_outputs,
    filtered_bytes,
    minimal_filter,
)
from arraycnn.backends.memory_format import buffer_of
from arraycnn.geometry import conv_window

LIMIT = 64 << 20
BATCH, CHANNELS, OUT = 32, 48, 64
SAME = conv_window((9, 14), 3, padding=1)


@pytest.fixture
def cpu() -> CpuBackend:
    return CpuBackend()


@pytest.fixture
def arrays(cpu: CpuBackend) -> tuple[np.ndarray, ...]:
    """x, Δ and K for the window SAME."""
    rng = np.random.default_rng(0)
    shapes = (BATCH, CHANNELS, 9, 14), (BATCH, OUT, 9, 14)
    x, delta = (
        put(cpu, rng.standard_normal(shape, dtype=np.float32), "batch_last") for shape in shapes
    )
    return x, delta, rng.standard_normal((OUT, CHANNELS, 3, 3), dtype=np.float32)


@pytest.mark.parametrize("points", COUNTS)
def test_a_filter_computes_neighbouring_outputs(points: int) -> None:
    rng = np.random.default_rng(0)
    for taps in range(2, points):
        m = points - taps + 1
        d, g = rng.standard_normal(points), rng.standard_normal(taps)
        _, count, kernel, seen, spread = minimal_filter(m, taps)
        assert count == points
        y = spread.T @ ((kernel @ g) * (seen @ d))
        assert_close(y, np.correlate(d, g, "valid"), 1e-6)


@pytest.mark.parametrize(
    ("options", "batch", "chosen"),
    [
        ({}, BATCH, True),
        ({}, 4, False),
        ({"stride": (2, 1)}, BATCH, False),
        ({"dilation": 2}, BATCH, False),
        ({"kernel_size": (3, 1)}, BATCH, False),
        ({"kernel_size": (2, 4)}, BATCH, True),
        ({"kernel_size": 9}, BATCH, False),
    ],
)
def test_is_chosen_where_it_applies(options: dict[str, Any], batch: int, chosen: bool) -> None:
    window = conv_window((20, 20), **{"kernel_size": 3, "padding": 1} | options)
    assert (filter_outputs(window, batch, 64, 64, LIMIT) is not None) == chosen


def test_is_not_chosen_for_few_channels_or_little_memory() -> None:
    assert filter_outputs(SAME, BATCH, 1, 32, LIMIT) is None
    assert filter_outputs(SAME, BATCH, 64, 64, 1000) is None


@pytest.mark.parametrize("limit", [5_000, 50_000, 500_000, LIMIT])
@pytest.mark.parametrize("m", [2, 4, 6])
def test_pieces_cover_the_output_within_the_limit(
    cpu: CpuBackend, arrays: tuple[np.ndarray, ...], limit: int, m: int
) -> None:
    x, delta, _ = arrays
    columns = FilteredColumns(cpu.scratch, limit, x, SAME, OUT, m)
    seen = np.zeros(buffer_of(delta).shape, int)
    most = 0
    for index in range(len(columns)):
        columns.part(seen, index)[...] += 1
        first, end = np.lib.array_utils.byte_bounds(columns.fill(index))
        most = max(most, end - first)
    assert (seen == 1).all()
    assert most <= filtered_bytes(SAME, BATCH, CHANNELS, m, limit) <= limit


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3e38])
@pytest.mark.parametrize("place", [0, 1, 2], ids=["x", "delta", "weight"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_infinities_and_nans_reach_what_sees_them(
    cpu: CpuBackend,
    arrays: tuple[np.ndarray, ...],
    value: float,
    place: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert filter_outputs(SAME, BATCH, CHANNELS, OUT, cpu.workspace_limit) is not None
    arrays[place][1, 2, 1, 2] = value
    x, delta, weight = arrays

    def everything() -> list[np.ndarray]:
        return [
            cpu.convolution(x, weight, None, SAME, 1),
            cpu.convolution(x, weight, None, SAME, 1, True),
            cpu.convolution_weight_grad(x, delta, weight.shape, SAME, 1),
            *cpu.convolution_grads(x, delta, weight, SAME, 1),
        ]

    found = everything()
    monkeypatch.setattr("arraycnn.backends.cpu.convolution.filter_outputs", lambda *_: None)
    for one, two in zip(found, everything(), strict=True):
        assert_close(one, two, 1e-5)
