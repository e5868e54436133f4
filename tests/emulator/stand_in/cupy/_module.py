"""``cupy.RawModule``: our kernels' text through ``launcher``."""

from typing import Any

import numpy as np
from emulator import launcher

from cupy import _state
from cupy._array import host, ndarray


class CUDADriverError(RuntimeError):
    """What CuPy raises where a call of the CUDA driver fails."""


class CompileException(Exception):
    """What CuPy raises where NVRTC does not take the text."""


class RawModule:
    """Kernels of a CUDA text, compiled when the first one is asked for."""

    def __init__(self, code: str | None = None, *, options: tuple[str, ...] = (),
                 backend: str = "nvrtc", name_expressions: Any = None) -> None:  # fmt: skip
        if not isinstance(options, tuple):
            raise TypeError(f"Argument 'options' has incorrect type (got {type(options).__name__})")
        defines = [option for option in options if option.startswith("-D")]
        self._module = launcher.Module(code or "", name_expressions, defines=defines)

    def compile(self, log_stream: Any = None) -> None:
        try:
            self._module.compile()
        except launcher.CompileError as error:
            raise CompileException(str(error)) from error

    def get_function(self, name: str) -> "RawKernel":
        self.compile()
        try:
            return RawKernel(self._module.kernel(name))
        except KeyError:
            raise CUDADriverError("CUDA_ERROR_NOT_FOUND: named symbol not found") from None


def _by_value(x: np.ndarray) -> np.generic:
    """CuPy passes a NumPy array of size one by value: that is how a structure gets to a kernel."""
    if x.size != 1:
        raise TypeError(
            f"You are trying to pass a numpy.ndarray of shape {x.shape} as a kernel parameter. "
            "Only numpy.ndarrays of size one can be passed by value. If you meant to pass a "
            "pointer to __global__ memory, you need to pass a cupy.ndarray instead."
        )
    return x.copy().reshape(-1)[0]


class RawKernel:
    """One kernel; arguments are arrays, None, NumPy scalars, and structures by value."""

    def __init__(self, kernel: launcher.Kernel) -> None:
        self._kernel = kernel
        self.name = kernel.name

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        return self._kernel.shared_limit

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size: int) -> None:
        self._kernel.shared_limit = size

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], args: Any, *,
                 shared_mem: int = 0, stream: Any = None) -> None:  # fmt: skip
        if not isinstance(grid, tuple) or not isinstance(block, tuple):
            raise TypeError("grid and block must be tuples")
        values = [_by_value(a) if isinstance(a, np.ndarray) else host(a) for a in args]
        memories = [argument._memory for argument in args if isinstance(argument, ndarray)]
        grid = tuple(max(1, size) for size in grid)  # what CuPy makes of an empty grid

        _state.perform(lambda: self._kernel(grid, block, values, shared_mem=shared_mem), memories)
