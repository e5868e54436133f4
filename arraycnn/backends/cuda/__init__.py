"""The CUDA backend: CuPy arrays, and kernels of our own where plain CuPy would be slow.

What is not overridden here runs as the base class writes it, through CuPy. A device is CuPy's
business: everything is launched on the current stream of the current device.
"""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from arraycnn.arrays import Array
from arraycnn.backends.backend import Backend
from arraycnn.backends.cuda.convolution import CudaConvolution
from arraycnn.backends.cuda.device import working_cupy
from arraycnn.backends.cuda.elementwise import CudaPointwise, CudaPooling
from arraycnn.backends.cuda.kernels import Kernels
from arraycnn.backends.cuda.launch import STRUCTS
from arraycnn.backends.cuda.training import CudaLosses, CudaUpdates
from arraycnn.errors import BackendUnavailableError, DeviceMemoryError

CUDA, CUDA_MANAGED = 2, 13  # DLPack's device types
TF32_CAPABILITY = 80  # compute capability 8.0

T = TypeVar("T", bound=type)


def guarded(cls: T) -> T:
    """Make every public primitive of a backend explain a wrong device and a lack of memory."""
    for name in dir(cls):
        method = getattr(cls, name)
        if not name.startswith("_") and callable(method) and name not in _UNGUARDED:
            setattr(cls, name, _guarded(name, method))
    return cls


_UNGUARDED = (
    "captured_keys",
    "describe",
    "own_products",
    "owns",
    "select",
    "synchronize",
    "to_numpy",
)


def _guarded(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def guarded_method(self: "CudaBackend", *args: Any, **kwargs: Any) -> Any:
        self._check_current(name)
        try:
            return method(self, *args, **kwargs)
        except MemoryError as error:
            reason = getattr(error, "reason", str(error))
        # Outside of the except clause, whose traceback would keep the arrays of the frames alive.
        self.xp.get_default_memory_pool().free_all_blocks()
        raise DeviceMemoryError(self._lack_of_memory(name, args, reason), reason)

    return guarded_method


@guarded
class CudaBackend(CudaConvolution, CudaPooling, CudaLosses, CudaPointwise, CudaUpdates, Backend):
    """CuPy arrays on one CUDA device.

    Args:
        device: its index.

    Attributes:
        tf32: whether float32 convolutions are computed by tensor cores, which round the factors to
            10 bits of mantissa; False unless assigned.

    Raises:
        BackendUnavailableError: CuPy, a driver or a device is missing.
    """

    def __init__(self, device: int) -> None:
        cupy = working_cupy()
        super().__init__(f"cuda:{device}", cupy, workspace_limit=1 << 30)
        self.device = cupy.cuda.Device(device)
        self.kernels = Kernels(cupy, STRUCTS)
        self.processors = int(self.device.attributes["MultiProcessorCount"])
        self._tf32 = False
        self._own_products = False
        self._keys: dict[tuple[int, int], Array] | None = None

    @property
    def tf32(self) -> bool:
        return self._tf32

    @tf32.setter
    def tf32(self, wanted: bool) -> None:
        capability = str(self.device.compute_capability)
        if wanted and int(capability) < TF32_CAPABILITY:
            raise BackendUnavailableError(
                f"tf32 needs compute capability 8.0, an Ampere GPU or newer, but {self.name} has "
                f"{capability[:-1]}.{capability[-1]}; leave tf32 off"
            )
        self._tf32 = bool(wanted)

    def owns(self, x: Any) -> bool:
        return isinstance(x, self.xp.ndarray) and x.device.id == self.device.id

    def asarray(self, x: Any, dtype: Any = None) -> Array:
        """``x`` as a CuPy array; not copied if it is on this device, whichever library made it.

        Raises:
            ValueError: ``x`` is on another CUDA device.
        """
        if isinstance(x, self.xp.ndarray):
            self._check_device(int(x.device.id))
        elif not isinstance(x, np.ndarray) and hasattr(x, "__dlpack__"):
            kind, device = x.__dlpack_device__()
            if kind in (CUDA, CUDA_MANAGED):
                self._check_device(int(device))
                x = self.xp.from_dlpack(x)
            else:
                x = np.from_dlpack(x)
        return self.xp.asarray(x, dtype)

    def to_numpy(self, x: Array) -> Array:
        return self.xp.asnumpy(x)

    def select(self) -> None:
        """Make this CuPy's current device, on which CuPy allocates and launches."""
        self.device.use()

    def synchronize(self) -> None:
        """Wait for the current stream of this device."""
        with self.device:
            self.xp.cuda.get_current_stream().synchronize()

    def describe(self) -> str:
        runtime = self.xp.cuda.runtime
        name = runtime.getDeviceProperties(self.device.id)["name"].decode()
        version = runtime.runtimeGetVersion()
        capability = str(self.device.compute_capability)
        return (
            f"{self.name}: {name} (compute capability {capability[:-1]}.{capability[-1]}), CuPy "
            f"{self.xp.__version__} with CUDA {version // 1000}.{version % 1000 // 10}"
        )

    def check_labels(self, labels: Array, classes: int, ignore_index: int | None) -> None:
        """As the base class, but for labels that are only known when a captured graph runs."""
        if not self.owns(labels) or not self._is_capturing():
            super().check_labels(labels, classes, ignore_index)

    @contextlib.contextmanager
    def captured_keys(self) -> Iterator[dict[tuple[int, int], Array]]:
        """Within the block dropout reads its keys from device memory, for graphs to change them.

        Yields the arrays of one 64-bit key each, by (seed, counter).
        """
        self._keys = {}
        try:
            yield self._keys
        finally:
            self._keys = None

    def _captured_key(self, seed: int, counter: int) -> Array | None:
        if self._keys is None:
            return None
        if (seed, counter) not in self._keys:
            self._keys[seed, counter] = self.xp.empty(1, np.uint64)
        return self._keys[seed, counter]

    def _check_device(self, index: int) -> None:
        if index != self.device.id:
            raise ValueError(
                f"an array is on cuda:{index}, but this works on {self.name}; move it first: "
                f"`with cupy.cuda.Device({self.device.id}): x = cupy.asarray(x)`"
            )

    def _check_current(self, operation: str) -> None:
        """CuPy allocates and launches on the current device, wherever the arrays are."""
        current = self.xp.cuda.runtime.getDevice()
        if current != self.device.id:
            raise ValueError(
                f"{operation} is to work on {self.name}, but CuPy's current device is "
                f"cuda:{current}; work inside `with cupy.cuda.Device({self.device.id}):`, or call "
                f"get_backend({self.name!r}) first"
            )

    def _lack_of_memory(self, operation: str, args: tuple[Any, ...], reason: str) -> str:
        arrays = [a for a in args if hasattr(a, "shape") and hasattr(a, "dtype")]
        shown = " and ".join(f"{a.dtype} {tuple(a.shape)}" for a in arrays) or f"shape {args[0]}"
        wanted = re.search(r"allocating ([\d,]+) bytes", reason)
        needed = f"{wanted[1]} bytes more" if wanted else "more memory"
        return (
            f"{self.name} has too little memory: {operation} of {shown} needs {needed} ({reason}); "
            f"lower the batch size, or backend.workspace_limit (now {self.workspace_limit:,} "
            "bytes), or raise CUPY_GPU_MEMORY_LIMIT where it is set"
        )
