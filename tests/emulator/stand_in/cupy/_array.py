"""The stand-in's ``ndarray``: a NumPy array on "device" memory behind a wall.

Results that CuPy allocates are in C order whatever the operands' order is (its ufuncs do not keep
it, unlike NumPy's), floating-point errors never warn, and reductions give arrays.
"""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from cupy import _state

SCALARS = (bool, int, float, complex, np.generic)


class ndarray:
    """An array in device memory."""

    __slots__ = ("__weakref__", "_host", "_memory", "base")
    __array_priority__ = 100
    __hash__ = None

    def __init__(self, shape: Any, dtype: Any = float, memptr: Any = None,
                 strides: Any = None, order: str = "C") -> None:  # fmt: skip
        dtype = _supported(np.dtype(dtype))
        shape = tuple(map(int, shape)) if isinstance(shape, Iterable) else (int(shape),)
        memory = memptr.mem if memptr else _state.allocate(int(np.prod(shape)) * dtype.itemsize)
        offset = memptr.ptr - memory.address if memptr else 0
        self._host = np.ndarray(shape, dtype, memory.bytes, offset, strides, order)
        self._memory = memory
        self.base = None

    # Leaving the device

    def get(self, stream: Any = None, order: str = "C", out: Any = None,
            blocking: bool = True) -> np.ndarray:  # fmt: skip
        _state.host_waits()
        self._memory.check()
        if out is None:
            return np.array(self._host, order=order)
        out[...] = self._host
        return out

    def set(self, arr: np.ndarray, stream: Any = None) -> None:
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if self.dtype != arr.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if self.shape != arr.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        if not (self._host.flags.c_contiguous or self._host.flags.f_contiguous):
            raise RuntimeError("Cannot set to non-contiguous array")
        _state.host_waits()
        self._host[...] = arr

    def item(self, *args: int) -> Any:
        return self.get().item(*args)

    def tolist(self) -> Any:
        return self.get().tolist()

    def __bool__(self) -> bool:
        return bool(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __complex__(self) -> complex:
        return complex(self.get())

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct "
            "a NumPy array explicitly."
        )

    # Other libraries

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        interface = self._host.__array_interface__
        keys = ("shape", "typestr", "descr")
        return {key: interface[key] for key in keys} | {
            "strides": None if self._host.flags.c_contiguous else self.strides,
            "data": (self._host.ctypes.data, False),
            "version": 3,
            "stream": 1,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self._memory.device  # kDLCUDA

    def __dlpack__(self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None,
                   copy: Any = None) -> Any:  # fmt: skip
        return self._host.__dlpack__(max_version=max_version)

    def __array_ufunc__(self, function: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        import cupy

        counterpart = getattr(cupy, function.__name__, None)
        if method != "__call__" or counterpart is None:
            return NotImplemented
        if "out" in kwargs:
            (kwargs["out"],) = kwargs["out"]
        return counterpart(*inputs, **kwargs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        import cupy

        counterpart = getattr(cupy, function.__name__, None)
        if counterpart is None or any(t not in (ndarray, *SCALARS) for t in types):
            return NotImplemented
        return counterpart(*args, **kwargs)

    # Description

    shape = property(lambda self: self._host.shape)
    strides = property(lambda self: self._host.strides)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    flags = property(lambda self: Flags(self))
    T = property(lambda self: self.transpose())
    real = property(lambda self: view_or_new(self._host.real, self))
    imag = property(lambda self: view_or_new(self._host.imag, self))

    @property
    def data(self) -> _state.MemoryPointer:
        return _state.MemoryPointer(self._memory, self._host.ctypes.data - self._memory.address)

    @property
    def device(self) -> Any:
        from cupy.cuda import Device

        return Device(self._memory.device)

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return repr(self._host)

    def __format__(self, specification: str) -> str:
        return format(self.item() if self.ndim == 0 else self, specification)

    def __copy__(self) -> "ndarray":
        return self.copy()

    def __deepcopy__(self, memo: Any) -> "ndarray":
        return self.copy()

    # Elements

    def __getitem__(self, index: Any) -> "ndarray":
        index = _index(index)
        if any(part.dtype == bool for part in _arrays(index)):
            _state.host_waits()  # for the number of elements
        return apply(lambda a, i: a[i], (self, index))

    def __setitem__(self, index: Any, value: Any) -> None:
        index = _index(index)
        if isinstance(value, np.ndarray) and value.ndim:
            if not any(True for _ in _arrays(index)):
                raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
            value = from_host(value)
        elif isinstance(value, (list, tuple)):
            raise TypeError(f"float() argument must be a string or a number, not {type(value)}")
        apply(lambda a, i, v: a.__setitem__(i, v), (self, index, value), writes=True)

    def fill(self, value: Any) -> None:
        self[...] = value

    # Operations that need more than the wall

    def copy(self, order: str = "C") -> "ndarray":
        return apply(lambda a: a.copy(order), (self,), keep_order=True, fresh=True)

    def astype(self, dtype: Any, order: str = "K", casting: Any = None, subok: Any = None,
               copy: bool = True) -> "ndarray":  # fmt: skip
        if not copy and self.dtype == dtype and order == "K":
            return self
        _supported(np.dtype(dtype))
        return apply(lambda a: a.astype(dtype, order), (self,), keep_order=True, fresh=True)

    def flatten(self, order: str = "C") -> "ndarray":
        return apply(lambda a: a.flatten(order), (self,))

    def dot(self, b: Any, out: Any = None) -> "ndarray":
        import cupy

        return cupy.dot(self, b, out)


class Flags:
    """Memory order of an array."""

    def __init__(self, array: ndarray) -> None:
        self.c_contiguous = array._host.flags.c_contiguous
        self.f_contiguous = array._host.flags.f_contiguous
        self.owndata = array.base is None
        self.fnc = array._host.flags.fnc
        self.forc = array._host.flags.forc

    def __getitem__(self, name: str) -> bool:
        return bool(getattr(self, name.lower()))


def _method(name: str) -> Callable[..., Any]:
    def method(self: ndarray, *args: Any, **kwargs: Any) -> Any:
        return apply(lambda a, *rest, **options: getattr(a, name)(*rest, **options),
                     (self, *args), kwargs)  # fmt: skip

    method.__name__ = name
    return method


for _name in [
    "all", "any", "argmax", "argmin", "argsort", "clip", "conj", "conjugate", "cumprod", "cumsum",
    "diagonal", "max", "mean", "min", "prod", "ravel", "repeat", "reshape", "round", "squeeze",
    "std", "sum", "swapaxes", "take", "trace", "transpose", "var", "view",
]:  # fmt: skip
    setattr(ndarray, _name, _method(_name))


def _operator(name: str, reflected: bool, inplace: bool) -> Callable[..., Any]:
    def operator(self: ndarray, other: Any) -> Any:
        import cupy

        if not isinstance(other, (ndarray, *SCALARS)):
            if isinstance(other, (np.ndarray, list, tuple)):
                raise TypeError(f"Unsupported type {type(other)}")
            return NotImplemented
        operands = (other, self) if reflected else (self, other)
        return getattr(cupy, name)(*operands, **({"out": self} if inplace else {}))

    return operator


for _symbol, _name in {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "true_divide",
    "floordiv": "floor_divide", "mod": "remainder", "pow": "power", "matmul": "matmul",
    "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor", "lshift": "left_shift",
    "rshift": "right_shift",
}.items():  # fmt: skip
    setattr(ndarray, f"__{_symbol}__", _operator(_name, False, False))
    setattr(ndarray, f"__r{_symbol}__", _operator(_name, True, False))
    if _symbol != "matmul":
        setattr(ndarray, f"__i{_symbol}__", _operator(_name, False, True))
for _symbol, _name in {
    "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal", "eq": "equal",
    "ne": "not_equal",
}.items():  # fmt: skip
    setattr(ndarray, f"__{_symbol}__", _operator(_name, False, False))
for _symbol, _name in {
    "neg": "negative", "pos": "positive", "abs": "absolute", "invert": "invert",
}.items():  # fmt: skip
    setattr(ndarray, f"__{_symbol}__", lambda self, name=_name: _unary(name, self))


def _unary(name: str, x: ndarray) -> ndarray:
    import cupy

    return getattr(cupy, name)(x)


def _supported(dtype: np.dtype) -> np.dtype:
    if dtype.kind not in "biufc" or not dtype.isnative or dtype.itemsize > 16:
        raise ValueError(f"Unsupported dtype {dtype}")
    return dtype


def _arrays(value: Any) -> Iterable[ndarray]:
    if isinstance(value, ndarray):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _arrays(item)


def _index(index: Any) -> Any:
    """An index with its NumPy arrays and lists on the device, as CuPy takes them."""
    if isinstance(index, tuple):
        return tuple(_index(part) for part in index)
    return from_host(np.asarray(index)) if isinstance(index, (np.ndarray, list)) else index


def host(value: Any) -> Any:
    """Arguments of an operation with their arrays as NumPy's; NumPy arrays are refused."""
    if isinstance(value, ndarray):
        if value._memory.device != _state.local.device:
            raise ValueError(
                "Array device must be same as the current device: array device = "
                f"{value._memory.device} while current = {_state.local.device}"
            )
        return value._host
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, (tuple, list)):
        return type(value)(host(item) for item in value)
    return value


def apply(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    *,
    out: ndarray | None = None,
    writes: bool = False,
    keep_order: bool = False,
    fresh: bool = False,
) -> Any:
    """Perform a NumPy operation on the device, or record it where the current stream captures.

    Args:
        out: the array that takes the result.
        writes: the operation changes its first argument and has no result.
        keep_order: the result keeps the memory order that NumPy gives it, else it is in C order.
        fresh: the result is no view, whatever NumPy returns.
    """
    kwargs = kwargs or {}
    out = kwargs.pop("out", out)
    if out is not None and not isinstance(out, ndarray):
        raise TypeError("Output arguments type must be cupy.ndarray")
    operands = [*_arrays(args), *_arrays(list(kwargs.values())), *([] if out is None else [out])]
    memories = [operand._memory for operand in operands]
    host_args = tuple(host(argument) for argument in args)
    options = {name: host(value) for name, value in kwargs.items()}
    if out is not None:
        options["out"] = host(out)

    has_empty = not all(operand.size for operand in operands)

    def compute() -> Any:  # holds no device array: a graph must not keep them alive
        with np.errstate(all="ignore"):
            if not has_empty:
                return function(*host_args, **options)
            with warnings.catch_warnings():  # NumPy's, of empty slices
                warnings.simplefilter("ignore", RuntimeWarning)
                return function(*host_args, **options)

    if out is not None or writes:
        _state.perform(compute, memories)
        return out
    result = compute()
    if not isinstance(result, (np.ndarray, np.generic, tuple, list)):
        return result
    if isinstance(result, (tuple, list)):
        return type(result)(view_or_new(part, *operands) for part in result)
    if not fresh and isinstance(result, np.ndarray):
        for operand in operands:
            if operand._memory.holds(result):
                return view_or_new(result, operand)
    new = like(np.asarray(result), keep_order)
    target = new._host
    _state.perform(lambda: np.copyto(target, compute()), [*memories, new._memory])
    return new


def like(result: np.ndarray, keep_order: bool = False) -> ndarray:
    """A fresh array of that shape and dtype, and with ``keep_order`` of that memory order."""
    if not keep_order:
        return ndarray(result.shape, result.dtype)
    axes = sorted(range(result.ndim), key=lambda axis: -abs(result.strides[axis]))
    new = ndarray(tuple(result.shape[axis] for axis in axes), result.dtype)
    new._host = new._host.transpose(tuple(axes.index(axis) for axis in range(result.ndim)))
    return new


def view_or_new(result: Any, *operands: ndarray) -> ndarray:
    """The device array of a NumPy result: a view where it lies in an operand's memory."""
    result = np.asarray(result)
    for operand in operands:
        if operand._memory.holds(result):
            view = ndarray.__new__(ndarray)
            view._host, view._memory, view.base = result, operand._memory, operand
            return view
    new = like(result)
    new._host[...] = result
    return new


def from_host(x: Any, dtype: Any = None, order: str | None = "K") -> ndarray:
    """A NumPy array or nested numbers, copied to the device."""
    array = np.asarray(x, dtype)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    _supported(array.dtype)
    _state.host_waits()
    new = like(np.array(array, order=order or "K"), keep_order=True)
    new._host[...] = array
    return new


def from_foreign(array: np.ndarray, owner: Any, device: int) -> ndarray:
    """A view of device memory that another library owns."""
    view = ndarray.__new__(ndarray)
    view._host, view._memory = array, _state.Foreign(array, owner, device)
    view.base = None
    return view
