"""The door: every argument is checked here, and what cannot be used is refused with advice.

``as_...`` returns an argument in the form in which it is used, ``check_...`` only refuses.
"""

import math
import operator
from collections.abc import Mapping, Sequence
from functools import lru_cache
from numbers import Real
from typing import Any, TypeAlias

import numpy as np

from arraycnn.arrays import Array, Shape
from arraycnn.registry import backend_of

Size: TypeAlias = int | Sequence[int]

REAL = ("float32", "float64", "float16")
REAL_OR_COMPLEX = (*REAL, "complex64", "complex128")
FLOATS = ("float16", "float32", "float64")  # that layers compute in


def as_real(
    name: str,
    value: Any,
    *,
    minimum: float = 0.0,
    below: float = math.inf,
    positive: bool = False,
) -> float:
    """``value`` as a float with ``minimum <= value < below``; ``positive`` excludes 0 as well.

    A Python float never promotes a float32 array, which a NumPy float64 scalar would.

    Raises:
        TypeError: not a real number (bools and arrays are not). ValueError: NaN, infinite or
            outside of the interval.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
    number = float(value)
    if not math.isfinite(number) or not minimum <= number < below or (positive and number <= 0):
        lower = " above 0" if positive else f" of at least {minimum:g}"
        lower = lower if minimum > -math.inf else ""
        upper = f" and below {below:g}" if math.isfinite(below) else ""
        raise ValueError(f"{name} must be a finite number{lower}{upper}, got {number!r}")
    return number


def as_any_real(name: str, value: Any) -> float:
    """``value`` as a finite float of any sign; errors as `as_real`."""
    return as_real(name, value, minimum=-math.inf)


def as_probability(name: str, value: Any) -> float:
    """``value`` as a float in [0, 1]; errors as `as_real`."""
    number = as_real(name, value)
    if number > 1:
        raise ValueError(f"{name} must be a probability between 0 and 1, got {number!r}")
    return number


def as_bool(name: str, value: Any) -> bool:
    """``value`` if it is True or False, NumPy's included; TypeError otherwise."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def as_int(value: Any) -> int:
    """An int from anything that is one (NumPy integers too, bools not); TypeError otherwise."""
    if isinstance(value, bool):
        raise TypeError("a bool is not a size")
    return operator.index(value)


def as_count(name: str, value: Any, *, minimum: int | None = 1) -> int:
    """``value`` as a single int of at least ``minimum``; the error names the argument."""
    try:
        number = as_int(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}") from None
    if minimum is not None and number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {number}")
    return number


def ndim_of(input_size: Size) -> int:
    """Number of spatial dimensions of an input size; a plain int means one."""
    return len(input_size) if isinstance(input_size, Sequence) else 1


def as_sizes(name: str, value: Any, ndim: int, *, minimum: int = 1) -> Shape:
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
        result = tuple(as_int(v) for v in values)
    except TypeError:
        raise TypeError(
            f"{name} must be an int or one int per spatial dimension, got {value!r}"
        ) from None
    if any(v < minimum for v in result):
        raise ValueError(f"{name} must be at least {minimum} in every dimension, got {value!r}")
    return result


def as_shape(name: str, value: Any, rank: int) -> Shape:
    """``value`` as the shape of an array with ``rank`` dimensions."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != rank:
        raise ValueError(f"{name} must be a tuple of {rank} sizes, got {value!r}")
    return tuple(as_count(name, size, minimum=0) for size in value)


def check_shape(name: str, shape: Shape, expected: Shape, reason: str) -> None:
    """Refuse an array whose shape is not the one that ``reason`` demands."""
    if tuple(shape) != tuple(expected):
        raise ValueError(f"{name} must have shape {tuple(expected)} {reason}, got {tuple(shape)}")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Refuse a value that is not one of the named choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_arrays(
    dtypes: tuple[str, ...] = REAL, /, *, optional: Mapping[str, Any] | None = None, **arrays: Any
) -> Any:
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


def owner_of(name: str, array: Any) -> Any:
    """The backend of an argument; TypeError, naming it, if it is no array."""
    try:
        return backend_of(array)
    except TypeError:
        raise TypeError(
            f"{name} must be a NumPy or CuPy array, got {type(array).__name__}; convert it first, "
            "e.g. with numpy.asarray(..., dtype=numpy.float32)"
        ) from None


def to_backend(backend: Any, name: str, array: Any) -> Array:
    """An argument on ``backend``: a host array is moved there.

    Raises:
        TypeError: not an array. ValueError: an array of another device.
    """
    if backend.owns(array):
        return array
    if not isinstance(array, np.ndarray):
        owner = owner_of(name, array)
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


def as_float_dtype(dtype: Any) -> Any:
    """``dtype`` as a NumPy dtype that layers compute in."""
    try:
        result = None if dtype is None else np.dtype(dtype)  # None would mean float64 to NumPy
    except TypeError:
        result = None
    if str(result) not in FLOATS:  # the name of one in foreign byte order is another
        raise TypeError(f"dtype must be one of {', '.join(FLOATS)}, got {dtype!r}")
    return result


def check_channel_vector(name: str, array: Array | None, channels: int, owner: str) -> None:
    """Refuse a per-channel array that is not (channels,)."""
    if array is not None and array.shape != (channels,):
        raise ValueError(
            f"{name} must have shape ({channels},), one value for each channel of {owner}, got "
            f"{tuple(array.shape)}"
        )


def check_forward(name: str, result: Any) -> tuple[Any, Any]:
    """What a layer's forward returned, if it is y and a function."""
    if type(result) is tuple and len(result) == 2 and callable(result[1]):
        y = result[0]
        if hasattr(y, "shape") or isinstance(y, tuple):
            return result
    raise TypeError(
        f"{name}.forward must return (y, backward), an array and a function "
        f"of its gradient, got {_kind(result)}"
    )


def _kind(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_kind, value))})"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array of shape {tuple(value.shape)}"
    return f"{type(value).__name__}"


def check_grad(backend: Any, grad: Array, shape: Shape, dtype: Any) -> Array:
    """The door of ``backward``: ``grad`` on the backend, shaped and typed like the output."""
    if not backend.owns(grad):
        grad = to_backend(backend, "grad_output", grad)
    if grad.shape != shape:
        check_shape("grad_output", grad.shape, shape, "like the layer's output")
    if grad.dtype != dtype:
        raise TypeError(
            f"grad_output must have the dtype of the layer's output, {dtype}, got {grad.dtype}; "
            f"convert it with grad_output.astype('{dtype}')"
        )
    return grad
