"""What h5py reads from and writes to instead of a file: bytes that we hold, errors that we keep.

libhdf5 does not survive every error of a file (a failed write leaves an object that cannot be
closed), so a `Stream` never passes one to it: it keeps the first one, plays on, and `check` raises
it afterwards.
"""

import os
from typing import Any

from arraycnn.arrays import Array
from arraycnn.errors import CheckpointDamagedError


class Source:
    """The bytes of a file: a descriptor, and perhaps all that follow the user block in memory."""

    def __init__(self, size: int, descriptor: int, memory: Array | None = None) -> None:
        self.size = size
        self._descriptor = descriptor
        self._memory = memory

    def kept(self, start: int, length: int) -> Array:
        """The bytes from ``start`` as an array, not copied; only where they are in memory."""
        if self._memory is None:
            raise RuntimeError("this file was not taken into memory")
        return self._memory[start : start + length]

    def read(self, start: int, length: int) -> bytes:
        """The bytes from ``start``; fewer where the file ends."""
        if self._memory is not None:
            return bytes(self._memory[start : start + length])
        found = bytearray()
        while len(found) < length and start + len(found) < self.size:
            part = os.pread(self._descriptor, length - len(found), start + len(found))
            if not part:
                raise CheckpointDamagedError("the file became shorter while it was read")
            found += part
        return bytes(found)

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of ``data`` at ``offset``."""
        while data:
            count = os.pwrite(self._descriptor, data, offset)
            data, offset = data[count:], offset + count
            self.size = max(self.size, offset)

    def truncate(self, size: int) -> None:
        """Set the length of the file."""
        os.ftruncate(self._descriptor, size)
        self.size = size


class Stream:
    """A file object for h5py over a `Source`."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._position = 0
        self.failure: BaseException | None = None

    def check(self) -> None:
        """Raise the first error that was kept."""
        if self.failure is not None:
            raise self.failure

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position, absolute or from the end."""
        self._position = offset + (self._source.size if whence == os.SEEK_END else 0)
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position

    def read(self, count: int) -> bytes:
        """``count`` bytes. h5py knows a file by this method but calls `readinto`."""
        data = bytearray(count)
        self.readinto(memoryview(data))
        return bytes(data)

    def readinto(self, into: Any) -> int:
        """Fill ``into``, with zeros where there is nothing."""
        view = memoryview(into).cast("B")
        wanted, done = len(view), 0
        try:
            while done < wanted and self.failure is None:
                part = self._source.read(self._position + done, wanted - done)
                count = len(part)
                view[done : done + count] = part
                if count == 0:
                    raise CheckpointDamagedError("HDF5 was led beyond the end of the file")
                done += count
        except BaseException as error:
            self._keep(error)
        view[done:] = bytes(wanted - done)
        self._position += wanted
        return wanted

    def write(self, data: Any) -> int:
        """Write ``data`` at the position."""
        view = memoryview(data).cast("B")
        try:
            if self.failure is None:
                self._source.write(self._position, view)
        except BaseException as error:
            self._keep(error)
        self._position += len(view)
        return len(view)

    def truncate(self, size: int) -> int:
        """Set the length of the file."""
        try:
            if self.failure is None:
                self._source.truncate(size)
        except BaseException as error:
            self._keep(error)
        return size

    def _keep(self, error: BaseException) -> None:
        # Its traceback would keep the views of libhdf5's memory alive, which is freed meanwhile.
        self.failure = self.failure or error.with_traceback(None)

    def flush(self) -> None:
        """Nothing is buffered here."""
