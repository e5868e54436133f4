"""Device memory."""

from cupy._state import MemoryPointer, MemoryPool, OutOfMemoryError

__all__ = ["MemoryPointer", "MemoryPool", "OutOfMemoryError"]
