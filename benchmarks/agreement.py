"""Whether the engines compute the same."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from measure import Build, in_process, prepare

TOLERANCE = 1e-3  # of a difference, relative to the largest value

Convert = Callable[[str, str, np.ndarray], np.ndarray]


def as_returned(engine: str, task: str, array: np.ndarray) -> np.ndarray:
    return array


def check(
    build: Build,
    specs: Sequence[Any],
    engines: Sequence[str],
    convert: Convert = as_returned,
) -> bool:
    """Print by how much each engine's results differ from arraycnn's reference; whether all agree.

    Every task is called twice in turn, so that what the first calls leave behind counts too:
    trained weights and running averages. ``convert`` brings an engine's array to NCHW.
    """
    agree = True
    for spec in specs:
        print(f"\n{spec.name}: largest difference, relative to the largest value", flush=True)
        expected = in_process(results_of, build, "arraycnn", spec, convert)
        if expected is None:
            agree = False
            continue
        for engine in engines:
            found = in_process(results_of, build, engine, spec, convert) or {}
            differences = {
                task: max(map(difference, found[task], expected[task]))
                for task in expected
                if task in found
            }
            agree &= all(value < TOLERANCE for value in differences.values())
            line = "".join(f"  {task} {value:.0e}" for task, value in differences.items())
            print(f"  {engine:20}{line or '  nothing'}", flush=True)
    return agree


def results_of(
    build: Build, engine: str, spec: Any, convert: Convert
) -> dict[str, list[np.ndarray]]:
    """What each task returns, as arrays, in the first and in the second call."""
    tasks = prepare(build, engine, spec)
    results: dict[str, list[np.ndarray]] = {task: [] for task in tasks}
    for _ in range(2):
        for task, call in tasks.items():
            returned = call()
            several = returned if isinstance(returned, tuple) else (returned,)
            results[task] += [convert(engine, task, np.array(one)) for one in several]
    return results


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    if found.shape != expected.shape:
        return float("inf")
    return float(abs(found - expected).max() / abs(expected).max())
