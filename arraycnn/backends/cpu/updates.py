"""Optimizer updates on the CPU: the reference on chunks, so that its temporaries stay in cache."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

from arraycnn.arrays import Array
from arraycnn.backends.cpu import tuning
from arraycnn.backends.cpu.device import CpuDevice, cuts
from arraycnn.backends.reference.updates import UpdatePrimitives

Update = TypeVar("Update", bound=Callable[..., None])
PASSES = 8  # over an element in an update, about


def in_chunks(update: Update) -> Update:
    """``update`` of large arrays piece by piece, on several threads: it is element-wise."""

    @wraps(update)
    def update_chunks(self: "CpuUpdates", *lists: Sequence[Array], **options: Any) -> None:
        present = [arrays for arrays in lists if arrays]  # a list of state may be empty
        small: list[tuple[Array, ...]] = []
        tasks = [small]
        size = 0
        for arrays in zip(*present, strict=True):
            size += arrays[0].size
            if arrays[0].size <= tuning.UPDATE_ELEMENTS:
                small.append(arrays)
            else:
                tasks += ([chunk] for chunk in _chunks(arrays))

        def change(task: list[tuple[Array, ...]]) -> None:
            found = zip(*task, strict=True)
            update(self, *(next(found, ()) if arrays else () for arrays in lists), **options)

        self.workers.run(change, tasks, size * PASSES * tuning.SECONDS_PER_PASS, blas=False)

    return update_chunks  # type: ignore[return-value]


class CpuUpdates(CpuDevice, UpdatePrimitives):
    """See the base class for what is computed."""

    sgd_update = in_chunks(UpdatePrimitives.sgd_update)
    adam_update = in_chunks(UpdatePrimitives.adam_update)
    rmsprop_update = in_chunks(UpdatePrimitives.rmsprop_update)
    adagrad_update = in_chunks(UpdatePrimitives.adagrad_update)


def _chunks(arrays: tuple[Array, ...]) -> list[tuple[Array, ...]]:
    """The same pieces of arrays of one shape; themselves where one has gaps."""
    if not all(array.flags.c_contiguous for array in arrays):
        return [arrays]
    flat = [array.reshape(-1) for array in arrays]
    return [tuple(a[part] for a in flat) for part in cuts(arrays[0].size, tuning.UPDATE_ELEMENTS)]
