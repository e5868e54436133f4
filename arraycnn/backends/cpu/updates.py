"""Optimizer updates on the CPU: the reference on chunks, so that its temporaries stay in cache."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

from arraycnn.arrays import Array
from arraycnn.backends.cpu.device import CpuDevice, cuts
from arraycnn.backends.cpu.tuning import SECONDS_PER_PASS, UPDATE_ELEMENTS
from arraycnn.backends.reference.updates import UpdatePrimitives

Update = TypeVar("Update", bound=Callable[..., None])
PASSES = 8  # over an element in an update, about


def in_chunks(update: Update) -> Update:
    """``update`` of large arrays piece by piece, on several threads: it is element-wise."""

    @wraps(update)
    def update_chunks(self: "CpuUpdates", *lists: Sequence[Array], **options: Any) -> None:
        small: list[list[Array]] = [[] for _ in lists]  # a list of state may be empty
        tasks, size = [small], 0
        for index, parameter in enumerate(lists[0]):
            arrays = [each[index] if each else None for each in lists]
            size += parameter.size
            chunks = _chunks(parameter.size, arrays)
            tasks += chunks
            if not chunks:
                for each, array in zip(small, arrays, strict=True):
                    if array is not None:
                        each.append(array)
        seconds = size * PASSES * SECONDS_PER_PASS
        self.workers.run(lambda task: update(self, *task, **options), tasks, seconds, blas=False)

    return update_chunks  # type: ignore[return-value]


class CpuUpdates(CpuDevice, UpdatePrimitives):
    """See the base class for what is computed."""

    sgd_update = in_chunks(UpdatePrimitives.sgd_update)
    adam_update = in_chunks(UpdatePrimitives.adam_update)
    rmsprop_update = in_chunks(UpdatePrimitives.rmsprop_update)
    adagrad_update = in_chunks(UpdatePrimitives.adagrad_update)


def _chunks(size: int, arrays: list[Array | None]) -> list[list[list[Array]]]:
    """Lists of one piece of each of the arrays; none for small arrays, or where one has gaps."""
    if size <= UPDATE_ELEMENTS:
        return []
    if not all(array is None or array.flags.c_contiguous for array in arrays):
        return []
    flat = [None if array is None else array.reshape(-1) for array in arrays]
    return [
        [[] if array is None else [array[part]] for array in flat]
        for part in cuts(size, UPDATE_ELEMENTS)
    ]
