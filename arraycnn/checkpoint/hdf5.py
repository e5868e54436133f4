"""The HDF5 part of a checkpoint: one way to write it, one gate for reading it.

h5py writes, for everybody's tools. What is read goes through a reader of our own (`reader`), along
the paths that are expected and no others: the datasets that `write_structure` writes, over hard
links, contiguous, unfiltered, inside the file, of exactly the expected type and shape.
"""

import atexit
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from arraycnn.arrays import Array, Shape
from arraycnn.checkpoint.envelope import ALIGNMENT, USER_BLOCK
from arraycnn.checkpoint.links import dense_links, link
from arraycnn.checkpoint.reader import (
    GROUP_INFO,
    LINK,
    LINK_INFO,
    SPACE,
    TYPE,
    UNDEFINED,
    Reader,
    Stored,
    check_messages,
    refused,
    too_many,
)
from arraycnn.checkpoint.stream import Source, Stream
from arraycnn.errors import CheckpointError

TYPES = ("float16", "float32", "float64", "int8", "int64", "uint8", "uint64")
LIBRARY_VERSIONS = ("v110", "v110")  # the oldest and the newest format that may be written
MOST_AT_THE_TOP = 4  # meta, params, buffers, optimizer


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
    import h5py  # takes as long to import as all the rest, and only writing needs it

    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)
    stream = Stream(Source(0, descriptor))
    offsets = []
    # Errors are raised only when h5py's objects are gone: one of `h5py.File` refers to a property
    # list that crashes the interpreter at its end if it is still alive then.
    problem: BaseException | None = None
    try:
        with h5py.File(
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
                kind = h5py.h5t.py_create(np.dtype(entry.dtype).newbyteorder("<"))
                space = h5py.h5s.create_simple(entry.shape)
                dataset = h5py.h5d.create(parent, name.encode(), kind, space, properties)
                offsets.append(dataset.get_offset() if math.prod(entry.shape) else None)
    except Exception as error:
        problem = error.with_traceback(None)
    stream.check()
    if problem is not None:
        raise OSError(f"HDF5 cannot write the file: {problem}")
    return offsets


@atexit.register
def _end_h5py() -> None:
    """Do what h5py registers for the end: in vain where a program's end is what imports it."""
    end = getattr(sys.modules.get("h5py"), "_unregister_converters", None)
    if end is not None:
        end()  # may be called twice; left out, the process crashes


class Tree:
    """The groups and datasets of a checkpoint, as far as they are asked for.

    Raises:
        CheckpointError: (every method) not as written; the message says which rule was broken.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._reader = Reader(source, USER_BLOCK)
        self._groups = {"": self._links(self._reader.root(), "", MOST_AT_THE_TOP)}

    def check_groups(self, paths: Iterable[str], others: Iterable[str] = ()) -> None:
        """Refuse groups with other entries than ``paths`` need; ``others`` are not entered."""
        expected: dict[str, set[str]] = {"": set()}
        for path in (*paths, *others):
            above = ""
            for name in path.split("/"):
                names = expected.setdefault(above, set())
                names.add(name)
                above = f"{above}/{name}" if above else name
        for path, names in expected.items():
            if path not in self._groups:
                self._groups[path] = self._links(self._address(path), path, len(names))
            found = self._groups[path]
            missing = [name for name in names if name not in found]
            if missing:
                wanted = f"{path}/{missing[0]}" if path else missing[0]
                raise CheckpointError(f"{wanted}: there is no such entry in the file")
            if len(found) != len(names):
                raise too_many(path, len(names), len(found))

    def dataset(self, path: str, check: Callable[[str, Shape], None]) -> Stored:
        """The dataset at a path whose groups have been checked, if ``check`` raises nothing."""
        return self._reader.dataset(self._address(path), path, check)

    def check(self, entry: Entry) -> Stored:
        """The dataset that must be as ``entry`` says."""

        def check(dtype: str, shape: Shape) -> None:
            for what, wanted, got in (
                ("type", entry.dtype, dtype),
                ("shape", tuple(entry.shape), shape),
            ):
                if got != wanted:
                    raise CheckpointError(f"{entry.path}: its {what} must be {wanted}, got {got}")

        return self.dataset(entry.path, check)

    def bytes(self, stored: Stored) -> bytes:
        """The bytes of a dataset."""
        if stored.offset is None:
            return b""
        return self._source.read(stored.offset, stored.nbytes)

    def read(self, entry: Entry) -> Array:
        """The array that ``entry`` describes, a view of the file's bytes in memory."""
        stored = self.check(entry)
        dtype = np.dtype(entry.dtype)
        if stored.offset is None:
            return np.empty(entry.shape, dtype)
        view = self._source.kept(stored.offset, stored.nbytes).view(dtype.newbyteorder("<"))
        return view.reshape(entry.shape).astype(dtype, copy=False)

    def finish(self) -> None:
        """Refuse bytes that serve twice, and wrong checksums, of all that was read."""
        self._reader.finish()

    def _address(self, path: str) -> int:
        group, _, name = path.rpartition("/")
        links = self._groups.get(group)
        if links is None or name not in links:
            raise CheckpointError(f"{path}: there is no such entry in the file")
        return links[name]

    def _links(self, address: int, path: str, most: int) -> dict[str, int]:
        """The addresses of what a group has, by name; more than ``most`` are refused unread."""
        where, messages = self._reader.object(address, f"/{path}")
        if TYPE in messages or SPACE in messages:
            raise CheckpointError(f"/{path} must be a group, got a dataset")
        check_messages(f"/{path}", messages, (LINK_INFO, GROUP_INFO), (LINK,))
        at, body = messages[GROUP_INFO][0]
        if len(body) < 2 or body[0] or body[1] & ~3 or len(body) != 2 + 4 * body[1].bit_count():
            raise refused(at, f"/{path}: group info {body[:16].hex()}")
        at, body = messages[LINK_INFO][0]
        if len(body) != 18 or body[:2] != b"\0\0":
            raise refused(at, f"/{path}: link info {body[:2].hex()}, with an order of creation")
        heap, tree = (int.from_bytes(body[i : i + 8], "little") for i in (2, 10))
        found: list[tuple[int, Any]] = messages.get(LINK, [])
        if (heap, tree) != (UNDEFINED, UNDEFINED):
            if found:
                raise refused(where, f"/{path}: links both compact and dense")
            found = dense_links(self._reader, heap, tree, path, most)
        elif len(found) > most:
            raise too_many(path, most, len(found))
        links = [link(at, body, path) for at, body in found]
        result = dict(links)
        if len(result) != len(links):
            raise refused(where, f"/{path}: a name twice")
        return result
