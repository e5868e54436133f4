"""Where CuPy's error class lives."""

from cupy._state import CUDARuntimeError

__all__ = ["CUDARuntimeError"]
