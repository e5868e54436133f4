"""The device of the CPU backends: NumPy arrays, recycled memory, threads."""

import platform
from functools import lru_cache
from typing import Any

import numpy as np

from arraycnn.arrays import Array, Shape
from arraycnn.backends.cpu import tuning
from arraycnn.backends.cpu.memory import BlockPool, Scratch
from arraycnn.backends.cpu.threads import Workers, describe_blas
from arraycnn.backends.memory_format import MemoryFormat


class CpuDevice(MemoryFormat):
    """NumPy arrays in host memory.

    Attributes:
        num_threads: threads that an operation may use; by default ``$ARRAYCNN_NUM_THREADS``, else
            the processors of this process. May be assigned; results do not depend on it.
    """

    def __init__(self) -> None:
        super().__init__("cpu", np, workspace_limit=64 << 20)
        self.blocks = BlockPool(tuning.KEPT_BYTES)
        self.scratch = Scratch(self.blocks)
        self.workers = Workers(self.scratch.give_back)

    @property
    def num_threads(self) -> int:
        return self.workers.count

    @num_threads.setter
    def num_threads(self, count: int) -> None:
        self.workers.count = count

    def owns(self, x: Any) -> bool:
        return isinstance(x, np.ndarray)

    def new_buffer(self, shape: Shape, dtype: Any) -> Array:
        return self.blocks.empty(shape, dtype)

    def asarray(self, x: Any, dtype: Any = None) -> Array:
        if not isinstance(x, np.ndarray) and hasattr(x, "__cuda_array_interface__"):
            raise TypeError(
                "backend 'cpu' was given an array on a CUDA device; copy it to the host first, "
                "e.g. with cupy.asnumpy(x)"
            )
        return np.asarray(x, dtype)

    def to_numpy(self, x: Array) -> Array:
        return np.asarray(x)

    def synchronize(self) -> None:
        """Nothing to wait for: NumPy has finished when it returns."""

    def describe(self) -> str:
        threads = f"{self.num_threads} thread{'s' if self.num_threads > 1 else ''}"
        return (
            f"{self.name}: {platform.processor() or platform.machine()}, {threads}, "
            f"NumPy {np.__version__} with {describe_blas()}, {self._compiler()}"
        )

    def _compiler(self) -> str:
        return "no Numba"

    def _strided(self, buffer: Array, shape: Shape, strides: Shape) -> Array:
        return np.ndarray(shape, buffer.dtype, buffer, 0, strides)  # in a tenth of the time


@lru_cache(maxsize=1024)
def cuts(length: int, step: int) -> list[slice]:
    """Slices of ``step`` that cover ``length``."""
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


@lru_cache(maxsize=1024)
def row_cuts(rows: int, size: int) -> list[slice]:
    """Slices of the first dimension of an array of ``size``, about a chunk of elements each."""
    return cuts(rows, max(1, tuning.CHUNK_ELEMENTS * rows // max(1, size)))
