"""Calls of the CUDA driver."""

from cupy._module import CUDADriverError

__all__ = ["CUDADriverError"]
