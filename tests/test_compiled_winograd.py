"""Compiled minimal filtering: the sums of a plain convolution, plain ones where it overflows."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numerics import assert_close, put

pytest.importorskip("numba")

from arraycnn.backends.compiled import CompiledBackend
from arraycnn.backends.compiled import winograd as cpu_filters
from arraycnn.backends.compiled.winograd import LEAST_ROWS, TILE_BYTES, is_worth_filtering
from arraycnn.backends.cpu import CpuBackend
from arraycnn.geometry import Window, conv_window

CHANNELS, OUTPUTS, LIMIT = 25, 30, 64 << 20
SAME = conv_window((9, 14), 3, padding=1)
WINDOWS = [
    SAME,
    conv_window((6, 8), 5, padding=2),
    conv_window((5, 11), (2, 3)),
    conv_window((4, 9), (1, 5), padding=((0, 0), (1, 3))),
    conv_window((6, 4), 3, padding=((2, 0), (0, 2))),
    conv_window((3, 8), 3, padding=2),
]


@pytest.fixture
def cpu() -> CompiledBackend:
    return CompiledBackend()


def arrays(window: Window, batch: int) -> tuple[np.ndarray, ...]:
    """x, Δ, K and b."""
    rng = np.random.default_rng(0)
    shapes = (batch, CHANNELS, *window.input_size), (batch, OUTPUTS, *window.output_size)
    x, delta = (
        put(CpuBackend(), rng.standard_normal(shape, dtype=np.float32), "batch_last")
        for shape in shapes
    )
    weight = rng.standard_normal((OUTPUTS, CHANNELS, *window.kernel_size), dtype=np.float32)
    return x, delta, weight, rng.standard_normal(OUTPUTS, dtype=np.float32)


def results(
    cpu: CpuBackend, window: Window, x: Any, delta: Any, weight: Any, bias: Any
) -> Iterator[np.ndarray]:
    for relu in (False, True):
        yield cpu.convolution(x, weight, bias, window, 1, relu)
    yield cpu.convolution(x, weight, None, window, 1)
    yield cpu.convolution_weight_grad(x, delta, weight.shape, window, 1)
    yield cpu.convolution_input_grad(delta, weight, window, 1)


@pytest.mark.parametrize("tile_bytes", [1, TILE_BYTES])  # the least rows, or all in one tile
@pytest.mark.parametrize("batch", [16, 37])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_is_the_convolution(
    cpu: CompiledBackend,
    window: Window,
    batch: int,
    tile_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = arrays(window, batch)
    monkeypatch.setattr(cpu_filters, "TILE_BYTES", tile_bytes)
    monkeypatch.setattr(CompiledBackend, "_filters", lambda *_: True)
    cpu_filters._tiles.cache_clear()
    expected = results(CpuBackend(), window, *(a.astype(float) for a in given))
    for found, truth in zip(results(cpu, window, *given), expected, strict=True):
        assert_close(found, truth, 3e-6)
    cpu_filters._tiles.cache_clear()


def test_does_not_depend_on_the_number_of_threads(cpu: CompiledBackend) -> None:
    window = conv_window((28, 28), 3, padding=1)
    given = arrays(window, 64)
    found = {}
    for cpu.num_threads in (1, 3):
        found[cpu.num_threads] = list(results(cpu, window, *given))
    for one, three in zip(found[1], found[3], strict=True):
        np.testing.assert_array_equal(one, three)


@pytest.mark.parametrize(
    ("options", "batch", "worth"),
    [
        ({}, 32, True),
        ({}, 8, False),
        ({"kernel_size": 5, "padding": 2}, 32, True),
        ({"kernel_size": (3, 1)}, 32, False),
        ({"kernel_size": 7}, 32, False),
        ({"stride": 2}, 32, False),
        ({"dilation": (1, 2)}, 32, False),
        ({"kernel_size": (3, 5)}, 32, True),
        ({"input_size": (12, 5)}, 32, False),  # 5 columns in groups of 4
    ],
)
def test_is_chosen_where_it_is_made_and_pays(
    options: dict[str, Any], batch: int, worth: bool
) -> None:
    window = conv_window(**{"input_size": (12, 14), "kernel_size": 3, "padding": 1} | options)
    assert is_worth_filtering(window, batch, 64, 64, LIMIT) == worth
    assert not is_worth_filtering(window, batch, 64, 16, LIMIT)


def test_stays_within_the_workspace(cpu: CompiledBackend) -> None:
    wide = conv_window((64, 1000), 3, padding=1)
    assert not is_worth_filtering(wide, 32, 256, 256, LIMIT)
    least = cpu_filters._tile_bytes(SAME, LEAST_ROWS, 64, 64)
    assert is_worth_filtering(SAME, 32, 64, 64, least)
    assert not is_worth_filtering(SAME, 32, 64, 64, least - 1)
    x, _, weight, _ = arrays(SAME, 16)
    cpu.workspace_limit = 1000
    assert not cpu._filters(SAME, x, weight.shape)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3e38])
@pytest.mark.parametrize("place", [0, 1, 2], ids=["x", "delta", "weight"])
def test_infinities_and_nans_reach_what_sees_them(
    cpu: CompiledBackend, value: float, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = arrays(SAME, 16)
    given[place][1, 2, 1, 2] = value
    found = list(results(cpu, SAME, *given))
    monkeypatch.setattr(CompiledBackend, "_filters", lambda *_: False)
    for one, two in zip(found, results(cpu, SAME, *given), strict=True):
        assert_close(one, two, 1e-5)
