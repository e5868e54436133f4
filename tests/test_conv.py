"""Convolution, its adjoints, transposed convolution and im2col: values, properties, memory."""

import tracemalloc
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS
from numerics import assert_close, assert_derivative, inner, put

from arraycnn import functional as F
from arraycnn.backends import Backend


@dataclass(frozen=True)
class Setting:
    """A convolution that fits, with arrays drawn from ``seed``."""

    batch: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    pad: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    in_channels: int
    out_channels: int
    is_complex: bool
    seed: int

    @property
    def ndim(self) -> int:
        return len(self.size)

    @property
    def options(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.pad,
            "dilation": self.dilation,
            "groups": self.groups,
        }

    @property
    def reference_options(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "pad": self.pad,
            "dilation": self.dilation,
            "groups": self.groups,
        }

    @property
    def out_size(self) -> tuple[int, ...]:
        return reference.output_size(self.size, self.kernel, self.stride, self.pad, self.dilation)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """x, weight, bias and an output gradient."""
        rng = np.random.default_rng(self.seed)
        return (
            draw(rng, (self.batch, self.in_channels, *self.size), self.is_complex),
            draw(
                rng,
                (self.out_channels, self.in_channels // self.groups, *self.kernel),
                self.is_complex,
            ),
            draw(rng, (self.out_channels,), self.is_complex),
            draw(rng, (self.batch, self.out_channels, *self.out_size), self.is_complex),
        )


def draw(rng: np.random.Generator, shape: tuple[int, ...], is_complex: bool = False) -> np.ndarray:
    values = rng.standard_normal(shape)
    return values + 1j * rng.standard_normal(shape) if is_complex else values


@st.composite
def settings_of_convolutions(draw: st.DrawFn) -> Setting:
    ndim = draw(st.integers(1, 3))
    largest = (4, 3, 2)[ndim - 1]

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(ndim))

    kernel, stride, dilation = each(1, largest), each(1, 3), each(1, 2)
    pad = tuple(zip(each(0, 2), each(0, 2), strict=True))
    smallest = [
        max(1, (k - 1) * d + 1 - sum(p)) for k, d, p in zip(kernel, dilation, pad, strict=True)
    ]
    size = tuple(low + draw(st.integers(0, largest)) for low in smallest)
    groups = draw(st.integers(1, 3))
    return Setting(
        batch=draw(st.integers(1, 3)),
        size=size,
        kernel=kernel,
        stride=stride,
        pad=pad,
        dilation=dilation,
        groups=groups,
        in_channels=groups * draw(st.integers(1, 2)),
        out_channels=groups * draw(st.integers(1, 2)),
        is_complex=draw(st.booleans()),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


def conv(backend: Backend, name: str, *arrays: np.ndarray | tuple | None, **options) -> np.ndarray:
    """A function of the API on the backend, from and to NumPy."""
    given_ = [put(backend, a) if isinstance(a, np.ndarray) else a for a in arrays]
    return backend.to_numpy(getattr(F, name)(*given_, **options))


# Against the loops


@given(config=settings_of_convolutions())
def test_convolution_is_the_loops(config: Setting, backend: Backend) -> None:
    x, weight, bias, grad = config.arrays()
    name = f"conv{config.ndim}d"
    y = conv(backend, name, x, weight, bias, **config.options)
    grad_x = conv(backend, f"{name}_input_grad", x.shape, weight, grad, **config.options)
    grad_weight = conv(backend, f"{name}_weight_grad", x, weight.shape, grad, **config.options)
    options = config.reference_options
    assert_close(y, reference.conv(x, weight, bias, **options), 1e-12)
    assert_close(grad_x, reference.conv_input_grad(x.shape, weight, grad, **options), 1e-12)
    assert_close(grad_weight, reference.conv_weight_grad(x, weight.shape, grad, **options), 1e-12)
    assert_close(conv(backend, "bias_grad", grad), grad.sum(axis=(0, *range(2, grad.ndim))), 1e-12)


@given(config=settings_of_convolutions())
def test_transposed_convolution_is_the_loops(config: Setting, backend: Backend) -> None:
    """With the arrays of a convolution whose input it restores: its weight is the same array."""
    x, weight, _, grad = config.arrays()
    extra = output_padding(config)
    bias = np.arange(1.0, 1.0 + x.shape[1]).astype(x.dtype)
    name = f"conv_transpose{config.ndim}d"
    options = config.options | {"output_padding": extra}
    y = conv(backend, name, grad, weight, bias, **options)
    assert y.shape == x.shape
    expected = reference.conv_transpose(
        grad, weight, bias, output_padding=extra, **config.reference_options
    )
    assert_close(y, expected, 1e-12)


def output_padding(config: Setting) -> tuple[int, ...]:
    """What the floor in the output size threw away."""
    return tuple(
        (i + sum(p) - (k - 1) * d - 1) % s
        for i, k, s, p, d in zip(
            config.size, config.kernel, config.stride, config.pad, config.dilation, strict=True
        )
    )


@given(config=settings_of_convolutions())
def test_columns_are_the_loops(config: Setting, backend: Backend) -> None:
    x = config.arrays()[0]
    options = {key: config.options[key] for key in ("stride", "padding", "dilation")}
    theirs = {key: config.reference_options[key] for key in ("stride", "pad", "dilation")}
    columns = conv(backend, "im2col", x, config.kernel, **options)
    np.testing.assert_array_equal(columns, reference.im2col(x, config.kernel, **theirs))
    image = conv(backend, "col2im", columns, config.size, config.kernel, **options)
    expected = reference.col2im(columns, config.size, config.kernel, **theirs)
    assert_close(image, expected, 1e-12)


# Properties


@given(config=settings_of_convolutions())
def test_gradients_are_the_adjoints(config: Setting, backend: Backend) -> None:
    """⟨conv(x, w), y⟩ = ⟨x, input_grad(y)⟩ = ⟨w, weight_grad(y)⟩, complex arrays included."""
    x, weight, _, y = config.arrays()
    name, options = f"conv{config.ndim}d", config.options
    through = inner(conv(backend, name, x, weight, **options), y)
    grad_x = conv(backend, f"{name}_input_grad", x.shape, weight, y, **options)
    grad_weight = conv(backend, f"{name}_weight_grad", x, weight.shape, y, **options)
    scale = 1 + np.abs(x).sum() * np.abs(weight).sum()
    assert abs(inner(x, grad_x) - through) <= 1e-12 * scale
    assert abs(inner(weight, grad_weight) - through) <= 1e-12 * scale


@given(config=settings_of_convolutions())
def test_transposed_convolution_is_the_adjoint(config: Setting, backend: Backend) -> None:
    """⟨conv(x, w), y⟩ = ⟨x, conv_transpose(y, conj(w))⟩: transposing does not conjugate."""
    x, weight, _, y = config.arrays()
    forward = conv(backend, f"conv{config.ndim}d", x, weight, **config.options)
    options = config.options | {"output_padding": output_padding(config)}
    back = conv(backend, f"conv_transpose{config.ndim}d", y, weight.conj(), **options)
    scale = 1 + np.abs(x).sum() * np.abs(weight).sum()
    assert abs(inner(forward, y) - inner(x, back)) <= 1e-12 * scale


@given(config=settings_of_convolutions())
def test_gradients_of_transposed_convolution_are_its_adjoints(
    config: Setting, backend: Backend
) -> None:
    grad, weight, _, x = config.arrays()
    name = f"conv_transpose{config.ndim}d"
    options = config.options | {"output_padding": output_padding(config)}
    through = inner(conv(backend, name, x, weight, **options), grad)
    grad_x = conv(backend, f"{name}_input_grad", x.shape, weight, grad, **options)
    grad_weight = conv(backend, f"{name}_weight_grad", x, weight.shape, grad, **options)
    scale = 1 + np.abs(x).sum() * np.abs(weight).sum()
    assert abs(inner(x, grad_x) - through) <= 1e-12 * scale
    assert abs(inner(weight, grad_weight) - through) <= 1e-12 * scale


@given(config=settings_of_convolutions())
def test_columns_and_images_are_adjoint(config: Setting, backend: Backend) -> None:
    x = config.arrays()[0]
    options = {key: config.options[key] for key in ("stride", "padding", "dilation")}
    columns = conv(backend, "im2col", x, config.kernel, **options)
    other = draw(np.random.default_rng(config.seed + 1), columns.shape, config.is_complex)
    image = conv(backend, "col2im", other, config.size, config.kernel, **options)
    scale = 1 + np.abs(columns).sum()
    assert abs(inner(columns, other) - inner(x, image)) <= 1e-12 * scale


@given(config=settings_of_convolutions())
def test_convolution_is_linear(config: Setting, backend: Backend) -> None:
    x, weight, bias, _ = config.arrays()
    rng = np.random.default_rng(config.seed + 1)
    x_, weight_ = draw(rng, x.shape, config.is_complex), draw(rng, weight.shape, config.is_complex)

    def f(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
        return conv(backend, f"conv{config.ndim}d", x, weight, bias, **config.options)

    y = f(x, weight)
    assert_close(f(2 * x - 3 * x_, weight), 2 * y - 3 * f(x_, weight), 1e-12)
    assert_close(f(x, 2 * weight - 3 * weight_), 2 * y - 3 * f(x, weight_), 1e-12)
    assert_close(f(x, weight, bias), y + bias.reshape(-1, *(1,) * config.ndim), 1e-12)


@given(
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    steps=st.tuples(st.integers(-2, 2), st.integers(-2, 2)),
    dilation=st.integers(1, 2),
)
def test_shifting_the_input_shifts_the_output(stride, steps, dilation, backend) -> None:
    """An image in the middle of zeros, moved by m strides, gives the same response m further."""
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((2, 3, 3, 2)), np.zeros((1, 3, 27, 27))
    x[:, :, 10:16, 11:16] = rng.standard_normal((1, 3, 6, 5))
    moved = np.roll(x, [m * s for m, s in zip(steps, stride, strict=True)], axis=(2, 3))
    options = {"stride": stride, "dilation": dilation}
    y = conv(backend, "conv2d", x, weight, **options)
    assert_close(
        conv(backend, "conv2d", moved, weight, **options), np.roll(y, steps, axis=(2, 3)), 1e-12
    )


@given(config=settings_of_convolutions())
def test_convolution_is_a_matrix_product_with_columns(config: Setting, backend: Backend) -> None:
    x, weight, _, _ = config.arrays()
    options = dict(config.options)
    groups = options.pop("groups")
    y = conv(backend, f"conv{config.ndim}d", x, weight, groups=groups, **options)
    columns = conv(backend, "im2col", x, config.kernel, **options)  # (N, C*K, L)
    columns = columns.reshape(x.shape[0], groups, -1, columns.shape[2])
    kernels = weight.reshape(groups, weight.shape[0] // groups, -1)
    product = np.einsum("gok,ngkl->ngol", kernels, columns)
    assert_close(y, product.reshape(y.shape), 1e-12)


# What other operations say that it must be


def test_full_padding_with_a_flipped_kernel_is_numpy_convolve(backend, rng) -> None:
    x, weight = rng.standard_normal(9), rng.standard_normal(4)
    y = conv(backend, "conv1d", x[None, None], weight[None, None, ::-1], padding="full")
    assert_close(y[0, 0], np.convolve(x, weight), 1e-12)


def test_same_padding_with_a_centred_delta_is_the_identity(backend, rng) -> None:
    x, delta = rng.standard_normal((2, 3, 5, 6)), np.zeros((3, 1, 3, 5))
    delta[:, 0, 1, 2] = 1
    np.testing.assert_array_equal(conv(backend, "conv2d", x, delta, padding="same", groups=3), x)


def test_dilation_is_a_kernel_with_holes(backend, rng) -> None:
    x, weight = rng.standard_normal((2, 3, 9, 10)), rng.standard_normal((4, 3, 3, 2))
    holes = np.zeros((4, 3, 5, 4))
    holes[:, :, ::2, ::3] = weight
    expected = conv(backend, "conv2d", x, holes, padding=(1, 2))
    assert_close(
        conv(backend, "conv2d", x, weight, padding=(1, 2), dilation=(2, 3)), expected, 1e-12
    )


def test_stride_keeps_every_other_output(backend, rng) -> None:
    x, weight = rng.standard_normal((2, 3, 9, 10)), rng.standard_normal((4, 3, 3, 2))
    dense = conv(backend, "conv2d", x, weight, padding=1)
    strided = conv(backend, "conv2d", x, weight, padding=1, stride=(2, 3))
    assert_close(strided, dense[:, :, ::2, ::3], 1e-12)


def test_groups_are_separate_convolutions(backend, rng) -> None:
    x, weight = rng.standard_normal((2, 6, 5, 5)), rng.standard_normal((4, 3, 3, 3))
    halves = [
        conv(backend, "conv2d", x[:, 3 * g : 3 * g + 3], weight[2 * g : 2 * g + 2]) for g in (0, 1)
    ]
    assert_close(
        conv(backend, "conv2d", x, weight, groups=2), np.concatenate(halves, axis=1), 1e-12
    )


def test_asymmetric_padding_is_padding_beforehand(backend, rng) -> None:
    x, weight = rng.standard_normal((2, 3, 4, 5)), rng.standard_normal((4, 3, 3, 2))
    padded = np.pad(x, ((0, 0), (0, 0), (1, 0), (2, 3)))
    assert_close(
        conv(backend, "conv2d", x, weight, padding=((1, 0), (2, 3))),
        conv(backend, "conv2d", padded, weight),
        1e-12,
    )


def test_kernel_of_the_input_size_is_a_dense_layer(backend, rng) -> None:
    x, weight = rng.standard_normal((4, 3, 5, 6)), rng.standard_normal((7, 3, 5, 6))
    y = conv(backend, "conv2d", x, weight)
    assert_close(y[:, :, 0, 0], x.reshape(4, -1) @ weight.reshape(7, -1).T, 1e-12)


def test_columns_of_ones_count_the_windows(backend) -> None:
    ones = np.ones((1, 1, 5, 6))
    columns = conv(backend, "im2col", ones, (3, 2), stride=(2, 1))
    seen = conv(backend, "col2im", columns, (5, 6), (3, 2), stride=(2, 1))[0, 0]
    rows, cols = [1, 1, 2, 1, 1], [1, 2, 2, 2, 2, 1]
    np.testing.assert_array_equal(seen, np.outer(rows, cols))


def test_complex_convolution_is_four_real_ones(backend, rng) -> None:
    x, weight = draw(rng, (2, 3, 5, 5), True), draw(rng, (4, 3, 3, 3), True)

    def f(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return conv(backend, "conv2d", np.ascontiguousarray(x), np.ascontiguousarray(weight))

    real = f(x.real, weight.real) - f(x.imag, weight.imag)
    imaginary = f(x.real, weight.imag) + f(x.imag, weight.real)
    assert_close(f(x, weight), real + 1j * imaginary, 1e-12)


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_gradients_by_finite_differences(name: str, backend, rng) -> None:
    options = {"stride": 2, "padding": 1, "groups": 2}
    x, weight = rng.standard_normal((2, 4, 5, 4)), rng.standard_normal((4, 2, 3, 3))
    assert_derivative(
        lambda x: conv(backend, name, x, weight, **options),
        lambda x, g: conv(backend, f"{name}_input_grad", x.shape, weight, g, **options),
        x,
    )
    assert_derivative(
        lambda weight: conv(backend, name, x, weight, **options),
        lambda weight, g: conv(backend, f"{name}_weight_grad", x, weight.shape, g, **options),
        weight,
    )


# Sizes that do not fit into one tile


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_many_columns(stride: int, groups: int, backend, rng) -> None:
    """More output positions than any backend multiplies at once, against one einsum."""
    x = rng.standard_normal((5, 8, 44, 37))
    weight = rng.standard_normal((16, 8 // groups, 3, 3))
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    windows = windows[:, :, ::stride, ::stride]  # (N, C, OH, OW, 3, 3)
    windows = windows.reshape(5, groups, 8 // groups, *windows.shape[2:])
    kernels = weight.reshape(groups, 16 // groups, 8 // groups, 3, 3)
    expected = np.einsum("ngchwyx,gocyx->ngohw", windows, kernels, optimize=True)
    expected = expected.reshape(5, 16, *expected.shape[3:])
    options = {"stride": stride, "padding": 1, "groups": groups}
    assert_close(conv(backend, "conv2d", x, weight, **options), expected, 1e-12)

    grad = rng.standard_normal(expected.shape)
    grad_weight = conv(backend, "conv2d_weight_grad", x, weight.shape, grad, **options)
    grads = grad.reshape(5, groups, 16 // groups, *grad.shape[2:])
    by_group = np.einsum("ngchwyx,ngohw->gocyx", windows, grads, optimize=True)
    assert_close(grad_weight, by_group.reshape(weight.shape), 1e-12)
    grad_x = conv(backend, "conv2d_input_grad", x.shape, weight, grad, **options)
    assert np.isclose(inner(grad_x, x), inner(grad, expected), rtol=1e-12)


@pytest.fixture
def workspace(backend: Backend):
    """A function that limits the backend's workspace until the test ends."""
    before = backend.workspace_limit
    yield lambda limit: setattr(backend, "workspace_limit", limit)
    backend.workspace_limit = before


@pytest.mark.parametrize("limit", [1, 500, 5_000, 50_000])
def test_workspace_limit_changes_no_number(limit: int, workspace, backend, rng) -> None:
    cases = [
        ((3, 4, 11, 9), (6, 4, 3, 3), {"padding": 1}),
        ((3, 4, 11, 9), (6, 2, 3, 2), {"stride": 2, "groups": 2, "padding": "same"}),
        ((3, 4, 11, 9), (6, 4, 1, 1), {}),
        ((3, 4, 11, 9), (6, 4, 2, 3), {"dilation": 2, "padding": ((3, 0), (0, 4))}),
        ((300, 1, 3, 3), (2, 1, 2, 2), {}),
    ]
    for x_shape, weight_shape, options in cases:
        x, weight = rng.standard_normal(x_shape), rng.standard_normal(weight_shape)
        results = []
        for size in (backend.workspace_limit, limit):
            workspace(size)
            y = conv(backend, "conv2d", x, weight, **options)
            results.append(
                (
                    y,
                    conv(backend, "conv2d_input_grad", x.shape, weight, y, **options),
                    conv(backend, "conv2d_weight_grad", x, weight.shape, y, **options),
                )
            )
            workspace(64 << 20)
        for roomy, tight in zip(*results, strict=True):
            assert_close(tight, roomy, 1e-12)


# Memory


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_strides_of_the_input_do_not_matter(ndim: int, layout: str, backend, rng) -> None:
    size = (9, 6, 4)[ndim - 1]
    x = rng.standard_normal((3, 4, *(size,) * ndim))
    weight, bias = rng.standard_normal((6, 2, *(3,) * ndim)), rng.standard_normal(6)
    options = {"stride": 2, "padding": 1, "groups": 2}
    name = f"conv{ndim}d"
    y = conv(backend, name, x, weight, bias, **options)
    grad = rng.standard_normal(y.shape)
    arrays = {"x": x, "weight": weight, "bias": bias, "grad": grad}
    a = {key: put(backend, value, layout) for key, value in arrays.items()}
    results = {
        "output": getattr(F, name)(a["x"], a["weight"], a["bias"], **options),
        "grad_x": getattr(F, f"{name}_input_grad")(x.shape, a["weight"], a["grad"], **options),
        "grad_weight": getattr(F, f"{name}_weight_grad")(
            a["x"], weight.shape, a["grad"], **options
        ),
        "transposed": getattr(F, f"conv_transpose{ndim}d")(a["grad"], a["weight"], **options),
        "columns": F.im2col(a["x"], 3),
    }
    expected = {
        "output": y,
        "grad_x": conv(backend, f"{name}_input_grad", x.shape, weight, grad, **options),
        "grad_weight": conv(backend, f"{name}_weight_grad", x, weight.shape, grad, **options),
        "transposed": conv(backend, f"conv_transpose{ndim}d", grad, weight, **options),
        "columns": conv(backend, "im2col", x, 3),
    }
    for key, value in expected.items():
        assert_close(backend.to_numpy(results[key]), value, 1e-13, key)
    for key, value in arrays.items():
        np.testing.assert_array_equal(backend.to_numpy(a[key]), value, err_msg=f"{key} was changed")


@pytest.mark.parametrize("layout", [None, "batch_last"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_results_never_share_memory_with_the_input(kernel, layout, backend, rng) -> None:
    """Writing into a result must not reach the caller's image, a 1×1 kernel's included."""
    x = put(backend, rng.standard_normal((3, 2, 4, 4)), layout)
    weight = put(backend, rng.standard_normal((2, 2, kernel, kernel)))
    columns = F.im2col(x, kernel)
    results = {
        "conv2d": F.conv2d(x, weight),
        "im2col": columns,
        "conv_transpose2d": F.conv_transpose2d(x, weight),
        "weight_grad": F.conv2d_weight_grad(x, weight.shape, F.conv2d(x, weight)),
    }
    image = F.col2im(columns, (4, 4), (kernel, kernel))
    assert not backend.xp.shares_memory(image, columns)
    for name, result in results.items():
        assert not backend.xp.shares_memory(result, x), name
        assert not backend.xp.shares_memory(result, weight), name


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64", "complex128"])
def test_dtype_is_kept(dtype: str, backend, rng) -> None:
    tolerance = {"float16": 2e-2, "float32": 1e-5, "complex64": 1e-5}.get(dtype, 1e-12)
    x, weight = rng.standard_normal((2, 4, 5, 5)), rng.standard_normal((4, 2, 3, 3))
    bias = rng.standard_normal(4)
    if dtype.startswith("complex"):
        x, weight = x + 1j * x[::-1], weight - 1j * weight[::-1]
    options = {"stride": 2, "padding": 1, "groups": 2}
    narrow = [a.astype(dtype) for a in (x, weight, bias)]
    wide = [a.astype("complex128" if dtype.startswith("complex") else "float64") for a in narrow]
    y = conv(backend, "conv2d", *wide, **options)
    pairs = [
        (conv(backend, "conv2d", *narrow, **options), y),
        (
            conv(backend, "conv2d_input_grad", x.shape, narrow[1], y.astype(dtype), **options),
            conv(backend, "conv2d_input_grad", x.shape, wide[1], y, **options),
        ),
        (
            conv(
                backend, "conv2d_weight_grad", narrow[0], weight.shape, y.astype(dtype), **options
            ),
            conv(backend, "conv2d_weight_grad", wide[0], weight.shape, y, **options),
        ),
        (
            conv(backend, "conv_transpose2d", *narrow[:2], **options),
            conv(backend, "conv_transpose2d", *wide[:2], **options),
        ),
        (conv(backend, "bias_grad", narrow[0]), conv(backend, "bias_grad", wide[0])),
        (conv(backend, "im2col", narrow[0], 2), conv(backend, "im2col", wide[0], 2)),
    ]
    for result, expected in pairs:
        assert result.dtype == dtype
        assert_close(result, expected, tolerance)


def test_same_call_gives_the_same_bits(backend, rng) -> None:
    x = put(backend, rng.standard_normal((8, 8, 30, 30)).astype("float32"))
    weight = put(backend, rng.standard_normal((16, 8, 3, 3)).astype("float32"))

    def run() -> list[bytes]:
        y = F.conv2d(x, weight, padding=1)
        grad_x = F.conv2d_input_grad(x.shape, weight, y, padding=1)
        grad_weight = F.conv2d_weight_grad(x, weight.shape, y, padding=1)
        return [backend.to_numpy(a).tobytes() for a in (y, grad_x, grad_weight)]

    assert run() == run()


@settings(max_examples=30)
@given(
    stride=st.integers(1, 3),
    kernel=st.integers(1, 4),
    size=st.integers(1, 6),
    batch=st.integers(0, 1),
)
def test_smallest_batches(stride, kernel, size, batch, backend) -> None:
    """No image gives no output and zero gradients; one image is the first of a larger batch."""
    x = np.random.default_rng(1).standard_normal((2, 3, size, size))
    weight = np.random.default_rng(2).standard_normal((2, 3, kernel, kernel))
    options = {"stride": stride, "padding": "full"}
    every = conv(backend, "conv2d", x, weight, **options)
    y = conv(backend, "conv2d", x[:batch], weight, **options)
    assert_close(y, every[:batch], 1e-12)
    grad = conv(backend, "conv2d_weight_grad", x[:batch], weight.shape, y, **options)
    assert grad.shape == weight.shape
    assert batch or not grad.any()
    grad = conv(backend, "conv2d_input_grad", (batch, *x.shape[1:]), weight, y, **options)
    assert grad.shape == (batch, *x.shape[1:])


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_batch_last_in_batch_last_out(ndim: int, backend, rng) -> None:
    """The memory format that makes every result the next layer's input as it is."""
    x = put(backend, rng.standard_normal((3, 4, *(5,) * ndim)), "batch_last")
    weight = put(backend, rng.standard_normal((4, 4, *(3,) * ndim)))
    for stride in (1, 2):
        y = getattr(F, f"conv{ndim}d")(x, weight, stride=stride, padding=1)
        grad = getattr(F, f"conv{ndim}d_input_grad")(x.shape, weight, y, stride=stride, padding=1)
        for result in (y, grad, getattr(F, f"conv_transpose{ndim}d")(x, weight, stride=stride)):
            assert backend.xp.moveaxis(result, 0, -1).flags.c_contiguous


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"groups": 4}, {"dilation": 2}], ids=str)
def test_columns_stay_within_the_workspace(options: dict, workspace, backend, rng) -> None:
    """Beyond input, output and their padded copies, memory is bounded by the limit."""
    if backend.name != "cpu":
        pytest.skip("measures host memory")
    x = rng.standard_normal((4, 8, 32, 32)).astype("float32")
    groups = options.get("groups", 1)
    weight = rng.standard_normal((8, 8 // groups, 7, 7)).astype("float32")
    y = F.conv2d(x, weight, padding=3, **options)
    columns = 8 * 49 * (y.size // 8) * 4
    assert columns > 1_500_000
    limit = 50_000
    workspace(limit)
    calls = {
        "forward": lambda: F.conv2d(x, weight, padding=3, **options),
        "input_grad": lambda: F.conv2d_input_grad(x.shape, weight, y, padding=3, **options),
        "weight_grad": lambda: F.conv2d_weight_grad(x, weight.shape, y, padding=3, **options),
    }
    for name, function in calls.items():
        tracemalloc.start()
        function()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # batch-last copies of x and y, padded copies of either, the result, and tiles
        assert peak < 2 * (x.nbytes + y.nbytes) + 4 * limit, (name, peak)
