"""A convolution taken apart: the matrices of im2col, of the product and of the backward pass.

The numbers in brackets are those of the equations in docs/lecture.md.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from arraycnn import functional as F
from arraycnn.arguments import check_shape, to_backend
from arraycnn.arrays import Array
from arraycnn.layers.conv import Conv

MOST_ELEMENTS = 4096  # of the columns; more cannot be read


@dataclass(frozen=True)
class Explanation:
    """The matrices of one convolution of one sample, on the host; prints as text.

    With C channels, O kernels, L output positions and taps = prod(kernel_size):

    Attributes:
        layer: the convolution's repr. groups: its groups.
        x: the input (C, *S).
        index: (C·taps, L), where in the flattened x each element of the columns comes from; −1
            where it is padding.
        columns: v (C·taps, L), x at those places.
        kernel: K (O, C·taps), one flattened kernel in each row; block-diagonal with groups.
        bias: b (O,), zeros for a layer without.
        output: h = K v + b (O, L). output_size: L as the sizes of h's planes.
        grad_output: Δ (O, L).
        grad_kernel: δK = Δ vᵀ (O, C·taps), 0 outside of the blocks of groups.
        grad_bias: δb (O,), the row sums of Δ.
        grad_columns: Kᵀ Δ (C·taps, L).
        grad_input: δx = col2im(Kᵀ Δ) (C, *S).
    """

    layer: str
    groups: int
    x: Array
    index: Array
    columns: Array
    kernel: Array
    bias: Array
    output: Array
    output_size: tuple[int, ...]
    grad_output: Array
    grad_kernel: Array
    grad_bias: Array
    grad_columns: Array
    grad_input: Array

    def __str__(self) -> str:
        blocks = f", {self.groups} blocks for {self.groups} groups" if self.groups > 1 else ""
        size = "×".join(map(str, self.output_size))
        parts = [
            (f"{self.layer}\n\nx, the input", self.x),
            ("index, where in x each element of v comes from (-1: padding)", self.index),
            ("(8) v = im2col(x), a column for each output position", self.columns),
            (f"K, a row for each kernel{blocks}", self.kernel),
            ("b", self.bias),
            (f"(9) h = K v + b, a row for each output plane of {size}", self.output),
            ("Δ, the gradient of the loss with respect to h", self.grad_output),
            ("(10) δK = Δ vᵀ", self.grad_kernel),
            ("(11) δb = the row sums of Δ", self.grad_bias),
            ("(12) δv = Kᵀ Δ", self.grad_columns),
            ("(13) δx = col2im(δv), each element of δv added where index says", self.grad_input),
        ]
        return "\n\n".join(f"{title}:\n{_text(values)}" for title, values in parts)

    def draw(self) -> Any:
        """The equations with their matrices as a matplotlib figure.

        Raises:
            ImportError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise ImportError(
                "draw needs matplotlib; install it with pip install matplotlib"
            ) from None
        vector = (slice(None), None)
        planes = self.x.reshape(-1, self.x.shape[-1])
        lines: list[list[tuple[str, Array | None]]] = [
            [("x", planes), ("  (8) im2col", None), ("index", self.index), ("  x at index", None),
             ("v", self.columns)],
            [("K", self.kernel), ("·", None), ("v", self.columns), ("+", None),
             ("b", self.bias[vector]), ("(9) =", None), ("h", self.output)],
            [("Δ", self.grad_output), ("·", None), ("vᵀ", self.columns.T), ("(10) =", None),
             ("δK", self.grad_kernel), ("(11) Σ Δ =", None), ("δb", self.grad_bias[vector])],
            [("Kᵀ", self.kernel.T), ("·", None), ("Δ", self.grad_output), ("(12) =", None),
             ("δv", self.grad_columns), ("  (13) col2im", None),
             ("δx", self.grad_input.reshape(planes.shape))],
        ]  # fmt: skip
        figure = Figure()
        figure.set_layout_engine("none")  # the axes fill it
        axes = figure.add_axes((0, 0, 1, 1))
        top, width = 0.0, 0.0
        for line in lines:
            height = max(len(values) for _, values in line if values is not None)
            left = 0.5
            for label, values in line:
                if values is None:
                    space = 0.8 + 0.25 * len(label)
                    axes.text(left + space / 2, top + 0.8 + height / 2, label.strip(),
                              ha="center", va="center", fontsize=11)  # fmt: skip
                    left += space
                else:
                    shift = (height - len(values)) / 2
                    draw_matrix(axes, values, (left, top + 0.8 + shift), label)
                    left += values.shape[1]
            width = max(width, left + 0.5)
            top += height + 1.4
        figure.set_size_inches(0.42 * width, 0.42 * top)
        axes.set(xlim=(0, width), ylim=(top, 0))
        axes.set_axis_off()
        return figure


def explain(conv: Conv, x: Array, grad_output: Array | None = None) -> Explanation:
    """Every matrix of a convolution of ``x`` and of its backward pass, small enough to print.

    Args:
        conv: a `Conv1d`, `Conv2d` or `Conv3d`. x: one sample, (1, C, *S).
        grad_output: Δ, shaped like conv(x); ones by default, the gradient of the sum of h.

    Raises:
        TypeError: ``conv`` is no convolution. ValueError: several samples, too many to print, or
            shapes that do not fit. The layer's gradients stay as they are.

    Source: Chellapilla, Puri & Simard, "High performance convolutional neural networks for document
    processing", 2006.
    """
    if not isinstance(conv, Conv):
        raise TypeError(f"conv must be a Conv1d, Conv2d or Conv3d, got {type(conv).__name__}")
    backend, x = conv.check_input(x)
    shape = conv.output_shape(x.shape)
    if shape[0] != 1:
        raise ValueError(f"x must be one sample of shape (1, C, *S), got {tuple(x.shape)}; x[:1]?")
    taps = math.prod(conv.kernel_size)
    elements = conv.in_channels * taps * math.prod(shape[2:])
    if elements > MOST_ELEMENTS:
        raise ValueError(
            f"the columns of x have {elements} elements, more than the {MOST_ELEMENTS} that can be "
            "read; use a smaller image, kernel or number of channels"
        )
    delta = backend.xp.ones(shape, x.dtype)
    if grad_output is not None:
        delta = to_backend(backend, "grad_output", grad_output).astype(x.dtype, copy=False)
        check_shape("grad_output", delta.shape, shape, "like the convolution's output")
    settings: dict[str, Any] = {
        "stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation,
    }  # fmt: skip

    host = backend.to_numpy
    kernel, mask = _block_diagonal(host(conv.weight.data), conv.groups)  # (O, C·taps)
    columns = host(F.im2col(x, conv.kernel_size, **settings))[0]  # (C·taps, L)
    bias = np.zeros(shape[1], columns.dtype) if conv.bias is None else host(conv.bias.data)
    delta = host(delta).reshape(shape[1], -1)  # (O, L)
    grad_columns = kernel.T @ delta
    places = np.arange(1.0, 1.0 + math.prod(x.shape)).reshape(x.shape)  # 0 is left for padding
    index = F.im2col(places, conv.kernel_size, **settings)[0].astype(int) - 1
    grad_input = F.col2im(grad_columns[None], x.shape[2:], conv.kernel_size, **settings)
    return Explanation(
        layer=repr(conv),
        groups=conv.groups,
        x=host(x)[0],
        index=index,
        columns=columns,
        kernel=kernel,
        bias=bias,
        output=kernel @ columns + bias[:, None],
        output_size=shape[2:],
        grad_output=delta,
        grad_kernel=(delta @ columns.T) * mask,
        grad_bias=delta.sum(axis=1),
        grad_columns=grad_columns,
        grad_input=grad_input[0],
    )


def draw_matrix(
    axes: Any, values: Array, at: tuple[float, float], title: str = "", *, colour: Any = "white"
) -> None:
    """Draw a matrix with its numbers on matplotlib axes, in cells of size 1 from ``at`` (x, y) on.

    The y axis points down. ``colour`` is one for all cells or an array (rows, columns, 3 or 4).
    """
    from matplotlib.patches import Rectangle

    left, top = at
    rows, columns = values.shape
    level = 2  # one for all parts: a matrix that is drawn later lies on top
    shown = _numbers(values)
    size = 11 if max(map(len, shown.flat)) <= 4 else 8
    for (row, column), number in np.ndenumerate(shown):
        x, y = left + column, top + row
        face = colour if isinstance(colour, str) else colour[row, column]
        axes.add_patch(Rectangle((x, y), 1, 1, fc=face, ec="0.5", lw=0.6, zorder=level))
        axes.text(x + 0.5, y + 0.5, number, ha="center", va="center", size=size, zorder=level)
    axes.add_patch(Rectangle((left, top), columns, rows, fill=False, ec="black", zorder=level))
    axes.text(left + columns / 2, top - 0.12, title, ha="center", va="bottom", size=11)


def _block_diagonal(weight: Array, groups: int) -> tuple[Array, Array]:
    """Kernels (O, C/groups, *kernel) as (O, C·taps), and a mask of what belongs to them."""
    rows, columns = len(weight) // groups, math.prod(weight.shape[1:])
    kernel = np.zeros((len(weight), groups * columns), weight.dtype)
    mask = np.zeros(kernel.shape, bool)
    for group, part in enumerate(weight.reshape(groups, rows, columns)):
        block = slice(group * rows, (group + 1) * rows), slice(group * columns, None)
        kernel[block][:, :columns] = part
        mask[block][:, :columns] = True
    return kernel, mask


def _numbers(values: Array) -> Any:
    """The numbers as short texts: whole ones without a point, others with two decimals."""
    whole = bool(np.all(values == np.round(values)))
    return np.array([f"{v:.0f}" if whole else f"{v:.2f}" for v in values.flat]).reshape(
        values.shape
    )


def _text(values: Array) -> str:
    """A vector or matrix as aligned text; of more dimensions, one matrix for each plane."""
    if values.ndim > 2:
        return "\n\n".join(_text(plane) for plane in values)
    numbers = np.atleast_2d(_numbers(values))
    width = max(map(len, numbers.flat))
    return "\n".join("  " + " ".join(n.rjust(width) for n in row) for row in numbers)
