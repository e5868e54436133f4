"""Minimal filtering: the sums of a plain convolution, and plain ones where it goes wrong."""

import numpy as np
import pytest
from numerics import assert_close, put

from arraycnn.backends.compiled import CompiledBackend, numba_is_wanted
from arraycnn.backends.cpu import CpuBackend
from arraycnn.backends.cpu.winograd import Winograd, minimal_filtering
from arraycnn.backends.reference.algorithm import Problem
from arraycnn.backends.reference.backend import ReferenceBackend
from arraycnn.geometry import Window, conv_window

KINDS = [CpuBackend, CompiledBackend] if numba_is_wanted() else [CpuBackend]
BATCH, CHANNELS, OUT = 37, 48, 64
SAME = conv_window((9, 14), 3, padding=1)
WINDOWS = [
    SAME,
    conv_window((6, 8), 5, padding=2),
    conv_window((5, 11), (2, 3)),
    conv_window((4, 9), (1, 5), padding=((0, 0), (1, 3))),
    conv_window((6, 4), 3, padding=((2, 0), (0, 2))),
    conv_window((3, 8), 3, padding=2),
    conv_window((28, 15), (2, 4)),
]

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def arrays(window: Window) -> list[np.ndarray]:
    """x, Δ, K and b."""
    rng = np.random.default_rng(0)
    shapes = (BATCH, CHANNELS, *window.input_size), (BATCH, OUT, *window.output_size)
    x, delta = (
        put(CpuBackend(), rng.standard_normal(shape, dtype=np.float32), "batch_last")
        for shape in shapes
    )
    weight = rng.standard_normal((OUT, CHANNELS, *window.kernel_size), dtype=np.float32)
    return [x, delta, weight, rng.standard_normal(OUT, dtype=np.float32)]


def results(
    backend: CpuBackend, window: Window, x: np.ndarray, delta: np.ndarray, weight: np.ndarray,
    bias: np.ndarray,
) -> list[np.ndarray]:  # fmt: skip
    return [
        backend.convolution(x, weight, None, window, 1),
        backend.convolution(x, weight, bias, window, 1, True),
        backend.convolution_weight_grad(x, delta, weight.shape, window, 1),
        backend.convolution_input_grad(delta, weight, window, 1),
        *backend.convolution_grads(x, delta, weight, window, 1),
    ]


@pytest.mark.parametrize("size", [4, 6, 8])
def test_its_matrices_compute_neighbouring_outputs(size: int) -> None:
    rng = np.random.default_rng(0)
    for r in range(2, size):
        m = size - r + 1
        d, g = rng.standard_normal(size), rng.standard_normal(r)
        transforms = minimal_filtering(m, r)
        assert transforms.points == size
        y = transforms.output.T @ ((transforms.filter @ g) * (transforms.input @ d))
        assert_close(y, np.correlate(d, g, "valid"), 1e-6)


@every_kind
def test_is_what_computes_the_middle_of_a_residual_network(kind: type[CpuBackend]) -> None:
    window = conv_window((32, 32), 3, padding=1)
    problem = Problem(window, 128, 64, 64, 1, np.dtype(np.float32))
    assert isinstance(kind().algorithms(problem)[0], Winograd)


@every_kind
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_is_the_convolution(kind: type[CpuBackend], window: Window) -> None:
    given = arrays(window)
    expected = results(ReferenceBackend(), window, *(array.astype(float) for array in given))
    for found, truth in zip(results(kind(), window, *given), expected, strict=True):
        assert_close(found, truth, 5e-6)


@every_kind
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3e38])
@pytest.mark.parametrize("place", [0, 1, 2], ids=["x", "delta", "weight"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_infinities_and_nans_reach_what_meets_them(
    kind: type[CpuBackend], value: float, place: int
) -> None:
    window = conv_window((9, 14), 3)
    given = arrays(window)
    given[place][1, 2, 1, 2] = value
    expected = results(ReferenceBackend(), window, *given)
    found = results(kind(), window, *given)
    # Times the zeros around Δ it is a NaN, if these are multiplied at all.
    found, expected = (each[: (5, 6, 3)[place]] for each in (found, expected))
    for one, two in zip(found, expected, strict=True):
        assert_close(one, two, 1e-5)
