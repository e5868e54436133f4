"""HDF5 files of other programs, read in pure Python by the package ``pyfive``, an optional extra.

libhdf5 can be crashed by a file (see `checkpoint.reader`), so it never sees one. What pyfive finds
is checked before it is read: only datasets of numbers, of the shape that is expected.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from arraycnn.arrays import Array, Shape
from arraycnn.errors import CheckpointError
from arraycnn.files import PathLike, open_regular

FLOATS = ("float16", "float32", "float64")
MOST_BYTES = 1 << 31  # of a file
MOST_IN_CHUNK = 1 << 26  # bytes that one compressed piece of an array may unpack to
MOST_MEMBERS = 10_000  # of a group
CONTIGUOUS = 1  # the storage of a dataset in one piece
NOWHERE = (None, (1 << 64) - 1)  # addresses of storage that was never written, or is elsewhere


@contextmanager
def foreign_file(path: PathLike) -> Iterator[Any]:
    """The root group of any HDF5 file, for `members`, `group` and `numbers`.

    Raises:
        CheckpointError: whatever goes wrong in the block, with the file's name. OSError: the file
            cannot be opened. ImportError: pyfive is not installed.
    """
    try:
        import pyfive
    except ImportError:
        raise ImportError(
            "HDF5 files of other programs need the package pyfive: pip install 'arraycnn[keras]'"
        ) from None
    name = os.fspath(path)
    with open_regular(path) as descriptor:
        size = os.fstat(descriptor).st_size
    if size > MOST_BYTES:
        raise CheckpointError(f"{name}: {size} bytes are more than the {MOST_BYTES} allowed")
    try:
        with open(path, "rb") as file, pyfive.File(file) as root:
            yield root
    except CheckpointError as error:
        raise type(error)(f"{name}: {error}") from error
    except (MemoryError, RecursionError, Exception) as error:
        kind = type(error).__name__
        raise CheckpointError(f"{name}: not readable as HDF5: {kind}: {error!s:.200}") from error


def group(parent: Any, path: str) -> Any:
    """The group at a path."""
    found = _at(parent, path)
    if not hasattr(found, "keys"):
        raise CheckpointError(f"{path} must be a group")
    return found


def members(parent: Any, path: str) -> list[str]:
    """The names in the group at a path."""
    names = list(group(parent, path).keys())
    if len(names) > MOST_MEMBERS:
        raise CheckpointError(f"{path} has {len(names)} members, {MOST_MEMBERS} are allowed")
    return names


def numbers(parent: Any, path: str, shape: Shape) -> Array:
    """The floating point numbers of the dataset at a path, which must have that shape."""
    found = _at(parent, path)
    if not hasattr(found, "dtype"):
        raise CheckpointError(f"{path} must be a dataset")
    dtype = np.dtype(found.dtype) if isinstance(found.dtype, np.dtype) else None
    if dtype is None or dtype.newbyteorder("=") not in map(np.dtype, FLOATS):
        raise CheckpointError(f"{path}: its type must be one of {FLOATS}, got {found.dtype!s:.80}")
    if tuple(found.shape) != tuple(shape):
        raise CheckpointError(f"{path}: its shape must be {tuple(shape)}, got {found.shape!s:.80}")
    chunks = found.chunks
    if chunks and math.prod(chunks) * dtype.itemsize > MOST_IN_CHUNK:
        raise CheckpointError(f"{path}: pieces of {chunks!s:.80} elements are too large")
    if found.id.layout_class == CONTIGUOUS and found.id.data_offset in NOWHERE and found.size:
        raise CheckpointError(f"{path}: its numbers are not in the file")
    array = np.asarray(found[...])
    if array.shape != tuple(shape):
        raise CheckpointError(f"{path}: its shape must be {tuple(shape)}, got {array.shape}")
    return array.astype(dtype.newbyteorder("="), copy=False)


def _at(parent: Any, path: str) -> Any:
    found = parent
    for name in path.split("/"):
        if not hasattr(found, "keys") or name not in found:
            raise CheckpointError(f"{path}: there is no such entry in the file")
        found = found[name]
    return found
