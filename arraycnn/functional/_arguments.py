"""The door of the functional API: which arrays may enter an operation, and on which backend."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from arraycnn.arrays import Array
from arraycnn.backends import Backend, backend_of

REAL = ("float32", "float64", "float16")
REAL_OR_COMPLEX = (*REAL, "complex64", "complex128")


def enter(
    dtypes: tuple[str, ...] = REAL, /, *, optional: Mapping[str, Any] | None = None, **arrays: Any
) -> Backend:
    """The backend of the given arrays, by argument name, all of one dtype.

    Those in ``optional`` may be None.

    Raises:
        TypeError: no array, an integer array, or dtypes that differ. ValueError: mixed backends.
    """
    given = arrays | {name: array for name, array in (optional or {}).items() if array is not None}
    for name, array in given.items():
        owner_of(name, array)
    backend = backend_of(*given.values())
    first, *others = given
    for name, array in given.items():
        check_dtype(name, array.dtype, dtypes)
    for name in others:
        if given[name].dtype != given[first].dtype:
            raise TypeError(
                f"{name} must have the dtype of {first}, {given[first].dtype}, got "
                f"{given[name].dtype}; convert one of them, e.g. {name}.astype({first}.dtype)"
            )
    return backend


def owner_of(name: str, array: Any) -> Backend:
    """The backend of an argument; TypeError, naming it, if it is no array."""
    try:
        return backend_of(array)
    except TypeError:
        raise TypeError(
            f"{name} must be a NumPy or CuPy array, got {type(array).__name__}; convert it first, "
            "e.g. with numpy.asarray(..., dtype=numpy.float32)"
        ) from None


def moved_in(backend: Backend, name: str, array: Any) -> Array:
    """An argument on ``backend``: a host array is moved there.

    Raises:
        TypeError: not an array. ValueError: an array of another device.
    """
    owner = owner_of(name, array)
    if owner is backend:
        return array
    if owner.name != "cpu":
        raise ValueError(
            f"{name} is on {owner.name}, but this works on {backend.name}; move the array or the "
            f"model, e.g. with model.to({owner.name!r})"
        )
    return backend.asarray(array)


def check_dtype(name: str, dtype: Any, dtypes: tuple[str, ...] = REAL) -> None:
    """Refuse a dtype that the operation does not compute in."""
    if dtype not in dtypes_named(dtypes):
        remedy = (
            f"convert it, e.g. {name}.astype('float32') / 255 for 8-bit images"
            if dtype.kind in "iub"
            else f"convert it, e.g. {name}.astype('{dtypes[0]}')"
        )
        raise TypeError(f"{name} must be one of {', '.join(dtypes)}, got {dtype}; {remedy}")


@lru_cache
def dtypes_named(names: tuple[str, ...]) -> frozenset[Any]:
    return frozenset(map(np.dtype, names))


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Refuse a value that is not one of the named choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def channel_vector(name: str, array: Array | None, channels: int, owner: str) -> None:
    """Refuse a per-channel array that is not (channels,)."""
    if array is not None and array.shape != (channels,):
        raise ValueError(
            f"{name} must have shape ({channels},), one value for each channel of {owner}, got "
            f"{tuple(array.shape)}"
        )
