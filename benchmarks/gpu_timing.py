"""Time on a device, between events, and the device's own ceilings."""

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

Work = Callable[[], Any]


def cupy_milliseconds(backend: Any, work: Work, rounds: int) -> float:
    """Median time of ``work`` between events on CuPy's current stream, after three warm-ups."""
    cuda = backend.xp.cuda
    for _ in range(3):
        work()
    times = []
    for _ in range(rounds):
        start, stop = cuda.Event(), cuda.Event()
        start.record()
        work()
        stop.record()
        stop.synchronize()
        times.append(cuda.get_elapsed_time(start, stop))
    return statistics.median(times)


def torch_milliseconds(torch: Any, work: Work, rounds: int) -> float:
    """The same for PyTorch."""
    for _ in range(3):
        work()
    times = []
    for _ in range(rounds):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return statistics.median(times)


def ceilings(backend: Any, quick: bool) -> dict[str, float]:
    """Bytes per second of a large copy and operations per second of a large float32 product."""
    xp, rounds = backend.xp, 3 if quick else 20
    count, size = (1 << 16, 64) if quick else (1 << 28, 8192)
    source, target = xp.ones(count, xp.float32), xp.empty(count, xp.float32)
    copy = cupy_milliseconds(backend, lambda: xp.copyto(target, source), rounds)
    # Random numbers: a product of constants draws less power, and can run faster.
    a = backend.asarray(np.random.default_rng(0).standard_normal((size, size), np.float32))
    product = cupy_milliseconds(backend, lambda: xp.matmul(a, a), rounds)
    return {
        "bytes per second": 8 * count / (copy / 1e3),
        "operations per second": 2 * size**3 / (product / 1e3),
    }
