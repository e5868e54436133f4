"""Convolution (cross-correlation) of 1-, 2- and 3-dimensional arrays, its adjoints and im2col."""

from collections.abc import Sequence

from arraycnn.arguments import (
    REAL_OR_COMPLEX,
    Size,
    as_shape,
    as_sizes,
    check_arrays,
    check_channel_vector,
    check_choice,
    check_shape,
)
from arraycnn.arrays import Array, Shape
from arraycnn.functional._dimensions import per_dimension
from arraycnn.geometry import (
    Padding,
    check_conv_shapes,
    check_rank,
    check_transposed_shapes,
    conv_window,
    transposed_window,
)

METHODS = ("auto", "im2col", "fft")


def conv_nd(
    ndim: int,
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    method: str = "auto",
) -> Array:
    """{n}-d convolution as networks mean it, cross-correlation: h[o] = Σ K[k]·x[o·s + k·d − p] + b.

    Args:
        x: (N, C, *S), any strides; float16/32/64 or complex64/128.
        weight: (O, C // groups, *kernel), of the dtype of ``x``.
        bias: (O,) or None.
        stride, dilation: an int or one per dimension.
        padding: an int, one int or ``(before, after)`` pair per dimension, ``"valid"``, ``"same"``
            (⌈size / stride⌉, the odd element after) or ``"full"`` (every overlap).
        groups: channels are split into that many independent convolutions; C makes it depthwise.
        method: ``"im2col"``, products of kernels and columns, or what computes the same sums;
            ``"fft"``, products of Fourier transforms, for kernels with many taps: equal within
            rounding, which is relative to the largest values of a block of the input, as is the
            reach of a NaN; ``"auto"``, what should be fastest for these shapes, as in a layer.

    Returns:
        (N, O, *out), a view of batch-last memory.

    Raises:
        TypeError: not arrays, integer or differing dtypes, sizes that are not ints.
        ValueError: shapes that do not fit, arrays of different backends.
    """
    check_choice("method", method, METHODS)
    backend = check_arrays(REAL_OR_COMPLEX, x=x, weight=weight, optional={"bias": bias})
    groups = check_conv_shapes(x.shape, weight.shape, groups, ndim)
    check_channel_vector("bias", bias, weight.shape[0], "the output")
    window = conv_window(
        x.shape[2:], weight.shape[2:], stride=stride, padding=padding, dilation=dilation
    )
    x = backend.batch_last(x)
    return backend.convolution(x, weight, bias, window, groups, method=method)


def conv_nd_input_grad(
    ndim: int,
    input_shape: Shape,
    weight: Array,
    grad_output: Array,
    *,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    method: str = "auto",
) -> Array:
    """Gradient of conv{n}d with respect to x: δx = col2im(Kᴴ Δ), of shape ``input_shape``.

    The adjoint of x ↦ conv{n}d(x, weight): conjugated where complex. Arguments as conv{n}d, with
    ``grad_output`` Δ shaped like its output.

    Raises:
        TypeError, ValueError: as conv{n}d; ``grad_output`` not of the output's shape.
    """
    check_choice("method", method, METHODS)
    backend = check_arrays(REAL_OR_COMPLEX, weight=weight, grad_output=grad_output)
    input_shape = as_shape("input_shape", input_shape, ndim + 2)
    groups = check_conv_shapes(input_shape, weight.shape, groups, ndim)
    window = conv_window(
        input_shape[2:], weight.shape[2:], stride=stride, padding=padding, dilation=dilation
    )
    expected = (input_shape[0], weight.shape[0], *window.output_size)
    check_shape("grad_output", grad_output.shape, expected, "like the convolution's output")
    grad_output = backend.batch_last(grad_output)
    return backend.convolution_input_grad(grad_output, weight, window, groups, method)


def conv_nd_weight_grad(
    ndim: int,
    x: Array,
    weight_shape: Shape,
    grad_output: Array,
    *,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    method: str = "auto",
) -> Array:
    """Gradient of conv{n}d with respect to weight: δK = Δ vᴴ, of shape ``weight_shape``.

    The adjoint of weight ↦ conv{n}d(x, weight): conjugated where complex. Arguments as conv{n}d,
    with ``grad_output`` Δ shaped like its output. The bias's gradient is `bias_grad`.

    Raises:
        TypeError, ValueError: as conv{n}d; ``grad_output`` not of the output's shape.
    """
    check_choice("method", method, METHODS)
    backend = check_arrays(REAL_OR_COMPLEX, x=x, grad_output=grad_output)
    weight_shape = as_shape("weight_shape", weight_shape, ndim + 2)
    groups = check_conv_shapes(x.shape, weight_shape, groups, ndim)
    window = conv_window(
        x.shape[2:], weight_shape[2:], stride=stride, padding=padding, dilation=dilation
    )
    expected = (x.shape[0], weight_shape[0], *window.output_size)
    check_shape("grad_output", grad_output.shape, expected, "like the convolution's output")
    x, grad_output = backend.batch_last(x), backend.batch_last(grad_output)
    return backend.convolution_weight_grad(x, grad_output, weight_shape, window, groups, method)


def conv_transpose_nd(
    ndim: int,
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Size = 1,
    padding: Padding = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Array:
    """{n}-d transposed convolution: x ↦ col2im(Kᵀ x) + b, undoing the size change of a convolution.

    Args:
        x: (N, C, *S), any strides; float16/32/64 or complex64/128.
        weight: (C, O // groups, *kernel), of the dtype of ``x``.
        bias: (O,) or None.
        stride, padding, dilation, groups: those of the convolution that it transposes.
        output_padding: extra size after the end, smaller than stride or dilation, to choose among
            the input sizes that the convolution maps to the same output.

    Returns:
        (N, O, *out), out = (S − 1)·stride − padding + dilation·(kernel − 1) + output_padding + 1.

    Raises:
        TypeError, ValueError: as conv{n}d.
    """
    backend = check_arrays(REAL_OR_COMPLEX, x=x, weight=weight, optional={"bias": bias})
    groups = check_transposed_shapes(x.shape, weight.shape, groups, ndim)
    check_channel_vector("bias", bias, weight.shape[1] * groups, "the output")
    window = transposed_window(
        x.shape[2:],
        weight.shape[2:],
        stride=stride,
        padding=padding,
        output_padding=output_padding,
        dilation=dilation,
    )
    # The transpose, not the adjoint: the primitive conjugates the weight, this undoes it.
    y = backend.convolution_input_grad(backend.batch_last(x), weight.conj(), window, groups)
    if bias is not None:
        y += bias.reshape(-1, *(1,) * ndim)
    return y


def conv_transpose_nd_input_grad(
    ndim: int,
    input_shape: Shape,
    weight: Array,
    grad_output: Array,
    *,
    stride: Size = 1,
    padding: Padding = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Array:
    """Gradient of conv_transpose{n}d with respect to x: the convolution of ``grad_output``.

    Raises:
        TypeError, ValueError: as conv{n}d; ``grad_output`` not of the output's shape.
    """
    backend = check_arrays(REAL_OR_COMPLEX, weight=weight, grad_output=grad_output)
    input_shape = as_shape("input_shape", input_shape, ndim + 2)
    groups = check_transposed_shapes(input_shape, weight.shape, groups, ndim)
    window = transposed_window(
        input_shape[2:],
        weight.shape[2:],
        stride=stride,
        padding=padding,
        output_padding=output_padding,
        dilation=dilation,
    )
    expected = (input_shape[0], weight.shape[1] * groups, *window.input_size)
    check_shape("grad_output", grad_output.shape, expected, "like the result")
    grad_output = backend.batch_last(grad_output)
    return backend.convolution(grad_output, weight.conj(), None, window, groups)


def conv_transpose_nd_weight_grad(
    ndim: int,
    x: Array,
    weight_shape: Shape,
    grad_output: Array,
    *,
    stride: Size = 1,
    padding: Padding = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Array:
    """Gradient of conv_transpose{n}d with respect to weight, of shape ``weight_shape``.

    That of the convolution it transposes, input and output gradient having changed places.

    Raises:
        TypeError, ValueError: as conv{n}d; ``grad_output`` not of the output's shape.
    """
    backend = check_arrays(REAL_OR_COMPLEX, x=x, grad_output=grad_output)
    weight_shape = as_shape("weight_shape", weight_shape, ndim + 2)
    groups = check_transposed_shapes(x.shape, weight_shape, groups, ndim)
    window = transposed_window(
        x.shape[2:],
        weight_shape[2:],
        stride=stride,
        padding=padding,
        output_padding=output_padding,
        dilation=dilation,
    )
    expected = (x.shape[0], weight_shape[1] * groups, *window.input_size)
    check_shape("grad_output", grad_output.shape, expected, "like the result")
    x, grad_output = backend.batch_last(x), backend.batch_last(grad_output)
    grad = backend.convolution_weight_grad(grad_output, x, weight_shape, window, groups)
    return grad.conj()


def bias_grad(grad_output: Array) -> Array:
    """Gradient of a bias (O,): the sum of ``grad_output`` (N, O, ...) over all other axes."""
    backend = check_arrays(REAL_OR_COMPLEX, grad_output=grad_output)
    if grad_output.ndim < 2:
        raise ValueError(
            f"grad_output must be (N, channels, ...), got shape {tuple(grad_output.shape)}"
        )
    return backend.channel_sum(backend.batch_last(grad_output))


def im2col(
    x: Array, kernel_size: Size, *, stride: Size = 1, padding: Padding = 0, dilation: Size = 1
) -> Array:
    """What each kernel position sees, as columns: (N, C, *S) → (N, C·taps, L).

    Rows run over channels, then kernel elements; columns over output positions, both row-major:
    torch's ``unfold`` and ONNX's ``Im2Col``, for 1 to 3 dimensions.

    Raises:
        TypeError, ValueError: as `conv2d`.
    """
    backend = check_arrays(REAL_OR_COMPLEX, x=x)
    ndim = x.ndim - 2
    if not 1 <= ndim <= 3:
        raise ValueError(
            f"x must be (N, C, *spatial) with 1 to 3 spatial dimensions, got shape {tuple(x.shape)}"
        )
    kernel_size = as_sizes("kernel_size", kernel_size, ndim)
    window = conv_window(
        x.shape[2:], kernel_size, stride=stride, padding=padding, dilation=dilation
    )
    columns = backend.im2col(backend.batch_last(x), window)  # (C·taps, L·N)
    batch, channels = x.shape[:2]
    return columns.reshape(channels * window.taps, window.positions, batch).transpose(2, 0, 1)


def col2im(
    columns: Array,
    output_size: Size,
    kernel_size: Size,
    *,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
) -> Array:
    """The adjoint of `im2col`: (N, C·taps, L) → (N, C, *output_size), overlaps added up.

    torch's ``fold`` and ONNX's ``Col2Im``. An int ``output_size`` means one dimension, or as many
    as ``kernel_size`` has.

    Raises:
        TypeError, ValueError: as `conv2d`; ``columns`` not of the shape that `im2col` makes.
    """
    backend = check_arrays(REAL_OR_COMPLEX, columns=columns)
    sizes = [size for size in (output_size, kernel_size) if isinstance(size, Sequence)]
    ndim = len(sizes[0]) if sizes else 1
    output_size = as_sizes("output_size", output_size, ndim)
    kernel_size = as_sizes("kernel_size", kernel_size, ndim)
    window = conv_window(
        output_size, kernel_size, stride=stride, padding=padding, dilation=dilation
    )
    check_rank("columns", columns.shape, 1)
    batch, rows, positions = columns.shape
    if rows % window.taps or positions != window.positions:
        raise ValueError(
            f"columns must have shape (N, C·{window.taps}, {window.positions}) for output_size "
            f"{output_size} and kernel_size {kernel_size}, got {tuple(columns.shape)}"
        )
    flat = columns.transpose(1, 2, 0).reshape(rows, positions * batch)  # (C·taps, L·N)
    return backend.col2im(flat, window, batch)


conv1d, conv2d, conv3d = per_dimension(conv_nd)
conv1d_input_grad, conv2d_input_grad, conv3d_input_grad = per_dimension(conv_nd_input_grad)
conv1d_weight_grad, conv2d_weight_grad, conv3d_weight_grad = per_dimension(conv_nd_weight_grad)
conv_transpose1d, conv_transpose2d, conv_transpose3d = per_dimension(conv_transpose_nd)
(
    conv_transpose1d_input_grad,
    conv_transpose2d_input_grad,
    conv_transpose3d_input_grad,
) = per_dimension(conv_transpose_nd_input_grad)
(
    conv_transpose1d_weight_grad,
    conv_transpose2d_weight_grad,
    conv_transpose3d_weight_grad,
) = per_dimension(conv_transpose_nd_weight_grad)
