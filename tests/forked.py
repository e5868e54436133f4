"""Running a function in a forked child with a limit on memory, so that a crash can be counted."""

import os
import pickle
import resource
import select
import signal
import time
from collections.abc import Callable
from typing import Any


class ChildDied(Exception):
    """The child ended without a result: crashed, killed, or too slow."""


def memory_in_use() -> int:
    """Bytes of address space of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def run_forked(
    function: Callable[..., Any], *arguments: Any, extra_memory: int = 1 << 30, timeout: float = 60
) -> Any:
    """The function's result; the child may take ``extra_memory`` bytes more than we have.

    Raises:
        ChildDied: it crashed or took longer than ``timeout`` seconds. Its own exceptions are
            raised here.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            limit = memory_in_use() + extra_memory
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            outcome = (True, function(*arguments))
        except BaseException as error:
            outcome = (False, error)
        try:
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump(outcome, pipe)
        finally:
            os._exit(0)
    os.close(writing)
    data = _read_all(reading, timeout)
    os.close(reading)
    if data is None:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not data:
        raise ChildDied(f"status {status}" if data is not None else f"no answer in {timeout} s")
    good, value = pickle.loads(data)
    if not good:
        raise value
    return value


def _read_all(descriptor: int, timeout: float) -> bytes | None:
    end = time.monotonic() + timeout
    parts = []
    while True:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            return None
        part = os.read(descriptor, 1 << 16)
        if not part:
            return b"".join(parts)
        parts.append(part)
