"""The same numbers in other places in memory: what a caller's strides may look like."""

from types import ModuleType
from typing import Any

LAYOUTS = (
    "batch_last",
    "channels_last",
    "reversed",
    "strided",
    "fortran",
    "transposed",
    "offset",
    "read_only",
)


def laid_out(xp: ModuleType, array: Any, layout: str | None) -> Any:
    """``array``'s values with other strides; ``xp`` is NumPy or CuPy."""
    match layout:
        case None:
            return array
        case "batch_last":
            return _stored_as(xp, array, (*range(1, array.ndim), 0))
        case "channels_last":
            return _stored_as(xp, array, (0, *range(2, array.ndim), *range(1, min(2, array.ndim))))
        case "transposed":
            return _stored_as(xp, array, (*range(array.ndim - 1), array.ndim - 1)[::-1])
        case "fortran":
            return xp.asfortranarray(array)
        case "reversed":
            return xp.ascontiguousarray(array[..., ::-1])[..., ::-1]
        case "strided":
            wide = xp.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
            wide[..., ::2] = array
            return wide[..., ::2]
        case "offset":
            wide = xp.zeros(tuple(length + 2 for length in array.shape), array.dtype)
            inner = wide[tuple(slice(1, 1 + length) for length in array.shape)]
            inner[...] = array
            return inner
        case "read_only":
            array = array.copy()
            if hasattr(array, "setflags"):  # CuPy has no read-only arrays
                array.setflags(write=False)
            return array
    raise ValueError(f"unknown layout {layout!r}")


def _stored_as(xp: ModuleType, array: Any, order: tuple[int, ...]) -> Any:
    back = tuple(order.index(axis) for axis in range(array.ndim))
    return xp.ascontiguousarray(array.transpose(order)).transpose(back)
