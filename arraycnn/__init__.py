"""Convolutional networks on plain arrays: NumPy on the CPU, CuPy on the GPU."""

from arraycnn import functional
from arraycnn.backends import (
    Backend,
    BackendUnavailableError,
    available_backends,
    backend_of,
    get_backend,
)

__version__ = "0.1.0"

__all__ = [
    "Backend",
    "BackendUnavailableError",
    "available_backends",
    "backend_of",
    "functional",
    "get_backend",
]
