"""Calls of the CUDA runtime."""

from typing import Any

from cupy import _state
from cupy._state import CUDARuntimeError

__all__ = ["CUDARuntimeError", "getDevice", "getDeviceCount", "getDeviceProperties", "memGetInfo"]

streamCaptureModeGlobal = 0
streamCaptureModeThreadLocal = 1
streamCaptureModeRelaxed = 2


def getDeviceCount() -> int:
    if _state.device_count() <= 0:
        raise CUDARuntimeError(100)
    return _state.device_count()


def getDevice() -> int:
    return _state.local.device


def setDevice(device: int) -> None:
    from cupy.cuda import Device

    Device(device).use()


def getDeviceProperties(device: int) -> dict[str, Any]:
    if not 0 <= device < _state.device_count():
        raise CUDARuntimeError(101)
    return {
        "name": b"emulator on the CPU",
        "major": 9,
        "minor": 0,
        "totalGlobalMem": _state.DEVICE_MEMORY,
        "multiProcessorCount": 4,
        "maxThreadsPerBlock": 1024,
        "sharedMemPerBlock": 48 << 10,
        "sharedMemPerBlockOptin": 227 << 10,
    }


def driverGetVersion() -> int:
    return 13000


def runtimeGetVersion() -> int:
    return 13000


def memGetInfo() -> tuple[int, int]:
    return _state.DEVICE_MEMORY - _state.default_pool.total_bytes(), _state.DEVICE_MEMORY


def deviceSynchronize() -> None:
    _state.host_waits()
