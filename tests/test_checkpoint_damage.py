"""Damaged checkpoints: all refused, in forked children with a limit on memory."""

import hashlib
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoint_cases import make_model, make_optimizer, valid_bytes
from forked import run_forked

import arraycnn as ac

MUTATIONS = 5_400


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    return valid_bytes(tmp_path_factory.mktemp("valid") / "valid.h5")


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One random accident."""
    size = len(data)
    kind = rng.integers(8)
    at, other = (int(n) for n in rng.integers(0, size, 2))
    length = int(rng.integers(1, 4096))
    block = rng.bytes(length)
    changed = bytearray(data)
    if kind in (0, 1):  # bits, half of the time among the headers
        for _ in range(rng.integers(1, 9)):
            position = int(rng.integers(size if kind else min(size, 8192)))
            changed[position] ^= 1 << int(rng.integers(8))
    elif kind == 2:
        del changed[at:]
    elif kind == 3:
        changed += block
    elif kind == 4:
        changed[:0] = block
    elif kind == 5:
        changed[at : at + length] = block[: size - at]
    elif kind == 6:
        changed[at : at + length] = bytes(min(length, size - at))
    else:
        first, second = changed[at : at + length], changed[other : other + length]
        changed[at : at + len(second)] = second
        changed[other : other + len(first)] = first
    return bytes(changed)


def load_all(path, number):
    """Load in one of the three ways; a model that is unchanged after an error is part of it."""
    if number % 3 == 0:
        ac.read_checkpoint_info(path)
    elif number % 3 == 1:
        ac.load_model(path)
    else:
        model = make_model()
        before = {name: array.copy() for name, array in model.state_dict().items()}
        try:
            ac.load_checkpoint(path, model, make_optimizer(model))
        except ac.CheckpointError:
            after = model.state_dict()
            assert all(np.array_equal(before[name], after[name]) for name in before)
            raise


def count_refused(data, path, seed, count):
    rng = np.random.default_rng(seed)
    refused = 0
    for number in range(count):
        changed = mutate(data, rng)
        while changed == data:
            changed = mutate(data, rng)
        with open(path, "wb") as file:
            file.write(changed)
        try:
            load_all(path, number)
        except ac.CheckpointError:
            refused += 1
    return refused


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(9))
def test_random_damage_is_always_refused(valid, tmp_path, seed):
    count = MUTATIONS // 9
    refused = run_forked(count_refused, valid, tmp_path / "damaged.h5", seed, count)
    assert refused == count


def test_every_truncation_near_the_ends_is_refused(valid, tmp_path):
    path = tmp_path / "short.h5"
    for size in [*range(0, 600, 7), *range(len(valid) - 20, len(valid))]:
        path.write_bytes(valid[:size])
        with pytest.raises(ac.CheckpointDamagedError):
            ac.read_checkpoint_info(path)


def test_undamaged_file_loads(valid, tmp_path):
    path = tmp_path / "whole.h5"
    path.write_bytes(valid)
    for number in range(3):
        load_all(path, number)


def test_what_memory_held_before_does_not_matter(valid, tmp_path, monkeypatch):
    path = tmp_path / "whole.h5"
    path.write_bytes(valid)
    stale = np.frombuffer(valid[512:1024], np.uint8)  # begins with the signature of HDF5
    empty = np.empty

    def empty_with_stale_bytes(shape, *args, **kwargs):
        array = empty(shape, *args, **kwargs)
        if array.dtype == np.uint8 and array.size > 512:
            array[:512] = stale
        return array

    monkeypatch.setattr(np, "empty", empty_with_stale_bytes)
    load_all(path, 1)


# Changes with the right digest: what the gate and libhdf5 make of them


def load_sealed(data, path, seed, count):
    """How many of the changed files were loaded; any other exception than ours comes through."""
    rng = np.random.default_rng(seed)
    loaded = 0
    for number in range(count):
        changed = mutate(data[512:], rng)
        fields = struct.pack("<8sIIQ", data[:8], 1, 0, len(changed))
        block = (fields + hashlib.sha256(changed).digest()).ljust(512, b"\0")
        with open(path, "wb") as file:
            file.write(block + changed)
        try:
            load_all(path, number)
            loaded += 1
        except ac.CheckpointError:
            pass
    return loaded


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_changes_with_the_right_digest_load_or_are_refused(valid, tmp_path, seed):
    loaded = run_forked(load_sealed, valid, tmp_path / "changed.h5", seed, 200)
    assert 0 < loaded < 200


ENDING = """
import sys
import arraycnn as ac
path = sys.argv[1]
sys.kept = kept = []  # the last module to be cleared
data = open(sys.argv[2], "rb").read()
model = ac.Sequential(ac.Dense(2, 2))
for size in [0, 4, 8, 100, *range(1000, len(data), 1500)]:
    open(path, "wb").write(data[:size])
    try:
        ac.load_keras_weights(model, path, (1, 2))
    except ac.CheckpointError as error:
        kept.append(error)
print(len(kept))
"""


def test_the_interpreter_ends_well_with_errors_still_alive(tmp_path):
    """h5py's own errors crash it when they are alive at the end."""
    keras = Path(__file__).parent / "oracle" / "keras.weights.h5"
    process = subprocess.run(
        [sys.executable, "-c", ENDING, tmp_path / "x.h5", keras],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert int(process.stdout) > 30
