"""Saving a checkpoint."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from arraycnn.arrays import Array
from arraycnn.checkpoint.contents import entry, entry_of, host, metadata_of, tensors_of
from arraycnn.checkpoint.envelope import seal
from arraycnn.checkpoint.hdf5 import Entry, write_structure
from arraycnn.checkpoint.metadata import encode
from arraycnn.files import PathLike, atomic_file
from arraycnn.interrupts import held_signals
from arraycnn.layers.layer import Layer
from arraycnn.optim import Optimizer
from arraycnn.schedules import Schedule


class Stateful(Protocol):
    """What has a position to save, such as a `DataLoader`."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def save_checkpoint(
    path: PathLike,
    model: Layer,
    optimizer: Optimizer | None = None,
    *,
    schedule: Schedule | None = None,
    loader: Stateful | None = None,
    epoch: int = 0,
    step: int = 0,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Save everything that training needs to go on exactly; see docs/checkpoint-format.md.

    When this returns, the checkpoint is on the disk; until then ``path`` shows the previous one.
    Nothing may change the arrays meanwhile, so do not train in another thread.

    Args:
        path: the file, conventionally ``*.h5``.
        model: its parameters, buffers, configuration and the state of its random layers.
        optimizer: hyper-parameters, counts and slots. schedule: its configuration.
        loader: its position, from ``state_dict``. epoch, step: where the training is.
        extra: plain data of your own (None, bool, int, float, str, list, dict).

    Raises:
        OSError: of the system's kind; the previous checkpoint is untouched and nothing is left.
        TypeError, ValueError: an argument cannot be saved, for instance an optimizer of another
            model, or NaN in ``extra``. Nothing is written then.
    """
    if not isinstance(model, Layer):
        raise TypeError(f"model must be a layer, got {type(model).__name__}")
    state = None if optimizer is None else optimizer.state_dict()
    meta = metadata_of(
        model,
        optimizer,
        state,
        schedule=schedule,
        loader=loader,
        epoch=epoch,
        step=step,
        extra=extra,
    )
    text = encode(meta)
    arrays = dict(_arrays(text, model, meta, state))
    with held_signals() as handle, atomic_file(path) as descriptor:
        offsets = write_structure(descriptor, arrays)
        handle()
        pieces = zip(offsets, arrays.values(), strict=True)
        seal(descriptor, [(at, _bytes(array)) for at, array in pieces if at is not None], handle)


def _arrays(
    text: bytes, model: Layer, meta: Mapping[str, Any], state: Mapping[str, Any] | None
) -> Iterator[tuple[Entry, Array]]:
    yield Entry("meta", "uint8", (len(text),)), np.frombuffer(text, np.uint8)
    for name, tensor in tensors_of(model).items():
        yield entry_of(name, tensor), tensor.data
    if state is not None:
        names = meta["optimizer"]["parameters"]
        for slot, arrays in state["slots"].items():
            for index, array in arrays.items():
                where = entry(f"optimizer/{slot}", names[index], array.dtype, array.shape)
                yield where, array


def _bytes(array: Array) -> Array:
    """The elements of ``array`` in C order, little-endian, as bytes."""
    values = host(array)
    little = values.astype(values.dtype.newbyteorder("<"), order="C", copy=False)
    return little.reshape(-1).view(np.uint8)
