"""Max, average, adaptive and global pooling: values, gradients, properties, memory."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import reference
from hypothesis import assume, given
from hypothesis import strategies as st
from layouts import LAYOUTS
from numerics import assert_close, assert_derivative, inner, put

from arraycnn import functional as F
from arraycnn.backends import Backend


@dataclass(frozen=True)
class Setting:
    """A pooling in which every window sees at least one element."""

    shape: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    pad: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    ceil_mode: bool
    seed: int

    @property
    def ndim(self) -> int:
        return len(self.kernel)

    @property
    def options(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.pad, "ceil_mode": self.ceil_mode}

    @property
    def out_size(self) -> tuple[int, ...]:
        return reference.output_size(
            self.shape[2:], self.kernel, self.stride, self.pad, self.dilation, self.ceil_mode
        )


@st.composite
def settings_of_pooling(draw: st.DrawFn, dilated: bool = False) -> Setting:
    ndim = draw(st.integers(1, 3))
    largest = (5, 4, 3)[ndim - 1]

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(ndim))

    kernel, stride, dilation = each(1, 3), each(1, 3), each(1, 2 if dilated else 1)
    pad = tuple(zip(each(0, 2), each(0, 2), strict=True))
    setting = Setting(
        (draw(st.integers(1, 2)), draw(st.integers(1, 2)), *each(1, largest)),
        kernel,
        stride,
        pad,
        dilation,
        draw(st.booleans()),
        draw(st.integers(0, 2**32 - 1)),
    )
    size = setting.shape[2:]
    assume(all(o > 0 for o in setting.out_size))
    seen = {
        q for q, _, _ in reference.connections(
            size, kernel, setting.out_size, stride, pad, dilation
        )
    }  # fmt: skip
    assume(len(seen) == np.prod(setting.out_size))
    return setting


def pool(backend: Backend, name: str, *arguments: Any, **options: Any) -> Any:
    """A function of the API on the backend, from and to NumPy."""
    given_ = [put(backend, a) if isinstance(a, np.ndarray) else a for a in arguments]
    result = getattr(F, name)(*given_, **options)
    if isinstance(result, tuple):
        return tuple(backend.to_numpy(part) for part in result)
    return backend.to_numpy(result)


# Against the loops


@given(config=settings_of_pooling(dilated=True), values=st.sampled_from(["ties", "nan", "floats"]))
def test_max_pooling_is_the_loops(config: Setting, values: str, backend: Backend) -> None:
    rng = np.random.default_rng(config.seed)
    x = rng.standard_normal(config.shape)
    if values == "ties":
        x = rng.choice([-np.inf, 0.0, 1.0], config.shape)
    elif values == "nan":
        x[rng.random(config.shape) < 0.2] = np.nan
    options = config.options | {"dilation": config.dilation}
    name = f"max_pool{config.ndim}d"
    y, indices = pool(backend, name, x, config.kernel, return_indices=True, **options)
    expected, where = reference.max_pool(
        x,
        config.kernel,
        stride=config.stride,
        pad=config.pad,
        dilation=config.dilation,
        ceil_mode=config.ceil_mode,
    )
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(indices, where)
    grad = rng.standard_normal(y.shape)
    grad_x = pool(backend, f"{name}_grad", x, config.kernel, grad, **options)
    assert_close(grad_x, reference.scatter_indices(x.shape, where, grad), 1e-12)


@given(
    config=settings_of_pooling(),
    count_include_pad=st.booleans(),
    divisor_override=st.sampled_from([None, 1, 5]),
)
def test_average_pooling_is_the_loops(
    config: Setting, count_include_pad: bool, divisor_override: int | None, backend: Backend
) -> None:
    rng = np.random.default_rng(config.seed)
    x = rng.standard_normal(config.shape)
    flags = {"count_include_pad": count_include_pad, "divisor_override": divisor_override}
    theirs = {"stride": config.stride, "pad": config.pad, **flags}
    name, options = f"avg_pool{config.ndim}d", config.options | flags
    y = pool(backend, name, x, config.kernel, **options)
    expected = reference.avg_pool(x, config.kernel, ceil_mode=config.ceil_mode, **theirs)
    assert_close(y, expected, 1e-12)
    grad = rng.standard_normal(y.shape)
    grad_x = pool(backend, f"{name}_grad", x.shape, config.kernel, grad, **options)
    assert_close(grad_x, reference.avg_pool_grad(x.shape, config.kernel, grad, **theirs), 1e-12)


@given(
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    out_size=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    seed=st.integers(0, 1000),
)
def test_adaptive_pooling_is_the_loops(size, out_size, seed, backend) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 4, (2, 2, *size)).astype(float)
    grad = rng.standard_normal((2, 2, *out_size))
    y = pool(backend, "adaptive_avg_pool2d", x, out_size)
    assert_close(y, reference.adaptive_avg_pool(x, out_size), 1e-12)
    grad_x = pool(backend, "adaptive_avg_pool2d_grad", x.shape, out_size, grad)
    assert_close(grad_x, reference.adaptive_avg_pool_grad(x.shape, out_size, grad), 1e-12)
    values, where = reference.adaptive_max_pool(x, out_size)
    y, indices = pool(backend, "adaptive_max_pool2d", x, out_size, return_indices=True)
    np.testing.assert_array_equal(y, values)
    np.testing.assert_array_equal(indices, where)
    grad_x = pool(backend, "adaptive_max_pool2d_grad", x, out_size, grad)
    assert_close(grad_x, reference.scatter_indices(x.shape, where, grad), 1e-12)


# Properties


@given(config=settings_of_pooling(dilated=True), offset=st.integers(-4, 4))
def test_max_pooling_commutes_with_increasing_maps(config, offset, backend) -> None:
    x = np.random.default_rng(config.seed).integers(-9, 10, config.shape).astype(float)
    name, options = f"max_pool{config.ndim}d", config.options | {"dilation": config.dilation}
    y = pool(backend, name, x, config.kernel, **options)
    np.testing.assert_array_equal(
        pool(backend, name, x + offset, config.kernel, **options), y + offset
    )
    np.testing.assert_array_equal(pool(backend, name, 2 * x, config.kernel, **options), 2 * y)


@given(config=settings_of_pooling(dilated=True))
def test_indices_point_at_the_maxima(config: Setting, backend: Backend) -> None:
    x = np.random.default_rng(config.seed).integers(0, 3, config.shape).astype(float)
    y, indices = pool(
        backend, f"max_pool{config.ndim}d", x, config.kernel,
        return_indices=True, dilation=config.dilation, **config.options,
    )  # fmt: skip
    flat = x.reshape(*x.shape[:2], -1)
    picked = np.take_along_axis(flat, indices.reshape(*x.shape[:2], -1), axis=2)
    np.testing.assert_array_equal(picked.reshape(y.shape), y)


@given(config=settings_of_pooling(), count_include_pad=st.booleans())
def test_average_pooling_and_its_gradient_are_adjoint(config, count_include_pad, backend) -> None:
    rng = np.random.default_rng(config.seed)
    x = rng.standard_normal(config.shape)
    name = f"avg_pool{config.ndim}d"
    options = config.options | {"count_include_pad": count_include_pad}
    y = pool(backend, name, x, config.kernel, **options)
    grad = rng.standard_normal(y.shape)
    grad_x = pool(backend, f"{name}_grad", x.shape, config.kernel, grad, **options)
    assert abs(inner(y, grad) - inner(x, grad_x)) <= 1e-12 * (1 + np.abs(x).sum())


@given(
    steps=st.tuples(st.integers(-2, 2), st.integers(-2, 2)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    name=st.sampled_from(["max_pool2d", "avg_pool2d"]),
)
def test_shifting_the_input_by_strides_shifts_the_output(steps, stride, name, backend) -> None:
    x = np.zeros((1, 2, 24, 24))
    x[:, :, 9:14, 10:15] = np.random.default_rng(0).random((1, 2, 5, 5))
    moved = np.roll(x, [m * s for m, s in zip(steps, stride, strict=True)], axis=(2, 3))
    y = pool(backend, name, x, (3, 2), stride=stride)
    assert_close(
        pool(backend, name, moved, (3, 2), stride=stride), np.roll(y, steps, axis=(2, 3)), 1e-13
    )


def test_small_shifts_within_a_window_do_not_change_the_maximum(backend) -> None:
    """The invariance that pooling is for: a peak that stays in its window gives the same map."""
    maps = []
    for row, column in np.ndindex(3, 3):
        x = np.zeros((1, 1, 9, 9))
        x[0, 0, 3 + row, 3 + column] = 1
        maps.append(pool(backend, "max_pool2d", x, 3))
    for other in maps[1:]:
        np.testing.assert_array_equal(other, maps[0])


def test_average_pooling_is_a_uniform_convolution(backend, rng) -> None:
    x = rng.standard_normal((2, 3, 7, 8))
    weight = put(backend, np.full((3, 1, 2, 3), 1 / 6))
    expected = F.conv2d(put(backend, x), weight, stride=2, padding=(1, 0), groups=3)
    y = pool(backend, "avg_pool2d", x, (2, 3), stride=2, padding=(1, 0))
    assert_close(y, backend.to_numpy(expected), 1e-12)


def test_global_is_adaptive_to_one_is_the_mean(backend, rng) -> None:
    x = rng.standard_normal((2, 3, 4, 5))
    mean = x.mean(axis=(2, 3))
    assert_close(pool(backend, "global_avg_pool", x), mean, 1e-12)
    assert_close(pool(backend, "adaptive_avg_pool2d", x, 1)[:, :, 0, 0], mean, 1e-12)
    assert_close(pool(backend, "avg_pool2d", x, (4, 5))[:, :, 0, 0], mean, 1e-12)


@pytest.mark.parametrize(
    ("name", "arguments", "options"),
    [
        ("max_pool2d", (3,), {"stride": 2, "padding": 1}),
        ("max_pool1d", (2,), {}),
        ("max_pool3d", (2,), {"stride": 1}),
        ("adaptive_max_pool2d", ((2, 3),), {}),
    ],
)
def test_maximum_by_finite_differences(name, arguments, options, backend, rng) -> None:
    shape = (2, 2, *(5,) * int(name[-2]))
    x = rng.permutation(np.arange(np.prod(shape), dtype=float)).reshape(shape)
    assert_derivative(
        lambda x: pool(backend, name, x, *arguments, **options),
        lambda x, g: pool(backend, f"{name}_grad", x, *arguments, g, **options),
        x,
    )


@pytest.mark.parametrize(
    ("name", "arguments", "options"),
    [
        ("avg_pool2d", (3,), {"stride": 2, "padding": 1, "ceil_mode": True}),
        ("avg_pool1d", (2,), {"padding": 1, "count_include_pad": False}),
        ("avg_pool3d", (2,), {"stride": 1, "divisor_override": 3}),
        ("adaptive_avg_pool2d", ((2, 3),), {}),
        ("global_avg_pool", (), {}),
    ],
)
def test_average_by_finite_differences(name, arguments, options, backend, rng) -> None:
    ndim = int(name[-2]) if name.endswith("d") else 2
    x = rng.standard_normal((2, 2, *(5,) * ndim))
    assert_derivative(
        lambda x: pool(backend, name, x, *arguments, **options),
        lambda x, g: pool(backend, f"{name}_grad", x.shape, *arguments, g, **options),
        x,
    )


def test_padding_beyond_half_the_kernel_is_fine_while_windows_see_something(backend) -> None:
    x = np.array([[[-5.0, -7.0]]])
    y = pool(backend, "max_pool1d", x, 3, stride=1, padding=2)
    np.testing.assert_array_equal(y, [[[-5, -5, -5, -7]]])


def test_padding_never_wins_over_negative_numbers(backend) -> None:
    x = np.full((1, 1, 3, 3), -1e30)
    y, indices = pool(backend, "max_pool2d", x, 3, stride=2, padding=1, return_indices=True)
    np.testing.assert_array_equal(y, np.full((1, 1, 2, 2), -1e30))
    np.testing.assert_array_equal(indices[0, 0], [[0, 1], [3, 4]])


def test_the_first_of_two_nans_gets_the_gradient(backend) -> None:
    x = np.array([[[1.0, np.nan, 3.0, np.nan]]])
    y, indices = pool(backend, "max_pool1d", x, 4, return_indices=True)
    assert np.isnan(y).all()
    assert indices.item() == 1
    grad = pool(backend, "max_pool1d_grad", x, 4, np.array([[[2.0]]]))
    np.testing.assert_array_equal(grad, [[[0, 2, 0, 0]]])


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_gradient_that_overflowed_stays_where_it_belongs(value, backend) -> None:
    x = np.arange(6.0).reshape(1, 1, 6)
    grad = pool(backend, "max_pool1d_grad", x, 2, np.array([[[1.0, value, 2.0]]]))
    np.testing.assert_array_equal(grad, [[[0, 1, 0, value, 0, 2]]])


# Memory

CALLS: list[tuple[str, tuple, dict[str, Any]]] = [
    ("max_pool2d", (2,), {}),
    ("max_pool2d", (3,), {"stride": 2, "padding": 1, "ceil_mode": True}),
    ("max_pool2d", (1,), {}),
    ("avg_pool2d", (2,), {}),
    ("avg_pool2d", (3,), {"stride": 2, "padding": 1, "count_include_pad": False}),
    ("avg_pool2d", (1,), {}),
    ("adaptive_avg_pool2d", ((2, 3),), {}),
    ("adaptive_avg_pool2d", ((5, 6),), {}),
    ("adaptive_max_pool2d", ((2, 3),), {}),
    ("adaptive_max_pool2d", ((5, 6),), {}),
    ("global_avg_pool", (), {}),
]
IDS = [f"{name}-{i}" for i, (name, _, _) in enumerate(CALLS)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("name", "arguments", "options"), CALLS, ids=IDS)
def test_strides_do_not_matter(name, arguments, options, layout, backend, rng) -> None:
    x = rng.standard_normal((3, 2, 5, 6))
    y = pool(backend, name, x, *arguments, **options)
    grad = rng.standard_normal(y.shape)
    laid_x, laid_grad = put(backend, x, layout), put(backend, grad, layout)
    first = laid_x if "max" in name else x.shape
    result = getattr(F, name)(laid_x, *arguments, **options)
    grad_x = getattr(F, f"{name}_grad")(first, *arguments, laid_grad, **options)
    plain = pool(
        backend, f"{name}_grad", x if "max" in name else x.shape, *arguments, grad, **options
    )
    assert_close(backend.to_numpy(result), y, 1e-13)
    assert_close(backend.to_numpy(grad_x), plain, 1e-13)
    np.testing.assert_array_equal(backend.to_numpy(laid_x), x)
    np.testing.assert_array_equal(backend.to_numpy(laid_grad), grad)
    assert not backend.xp.shares_memory(result, laid_x)
    assert not backend.xp.shares_memory(grad_x, laid_grad)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(("name", "arguments", "options"), CALLS, ids=IDS)
def test_dtype_is_kept(name, arguments, options, dtype, backend, rng) -> None:
    tolerance = {"float16": 1e-2, "float32": 1e-5, "float64": 1e-12}[dtype]
    x = rng.standard_normal((2, 3, 5, 6)).astype(dtype)
    y = pool(backend, name, x, *arguments, **options)
    assert y.dtype == dtype
    wide = pool(backend, name, x.astype("float64"), *arguments, **options)
    assert_close(y, wide, tolerance)
    first = x if "max" in name else x.shape
    assert pool(backend, f"{name}_grad", first, *arguments, y, **options).dtype == dtype
