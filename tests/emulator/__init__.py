"""Testing the CUDA backend without a GPU.

- ``launcher`` compiles the text of our kernels with g++, behind ``cuda_emu.h``, and runs it.
- ``stand_in/cupy`` is a strict stand-in for CuPy over NumPy that launches kernels through it.

What passes here is right but for the speed, races between blocks that happen to come out right in
every order tried, and the behaviour of the real CuPy and of the device itself.
"""

import importlib.util
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

from emulator import launcher

HERE = Path(__file__).parent
STAND_IN = HERE / "stand_in"


@cache
def device_exists() -> bool:
    """Whether the real CuPy is installed and finds a device; asked in a process of its own, so
    that a CuPy without a device is not imported into this one."""
    if importlib.util.find_spec("cupy") is None:
        return False
    question = "import cupy; raise SystemExit(not cupy.cuda.runtime.getDeviceCount())"
    return subprocess.run([sys.executable, "-c", question], capture_output=True).returncode == 0


def activate() -> str | None:
    """Make ``import cupy`` work for tests: what CUDA tests run on, None where they cannot."""
    if str(STAND_IN) not in sys.path:
        if device_exists():
            return "CuPy on a device"
        if launcher.compiler() is None:
            return None
        sys.path.insert(0, str(STAND_IN))
    return f"emulator, kernels compiled by {launcher.compiler()}"


def environment(*, stand_in: bool = True) -> dict[str, str]:
    """The environment for a Python process that is to find arraycnn and the stand-in as well."""
    paths = [str(STAND_IN)] if stand_in else []
    paths += [str(HERE.parent), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
