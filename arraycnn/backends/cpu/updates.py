"""Optimizer updates on the CPU: in chunks, so that a rule's temporaries stay in cache."""

from collections.abc import Sequence
from typing import Any

from arraycnn.arrays import Array
from arraycnn.backends.cpu.elementwise import SECONDS
from arraycnn.backends.cpu.threads import WORTHWHILE, Workers
from arraycnn.backends.reference.updates import Rule, UpdatePrimitives

CHUNK = 1 << 16  # elements: so many of all arrays and temporaries stay in cache


class CpuUpdates(UpdatePrimitives):
    """See the base class for what is computed."""

    workers: Workers

    def update_parameters(
        self, rule: Rule, arrays: Sequence[tuple[Array, ...]], **options: Any
    ) -> None:
        elements, tasks = 0, []
        for one in arrays:
            size = one[0].size
            elements += size
            tasks += _chunks(one) if size > CHUNK and hasattr(rule, "elementwise") else [one]
        seconds = elements * 8 * SECONDS
        if seconds < WORTHWHILE:
            super().update_parameters(rule, tasks, **options)
            return
        self.workers.run(
            lambda index: rule(self.xp, *tasks[index], **options), len(tasks), seconds, blas=False
        )


def _chunks(arrays: tuple[Array, ...]) -> list[tuple[Array, ...]]:
    """The same pieces of arrays of one shape."""
    if not all(array.flags.c_contiguous for array in arrays):
        return [arrays]
    flat = [array.reshape(-1) for array in arrays]
    return [tuple(a[i : i + CHUNK] for a in flat) for i in range(0, arrays[0].size, CHUNK)]
