"""CUDA kernels on a CPU: the text of a ``.cu`` file through g++, its kernels run over host memory.

`Module` and `Kernel` are what ``cupy.RawModule`` and its functions are, for arrays in host memory.
What a GPU would take silently and answer with nonsense is refused here: a wrong number of
arguments, a scalar of another size than the parameter, an array of another element size, a block
or grid or shared memory beyond the limits, and what ``cuda_emu.h`` finds at barriers.

Blocks run one after the other, so a race *between* blocks shows only where the order of the blocks
matters; see `Setting.order`.
"""

import atexit
import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
HEADER = HERE / "cuda_emu.h"
MAX_THREADS = 1024  # of a block
MAX_BLOCK = (1024, 1024, 64)
MAX_GRID = (2**31 - 1, 65535, 65535)
SHARED_LIMIT = 48 << 10  # bytes of a block, unless the kernel asks for more
FLAGS = ("-std=c++17", "-fPIC", "-shared", "-w", "-ftrivial-auto-var-init=pattern")
SANITIZE = ("-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")

ORDERS = (0, 1, 5)  # of blocks and threads that tests try: forward, reversed, shuffled

launched: set[str] = set()
"""Names of all kernels that this process has launched."""


_one_at_a_time = threading.Lock()


@atexit.register
def _list_launched() -> None:
    """Write the names of the kernels that were launched to the file EMULATOR_LAUNCHED."""
    if file := os.environ.get("EMULATOR_LAUNCHED"):
        Path(file).write_text("".join(f"{name}\n" for name in sorted(launched)))


class CompileError(RuntimeError):
    """g++ does not take the text; the message is its log."""


class LaunchError(RuntimeError):
    """A launch that is wrong, or one that a GPU would leave undefined."""


@dataclass(frozen=True)
class Setting:
    """How kernels are compiled and run.

    Attributes:
        order: of blocks and threads: 0 forward, 1 reversed, anything larger seeds a shuffle.
        optimize: g++'s level.
        sanitize: compile with the address and undefined-behaviour sanitizers; the process must
            have been started with libasan preloaded (see `sanitizer_environment`).
        ucontext: switch threads with ``swapcontext``, as on processors other than x86-64.
    """

    order: int = 0
    optimize: str = "-O1"
    sanitize: bool = False
    ucontext: bool = False

    @property
    def flags(self) -> tuple[str, ...]:
        extra = SANITIZE if self.sanitize else ()
        return (*FLAGS, self.optimize, *extra, *(("-DEMU_UCONTEXT",) if self.ucontext else ()))


setting = Setting(
    order=int(os.environ.get("EMULATOR_ORDER", "0")),
    sanitize=os.environ.get("EMULATOR_SANITIZE") == "1",
)
"""The setting in force: what environment variables ask for, or `configure` later."""


def configure(**changes: Any) -> Setting:
    """Change the setting for launches to come; returns the previous one's replacement."""
    global setting
    setting = replace(setting, **changes)
    return setting


def compiler() -> str | None:
    """The C++ compiler to use, None where there is none."""
    return shutil.which(os.environ.get("CXX", "g++"))


def sanitizer_environment() -> dict[str, str] | None:
    """What a process that runs sanitized kernels needs in its environment, None without libasan."""
    found = subprocess.run(
        [compiler() or "g++", "-print-file-name=libasan.so"], capture_output=True, text=True
    ).stdout.strip()
    if not Path(found).is_absolute():
        return None
    return {
        "EMULATOR_SANITIZE": "1",
        "LD_PRELOAD": found,
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def on_cpu(source: str) -> str:
    """Kernel text with what C++ has no macro for rewritten; lines keep their numbers."""
    source = re.sub(
        r"extern\s+__shared__\s+(?:__align__\(\w+\)\s+)?([\w:\s]+?)\s+(\w+)\s*\[\s*\]\s*;",
        r"\1* \2 = reinterpret_cast<\1*>(emu::now.dynamic);",
        source,
    )
    source = re.sub(
        r"(?:static\s+)?__shared__\s+(?:(?:__align__|alignas)\(\w+\)\s+)?"
        r"([\w:<>,\s]+?)\s+(\w+)\s*((?:\[[^\]]*\]\s*)*);",
        r"using emu_shared_\2 = \1\3; "
        r"emu_shared_\2& \2 = emu::shared<emu_shared_\2, __LINE__>();",
        source,
    )
    code = re.sub(r"//[^\n]*|/\*.*?\*/", "", source, flags=re.DOTALL)
    if "__shared__" in code:
        line = next(line for line in code.splitlines() if "__shared__" in line)
        raise CompileError(
            "the emulator takes one __shared__ variable per statement, without initialiser, got: "
            + line.strip()
        )
    return source


class Module:
    """A ``.cu`` text and the kernels in it that are to be compiled.

    Args:
        source: CUDA C++.
        names: name expressions such as ``"im2col<float, 2>"``; None takes the
            ``extern "C" __global__`` functions.
        file: what compiler messages call the text.
        defines: preprocessor options such as ``"-DTILE=16"``.
    """

    def __init__(
        self,
        source: str,
        names: Sequence[str] | None = None,
        *,
        file: str = "kernels.cu",
        defines: Sequence[str] = (),
    ) -> None:
        self.source = source
        self.file = file
        self.defines = tuple(defines)
        found = r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)'
        self.names = tuple(re.findall(found, source) if names is None else names)
        self._libraries: dict[tuple[str, ...], ctypes.CDLL] = {}

    def text(self) -> str:
        """The C++ text: shim, kernels, and for each kernel its launcher and parameters."""
        parts = ['#include "cuda_emu.h"', f'#line 1 "{self.file}"', on_cpu(self.source)]
        for i, name in enumerate(self.names):
            parts.append(
                f'#line 1 "launcher of {name}"\n'
                f'extern "C" const char* launch_{i}(const unsigned* grid, const unsigned* block,'
                " size_t dynamic, size_t limit, unsigned order, void** arguments) {"
                f" return emu::launch(&{name}, grid, block, dynamic, limit, order, arguments); }}\n"
                f'extern "C" const char* parameters_{i}() {{ return emu::parameters(&{name}); }}'
            )
        return "\n".join(parts)

    def compile(self) -> Path:
        """Compile for the setting in force, unless the same text has been; the library's path."""
        text, flags = self.text(), (*setting.flags, *self.defines)
        key = hashlib.sha256("\0".join((text, compiler() or "", *flags)).encode())
        key.update(HEADER.read_bytes())
        folder = cache_folder()
        library = folder / f"{key.hexdigest()[:32]}.so"
        if not library.exists():
            with tempfile.TemporaryDirectory(dir=folder) as build:
                code, result = Path(build, "module.cpp"), Path(build, "module.so")
                code.write_text(text)
                run = subprocess.run(
                    [compiler() or "g++", *flags, f"-I{HERE}", str(code), "-o", str(result)],
                    capture_output=True,
                    text=True,
                    env={k: v for k, v in os.environ.items() if k != "LD_PRELOAD"},
                )
                if run.returncode:
                    raise CompileError(run.stderr)
                result.replace(library)
        return library

    def library(self) -> ctypes.CDLL:
        flags = setting.flags
        if flags not in self._libraries:
            self._libraries[flags] = ctypes.CDLL(str(self.compile()))
        return self._libraries[flags]

    def kernel(self, name: str) -> "Kernel":
        if name not in self.names:
            raise KeyError(name)
        return Kernel(self, name)


def cache_folder() -> Path:
    """Where compiled libraries are kept: ``EMULATOR_CACHE``, else in the temporary directory."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    default = Path(tempfile.gettempdir(), f"arraycnn-emulator-{user}")
    folder = Path(os.environ.get("EMULATOR_CACHE", default))
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


class Kernel:
    """One compiled kernel; call it with ``(grid, block, arguments)``."""

    def __init__(self, module: Module, name: str) -> None:
        self.module = module
        self.name = name
        self.shared_limit = SHARED_LIMIT
        self._index = module.names.index(name)

    @property
    def parameters(self) -> list[tuple[str, int]]:
        """Kind ("p" pointer, "f", "i", "s" structure) and bytes (of the element for a pointer)."""
        function = getattr(self.module.library(), f"parameters_{self._index}")
        function.restype = ctypes.c_char_p
        return [(word[0], int(word[1:])) for word in function().decode().split()]

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        arguments: Sequence[Any],
        *,
        shared_mem: int = 0,
    ) -> None:
        """Run the kernel to its end.

        ``arguments`` are NumPy arrays for pointers and None for a null pointer; NumPy scalars; and
        Python numbers, which count as bool, int64 and float64 as in CuPy.

        Raises:
            LaunchError: an argument or the launch is wrong, or the kernel fails at a barrier.
        """
        sizes = tuple((*map(int, part), 1, 1)[:3] for part in (grid, block))
        self._check_launch(*sizes, shared_mem)
        values = self._values(arguments)
        pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
        launch = getattr(self.module.library(), f"launch_{self._index}")
        launch.restype = ctypes.c_char_p
        launch.argtypes = [
            *([ctypes.c_uint * 3] * 2), ctypes.c_size_t, ctypes.c_size_t, ctypes.c_uint,
            ctypes.c_void_p,
        ]  # fmt: skip
        grid_array, block_array = ((ctypes.c_uint * 3)(*size) for size in sizes)
        launched.add(self.name)
        with _one_at_a_time:
            error = launch(
                grid_array, block_array, shared_mem, self.shared_limit, setting.order, pointers
            )
        if error:
            raise LaunchError(f"{self.name}: {error.decode()}")

    def _check_launch(self, grid: tuple[int, ...], block: tuple[int, ...], shared_mem: int) -> None:
        threads = block[0] * block[1] * block[2]
        if threads > MAX_THREADS or any(n > most for n, most in zip(block, MAX_BLOCK, strict=True)):
            raise LaunchError(f"{self.name}: CUDA_ERROR_INVALID_VALUE: block {block}")
        if any(n > most for n, most in zip(grid, MAX_GRID, strict=True)):
            raise LaunchError(f"{self.name}: CUDA_ERROR_INVALID_VALUE: grid {grid}")
        if shared_mem > self.shared_limit:
            raise LaunchError(
                f"{self.name}: CUDA_ERROR_INVALID_VALUE: {shared_mem} bytes of shared memory, "
                f"the limit is {self.shared_limit}"
            )

    def _values(self, arguments: Sequence[Any]) -> list[np.ndarray]:
        """The arguments as arrays whose first bytes are what the kernel's parameters hold."""
        parameters = self.parameters
        if len(arguments) != len(parameters):
            raise LaunchError(
                f"{self.name}: {len(arguments)} arguments for {len(parameters)} parameters"
            )
        values = []
        for i, (argument, (kind, size)) in enumerate(zip(arguments, parameters, strict=True)):
            value, given = _value(argument)
            if given[0] != kind or (size not in (0, given[1]) and argument is not None):
                raise LaunchError(
                    f"{self.name}: argument {i} is {_described(*given)}, "
                    f"the parameter {_described(kind, size)}"
                )
            values.append(value)
        return values


def _value(argument: Any) -> tuple[np.ndarray, tuple[str, int]]:
    if argument is None:
        return np.zeros(1, np.uintp), ("p", 0)
    if isinstance(argument, np.ndarray):
        return np.array([argument.ctypes.data], np.uintp), ("p", argument.itemsize)
    if isinstance(argument, (bool, int, float, complex)) and not isinstance(argument, np.generic):
        kinds = {bool: np.bool_, int: np.int64, float: np.float64, complex: np.complex128}
        argument = kinds[type(argument)](argument)
    if not isinstance(argument, np.generic):
        raise LaunchError(f"Unsupported type {type(argument)}")
    kind = {"b": "i", "i": "i", "u": "i", "f": "f"}.get(argument.dtype.kind, "s")
    if argument.dtype == np.float16:  # halves are structures
        kind = "s"
    return np.array([argument]), (kind, argument.dtype.itemsize)


def _described(kind: str, size: int) -> str:
    name = {"p": "a pointer", "f": "a float", "i": "an integer", "s": "a structure"}[kind]
    if kind == "p":
        return f"{name} to elements of {size} bytes" if size else f"{name} to bytes"
    return f"{name} of {size} bytes"
