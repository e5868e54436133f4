"""Loading a checkpoint: into a model and an optimizer, as a new model, or only what is in it."""

import copy
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import h5py
import numpy as np

from arraycnn.backends import BackendLike, backend_of, get_backend
from arraycnn.checkpoint.atomic import PathLike
from arraycnn.checkpoint.config import build_model, build_schedule
from arraycnn.checkpoint.contents import (
    checked,
    entries_of,
    entry_of,
    parameter_names,
    schedule_data,
    slot_entries,
    tensors_of,
)
from arraycnn.checkpoint.envelope import VERSION, open_verified
from arraycnn.checkpoint.hdf5 import (
    Entry,
    Extents,
    check_dataset,
    check_groups,
    extent_of,
    open_dataset,
    open_root,
    read_dataset,
)
from arraycnn.checkpoint.metadata import MAX_BYTES, decode, plain
from arraycnn.checkpoint.save import Positioned
from arraycnn.checkpoint.stream import Source
from arraycnn.errors import CheckpointError
from arraycnn.layers.base import Layer, RandomLayer, Tensor
from arraycnn.optim import Optimizer
from arraycnn.schedules import Schedule
from arraycnn.types import Array

_SLOTS = 8  # arrays per parameter that an optimizer may keep, to bound the size of a file


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says about itself.

    Attributes:
        path: of the file. size: its bytes. version: of the format. library: version that wrote it.
        epoch, step: as saved. extra: the user's data. dtype: of the parameters.
        tensors: name → (dtype, shape) of parameters and buffers.
        model: the configuration as plain data.
        optimizer: ``kind``, ``hyperparameters``, ``parameters``, ``steps``, ``slots``, or None.
        schedule: rebuilt; None if there was none or it was not one of `arraycnn.schedules`.
        loader: the position in the data, or None.
    """

    path: str
    size: int
    version: int
    library: str
    epoch: int
    step: int
    extra: dict[str, Any]
    dtype: str | None
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    model: dict[str, Any]
    optimizer: dict[str, Any] | None
    schedule: Schedule | None
    loader: dict[str, Any] | None


def load_checkpoint(
    path: PathLike,
    model: Layer,
    optimizer: Optimizer | None = None,
    *,
    schedule: Schedule | None = None,
    loader: Positioned | None = None,
    backend: BackendLike | None = None,
) -> CheckpointInfo:
    """Restore ``model``, and what else is given, bit for bit from a checkpoint.

    Nothing changes unless the file is intact and everything fits. What is not given is not read.

    Args:
        model: of the same parameters and buffers: names, shapes, dtypes.
        optimizer: of the same kind, over the same parameters; takes over the hyper-parameters too.
        schedule: must equal the saved one. loader: moved to the saved position.
        backend: where to move the model; None leaves it where it is. The file does not depend on
            the backend that saved it.

    Returns:
        `CheckpointInfo`, with epoch, step and extra.

    Raises:
        CheckpointError: damaged, not a checkpoint, or does not fit; the message lists everything
            missing, unexpected and different. OSError: the file cannot be opened.
    """
    target = None if backend is None else get_backend(backend)
    tensors = tensors_of(model)
    expected = {name: entry_of(name, tensor) for name, tensor in tensors.items()}
    with _reading(path):
        with (
            open_verified(path, keep=True, limit=_size_limit(tensors)) as source,
            open_root(source) as root,
        ):
            meta = _read_meta(root)
            _check_fit(expected, entries_of(meta))
            slots = list(slot_entries(meta))
            used = slots if optimizer is not None else []
            paths = [e.path for e in (*expected.values(), *(e for *_, e in used))]
            check_groups(root, ["meta", *paths], ["optimizer"] if slots else [])
            extents = Extents(source.size)
            loaded = {n: read_dataset(root, e, source, extents) for n, e in expected.items()}
            moments = [(slot, n, read_dataset(root, e, source, extents)) for slot, n, e in used]
            extents.check()
            info = _info(path, source, meta)
        fresh = {
            name: (target or backend_of(tensors[name].data)).asarray(array)
            for name, array in loaded.items()
        }
        _check_random(model, meta["random"])
        if schedule is not None:
            _check_schedule(schedule, meta["schedule"])
        if loader is not None:
            _try_loader(loader, meta["loader"])
        if optimizer is not None:
            _load_optimizer(optimizer, model, meta, moments)
    # From here on nothing can fail.
    if loader is not None:
        loader.load_state_dict(meta["loader"])
    if target is not None:
        model.to(target)
    for name, array in fresh.items():
        tensors[name].data[...] = array
    model.load_random_state(meta["random"])
    return info


def load_model(
    path: PathLike, *, backend: BackendLike = "cpu", classes: Iterable[type[Layer]] = ()
) -> Layer:
    """The network that a checkpoint holds, rebuilt from its configuration.

    Only layers of this library are built, and those of ``classes`` by their names; nothing is
    imported, and what they are built from is data.

    Args:
        classes: layer classes of your own that the network uses.

    Raises:
        CheckpointError: as `load_checkpoint`, or the network cannot be built: a class that is not
            allowed, or a configuration that was not plain data. OSError: as `load_checkpoint`.
    """
    target = get_backend(backend)
    with _reading(path):
        with open_verified(path, keep=True) as source, open_root(source) as root:
            meta = _read_meta(root)
            if "problem" in meta["model"]:
                raise CheckpointError(
                    f"the network's configuration could not be saved ({meta['model']['problem']});"
                    " build the network yourself and use load_checkpoint"
                )
            entries = entries_of(meta)
            paths = [e.path for e in entries.values()]
            check_groups(root, ["meta", *paths], ["optimizer"] if any(slot_entries(meta)) else [])
            extents = Extents(source.size)
            loaded = {n: read_dataset(root, e, source, extents) for n, e in entries.items()}
            extents.check()
        model = build_model(meta["model"], classes)
        tensors = tensors_of(model)
        _check_fit({n: _typed_as(entries, n, tensor) for n, tensor in tensors.items()}, entries)
        _check_random(model, meta["random"])
    # Parameters may stay where they are in memory, if little else would stay with them.
    lean = source.size < 1.5 * sum(array.nbytes for array in loaded.values())
    for name, tensor in tensors.items():
        array = loaded[name]
        tensor.data = array if lean and array.flags.aligned else np.array(array, order="C")
    model.load_random_state(meta["random"])
    return model.to(target)


def read_checkpoint_info(path: PathLike) -> CheckpointInfo:
    """What a checkpoint holds, verified, without reading its arrays into memory.

    Raises:
        CheckpointError: damaged or not a checkpoint. OSError: the file cannot be opened.
    """
    with _reading(path), open_verified(path, keep=False) as source, open_root(source) as root:
        meta = _read_meta(root)
        entries = [*entries_of(meta).values(), *(e for *_, e in slot_entries(meta))]
        check_groups(root, ["meta", *(e.path for e in entries)])
        extents = Extents(source.size)
        for e in entries:
            extents.add(e.path, *check_dataset(root, e))
        extents.check()
        return _info(path, source, meta)


@contextmanager
def _reading(path: PathLike) -> Iterator[None]:
    """Put the file's name in front of the messages."""
    try:
        yield
    except CheckpointError as error:
        raise type(error)(f"{os.fspath(path)}: {error}") from error


def _read_meta(root: Any) -> dict[str, Any]:
    dataset, (length,) = open_dataset(root, "meta", "uint8", None)
    if length > MAX_BYTES:
        raise CheckpointError(f"meta: {length} bytes are more than the {MAX_BYTES} allowed")
    extent_of(Entry("meta", "uint8", (length,)), dataset)
    text = np.empty(length, np.uint8)
    dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, text)
    return checked(decode(text.tobytes()))


def _size_limit(tensors: Mapping[str, Tensor]) -> int:
    """The most bytes that a file for these tensors needs; larger ones are not taken into memory."""
    arrays: int = (1 + _SLOTS) * sum(t.size * t.dtype.itemsize for t in tensors.values())
    headers = (1 + _SLOTS) * 4096 * (1 + len(tensors))
    return arrays + headers + 2 * MAX_BYTES


def _info(path: PathLike, source: Source, meta: Mapping[str, Any]) -> CheckpointInfo:
    schedule = meta["schedule"]
    known = schedule is not None and "custom" not in schedule
    return CheckpointInfo(
        path=os.fspath(path),
        size=source.size,
        version=VERSION,
        tensors={name: (e.dtype, e.shape) for name, e in entries_of(meta).items()},
        schedule=build_schedule(schedule) if known else None,
        **{name: meta[name] for name in _COPIED},
    )


_COPIED = ("library", "epoch", "step", "extra", "dtype", "model", "optimizer", "loader")


def _check_fit(expected: Mapping[str, Entry], stored: Mapping[str, Entry]) -> None:
    missing = [name for name in expected if name not in stored]
    unexpected = [name for name in stored if name not in expected]
    problems = [f"missing in the file: {', '.join(missing)}"] if missing else []
    problems += [f"unexpected in the file: {', '.join(unexpected)}"] if unexpected else []
    problems += [
        f"{name} is {_text(stored[name])} in the file and {_text(entry)} in the model"
        for name, entry in expected.items()
        if name in stored and stored[name] != entry
    ]
    if problems:
        raise CheckpointError(f"it does not fit the model: {'; '.join(problems)}")


def _text(entry: Entry) -> str:
    kind = "parameter" if entry.path.startswith("params/") else "buffer"
    return f"a {entry.dtype} {kind} of shape {entry.shape}"


def _typed_as(entries: Mapping[str, Entry], name: str, tensor: Tensor) -> Entry:
    """The entry of a tensor that may take any float dtype if it is of one."""
    own = entry_of(name, tensor)
    stored = entries.get(name, own)
    both = own.dtype.startswith("float") and stored.dtype.startswith("float")
    return replace(own, dtype=stored.dtype) if both else own


def _check_random(model: Layer, state: Mapping[str, Any]) -> None:
    names = {name for name, layer in model.named_layers() if isinstance(layer, RandomLayer)}
    if names != state.keys():
        raise CheckpointError(
            f"the random layers are {sorted(state)} in the file and {sorted(names)} in the model"
        )
    for name, value in state.items():
        good = isinstance(value, dict) and value.keys() == {"seed", "counter"}
        if not good or not all(type(n) is int and n >= 0 for n in value.values()):
            raise CheckpointError(
                f"meta: random: {name} must have the counts seed and counter, got {value!r:.80}"
            )


def _check_schedule(schedule: Schedule, stored: Any) -> None:
    here = plain(schedule_data(schedule), "schedule")
    if here != stored:
        known = stored is not None and "custom" not in stored
        saved = build_schedule(stored) if known else stored
        raise CheckpointError(
            f"the schedule is {saved} in the file and {schedule} here; give the same length and "
            "rates, or load without schedule to go on with another one"
        )


def _try_loader(loader: Positioned, state: Any) -> None:
    if state is None:
        raise CheckpointError("no position of a loader was saved; load without loader")
    try:
        copy.copy(loader).load_state_dict(state)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"loader: {error}") from error


def _load_optimizer(
    optimizer: Optimizer,
    model: Layer,
    meta: Mapping[str, Any],
    slots: Iterable[tuple[str, str, Array]],
) -> None:
    stored = meta["optimizer"]
    if stored is None:
        raise CheckpointError("no optimizer was saved; load without optimizer")
    names = parameter_names(model, optimizer)
    if set(names) != set(stored["parameters"]):
        differing = sorted(set(names) ^ set(stored["parameters"]))
        raise CheckpointError(
            f"the optimizers of file and model differ in the parameters {', '.join(differing)}"
        )
    steps = dict(zip(stored["parameters"], stored["steps"], strict=True))
    arrays: dict[str, dict[int, Array]] = {slot: {} for slot in stored["slots"]}
    for slot, name, array in slots:
        arrays[slot][names.index(name)] = array
    state = {
        "kind": stored["kind"],
        "hyperparameters": stored["hyperparameters"],
        "steps": [steps[name] for name in names],
        "slots": arrays,
    }
    try:
        optimizer.load_state_dict(state)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"optimizer: {error}") from error
