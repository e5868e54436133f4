"""Speed of saving and loading 100 MB of weights, beside safetensors, np.savez and plain h5py.

    python benchmarks/checkpoint_speed.py

Everything is measured in one run, in turns, with a warm cache; the median and the fastest of
``--rounds`` are shown in milliseconds, and the median relative to safetensors. "Into the model"
starts with a file and ends with the values in the parameters of an existing network; "to arrays"
with new arrays. Ours verifies a digest on the way, the others do not. Needs the package
safetensors.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import safetensors.numpy

import arraycnn as ac

LAYERS = 42  # of 256·256·3·3 float32 weights each: 99.2 MB


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def write_hdf5(path: Path, arrays: dict[str, Any]) -> None:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array


def read_hdf5(path: Path) -> dict[str, Any]:
    with h5py.File(path) as file:
        return {name: file[name][...] for name in file}


def read_npz(path: Path) -> dict[str, Any]:
    with np.load(path) as file:
        return {name: file[name] for name in file}


def measure(tasks: dict[str, Callable[[], Any]], rounds: int) -> dict[str, tuple[float, float]]:
    """(median, fastest) milliseconds of each task."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds + 1):
        for name, task in tasks.items():
            start = time.perf_counter()
            result = task()
            times[name].append(1e3 * (time.perf_counter() - start))
            del result
    # The first round warms the caches.
    return {name: (statistics.median(t[1:]), min(t[1:])) for name, t in times.items()}


def table(title: str, figures: dict[str, tuple[float, float]], reference: str) -> None:
    print(f"\n| {title} | median ms | fastest ms | relative to {reference} |\n|---|---|---|---|")
    for name, (median, fastest) in figures.items():
        print(f"| {name} | {median:.0f} | {fastest:.0f} | {median / figures[reference][0]:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    options = parser.parse_args()
    model = ac.Sequential(*(ac.Conv2d(256, 256, 3, bias=False) for _ in range(LAYERS)), seed=0)
    arrays = model.state_dict()
    size = sum(array.nbytes for array in arrays.values())
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        ours, st, npz, h5 = (Path(folder, f"x.{kind}") for kind in ("ours", "st", "npz", "h5"))

        def synced(path: Path, write: Callable[[], Any]) -> Callable[[], None]:
            def task() -> None:
                write()
                sync(path)

            return task

        def write_st() -> None:
            safetensors.numpy.save_file(arrays, st)

        def write_npz() -> None:
            with npz.open("wb") as file:
                np.savez(file, **arrays)

        writing = measure(
            {
                "arraycnn, with fsync": lambda: ac.save_checkpoint(ours, model),
                "safetensors, with fsync": synced(st, write_st),
                "np.savez, with fsync": synced(npz, write_npz),
                "h5py, with fsync": synced(h5, lambda: write_hdf5(h5, arrays)),
                "safetensors, without": write_st,
                "np.savez, without": write_npz,
                "h5py, without": lambda: write_hdf5(h5, arrays),
            },
            options.rounds,
        )
        into = measure(
            {
                "arraycnn load_checkpoint": lambda: ac.load_checkpoint(ours, model),
                "safetensors": lambda: model.load_state_dict(safetensors.numpy.load_file(st)),
                "np.load": lambda: model.load_state_dict(read_npz(npz)),
                "h5py": lambda: model.load_state_dict(read_hdf5(h5)),
            },
            options.rounds,
        )
        to_arrays = measure(
            {
                "arraycnn load_model": lambda: ac.load_model(ours),
                "safetensors": lambda: safetensors.numpy.load_file(st),
                "np.load": lambda: read_npz(npz),
                "h5py": lambda: read_hdf5(h5),
                "arraycnn read_checkpoint_info (verifies)": lambda: ac.read_checkpoint_info(ours),
            },
            options.rounds,
        )
    machine = (
        f"{size / 1e6:.0f} MB in {len(arrays)} arrays",
        f"{platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}",
        f"Python {platform.python_version()}, NumPy {np.__version__}, h5py {h5py.__version__}, "
        f"HDF5 {h5py.version.hdf5_version}, safetensors {safetensors.__version__}",
    )
    print("; ".join(machine))
    table("writing", writing, "safetensors, with fsync")
    table("reading into the model", into, "safetensors")
    table("reading to new arrays", to_arrays, "safetensors")


if __name__ == "__main__":
    main()
