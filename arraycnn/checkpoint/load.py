"""Loading a checkpoint: into a model and an optimizer, or as a new model."""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from arraycnn.arrays import Array
from arraycnn.backends import BackendLike, backend_of, get_backend
from arraycnn.checkpoint.config import build_model, build_schedule
from arraycnn.checkpoint.contents import (
    entries_of,
    entry_of,
    listed,
    parameter_names,
    schedule_data,
    slot_entries,
    tensors_of,
    tie,
)
from arraycnn.checkpoint.envelope import open_verified
from arraycnn.checkpoint.hdf5 import Entry, Tree
from arraycnn.checkpoint.info import CheckpointInfo, info_of, read_meta, reading
from arraycnn.checkpoint.metadata import MAX_BYTES, plain
from arraycnn.checkpoint.save import Stateful
from arraycnn.errors import CheckpointError
from arraycnn.files import PathLike
from arraycnn.interrupts import held_signals
from arraycnn.layers.layer import Layer, RandomLayer
from arraycnn.optim import Optimizer
from arraycnn.parameters import Variable
from arraycnn.schedules import Schedule

_SLOTS = 8  # arrays per parameter that an optimizer may keep, to bound the size of a file


def load_checkpoint(
    path: PathLike,
    model: Layer,
    optimizer: Optimizer | None = None,
    *,
    schedule: Schedule | None = None,
    loader: Stateful | None = None,
    backend: BackendLike | None = None,
) -> CheckpointInfo:
    """Restore ``model``, and what else is given, bit for bit from a checkpoint.

    Nothing changes unless the file is intact and everything fits. What is not given is not read.

    Args:
        model: of the same parameters and buffers: names, shapes, dtypes.
        optimizer: of the same kind, over the same parameters; takes over the hyper-parameters too.
        schedule: must equal the saved one; of a function of your own, and of a warm-up to one, only
            the name is compared. loader: moved to the saved position.
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
    with reading(path):
        with open_verified(path, keep=True, limit=_size_limit(tensors)) as source:
            tree = Tree(source)
            meta = read_meta(tree)
            _check_fit(expected, entries_of(meta))
            slots = list(slot_entries(meta))
            used = slots if optimizer is not None else []
            paths = [e.path for e in (*expected.values(), *(e for *_, e in used))]
            tree.check_groups(["meta", *paths], ["optimizer"] if slots else [])
            loaded = {n: tree.read(e) for n, e in expected.items()}
            moments = [(slot, n, tree.read(e)) for slot, n, e in used]
            tree.finish()
            info = info_of(path, source, meta)
        fresh = {
            name: (target or backend_of(tensors[name].data)).asarray(array)
            for name, array in loaded.items()
        }
        _check_random(model, meta["random"])
        if schedule is not None:
            _check_schedule(schedule, meta["schedule"])
        if loader is not None:
            _try_loader(loader, meta["loader"])
        load_optimizer = _optimizer_load(optimizer, model, meta, moments)
        _check_writable(tensors)
        with held_signals():
            if loader is not None:
                _move(loader, meta["loader"])
            if target is not None:
                model.to(target)
            for name, array in fresh.items():
                tensors[name].data[...] = array
            load_optimizer()
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
    with reading(path):
        with open_verified(path, keep=True) as source:
            tree = Tree(source)
            meta = read_meta(tree)
            if "problem" in meta["model"]:
                raise CheckpointError(
                    "the network's configuration could not be saved "
                    f"({meta['model']['problem']!r:.200});"
                    " build the network yourself and use load_checkpoint"
                )
            entries = entries_of(meta)
            paths = [e.path for e in entries.values()]
            others = ["optimizer"] if any(slot_entries(meta)) else []
            tree.check_groups(["meta", *paths], others)
            loaded = {n: tree.read(e) for n, e in entries.items()}
            tree.finish()
        model = build_model(meta["model"], classes)
        tie(model, meta.get("tied", {}))
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


def _size_limit(tensors: Mapping[str, Variable]) -> int:
    """The most bytes that a file for these tensors needs; larger ones are not taken into memory."""
    arrays: int = (1 + _SLOTS) * sum(t.size * t.dtype.itemsize for t in tensors.values())
    headers = (1 + _SLOTS) * 4096 * (1 + len(tensors))
    return arrays + headers + 2 * MAX_BYTES


def _check_fit(expected: Mapping[str, Entry], stored: Mapping[str, Entry]) -> None:
    missing = [name for name in expected if name not in stored]
    unexpected = [name for name in stored if name not in expected]
    problems = [f"missing in the file: {listed(missing)}"] if missing else []
    problems += [f"unexpected in the file: {listed(unexpected)}"] if unexpected else []
    differing = [
        f"{name} is {_text(stored[name])} in the file and {_text(entry)} in the model"
        for name, entry in expected.items()
        if name in stored and stored[name] != entry
    ]
    problems += [listed(differing, "; ")] if differing else []
    if problems:
        raise CheckpointError(f"it does not fit the model: {'; '.join(problems)}")


def _text(entry: Entry) -> str:
    kind = "parameter" if entry.path.startswith("params/") else "buffer"
    return f"a {entry.dtype} {kind} of shape {entry.shape}"


def _typed_as(entries: Mapping[str, Entry], name: str, tensor: Variable) -> Entry:
    """The entry of a tensor that may take any float dtype if it is of one."""
    own = entry_of(name, tensor)
    stored = entries.get(name, own)
    both = own.dtype.startswith("float") and stored.dtype.startswith("float")
    return replace(own, dtype=stored.dtype) if both else own


def _check_random(model: Layer, state: Mapping[str, Any]) -> None:
    names = {name for name, layer in model.named_layers() if isinstance(layer, RandomLayer)}
    if names != state.keys():
        raise CheckpointError(
            f"the random layers are [{listed([*map(repr, sorted(state))])}] in the file and "
            f"[{listed([*map(repr, sorted(names))])}] in the model"
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


def _check_writable(tensors: Mapping[str, Variable]) -> None:
    for name, tensor in tensors.items():
        if not getattr(getattr(tensor.data, "flags", None), "writeable", True):
            raise CheckpointError(
                f"{name} of the model is read-only; give it a copy: .data = .data.copy()"
            )


def _try_loader(loader: Stateful, state: Any) -> None:
    if state is None:
        raise CheckpointError("no position of a loader was saved; load without loader")
    _move(copy.copy(loader), state)


def _move(loader: Stateful, state: Any) -> None:
    try:
        loader.load_state_dict(state)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"loader: {error!s:.200}") from error
    except Exception as error:  # the loader may be the user's
        raise CheckpointError(f"loader: {type(error).__name__}: {error!s:.200}") from error


def _optimizer_load(
    optimizer: Optimizer | None,
    model: Layer,
    meta: Mapping[str, Any],
    slots: Iterable[tuple[str, str, Array]],
) -> Callable[[], None]:
    """Check all that concerns the optimizer; returns a function that loads it and cannot fail."""
    if optimizer is None:
        return lambda: None
    stored = meta["optimizer"]
    if stored is None:
        raise CheckpointError("no optimizer was saved; load without optimizer")
    try:
        names = parameter_names(model, optimizer)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    if set(names) != set(stored["parameters"]):
        differing = sorted(set(names) ^ set(stored["parameters"]))
        raise CheckpointError(
            f"the optimizers of file and model differ in the parameters {listed(differing)}"
        )
    indices = {name: index for index, name in enumerate(names)}
    arrays: dict[str, dict[int, Array]] = {slot: {} for slot in stored["slots"]}
    for slot, name, array in slots:
        arrays[slot][indices[name]] = array
    steps = dict(zip(stored["parameters"], stored["steps"], strict=True))
    state = {**stored, "steps": [steps[name] for name in names], "slots": arrays}
    del state["parameters"]
    try:
        commit = optimizer.prepare_load(state)
    except (TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"optimizer: {error!s:.500}") from error
    _check_groups(names, stored)
    return commit


def _check_groups(names: Iterable[str], stored: Mapping[str, Any]) -> None:
    """Refuse groups that have as many parameters as the saved ones, but others."""
    ours, theirs = iter(names), iter(stored["parameters"])
    for i, group in enumerate(stored.get("groups", ())):
        here = set(islice(ours, group["parameters"]))
        saved = set(islice(theirs, group["parameters"]))
        if here != saved:
            raise CheckpointError(
                f"group {i} of the optimizer has the parameters {listed(sorted(here))}, and in the "
                f"file {listed(sorted(saved))}; give it the groups that were saved"
            )
