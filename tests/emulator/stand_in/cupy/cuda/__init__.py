"""Devices, streams, events, graphs and memory."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from cupy import _state
from cupy._state import MemoryPointer, MemoryPool
from cupy.cuda import compiler, driver, memory, nvrtc, runtime

__all__ = [
    "Device", "Event", "Graph", "MemoryPointer", "MemoryPool", "Stream", "alloc", "compiler",
    "driver", "get_current_stream", "get_elapsed_time", "is_available", "memory", "nvrtc",
    "runtime", "set_allocator", "using_allocator",
]  # fmt: skip


def is_available() -> bool:
    return _state.device_count() > 0


class Device:
    """A device by number; the current one where none is given."""

    def __init__(self, device: Any = None) -> None:
        self.id = _state.local.device if device is None else int(device)
        self._previous: list[int] = []

    def __int__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.id == self.id

    def __hash__(self) -> int:
        return self.id

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"

    def __enter__(self) -> "Device":
        self._previous.append(_state.local.device)
        self.use()
        return self

    def __exit__(self, *exception: Any) -> None:
        _state.local.device = self._previous.pop()

    def use(self) -> "Device":
        if not 0 <= self.id < _state.device_count():
            raise _state.CUDARuntimeError(101)
        _state.local.device = self.id
        return self

    def synchronize(self) -> None:
        _state.host_waits()

    @property
    def compute_capability(self) -> str:
        return "90"

    @property
    def mem_info(self) -> tuple[int, int]:
        return runtime.memGetInfo()

    @property
    def attributes(self) -> dict[str, int]:
        return {"MultiProcessorCount": 4, "MaxSharedMemoryPerBlockOptin": 227 << 10}


class Stream:
    """A queue of work; everything is done at once, except while it captures."""

    null: "Stream"

    def __init__(self, null: bool = False, non_blocking: bool = False, ptds: bool = False,
                 priority: int | None = None) -> None:  # fmt: skip
        self.ptr = 0 if null else id(self)
        self.is_non_blocking = non_blocking
        self.device_id = -1 if null else _state.local.device
        self.nodes: list[_state.Node] | None = None
        self.invalidated = False

    def __enter__(self) -> "Stream":
        _state.local.streams.append(self)
        return self

    def __exit__(self, *exception: Any) -> None:
        _state.local.streams.pop()

    def use(self) -> "Stream":
        _state.local.streams[-1:] = [self]
        return self

    @property
    def done(self) -> bool:
        return True

    def synchronize(self) -> None:
        if self.is_capturing():
            self.invalidated = True
            raise _state.CUDARuntimeError(900)

    def record(self, event: "Event | None" = None) -> "Event":
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: "Event") -> None:
        """Nothing to wait for: what was queued before has been done."""

    def is_capturing(self) -> bool:
        return self.nodes is not None

    def begin_capture(self, mode: int | None = None) -> None:
        if self.ptr == 0:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        if self.is_capturing():
            raise _state.CUDARuntimeError(1)
        self.nodes, self.invalidated = [], False

    def end_capture(self) -> "Graph":
        if self.nodes is None:
            raise _state.CUDARuntimeError(1)
        nodes, self.nodes = self.nodes, None
        if self.invalidated:
            raise _state.CUDARuntimeError(901)
        graph = Graph.__new__(Graph)
        graph.nodes = nodes
        return graph


Stream.null = Stream(null=True)


class Graph:
    """Captured work, to be done again as often as it is launched."""

    nodes: list[_state.Node]

    def __init__(self) -> None:
        raise NotImplementedError(
            "currently this class cannot be initiated by the user and must be created via stream "
            "capture"
        )

    def upload(self, stream: Stream | None = None) -> None:
        """Nothing to send ahead."""

    def launch(self, stream: Stream | None = None) -> None:
        with stream or contextlib.nullcontext():
            if _state.capturing():
                raise _state.CUDARuntimeError(900)
            for node in self.nodes:
                node.run()


class Event:
    """A point in a stream's work."""

    def __init__(self, block: bool = False, disable_timing: bool = False,
                 interprocess: bool = False) -> None:  # fmt: skip
        self.done = True
        self.time = time.perf_counter()

    def record(self, stream: Stream | None = None) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        _state.host_waits()


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    return 1e3 * (end_event.time - start_event.time)


def get_current_stream(device_id: int = -1) -> Stream:
    return _state.current_stream() or Stream.null


def get_device_id() -> int:
    return _state.local.device


def alloc(size: int) -> MemoryPointer:
    return (_state.local.allocator or _state.default_pool.malloc)(size)


def set_allocator(allocator: Any = None) -> None:
    _state.local.allocator = allocator


@contextlib.contextmanager
def using_allocator(allocator: Any = None) -> Iterator[None]:
    previous, _state.local.allocator = _state.local.allocator, allocator
    try:
        yield
    finally:
        _state.local.allocator = previous


class PinnedMemoryPool:
    """Page-locked host memory: nothing to keep."""

    def free_all_blocks(self) -> None:
        """Nothing is kept."""

    def n_free_blocks(self) -> int:
        return 0
