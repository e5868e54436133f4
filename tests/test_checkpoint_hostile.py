"""Hostile checkpoints, each with the right digest: refused at once, by the rule that they break.

In forked children with a limit on memory, so that a crash of libhdf5 would be a failure here.
"""

import json
import os
import re
import time

import h5py
import numpy as np
import pytest
from checkpoint_cases import make_model, make_optimizer, valid_bytes
from forked import run_forked

import arraycnn as ac
from arraycnn.checkpoint.envelope import seal


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    return valid_bytes(tmp_path_factory.mktemp("valid") / "valid.h5")


def dataset(name, **properties):
    """Replace a dataset by one that h5py makes with ``properties``."""

    def edit(file):
        data = file[name][...]
        del file[name]
        if properties.get("shape") is None:
            properties["data"] = data
        file.create_dataset(name, **properties)

    return edit


WEIGHT = "params/7/weight"  # (3, 20)
BIAS = "params/7/bias"


def external_link(file):
    del file[WEIGHT]
    file[WEIGHT] = h5py.ExternalLink("/etc/passwd", "/x")


def soft_link(file):
    del file[WEIGHT]
    file[WEIGHT] = h5py.SoftLink("/params/5/weight")


def soft_link_to_itself(file):
    del file[WEIGHT]
    file[WEIGHT] = h5py.SoftLink("/" + WEIGHT)


def link_of_group(file):
    file.move("params/7", "elsewhere")
    file["params/7"] = h5py.SoftLink("/elsewhere")


def virtual_dataset(file):
    del file[WEIGHT]
    layout = h5py.VirtualLayout((3, 20), "<f4")
    layout[...] = h5py.VirtualSource("other.h5", "x", (3, 20))
    file.create_virtual_dataset(WEIGHT, layout)


def shape_bomb(file):
    """4 TiB in a file of some kilobytes: contiguous storage that is never allocated."""
    del file[WEIGHT]
    space = h5py.h5s.create_simple((1 << 20, 1 << 20))
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE)
    h5py.h5d.create(file["params/7"].id, b"weight", h5py.h5t.IEEE_F32LE, space, properties)


def unallocated(file):
    """The right shape, but no bytes."""
    del file[WEIGHT]
    space = h5py.h5s.create_simple((3, 20))
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE)
    h5py.h5d.create(file["params/7"].id, b"weight", h5py.h5t.IEEE_F32LE, space, properties)


def compact(file):
    data = file[BIAS][...]
    del file[BIAS]
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple(data.shape)
    made = h5py.h5d.create(file["params/7"].id, b"bias", h5py.h5t.IEEE_F32LE, space, properties)
    made.write(h5py.h5s.ALL, h5py.h5s.ALL, data)


def references(file):
    del file[BIAS]
    file.create_dataset(BIAS, data=np.array([file.ref] * 3, h5py.ref_dtype))


def named_type(file):
    del file[BIAS]
    file["named"] = np.dtype("<f4")
    file.create_dataset(BIAS, data=np.zeros(3, "<f4"), dtype=file["named"])
    del file["named"]


def null_space(file):
    del file[BIAS]
    file.create_dataset(BIAS, data=h5py.Empty("<f4"))


def many_groups(file):
    for number in range(50_000):
        h5py.h5g.create(file.id, b"g%d" % number)


def many_groups_inside(file):
    for number in range(50_000):
        h5py.h5g.create(file["params"].id, b"g%d" % number)


def cyclic_link(file):
    del file["params/7"]
    file["params/7"] = file["params"]


def cycle_to_root(file):
    file["params/again"] = file["/"]


def group_for_dataset(file):
    del file[WEIGHT]
    file.create_group(WEIGHT)


def dataset_for_group(file):
    del file["params/7"]
    file.create_dataset("params/7", data=np.zeros(3, "<f4"))


def huge_attribute(file):
    file["params"].attrs.create("a", np.zeros(7_000, np.float64))


def many_attributes(file):
    for number in range(5_000):
        file[WEIGHT].attrs[f"a{number}"] = number


def twice_the_same(file):
    """Two names for one dataset of the expected shape: both would be the same bytes."""
    del file["params/1/bias"]
    file["params/1/bias"] = file["params/1/weight"]


def meta_text(text):
    def edit(file):
        del file["meta"]
        file.create_dataset("meta", data=np.frombuffer(text, np.uint8))

    return edit


def meta(change):
    """Change the metadata as Python data."""

    def edit(file):
        data = json.loads(file["meta"][...].tobytes())
        change(data)
        meta_text(json.dumps(data).encode())(file)

    return edit


def at(*keys_and_value):
    *keys, last, value = keys_and_value

    def change(data):
        for key in keys:
            data = data[key]
        data[last] = value

    return meta(change)


def grouped(groups):
    return meta(lambda data: data["optimizer"].update(groups=groups, base_lr=0.1))


def raw_meta(old, new):
    def edit(file):
        text = file["meta"][...].tobytes()
        assert old in text
        meta_text(text.replace(old, new, 1))(file)

    return edit


def deep_config(depth):
    inner = {"class": "ReLU", "config": {}}
    for _ in range(depth):
        inner = {"class": "Sequential", "config": {"layers": [inner]}}
    return inner


HOSTILE = {
    "external link": (external_link, "only hard links are allowed, got an external link"),
    "soft link": (soft_link, "only hard links are allowed, got a soft link"),
    "soft link to itself": (soft_link_to_itself, "only hard links are allowed"),
    "soft link for a group": (link_of_group, "only hard links|entries"),
    "virtual dataset": (virtual_dataset, "contiguous, got virtual"),
    "external storage": (
        dataset(WEIGHT, shape=(3, 20), dtype="<f4", external=[("/etc/passwd", 0, 240)]),
        "its bytes are in another file",
    ),
    "shape bomb": (shape_bomb, r"its shape must be \(3, 20\), got \(1048576, 1048576\)"),
    "chunked shape bomb": (
        dataset(WEIGHT, shape=(1 << 20, 1 << 20), dtype="<f4", chunks=(64, 64)),
        "contiguous",
    ),
    "storage never allocated": (unallocated, "its bytes are not in the file"),
    "gzip": (dataset(WEIGHT, compression="gzip"), "contiguous, got chunked"),
    "shuffle and checksum": (dataset(WEIGHT, shuffle=True, fletcher32=True), "contiguous"),
    "growing": (dataset(WEIGHT, maxshape=(None, 20)), "contiguous, got chunked"),
    "compact storage": (compact, "contiguous, got compact"),
    "compound type": (dataset(BIAS, shape=(3,), dtype=[("a", "<f4")]), "type must be float32, got"),
    "variable-length type": (
        dataset(BIAS, shape=(3,), dtype=h5py.vlen_dtype(np.float32)),
        "type must be float32",
    ),
    "variable-length strings": (
        dataset(BIAS, shape=(3,), dtype=h5py.string_dtype()),
        "type must be float32",
    ),
    "reference type": (references, "type must be float32"),
    "array type": (dataset(BIAS, shape=(), dtype=np.dtype(("<f4", (3,)))), "type must be float32"),
    "enum type": (
        dataset(BIAS, shape=(3,), dtype=h5py.enum_dtype({"a": 0}, "i1")),
        "type must be float32",
    ),
    "opaque type": (dataset(BIAS, shape=(3,), dtype="V4"), "type must be float32"),
    "named type": (named_type, "type must be float32, got a named type"),
    "big-endian": (dataset(BIAS, dtype=">f4"), "type must be float32, got >f4"),
    "integers for floats": (dataset(BIAS, dtype="<i4"), "type must be float32, got int32"),
    "float64 for float32": (dataset(BIAS, dtype="<f8"), "type must be float32, got float64"),
    "null data space": (null_space, "contiguous|no data space"),
    "50,000 groups": (many_groups, "must have 4 entries, got 50004"),
    "50,000 groups inside": (many_groups_inside, "group '/params' must have 4 entries, got 50004"),
    "cyclic link": (cyclic_link, "/params: more than one link leads to it"),
    "cycle to the root": (cycle_to_root, "/: more than one link leads to it"),
    "group for a dataset": (group_for_dataset, "must be a dataset, got a group"),
    "dataset for a group": (dataset_for_group, "must be a group, got a dataset"),
    "huge attribute": (huge_attribute, "attributes are not allowed"),
    "many attributes": (many_attributes, "attributes are not allowed"),
    "duplicate offsets": (twice_the_same, r"params/1/\w+: more than one link leads to it"),
    "missing dataset": (lambda file: file.__delitem__(BIAS), "entries|no such entry"),
    "extra dataset": (
        lambda file: file.create_dataset("params/7/x", data=np.zeros(1)),
        "must have 2 entries",
    ),
    "wrong shape": (dataset(BIAS, shape=(4,), dtype="<f4"), r"must be \(3,\), got \(4,\)"),
    "transposed": (
        dataset(WEIGHT, shape=(20, 3), dtype="<f4"),
        r"must be \(3, 20\), got \(20, 3\)",
    ),
    "no metadata": (lambda file: file.__delitem__("meta"), "meta: there is no such entry"),
    "metadata of text": (
        dataset("meta", shape=(), dtype=h5py.string_dtype()),
        "meta: its type must be uint8",
    ),
    "metadata of two dimensions": (
        dataset("meta", shape=(2, 2), dtype="u1"),
        r"meta: its shape must be \(n,\)",
    ),
    "metadata too large": (meta_text(b" " * (17 << 20)), "more than the 16777216 allowed"),
    "not JSON": (meta_text(b"\x80\x04K\x01."), "not valid JSON"),
    "JSON of another kind": (meta_text(b"[]"), "must be a JSON object"),
    "deep JSON": (meta_text(b"[" * 100_000 + b"]" * 100_000), "nested 100000 deep"),
    "unclosed deep JSON": (meta_text(b"[" * 1_000_000), "1000000 values are more than"),
    "JSON of quotes": (meta_text(b'"' + b'\\"' * 1_000_000), "not valid JSON"),
    "key twice": (raw_meta(b'"epoch": 2', b'"epoch": 2, "epoch": 3'), "'epoch' appears twice"),
    "NaN": (raw_meta(b'"epoch": 2', b'"epoch": NaN'), "NaN is not allowed"),
    "infinity": (raw_meta(b'"note": "valid"', b'"note": -Infinity'), "-Infinity is not allowed"),
    "infinity in digits": (raw_meta(b'"note": "valid"', b'"note": 1e999'), "1e999 is not allowed"),
    "huge integer": (raw_meta(b'"note": "valid"', b'"note": ' + b"9" * 5_000), "not valid JSON"),
    "missing field": (meta(lambda data: data.pop("epoch")), "missing .'epoch'."),
    "unknown field": (at("pickle", "x"), "unexpected .'pickle'."),
    "epoch of another type": (at("epoch", "2"), "epoch must be int, got '2'"),
    "epoch true": (at("epoch", True), "epoch must be int, got True"),
    "negative step": (at("step", -1), "step must be at least 0"),
    "another format": (at("format", "x"), "format must be 'arraycnn checkpoint'"),
    "index with another shape": (
        at("params", "7.bias", ["float32", [4]]),
        r"shape \(4,\) in the file|must be \(4,\)",
    ),
    "index with a shape bomb": (
        at("params", "7.bias", ["float32", [1 << 40, 1 << 40]]),
        "in the file|must be .1099",
    ),
    "index with a negative size": (
        at("params", "7.bias", ["float32", [-3]]),
        r"shape must be up to 32 sizes",
    ),
    "index with another dtype": (at("params", "7.bias", ["object", [3]]), "dtype must be one of"),
    "index with a way out": (at("params", "../x", ["float32", [3]]), "not a dotted name"),
    "optimizer of unknown parameters": (
        at("optimizer", "parameters", ["x"]),
        "parameters must be names of params",
    ),
    "optimizer with a way out": (at("optimizer", "slots", ["../x"]), "slots must be up to 16"),
    "optimizer with negative counts": (
        at("optimizer", "steps", [-1] * 8),
        "steps must be 8 counts",
    ),
    "optimizer with groups of no parameters": (
        grouped([{"parameters": 0, "hyperparameters": {}}]),
        "groups must share out 8 parameters, got .0.",
    ),
    "optimizer with groups that are none": (
        grouped([[]]),
        r"groups.0. must be an object",
    ),
    "optimizer with groups without a rate to be relative to": (
        at("optimizer", "groups", []),
        "missing .'base_lr'.",
    ),
    "unknown schedule": (
        at("schedule", {"class": "system", "config": {}}),
        "'system' is not allowed",
    ),
    "schedule with bad arguments": (
        at("schedule", {"class": "Constant", "config": {"lr": -1}}),
        "Constant cannot be built",
    ),
    "random state of others": (at("random", {"0": {"seed": 1, "counter": 0}}), "random layers are"),
    "random state of text": (at("random", {"3": {"seed": "x", "counter": 0}}), "seed and counter"),
}
# What only load_model looks at.
HOSTILE_CONFIG = {
    "unknown class": ({"class": "os.system", "config": {}}, "'os.system' is not allowed"),
    "abstract class": ({"class": "Layer", "config": {}}, "'Layer' is not allowed"),
    "unknown argument": (
        {"class": "ReLU", "config": {"x": 1}},
        "ReLU cannot be built: unknown arguments",
    ),
    "choice of backend": (
        {"class": "Dense", "config": {"in_features": 1, "out_features": 1, "backend": "cuda"}},
        "unknown arguments",
    ),
    "memory bomb": (
        {"class": "Dense", "config": {"in_features": 1 << 30, "out_features": 1 << 30}},
        "Dense cannot be built",
    ),
    "quiet memory bomb": (
        {"class": "Dense", "config": {"in_features": 1 << 14, "out_features": 1 << 13}},
        "does not fit the model",
    ),
    "huge number": (
        {"class": "Dense", "config": {"in_features": 10**400, "out_features": 1}},
        "Dense cannot be built",
    ),
    "text for a number": (
        {"class": "Dense", "config": {"in_features": "1", "out_features": 1}},
        "Dense cannot be",
    ),
    "another network": ({"class": "ReLU", "config": {}}, "unexpected in the file"),
    "other shapes": (
        {"class": "Sequential", "config": {"layers": [{"class": "Flatten", "config": {}}]}},
        "does not fit",
    ),
    "not a layer": ({"class": "Sequential", "config": {"layers": [1]}}, "Sequential takes layers"),
    "no layer": ({"config": 1}, "expected 'class' and 'config'"),
    "its own part": (
        {"class": "Sequential", "config": {"layers": [{"again": 0}]}},
        "'again' must number",
    ),
    "deep": (deep_config(40), "nested 123 deep, 100 are allowed"),
    "too many layers": (
        {"class": "Sequential", "config": {"layers": [{"class": "ReLU", "config": {}}] * 10_000}},
        "more than the 10000 layers",
    ),
}


def forge(data, path, edit):
    """Change the HDF5 part of a checkpoint and give it the right digest."""
    path.write_bytes(data)
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        edit(file)
    descriptor = os.open(path, os.O_RDWR)
    seal(descriptor)
    os.close(descriptor)


def refusals(path, loaders):
    """[(message, seconds)] of each way to load; the fastest of three times."""
    found = []
    for load in loaders:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            try:
                load(path)
            except ac.CheckpointError as error:
                message = str(error)
            times.append(time.perf_counter() - start)
        found.append((message, min(times)))
    return found


def load_into_model(path):
    model = make_model()
    ac.load_checkpoint(path, model, make_optimizer(model))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused_at_once(valid, tmp_path, name):
    edit, rule = HOSTILE[name]
    path = tmp_path / "hostile.h5"
    forge(valid, path, edit)
    loaders = [load_into_model] if "random" in name else [load_into_model, ac.load_model]
    for message, seconds in run_forked(refusals, path, loaders, extra_memory=256 << 20):
        assert re.search(rule, message), message
        assert seconds < 0.1


@pytest.mark.parametrize("name", HOSTILE_CONFIG)
def test_hostile_configuration_is_refused_at_once(valid, tmp_path, name):
    config, rule = HOSTILE_CONFIG[name]
    path = tmp_path / "hostile.h5"
    forge(valid, path, at("model", config))
    [(message, seconds)] = run_forked(refusals, path, [ac.load_model], extra_memory=600 << 20)
    assert re.search(rule, message), message
    assert seconds < 0.1
