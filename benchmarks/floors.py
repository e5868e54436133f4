"""The least time that a computation takes on this machine, by its multiply-adds and its bytes.

Both ceilings are measured: multiply-adds in a second by a product of 1024×1024 float32 matrices,
bytes in a second by a copy of 128 MB; each in NumPy and, where it is installed, in PyTorch, and the
fastest turn counts. What takes less than one floor is faster than a matrix product of as many
multiply-adds.
"""

import math
from argparse import Namespace
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from measure import Tasks, compare

SIZE, COUNT = 1024, 1 << 25


@dataclass(frozen=True)
class Ceilings:
    """What the machine does at best in a second."""

    multiply_adds: float
    bytes: float

    def floor(self, multiply_adds: float, elements: float) -> float:
        """Seconds at least, if so many float32 numbers are read or written."""
        return max(multiply_adds / self.multiply_adds, 4 * elements / self.bytes)


@dataclass(frozen=True)
class Limits:
    name = "the machine's limits"


def ceilings(arguments: Namespace, results: dict[str, Any]) -> Ceilings:
    """Measure, print and note them in ``results``."""
    engines = ["arraycnn"] + ["torch"] * bool(find_spec("torch"))
    rates = {"GFLOP/s": ("product", 2e-9 * SIZE**3), "GB/s": ("copy", 8e-9 * COUNT)}
    for unit, (task, work) in rates.items():
        results[unit] = {
            "NumPy" if engine == "arraycnn" else engine: round(work / min(seconds), 1)
            for engine, seconds in compare(limit_tasks, Limits(), task, arguments, engines).items()
        }
        print(task, *(f"{rate} {unit} ({name})" for name, rate in results[unit].items()), sep="  ")
    return Ceilings(0.5e9 * max(results["GFLOP/s"].values()), 1e9 * max(results["GB/s"].values()))


def limit_tasks(engine: str, limits: Limits) -> Tasks:
    if engine == "torch":
        import torch

        a, source, target = torch.rand(SIZE, SIZE), torch.rand(COUNT), torch.rand(COUNT)
        return {"product": lambda: a @ a, "copy": lambda: target.copy_(source)}
    rng = np.random.default_rng(0)
    b, numbers = rng.random((SIZE, SIZE), np.float32), rng.random(COUNT, np.float32)
    copy = numbers.copy()
    return {"product": lambda: b @ b, "copy": lambda: np.copyto(copy, numbers)}


def taps_inside(window: Any) -> int:
    """Pairs of an output position and a tap that lies on the input, not on the padding."""
    return math.prod(
        sum(
            0 <= position * stride - before + tap * dilation < size
            for position in range(positions)
            for tap in range(taps)
        )
        for size, taps, stride, (before, _), dilation, positions in zip(
            window.input_size,
            window.kernel_size,
            window.stride,
            window.padding,
            window.dilation,
            window.output_size,
            strict=True,
        )
    )
