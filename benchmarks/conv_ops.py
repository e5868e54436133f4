"""Time of single operations: arraycnn beside PyTorch, and both beside what the machine can do.

    python benchmarks/conv_ops.py [--rounds 9] [--threads 1] [--wall] [--growth] [--json FILE]

Every operation is measured forward and for each of its gradients, the engines taking turns in one
process; quoted are median microseconds and the ratio to PyTorch's faster memory format with its
quartiles. JAX is measured if it is installed, forward only. The floor is the larger of two times:
multiply-adds by NumPy's matrix product, measured just before on 1024×1024 float32, and bytes of
operands and result by a measured copy; a floor below 1 means that the operation is faster than a
matrix product of as many multiply-adds, as NumPy computes it. The clock is the processor time of
this process, which other work on the machine disturbs less; --wall takes the clock on the wall.
--growth shows how cost grows: the exponent of time in batch, channels, image and kernel size.
"""

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

Task = Callable[[], Any]

# (operation, in channels, out channels, kernel, image, batch)
SHAPES = [
    ("conv", 1, 6, 5, 28, 64),
    ("conv", 6, 16, 5, 14, 64),
    ("conv", 32, 64, 5, 14, 128),
    ("conv", 16, 16, 3, 32, 128),
    ("conv", 64, 64, 3, 56, 16),
    ("conv", 256, 256, 3, 14, 16),
    ("conv", 64, 256, 1, 56, 8),
    ("max_pool", 16, 16, 2, 32, 128),
    ("batch_norm", 16, 16, 1, 32, 128),
    ("relu", 16, 16, 1, 32, 128),
    ("dense", 400, 120, 1, 1, 64),
]
GROWTH = {
    "batch": [("conv", 32, 32, 3, 16, n) for n in (16, 32, 64, 128, 256)],
    "channels": [("conv", c, c, 3, 16, 64) for c in (8, 16, 32, 64, 128)],
    "image size": [("conv", 32, 32, 3, s, 32) for s in (8, 16, 32, 64)],
    "kernel size": [("conv", 16, 16, k, 32, 32) for k in (3, 5, 7, 9, 11)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--wall", action="store_true", help="wall time, not processor time")
    parser.add_argument("--growth", action="store_true", help="exponents of growth only")
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    threads = str(arguments.threads)
    os.environ.update(OMP_NUM_THREADS=threads, ARRAYCNN_NUM_THREADS=threads)

    from train_step import machine

    clock = time.perf_counter if arguments.wall else time.process_time
    results: dict[str, Any] = {"machine": machine(arguments.threads) | {"clock": clock.__name__}}
    print(" · ".join(f"{key} {value}" for key, value in results["machine"].items()))
    if arguments.growth:
        results["growth"] = growth(arguments.rounds, clock)
    else:
        results |= measure_all(arguments.rounds, clock, arguments.threads)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(results, file, indent=1)


def measure_all(rounds: int, clock: Callable[[], float], threads: int) -> dict[str, Any]:
    flops, bandwidth = limits(clock)
    print(f"matrix product {2e-9 * flops:.0f} GFLOP/s, copy {1e-9 * bandwidth:.1f} GB/s")
    rows = []
    for shape in SHAPES:
        engines = {"arraycnn": ours(shape)}
        if find_spec("torch"):
            engines["torch"] = torchs(shape, threads, channels_last=False)
            engines["torch-channels-last"] = torchs(shape, threads, channels_last=True)
        if find_spec("jax") and shape[0] == "conv":
            engines["jax"] = jaxs(shape)
        floors = floor(shape, flops, bandwidth)
        for direction in engines["arraycnn"]:
            tasks = {e: t[direction] for e, t in engines.items() if direction in t}
            row = compare(tasks, rounds, clock)
            row |= {"shape": shape, "direction": direction, "floors": row["us"]["arraycnn"] / (
                1e6 * floors)}  # fmt: skip
            rows.append(row)
            report(row)
    return {"gflops": 2e-9 * flops, "gb_per_second": 1e-9 * bandwidth, "rows": rows}


def ours(shape: tuple[Any, ...]) -> dict[str, Task]:
    """The operation's directions on batch-last arrays."""
    import numpy as np

    from arraycnn import get_backend
    from arraycnn.geometry import conv_window, pool_window

    operation, c, o, k, s, n = shape
    backend = get_backend("cpu")
    rng = np.random.default_rng(0)

    def images(channels: int, size: int) -> Any:
        x = backend.empty((n, channels, size, size), np.float32)
        x[...] = rng.standard_normal(x.shape, dtype=np.float32)
        return x

    x = images(c, s)
    if operation == "conv":
        window = conv_window((s, s), k, padding=k // 2)
        delta, weight = images(o, s), rng.standard_normal((o, c, k, k), dtype=np.float32)
        return {
            "forward": lambda: backend.convolution(x, weight, None, window, 1),
            "input grad": lambda: backend.convolution_input_grad(delta, weight, window, 1),
            "weight grad": lambda: backend.convolution_weight_grad(
                x, delta, weight.shape, window, 1
            ),
        }
    if operation == "max_pool":
        window = pool_window((s, s), k)
        y = backend.max_pool(x, window)
        return {
            "forward": lambda: backend.max_pool(x, window),
            "input grad": lambda: backend.max_pool_grad(x, y, y, window),
        }
    if operation == "batch_norm":
        scale = np.ones(c, np.float32)

        def normalise() -> Any:
            mean, var = backend.channel_moments(x)
            inverse_std = 1 / np.sqrt(var + 1e-5)
            return backend.scale_shift(x, inverse_std, -mean * inverse_std)

        return {
            "forward": normalise,
            "all grads": lambda: backend.batch_norm_grad(x, scale, scale, scale, x),
        }
    if operation == "relu":
        return {"forward": lambda: backend.relu(x), "input grad": lambda: backend.relu_grad(x, x)}
    v, weight = images(c, 1).reshape(n, c), rng.standard_normal((o, c), dtype=np.float32)
    delta = images(o, 1).reshape(n, o)
    return {
        "forward": lambda: backend.dense(v, weight, None),
        "input grad": lambda: backend.dense_input_grad(delta, weight),
        "weight grad": lambda: backend.dense_weight_grad(v, delta),
    }


def torchs(shape: tuple[Any, ...], threads: int, *, channels_last: bool) -> dict[str, Task]:
    """The same in PyTorch, the gradients as its autograd calls them."""
    import torch
    from torch.nn import functional as F

    torch.set_num_threads(threads)
    operation, c, o, k, s, n = shape
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def images(channels: int, size: int) -> Any:
        return torch.randn(n, channels, size, size).contiguous(memory_format=layout)

    def gradient(output: Any, *inputs: Any) -> Task:
        delta = torch.ones_like(output)
        return lambda: torch.autograd.grad(output, inputs, delta, retain_graph=True)

    x = images(c, s)
    if operation == "conv":
        delta = images(o, s)
        weight = torch.randn(o, c, k, k).contiguous(memory_format=layout)
        fixed = (None, [1, 1], [k // 2] * 2, [1, 1], False, [0, 0], 1)
        back = torch.ops.aten.convolution_backward
        return {
            "forward": lambda: F.conv2d(x, weight, padding=k // 2),
            "input grad": lambda: back(delta, x, weight, *fixed, (True, False, False)),
            "weight grad": lambda: back(delta, x, weight, *fixed, (False, True, False)),
        }
    tracked = x.clone(memory_format=torch.preserve_format).requires_grad_()
    if operation == "max_pool":
        return {
            "forward": lambda: F.max_pool2d(x, k),
            "input grad": gradient(F.max_pool2d(tracked, k), tracked),
        }
    if operation == "batch_norm":
        ones, zeros = torch.ones(c, requires_grad=True), torch.zeros(c, requires_grad=True)
        normalised = F.batch_norm(tracked, None, None, ones, zeros, training=True)
        return {
            "forward": lambda: F.batch_norm(x, None, None, training=True),
            "all grads": gradient(normalised, tracked, ones, zeros),
        }
    if operation == "relu":
        return {"forward": lambda: F.relu(x), "input grad": gradient(F.relu(tracked), tracked)}
    v, weight, delta = torch.randn(n, c), torch.randn(o, c), torch.randn(n, o)
    return {
        "forward": lambda: F.linear(v, weight),
        "input grad": lambda: delta @ weight,
        "weight grad": lambda: delta.T @ v,
    }


def jaxs(shape: tuple[Any, ...]) -> dict[str, Task]:
    import jax
    import numpy as np

    _, c, o, k, s, n = shape
    x, weight = np.ones((n, c, s, s), np.float32), np.ones((o, c, k, k), np.float32)
    x, weight = jax.device_put(x), jax.device_put(weight)
    convolve = jax.jit(lambda x, w: jax.lax.conv(x, w, (1, 1), "SAME"))
    return {"forward": lambda: convolve(x, weight).block_until_ready()}


def limits(clock: Callable[[], float]) -> tuple[float, float]:
    """Multiply-adds per second of a matrix product, and bytes per second of a copy."""
    import numpy as np

    a = np.ones((1024, 1024), np.float32)
    large = np.ones(1 << 25, np.float32)
    target = large.copy()
    product = duration(lambda: a @ a, clock, 0.2)
    return 1024**3 / product, 2 * large.nbytes / duration(lambda: np.copyto(target, large), clock)


def floor(shape: tuple[Any, ...], flops: float, bandwidth: float) -> float:
    """Seconds that the operation takes at least on a machine of these limits."""
    operation, c, o, k, s, n = shape
    size = s // k if operation == "max_pool" else s
    moved = 4 * n * (c * s * s + o * size * size)
    if operation not in ("conv", "dense"):
        return moved / bandwidth
    outside = sum(abs(t - k // 2) for t in range(k))  # taps of a row that see padding, ×2 sides
    products = o * c * n * (k * s - outside) ** 2
    return max(products / flops, (moved + 4 * o * c * k * k) / bandwidth)


def duration(task: Task, clock: Callable[[], float], seconds: float = 0.03) -> float:
    """Seconds of one call, over as many as fill ``seconds``."""
    start = clock()
    task()
    repeats = max(1, int(seconds / max(1e-6, clock() - start)))
    start = clock()
    for _ in range(repeats):
        task()
    return (clock() - start) / repeats


def compare(tasks: dict[str, Task], rounds: int, clock: Callable[[], float]) -> dict[str, Any]:
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for task in tasks.values():
        task()
    for _ in range(rounds):
        for name, task in tasks.items():
            times[name].append(duration(task, clock))
    medians = {name: statistics.median(values) for name, values in times.items()}
    row: dict[str, Any] = {"us": {name: round(1e6 * m, 1) for name, m in medians.items()}}
    eager = [name for name in medians if name.startswith("torch")]
    if eager:
        best = min(eager, key=lambda name: medians[name])
        ratios = [a / b for a, b in zip(times["arraycnn"], times[best], strict=True)]
        row["ratio"] = [round(q, 3) for q in statistics.quantiles(ratios, n=4)]
    return row


def report(row: dict[str, Any]) -> None:
    operation, c, o, k, s, n = row["shape"]
    name = f"{operation} {c}→{o} {k}×{k}, {s}×{s}, N={n}, {row['direction']}"
    print(f"{name:48}", *(f"{engine} {us:.0f}" for engine, us in row["us"].items()), end="")
    if "ratio" in row:
        low, median, high = row["ratio"]
        print(f" · ratio {median:.2f} [{low:.2f} {high:.2f}]", end="")
    print(f" · {row['floors']:.2f} floors", flush=True)


def growth(rounds: int, clock: Callable[[], float]) -> dict[str, dict[str, float]]:
    """Slopes of log time over log size."""
    exponents: dict[str, dict[str, float]] = {}
    positions = {"batch": 5, "channels": 1, "image size": 4, "kernel size": 3}
    for name, shapes in GROWTH.items():
        sizes = [math.log(shape[positions[name]]) for shape in shapes]
        tasks = [ours(shape) for shape in shapes]
        exponents[name] = {}
        for direction in tasks[0]:
            times = [
                math.log(statistics.median(duration(task[direction], clock) for _ in range(rounds)))
                for task in tasks
            ]
            exponents[name][direction] = round(statistics.linear_regression(sizes, times).slope, 2)
        print(f"time ∝ ({name})^p:", exponents[name], flush=True)
    return exponents


if __name__ == "__main__":
    main()
