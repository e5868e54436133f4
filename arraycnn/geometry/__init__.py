"""Window arithmetic and shape checks, in integers: the one place that knows what fits what."""

from arraycnn.geometry.padding import PADDING_NAMES, Padding, kernel_extent, resolve_padding
from arraycnn.geometry.shapes import (
    check_conv_shapes,
    check_groups,
    check_rank,
    check_transposed_shapes,
)
from arraycnn.geometry.window import (
    Window,
    adaptive_bounds,
    conv_output_size,
    conv_transpose_output_size,
    conv_window,
    pool_window,
    tiles,
    transposed_window,
)

__all__ = [
    "PADDING_NAMES",
    "Padding",
    "Window",
    "adaptive_bounds",
    "check_conv_shapes",
    "check_groups",
    "check_rank",
    "check_transposed_shapes",
    "conv_output_size",
    "conv_transpose_output_size",
    "conv_window",
    "kernel_extent",
    "pool_window",
    "resolve_padding",
    "tiles",
    "transposed_window",
]
