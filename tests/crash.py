"""Killing a process while it saves. By hand: ``python tests/crash.py --runs 500``.

A child saves a network again and again, all of its values being the number of the checkpoint, and
acknowledges each one once `save_checkpoint` has returned. It is killed (SIGKILL) at some moment.
Then the file must hold the last acknowledged checkpoint or the next one, whole.
"""

import argparse
import os
import random
import signal
import struct
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import arraycnn as ac

WIDTH = 300  # 90,000 parameters, and as many slots: saving takes most of the time


def make():
    model = ac.Dense(WIDTH, WIDTH)
    optimizer = ac.SGD(model.parameters(), 0.1, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = np.zeros(parameter.shape, np.float32)
    optimizer.step()
    return model, optimizer


def set_all(model, number):
    for parameter in model.parameters():
        parameter.data[...] = number


def save_for_ever(path, pipe):
    model, optimizer = make()
    number = 0
    while True:
        number += 1
        set_all(model, number)
        ac.save_checkpoint(path, model, optimizer, step=number)
        os.write(pipe, struct.pack("<q", number))


def kill_once(folder, seconds):
    """(last acknowledged, loaded, temporaries left); 0 for none. Raises where the file is bad."""
    path = Path(folder) / "state.h5"
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            save_for_ever(path, writing)
        finally:
            os._exit(1)
    os.close(writing)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as pipe:
        numbers = pipe.read()
    acknowledged = struct.unpack("<q", numbers[-8:])[0] if numbers else 0
    loaded = 0
    if path.exists():
        model, optimizer = make()
        loaded = ac.load_checkpoint(path, model, optimizer).step
        if any(not np.all(parameter.data == loaded) for parameter in model.parameters()):
            raise AssertionError(f"checkpoint {loaded} is mixed with another")
        path.unlink()
    return acknowledged, loaded, len(list(Path(folder).iterdir()))


def kill_often(runs, folder, rng):
    """Kill ``runs`` times; returns counts and raises AssertionError at the first loss."""
    counts = {"runs": 0, "last acknowledged": 0, "the next": 0, "while writing": 0}
    for _ in range(runs):
        acknowledged, loaded, left = kill_once(folder, rng.uniform(0, 0.15))
        if loaded not in (acknowledged, acknowledged + 1):
            raise AssertionError(f"acknowledged {acknowledged}, but the file holds {loaded}")
        counts["runs"] += 1
        counts["last acknowledged" if loaded == acknowledged else "the next"] += 1
        counts["while writing"] += left > 0
        # What a dead writer left is removed by the next one, so that it does not add up.
        model, optimizer = make()
        ac.save_checkpoint(Path(folder) / "state.h5", model, optimizer)
        names = os.listdir(folder)
        if names != ["state.h5"]:
            raise AssertionError(f"left behind: {names}")
        os.unlink(Path(folder) / "state.h5")
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        counts = kill_often(options.runs, folder, random.Random(options.seed))
    print(", ".join(f"{name}: {count}" for name, count in counts.items()), "lost: 0", sep=", ")


if __name__ == "__main__":
    sys.exit(main())
