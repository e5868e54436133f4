"""Threads over the parts of one operation, with BLAS at one thread inside.

BLAS threads help large products only, and nothing else in a network. Here whole tiles (fill the
columns, multiply, add the bias) are what runs in parallel. How work is cut into parts depends on
shapes alone, never on the number of threads, so results do not either.
"""

import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from arraycnn.geometry import count_of

VARIABLE = "ARRAYCNN_NUM_THREADS"
WORTHWHILE = 3e-4  # seconds of work; handing it to another thread costs a tenth of that


class Workers:
    """Runs parts of an operation on up to ``count`` threads, the caller's among them."""

    def __init__(self) -> None:
        self.count = _default_count()
        self._pool: ThreadPoolExecutor | None = None
        self._busy = threading.local()
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._forget)

    @property
    def count(self) -> int:
        return self._count

    @count.setter
    def count(self, count: int) -> None:
        self._count = count_of("num_threads", count)
        self._pool = None

    def run(
        self, part: Callable[[int], None], parts: int, seconds: float, blas: bool = True
    ) -> None:
        """Call ``part(0)`` … ``part(parts − 1)``, in any order, at once where ``seconds``, a guess
        at the work in all of them, is worth it. ``blas`` says whether they call BLAS."""
        if blas:
            with one_blas_thread:
                self.run(part, parts, seconds, blas=False)
            return
        helpers = min(self.count, parts) - 1
        if helpers < 1 or seconds < WORTHWHILE or getattr(self._busy, "inside", False):
            for index in range(parts):
                part(index)
            return
        indices = iter(range(parts))  # next() on it is atomic

        def work() -> None:
            self._busy.inside = True
            try:
                for index in indices:
                    part(index)
            finally:
                self._busy.inside = False

        futures = [self._submit(work) for _ in range(helpers)]
        try:
            work()
        finally:
            for future in futures:
                future.result()

    def _submit(self, work: Callable[[], None]) -> "Future[None]":
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.count, "arraycnn")
            return self._pool.submit(work)

    def _forget(self) -> None:
        """A forked child has none of the threads."""
        self._pool, self._lock = None, threading.Lock()


class _Blas:
    """A context in which NumPy's BLAS has one thread; afterwards it has as many as before."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._libraries: Any = None
        self._changed: list[tuple[Any, int]] = []
        os.register_at_fork(after_in_child=self._forget)

    def __enter__(self) -> None:
        with self._lock:
            if self._libraries is None:
                self._libraries = ThreadpoolController().select(user_api="blas").lib_controllers
            if not self._inside:
                counts = [library.get_num_threads() for library in self._libraries]
                self._changed = [
                    (one, n) for one, n in zip(self._libraries, counts, strict=True) if n != 1
                ]
                for library, _ in self._changed:
                    library.set_num_threads(1)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                for library, count in self._changed:
                    library.set_num_threads(count)

    def describe(self) -> str:
        """Which BLAS NumPy uses, and for which processor."""
        with self:
            found = [library.info() for library in self._libraries]
        return ", ".join(map(_description, found))

    def _forget(self) -> None:
        self._lock, self._inside = threading.Lock(), 0


def _description(library: Mapping[str, Any]) -> str:
    """Name, version and kernels of a BLAS library, and what to do about kernels too old for here.

    OpenBLAS knows processors by name: one that it does not know gets the kernels of an older one.
    """
    kernels = library.get("architecture")
    name = " ".join(filter(None, (library["internal_api"], library["version"], kernels)))
    has = set(np.show_config(mode="dicts")["SIMD Extensions"]["found"])
    if kernels in ("Haswell", "Zen") and has & {"X86_V4", "AVX512_SKX"}:  # NumPy's names of AVX-512
        name += " (without AVX-512; start Python with OPENBLAS_CORETYPE=SkylakeX to use it)"
    return name


one_blas_thread = _Blas()
describe_blas = one_blas_thread.describe


def _default_count() -> int:
    """``$ARRAYCNN_NUM_THREADS``, else the processors that this process may use."""
    given = os.environ.get(VARIABLE)
    if not given:
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1
    if not given.isdecimal() or int(given) < 1:
        raise ValueError(f"{VARIABLE} must be a positive integer, got {given!r}")
    return int(given)
