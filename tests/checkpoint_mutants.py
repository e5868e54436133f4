"""Checkpoints with changed bytes and right checksums. By hand: ``python tests/checkpoint_mutants.py
--runs 20000``.

A mutant has some bytes of its HDF5 structure changed; in half of them HDF5's own checksums are
repaired, in all of them the digest of the file, so that only the reader stands in their way. Each
must be refused with a CheckpointError or load, in a child whose time and memory are limited.
"""

import argparse
import os
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
from checkpoint_cases import make_model, make_optimizer, valid_bytes
from forked import run_forked

import arraycnn as ac
from arraycnn.checkpoint.envelope import USER_BLOCK, seal
from arraycnn.checkpoint.lookup3 import checksums
from arraycnn.checkpoint.reader import Reader

OLD = Path(__file__).parent / "oracle" / "first_round.h5"
MEMORY = 100 << 20  # bytes a mutant may cost, and three times its size
SECONDS = 1.0
BATCH = 250  # mutants of one child
INTERESTING = (0, 1, 2, 8, 0x7F, 0x80, 0xFF)


def deep_model():
    return ac.Sequential(*(ac.Dense(4, 4, seed=i) for i in range(19)))


def deep_bytes(path):
    model = deep_model()
    optimizer = ac.SGD(model.parameters(), 0.1, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = np.ones(parameter.shape, np.float32)
    optimizer.step()
    ac.save_checkpoint(path, model, optimizer)
    return path.read_bytes()


def load_deep(path):
    model = deep_model()
    ac.load_checkpoint(path, model, ac.SGD(model.parameters(), 0.1, momentum=0.9))


def load_small(path):
    model = make_model()
    ac.load_checkpoint(path, model, make_optimizer(model))


# How a file is made, and the ways to load it.
KINDS = {
    "small": (valid_bytes, [load_small, ac.load_model, ac.read_checkpoint_info]),
    "19 layers": (deep_bytes, [load_deep, ac.load_model, ac.read_checkpoint_info]),
    "first round": (lambda path: OLD.read_bytes(), [ac.load_model, ac.read_checkpoint_info]),
}


def structure(path):
    """(start, length, place of the checksum) of each block of metadata in a good file."""
    blocks = []
    read = Reader.block

    def recorded(reader, address, length, what, signature, *, used=None, sum_at=None):
        start, found = read(reader, address, length, what, signature, used=used, sum_at=sum_at)
        blocks.append((start, len(found), len(found) - 4 if sum_at is None else sum_at))
        return start, found

    with mock.patch.object(Reader, "block", recorded):
        ac.read_checkpoint_info(path)
    return blocks


def mutate(data, blocks, number):
    """Change up to four places of the structure; the HDF5 checksums follow in every other one."""
    chance = random.Random(number)
    mutant = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        start, length, _ = chance.choice(blocks)
        place = start + chance.randrange(length)
        way = chance.randrange(5)
        if way == 0:
            mutant[place] ^= 1 << chance.randrange(8)
        elif way == 1:
            mutant[place] = chance.choice(INTERESTING)
        elif way == 2:
            mutant[place] = chance.randrange(256)
        elif way == 3:  # a number or an address of another place
            other, size, _ = chance.choice(blocks)
            source = other + chance.randrange(max(1, size - 8))
            mutant[place : place + 8] = data[source : source + 8]
        else:  # an address of a block
            address = chance.choice(blocks)[0] - USER_BLOCK
            mutant[place : place + 8] = address.to_bytes(8, "little")
    del mutant[len(data) :]
    if number % 2:
        for start, length, at in blocks:
            block = bytearray(mutant[start : start + length])
            ends = at + 4 == length
            block[at : at + 4] = b"" if ends else bytes(4)
            mutant[start + at : start + at + 4] = checksums([block])[0].to_bytes(4, "little")
    return mutant


def try_mutants(path, data, blocks, loaders, numbers):
    """What happened to the mutants: (outcome, seconds of the slowest)."""
    outcomes, slowest = Counter(), 0.0
    for number in numbers:
        path.write_bytes(mutate(data, blocks, number))
        descriptor = os.open(path, os.O_RDWR)
        seal(descriptor)
        os.close(descriptor)
        for load in loaders:
            start = time.perf_counter()
            try:
                load(path)
                outcomes["read"] += 1
            except ac.CheckpointError:
                outcomes["refused"] += 1
            except Exception as error:
                outcomes[f"mutant {number}: {error!r}"] += 1
            slowest = max(slowest, time.perf_counter() - start)
    return outcomes, slowest


def run(kind, folder, numbers):
    """What happened to these mutants of a kind of file."""
    make, loaders = KINDS[kind]
    path = Path(folder) / "mutant.h5"
    data = make(path)
    path.write_bytes(data)
    blocks = structure(path)
    outcomes, slowest = Counter(), 0.0
    for first in range(numbers.start, numbers.stop, BATCH):
        batch = range(first, min(first + BATCH, numbers.stop))
        found, seconds = run_forked(
            try_mutants, path, data, blocks, loaders, batch,
            extra_memory=MEMORY + 3 * len(data), timeout=SECONDS * len(batch),
        )  # fmt: skip
        outcomes.update(found)
        slowest = max(slowest, seconds)
    return outcomes, slowest


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20_000, help="mutants of each kind of file")
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            outcomes, slowest = run(kind, folder, range(runs))
            print(f"{kind}: {dict(outcomes)}, slowest {slowest * 1000:.0f} ms", flush=True)


if __name__ == "__main__":
    main()
