"""The CUDA kernels: their text, their instantiations, and the one place that launches them.

The ``.cu`` files are CUDA C++ that includes nothing but each other. A kernel is a template; the
comment ``// instances:`` above it lists what it is compiled for. A launch takes its scalars' types
from the kernel's own signature, so a Python int cannot arrive as the wrong integer.
"""

import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np

from arraycnn.arrays import Array

SOURCES = (
    "columns.cu",
    "convolution.cu",
    "loss.cu",
    "normalization.cu",
    "pointwise.cu",
    "pooling.cu",
    "updates.cu",
)
OPTIONS = ("--std=c++17",)

MAX_GRID_X = 2**31 - 1
MAX_GRID_YZ = 2**16 - 1


@cache
def source(name: str) -> str:
    """The complete text of a file, what it includes in place; errors name the file and line."""
    text = files(__name__).joinpath(name).read_text(encoding="utf-8")
    lines = [f'#line 1 "{name}"']
    for number, line in enumerate(text.splitlines(), start=1):
        included = re.fullmatch(r'#include "(.*)"', line)
        lines += [source(included[1]), f'#line {number + 1} "{name}"'] if included else [line]
    return "\n".join(lines) + "\n"


@cache
def instantiations() -> dict[str, tuple[str, ...]]:
    """For each file the template instances that it is compiled for, such as ``col2im<float>``."""
    return {
        name: tuple(
            instance
            for line in re.findall(r"// instances: (.*)", source(name))
            for instance in re.findall(r"\w+<[^>]*>", line)
        )
        for name in SOURCES
    }


class Kernels:
    """The kernels, each compiled when it is first needed, for the device that is current then.

    Instances of one file with the same template arguments are compiled together, once per process;
    CuPy keeps the binaries on disk for the next.

    Args:
        cupy: the module. structs: the dtypes of the structs passed by value, by their CUDA names.
    """

    def __init__(self, cupy: Any, structs: dict[str, np.dtype[Any]]) -> None:
        self._cupy = cupy
        self._structs = structs
        self._ready: dict[str, tuple[Any, list[Callable[[Any], Any]]]] = {}

    def launch(self, instance: str, grid: Sequence[int], block: Sequence[int], *args: Any) -> None:
        """Launch on CuPy's current stream; the kernel has ended when the stream says so.

        Args:
            instance: from `instantiations`. grid, block: up to three sizes each.
            args: C-contiguous arrays or None for pointers, Python numbers for scalars, structured
                NumPy arrays of one element for structs.

        Raises:
            ValueError: a size is beyond what CUDA takes.
            TypeError: an argument does not fit the kernel's signature.
        """
        function, converters = self._ready.get(instance) or self._load(instance)
        if 0 in grid:
            return
        limits = (MAX_GRID_X, MAX_GRID_YZ, MAX_GRID_YZ)
        if any(size > limit for size, limit in zip(grid, limits, strict=False)):
            raise ValueError(
                f"the arrays are too large for one launch of {instance}, which would need a grid "
                f"of {tuple(grid)} blocks and gets at most {limits}; use a smaller batch"
            )
        if len(args) != len(converters):
            raise TypeError(f"{instance} takes {len(converters)} arguments, got {len(args)}")
        converted = tuple(convert(arg) for convert, arg in zip(converters, args, strict=True))
        function(tuple(grid), tuple(block), converted)

    def _load(self, instance: str) -> tuple[Any, list[Callable[[Any], Any]]]:
        file = next(name for name, found in instantiations().items() if instance in found)
        arguments = instance.partition("<")[2]
        together = [i for i in instantiations()[file] if i.partition("<")[2] == arguments]
        module = self._cupy.RawModule(
            code=source(file), options=OPTIONS, name_expressions=tuple(together)
        )
        for name in together:
            converters = [self._converter(name, item) for item in _signature(file, name)]
            self._ready[name] = module.get_function(name), converters
        return self._ready[instance]

    def _converter(self, instance: str, parameter: "Parameter") -> Callable[[Any], Any]:
        name, kind, dtype = f"{instance}: {parameter.name}", parameter.type, parameter.dtype
        if parameter.pointer:
            return lambda array: self._checked_array(name, array, dtype)
        if dtype is None:
            return lambda value: _checked_struct(name, value, self._structs[kind])
        scalar = dtype.type
        if dtype.kind == "f":
            return lambda value: scalar(value)
        limits = np.iinfo(dtype)
        return lambda value: _checked_int(name, value, scalar, int(limits.min), int(limits.max))

    def _checked_array(self, name: str, array: Array, dtype: np.dtype[Any] | None) -> Array:
        if array is None:
            return None
        if not isinstance(array, self._cupy.ndarray) or not array.flags.c_contiguous:
            raise TypeError(f"{name} must be a C-contiguous CuPy array, got {type(array)}")
        if dtype is not None and array.dtype != dtype:
            raise TypeError(f"{name} must be {dtype}, got {array.dtype}")
        return array


class Parameter(NamedTuple):
    """A parameter of a kernel: its dtype is None for a struct, or an array of any dtype."""

    name: str
    type: str
    pointer: bool
    dtype: np.dtype[Any] | None


_DTYPES: dict[str, np.dtype[Any]] = {
    "float": np.dtype(np.float32),
    "double": np.dtype(np.float64),
    "Half": np.dtype(np.float16),
    "int": np.dtype(np.int32),
    "Index": np.dtype(np.int64),
    "long long": np.dtype(np.int64),
    "unsigned long long": np.dtype(np.uint64),
}
ELEMENTS = {str(_DTYPES[name]): name for name in ("float", "double", "Half")}


@cache
def _signature(file: str, instance: str) -> list[Parameter]:
    """The parameters of a template instance, read from its text."""
    kernel, _, arguments = instance.rstrip(">").partition("<")
    found = re.search(
        rf"template <([^>]*)>\s*__global__ void (?:__launch_bounds__\(.*\)\s*)?{kernel}\(([^)]*)\)",
        source(file),
    )
    if found is None:
        raise LookupError(f"{file} has no kernel {kernel}")
    names = [str(item).split()[-1] for item in found[1].split(",")]
    types: dict[str, str] = dict(zip(names, arguments.split(","), strict=True))
    return [_parameter(text.strip(), types) for text in found[2].split(",")]


def _parameter(text: str, types: dict[str, str]) -> Parameter:
    declared, _, name = text.replace("const ", "").replace("__restrict__", "").rpartition(" ")
    declared, pointer = declared.strip().rstrip("*").strip(), "*" in declared
    inner = re.fullmatch(r"Acc<(\w+)>", declared)
    actual = types.get(inner[1] if inner else declared, declared)
    if inner and actual == "Half":
        actual = "float"
    return Parameter(name, declared, pointer, _DTYPES.get(actual))


def _checked_int(name: str, value: int, scalar: Any, minimum: int, maximum: int) -> Any:
    if not minimum <= value <= maximum:
        raise ValueError(
            f"{name} must be between {minimum} and {maximum}, got {value}; use a smaller batch"
        )
    return scalar(value)


def _checked_struct(name: str, value: Any, dtype: np.dtype[Any]) -> Any:
    if not isinstance(value, np.ndarray) or value.dtype != dtype or value.shape != (1,):
        raise TypeError(f"{name} must be one struct of dtype {dtype}, got {value!r}")
    return value
