"""The user block in front of the HDF5 data: size and digest, checked before HDF5 sees a byte.

bytes 0..511   89 41 43 4E 4E 0D 0A 0A | u32 version | u32 0 | u64 length of the rest
               | SHA-256 of the rest | zeros                              (little-endian)
"""

import hashlib
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from operator import itemgetter
from typing import Any

import numpy as np

from arraycnn.arrays import Array
from arraycnn.background import Worker
from arraycnn.checkpoint.stream import Source
from arraycnn.errors import CheckpointDamagedError, CheckpointError
from arraycnn.files import PathLike, open_regular

MAGIC = b"\x89ACNN\r\n\n"
VERSION = 1
USER_BLOCK = 512
ALIGNMENT = 64  # of larger datasets in the file
CHUNK = 1 << 20  # read and hashed while in the processor's cache

_FIELDS = struct.Struct("<8sIIQ32s")


def seal(
    descriptor: int,
    pieces: Iterable[tuple[int, Array]] = (),
    between: Callable[[], None] = lambda: None,
) -> None:
    """Write (offset, bytes) pieces of the HDF5 part, and the user block of the then complete file.

    One thread writes and forces to the disk what the other one hashes; ``between`` is called from
    time to time.
    """
    size = os.fstat(descriptor).st_size
    ordered = [(offset, memoryview(data)) for offset, data in sorted(pieces, key=itemgetter(0))]
    state = hashlib.sha256()
    position = USER_BLOCK
    with Worker() as writer:
        for offset, data in ordered:
            writer.submit(_write, descriptor, data, offset)
        writer.submit(os.fsync, descriptor)
        for offset, data in ordered:
            _hash(state, descriptor, position, offset)
            state.update(data)
            position = offset + len(data)
            between()
        _hash(state, descriptor, position, size)
        for _ in range(len(ordered) + 1):
            writer.result()
            between()
    fields = _FIELDS.pack(MAGIC, VERSION, 0, size - USER_BLOCK, state.digest())
    _write(descriptor, memoryview(fields.ljust(USER_BLOCK, b"\0")), 0)


@contextmanager
def open_verified(path: PathLike, *, keep: bool, limit: int | None = None) -> Iterator[Source]:
    """The bytes of a checkpoint whose size and digest are right.

    Args:
        path: a regular file. keep: hold the whole file in memory, so that what is used later is
            what was verified; else it is read again where needed.

    Raises:
        OSError: the file cannot be read. CheckpointDamagedError: it is not intact.
        CheckpointError: no checkpoint, or of a later version.
    """
    with open_regular(path) as descriptor:
        size = os.fstat(descriptor).st_size
        block = os.pread(descriptor, USER_BLOCK, 0)
        digest = _check_fields(block, size)
        if limit is not None and size > limit:
            raise CheckpointError(f"the file has {size} bytes, more than the {limit} that this "
                                  "model can need")  # fmt: skip
        memory = _memory(size, block) if keep else None
        if _digest(descriptor, size, memory) != digest:
            raise CheckpointDamagedError(
                "the checksum does not match: the file was damaged after it was written"
            )
        yield Source(size, descriptor, memory)


def _check_fields(block: bytes, size: int) -> bytes:
    """The digest of a valid user block."""
    if block[:8] != MAGIC:
        raise CheckpointDamagedError(
            f"no arraycnn checkpoint: the file must start with {MAGIC!r}, got {block[:8]!r}"
        )
    if len(block) < USER_BLOCK:
        raise CheckpointDamagedError(
            f"truncated: {size} bytes are less than the {USER_BLOCK} of the user block"
        )
    _, version, reserved, length, digest = _FIELDS.unpack_from(block)
    if version != VERSION:
        raise CheckpointError(
            f"the format version is {version}, this library reads {VERSION}; use the version of "
            "arraycnn that wrote the file, or a later one"
        )
    if reserved or any(block[_FIELDS.size :]):
        raise CheckpointDamagedError("the reserved bytes of the user block must be zero")
    if length != size - USER_BLOCK:
        raise CheckpointDamagedError(
            f"the file must have {length} bytes after the user block, got {size - USER_BLOCK}: "
            "it was truncated or extended"
        )
    return bytes(digest)


def _memory(size: int, block: bytes) -> Array:
    """Room for the file, its user block filled in: HDF5 looks there for its signature first."""
    try:
        room = np.empty(size + ALIGNMENT, np.uint8)
    except MemoryError:
        raise CheckpointError(f"the file of {size} bytes does not fit into memory") from None
    start = -room.ctypes.data % ALIGNMENT  # what is aligned in the file is aligned in memory
    memory = room[start : start + size]
    memory[:USER_BLOCK] = np.frombuffer(block, np.uint8)
    return memory


def _digest(descriptor: int, size: int, memory: Array | None) -> bytes:
    """SHA-256 of what follows the user block, kept in ``memory`` if there is one."""
    state = hashlib.sha256()
    if memory is None:
        _hash(state, descriptor, USER_BLOCK, size)
        return state.digest()
    whole = memoryview(memory)
    with Worker() as reader:  # reads ahead while this thread computes
        starts = range(USER_BLOCK, size, CHUNK)
        for start in starts:
            reader.submit(_read_exactly, descriptor, whole[start : start + CHUNK], start)
        for start in starts:
            reader.result()
            state.update(whole[start : start + CHUNK])
    return state.digest()


def _hash(state: Any, descriptor: int, start: int, end: int) -> None:
    """Update ``state`` with a part of the file."""
    buffer = memoryview(bytearray(min(CHUNK, end - start)))
    for position in range(start, end, CHUNK):
        chunk = buffer[: end - position]
        _read_exactly(descriptor, chunk, position)
        state.update(chunk)


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count


def _read_exactly(descriptor: int, into: memoryview, offset: int) -> None:
    while into:
        count = os.preadv(descriptor, [into], offset)
        if count == 0:
            raise CheckpointDamagedError("the file became shorter while it was read")
        into, offset = into[count:], offset + count
