"""Finding the backend: by name, or from the arrays."""

from functools import cache
from typing import Any, TypeAlias

from arraycnn.backends.base import Backend
from arraycnn.backends.cpu import CpuBackend
from arraycnn.errors import BackendUnavailableError

BackendLike: TypeAlias = str | Backend

__all__ = [
    "Backend",
    "BackendLike",
    "BackendUnavailableError",
    "available_backends",
    "backend_of",
    "get_backend",
]


@cache
def _cpu() -> CpuBackend:
    return CpuBackend()


def available_backends() -> list[str]:
    """Names of the backends that can run here, the preferred one first."""
    return ["cpu"]


def get_backend(name: BackendLike = "auto") -> Backend:
    """The backend of that name, always the same object; a backend is returned as it is.

    Args:
        name: ``"cpu"`` (NumPy) or ``"auto"`` (the first of `available_backends`).

    Raises:
        BackendUnavailableError: the backend exists but cannot run here.
        ValueError: there is no backend of that name. TypeError: not a name.
    """
    if isinstance(name, Backend):
        return name
    if not isinstance(name, str):
        raise TypeError(f"backend must be a name such as 'cpu' or a Backend, got {name!r}")
    if name in ("cpu", "auto"):
        return _cpu()
    if name.split(":")[0] == "cuda":
        raise BackendUnavailableError(
            f"backend {name!r} is not part of this version of arraycnn; use 'cpu' or 'auto'"
        )
    raise ValueError(f"backend must be 'cpu', 'cuda', 'cuda:<device>' or 'auto', got {name!r}")


def backend_of(*arrays: Any) -> Backend:
    """The one backend that all ``arrays`` belong to.

    Raises:
        TypeError: one is no array of any backend. ValueError: they belong to different ones.
    """
    if not arrays:
        raise TypeError("backend_of needs at least one array")
    for array in arrays:
        if not _cpu().owns(array):
            raise TypeError(
                f"expected a NumPy or CuPy array, got {type(array).__module__}."
                f"{type(array).__qualname__}; convert it first, e.g. with numpy.asarray(x)"
            )
    return _cpu()
