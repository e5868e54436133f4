"""The arrays that an optimizer keeps beside a parameter."""

from collections.abc import Mapping
from typing import Any

from arraycnn.arrays import Array
from arraycnn.backends import Backend, backend_of


class State:
    """What an optimizer keeps of one parameter."""

    __slots__ = ("backend", "dtype", "shape", "slots", "steps")

    def __init__(self, steps: int = 0, slots: Mapping[str, Array] | None = None) -> None:
        self.steps = steps  # updates so far
        self.slots = slots or {}
        self.backend: Backend | None = None  # of the slots; None if that is not known
        self.dtype: Any = None
        self.shape: Any = None


def slots_like(
    data: Array, backend: Backend, start: Mapping[str, float], slots: Mapping[str, Array]
) -> dict[str, Array]:
    """``slots`` on the backend and in the dtype of ``data``; those that are missing, filled.

    Raises:
        ValueError: a slot is not of the shape of ``data``.
    """
    result = {}
    for name, fill in start.items():
        slot = slots.get(name)
        if slot is None:
            slot = backend.xp.full_like(data, fill)
        elif slot.shape != data.shape:
            raise ValueError(
                f"a parameter has the shape {tuple(data.shape)} now, but its {name} "
                f"{tuple(slot.shape)}; make another optimizer for another network"
            )
        elif slot.dtype != data.dtype or not backend.owns(slot):
            slot = copy_like(data, backend, slot)
        result[name] = slot
    return result


def copy_like(data: Array, backend: Backend, value: Array) -> Array:
    """A copy of ``value`` on the backend and in the dtype and memory order of ``data``."""
    slot = backend.xp.empty_like(data)
    slot[...] = backend.asarray(backend_of(value).to_numpy(value), dtype=data.dtype)
    return slot
