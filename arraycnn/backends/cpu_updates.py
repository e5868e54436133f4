"""Optimizer updates on the CPU: the reference on chunks, so that its temporaries stay in cache."""

from collections.abc import Callable, Sequence
from typing import Any

from arraycnn.backends.cpu_elementwise import CHUNK, SECONDS
from arraycnn.backends.threads import Workers
from arraycnn.backends.updates import UpdatePrimitives
from arraycnn.types import Array


class CpuUpdates(UpdatePrimitives):
    """Every update is element-wise, so large arrays are updated in chunks, on several threads."""

    workers: Workers

    def sgd_update(self, *lists: Any, **options: Any) -> None:
        self._in_chunks(super().sgd_update, lists, options)

    def adam_update(self, *lists: Any, **options: Any) -> None:
        self._in_chunks(super().adam_update, lists, options)

    def rmsprop_update(self, *lists: Any, **options: Any) -> None:
        self._in_chunks(super().rmsprop_update, lists, options)

    def adagrad_update(self, *lists: Any, **options: Any) -> None:
        self._in_chunks(super().adagrad_update, lists, options)

    def _in_chunks(
        self,
        update: Callable[..., None],
        lists: tuple[Sequence[Array], ...],
        options: dict[str, Any],
    ) -> None:
        given = [arrays for arrays in lists if arrays]  # a list of state may be empty
        chunks = [chunk for arrays in zip(*given, strict=True) for chunk in _chunks(arrays)]

        def change(index: int) -> None:
            found = iter(chunks[index])
            update(*([next(found)] if arrays else [] for arrays in lists), **options)

        seconds = sum(parameters.size for parameters, *_ in chunks) * 8 * SECONDS
        self.workers.run(change, len(chunks), seconds, blas=False)


def _chunks(arrays: tuple[Array, ...]) -> list[tuple[Array, ...]]:
    """The same pieces of arrays of one shape."""
    size = arrays[0].size
    if size <= CHUNK or not all(array.flags.c_contiguous for array in arrays):
        return [arrays]
    flat = [array.reshape(-1) for array in arrays]
    return [tuple(a[start : start + CHUNK] for a in flat) for start in range(0, size, CHUNK)]
