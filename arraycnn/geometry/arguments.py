"""Sizes given as arguments and arrays whose shapes must fit: normalised, or refused with advice."""

import operator
from collections.abc import Sequence
from typing import Any, TypeAlias

from arraycnn.arrays import Shape

Size: TypeAlias = int | Sequence[int]


def ndim_of(input_size: Size) -> int:
    """Number of spatial dimensions of an input size; a plain int means one."""
    return len(input_size) if isinstance(input_size, Sequence) else 1


def sizes_of(name: str, value: Any, ndim: int, *, minimum: int = 1) -> Shape:
    """``value``, an int or one int per spatial dimension, as a tuple of ``ndim`` ints.

    Raises:
        TypeError: not integers. ValueError: wrong number of them, or one below ``minimum``.
    """
    if isinstance(value, str) or (isinstance(value, Sequence) and len(value) != ndim):
        raise ValueError(
            f"{name} must be an int or one int for each of {ndim} spatial dimension"
            f"{'s' if ndim > 1 else ''}, got {value!r}"
        )
    values = tuple(value) if isinstance(value, Sequence) else (value,) * ndim
    try:
        result = tuple(int_of(v) for v in values)
    except TypeError:
        raise TypeError(
            f"{name} must be an int or one int per spatial dimension, got {value!r}"
        ) from None
    if any(v < minimum for v in result):
        raise ValueError(f"{name} must be at least {minimum} in every dimension, got {value!r}")
    return result


def shape_of(name: str, value: Any, rank: int) -> Shape:
    """``value`` as the shape of an array with ``rank`` dimensions."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != rank:
        raise ValueError(f"{name} must be a tuple of {rank} sizes, got {value!r}")
    return tuple(count_of(name, size, minimum=0) for size in value)


def int_of(value: Any) -> int:
    """An int from anything that is one (NumPy integers too, bools not); TypeError otherwise."""
    if isinstance(value, bool):
        raise TypeError("a bool is not a size")
    return operator.index(value)


def count_of(name: str, value: Any, *, minimum: int | None = 1) -> int:
    """``value`` as a single int of at least ``minimum``; the error names the argument."""
    try:
        number = int_of(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}") from None
    if minimum is not None and number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {number}")
    return number


def check_rank(name: str, shape: Shape, ndim: int) -> None:
    """Refuse an array that is not ``(N, C, *spatial)`` with ``ndim`` spatial dimensions."""
    if len(shape) != ndim + 2:
        spatial = ("length", "height, width", "depth, height, width")[ndim - 1]
        raise ValueError(
            f"{name} must have {ndim + 2} dimensions (batch, channels, {spatial}), got shape "
            f"{shape}{_rank_remedy(len(shape), ndim)}"
        )


def _rank_remedy(rank: int, ndim: int) -> str:
    if rank == ndim + 1:
        return "; add the missing batch or channel dimension, e.g. x[None] or x[:, None]"
    if rank == ndim:
        return "; add batch and channel dimensions, e.g. x[None, None]"
    return f"; reshape it, or use the {rank - 2}d function" if 3 <= rank <= 5 else ""


def check_shape(name: str, shape: Shape, expected: Shape, reason: str) -> None:
    """Refuse an array whose shape is not the one that ``reason`` demands."""
    if tuple(shape) != tuple(expected):
        raise ValueError(f"{name} must have shape {tuple(expected)} {reason}, got {tuple(shape)}")


def check_groups(groups: int, in_channels: int, out_channels: int) -> int:
    """``groups`` as an int that divides both channel counts."""
    groups = count_of("groups", groups)
    for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
        if channels % groups:
            raise ValueError(
                f"groups must divide {name}: got groups={groups} and {name}={channels}; choose a "
                f"common divisor of {in_channels} and {out_channels}"
            )
    return groups


def check_conv_shapes(x_shape: Shape, weight_shape: Shape, groups: int, ndim: int) -> int:
    """Refuse x (N, C, *S) and weight (O, C/groups, *K) that do not fit; returns ``groups``."""
    check_rank("x", x_shape, ndim)
    _check_weight(weight_shape, "out_channels, in_channels // groups", ndim)
    groups = check_groups(groups, x_shape[1], weight_shape[0])
    if x_shape[1] != weight_shape[1] * groups:
        raise ValueError(
            f"x has {x_shape[1]} channels, but weight of shape {tuple(weight_shape)} with "
            f"groups={groups} expects {weight_shape[1] * groups}; pass x as (batch, channels, "
            "*spatial) with that many channels, or change in_channels of the weight"
        )
    return groups


def check_transposed_shapes(x_shape: Shape, weight_shape: Shape, groups: int, ndim: int) -> int:
    """Refuse x (N, C, *S) and weight (C, O/groups, *K) that do not fit; returns ``groups``."""
    check_rank("x", x_shape, ndim)
    _check_weight(weight_shape, "in_channels, out_channels // groups", ndim)
    if x_shape[1] != weight_shape[0]:
        raise ValueError(
            f"x has {x_shape[1]} channels, but the transposed weight of shape "
            f"{tuple(weight_shape)} expects {weight_shape[0]}; its first dimension is in_channels"
        )
    groups = count_of("groups", groups)
    return check_groups(groups, x_shape[1], weight_shape[1] * groups)


def _check_weight(shape: Shape, channels: str, ndim: int) -> None:
    if len(shape) != ndim + 2 or 0 in shape:
        raise ValueError(
            f"weight must be ({channels}, *kernel_size) with {ndim} kernel "
            f"dimension{'s' if ndim > 1 else ''} and no empty one, got shape {tuple(shape)}"
        )
