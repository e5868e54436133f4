"""Memory that is used again instead of being asked from the system anew.

A fresh large array costs a page fault for every 4 KiB before the first number is written; on the
activations of a small network that is most of the time of an element-wise operation. Blocks are
lent out through a lease: NumPy keeps it alive as the base of the array and of every view of it,
and when the last of them is gone the block returns. What anyone still refers to is never reused.
"""

import math
import os
import threading
from bisect import bisect
from collections import deque
from functools import lru_cache
from typing import Any
from weakref import ref

import numpy as np

from arraycnn.arrays import Array, Shape
from arraycnn.backends.cpu import tuning

ALIGNMENT = 64  # bytes, a cache line


class BlockPool:
    """Arrays in blocks of a few segments of memory; ``capacity`` bytes are kept when unused.

    A block is cut from the first gap that is large enough, and returned ones grow together again:
    what the deep layers of a network needed serves the wide ones. Segments beyond the capacity live
    as long as a block of theirs.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._kept: list[_Segment] = []
        self._others: list[ref[_Segment]] = []
        self._lent: dict[Any, tuple[ref[_Segment], int, int]] = {}  # by reference to the lease
        self._returned: deque[Any] = deque()  # references to leases that are gone
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def empty(self, shape: Shape, dtype: Any) -> Array:
        """An uninitialised C-contiguous array."""
        dtype = np.dtype(dtype)
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes < tuning.RECYCLED_BYTES:
            return np.empty(shape, dtype)
        block = np.asarray(self._take(-(-nbytes // tuning.BLOCK_BYTES) * tuning.BLOCK_BYTES))
        return block[:nbytes].view(dtype).reshape(shape)

    def segments(self) -> "list[_Segment]":
        """All segments, what was returned put back."""
        while self._returned:
            segment, start, stop = self._lent.pop(self._returned.popleft())
            found = segment()
            if found is not None:
                found.join(start, stop)
        if not self._others:
            return self._kept
        self._others = [segment for segment in self._others if segment() is not None]
        others = [segment() for segment in self._others]
        return self._kept + [segment for segment in others if segment is not None]

    def _take(self, size: int) -> "_Lease":
        with self._lock:
            segments = self.segments()
            for segment in segments:
                start = segment.cut(size)
                if start is not None:
                    break
            else:
                least = tuning.SEGMENT_BYTES if segments else tuning.FIRST_SEGMENT_BYTES
                segment = _Segment(max(size, least))
                start = segment.cut(size) or 0
                if sum(one.memory.size for one in (*self._kept, segment)) <= self.capacity:
                    self._kept.append(segment)
                else:
                    self._others.append(ref(segment))
            lease = _Lease(segment, start, size)
            # An array may end at any moment, while this very thread holds the lock or is about to
            # be interrupted. `append` is no Python code: nothing can come in between.
            self._lent[ref(lease, self._returned.append)] = (ref(segment), start, start + size)
            return lease

    def _forget(self) -> None:
        """Make the lock anew: in a forked child another thread's hold on it would never end."""
        self._lock = threading.Lock()


class _Segment:
    """Memory and the gaps in it: (start, stop) in order, no two of them touching."""

    def __init__(self, size: int) -> None:
        raw = np.empty(size + ALIGNMENT, np.uint8)
        start = -raw.ctypes.data % ALIGNMENT
        self.memory = raw[start : start + size]
        self.gaps = [(0, size)]

    def cut(self, size: int) -> int | None:
        """Take ``size`` bytes from the first gap that has them; where they begin."""
        for index, (start, stop) in enumerate(self.gaps):
            if stop - start > size:
                self.gaps[index] = (start + size, stop)
                return start
            if stop - start == size:
                del self.gaps[index]
                return start
        return None

    def join(self, start: int, stop: int) -> None:
        """Make a gap, one with its neighbours."""
        index = bisect(self.gaps, (start, stop))
        if index < len(self.gaps) and self.gaps[index][0] == stop:
            stop = self.gaps.pop(index)[1]
        if index and self.gaps[index - 1][1] == start:
            index -= 1
            start = self.gaps.pop(index)[0]
        self.gaps.insert(index, (start, stop))


class _Lease:
    """Holds a block while an array or a view of it lives.

    No subclass of ndarray: NumPy would look through it to the block when it makes a view, and the
    lease would end while the view lives on.
    """

    __slots__ = ("__array_interface__", "__weakref__", "_segment")

    def __init__(self, segment: _Segment, start: int, size: int) -> None:
        self._segment = segment
        self.__array_interface__ = segment.memory[start : start + size].__array_interface__


class Scratch(threading.local):
    """Working memory of each thread, by name; valid until the same name is asked for again.

    Between operations the large arrays are lent back to the pool, where activations use them.
    """

    def __init__(self, blocks: BlockPool) -> None:
        self._blocks = blocks
        self._arrays: dict[str, Array] = {}
        self._large: list[str] = []

    def __call__(self, name: str, shape: Shape, dtype: Any) -> Array:
        dtype = np.dtype(dtype)
        nbytes = math.prod(shape) * dtype.itemsize
        array = self._arrays.get(name)
        if array is None or array.size < nbytes:
            array = self._arrays[name] = self._blocks.empty((nbytes,), np.uint8)
            if nbytes >= tuning.RECYCLED_BYTES:
                self._large.append(name)
        return array[:nbytes].view(dtype).reshape(shape)

    def give_back(self) -> None:
        """Return the thread's large arrays."""
        while self._large:
            self._arrays.pop(self._large.pop(), None)


def zeros(length: int, dtype: Any) -> Array:
    """Zeros to compare with: comparing with one number takes several times as long in NumPy."""
    return _zeros(1 << (length - 1).bit_length(), dtype)[:length]


@lru_cache(maxsize=64)
def _zeros(length: int, dtype: Any) -> Array:
    found = np.zeros(length, dtype)
    found.flags.writeable = False
    return found
