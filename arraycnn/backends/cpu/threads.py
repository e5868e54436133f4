"""Threads over the tasks of one operation, with BLAS at one thread inside.

BLAS threads help large products only, and nothing else in a network. Here whole tiles (fill the
columns, multiply, add the bias) are what runs in parallel. How work is cut into tasks depends on
shapes alone, never on the number of threads, so results do not either.
"""

import os
import threading
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import product
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

from arraycnn.arguments import as_count
from arraycnn.backends.cpu import tuning

VARIABLE = "ARRAYCNN_NUM_THREADS"

T = TypeVar("T")


class Workers:
    """Runs the tasks of an operation on up to ``count`` threads, the caller's among them.

    ``finish`` is called in each of them at the end, after an error too.

    An operation of a small network takes 0.2 ms, so what a helper may do is handed over in a bare
    queue, and taken back if that thread has not begun when all is done.
    """

    def __init__(self, finish: Callable[[], None] = lambda: None) -> None:
        self.count = _default_count()
        self._finish = finish
        self._busy = threading.local()
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    @property
    def count(self) -> int:
        return self._count

    @count.setter
    def count(self, count: int) -> None:
        self._count = as_count("num_threads", count)

    def run(
        self, task: Callable[[T], object], items: Sequence[T], seconds: float, blas: bool = True
    ) -> None:
        """Call ``task`` for each of the items, in any order; after an error no more are begun.

        Args:
            seconds: a guess at the work in all of them, which says whether threads are worth it.
            blas: whether a task calls BLAS.
        """
        user = object()
        try:
            if blas:
                _blas.begin(user)
            helpers = min(self._count, len(items)) - 1
            if (
                helpers < 1
                or seconds < tuning.THREAD_SECONDS
                or getattr(self._busy, "inside", False)
            ):
                try:
                    for item in items:
                        task(item)
                finally:
                    self._finish()
            else:
                self._run_on_threads(task, items, helpers)
        finally:
            if blas:
                _blas.end(user)

    def _run_on_threads(
        self, task: Callable[[T], object], items: Sequence[T], helpers: int
    ) -> None:
        remaining = iter(items)  # next() on it is atomic

        def work() -> None:
            self._busy.inside = True
            try:
                for item in remaining:
                    task(item)
            except BaseException:
                deque(remaining, maxlen=0)  # nobody begins another
                raise
            finally:
                self._busy.inside = False
                self._finish()

        shares = [_Share(work) for _ in range(helpers)]
        self._employ(helpers)
        try:
            for share in shares:
                self._shares.put(share)
            work()
        finally:
            _wait(shares)

    def _employ(self, helpers: int) -> None:
        """Start threads until there are ``helpers`` of them."""
        if self._employed >= helpers:
            return
        with self._lock, suppress(RuntimeError):  # none to be had: the caller takes the shares back
            while self._employed < helpers:
                start_new_thread(_serve, (self._shares,))
                self._employed += 1

    def _forget(self) -> None:
        """Begin without threads: a forked child has none of them."""
        self._shares: SimpleQueue[_Share] = SimpleQueue()
        self._employed = 0
        self._lock = threading.Lock()


class _Share:
    """One helper's share of an operation, done by the helper or taken back by the caller."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = [work]  # whoever pops it decides: the helper does it, the caller cancels it
        self._running = True
        self._error: BaseException | None = None
        self._done = threading.Lock()
        self._done.acquire()

    def run(self) -> None:
        try:
            work = self._work.pop()
        except IndexError:
            return
        try:
            work()
        except BaseException as error:
            self._error = error
        del work  # its arrays are the caller's to free
        self._running = False
        self._done.release()

    def wait(self) -> None:
        """Wait until it is done, not at all if nobody has begun; raise the error that ended it."""
        with suppress(IndexError):
            self._work.pop()
            return
        error = self._error
        while self._running:
            try:
                self._done.acquire()
            except BaseException as interrupt:  # the helper still writes into the caller's arrays
                error = interrupt
        error = error or self._error
        if error:
            raise error


def _wait(shares: list[_Share]) -> None:
    """Wait for all of them, also where one raises."""
    try:
        while shares:
            shares.pop().wait()
    finally:
        if shares:
            _wait(shares)


def _serve(shares: "SimpleQueue[_Share]") -> None:
    while True:
        shares.get().run()


class _ThreadCount(NamedTuple):
    """How to ask a BLAS library for its number of threads, and how to tell it."""

    ask: Callable[[], int]
    tell: Callable[[int], None]


class _Blas:
    """NumPy's BLAS, which has one thread while it has users here, and then as many as before."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users: set[Any] = set()
        self._libraries: Any = None
        self._counts: list[_ThreadCount] = []
        self._changed: list[tuple[_ThreadCount, int]] = []
        os.register_at_fork(after_in_child=self._forget)

    def begin(self, user: object) -> None:
        """Go down to one thread for ``user``, who calls `end`, also after an error in here."""
        with self._lock:
            if self._libraries is None:
                self._libraries = ThreadpoolController().select(user_api="blas").lib_controllers
                self._counts = [_thread_count(library) for library in self._libraries]
            if not self._users:
                self._changed.clear()
                self._users.add(user)
                for library in self._counts:
                    count = library.ask()
                    if count != 1:
                        self._changed.append((library, count))
                        library.tell(1)
            self._users.add(user)

    def end(self, user: object) -> None:
        """Go back up if ``user`` was the last."""
        try:
            self._end(user)
        except BaseException:  # an interrupt, wherever it came
            self._end(user)
            raise

    def _end(self, user: object) -> None:
        with self._lock:
            self._users.discard(user)
            if not self._users:
                for library, count in self._changed:
                    library.tell(count)

    def describe(self) -> str:
        """Which BLAS NumPy uses, and for which processor."""
        with OneBlasThread():
            found = [library.info() for library in self._libraries]
        return ", ".join(map(_description, found))

    def _forget(self) -> None:
        self._lock, self._users = threading.Lock(), set()


def _thread_count(library: Any) -> _ThreadCount:
    """Of OpenBLAS, its own functions: all Python threads share its threads, but threadpoolctl from
    3.8 on heeds only the first that tells, as long as that lives."""
    if getattr(library, "threading_layer", None) != "openmp":  # whose number is each thread's own
        for prefix, suffix in product(("", "scipy_"), ("", "64_", "_64")):
            names = [f"{prefix}openblas_{verb}_num_threads{suffix}" for verb in ("get", "set")]
            if all(hasattr(library.dynlib, name) for name in names):
                return _ThreadCount(*(getattr(library.dynlib, name) for name in names))
    return _ThreadCount(library.get_num_threads, library.set_num_threads)


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


class OneBlasThread:
    """A context in which NumPy's BLAS has one thread."""

    def __enter__(self) -> None:
        try:
            _blas.begin(self)
        except BaseException:
            _blas.end(self)
            raise

    def __exit__(self, *_: object) -> None:
        _blas.end(self)


_blas = _Blas()
describe_blas = _blas.describe


def _default_count() -> int:
    """``$ARRAYCNN_NUM_THREADS``, else the processors that this process may use."""
    value = os.environ.get(VARIABLE)
    if not value:
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(f"{VARIABLE} must be a positive integer, got {value!r}")
    return int(value)
