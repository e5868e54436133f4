"""Compiling the kernels for GPUs that are not here: NVRTC through ctypes, without driver or CuPy.

``python tests/nvrtc.py`` (with the package on the path and a wheel ``nvidia-cuda-nvrtc`` installed)
compiles everything and rewrites the budget of registers in ``kernel_budget.json``.
"""

import ctypes
import importlib.util
import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from arraycnn.backends.cuda import kernels

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)  # Turing to Blackwell
BUDGET = Path(__file__).with_name("kernel_budget.json")


class NvrtcError(RuntimeError):
    """NVRTC does not take the text; the message is its log."""


@dataclass(frozen=True)
class Usage:
    """What a thread of a kernel takes: registers, and bytes of stack and of spilled registers."""

    registers: int
    stack: int
    spilled: int
    shared: int


@cache
def library() -> ctypes.CDLL | None:
    """libnvrtc of the wheel ``nvidia-cuda-nvrtc`` or ``nvidia-cuda-nvrtc-cu12``, or None."""
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    found = [
        path
        for folder in folders
        for pattern in ("cu*/lib/libnvrtc.so.*", "cuda_nvrtc/lib/libnvrtc.so.*")
        for path in folder.glob(pattern)
        if ".alt" not in path.name
    ]
    return ctypes.CDLL(str(max(found))) if found else None


def version() -> str:
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(_library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return f"{major.value}.{minor.value}"


def supported() -> list[int]:
    """The architectures that this NVRTC compiles for."""
    nvrtc = _library()
    count = ctypes.c_int()
    _check(nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
    numbers = (ctypes.c_int * count.value)()
    _check(nvrtc.nvrtcGetSupportedArchs(numbers))
    return list(numbers)


def compile_kernels(
    source: str, names: Sequence[str], architecture: int, options: Sequence[str] = ()
) -> dict[str, Usage]:
    """Compile for an architecture (90 is sm_90); what each kernel takes, by name expression."""
    nvrtc = _library()
    program = ctypes.c_void_p()
    _check(
        nvrtc.nvrtcCreateProgram(
            ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None
        )
    )
    try:
        for name in names:
            _check(nvrtc.nvrtcAddNameExpression(program, name.encode()))
        flags = [*options, f"-arch=sm_{architecture}", "--ptxas-options=-v"]
        encoded = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
        status = nvrtc.nvrtcCompileProgram(program, len(flags), encoded)
        log = _log(program)
        if status:
            raise NvrtcError(log)
        lowered = {_lowered(program, name): name for name in names}
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    usages = {lowered[name]: usage for name, usage in _usages(log).items() if name in lowered}
    if missing := set(names) - set(usages):
        raise NvrtcError(f"ptxas says nothing about {sorted(missing)}:\n{log}")
    return usages


def usages(architecture: int) -> dict[str, Usage]:
    """What every instance of every kernel of the package takes."""
    found: dict[str, Usage] = {}
    for file in kernels.SOURCES:
        names = kernels.instantiations()[file]
        found |= compile_kernels(kernels.source(file), names, architecture, kernels.OPTIONS)
    return found


def all_usages() -> dict[int, "Future[dict[str, Usage]]"]:
    """`usages` for every architecture, being worked out by all processors."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return {architecture: pool.submit(usages, architecture) for architecture in ARCHITECTURES}


def _usages(log: str) -> dict[str, Usage]:
    """ptxas's log: for each entry function a line on the stack and one on the registers."""
    found = {}
    entries = re.split(r"Compiling entry function '(\w+)'", log)
    for name, text in zip(entries[1::2], entries[2::2], strict=True):
        stack = re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text
        )
        registers = re.search(r"Used (\d+) registers", text)
        shared = re.search(r"(\d+) bytes smem", text)
        if stack and registers:
            found[name] = Usage(
                int(registers[1]),
                int(stack[1]),
                int(stack[2]) + int(stack[3]),
                int(shared[1]) if shared else 0,
            )
    return found


def _library() -> ctypes.CDLL:
    nvrtc = library()
    if nvrtc is None:
        raise NvrtcError("NVRTC is not installed: pip install nvidia-cuda-nvrtc")
    return nvrtc


def _log(program: ctypes.c_void_p) -> str:
    nvrtc = _library()
    size = ctypes.c_size_t()
    _check(nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
    text = ctypes.create_string_buffer(size.value)
    _check(nvrtc.nvrtcGetProgramLog(program, text))
    return text.value.decode()


def _lowered(program: ctypes.c_void_p, name: str) -> str:
    lowered = ctypes.c_char_p()
    _check(_library().nvrtcGetLoweredName(program, name.encode(), ctypes.byref(lowered)))
    return (lowered.value or b"").decode()


def _check(status: int) -> None:
    if status:
        nvrtc = _library()
        nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise NvrtcError(nvrtc.nvrtcGetErrorString(status).decode())


def rewrite_budget() -> None:
    """The most registers that each instance takes on any architecture, rounded up to the eight
    that a warp is given at a time."""
    most: dict[str, int] = {}
    for future in all_usages().values():
        for name, usage in future.result().items():
            most[name] = max(most.get(name, 0), -(-usage.registers // 8) * 8)
    budget = {"nvrtc": version(), "registers": most}
    BUDGET.write_text(json.dumps(budget, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    rewrite_budget()
