"""Convolution by Fourier transforms: equal to im2col, in bounded memory, chosen where it pays."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from numerics import assert_close, put

import arraycnn as ac
from arraycnn import functional as F
from arraycnn.backends import Backend
from arraycnn.backends.reference.algorithm import Problem
from arraycnn.backends.reference.fourier import Fourier, fast_length
from arraycnn.geometry import conv_window

TOLERANCES = {
    "float16": 1e-2,
    "float32": 1e-5,
    "float64": 1e-13,
    "complex64": 1e-5,
    "complex128": 1e-13,
}
SMALL = 4000  # bytes of workspace that force blocks, and parts of channels and batch


def drawn(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    values = rng.standard_normal(shape)
    if dtype.startswith("complex"):
        values = values + 1j * rng.standard_normal(shape)
    return values.astype(dtype)


def random_case(ndim: int, seed: int) -> tuple[Any, Any, dict[str, Any]]:
    """Shapes of x and weight, and arguments that fit them."""
    rng = np.random.default_rng([ndim, seed])
    groups, inputs, outputs = (int(n) for n in rng.integers(1, 4, 3))
    kernel, stride, dilation = (
        tuple(int(n) for n in rng.integers(1, high, ndim)) for high in (5, 4, 3)
    )
    padding = tuple((int(before), int(after)) for before, after in rng.integers(0, 4, (ndim, 2)))
    sizes = rng.integers(10, 1200 if ndim == 1 else 14, ndim)
    x_shape = (int(rng.integers(1, 5)), groups * inputs, *map(int, sizes))
    arguments = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return x_shape, (groups * outputs, inputs, *kernel), arguments


@pytest.fixture(params=["ample", "scarce"])
def workspace(request: pytest.FixtureRequest, backend: Backend) -> Any:
    limit = backend.workspace_limit
    if request.param == "scarce":
        backend.workspace_limit = SMALL
    yield backend
    backend.workspace_limit = limit


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_convolution_and_gradients_equal_im2col(workspace: Backend, ndim: int, dtype: str) -> None:
    names = f"conv{ndim}d", f"conv{ndim}d_input_grad", f"conv{ndim}d_weight_grad"
    convolve, input_grad, weight_grad = (getattr(F, name) for name in names)
    rng = np.random.default_rng(0)
    for seed in range(4):
        x_shape, weight_shape, arguments = random_case(ndim, seed)
        x = put(workspace, drawn(rng, x_shape, dtype))
        weight = put(workspace, drawn(rng, weight_shape, dtype))
        bias = put(workspace, drawn(rng, weight_shape[:1], dtype))
        delta = put(workspace, drawn(rng, convolve(x, weight, **arguments).shape, dtype))
        results: dict[str, list[Any]] = {}
        for method in ("im2col", "fft"):
            results[method] = [
                convolve(x, weight, bias, method=method, **arguments),
                input_grad(x_shape, weight, delta, method=method, **arguments),
                weight_grad(x, weight_shape, delta, method=method, **arguments),
            ]
        for name, direct, through in zip(names, results["im2col"], results["fft"], strict=True):
            assert str(through.dtype) == dtype
            direct, through = map(workspace.to_numpy, (direct, through))
            assert_close(through, direct, TOLERANCES[dtype], f"{name} {x_shape} {arguments}")


@pytest.mark.parametrize("padding", ["valid", "same", "full"])
def test_named_paddings(backend: Backend, rng: np.random.Generator, padding: str) -> None:
    x = put(backend, rng.standard_normal((2, 3, 40, 30)))
    weight = put(backend, rng.standard_normal((4, 3, 9, 8)))
    direct, through = (F.conv2d(x, weight, padding=padding, method=m) for m in ("im2col", "fft"))
    assert_close(backend.to_numpy(through), backend.to_numpy(direct), 1e-13)


def test_empty_batch(backend: Backend) -> None:
    x, weight = backend.xp.zeros((0, 2, 9, 9)), backend.xp.ones((3, 2, 4, 4))
    y = F.conv2d(x, weight, method="fft")
    assert y.shape == (0, 3, 6, 6)
    assert F.conv2d_input_grad(x.shape, weight, y, method="fft").shape == x.shape
    assert not F.conv2d_weight_grad(x, weight.shape, y, method="fft").any()


def test_the_adjoints_are_adjoint(backend: Backend, rng: np.random.Generator) -> None:
    """⟨Δ, K ∗ x⟩ = ⟨Kᴴ Δ, x⟩ = ⟨δK, K⟩ for complex arrays too."""
    x = put(backend, drawn(rng, (2, 3, 50, 41), "complex128"))
    weight = put(backend, drawn(rng, (4, 3, 20, 13), "complex128"))
    arguments = {"stride": (3, 2), "padding": 7, "dilation": (2, 1), "method": "fft"}
    y = F.conv2d(x, weight, **arguments)
    delta = put(backend, drawn(rng, y.shape, "complex128"))
    pairs = [
        (delta, y),
        (F.conv2d_input_grad(x.shape, weight, delta, **arguments), x),
        (F.conv2d_weight_grad(x, weight.shape, delta, **arguments), weight),
    ]
    products = [complex((a.conj() * b).sum()) for a, b in pairs]
    assert np.allclose(products, products[0], rtol=1e-11)


def test_a_large_template_takes_little_memory() -> None:
    """The columns of this one would be 6 million times 9,100 floats, 218 GB."""
    rng = np.random.default_rng(0)
    picture = rng.random((1, 1, 2000, 3000), np.float32)
    template = picture[:, :, 700:830, 1900:1970] - 0.5
    tracemalloc.start()
    response = F.conv2d(picture - np.float32(0.5), template)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert response.dtype == np.float32
    assert np.unravel_index(response.argmax(), response.shape[2:]) == (700, 1900)
    assert peak < 200e6


@pytest.mark.parametrize("shape", [(1, 1, 3000, 300), (64, 4, 64, 64), (1, 300, 64, 64)])
def test_transforms_stay_near_the_workspace_limit(shape: tuple[int, ...]) -> None:
    backend = ac.get_backend("cpu")
    limit, backend.workspace_limit = backend.workspace_limit, 4 << 20
    x = np.zeros(shape, np.float32)
    weight = np.zeros((8, shape[1], 31, 31), np.float32)
    y = F.conv2d(x, weight, method="fft")
    arguments = [(F.conv2d, x, weight), (F.conv2d_weight_grad, x, weight.shape, y)]
    arguments.append((F.conv2d_input_grad, x.shape, weight, y))
    try:
        for function, *arrays in arguments:
            tracemalloc.start()
            result = function(*arrays, method="fft")
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            copies = 2 * x.nbytes + y.nbytes  # the caller's arrays brought to batch-last memory
            assert peak < result.nbytes + copies + 3 * (4 << 20), (function.__name__, peak)
    finally:
        backend.workspace_limit = limit


@pytest.mark.parametrize(
    ("weight_shape", "size", "transforms"),
    [((1, 1, 130, 70), 2000, True), ((3, 2, 95, 95), 222, True), ((64, 32, 3, 3), 14, False)],
)
def test_auto_takes_what_is_many_times_faster(
    backend: Backend, weight_shape: tuple[int, ...], size: int, transforms: bool
) -> None:
    window = conv_window((size, size), weight_shape[2:])
    problem = Problem(window, 1, weight_shape[1], weight_shape[0], 1, np.dtype(np.float32))
    first = backend.algorithms(problem)[0]
    assert isinstance(first, Fourier) is transforms
    assert not any(isinstance(one, Fourier) for one in backend.algorithms(problem, "im2col"))


@pytest.mark.parametrize("kernel", [3, 95])
def test_a_layer_computes_what_the_function_does(
    backend: Backend, rng: np.random.Generator, kernel: int
) -> None:
    layer = ac.Conv2d(2, 3, kernel, padding=kernel // 2, seed=0, backend=backend)
    weight, bias, options = layer.weight.data, layer.bias.data, {"padding": kernel // 2}
    x = put(backend, rng.standard_normal((1, 2, 128, 128), dtype=np.float32))
    y, backward = layer.forward(x)
    found = [backend.to_numpy(y), backend.to_numpy(layer(x)), backend.to_numpy(backward(y))]
    expected = F.conv2d(x, weight, bias, **options)
    grad = F.conv2d_input_grad(x.shape, weight, expected, **options)
    for one, two in zip(found, (expected, expected, grad), strict=True):
        np.testing.assert_array_equal(one, backend.to_numpy(two))
    if kernel == 95:
        grad = F.conv2d_weight_grad(x, weight.shape, expected, **options)
        np.testing.assert_array_equal(*map(backend.to_numpy, (layer.weight.grad, grad)))


def test_auto_is_one_of_the_two(rng: np.random.Generator) -> None:
    x = rng.standard_normal((1, 1, 240, 240))
    for kernel, chosen in ((3, "im2col"), (120, "fft")):
        weight = rng.standard_normal((1, 1, kernel, kernel))
        np.testing.assert_array_equal(
            F.conv2d(x, weight), F.conv2d(x, weight, method=chosen), strict=True
        )


def test_fast_lengths_have_small_factors() -> None:
    assert [fast_length(n) for n in (1, 7, 11, 97, 127, 1021)] == [1, 8, 12, 100, 128, 1024]


def test_unknown_method() -> None:
    x, weight = np.zeros((1, 1, 5, 5)), np.zeros((1, 1, 3, 3))
    y = np.zeros((1, 1, 3, 3))
    for call in (
        lambda: F.conv2d(x, weight, method="winograd"),
        lambda: F.conv2d_input_grad(x.shape, weight, y, method="winograd"),
        lambda: F.conv2d_weight_grad(x, weight.shape, y, method="winograd"),
    ):
        with pytest.raises(ValueError, match="method must be one of 'auto', 'im2col', 'fft'"):
            call()
