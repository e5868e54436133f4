"""Max, average, adaptive and global pooling, each with its gradient."""

import functools
import math
import operator
from collections.abc import Iterator
from typing import Any

from arraycnn.arguments import Size, as_count, as_shape, as_sizes, check_arrays, check_shape
from arraycnn.arrays import Array, Shape
from arraycnn.backends import Backend
from arraycnn.functional._dimensions import per_dimension
from arraycnn.geometry import Padding, Window, adaptive_bounds, check_rank, pool_window


def max_pool_nd(
    ndim: int,
    x: Array,
    kernel_size: Size,
    *,
    stride: Size | None = None,
    padding: Padding = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """{n}-d max pooling: the largest element that each window sees, (N, C, *S) → (N, C, *out).

    Padding counts as −∞; a NaN in a window wins. ``stride`` defaults to ``kernel_size``;
    ``ceil_mode`` rounds the output size up. With ``return_indices``, returns ``(y, indices)``:
    int64 positions in the flat, unpadded plane, the first in row-major order where elements tie.

    Raises:
        TypeError, ValueError: as conv{n}d; a window that would lie wholly in the padding.
    """
    backend = check_arrays(x=x)
    check_rank("x", x.shape, ndim)
    window = pool_window(
        x.shape[2:],
        kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        ceil_mode=ceil_mode,
    )
    x = backend.batch_last(x)
    if not return_indices:
        return backend.max_pool(x, window)
    y, argmax = backend.max_pool_argmax(x, window)
    return y, backend.max_pool_indices(argmax, window)


def max_pool_nd_grad(
    ndim: int,
    x: Array,
    kernel_size: Size,
    grad_output: Array,
    *,
    stride: Size | None = None,
    padding: Padding = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Array:
    """Gradient of max_pool{n}d with respect to x: each window's goes to its (first) maximum.

    Raises:
        TypeError, ValueError: as max_pool{n}d; ``grad_output`` not of the output's shape.
    """
    backend = check_arrays(x=x, grad_output=grad_output)
    check_rank("x", x.shape, ndim)
    window = pool_window(
        x.shape[2:],
        kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        ceil_mode=ceil_mode,
    )
    expected = (*x.shape[:2], *window.output_size)
    check_shape("grad_output", grad_output.shape, expected, "like the pooling's output")
    _, argmax = backend.max_pool_argmax(backend.batch_last(x), window)
    return backend.max_pool_grad(argmax, backend.batch_last(grad_output), window)


def avg_pool_nd(
    ndim: int,
    x: Array,
    kernel_size: Size,
    *,
    stride: Size | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """{n}-d average pooling, (N, C, *S) → (N, C, *out).

    Each sum is divided by the number of elements in its window: with the padding's zeros
    (``count_include_pad``) or without, or by ``divisor_override``. What ``ceil_mode`` adds beyond
    the padding is never counted (PyTorch's rules).

    Raises:
        TypeError, ValueError: as conv{n}d; a window that would lie wholly in the padding.
    """
    backend = check_arrays(x=x)
    check_rank("x", x.shape, ndim)
    window = pool_window(
        x.shape[2:], kernel_size, stride=stride, padding=padding, ceil_mode=ceil_mode
    )
    y = backend.sum_pool(backend.batch_last(x), window)
    y *= average_factors(backend, window, x.dtype, count_include_pad, divisor_override)
    return y


def avg_pool_nd_grad(
    ndim: int,
    input_shape: Shape,
    kernel_size: Size,
    grad_output: Array,
    *,
    stride: Size | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """Gradient of avg_pool{n}d with respect to x, of shape ``input_shape``.

    Raises:
        TypeError, ValueError: as avg_pool{n}d; ``grad_output`` not of the output's shape.
    """
    backend = check_arrays(grad_output=grad_output)
    input_shape = as_shape("input_shape", input_shape, ndim + 2)
    window = pool_window(
        input_shape[2:], kernel_size, stride=stride, padding=padding, ceil_mode=ceil_mode
    )
    expected = (*input_shape[:2], *window.output_size)
    check_shape("grad_output", grad_output.shape, expected, "like the pooling's output")
    dtype = grad_output.dtype
    factors = average_factors(backend, window, dtype, count_include_pad, divisor_override)
    return backend.sum_pool_grad(backend.batch_last(grad_output) * factors, window)


def average_factors(
    backend: Backend,
    window: Window,
    dtype: Any,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """What turns a window's sum into its average: 1 / count, a scalar or (*out)."""
    if divisor_override is not None:
        return dtype.type(1 / as_count("divisor_override", divisor_override))
    if window.is_unpadded:
        return dtype.type(1 / window.taps)
    counts = window.counts(include_padding=count_include_pad)
    axes = [
        backend.asarray(count, dtype).reshape(-1, *(1,) * (window.ndim - 1 - axis))
        for axis, count in enumerate(counts)
    ]
    return 1 / functools.reduce(operator.mul, axes)


def adaptive_avg_pool2d(x: Array, output_size: Size) -> Array:
    """Average pooling to a given output size: (N, C, H, W) → (N, C, *output_size).

    Output o of n sees the input from ⌊o·size / n⌋ to ⌈(o + 1)·size / n⌉ (PyTorch's rule).

    Raises:
        TypeError, ValueError: as `conv2d`.
    """
    backend = check_arrays(x=x)
    check_rank("x", x.shape, 2)
    output_size = as_sizes("output_size", output_size, 2)
    y = backend.empty((*x.shape[:2], *output_size), x.dtype)
    for place, region, window in _adaptive_windows(x.shape[2:], output_size):
        total = backend.sum_pool(backend.batch_last(x[region]), window)
        y[place] = total * x.dtype.type(1 / window.taps)
    return y


def adaptive_avg_pool2d_grad(input_shape: Shape, output_size: Size, grad_output: Array) -> Array:
    """Gradient of `adaptive_avg_pool2d` with respect to x, of shape ``input_shape``."""
    backend = check_arrays(grad_output=grad_output)
    input_shape = as_shape("input_shape", input_shape, 4)
    output_size = as_sizes("output_size", output_size, 2)
    expected = (*input_shape[:2], *output_size)
    check_shape("grad_output", grad_output.shape, expected, "like the pooling's output")
    grad = backend.zeros(input_shape, grad_output.dtype)
    for place, region, window in _adaptive_windows(input_shape[2:], output_size):
        grad[region] += grad_output[place] * grad_output.dtype.type(1 / window.taps)
    return grad


def adaptive_max_pool2d(x: Array, output_size: Size, *, return_indices: bool = False) -> Any:
    """Max pooling to a given output size: (N, C, H, W) → (N, C, *output_size).

    Windows as in `adaptive_avg_pool2d`, maxima and indices as in `max_pool2d`.

    Raises:
        TypeError, ValueError: as `conv2d`.
    """
    backend = check_arrays(x=x)
    check_rank("x", x.shape, 2)
    output_size = as_sizes("output_size", output_size, 2)
    y = backend.empty((*x.shape[:2], *output_size), x.dtype)
    indices = backend.empty(y.shape, "int64") if return_indices else None
    for place, region, window in _adaptive_windows(x.shape[2:], output_size):
        part = backend.batch_last(x[region])
        y[place], argmax = backend.max_pool_argmax(part, window)
        if indices is not None:
            row, column = region[-2].start, region[-1].start
            local = backend.max_pool_indices(argmax, window)
            width = window.input_size[1]
            indices[place] = (local // width + row) * x.shape[3] + local % width + column
    return y if indices is None else (y, indices)


def adaptive_max_pool2d_grad(x: Array, output_size: Size, grad_output: Array) -> Array:
    """Gradient of `adaptive_max_pool2d` with respect to x: each goes to its (first) maximum."""
    backend = check_arrays(x=x, grad_output=grad_output)
    check_rank("x", x.shape, 2)
    output_size = as_sizes("output_size", output_size, 2)
    expected = (*x.shape[:2], *output_size)
    check_shape("grad_output", grad_output.shape, expected, "like the pooling's output")
    grad = backend.zeros(x.shape, x.dtype)
    for place, region, window in _adaptive_windows(x.shape[2:], output_size):
        _, argmax = backend.max_pool_argmax(backend.batch_last(x[region]), window)
        delta = backend.batch_last(grad_output[place])
        grad[region] += backend.max_pool_grad(argmax, delta, window)
    return grad


def _adaptive_windows(
    input_size: Shape, output_size: Shape
) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...], Window]]:
    """For each output position: its place in y, its region of x, and the window over that."""
    rows, columns = map(adaptive_bounds, input_size, output_size)
    for i, (top, bottom) in enumerate(rows):
        for j, (left, right) in enumerate(columns):
            place = (..., slice(i, i + 1), slice(j, j + 1))
            size = (bottom - top, right - left)
            yield place, (..., slice(top, bottom), slice(left, right)), pool_window(size, size)


def global_avg_pool(x: Array) -> Array:
    """The mean of each channel over all positions: (N, C, *S) → (N, C).

    Raises:
        TypeError: as `conv2d`. ValueError: no spatial dimension, or an empty one.
    """
    backend = check_arrays(x=x)
    positions = _positions("x", x.shape)
    y = backend.global_sum_pool(backend.batch_last(x))
    y *= x.dtype.type(1 / positions)
    return y


def global_avg_pool_grad(input_shape: Shape, grad_output: Array) -> Array:
    """Gradient of `global_avg_pool` with respect to x: (N, C) spread over ``input_shape``."""
    backend = check_arrays(grad_output=grad_output)
    input_shape = as_shape("input_shape", input_shape)
    positions = _positions("input_shape", input_shape)
    check_shape("grad_output", grad_output.shape, input_shape[:2], "like the pooling's output")
    grad = backend.empty(input_shape, grad_output.dtype)
    scaled = grad_output * grad_output.dtype.type(1 / positions)
    grad[...] = scaled.reshape(*input_shape[:2], *(1,) * (len(input_shape) - 2))
    return grad


def _positions(name: str, shape: Shape) -> int:
    if len(shape) < 3 or 0 in shape[2:]:
        raise ValueError(
            f"{name} must be (N, C, *spatial) with at least one spatial dimension and none "
            f"empty, got shape {tuple(shape)}"
        )
    return math.prod(shape[2:])


max_pool1d, max_pool2d, max_pool3d = per_dimension(max_pool_nd)
max_pool1d_grad, max_pool2d_grad, max_pool3d_grad = per_dimension(max_pool_nd_grad)
avg_pool1d, avg_pool2d, avg_pool3d = per_dimension(avg_pool_nd)
avg_pool1d_grad, avg_pool2d_grad, avg_pool3d_grad = per_dimension(avg_pool_nd_grad)
