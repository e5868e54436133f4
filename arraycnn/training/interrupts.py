"""Ctrl-C and SIGTERM that wait for a good moment."""

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
