"""Time, memory and results of the same tasks in several engines, each in a process of its own.

A *spec* says what is computed (a network, an operation) and has a ``name``, a ``batch`` and
``tasks``, their names; ``build(engine, spec)`` makes an engine's: functions without arguments. Each
task is measured in processes of its own: what one leaves in memory can make another slower.
"""

import ctypes
import gc
import multiprocessing
import os
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
from engines import EAGER, note, save

Tasks = dict[str, Callable[[], Any]]
Build = Callable[[str, Any], Tasks]
Times = dict[str, list[float]]  # seconds of one call, by engine and round

TURN = 0.1  # seconds that an engine's turn lasts, or one call, if that takes longer
# glibc gives some freed arrays back and not others, as chance has it; a page fault per 4 KiB of the
# next result then doubles the time of an inference in PyTorch, or does not. It can be told to keep.
KEEP_FREED_MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 25),  # the most it accepts
    "MALLOC_ARENA_MAX": "1",  # the others shrink whatever the threshold
}
SPAWN = multiprocessing.get_context("spawn")


def measure(
    build: Build,
    specs: Sequence[Any],
    floors: Callable[[Any], dict[str, float]],
    arguments: Namespace,
    results: dict[str, Any],
) -> None:
    """Measure and print every spec, task by task, into ``results["rows"]``."""
    results["rows"] = []
    for spec in specs:
        least = floors(spec)
        for task in spec.tasks:
            times = compare(build, spec, task, arguments)
            row = {"name": spec.name, "task": task, **figures(times, least[task])}
            if arguments.memory:
                for engine, found in row["engines"].items():
                    found["peak_mb"] = in_process(peak, build, engine, spec, task)
            results["rows"].append(row)
            report(row)
            save(results, arguments.json)


def compare(
    build: Build, spec: Any, task: str, arguments: Namespace, engines: Sequence[str] = ()
) -> Times:
    """Start all engines, then let them take turns, round by round."""
    with patch.dict(os.environ, KEEP_FREED_MEMORY if arguments.keep_freed else {}):
        workers = {
            engine: Worker(build, engine, spec, task, arguments.clock)
            for engine in engines or arguments.engines
        }
    times: Times = {}
    for engine, worker in workers.items():
        try:
            worker.receive()  # it is warm
            times[engine] = []
        except RuntimeError as error:
            note(f"{engine} is left out of {spec.name}, {task}: {error}")
    for _ in range(arguments.rounds):
        for engine, seconds in times.items():
            seconds.append(workers[engine].turn())
    for worker in workers.values():
        worker.stop()
    return times


class Worker:
    """A process that holds one engine's task and runs it on demand."""

    def __init__(self, build: Build, engine: str, spec: Any, task: str, clock: str) -> None:
        self.pipe, child = SPAWN.Pipe()
        arguments = (child, build, engine, spec, task, clock)
        self.process = SPAWN.Process(target=serve, args=arguments, daemon=True)
        self.process.start()
        child.close()  # so that receive() ends when the process does

    def turn(self) -> float:
        self.pipe.send("turn")
        return self.receive()

    def receive(self) -> float:
        """The seconds of one call."""
        try:
            answer = self.pipe.recv()
        except EOFError:
            raise RuntimeError("its process died") from None
        if isinstance(answer, str):
            raise RuntimeError(answer)
        seconds: float = answer
        return seconds

    def stop(self) -> None:
        self.pipe.close()
        self.process.join()


def serve(pipe: Any, build: Build, engine: str, spec: Any, task: str, clock: str) -> None:
    """Send the seconds of one call, once when the task is warm and once for every request."""
    try:
        call = prepare(build, engine, spec)[task]
        for _ in range(3):  # the first may compile
            call()
        while True:
            pipe.send(seconds_of(call, getattr(time, clock)))
            pipe.recv()
    except EOFError:
        return  # nobody asks any more
    except Exception as error:
        pipe.send(describe(error))


def prepare(build: Build, engine: str, spec: Any) -> Tasks:
    os.environ["ARRAYCNN_FAST"] = "1" if engine == "arraycnn-fast" else "0"
    return build(engine, spec)


def describe(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return ": ".join([type(error).__name__, *lines[:1]])


def seconds_of(call: Callable[[], Any], now: Callable[[], float]) -> float:
    """Seconds of a call, over a turn of calls."""
    start = now()
    call()  # caches are cold after the other engines' turns
    repeats = max(1, int(TURN / max(1e-6, now() - start)))
    start = now()
    for _ in range(repeats):
        call()
    return (now() - start) / repeats


def in_process(task: Callable[..., Any], build: Build, engine: str, spec: Any, *rest: Any) -> Any:
    """``task(build, engine, spec, *rest)`` in a fresh process; None, and a note, if it fails."""
    with ProcessPoolExecutor(1, SPAWN) as pool:
        try:
            return pool.submit(task, build, engine, spec, *rest).result()
        except Exception as error:
            note(f"{engine} is left out of {spec.name}: {describe(error)}")
            return None


def peak(build: Build, engine: str, spec: Any, task: str) -> float:
    """MB that data, weights and five calls add at their peak, in a process that is warm.

    Libraries load what they load once in a call with a single image, before that; and what an
    engine compiles for this very size it compiles in one call more, whose own peak does not count.
    """
    prepare(build, engine, replace(spec, batch=1))[task]()
    before = settled()
    call = prepare(build, engine, spec)[task]
    call()
    settled()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew at what is resident now (Linux)
    for _ in range(5):
        call()
    return round((resident("VmHWM") - before) / 1024, 1)


def settled() -> int:
    """What is resident, in kB, once the C library has given back what it can."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
    return resident("VmRSS")


def resident(field: str) -> int:
    """A memory figure of this process in kB (Linux)."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field))


def figures(times: Times, floor: float) -> dict[str, Any]:
    """Median milliseconds of each engine, how many floors that is, and the ratio to PyTorch eager.

    A round's ratio is the engine's time by that of PyTorch's faster eager mode in the same round;
    quoted are quartile, median and quartile.
    """
    medians = {engine: statistics.median(seconds) for engine, seconds in times.items()}
    eager = min((e for e in EAGER if e in times), key=medians.__getitem__, default=None)
    engines: dict[str, dict[str, Any]] = {}
    for engine, median in medians.items():
        engines[engine] = {"ms": round(1e3 * median, 4), "floors": round(median / floor, 3)}
        if eager and engine != eager:
            ratios = [a / b for a, b in zip(times[engine], times[eager], strict=True)]
            quartiles = np.quantile(ratios, (0.25, 0.5, 0.75))
            engines[engine]["ratio"] = [round(float(q), 3) for q in quartiles]
    return {"floor_ms": 1e3 * floor, "eager": eager, "engines": engines}


def report(row: dict[str, Any]) -> None:
    """Print a row: a line for each engine, its ratio to PyTorch eager with the quartiles."""
    measured = any("peak_mb" in found for found in row["engines"].values())
    title = f"{row['name']}, {row['task']}"
    print(f"\n{title:52}ms   ratio [quartiles]  floors" + "   peak MB" * measured)
    for engine, found in row["engines"].items():
        ratio = f"{1:.2f}" + " " * 12 if engine == row["eager"] else ""
        if "ratio" in found:
            ratio = "{1:.2f} [{0:.2f} {2:.2f}]".format(*found["ratio"])
        line = f"  {engine:38}{found['ms']:14.3f}  {ratio:>18}{found['floors']:8.2f}"
        if found.get("peak_mb") is not None:
            line += f"{found['peak_mb']:10.1f}"
        print(line, flush=True)
