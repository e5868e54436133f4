"""Time and memory of a training step and of inference: arraycnn beside PyTorch.

    python benchmarks/train_step.py [--rounds 15] [--threads 2] [--only NAME] [--json FILE]

Every engine runs in a process of its own, all of them at hand at once; a round lets each one
take its turn, so that drifts of a noisy machine meet all alike. The ratio of a round is our time by
PyTorch's in the same round; quoted are the median and the quartiles of the rounds. arraycnn is
measured with NumPy alone and, where Numba is installed, with it. PyTorch is measured if it is
installed, in its default and in the channels_last memory format, with --compile also through
torch.compile. Peak memory is what five training steps add
to a process that has run one with a single image.

On a machine that others use too, wall times say little: --processor-time measures one thread's
processor time instead.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

OURS = {"arraycnn": "0", "arraycnn-fast": "1"}  # values of ARRAYCNN_FAST
TORCH: dict[str, dict[str, bool]] = {
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
    parser.add_argument(
        "--processor-time", action="store_true", help="of one thread, instead of wall time"
    )
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()

    from workloads import WORKLOADS

    clock = "perf_counter"
    if arguments.processor_time:
        clock, arguments.threads = "process_time", 1
    threads = str(arguments.threads)
    os.environ.update(OMP_NUM_THREADS=threads, ARRAYCNN_NUM_THREADS=threads)
    engines = ["arraycnn"] + ["arraycnn-fast"] * bool(find_spec("numba"))
    if find_spec("torch"):
        engines += ["torch", "torch-channels-last"] + ["torch-compile"] * arguments.compile
    else:
        print("PyTorch is not installed: only arraycnn is measured", file=sys.stderr)
    results = {"machine": machine(arguments.threads) | {"clock": clock}, "rows": []}
    print(" · ".join(f"{key} {value}" for key, value in results["machine"].items()))
    print("median ms, and of arraycnn the ratio to PyTorch's faster eager mode [quartiles]")
    for index, workload in enumerate(WORKLOADS):
        if arguments.only and arguments.only not in workload.name:
            continue
        for kind in ("train", "infer"):
            if workload.batch == 1 and kind == "train":
                continue
            times = compare(engines, index, kind, arguments.rounds, arguments.threads, clock)
            row = {"workload": workload.name, "kind": kind, **summarise(times)}
            if arguments.memory and kind == "train":
                row["peak_mb"] = {e: peak(e, index, arguments.threads) for e in engines}
            results["rows"].append(row)
            report(row)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(results, file, indent=1)


def compare(
    engines: list[str], index: int, kind: str, rounds: int, threads: int, clock: str
) -> dict[str, list[float]]:
    """Seconds per step of each engine, round by round."""
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for engine in engines:
        pipes[engine], child = context.Pipe()
        context.Process(
            target=serve, args=(child, engine, index, kind, threads, clock), daemon=True
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


def serve(pipe: Any, engine: str, index: int, kind: str, threads: int, clock: str) -> None:
    """Run steps on demand; a turn lasts about a fifth of a second."""
    step = make_step(engine, index, kind, threads)
    now = getattr(time, clock)
    for _ in range(3):
        step()
    start = now()
    step()
    repeats = max(1, int(0.2 / (now() - start)))
    pipe.send("ready")
    while pipe.recv() == "run":
        step()  # caches are cold after the other engines' turns
        start = now()
        for _ in range(repeats):
            step()
        pipe.send((now() - start) / repeats)


def make_step(engine: str, index: int, kind: str, threads: int, batch: int | None = None) -> Any:
    from workloads import WORKLOADS, arraycnn_steps, torch_steps

    workload = WORKLOADS[index]
    if batch is not None:
        workload = replace(workload, batch=batch)
    if engine in OURS:
        os.environ["ARRAYCNN_FAST"] = OURS[engine]
        steps = arraycnn_steps(workload)
    else:
        import torch

        torch.set_num_threads(threads)
        steps = torch_steps(workload, **TORCH[engine])
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
    make_step(engine, index, "train", threads, batch=1)()  # libraries load what they load once
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
    """Median milliseconds of each engine, and our ratios to PyTorch's faster eager mode."""
    medians = {engine: statistics.median(values) for engine, values in times.items()}
    summary: dict[str, Any] = {"ms": {e: round(1e3 * m, 3) for e, m in medians.items()}}
    eager = [e for e in ("torch", "torch-channels-last") if e in times]
    if eager:
        best = min(eager, key=lambda engine: medians[engine])
        summary |= {"best": best, "ratio": {}}
        for ours in (e for e in OURS if e in times):
            ratios = [a / b for a, b in zip(times[ours], times[best], strict=True)]
            low, median, high = (round(q, 3) for q in statistics.quantiles(ratios, n=4))
            summary["ratio"][ours] = {"median": median, "quartiles": [low, high]}
    return summary


def report(row: dict[str, Any]) -> None:
    print(f"{row['workload']} {row['kind']}", end="")
    for engine, ms in row["ms"].items():
        print(f"  {engine} {ms:.2f}", end="")
        if engine in row.get("ratio", {}):
            ratio = row["ratio"][engine]
            print(" = {:.2f} [{:.2f} {:.2f}]".format(ratio["median"], *ratio["quartiles"]), end="")
    if "peak_mb" in row:
        print("   peak MB", *(f"{e} {mb:.0f}" for e, mb in row["peak_mb"].items()), end="")
    print(flush=True)


def cpu_model() -> str:
    """The processor's name and its widest vector instructions (Linux)."""
    with open("/proc/cpuinfo") as file:
        fields = dict(line.split(":", 1) for line in file.read().split("\n\n")[0].split("\n"))
    values = {key.strip(): value.strip() for key, value in fields.items()}
    flags = values.get("flags", "").split()
    vectors = next((name for name in ("avx512f", "avx2", "avx") if name in flags), "no AVX")
    family = f"family {values.get('cpu family')} model {values.get('model')}"
    return f"{values.get('model name', platform.machine())} ({family}, {vectors})"


def machine(threads: int) -> dict[str, Any]:
    """What the figures were measured on."""
    import numpy

    import arraycnn

    found = {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "arraycnn": arraycnn.__version__,
        "backend": arraycnn.get_backend("cpu").describe(),
    }
    if find_spec("torch"):
        import torch

        found["torch"] = torch.__version__
    return found


if __name__ == "__main__":
    main()
