"""Putting arrays on a backend, comparing them, and numerical derivatives."""

from collections.abc import Callable
from typing import Any

import numpy as np
from layouts import laid_out

from arraycnn.backends import Backend


def put(backend: Backend, array: np.ndarray, layout: str | None = None) -> Any:
    """A copy of ``array`` on the backend, with the strides of ``layout``."""
    return laid_out(backend.xp, backend.asarray(array.copy()), layout)


def assert_close(
    actual: np.ndarray, expected: np.ndarray, tolerance: float, name: str = "result"
) -> None:
    """|actual − expected| <= tolerance·scale, the scale being the largest magnitude expected."""
    assert actual.shape == expected.shape, f"{name}: shape {actual.shape} != {expected.shape}"
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected), err_msg=name)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(actual[~finite], expected[~finite], err_msg=name)
    scale = max(np.abs(expected[finite]).max(initial=0), 1.0)
    np.testing.assert_allclose(
        actual[finite], expected[finite], rtol=0, atol=tolerance * scale, err_msg=name
    )


def inner(a: np.ndarray, b: np.ndarray) -> complex:
    """⟨a, b⟩ = Σ conj(a)·b over all elements."""
    return complex(np.vdot(a, b))


def assert_derivative(
    function: Callable[[np.ndarray], np.ndarray],
    gradient: Callable[[np.ndarray, np.ndarray], np.ndarray],
    x: np.ndarray,
    *,
    step: float = 1e-5,
    tolerance: float = 1e-7,
) -> None:
    """``gradient(x, grad_output)`` against central differences along random directions.

    ⟨grad_output, (f(x + hv) − f(x − hv)) / 2h⟩ must be ⟨gradient, v⟩ for every direction v.
    """
    rng = np.random.default_rng(7)
    grad_output = rng.standard_normal(np.shape(function(x)))
    grad = gradient(x, grad_output)
    assert grad.shape == x.shape
    for _ in range(4):
        v = rng.standard_normal(x.shape)
        slope = (function(x + step * v) - function(x - step * v)) / (2 * step)
        expected = float(np.sum(grad_output * slope))
        actual = float(np.sum(grad * v))
        scale = float(np.sum(np.abs(grad * v))) + 1.0
        assert abs(actual - expected) <= tolerance * scale, (actual, expected)
