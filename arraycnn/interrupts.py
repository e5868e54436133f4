"""Signals that wait: Ctrl-C in the middle of something that must be whole."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def held_signals() -> Iterator[Callable[[], None]]:
    """Let signals wait for the end of the block; what the block gets handles those that wait.

    Python handles a signal between any two instructions of the main thread, and a handler may
    raise: `KeyboardInterrupt` by default. Within the block this happens only where it is asked for.

    Example:
        >>> with held_signals() as handle:
        ...     for piece in ():
        ...         handle()  # a good moment
    """
    waiting: list[tuple[int, Any]] = []
    handlers: dict[int, Any] = {}

    def hold(number: int, frame: Any) -> None:
        waiting.append((number, frame))

    def handle() -> None:
        while waiting:
            number, frame = waiting.pop(0)
            handlers[number](number, frame)

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    try:
        if threading.current_thread() is threading.main_thread():
            for number in signal.valid_signals():
                handler = signal.getsignal(number)
                if callable(handler):
                    handlers[number] = handler
                    signal.signal(number, hold)
        yield handle
    finally:
        try:
            restore()
        finally:
            restore()  # one that is back may have raised between the others
        handle()
