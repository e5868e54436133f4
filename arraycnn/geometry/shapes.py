"""Arrays whose shapes must fit together: refused with advice where they do not."""

from arraycnn.arguments import as_count
from arraycnn.arrays import Shape


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


def check_groups(groups: int, in_channels: int, out_channels: int) -> int:
    """``groups`` as an int that divides both channel counts."""
    groups = as_count("groups", groups)
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
    groups = as_count("groups", groups)
    return check_groups(groups, x_shape[1], weight_shape[1] * groups)


def _check_weight(shape: Shape, channels: str, ndim: int) -> None:
    if len(shape) != ndim + 2 or 0 in shape:
        raise ValueError(
            f"weight must be ({channels}, *kernel_size) with {ndim} kernel "
            f"dimension{'s' if ndim > 1 else ''} and no empty one, got shape {tuple(shape)}"
        )
