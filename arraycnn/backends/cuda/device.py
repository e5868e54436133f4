"""Finding CuPy and a device that works, or saying exactly what is missing and how to get it."""

import importlib
from functools import cache
from importlib.metadata import distributions
from typing import Any

from arraycnn.errors import BackendUnavailableError

INSTALL = (
    "install CuPy with its CUDA libraries: pip install 'cupy-cuda13x[ctk]' for NVIDIA driver 580 "
    "or newer, pip install 'cupy-cuda12x[ctk]' for 525 or newer"
)
FALLBACK = "; or use backend='cpu'"

NO_DEVICE = 100  # cudaErrorNoDevice
INSUFFICIENT_DRIVER = 35  # cudaErrorInsufficientDriver, also where there is no driver at all


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
