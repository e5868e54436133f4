"""The HDF5 part of a checkpoint: one way to write a dataset, one gate for reading it.

HDF5 can lead a reader anywhere: to other files (external links and storage, virtual datasets),
round in circles (links), into code (filters), or to shapes of terabytes from a file of a kilobyte.
The gate lets through only what `write_structure` writes: the datasets that are asked for by path,
over hard links, contiguous, unfiltered, inside the file, of exactly the expected type and shape.
Nothing that was not asked for is visited.
"""

import contextlib
import math
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from arraycnn.arrays import Array, Shape
from arraycnn.checkpoint.envelope import ALIGNMENT, USER_BLOCK
from arraycnn.checkpoint.stream import Source, Stream
from arraycnn.errors import CheckpointDamagedError, CheckpointError

TYPES = {
    "float16": h5py.h5t.IEEE_F16LE,
    "float32": h5py.h5t.IEEE_F32LE,
    "float64": h5py.h5t.IEEE_F64LE,
    "int8": h5py.h5t.STD_I8LE,
    "int64": h5py.h5t.STD_I64LE,
    "uint8": h5py.h5t.STD_U8LE,
    "uint64": h5py.h5t.STD_U64LE,
}
LIBRARY_VERSIONS = ("v110", "v110")  # the oldest and the newest format that may be written

_SUPERBLOCK = struct.Struct("<8sBBBBQQQQ")  # version 3, without its checksum
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_UNDEFINED = (1 << 64) - 1


@dataclass(frozen=True)
class Entry:
    """An array of a checkpoint: where it is in the file, and what it must be."""

    path: str
    dtype: str
    shape: Shape


def write_structure(descriptor: int, entries: Iterable[Entry]) -> list[int | None]:
    """Write everything but the values; where the bytes of each dataset belong, None if it has none.

    The same entries give the same bytes.
    """
    stream = Stream(Source(0, descriptor))
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)
    offsets = []
    with _open_file(
        stream,
        "w",
        libver=LIBRARY_VERSIONS,
        userblock_size=USER_BLOCK,
        alignment_threshold=1024,
        alignment_interval=ALIGNMENT,
    ) as file:
        for entry in entries:
            group, _, name = entry.path.rpartition("/")
            parent = file.require_group(group).id if group else file.id
            kind, space = TYPES[entry.dtype], h5py.h5s.create_simple(entry.shape)
            dataset = h5py.h5d.create(parent, name.encode(), kind, space, properties)
            offsets.append(dataset.get_offset() if math.prod(entry.shape) else None)
    return offsets


@contextlib.contextmanager
def open_root(source: Source, *, ours: bool = True) -> Iterator[Any]:
    """The root group of the HDF5 part; of any HDF5 file unless ``ours``.

    Raises:
        CheckpointError: whatever goes wrong in the block inside HDF5.
    """
    stream = Stream(source)
    if ours:
        _check_superblock(stream, source.size)
    with _open_file(stream, "r") as file:
        yield file.id


@contextlib.contextmanager
def _open_file(stream: Stream, mode: str, **options: Any) -> Iterator[Any]:
    """An open HDF5 file, all of whose errors become one `CheckpointDamagedError` or the stream's.

    Errors are raised only when h5py's own are gone: one of `h5py.File` refers to a property list
    that crashes the interpreter at its end if it is still alive then.
    """
    problem = ""
    try:
        with h5py.File(stream, mode, **options) as file:
            yield file
    except CheckpointError:
        if stream.failure is None:
            raise
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    stream.check()
    if problem:
        raise CheckpointDamagedError(f"HDF5 cannot use the file: {problem}")


def _check_superblock(stream: Stream, size: int) -> None:
    stream.seek(USER_BLOCK)
    block = stream.read(_SUPERBLOCK.size)
    signature, *numbers = _SUPERBLOCK.unpack(block)
    version, offsets, lengths, flags, base, extension, end, _ = numbers
    found = {
        "signature": (signature, _SIGNATURE),
        "superblock version": (version, 3),
        "size of offsets": (offsets, 8),
        "size of lengths": (lengths, 8),
        "consistency flags": (flags, 0),
        "base address": (base, USER_BLOCK),
        "superblock extension": (extension, _UNDEFINED),
        "end of file": (end, size),
    }
    for name, (value, expected) in found.items():
        if value != expected:
            raise CheckpointDamagedError(f"HDF5's {name} must be {expected!r}, got {value!r}")


def check_groups(root: Any, paths: Iterable[str], others: Iterable[str] = ()) -> None:
    """Refuse groups with more or fewer entries than ``paths`` need; ``others`` are not entered."""
    groups: dict[str, set[str]] = {"": set()}
    for path in (*paths, *others):
        parts = path.split("/")
        for depth, name in enumerate(parts):
            groups.setdefault("/".join(parts[:depth]), set()).add(name)
    for path, names in groups.items():
        group = open_object(root, path) if path else root
        _check_kind(path, group, h5py.h5g.GroupID)
        _check_attributes(path, group)
        count = group.get_num_objs()
        if count != len(names):
            raise CheckpointError(
                f"group '/{path}' must have {len(names)} entries, got {count}; more or fewer than "
                "the contents need are not allowed"
            )


class Extents:
    """The bytes in the file that the datasets read so far occupy: inside it, each once."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._taken: list[tuple[int, int, str]] = []

    def add(self, path: str, start: int, length: int) -> None:
        """Take ``length`` bytes for the dataset ``path``."""
        if not length:
            return
        first = USER_BLOCK + _SUPERBLOCK.size
        if start < first or start + length > self._size:
            raise CheckpointError(
                f"{path}: its bytes must be within {first} and {self._size}, got {start} to "
                f"{start + length}"
            )
        self._taken.append((start, start + length, path))

    def check(self) -> None:
        """Refuse datasets that overlap."""
        self._taken.sort()
        for (_, end, path), (start, _, other) in zip(self._taken, self._taken[1:], strict=False):
            if start < end:
                raise CheckpointError(f"{path} and {other} share bytes of the file")


def open_dataset(
    root: Any, path: str, dtype: str, shape: Shape | None, *, attributes: bool = False
) -> tuple[Any, Shape]:
    """The gate: the dataset at ``path`` and its shape, if it is what we write.

    Args:
        shape: the expected one; None for one dimension of any size.
        attributes: allow attributes, which are not read.

    Raises:
        CheckpointError: missing, or of another kind; the message says which rule was broken.
    """
    dataset = open_object(root, path)
    _check_kind(path, dataset, h5py.h5d.DatasetID)
    properties = dataset.get_create_plist()
    layout = properties.get_layout()
    if layout != h5py.h5d.CONTIGUOUS:
        raise CheckpointError(f"{path}: its storage must be contiguous, got {_layout_name(layout)}")
    if properties.get_external_count():
        raise CheckpointError(f"{path}: its bytes are in another file, which is not allowed")
    if properties.get_nfilters():
        raise CheckpointError(f"{path}: filters such as compression are not allowed")
    if not attributes:
        _check_attributes(path, dataset)
    stored = dataset.get_type()
    if not stored.equal(TYPES[dtype]) or stored.committed():
        raise CheckpointError(f"{path}: its type must be {dtype}, got {_type_name(stored)}")
    space = dataset.get_space()
    if space.get_simple_extent_type() == h5py.h5s.NULL:
        raise CheckpointError(f"{path}: it has no data space")
    found = tuple(map(int, space.get_simple_extent_dims()))
    if found != tuple(map(int, space.get_simple_extent_dims(maxdims=True))):
        raise CheckpointError(f"{path}: its shape must be fixed, but it can grow")
    if (len(found) != 1) if shape is None else (found != shape):
        expected = "(n,)" if shape is None else shape
        raise CheckpointError(f"{path}: its shape must be {expected}, got {found}")
    return dataset, found


def extent_of(entry: Entry, dataset: Any) -> tuple[int, int]:
    """Offset in the file and number of bytes of a dataset that has passed the gate."""
    length = math.prod(entry.shape) * np.dtype(entry.dtype).itemsize
    stored = dataset.get_storage_size()
    if stored != length:
        raise CheckpointError(f"{entry.path}: {length} bytes must be stored, got {stored}")
    offset = dataset.get_offset() if length else 0
    if offset is None:
        raise CheckpointError(f"{entry.path}: its bytes are not in the file")
    return int(offset), length


def check_dataset(root: Any, entry: Entry) -> tuple[int, int]:
    """Offset and number of bytes of the dataset that must be as ``entry`` says."""
    dataset, _ = open_dataset(root, entry.path, entry.dtype, entry.shape)
    return extent_of(entry, dataset)


def read_dataset(root: Any, entry: Entry, source: Source, extents: Extents) -> Array:
    """The array that ``entry`` describes, a view of the file's bytes in memory.

    Raises:
        CheckpointError: the gate refuses it, or its bytes are not in the file.
    """
    start, length = check_dataset(root, entry)
    extents.add(entry.path, start, length)
    dtype = np.dtype(entry.dtype)
    view = source.kept(start, length).view(dtype.newbyteorder("<"))
    return view.reshape(entry.shape).astype(dtype, copy=False)


def open_object(root: Any, path: str) -> Any:
    """The object at the end of ``path``, every link on the way being a hard one."""
    node = root
    done: list[str] = []
    for name in path.split("/"):
        _check_kind("/".join(done), node, h5py.h5g.GroupID)
        done.append(name)
        key = name.encode()
        if not node.links.exists(key):
            raise CheckpointError(f"{path}: there is no such entry in the file")
        kind = node.links.get_info(key).type
        if kind != h5py.h5l.TYPE_HARD:
            names = {h5py.h5l.TYPE_SOFT: "a soft link", h5py.h5l.TYPE_EXTERNAL: "an external link"}
            where = "/".join(done)
            raise CheckpointError(
                f"{where}: only hard links are allowed, got {names.get(kind, 'a user-defined one')}"
            )
        node = h5py.h5o.open(node, key)
    return node


def _check_kind(path: str, node: Any, kind: Any) -> None:
    if not isinstance(node, kind):
        expected = "group" if kind is h5py.h5g.GroupID else "dataset"
        raise CheckpointError(f"/{path} must be a {expected}, got {type(node).__name__}")


def _check_attributes(path: str, node: Any) -> None:
    count = h5py.h5a.get_num_attrs(node)
    if count:
        raise CheckpointError(f"/{path}: attributes are not allowed, got {count}")


def _layout_name(layout: int) -> str:
    names = {
        h5py.h5d.COMPACT: "compact",
        h5py.h5d.CHUNKED: "chunked",
        h5py.h5d.VIRTUAL: "virtual",
    }
    return names.get(layout, str(layout))


def _type_name(stored: Any) -> str:
    try:
        return f"{'a named type, ' if stored.committed() else ''}{stored.dtype}"
    except (TypeError, ValueError):
        return type(stored).__name__
