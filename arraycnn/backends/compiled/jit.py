"""Functions that Numba compiles when they are first wanted, and the types of their arguments.

Importing this module imports Numba; a kernel is compiled, or read from Numba's cache on disk, when
it is first used.
"""

import sys
import threading
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numba
import numpy as np
from numba import njit, types
from numba.core import event

VERSION: str = numba.__version__
float32: Any = np.float32
_lock = threading.Lock()


class Kernel:
    """A function that is compiled for one signature when it is first wanted."""

    def __init__(self, function: Callable[..., None], signature: Any, sums: bool) -> None:
        self._function, self._signature = function, signature
        # Sums may be taken in any fixed order; NaN and infinities stay what they are. Elsewhere an
        # operation rounds as in NumPy: x·scale + shift must cancel in a constant channel.
        self._fast = {"contract", "reassoc", "nsz"} if sums else False

    @cached_property
    def compiled(self) -> Callable[..., None]:
        """The machine code."""
        with _lock, event.install_listener("numba:compile", _announcement):
            found: Callable[..., None] | None = vars(self).get("compiled")
            return found or self._compile()

    def _compile(self) -> Callable[..., None]:
        options = {"nogil": True, "fastmath": self._fast, "error_model": "numpy"}
        compiled: Callable[..., None]
        try:
            compiled = njit(self._signature, cache=True, **options)(self._function)
        except RuntimeError:  # there is nowhere to keep it
            compiled = njit(self._signature, **options)(self._function)
        return compiled


class _Announcement(event.Listener):  # type: ignore[misc]
    """Says once that Numba compiles; reading machine code from its cache is no compilation."""

    _told = False

    def on_start(self, event: Any) -> None:
        if not self._told:
            self._told = True
            print(
                "arraycnn: compiling its CPU kernels with Numba, which is done once and kept",
                file=sys.stderr,
            )

    def on_end(self, event: Any) -> None:
        """Nothing to say."""


_announcement = _Announcement()


def kernel(*arguments: Any, sums: bool = False) -> Callable[[Callable[..., None]], Kernel]:
    """Make a function of arguments of these types a `Kernel`."""
    return lambda function: Kernel(function, types.void(*arguments), sums)


def In(ndim: int) -> Any:
    """A float32 array that is read."""
    return types.Array(types.float32, ndim, "C", readonly=True)


def Out(ndim: int) -> Any:
    """A float32 array that is written."""
    return types.Array(types.float32, ndim, "C")


INT, BOOL = types.int64, types.boolean
TABLE = types.Array(types.int64, 2, "C", readonly=True)
NUMBERS = types.Array(types.int64, 1, "C", readonly=True)
TAPS_IN = types.Array(types.uint8, 4, "C", readonly=True)
TAPS_OUT = types.Array(types.uint8, 4, "C")
