"""Signals that wait for a good moment: Ctrl-C, and SIGTERM."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# Clusters announce the end of a job with SIGTERM some time before they kill it.
_DEFAULTS: dict[signal.Signals, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}


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


@contextmanager
def interrupt_calls(function: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Within the block the first SIGINT (Ctrl-C) or SIGTERM calls ``function(signal)``.

    A second signal acts as if this were not there: KeyboardInterrupt, or the end of the process.
    Only the main thread can handle signals, and a program's own handlers are left alone.
    """
    main = threading.current_thread() is threading.main_thread()
    ours = [
        number
        for number, default in _DEFAULTS.items()
        if main and signal.getsignal(number) == default
    ]

    def restore() -> None:
        for number in ours:
            signal.signal(number, _DEFAULTS[number])

    def handle(number: int, frame: FrameType | None) -> None:
        restore()
        function(signal.Signals(number))

    for number in ours:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()
