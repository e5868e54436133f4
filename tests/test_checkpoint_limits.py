"""What a file may ask for is bounded before it is done: time, memory and the length of messages."""

import gc
import json
import os
import time

import numpy as np
import pytest
from forked import run_forked

import arraycnn as ac
from arraycnn.checkpoint import __main__ as info
from arraycnn.checkpoint.contents import metadata_of
from arraycnn.checkpoint.envelope import seal
from arraycnn.checkpoint.hdf5 import Entry, write_structure

MEMORY = 100 << 20  # bytes that a refusal may take, and three times the file
SECONDS = 1.0
MESSAGE = 1_500  # characters

RELU = {"class": "ReLU", "config": {}}
LOADERS = [ac.load_model, ac.read_checkpoint_info, lambda path: ac.load_checkpoint(path, model())]


def model():
    return ac.Sequential(ac.ReLU())


def make(cls, **config):
    return {"class": cls, "config": config}


def sequential(*layers):
    return make("Sequential", layers=list(layers))


def graph(*nodes):
    return make("Graph", nodes={"items": list(nodes)}, inputs="x", outputs=None)


def again(numbers):
    return [{"again": number} for number in numbers]


def metadata(config=None, **changed):
    meta = metadata_of(model(), None, None, schedule=None, loader=None, epoch=0, step=0, extra=None)
    return meta | ({} if config is None else {"model": config}) | changed


def write(path, meta):
    """Seal any metadata."""
    text = json.dumps(meta).encode()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    (place,) = write_structure(descriptor, [Entry("meta", "uint8", (len(text),))])
    seal(descriptor, [(place, np.frombuffer(text, np.uint8))])
    os.close(descriptor)


CONFIGURATIONS = {
    "again twice, 40 deep": lambda: sequential(
        RELU, *(sequential(*again([k + 1, k + 1])) for k in range(40))
    ),
    "again once, 900 deep": lambda: sequential(
        RELU, *(sequential(*again([k + 1])) for k in range(900))
    ),
    "residual of again": lambda: sequential(
        RELU, *(make("Residual", body={"again": k + 1}) for k in range(400))
    ),
    "10,001 layers": lambda: sequential(*[RELU] * 10_001),
    "many channels": lambda: make(
        "PartialConv2d", in_channels=2 * 10**7, kernel_size=1, connections=[[0]]
    ),
    "many connections": lambda: make(
        "PartialConv2d",
        in_channels=20_000, kernel_size=1, connections=[*[[1]] * 50_000, [1, 2]],
    ),
    "norm": lambda: make("BatchNorm", num_features=1 << 30),
    "kernel": lambda: make(
        "Conv3d", in_channels=1, out_channels=1, kernel_size=[2_000, 2_000, 2_000]
    ),
    "real": lambda: make("Dropout", p=10**400),
    "text": lambda: make("Dense", in_features=1, out_features=2, init="x" * 10**7),
    "arguments": lambda: make("ReLU", **{f"k{i}": 1 for i in range(100_000)}),
    "lists for layers": lambda: make("Sequential", layers=[[]] * 80_000),
    "cycle": lambda: graph(*([f"n{i}", [RELU, f"n{i - 1 if i else 8999}"]] for i in range(9_000))),
    "long name": lambda: graph(["n" * 10**6, [RELU, "x"]]),
    "name of dots": lambda: graph([".".join("n" * 100_000), [RELU, "x"]]),
    "two ends": lambda: graph(*([f"n{i}", [RELU, "x"]] for i in range(9_000))),
}  # fmt: skip
METADATA = {
    "name of parts": lambda: metadata(params={"a" + ".a" * 300_000: ["int8", [0]]}),
    "name of controls": lambda: metadata(params={"\x1b[2J": ["int8", [0]]}),
    "values": lambda: metadata(extra={"x": [[]] * 3_500_000}),
    "objects": lambda: metadata(extra={"x": [{"a": 1}] * 250_000}),
    "parameters": lambda: metadata(params={f"{i}.a": ["int8", [0]] for i in range(600_000)}),
    "fewer parameters": lambda: metadata(params={f"{i}.a": ["int8", [0]] for i in range(49_000)}),
    "ties": lambda: metadata(tied={f"a{i}": "b" for i in range(100_000)}),
    "unknown fields": lambda: metadata(**{f"k{i}": 1 for i in range(100_000)}),
    "random layers": lambda: metadata(
        random={f"k{i}": {"seed": 0, "counter": 0} for i in range(40_000)}
    ),
}
CASES = METADATA | {
    name: lambda config=config: metadata(config()) for name, config in CONFIGURATIONS.items()
}
# What load_model takes although it is large, and at once.
FINE = {
    "chain": lambda: graph(*([f"n{i}", [RELU, f"n{i - 1}" if i else "x"]] for i in range(5_000))),
    "dense graph": lambda: graph(
        *([f"n{i}", [make("Concat"), "x", *(f"n{j}" for j in range(i))]] for i in range(300))
    ),
    "shared": lambda: sequential(RELU, *again([1] * 5_000)),
}


def peak():
    """Bytes that this process had in memory at most, since `peak` was reset."""
    with open("/proc/self/status") as file:
        [line] = [line for line in file if line.startswith("VmHWM:")]
    return int(line.split()[1]) << 10


def attempts(path, loaders):
    """Bytes taken; (message, seconds) of each way to load, None for what loads."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets the peak
    gc.freeze()  # what the tests before have left is not the loader's burden
    before = peak()
    found = []
    for load in loaders:
        start = time.perf_counter()
        try:
            load(path)
            message = None
        except ac.CheckpointError as error:
            message = str(error)
        found.append((message, time.perf_counter() - start))
    return peak() - before, found


def within_limits(path, loaders):
    taken, found = run_forked(attempts, path, loaders)
    assert taken < MEMORY + 3 * path.stat().st_size
    for message, seconds in found:
        assert seconds < SECONDS
        assert message is None or len(message) < MESSAGE + len(str(path))
        assert message is None or message.isprintable()
    return [message for message, _ in found]


@pytest.mark.parametrize("name", CASES)
def test_refused_at_once(name, tmp_path):
    path = tmp_path / "large.h5"
    write(path, CASES[name]())
    refused = within_limits(path, LOADERS)
    assert refused[0]
    if name in METADATA and name != "ties":  # of a model that is built
        assert refused[2]


@pytest.mark.parametrize("name", FINE)
def test_large_and_fine(name, tmp_path):
    path = tmp_path / "large.h5"
    write(path, metadata(FINE[name]()))
    assert within_limits(path, [ac.load_model]) == [None]


def test_sharing_does_not_double_the_work():
    """Networks of shared layers are made, moved and listed by layers, not by paths."""
    layer = ac.Dense(2, 2)
    for _ in range(60):
        layer = ac.Sequential(layer, layer)
    assert len(layer.parameters()) == 2
    layer.to("cpu", dtype="float64").initialize(0)
    assert layer.dtype == np.float64


def test_a_network_too_deep_is_saved_without_its_configuration(tmp_path):
    layer = ac.Dense(2, 2, seed=0)
    for _ in range(29):
        layer = ac.Sequential(layer)
    assert save_and_load(tmp_path, layer)(np.ones((1, 2), "f")).shape == (1, 2)
    for _ in range(20):
        layer = ac.Sequential(layer)
    with pytest.raises(ac.CheckpointError, match=r"could not be saved .*nested 91 deep"):
        save_and_load(tmp_path, layer)


def save_and_load(folder, network):
    ac.save_checkpoint(folder / "x.h5", network)
    return ac.load_model(folder / "x.h5")


def test_info_prints_no_control_characters(tmp_path, capsys):
    path = tmp_path / "x.h5"
    write(path, metadata(library="\x1b[2J\nfake: intact", extra={"\x07" * 3: "\x1b[1m"}))
    info.main([str(path)])
    lines = capsys.readouterr().out.splitlines()
    assert all(line.isprintable() for line in lines)
    assert not any(line.startswith("fake") for line in lines)
    write(path, metadata(library="x" * 10**6))
    info.main([str(path)])
    assert len(capsys.readouterr().out) < 5_000
