"""The device of the compiled backend: NumPy arrays, and kernels that are loaded when needed."""

import sys
from functools import lru_cache
from typing import Any

import numpy as np

from arraycnn.arrays import Array
from arraycnn.backends.compiled.positions import plane_window
from arraycnn.backends.cpu import tuning
from arraycnn.backends.cpu.device import CpuDevice, cuts
from arraycnn.backends.memory_format import buffer_of
from arraycnn.geometry import Window

FLOAT32 = np.dtype(np.float32)


class CompiledDevice(CpuDevice):
    """`CpuDevice`, with the kernels of `compiled.kernels`."""

    def __init__(self) -> None:
        super().__init__()
        self._kernels: Any = None

    @property
    def kernels(self) -> Any:
        """The module of kernels, None where Numba is installed but does not work."""
        if self._kernels is None:
            try:  # Numba takes a while to import: not before it is needed
                from arraycnn.backends.compiled import kernels
            except ImportError as error:
                print(f"arraycnn: Numba is not used, it says: {error}", file=sys.stderr)
                self._kernels = False
            else:
                self._kernels = kernels
        return self._kernels or None

    def takes(self, *arrays: Array) -> bool:
        """Whether there are kernels for such arrays: float32, not empty, those of channels in
        batch-last memory."""
        for array in arrays:
            if array.dtype != FLOAT32 or not array.size:
                return False
            if array.ndim > 1 and not buffer_of(array).flags.c_contiguous:
                return False
        return self.kernels is not None

    def run(self, primitive: str, first: Array, *arguments: Any) -> None:
        """Run the kernel of a primitive, see `kernels.TABLE`, on several threads."""
        kernel, passes = self._kernels.TABLE[primitive]
        count, seconds = first.shape[0], first.size * passes * tuning.SECONDS_PER_PASS
        compiled = kernel.compiled
        if seconds < tuning.THREAD_SECONDS:
            compiled(first, *arguments, 0, count)
            return
        step = max(1, tuning.COMPILED_ELEMENTS * count // first.size)
        self.workers.run(
            lambda part: compiled(first, *arguments, part.start, part.stop),
            cuts(count, step),
            seconds,
            blas=False,
        )

    def _compiler(self) -> str:
        return super()._compiler() if self.kernels is None else f"Numba {self.kernels.VERSION}"


def planes(buffer: Array, window: Window) -> Array:
    """A buffer as (C, height, width, N); one row for what has one dimension.

    What a pointwise window is slid over counts as one row, too.
    """
    if window.is_pointwise or window.ndim == 1:
        return buffer.reshape(buffer.shape[0], 1, -1, buffer.shape[-1])
    return buffer


@lru_cache(maxsize=512)
def window_numbers(window: Window) -> Array:
    """Kernel, stride, padding before and dilation, each vertically and horizontally."""
    return np.array([number for sizes in plane_window(window) for number in sizes])
