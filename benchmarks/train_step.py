"""Time and memory of a training step and of inference: arraycnn beside PyTorch.

    python benchmarks/train_step.py [--rounds 15] [--threads 2] [--only NAME] [--json FILE]

Every engine runs in a process of its own, all of them at hand at once; a round lets each one
take its turn, so that drifts of a noisy machine meet all alike. The ratio of a round is our time by
PyTorch's in the same round; quoted are the median and the quartiles of the rounds. PyTorch is
measured if it is installed, in its default and in the channels_last memory format, with --compile
also through torch.compile. Peak memory is what a fresh process gains by five training steps.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from importlib.util import find_spec
from typing import Any

ENGINES = {
    "arraycnn": {},
    "torch": {},
    "torch-channels-last": {"channels_last": True},
    "torch-compile": {"compiled": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", help="a part of the workload's name")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too")
    parser.add_argument("--memory", action="store_true", help="measure peak memory too")
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()

    from workloads import WORKLOADS

    os.environ.update(OMP_NUM_THREADS=str(arguments.threads))
    engines = ["arraycnn"]
    if find_spec("torch"):
        engines += ["torch", "torch-channels-last"] + ["torch-compile"] * arguments.compile
    else:
        print("PyTorch is not installed: only arraycnn is measured", file=sys.stderr)
    results = {"machine": machine(arguments.threads), "rows": []}
    print(" · ".join(f"{key} {value}" for key, value in results["machine"].items()))
    print("median ms of arraycnn | ratio to the faster torch mode [quartiles] | torch ms")
    for index, workload in enumerate(WORKLOADS):
        if arguments.only and arguments.only not in workload.name:
            continue
        for kind in ("train", "infer"):
            if workload.batch == 1 and kind == "train":
                continue
            times = compare(engines, index, kind, arguments.rounds, arguments.threads)
            row = {"workload": workload.name, "kind": kind, **summarise(times)}
            if arguments.memory and kind == "train":
                row["peak_mb"] = {e: peak(e, index, arguments.threads) for e in engines}
            results["rows"].append(row)
            report(row)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(results, file, indent=1)


def compare(
    engines: list[str], index: int, kind: str, rounds: int, threads: int
) -> dict[str, list[float]]:
    """Seconds per step of each engine, round by round."""
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for engine in engines:
        pipes[engine], child = context.Pipe()
        context.Process(
            target=serve, args=(child, engine, index, kind, threads), daemon=True
        ).start()
    for pipe in pipes.values():
        pipe.recv()  # warmed up
    times: dict[str, list[float]] = {engine: [] for engine in engines}
    for _ in range(rounds):
        for engine, pipe in pipes.items():
            pipe.send("run")
            times[engine].append(pipe.recv())
    for pipe in pipes.values():
        pipe.send("stop")
    return times


def serve(pipe: Any, engine: str, index: int, kind: str, threads: int) -> None:
    """Run steps on demand; a turn lasts about a fifth of a second."""
    step = make_step(engine, index, kind, threads)
    for _ in range(3):
        step()
    start = time.perf_counter()
    step()
    repeats = max(1, int(0.2 / (time.perf_counter() - start)))
    pipe.send("ready")
    while pipe.recv() == "run":
        step()  # caches are cold after the other engines' turns
        start = time.perf_counter()
        for _ in range(repeats):
            step()
        pipe.send((time.perf_counter() - start) / repeats)


def make_step(engine: str, index: int, kind: str, threads: int) -> Any:
    from workloads import WORKLOADS, arraycnn_steps, torch_steps

    if engine == "arraycnn":
        steps = arraycnn_steps(WORKLOADS[index])
    else:
        import torch

        torch.set_num_threads(threads)
        steps = torch_steps(WORKLOADS[index], **ENGINES[engine])
    return steps[kind == "infer"]


def peak(engine: str, index: int, threads: int) -> float:
    """MB by which five training steps raise the peak of a fresh process."""
    context = multiprocessing.get_context("spawn")
    pipe, child = context.Pipe()
    process = context.Process(target=measure_peak, args=(child, engine, index, threads))
    process.start()
    growth: float = pipe.recv()
    process.join()
    return growth


def measure_peak(pipe: Any, engine: str, index: int, threads: int) -> None:
    step = make_step(engine, index, "train", threads)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew at what is resident now (Linux)
    before = resident("VmRSS")
    for _ in range(5):
        step()
    pipe.send((resident("VmHWM") - before) / 1024)


def resident(field: str) -> int:
    """A memory figure of this process in kB (Linux)."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field))


def summarise(times: dict[str, list[float]]) -> dict[str, Any]:
    """Median milliseconds of each engine, and our ratio to PyTorch's faster mode."""
    medians = {engine: statistics.median(values) for engine, values in times.items()}
    summary: dict[str, Any] = {"ms": {e: round(1e3 * m, 3) for e, m in medians.items()}}
    eager = {e: m for e, m in medians.items() if e in ("torch", "torch-channels-last")}
    if eager:
        best = min(eager, key=lambda engine: eager[engine])
        ratios = [a / b for a, b in zip(times["arraycnn"], times[best], strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4)
        summary |= {"best": best, "ratio": round(median, 3), "quartiles": [low, high]}
    return summary


def report(row: dict[str, Any]) -> None:
    ours = f"{row['workload']:>18} {row['kind']:<6} {row['ms']['arraycnn']:9.2f}"
    if "ratio" in row:
        low, high = row["quartiles"]
        ours += f"   {row['ratio']:5.2f} [{low:.2f} {high:.2f}]   "
        ours += "  ".join(f"{e} {ms:.2f}" for e, ms in row["ms"].items() if e != "arraycnn")
    if "peak_mb" in row:
        ours += "   peak MB " + "  ".join(f"{e} {mb:.0f}" for e, mb in row["peak_mb"].items())
    print(ours, flush=True)


def machine(threads: int) -> dict[str, Any]:
    """What the figures were measured on."""
    import numpy

    import arraycnn

    found = {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "arraycnn": arraycnn.__version__,
    }
    if find_spec("torch"):
        import torch

        found["torch"] = torch.__version__
    return found


if __name__ == "__main__":
    main()
