"""Window arithmetic: how a kernel slides over an input, in integers.

Everything that turns sizes into sizes is here, for any number of spatial dimensions. Notation
follows Dumoulin & Visin, "A guide to convolution arithmetic for deep learning" (arXiv:1603.07285):
input size i, kernel size k, stride s, padding p, output size o; dilation d spreads the kernel over
an extent of d·(k − 1) + 1 positions.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, wraps
from itertools import product
from typing import Any, ParamSpec

from arraycnn.arguments import Size, as_sizes, ndim_of
from arraycnn.arrays import Shape
from arraycnn.geometry.padding import Padding, Pairs, kernel_extent, resolve_padding


@dataclass(frozen=True)
class Window:
    """A kernel's positions over an input, one entry per spatial dimension.

    Position ``o`` of the output sees the input at ``o·stride − before + tap·dilation`` for every
    ``tap`` of the kernel, and a padding value where that lies outside.
    """

    input_size: Shape
    kernel_size: Shape
    stride: Shape
    padding: Pairs
    dilation: Shape
    output_size: Shape

    @cached_property
    def ndim(self) -> int:
        return len(self.input_size)

    @cached_property
    def taps(self) -> int:
        """Number of kernel elements."""
        return math.prod(self.kernel_size)

    @cached_property
    def positions(self) -> int:
        """Number of output positions."""
        return math.prod(self.output_size)

    @cached_property
    def extent(self) -> Shape:
        """Input positions that the dilated kernel spans."""
        return tuple(map(kernel_extent, self.kernel_size, self.dilation))

    @cached_property
    def padded_size(self) -> Shape:
        """What the windows touch: the input with its padding, and no more than they reach."""
        return tuple(
            max((o - 1) * s + e, before + i)
            for o, s, e, (before, _), i in zip(
                self.output_size,
                self.stride,
                self.extent,
                self.padding,
                self.input_size,
                strict=True,
            )
        )

    @cached_property
    def input_positions(self) -> int:
        """Number of input positions."""
        return math.prod(self.input_size)

    @cached_property
    def is_pointwise(self) -> bool:
        """Whether every output sees exactly the input at its own position (1×1, stride 1)."""
        return self.taps == 1 and self.input_size == self.output_size and self.is_unpadded

    @cached_property
    def is_unpadded(self) -> bool:
        """Whether no window reaches beyond the input."""
        return self.padded_size == self.input_size and not any(b for b, _ in self.padding)

    @cached_property
    def over_padded(self) -> "Window":
        """The same positions over an input that has its padding already."""
        return replace(self, input_size=self.padded_size, padding=((0, 0),) * self.ndim)

    def adjoint(self) -> "Window | None":
        """The window of the convolution that is this one's adjoint, its kernel flipped.

        A convolution with unit stride is undone by one with padding extent − 1 − p (Dumoulin &
        Visin, relationship 9). None where that is no convolution: other strides, or p ≥ extent.
        """
        padding = tuple(
            (extent - 1 - before, i - o + before)
            for i, o, extent, (before, _) in zip(
                self.input_size, self.output_size, self.extent, self.padding, strict=True
            )
        )
        if any(s != 1 for s in self.stride) or any(p < 0 for pair in padding for p in pair):
            return None
        return Window(
            self.output_size, self.kernel_size, self.stride, padding, self.dilation, self.input_size
        )

    @cached_property
    def tap_places(self) -> list[tuple[slice, ...]]:
        """`tap_slices` for all output positions."""
        return self.tap_slices(tuple(slice(0, o) for o in self.output_size))

    def tap_slices(self, positions: tuple[slice, ...]) -> list[tuple[slice, ...]]:
        """Where, in a padded buffer (C, *padded, N), each tap lies for the given output positions,
        the taps in row-major order."""
        offsets = product(
            *(range(0, k * d, d) for k, d in zip(self.kernel_size, self.dilation, strict=True))
        )
        return [
            (
                slice(None),
                *(
                    slice(a + p.start * s, a + (p.stop - 1) * s + 1, s)
                    for a, p, s in zip(offset, positions, self.stride, strict=True)
                ),
            )
            for offset in offsets
        ]

    def inner_slices(self) -> tuple[slice, ...]:
        """Where, in the padded input, the input itself lies."""
        return tuple(
            slice(before, before + i)
            for (before, _), i in zip(self.padding, self.input_size, strict=True)
        )

    def counts(self, *, include_padding: bool) -> list[list[int]]:
        """Elements that a window averages over, per dimension and output position.

        Declared padding counts when ``include_padding``; what ``ceil_mode`` adds beyond never does.
        """
        result = []
        for i, k, s, (before, after), d, o in self._dimensions():
            low, high = (-before, i + after) if include_padding else (0, i)
            starts = range(-before, -before + o * s, s)
            result.append([sum(low <= a + t * d < high for t in range(k)) for a in starts])
        return result

    def _dimensions(self) -> Iterator[tuple[int, int, int, tuple[int, int], int, int]]:
        return zip(
            self.input_size,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.output_size,
            strict=True,
        )


def tiles(sizes: Shape, limit: int) -> Iterator[tuple[slice, ...]]:
    """Cut a row-major block into runs of at most ``limit`` consecutive elements, in order.

    Each run is given as one slice per dimension: single indices, then a range, then whole
    dimensions. A run is as long as the limit and the dimension that it cuts allow, never empty.
    """
    axis, inner = len(sizes) - 1, 1
    while axis > 0 and inner * sizes[axis] <= limit:
        inner *= sizes[axis]
        axis -= 1
    pieces = max(1, -(-sizes[axis] // max(1, limit // inner)))
    step = max(1, -(-sizes[axis] // pieces))
    whole = tuple(slice(0, size) for size in sizes[axis + 1 :])
    for outer in product(*map(range, sizes[:axis])):
        single = tuple(slice(i, i + 1) for i in outer)
        for start in range(0, sizes[axis], step):
            yield (*single, slice(start, min(start + step, sizes[axis])), *whole)


P = ParamSpec("P")


def cached(make: Callable[P, Window]) -> Callable[P, Window]:
    """Keep the windows that ``make`` returned for plain arguments: the same come at every step."""
    kept: Any = lru_cache(maxsize=1024, typed=True)(make)

    @wraps(make)
    def window(*args: P.args, **kwargs: P.kwargs) -> Window:
        for value in (*args, *kwargs.values()):
            if not _is_plain(value):
                return make(*args, **kwargs)
        made: Window = kept(*args, **kwargs)
        return made

    return window


def _is_plain(value: Any) -> bool:
    """Whether equality says all about a value; 2.0 in a tuple equals 2, but is no size."""
    if type(value) is tuple:
        for item in value:  # noqa: SIM110 (all(...) takes three times as long, in every layer)
            if type(item) is not int:
                return False
        return True
    return value is None or type(value) in (int, str, bool)


@cached
def conv_window(
    input_size: Size,
    kernel_size: Size,
    *,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Window:
    """Positions of a kernel over an input: o = ⌊(i + p_before + p_after − extent) / s⌋ + 1.

    ``padding`` is an int, an int per dimension, a ``(before, after)`` pair per dimension,
    ``"valid"`` (none), ``"same"`` (o = ⌈i / s⌉, the odd element after: TensorFlow's and ONNX's
    SAME_UPPER) or ``"full"`` (extent − 1 on both sides). ``ceil_mode`` rounds up, as far as the
    last window still begins inside the input or the padding before it (PyTorch's rule).

    Raises:
        ValueError, TypeError: an argument is not as above, or the kernel is larger than the padded
            input; the message names it.
    """
    input_size = as_sizes("input_size", input_size, ndim_of(input_size))
    ndim = len(input_size)
    kernel_size = as_sizes("kernel_size", kernel_size, ndim)
    stride = as_sizes("stride", stride, ndim)
    dilation = as_sizes("dilation", dilation, ndim)
    pairs = resolve_padding(padding, input_size, kernel_size, stride, dilation)
    output_size = []
    for axis in range(ndim):
        i, s, (before, after) = input_size[axis], stride[axis], pairs[axis]
        extent = kernel_extent(kernel_size[axis], dilation[axis])
        span = i + before + after - extent
        if span < 0:
            raise ValueError(
                f"kernel_size {kernel_size} with dilation {dilation} spans {extent} positions in "
                f"spatial dimension {axis}, but the input has {i} and padding {pairs[axis]} makes "
                f"it {i + before + after}; use a smaller kernel or dilation, more padding, or a "
                "larger input"
            )
        o = span // s + 1
        if ceil_mode and span % s and o * s < i + before:
            o += 1
        output_size.append(o)
    return Window(input_size, kernel_size, stride, pairs, dilation, tuple(output_size))


@cached
def pool_window(
    input_size: Size,
    kernel_size: Size,
    *,
    stride: Size | None = None,
    padding: Padding = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Window:
    """Positions of a pooling window; ``stride`` defaults to the kernel size.

    Raises:
        ValueError: as `conv_window`, and where a window would lie wholly in the padding: it has
            nothing to pool.
    """
    window = conv_window(
        input_size, kernel_size, stride=kernel_size if stride is None else stride,
        padding=padding, dilation=dilation, ceil_mode=ceil_mode,
    )  # fmt: skip
    for axis, counts in enumerate(window.counts(include_padding=False)):
        if 0 in counts:
            raise ValueError(
                f"padding {window.padding} leaves the pooling window at output position "
                f"{counts.index(0)} of spatial dimension {axis} wholly in the padding "
                f"(kernel_size {window.kernel_size}, dilation {window.dilation}, input size "
                f"{window.input_size}); reduce padding or dilation so that every window sees at "
                "least one input element"
            )
    return window


@cached
def transposed_window(
    input_size: Size,
    kernel_size: Size,
    *,
    stride: Size = 1,
    padding: Padding = 0,
    output_padding: Size = 0,
    dilation: Size = 1,
) -> Window:
    """The direct convolution whose adjoint is the transposed convolution of ``input_size``.

    Its ``output_size`` is the given ``input_size``, its ``input_size`` what the transposed
    convolution makes: (i − 1)·s + extent − p_before − p_after + output_padding. The named paddings
    undo those of a convolution: ``"same"`` gives i·s (Keras), ``"full"`` (i − 1)·s − extent + 2.

    Raises:
        ValueError, TypeError: as `conv_window`; also an ``output_padding`` that is not smaller than
            stride or dilation, or a result without elements.
    """
    input_size = as_sizes("input_size", input_size, ndim_of(input_size))
    ndim = len(input_size)
    kernel_size = as_sizes("kernel_size", kernel_size, ndim)
    stride = as_sizes("stride", stride, ndim)
    dilation = as_sizes("dilation", dilation, ndim)
    extra = as_sizes("output_padding", output_padding, ndim, minimum=0)
    if padding == "same":
        shrink = [
            kernel_extent(k, d) - s for k, d, s in zip(kernel_size, dilation, stride, strict=True)
        ]
        pairs: Pairs = tuple((max(t, 0) // 2, max(t, 0) - max(t, 0) // 2) for t in shrink)
        implied = tuple(max(-t, 0) for t in shrink)
        if any(extra):
            raise ValueError(
                f"output_padding must be 0 with padding 'same', which fixes the size; got {extra}"
            )
        extra = implied
    else:
        pairs = resolve_padding(padding, input_size, kernel_size, stride, dilation)
    output_size = []
    for axis in range(ndim):
        s, d, (before, after) = stride[axis], dilation[axis], pairs[axis]
        if extra[axis] >= max(s, d):
            raise ValueError(
                f"output_padding must be smaller than stride or dilation, got {extra} with stride "
                f"{stride} and dilation {dilation}; use at most {max(s, d) - 1} in spatial "
                f"dimension {axis}"
            )
        full = (input_size[axis] - 1) * s + kernel_extent(kernel_size[axis], d) + extra[axis]
        if full - before - after < 1:
            raise ValueError(
                f"padding {pairs[axis]} removes all {full} positions of spatial dimension {axis} "
                "of the transposed convolution's result; use less padding"
            )
        output_size.append(full - before - after)
    return Window(tuple(output_size), kernel_size, stride, pairs, dilation, input_size)


def conv_output_size(
    input_size: Size,
    kernel_size: Size,
    *,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Shape:
    """Spatial output size of a convolution; arguments and errors as `conv_window`."""
    return conv_window(
        input_size, kernel_size, stride=stride, padding=padding, dilation=dilation,
        ceil_mode=ceil_mode,
    ).output_size  # fmt: skip


def conv_transpose_output_size(
    input_size: Size,
    kernel_size: Size,
    *,
    stride: Size = 1,
    padding: Padding = 0,
    output_padding: Size = 0,
    dilation: Size = 1,
) -> Shape:
    """Spatial size of a transposed convolution's result; arguments as `transposed_window`."""
    return transposed_window(
        input_size, kernel_size, stride=stride, padding=padding, output_padding=output_padding,
        dilation=dilation,
    ).input_size  # fmt: skip


def adaptive_bounds(input_size: int, output_size: int) -> list[tuple[int, int]]:
    """Windows of adaptive pooling: output o sees [⌊o·i / n⌋, ⌈(o + 1)·i / n⌉), PyTorch's rule."""
    return [
        (o * input_size // output_size, -(-(o + 1) * input_size // output_size))
        for o in range(output_size)
    ]
