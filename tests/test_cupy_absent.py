"""What one is told where CuPy or the device behind it is missing, broken or too small.

The cases are played by modules that behave as CuPy 14 does; where the real CuPy is installed on a
machine without a GPU, it is asked too.
"""

import importlib.metadata
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import emulator
import numpy as np
import pytest

from arraycnn import functional as F
from arraycnn.backends import Backend, get_backend
from arraycnn.backends.cuda import device as cuda_device
from arraycnn.errors import BackendUnavailableError, DeviceMemoryError

ROOT = Path(__file__).parents[1]


class CUDARuntimeError(RuntimeError):
    def __init__(self, status: int, text: str) -> None:
        self.status = status
        super().__init__(text)


NO_DRIVER = CUDARuntimeError(
    35,
    "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version",
)
NO_DEVICE = CUDARuntimeError(100, "cudaErrorNoDevice: no CUDA-capable device is detected")
BROKEN_DRIVER = CUDARuntimeError(999, "cudaErrorUnknown: unknown error")
NO_NVRTC = RuntimeError('Failure finding "libnvrtc.so": No such file: libnvrtc.so*')


def raising(error: Exception) -> Any:
    def function(*args: Any) -> Any:
        raise error

    return function


class Machine:
    """A machine on which CuPy is installed, played by modules."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.runtime = SimpleNamespace(
            getDeviceCount=lambda: 1,
            driverGetVersion=lambda: 13000,
            runtimeGetVersion=lambda: 13020,
        )
        self.nvrtc = ModuleType("cupy_backends.cuda.libs.nvrtc")
        self.nvrtc.getVersion = lambda: (13, 2)
        self.wheels = ["cupy-cuda13x"]
        cupy = ModuleType("cupy")
        cupy.cuda = SimpleNamespace(runtime=self.runtime)
        self.modules: dict[str, ModuleType | None] = {
            "cupy": cupy,
            "cupy_backends.cuda.libs.nvrtc": self.nvrtc,
        }

    def without_cupy(self) -> None:
        self.modules, self.wheels = {"cupy": None}, []  # None makes the import fail

    def with_broken_cupy(self, folder: Path) -> None:
        (folder / "cupy.py").write_text("raise ImportError('libcublas.so.13: cannot open')")
        self.monkeypatch.syspath_prepend(folder)
        self.monkeypatch.delitem(sys.modules, "cupy", raising=False)
        self.modules = {}

    def ask(self) -> Any:
        for name, module in self.modules.items():
            self.monkeypatch.setitem(sys.modules, name, module)
        found = [SimpleNamespace(metadata={"Name": name}) for name in (*self.wheels, "numpy")]
        self.monkeypatch.setattr(cuda_device, "distributions", lambda: found)
        return cuda_device.working_cupy.__wrapped__()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def told(machine: Machine) -> str:
    with pytest.raises(BackendUnavailableError) as caught:
        machine.ask()
    text = str(caught.value)
    assert "cuda" in text
    assert "use backend='cpu'" in text
    assert "\n" not in text
    return text


def test_cupy_with_a_device_is_returned(machine: Machine) -> None:
    assert machine.ask() is machine.modules["cupy"]


def test_without_cupy_one_is_told_what_to_install(machine: Machine) -> None:
    machine.without_cupy()
    text = told(machine)
    assert "not installed" in text
    assert "pip install 'cupy-cuda13x[ctk]'" in text
    assert "pip install 'cupy-cuda12x[ctk]'" in text


def test_two_wheels_are_named_with_the_remedy(machine: Machine) -> None:
    machine.wheels = ["cupy-cuda12x", "CuPy_CUDA13x"]
    text = told(machine)
    assert "pip uninstall cupy-cuda12x cupy-cuda13x" in text
    assert "pip install" in text


def test_a_cupy_that_cannot_be_imported_says_why(machine: Machine, tmp_path: Path) -> None:
    machine.with_broken_cupy(tmp_path)
    assert "libcublas.so.13: cannot open" in told(machine)


def test_without_a_driver(machine: Machine) -> None:
    machine.runtime.getDeviceCount = raising(NO_DRIVER)
    machine.runtime.driverGetVersion = lambda: 0
    assert "no NVIDIA driver" in told(machine)


def test_a_driver_that_is_too_old_is_named(machine: Machine) -> None:
    machine.runtime.getDeviceCount = raising(NO_DRIVER)
    machine.runtime.driverGetVersion = lambda: 12040
    text = told(machine)
    assert "CUDA 12.4" in text
    assert "13.2" in text
    assert "cupy-cuda12x" in text


@pytest.mark.parametrize("count", [raising(NO_DEVICE), lambda: 0])
def test_without_a_device(machine: Machine, count: Any) -> None:
    machine.runtime.getDeviceCount = count
    assert "CUDA_VISIBLE_DEVICES" in told(machine)


def test_another_failure_of_the_driver_is_quoted(machine: Machine) -> None:
    machine.runtime.getDeviceCount = raising(BROKEN_DRIVER)
    assert "cudaErrorUnknown" in told(machine)


def test_without_nvrtc(machine: Machine) -> None:
    machine.nvrtc.getVersion = raising(NO_NVRTC)
    text = told(machine)
    assert "NVRTC" in text
    assert "[ctk]" in text


# ---- No memory ----


@pytest.fixture
def cuda() -> Any:
    if emulator.activate() is None:
        pytest.skip("needs a device or the emulator")
    cuda = get_backend("cuda")
    pool = cuda.xp.get_default_memory_pool()
    limit = pool.get_limit()
    yield cuda
    pool.set_limit(size=limit)


def test_too_little_memory_names_the_bytes_and_what_to_lower(cuda: Backend) -> None:
    x = cuda.asarray(np.ones((8, 4, 32, 32), np.float32))
    weight = cuda.asarray(np.ones((16, 4, 3, 3), np.float32))
    pool = cuda.xp.get_default_memory_pool()
    pool.free_all_blocks()
    before = pool.used_bytes()
    pool.set_limit(size=before + 1024)
    with pytest.raises(DeviceMemoryError) as caught:
        F.conv2d(x, weight)
    text = str(caught.value)
    assert "bytes" in text
    assert "batch size" in text
    assert "workspace_limit" in text
    del caught
    assert pool.used_bytes() == before  # nothing stays behind
    pool.set_limit(size=0)
    assert F.conv2d(x, weight).shape == (8, 16, 30, 30)


def test_arrays_that_do_not_fit_are_refused_too(cuda: Backend) -> None:
    pool = cuda.xp.get_default_memory_pool()
    pool.set_limit(size=pool.used_bytes() + 1024)
    with pytest.raises(DeviceMemoryError, match="bytes"):
        cuda.asarray(np.zeros(1 << 20, np.float32))


# ---- The real CuPy ----

REAL = """
import time
start = time.perf_counter()
import arraycnn as ac
assert ac.available_backends() == ["cpu"]
assert ac.get_backend("auto").name == "cpu"
try:
    ac.get_backend("cuda")
except RuntimeError as error:
    print(error)
print(time.perf_counter() - start)
"""


def wheels() -> list[str]:
    names = {dist.metadata["Name"].lower() for dist in importlib.metadata.distributions()}
    return sorted(name for name in names if name.startswith("cupy"))


@pytest.mark.skipif(
    not wheels() or emulator.device_exists(),
    reason="asks the real CuPy on a machine without a GPU: pip install cupy-cuda13x",
)
def test_the_real_cupy_without_a_gpu_says_what_is_missing() -> None:
    result = subprocess.run(
        [sys.executable, "-c", REAL],
        env=emulator.environment(stand_in=False),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    text, seconds = result.stdout.splitlines()
    assert "backend 'cuda' found no device" in text
    assert "use backend='cpu'" in text
    assert float(seconds) < 10


@pytest.mark.skipif(not wheels(), reason="compares with the real CuPy: pip install cupy-cuda13x")
def test_the_stand_in_offers_what_the_real_cupy_offers() -> None:
    question = (
        "import json; from emulator.record_cupy_api import FILE, api; "
        "recorded = json.loads(FILE.read_text()); found = api(); "
        "print([k for k in found if k != 'cupy' and found[k] != recorded[k]])"
    )
    result = subprocess.run(
        [sys.executable, "-c", question],
        env=emulator.environment(stand_in=False),
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "[]"
