"""What a checkpoint says about itself."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from arraycnn.arrays import Shape
from arraycnn.checkpoint.config import build_schedule
from arraycnn.checkpoint.contents import checked, entries_of, slot_entries
from arraycnn.checkpoint.envelope import VERSION, open_verified
from arraycnn.checkpoint.hdf5 import Tree
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
    with reading(path), open_verified(path, keep=False) as source:
        tree = Tree(source)
        meta = read_meta(tree)
        entries = [*entries_of(meta).values(), *(e for *_, e in slot_entries(meta))]
        tree.check_groups(["meta", *(e.path for e in entries)])
        for e in entries:
            tree.check(e)
        tree.finish()
        return info_of(path, source, meta)


@contextmanager
def reading(path: PathLike) -> Iterator[None]:
    """Put the file's name in front of the messages."""
    try:
        yield
    except CheckpointError as error:
        raise type(error)(f"{os.fspath(path)}: {error}") from error


def read_meta(tree: Tree) -> dict[str, Any]:
    """The metadata, checked."""
    return checked(decode(tree.bytes(tree.dataset("meta", _check_meta))))


def _check_meta(dtype: str, shape: Shape) -> None:
    if dtype != "uint8":
        raise CheckpointError(f"meta: its type must be uint8, got {dtype}")
    if len(shape) != 1:
        raise CheckpointError(f"meta: its shape must be (n,), got {shape}")
    if shape[0] > MAX_BYTES:
        raise CheckpointError(f"meta: {shape[0]} bytes are more than the {MAX_BYTES} allowed")


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
