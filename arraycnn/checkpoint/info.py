"""What a checkpoint says about itself."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from arraycnn.checkpoint.config import build_schedule
from arraycnn.checkpoint.contents import checked, entries_of, slot_entries
from arraycnn.checkpoint.envelope import VERSION, open_verified
from arraycnn.checkpoint.hdf5 import (
    Entry,
    Extents,
    check_dataset,
    check_groups,
    extent_of,
    open_dataset,
    open_root,
)
from arraycnn.checkpoint.metadata import MAX_BYTES, decode
from arraycnn.checkpoint.stream import Source
from arraycnn.errors import CheckpointError
from arraycnn.files import PathLike
from arraycnn.schedules import Schedule


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


def read_checkpoint_info(path: PathLike) -> CheckpointInfo:
    """What a checkpoint holds, verified, without reading its arrays into memory.

    Raises:
        CheckpointError: damaged or not a checkpoint. OSError: the file cannot be opened.
    """
    with reading(path), open_verified(path, keep=False) as source, open_root(source) as root:
        meta = read_meta(root)
        entries = [*entries_of(meta).values(), *(e for *_, e in slot_entries(meta))]
        check_groups(root, ["meta", *(e.path for e in entries)])
        extents = Extents(source.size)
        for e in entries:
            extents.add(e.path, *check_dataset(root, e))
        extents.check()
        return info_of(path, source, meta)


@contextmanager
def reading(path: PathLike) -> Iterator[None]:
    """Put the file's name in front of the messages."""
    try:
        yield
    except CheckpointError as error:
        raise type(error)(f"{os.fspath(path)}: {error}") from error


def read_meta(root: Any) -> dict[str, Any]:
    """The metadata, checked."""
    dataset, (length,) = open_dataset(root, "meta", "uint8", None)
    if length > MAX_BYTES:
        raise CheckpointError(f"meta: {length} bytes are more than the {MAX_BYTES} allowed")
    extent_of(Entry("meta", "uint8", (length,)), dataset)
    text = np.empty(length, np.uint8)
    dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, text)
    return checked(decode(text.tobytes()))


def info_of(path: PathLike, source: Source, meta: Mapping[str, Any]) -> CheckpointInfo:
    """The public view of the metadata."""
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
