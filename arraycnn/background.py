"""A thread that works ahead; where none can be had, the work is done when its result is asked for.

`concurrent.futures` refuses work once the main thread has ended, and waits for ever in a child that
was forked from its process; both happen to programs that train. `threading.Thread.start` does not
survive an interrupt; a thread is begun by a single call here.
"""

import os
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any, Self


class Worker:
    """Call functions in their order, in another thread if one can be had.

    Each one must be closed. As a context it also waits for the function that is running, and drops
    the others.
    """

    def __init__(self) -> None:
        self._requests: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        self._results: SimpleQueue[tuple[Any, BaseException | None] | None] = SimpleQueue()
        self._waiting: deque[Callable[[], Any]] = deque()
        self._process: int | None = None  # that has the thread: a child of it has not
        self._closed = False

    def submit(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Have a function called."""
        call = partial(function, *arguments)
        if self._process is None and not self._waiting:
            self._process = os.getpid()
            try:
                start_new_thread(self._work, ())
            except RuntimeError:  # the interpreter ends, or no more threads are allowed
                self._process = None
        self._waiting.append(call)
        if self._has_thread():
            self._requests.put(call)

    def result(self) -> Any:
        """What the next one of the functions returned; its exception is raised here."""
        call = self._waiting.popleft()
        found = self._results.get() if self._has_thread() else None
        if found is None:
            return call()
        value, error = found
        if error is not None:
            try:
                raise error
            finally:
                del error, found  # which would hold this frame, and this frame them
        return value

    def close(self) -> None:
        """Let the thread end after the function that it is at; does not wait for it."""
        self._requests.put(None)
        self._closed = True

    def _has_thread(self) -> bool:
        return self._process == os.getpid()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        if self._has_thread():
            while self._results.get() is not None:
                pass

    def _work(self) -> None:
        while (call := self._requests.get()) is not None and not self._closed:
            try:
                self._results.put((call(), None))
            except BaseException as error:
                self._results.put((None, error))
            del call  # arrays are not kept until the next request
        self._results.put(None)
