"""Activation functions: definitions, derivatives, accuracy, memory."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layouts import LAYOUTS
from numerics import assert_close, assert_derivative, put

from arraycnn import functional as F
from arraycnn.backends import Backend

ALPHA, SCALE = 1.6732632423543772, 1.0507009873554805  # Klambauer et al., 2017


def normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


# name, options, the definition for one number
ACTIVATIONS: list[tuple[str, dict[str, Any], Callable[[float], float]]] = [
    ("relu", {}, lambda x: max(x, 0.0)),
    ("leaky_relu", {}, lambda x: x if x > 0 else 0.01 * x),
    ("leaky_relu", {"negative_slope": 0.3}, lambda x: x if x > 0 else 0.3 * x),
    ("elu", {}, lambda x: x if x > 0 else math.expm1(x)),
    ("elu", {"alpha": 0.7}, lambda x: x if x > 0 else 0.7 * math.expm1(x)),
    ("selu", {}, lambda x: SCALE * (x if x > 0 else ALPHA * math.expm1(x))),
    ("gelu", {}, lambda x: x * normal_cdf(x)),
    (
        "gelu",
        {"approximate": "tanh"},
        lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    ),
    ("sigmoid", {}, lambda x: 1 / (1 + math.exp(-x)) if x > -700 else 0.0),
    ("tanh", {}, math.tanh),
    ("softplus", {}, lambda x: max(x, 0.0) + math.log1p(math.exp(-abs(x)))),
]
IDS = [
    name + "".join(f"-{value}" for value in options.values()) for name, options, _ in ACTIVATIONS
]
NAMES = sorted({name for name, _, _ in ACTIVATIONS})
every = pytest.mark.parametrize(("name", "options", "definition"), ACTIVATIONS, ids=IDS)


def apply(backend: Backend, name: str, *arrays: np.ndarray, **options: Any) -> np.ndarray:
    return backend.to_numpy(getattr(F, name)(*(put(backend, a) for a in arrays), **options))


@every
def test_definition(name, options, definition, backend) -> None:
    """To 1e-12, relatively; gelu, made of x·Φ(x), to 1e-12 of x."""
    x = np.concatenate([np.linspace(-30, 30, 1201), [-1e4, -800.0, 800.0, 1e4]])
    expected = np.array([definition(value) for value in x.tolist()])
    error = np.abs(apply(backend, name, x, **options) - expected)
    scale = np.abs(x) if name == "gelu" else np.abs(expected)
    assert (error <= 1e-12 * scale + 1e-14).all()


@every
def test_derivative(name, options, definition, backend, rng) -> None:
    x = rng.standard_normal((3, 4, 5)) * 2
    x[np.abs(x) < 1e-3] = 0.5  # away from the kink
    assert_derivative(
        lambda x: apply(backend, name, x, **options),
        lambda x, g: apply(backend, f"{name}_grad", x, g, **options),
        x,
    )


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_softmax_derivative(name, axis, backend, rng) -> None:
    assert_derivative(
        lambda x: apply(backend, name, x, axis=axis),
        lambda x, g: apply(backend, f"{name}_grad", x, g, axis=axis),
        rng.standard_normal((3, 4, 5)),
    )


def test_convention_at_the_kink(backend) -> None:
    """As PyTorch: the slope at 0 is that of the negative side."""
    zero, one = np.zeros(1), np.ones(1)
    assert apply(backend, "relu_grad", zero, one) == 0
    assert apply(backend, "leaky_relu_grad", zero, one, negative_slope=0.25) == 0.25
    assert apply(backend, "elu_grad", zero, one, alpha=0.5) == 0.5


# Relations

values = st.lists(st.floats(-50, 50), min_size=2, max_size=12).map(np.array)


@given(x=values)
def test_identities(x: np.ndarray, backend: Backend) -> None:
    def f(name: str, x: np.ndarray, **options: Any) -> np.ndarray:
        return apply(backend, name, x, **options)

    ones = np.ones_like(x)
    assert_close(f("relu", x) - f("relu", -x), x, 1e-15)
    assert_close(f("leaky_relu", x, negative_slope=0.0), f("relu", x), 0)
    assert_close(f("leaky_relu", x, negative_slope=1.0), x, 0)
    assert_close(f("sigmoid", x) + f("sigmoid", -x), ones, 1e-15)
    assert_close(2 * f("sigmoid", 2 * x) - 1, f("tanh", x), 1e-15)
    assert_close(f("softplus", x) - f("softplus", -x), x, 1e-15)
    assert_close(apply(backend, "softplus_grad", x, ones), f("sigmoid", x), 1e-15)
    assert_close(f("gelu", x) - f("gelu", -x), x, 1e-15)
    assert_close(f("selu", x), SCALE * f("elu", x, alpha=ALPHA), 1e-15)


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple),
    axis=st.integers(-4, 3),
    shift=st.floats(-500, 500),
    seed=st.integers(0, 1000),
)
def test_softmax_is_a_distribution(shape, axis, shift, seed, backend) -> None:
    axis %= len(shape)
    x = np.random.default_rng(seed).standard_normal(shape) * 5
    y = apply(backend, "softmax", x, axis=axis)
    assert (y >= 0).all()
    assert_close(y.sum(axis=axis), np.ones(y.sum(axis=axis).shape), 1e-14)
    assert_close(apply(backend, "softmax", x + shift, axis=axis), y, 1e-12)
    assert_close(np.exp(apply(backend, "log_softmax", x, axis=axis)), y, 1e-13)


def test_selu_keeps_mean_0_and_variance_1(backend) -> None:
    """The fixed point that its constants are made for, by integration over a normal variable."""
    x = np.linspace(-12, 12, 200_001)
    density = np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    y, step = apply(backend, "selu", x), x[1] - x[0]
    assert abs((y * density).sum() * step) < 1e-9
    assert abs((y * y * density).sum() * step - 1) < 1e-9


# Accuracy


@pytest.mark.parametrize("name", ["sigmoid", "softplus"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-13)])
def test_tails_are_relatively_accurate(name, dtype, tolerance, backend) -> None:
    """Both are e^x for very negative x; a probability of 1e-9 must not become 0."""
    x = np.linspace(-60, -5, 111).astype(dtype)
    expected = {
        "sigmoid": lambda value: 1 / (1 + math.exp(-value)),
        "softplus": lambda value: math.log1p(math.exp(value)),
    }[name]
    y = apply(backend, name, x)
    np.testing.assert_allclose(y, [expected(float(value)) for value in x], rtol=tolerance)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, options) for name, options, _ in ACTIVATIONS), ("softmax", {}), ("log_softmax", {})],
    ids=[*IDS, "softmax", "log_softmax"],
)
def test_large_values_overflow_nowhere(name, options, dtype, backend) -> None:
    """Warnings are errors here, so overflow half-way would be noticed too."""
    x = np.array([[-1e4, -300.0, -40.0, -0.0], [1e-4, 40.0, 300.0, 1e4]], dtype)
    y = apply(backend, name, x, **options)
    grad = apply(backend, f"{name}_grad", x, np.ones_like(x), **options)
    assert y.dtype == grad.dtype == dtype
    assert np.isfinite(y).all()
    assert np.isfinite(grad).all()


@pytest.mark.parametrize("name", NAMES)
def test_nan_stays_visible(name, backend) -> None:
    assert np.isnan(apply(backend, name, np.array([np.nan, 1.0]))).tolist() == [True, False]


# Memory


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [*NAMES, "softmax", "log_softmax"])
def test_strides_do_not_matter(name, layout, backend, rng) -> None:
    x, grad = rng.standard_normal((3, 4, 5, 2)), rng.standard_normal((3, 4, 5, 2))
    laid_x, laid_grad = put(backend, x, layout), put(backend, grad, layout)
    y, grad_x = getattr(F, name)(laid_x), getattr(F, f"{name}_grad")(laid_x, laid_grad)
    assert_close(backend.to_numpy(y), apply(backend, name, x), 1e-14)
    assert_close(backend.to_numpy(grad_x), apply(backend, f"{name}_grad", x, grad), 1e-14)
    np.testing.assert_array_equal(backend.to_numpy(laid_x), x)
    np.testing.assert_array_equal(backend.to_numpy(laid_grad), grad)
    for result in (y, grad_x):
        assert not backend.xp.shares_memory(result, laid_x)
        assert not backend.xp.shares_memory(result, laid_grad)
        if layout == "batch_last":
            assert backend.xp.moveaxis(result, 0, -1).flags.c_contiguous


@pytest.mark.parametrize("name", [*NAMES, "softmax", "log_softmax"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_dtype_is_kept(name, dtype, backend, rng) -> None:
    tolerance = {"float16": 1e-2, "float32": 1e-5, "float64": 1e-13}[dtype]
    x = rng.standard_normal((3, 4)).astype(dtype)
    grad = rng.standard_normal((3, 4)).astype(dtype)
    for suffix, arrays in (("", (x,)), ("_grad", (x, grad))):
        y = apply(backend, name + suffix, *arrays)
        assert y.dtype == dtype
        wide = apply(backend, name + suffix, *(a.astype("float64") for a in arrays))
        assert_close(y, wide, tolerance)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4, 5)])
@pytest.mark.parametrize("layout", [None, "batch_last", "fortran", "strided"])
def test_relu_keeps_the_memory_order(
    backend: Backend, shape: tuple[int, ...], layout: str | None
) -> None:
    if backend.name != "cpu" and layout in ("fortran", "strided"):
        pytest.skip("CuPy's functions return C order")
    if layout == "batch_last" and len(shape) < 2:
        pytest.skip("there is but one order")
    x = np.asarray(np.random.default_rng(0).standard_normal(shape), np.float32)
    placed = put(backend, x, layout if shape else None)
    y = F.relu(placed)
    grad = F.relu_grad(placed, placed)
    like = np.empty_like(backend.to_numpy(placed)) if layout != "strided" else None
    for result in (y, grad):
        assert backend.owns(result)
        assert result.shape == shape
        np.testing.assert_array_equal(backend.to_numpy(result), np.maximum(x, 0))
        if like is not None and shape:
            assert result.strides == placed.strides
