"""Finding the backend: by name, or from the arrays."""

import sys
from functools import cache
from typing import Any, TypeAlias

from arraycnn.backends.backend import Backend
from arraycnn.backends.compiled import CompiledCpuBackend, numba_is_wanted
from arraycnn.backends.cpu import CpuBackend
from arraycnn.errors import BackendUnavailableError, DeviceMemoryError

BackendLike: TypeAlias = str | Backend

__all__ = [
    "Backend",
    "BackendLike",
    "BackendUnavailableError",
    "DeviceMemoryError",
    "available_backends",
    "backend_of",
    "get_backend",
]


@cache
def _cpu() -> CpuBackend:
    return CompiledCpuBackend() if numba_is_wanted() else CpuBackend()


@cache
def _cuda(device: int) -> Backend:
    from arraycnn.backends.cuda import CudaBackend  # CuPy is optional, and slow to import

    return CudaBackend(device)


def available_backends() -> list[str]:
    """Names of the backends that can run here, the preferred one first."""
    from arraycnn.backends.cuda.device import working_cupy

    try:
        working_cupy()
    except BackendUnavailableError:
        return ["cpu"]
    return ["cuda", "cpu"]


def get_backend(name: BackendLike = "auto") -> Backend:
    """The backend of that name, always the same object; a backend is returned as it is.

    Args:
        name: ``"cpu"`` (NumPy), ``"cuda"`` (CuPy's current device), ``"cuda:<index>"`` (that
            device, which becomes CuPy's current one) or ``"auto"`` (the first of
            `available_backends`).

    Raises:
        BackendUnavailableError: the backend exists but cannot run here; says what to install.
        ValueError: there is no backend or device of that name. TypeError: not a name.
    """
    if isinstance(name, Backend):
        return name
    if not isinstance(name, str):
        raise TypeError(f"backend must be a name such as 'cpu' or a Backend, got {name!r}")
    if name == "auto":
        name = available_backends()[0]
    if name == "cpu":
        return _cpu()
    if name.split(":")[0] != "cuda":
        raise ValueError(f"backend must be 'cpu', 'cuda', 'cuda:<device>' or 'auto', got {name!r}")
    from arraycnn.backends.cuda.device import device_index, working_cupy

    cupy = working_cupy()
    index = device_index(name, cupy)
    cupy.cuda.Device(index).use()
    return _cuda(index)


def backend_of(*arrays: Any) -> Backend:
    """The one backend that all ``arrays`` belong to.

    Raises:
        TypeError: one is no array of any backend. ValueError: they belong to different ones.
    """
    if not arrays:
        raise TypeError("backend_of needs at least one array")
    backend = _owner(arrays[0])
    for array in arrays[1:]:
        other = _owner(array)
        if other is not backend:
            raise ValueError(
                f"arrays are on different backends, {backend.name} and {other.name}; move them to "
                f"one, e.g. with get_backend({other.name!r}).asarray(x), or to_numpy to come back"
            )
    return backend


def _owner(array: Any) -> Backend:
    if _cpu().owns(array):
        return _cpu()
    cupy = sys.modules.get("cupy")  # whoever has a CuPy array has imported CuPy
    if cupy is not None and isinstance(array, cupy.ndarray):
        return _cuda(int(array.device.id))
    raise TypeError(
        f"expected a NumPy or CuPy array, got {type(array).__module__}."
        f"{type(array).__qualname__}; convert it first, e.g. with numpy.asarray(x)"
    )
