"""Optimizer updates on the CPU: the reference on chunks, so that its temporaries stay in cache."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

from arraycnn.arrays import Array
from arraycnn.backends.cpu.elementwise import SECONDS
from arraycnn.backends.cpu.threads import Workers
from arraycnn.backends.reference.updates import UpdatePrimitives

CHUNK = 1 << 16  # elements: so many of all arrays and temporaries stay in cache

Update = TypeVar("Update", bound=Callable[..., None])


def in_chunks(update: Update) -> Update:
    """``update`` of large arrays piece by piece, on several threads: it is element-wise."""

    @wraps(update)
    def update_chunks(self: "CpuUpdates", *lists: Sequence[Array], **options: Any) -> None:
        given = [arrays for arrays in lists if arrays]  # a list of state may be empty
        chunks = [chunk for arrays in zip(*given, strict=True) for chunk in _chunks(arrays)]

        def change(index: int) -> None:
            found = iter(chunks[index])
            update(self, *([next(found)] if arrays else [] for arrays in lists), **options)

        seconds = sum(parameters.size for parameters, *_ in chunks) * 8 * SECONDS
        self.workers.run(change, len(chunks), seconds, blas=False)

    return update_chunks  # type: ignore[return-value]


class CpuUpdates(UpdatePrimitives):
    """See the base class for what is computed."""

    workers: Workers

    sgd_update = in_chunks(UpdatePrimitives.sgd_update)
    adam_update = in_chunks(UpdatePrimitives.adam_update)
    rmsprop_update = in_chunks(UpdatePrimitives.rmsprop_update)
    adagrad_update = in_chunks(UpdatePrimitives.adagrad_update)


def _chunks(arrays: tuple[Array, ...]) -> list[tuple[Array, ...]]:
    """The same pieces of arrays of one shape."""
    size = arrays[0].size
    if size <= CHUNK or not all(array.flags.c_contiguous for array in arrays):
        return [arrays]
    flat = [array.reshape(-1) for array in arrays]
    return [tuple(a[start : start + CHUNK] for a in flat) for start in range(0, size, CHUNK)]
