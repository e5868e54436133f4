"""The NumPy backend: the reference in tiles that stay in the processor's cache."""

import platform
from typing import Any

import numpy as np

from arraycnn.backends.base import Backend
from arraycnn.backends.convolution import adjoint_kernels
from arraycnn.geometry import Window
from arraycnn.types import Array

TILE_BYTES = 1 << 20  # a column tile this large is still in the L2 cache when it is multiplied
TILE_LENGTHS = (256, 4096)  # shorter tiles starve the matrix product, longer ones gain nothing


class CpuBackend(Backend):
    """NumPy arrays in host memory."""

    def __init__(self) -> None:
        super().__init__("cpu", np, workspace_limit=64 << 20)

    def owns(self, x: Any) -> bool:
        return isinstance(x, np.ndarray)

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
        blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
        return (
            f"cpu: {platform.processor() or platform.machine()}, NumPy {np.__version__} with "
            f"{blas.get('name', 'unknown BLAS')}"
        )

    def convolution_input_grad(
        self, grad_output: Array, weight: Array, window: Window, groups: int
    ) -> Array:
        direct = window.adjoint()
        # Columns of the wider side cost most: col2im makes them from C, the convolution from O.
        narrow = 2 * weight.shape[1] * groups < weight.shape[0]
        if direct is None or narrow or window.is_pointwise:
            return super().convolution_input_grad(grad_output, weight, window, groups)
        return self.convolution(grad_output, adjoint_kernels(weight, groups), None, direct, groups)

    def _tile_length(self, column_bytes: int) -> int:
        shortest, longest = TILE_LENGTHS
        length = min(longest, max(shortest, TILE_BYTES // column_bytes))
        return min(length, super()._tile_length(column_bytes))
