"""Time and memory of single operations and their gradients: arraycnn beside other frameworks.

    python benchmarks/conv_ops.py [--engines all] [--dezero FOLDER] [--memory] [--json FILE]
    python benchmarks/conv_ops.py --growth

Engines, rounds, ratios, memory and options are those of `train_step.py`; the results that --check
compares come from the same numbers. The floor of an operation (see `floors.py`) is the larger of
two times: of its multiply-adds in a matrix product, those on padding left out, and of its operands
and its result in a copy.

--growth shows how cost grows with batch, channels, image size and kernel size: the slope of the
logarithm of time over that of work, in multiply-adds. A slope below 1 says that larger operations
are done at a higher rate. Neither memory nor floors are measured there.
"""

import math
import statistics
import sys
from argparse import Namespace
from dataclasses import asdict
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
from agreement import check
from engines import PEERS, TORCH, chosen, command_line, machine, parse, save
from floors import Ceilings, ceilings
from measure import Tasks, compare, measure
from operations import Operation, arraycnn_tasks, torch_tasks

OPERATIONS = [
    Operation("conv", 1, 6, 5, 28, 64),
    Operation("conv", 6, 16, 5, 14, 64),
    Operation("conv", 32, 64, 5, 14, 128),
    Operation("conv", 16, 16, 3, 32, 128),
    Operation("conv", 64, 64, 3, 56, 16),
    Operation("conv", 256, 256, 3, 14, 16),
    Operation("conv", 64, 256, 1, 56, 8),
    Operation("max_pool", 16, 16, 2, 32, 128),
    Operation("batch_norm", 16, 16, 1, 32, 128),
    Operation("relu", 16, 16, 1, 32, 128),
    Operation("dense", 400, 120, 1, 1, 64),
]
GROWTH = {
    "batch": [Operation("conv", 32, 32, 3, 16, n) for n in (16, 32, 64, 128, 256)],
    "channels": [Operation("conv", c, c, 3, 16, 64) for c in (8, 16, 32, 64, 128)],
    "image size": [Operation("conv", 32, 32, 3, s, 32) for s in (8, 16, 32, 64)],
    "kernel size": [Operation("conv", 16, 16, k, 32, 32) for k in (3, 5, 7, 9, 11)],
}


def main() -> None:
    parser = command_line(__doc__, rounds=9)
    parser.add_argument("--growth", action="store_true", help="measure how cost grows instead")
    arguments = parse(parser)
    operations = chosen(parser, OPERATIONS, arguments.only)
    if arguments.check:
        sys.exit(not check(tasks, operations, arguments.engines, to_nchw))
    results: dict[str, Any] = {"machine": machine(arguments)}
    if arguments.growth:
        measure_growth(arguments, results)
    else:
        limits = ceilings(arguments, results)
        measure(tasks, operations, partial(floors, limits=limits), arguments, results)


def tasks(engine: str, operation: Operation) -> Tasks:
    if engine in TORCH:
        return torch_tasks(operation, **TORCH[engine])
    if engine in PEERS:
        return import_module(PEERS[engine]).tasks(operation)
    return arraycnn_tasks(operation)


def to_nchw(engine: str, task: str, array: np.ndarray) -> np.ndarray:
    """A task's result as arraycnn and PyTorch have it."""
    if engine != "jax" or array.ndim != 4:
        return array
    return array.transpose(3, 2, 0, 1) if task == "weight grad" else array.transpose(0, 3, 1, 2)


def floors(operation: Operation, limits: Ceilings) -> dict[str, float]:
    """Seconds that each direction takes at least: all the same."""
    floor = limits.floor(operation.multiply_adds, operation.elements)
    return dict.fromkeys(operation.tasks, floor)


def measure_growth(arguments: Namespace, results: dict[str, Any]) -> None:
    """Slopes of log time over log work, of every engine and direction."""
    results["growth"] = {}
    print("\ntime ∝ work^p, as a convolution grows")
    for name, operations in GROWTH.items():
        ms: dict[str, dict[str, list[float]]] = {}  # by engine and direction, as it grows
        for operation in operations:
            for direction in operation.tasks:
                for engine, seconds in compare(tasks, operation, direction, arguments).items():
                    median = round(1e3 * statistics.median(seconds), 4)
                    ms.setdefault(engine, {}).setdefault(direction, []).append(median)
        work = [operation.multiply_adds for operation in operations]
        slopes = {
            engine: {direction: slope(work, series) for direction, series in by_direction.items()}
            for engine, by_direction in ms.items()
        }
        results["growth"][name] = {
            "operations": [asdict(operation) for operation in operations],
            "multiply_adds": work,
            "ms": ms,
            "slopes": slopes,
        }
        print(f"with {name}:")
        for engine, by_direction in slopes.items():
            line = "".join(f"  {direction} {p:.2f}" for direction, p in by_direction.items())
            print(f"  {engine:20}{line}", flush=True)
        save(results, arguments.json)


def slope(work: list[int], times: list[float]) -> float:
    logarithms = [[math.log(value) for value in values] for values in (work, times)]
    return round(statistics.linear_regression(*logarithms).slope, 3)


if __name__ == "__main__":
    main()
