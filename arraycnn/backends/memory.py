"""Memory that is used again instead of being asked from the system anew.

A fresh large array costs a page fault for every 4 KiB before the first number is written; on the
activations of a small network that is most of the time of an element-wise operation. Blocks are
lent out through a lease: NumPy keeps it alive as the base of the array and of every view of it,
and when the last of them is gone the block returns. What anyone still refers to is never reused.
"""

import math
import os
import threading
from typing import Any

import numpy as np

from arraycnn.types import Array, Shape

SMALLEST = 256 << 10  # below this, malloc reuses memory by itself
GRAIN = 64 << 10
ALIGNMENT = 64


class BlockPool:
    """Arrays in blocks that are kept for reuse up to ``capacity`` bytes."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._free: dict[int, list[Array]] = {}
        self._kept = 0
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def empty(self, shape: Shape, dtype: Any) -> Array:
        """An uninitialised C-contiguous array."""
        dtype = np.dtype(dtype)
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes < SMALLEST:
            return np.empty(shape, dtype)
        block = np.asarray(_Lease(self, self._take(-(-nbytes // GRAIN) * GRAIN)))
        return block[:nbytes].view(dtype).reshape(shape)

    def _take(self, size: int) -> Array:
        with self._lock:
            blocks = self._free.get(size)
            if blocks:
                self._kept -= size
                return blocks.pop()
        raw = np.empty(size + ALIGNMENT, np.uint8)
        start = -raw.ctypes.data % ALIGNMENT
        return raw[start : start + size]

    def _forget(self) -> None:
        """Make the lock anew: in a forked child another thread's hold on it would never end.

        It is reentrant because the garbage collector may end a lease while it is held.
        """
        self._lock = threading.RLock()

    def give_back(self, block: Array) -> None:
        """Take a block that nobody refers to any more; dropped where there is no room for it."""
        with self._lock:
            if self._kept + block.size <= self.capacity:
                self._free.setdefault(block.size, []).append(block)
                self._kept += block.size


class _Lease:
    """Holds a block while an array or a view of it lives.

    No subclass of ndarray: NumPy would look through it to the block when it makes a view, and the
    lease would end while the view lives on.
    """

    __slots__ = ("__array_interface__", "_block", "_pool")

    def __init__(self, pool: BlockPool, block: Array) -> None:
        self._pool, self._block = pool, block
        self.__array_interface__ = block.__array_interface__

    def __del__(self) -> None:
        self._pool.give_back(self._block)


class Scratch(threading.local):
    """Working memory of each thread, by name; valid until the same name is asked for again."""

    def __init__(self) -> None:
        self._arrays: dict[str, Array] = {}

    def __call__(self, name: str, shape: Shape, dtype: Any) -> Array:
        dtype = np.dtype(dtype)
        nbytes = math.prod(shape) * dtype.itemsize
        array = self._arrays.get(name)
        if array is None or array.size < nbytes:
            array = self._arrays[name] = np.empty(nbytes, np.uint8)
        return array[:nbytes].view(dtype).reshape(shape)
