"""A strict stand-in for CuPy over NumPy, for machines without a GPU.

It offers what CuPy offers under the same names (``cupy_api.json`` is recorded from the real one)
and refuses what CuPy refuses: NumPy arrays among the operands, implicit conversion to NumPy,
unknown functions and keywords, cuBLAS and waiting for the device while a stream captures. Kernels
are our own text, compiled by ``launcher``. ``ElementwiseKernel``, ``ReductionKernel`` and
``fuse`` are absent on purpose: their text cannot be run here.
"""

import json
from pathlib import Path
from typing import Any

import numpy as _np

from cupy import _state, cuda, fft, lib
from cupy._array import SCALARS, apply, from_foreign, from_host, host, ndarray
from cupy._module import RawModule

__all__ = ["RawModule", "cuda", "fft", "lib", "ndarray"]
_API = json.loads((Path(__file__).parents[2] / "cupy_api.json").read_text())
__version__ = _API["cupy"]
is_emulator = True

_CUBLAS = {
    "dot",
    "einsum",
    "inner",
    "matmul",
    "outer",
    "tensordot",
    "vdot",
}  # unless an operand is empty
_HOST_WAITS = {"argwhere", "flatnonzero", "nonzero", "unique"}  # for the number of elements found
_KEEP_ORDER = {"asfortranarray", "empty_like", "full_like", "ones_like", "zeros_like"}


def array(obj: Any, dtype: Any = None, copy: bool | None = True, order: str | None = "K",
          subok: bool = False, ndmin: int = 0, *, blocking: bool = False) -> ndarray:  # fmt: skip
    if isinstance(obj, ndarray):
        same = (dtype is None or obj.dtype == dtype) and _in_order(obj, order)
        if not copy and same:
            return obj
        return obj.astype(obj.dtype if dtype is None else dtype, order or "K")
    if hasattr(obj, "__cuda_array_interface__"):
        return array(_from_interface(obj), dtype, copy, order)
    if isinstance(obj, (list, tuple)) and any(isinstance(item, ndarray) for item in obj):
        return stack([array(item, dtype) for item in obj])
    return from_host(obj, dtype, order)


def asarray(a: Any, dtype: Any = None, order: str | None = None, *, copy: bool | None = None,
            blocking: bool = False) -> ndarray:  # fmt: skip
    return array(a, dtype, copy, order, blocking=blocking)


def ascontiguousarray(a: Any, dtype: Any = None) -> ndarray:
    return array(a, dtype, copy=None, order="C")


def asnumpy(a: Any, stream: Any = None, order: str = "C", out: Any = None, *,
            blocking: bool = True) -> _np.ndarray:  # fmt: skip
    return a.get(stream, order, out) if isinstance(a, ndarray) else _np.asarray(a, order=order)


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return ndarray(shape, dtype, order=order)


def zeros(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return _filled(ndarray(shape, dtype, order=order), 0)


def ones(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return _filled(ndarray(shape, dtype, order=order), 1)


def full(shape: Any, fill_value: Any, dtype: Any = None, order: str = "C") -> ndarray:
    if dtype is None:
        dtype = _np.asarray(fill_value).dtype
    return _filled(ndarray(shape, dtype, order=order), fill_value)


def copy(a: Any, order: str = "K") -> ndarray:
    return array(a, copy=True, order=order)


def from_dlpack(x: Any, *, device: Any = None, copy: Any = None) -> ndarray:
    kind, number = x.__dlpack_device__()
    if kind != 2:  # kDLCUDA
        raise TypeError(
            "CPU arrays cannot be directly imported to CuPy. Use "
            "`cupy.array(numpy.from_dlpack(input))` instead."
        )
    return from_foreign(_np.from_dlpack(_OnHost(x)), x, number)


def get_array_module(*args: Any) -> Any:
    import cupy

    return cupy if any(isinstance(argument, ndarray) for argument in args) else _np


def may_share_memory(a: ndarray, b: ndarray, max_work: Any = None) -> bool:
    return bool(_np.may_share_memory(host(a), host(b)))


def get_default_memory_pool() -> _state.MemoryPool:
    return _state.default_pool


def get_default_pinned_memory_pool() -> Any:
    return cuda.PinnedMemoryPool()


def is_available() -> bool:
    return cuda.is_available()


class _OnHost:
    """Another library's device array, whose memory is in truth the host's."""

    def __init__(self, x: Any) -> None:
        self.x = x

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self.x.__dlpack__(max_version=kwargs.get("max_version"))


def _from_interface(x: Any) -> ndarray:
    interface = x.__cuda_array_interface__
    pointer, read_only = interface["data"]
    owner = type("Interface", (), {})()
    owner.x = x
    owner.__array_interface__ = {
        key: interface.get(key) for key in ("shape", "typestr", "strides")
    } | {"data": (pointer, read_only), "version": 3}
    device = getattr(getattr(x, "device", None), "id", _state.local.device)
    return from_foreign(_np.asarray(owner), owner, device)


def _in_order(x: ndarray, order: str | None) -> bool:
    flags = x._host.flags
    return {"C": flags.c_contiguous, "F": flags.f_contiguous}.get(order or "K", True)


def _filled(x: ndarray, value: Any) -> ndarray:
    x[...] = value
    return x


def _check_keywords(name: str, allowed: list[str] | None, args: Any, kwargs: Any) -> None:
    if allowed is None or "*args" in allowed or "**kwargs" in allowed:
        return
    positional = allowed[: allowed.index("*")] if "*" in allowed else allowed
    if len(args) > len(positional) or set(kwargs) - set(allowed):
        raise TypeError(f"cupy.{name} takes {allowed}, got {len(args)} arguments and {set(kwargs)}")


def _ufunc(name: str) -> Any:
    function = getattr(_np, name)

    def ufunc(*args: Any, **kwargs: Any) -> Any:
        if set(kwargs) - {"out", "dtype", "casting"}:
            raise TypeError(f"Wrong arguments {kwargs}")
        for argument in args:
            if not isinstance(argument, (ndarray, *SCALARS)):
                raise TypeError(f"Unsupported type {type(argument)}")
        if isinstance(kwargs.get("out"), tuple):
            (kwargs["out"],) = kwargs["out"]
        if len(args) > function.nin:
            *args, kwargs["out"] = args
        result = apply(function, tuple(args), kwargs)
        return array(result) if isinstance(result, SCALARS) else result

    ufunc.__name__ = name
    return ufunc


def _function(name: str) -> Any:
    def function(*args: Any, **kwargs: Any) -> Any:
        _check_keywords(name, _API["functions"][name], args, kwargs)
        if name in _CUBLAS and all(getattr(operand, "size", 1) for operand in args[:2]):
            _state.cublas()
        if name in _HOST_WAITS or (name == "where" and len(args) + len(kwargs) == 1):
            _state.host_waits()
        if name == "copyto":
            if kwargs.get("where", True) is None:
                del kwargs["where"]
            return apply(_np.copyto, args, kwargs, writes=True)
        result = apply(getattr(_np, name), args, kwargs, keep_order=name in _KEEP_ORDER,
                       fresh=name in _KEEP_ORDER)  # fmt: skip
        if name in ("allclose", "array_equal", "array_equiv"):
            return array(result)  # where NumPy has a bool
        if name in ("arange", "linspace", "eye", "identity", "tri"):
            return result if isinstance(result, ndarray) else array(result)
        if name == "empty_like":
            result._memory.bytes.fill(_state.POISON)
        return result

    function.__name__ = name
    return function


def __getattr__(name: str) -> Any:
    if name in _API["same"]:
        value = getattr(_np, name)
    elif name in _API["ufuncs"]:
        value = _ufunc(name)
    elif name in _API["functions"]:
        value = _function(name)
    else:
        raise AttributeError(f"the stand-in for CuPy {__version__} has no {name!r}")
    globals()[name] = value
    return value


def stack(arrays: Any, axis: int = 0) -> ndarray:
    return apply(_np.stack, (list(arrays), axis))
