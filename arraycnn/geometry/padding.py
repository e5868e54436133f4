"""The forms in which padding may be given, as pairs of sizes before and after each dimension."""

from collections.abc import Sequence
from typing import Any, TypeAlias

from arraycnn.arguments import Size, as_sizes, ndim_of

Padding: TypeAlias = int | str | Sequence[int] | Sequence[tuple[int, int]]
Pairs: TypeAlias = tuple[tuple[int, int], ...]

PADDING_NAMES = ("valid", "same", "full")


def kernel_extent(kernel_size: int, dilation: int) -> int:
    """Input positions that a dilated kernel spans: d·(k − 1) + 1."""
    return dilation * (kernel_size - 1) + 1


def resolve_padding(
    padding: Padding, input_size: Size, kernel_size: Size, stride: Size = 1, dilation: Size = 1
) -> Pairs:
    """``padding`` in any of its forms as one ``(before, after)`` pair per spatial dimension."""
    ndim = ndim_of(input_size)
    if not isinstance(padding, str):
        return _padding_pairs(padding, ndim)
    input_size, kernel_size = (
        as_sizes("input_size", input_size, ndim),
        as_sizes("kernel_size", kernel_size, ndim),
    )
    stride, dilation = as_sizes("stride", stride, ndim), as_sizes("dilation", dilation, ndim)
    extents = tuple(map(kernel_extent, kernel_size, dilation))
    if padding == "valid":
        return ((0, 0),) * ndim
    if padding == "full":
        return tuple((extent - 1, extent - 1) for extent in extents)
    if padding == "same":
        totals = (
            max((-(-i // s) - 1) * s + extent - i, 0)
            for i, s, extent in zip(input_size, stride, extents, strict=True)
        )
        return tuple((total // 2, total - total // 2) for total in totals)
    raise ValueError(
        f"padding must be an int, one int or (before, after) pair per spatial dimension, or one of "
        f"{PADDING_NAMES}; got {padding!r}"
    )


def _padding_pairs(padding: Any, ndim: int) -> Pairs:
    if isinstance(padding, Sequence) and any(isinstance(p, Sequence) for p in padding):
        if len(padding) != ndim or not all(
            isinstance(p, Sequence) and len(p) == 2 for p in padding
        ):
            raise ValueError(
                f"padding must have one (before, after) pair for each of {ndim} spatial "
                f"dimensions, got {padding!r}"
            )
        before, after = zip(*padding, strict=True)
        return tuple(
            zip(
                as_sizes("padding", before, ndim, minimum=0),
                as_sizes("padding", after, ndim, minimum=0),
                strict=True,
            )
        )
    return tuple((p, p) for p in as_sizes("padding", padding, ndim, minimum=0))
