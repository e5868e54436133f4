"""A CUDA device: finding one that works, or saying what is missing; its arrays and its memory."""

import functools
import importlib
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib.metadata import distributions
from typing import Any

import numpy as np

from arraycnn.arrays import Array
from arraycnn.backends.memory_format import MemoryFormat
from arraycnn.errors import BackendUnavailableError, DeviceMemoryError

INSTALL = (
    "install CuPy with its CUDA libraries: pip install 'cupy-cuda13x[ctk]' for NVIDIA driver 580 "
    "or newer, pip install 'cupy-cuda12x[ctk]' for 525 or newer"
)
FALLBACK = "; or use backend='cpu'"

NO_DEVICE = 100  # cudaErrorNoDevice
INSUFFICIENT_DRIVER = 35  # cudaErrorInsufficientDriver, also where there is no driver at all
CUDA, CUDA_MANAGED = 2, 13  # DLPack's device types


@cache
def working_cupy() -> Any:
    """The CuPy module, after checking that its kernels can be compiled and run here.

    Raises:
        BackendUnavailableError: CuPy is not installed, installed twice, or broken; there is no
            driver, one that is too old, or no device; NVRTC is missing.
    """
    wheels = sorted(
        {
            name.lower().replace("_", "-")
            for name in (found.metadata["Name"] or "" for found in distributions())
            if name.lower().startswith("cupy")
        }
        - {"cupy-xarray"}
    )
    if len(wheels) > 1:
        raise BackendUnavailableError(
            f"backend 'cuda' needs one CuPy, but {' and '.join(wheels)} are installed over each "
            f"other: pip uninstall {' '.join(wheels)}, then {INSTALL}{FALLBACK}"
        )
    try:
        cupy = importlib.import_module("cupy")
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            raise _broken(error) from error
        raise BackendUnavailableError(
            f"backend 'cuda' needs CuPy, which is not installed; {INSTALL}{FALLBACK}"
        ) from None
    except ImportError as error:
        raise _broken(error) from error
    _check_devices(cupy)
    _check_compiler()
    return cupy


def _broken(error: ImportError) -> BackendUnavailableError:
    return BackendUnavailableError(
        f"backend 'cuda': CuPy is installed but cannot be imported ({error}); {INSTALL}{FALLBACK}"
    )


def _check_devices(cupy: Any) -> None:
    runtime = cupy.cuda.runtime
    status, reason = NO_DEVICE, "no CUDA-capable device is detected"
    try:
        if runtime.getDeviceCount():
            return
    except RuntimeError as error:
        status, reason = int(getattr(error, "status", -1)), str(error)
    if status == INSUFFICIENT_DRIVER:
        driver = _driver_version(runtime)
        if not driver:
            remedy = "there is no NVIDIA driver; install one, or run on a machine with a GPU"
        else:
            remedy = (
                f"the driver supports CUDA {_version(driver)} and this CuPy needs "
                f"{_version(runtime.runtimeGetVersion())}; update the driver, or {INSTALL}"
            )
    elif status == NO_DEVICE:
        remedy = (
            "the driver shows no GPU; check nvidia-smi, CUDA_VISIBLE_DEVICES, and that a container "
            "was started with its GPUs"
        )
    else:
        remedy = "check nvidia-smi; after a driver update restart the machine"
    raise BackendUnavailableError(f"backend 'cuda' found no device ({reason}): {remedy}{FALLBACK}")


def _check_compiler() -> None:
    """NVRTC compiles the kernels; CuPy looks for it only when the first one is needed."""
    try:
        importlib.import_module("cupy_backends.cuda.libs.nvrtc").getVersion()
    except (ImportError, RuntimeError) as error:
        first_line = str(error).strip().splitlines()[:1]
        raise BackendUnavailableError(
            f"backend 'cuda' cannot load NVRTC, the compiler of its kernels "
            f"({''.join(first_line) or type(error).__name__}): {INSTALL}{FALLBACK}"
        ) from error


def _driver_version(runtime: Any) -> int:
    try:
        return int(runtime.driverGetVersion())
    except RuntimeError:
        return 0


def _version(number: int) -> str:
    """CUDA's 12040 as 12.4."""
    return f"{number // 1000}.{number % 1000 // 10}"


def device_index(device: str | None, cupy: Any) -> int:
    """The device that ``"cuda"`` (None: CuPy's current one) or ``"cuda:<device>"`` names.

    Raises:
        ValueError: not a number, or there is no such device.
    """
    if device is None:
        return int(cupy.cuda.Device().id)
    if not device.isdecimal():
        raise ValueError(
            f"backend must be 'cpu', 'cuda', or 'cuda:<device>' with a number, got 'cuda:{device}'"
        )
    count = cupy.cuda.runtime.getDeviceCount()
    if int(device) >= count:
        raise ValueError(
            f"backend 'cuda:{device}' does not exist: this machine has {count} CUDA "
            f"device{'s' if count > 1 else ''}, 'cuda:0' to 'cuda:{count - 1}'"
        )
    return int(device)


class CudaDevice(MemoryFormat):
    """CuPy arrays on the device of an index."""

    def __init__(self, device: int) -> None:
        cupy = working_cupy()
        super().__init__(f"cuda:{device}", cupy, workspace_limit=1 << 30)
        self.device = cupy.cuda.Device(device)

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
        """What to say where memory is short; reads shapes only, no array."""
        shapes = dict.fromkeys(f"{a.dtype} {tuple(a.shape)}" for a in _arrays_in(args))
        of = f" of {' and '.join(shapes)}" if shapes else ""
        wanted = re.search(r"allocating ([\d,]+) bytes", reason)
        needed = f"{wanted[1]} bytes more" if wanted else "more memory"
        return (
            f"{self.name} has too little memory: {operation}{of} needs {needed} ({reason}); lower "
            f"the batch size, or backend.workspace_limit (now {self.workspace_limit:,} bytes), or "
            "raise CUPY_GPU_MEMORY_LIMIT where it is set"
        )


def guard(cls: type[CudaDevice], names: Iterable[str]) -> None:
    """Make these methods explain a wrong current device and a lack of memory.

    Plain CuPy allocates in the middle of expressions, so this is done where an operation begins.
    """
    for name in names:
        setattr(cls, name, _guarded(name, getattr(cls, name)))


def _guarded(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def guarded(self: CudaDevice, *args: Any, **kwargs: Any) -> Any:
        self._check_current(name)
        try:
            return method(self, *args, **kwargs)
        except MemoryError as error:
            reason = getattr(error, "reason", str(error))
        # Outside of the except clause, whose traceback would keep the arrays of the frames alive.
        self.xp.get_default_memory_pool().free_all_blocks()
        given = (*args, *kwargs.values())
        raise DeviceMemoryError(self._lack_of_memory(name, given, reason), reason)

    return guarded


def _arrays_in(arguments: Iterable[Any]) -> Iterator[Any]:
    """The arrays among arguments, and in their lists."""
    for argument in arguments:
        if hasattr(argument, "shape") and hasattr(argument, "dtype"):
            yield argument
        elif isinstance(argument, list | tuple):
            yield from _arrays_in(argument)
