"""What a driver keeps: errors, the current device, memory blocks, the current stream."""

import os
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

DEVICE_MEMORY = 16 << 30  # bytes that each emulated device claims to have
ALIGNMENT = 512  # of every allocation, and the unit that pools round sizes up to
POISON = 0xFF  # fresh memory and what surrounds it: NaN in every float type

STATUS = {
    1: "cudaErrorInvalidValue: invalid argument",
    35: "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version",
    100: "cudaErrorNoDevice: no CUDA-capable device is detected",
    101: "cudaErrorInvalidDevice: invalid device ordinal",
    900: "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing",
    901: "cudaErrorStreamCaptureInvalidated: operation failed due to a previous error during "
    "capture",
}


class CUDARuntimeError(RuntimeError):
    """What CuPy raises where a call of the CUDA runtime fails."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(STATUS.get(status, f"cudaError {status}"))


class OutOfMemoryError(MemoryError):
    """What CuPy raises where device memory or a pool's limit is exhausted."""

    def __init__(self, size: int, total: int, limit: int = 0) -> None:
        self._size, self._total, self._limit = size, total, limit
        message = f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes"
        super().__init__(message + (f", limit set to: {limit:,} bytes)." if limit else ")."))


class EmulatorError(AssertionError):
    """Something that a GPU would not notice: memory overwritten or used after its release."""


class Local(threading.local):
    """Per thread: the device, the streams entered, and the allocator."""

    def __init__(self) -> None:
        self.device = 0
        self.streams: list[Any] = []
        self.allocator: Callable[[int], Any] | None = None


local = Local()


def device_count() -> int:
    return int(os.environ.get("EMULATOR_DEVICES", "1"))


class Memory:
    """A block of device memory: aligned, poisoned, with guard bytes on both sides.

    Under the address sanitizer it is one allocation of exactly that size instead, whose
    surroundings the sanitizer watches.
    """

    def __init__(self, nbytes: int, pool: Any, device: int) -> None:
        self.nbytes = nbytes
        self.device = device
        self.pool = pool
        if os.environ.get("EMULATOR_SANITIZE") == "1":
            self._whole = np.empty(max(1, nbytes), np.uint8)
            self._start = 0
        else:
            self._whole = np.empty(nbytes + 3 * ALIGNMENT, np.uint8)
            self._start = ALIGNMENT - self._whole.ctypes.data % ALIGNMENT + ALIGNMENT
            self._guards = (
                self._whole[self._start - ALIGNMENT : self._start],
                self._whole[self._start + nbytes : self._start + nbytes + ALIGNMENT // 2],
            )
            for guard in self._guards:
                guard.fill(POISON)
        self.bytes = self._whole[self._start : self._start + nbytes]
        self.bytes.fill(POISON)
        self.address = self._whole.ctypes.data + self._start

    def check(self) -> None:
        """Raise where something was written around the block."""
        for name, guard in zip(("before", "behind"), getattr(self, "_guards", ()), strict=False):
            if (guard != POISON).any():
                guard.fill(POISON)
                raise EmulatorError(f"written {name} an array of {self.nbytes} bytes")

    def holds(self, array: np.ndarray) -> bool:
        """Whether ``array`` is a view of this block."""
        address = array.__array_interface__["data"][0]
        return array.size > 0 and self.address <= address < self.address + self.nbytes

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if self.pool is not None and not is_finalizing():
            self.pool.release(self.nbytes)


class Foreign(Memory):
    """Memory of another library that a view was made of."""

    def __init__(self, host: np.ndarray, owner: Any, device: int) -> None:
        self.owner = owner
        self.device = device
        self.pool = None
        low, high = np.lib.array_utils.byte_bounds(host)
        self.address, self.nbytes = low, high - low


class MemoryPointer:
    """Where an array starts."""

    def __init__(self, memory: Memory, offset: int = 0) -> None:
        self.mem = memory
        self.device_id = memory.device
        self.ptr = memory.address + offset


class MemoryPool:
    """Device memory with a limit; what is freed stays with the pool until it is asked to let go."""

    def __init__(self, allocator: Any = None) -> None:
        self._used = self._free = self._limit = 0

    def malloc(self, nbytes: int) -> MemoryPointer:
        size = -(-nbytes // ALIGNMENT) * ALIGNMENT
        if size > self._free:  # a new block
            most = min(self._limit or DEVICE_MEMORY, DEVICE_MEMORY)
            if self._used + self._free + size > most:
                self._free = 0
            if self._used + size > most:
                raise OutOfMemoryError(size, self._used, self._limit)
        self._free -= min(size, self._free)
        self._used += size
        return MemoryPointer(Memory(nbytes, self, local.device))

    def release(self, nbytes: int) -> None:
        size = -(-nbytes // ALIGNMENT) * ALIGNMENT
        self._used -= size
        self._free += size

    def used_bytes(self) -> int:
        return self._used

    def free_bytes(self) -> int:
        return self._free

    def total_bytes(self) -> int:
        return self._used + self._free

    def n_free_blocks(self) -> int:
        return int(self._free > 0)

    def free_all_blocks(self, stream: Any = None) -> None:
        self._free = 0

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        self._limit = int(fraction * DEVICE_MEMORY) if fraction is not None else int(size or 0)

    def get_limit(self) -> int:
        return self._limit


def _limit_from_environment(text: str | None) -> int:
    """CUPY_GPU_MEMORY_LIMIT: bytes, or a percentage of the device's memory."""
    if not text:
        return 0
    if text.endswith("%"):
        return int(float(text[:-1]) / 100 * DEVICE_MEMORY)
    return int(text)


default_pool = MemoryPool()
default_pool.set_limit(_limit_from_environment(os.environ.get("CUPY_GPU_MEMORY_LIMIT")))


def allocate(nbytes: int) -> Memory:
    pointer = (local.allocator or default_pool.malloc)(nbytes)
    return pointer.mem


class Node:
    """One captured operation and the memory that it touches, which it does not keep."""

    def __init__(self, action: Callable[[], None], memories: list[Memory]) -> None:
        self.action = action
        self.memories = [(weakref.ref(memory), _weak_pool(memory)) for memory in memories]

    def run(self) -> None:
        kept = []
        for reference, pool in self.memories:
            memory = reference()
            if memory is not None:
                kept.append(memory)
            elif pool is None or pool() is None:
                raise EmulatorError(
                    "a graph touches memory that was given back after the capture; keep the arrays "
                    "that it reads and writes, or capture with a memory pool of its own"
                )
        self.action()
        check(kept)


def _weak_pool(memory: Memory) -> Any:
    """The pool that keeps a freed block for the graph: any but the default one, which lends it to
    whoever asks next."""
    pool = memory.pool
    return None if pool is None or pool is default_pool else weakref.ref(pool)


def check(memories: list[Memory]) -> None:
    for memory in memories:
        memory.check()


def current_stream() -> Any:
    return local.streams[-1] if local.streams else None


def capturing() -> bool:
    stream = current_stream()
    return stream is not None and stream.is_capturing()


def perform(action: Callable[[], None], memories: list[Memory]) -> None:
    """Run a device operation, or record it where the current stream captures."""
    if capturing():
        current_stream().nodes.append(Node(action, memories))
    else:
        action()
        check(memories)


def host_waits() -> None:
    """The host is about to wait for the device, which a capturing stream forbids."""
    if capturing():
        current_stream().invalidated = True
        raise CUDARuntimeError(900)


def cublas() -> None:
    """A call of cuBLAS, which CuPy refuses while a stream captures (cupy#6290)."""
    if capturing():
        raise NotImplementedError(
            "calling cuBLAS API during stream capture is currently unsupported"
        )
