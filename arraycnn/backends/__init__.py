"""The backends: owners of the arrays and of every operation on them.

`backend` names the operations. `reference` has each of them in plain ``xp``, `cpu` (NumPy),
`compiled` (NumPy with Numba) and `cuda` (CuPy) what they do faster, all in files of the same names.
"""

import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from arraycnn.backends.backend import Backend
from arraycnn.backends.compiled import CompiledBackend, numba_is_wanted
from arraycnn.backends.cpu import CpuBackend
from arraycnn.errors import BackendUnavailableError, DeviceMemoryError
from arraycnn.registry import BackendLike, available_backends, register
from arraycnn.registry import backend_of as _backend_of
from arraycnn.registry import get_backend as _get_backend

__all__ = [
    "Backend",
    "BackendLike",
    "BackendUnavailableError",
    "DeviceMemoryError",
    "available_backends",
    "backend_of",
    "get_backend",
    "register",
]

# The registry does not know the class; whoever asks here gets the type as well.
backend_of: Callable[..., Backend] = _backend_of
get_backend: Callable[..., Backend] = _get_backend


def _cpu() -> Backend:
    return CompiledBackend() if numba_is_wanted() else CpuBackend()


def _cuda(device: str | None = None) -> Backend:
    from arraycnn.backends.cuda.device import device_index, working_cupy  # CuPy is optional

    return _cuda_device(device_index(device, working_cupy()))


@cache
def _cuda_device(index: int) -> Backend:
    from arraycnn.backends.cuda import CudaBackend

    return CudaBackend(index)


def _cuda_owns(x: Any) -> bool | str:
    cupy = sys.modules.get("cupy")  # whoever has a CuPy array has imported CuPy
    return cupy is not None and isinstance(x, cupy.ndarray) and str(x.device.id)


def _cuda_works() -> bool:
    from arraycnn.backends.cuda.device import working_cupy

    try:
        working_cupy()
    except BackendUnavailableError:
        return False
    return True


register("cuda", _cuda, _cuda_owns, devices=True, available=_cuda_works)
register("cpu", _cpu, lambda x: isinstance(x, np.ndarray))
