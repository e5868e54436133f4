"""Optimizer updates on the CPU: in chunks, so that a rule's temporaries stay in cache."""

from collections.abc import Sequence
from typing import Any

from arraycnn.arrays import Array
from arraycnn.backends.cpu import tuning
from arraycnn.backends.cpu.device import CpuDevice, cuts
from arraycnn.backends.reference.updates import Rule, UpdatePrimitives

PASSES = 8  # over an element in an update, about


class CpuUpdates(CpuDevice, UpdatePrimitives):
    """See the base class for what is computed."""

    def update_parameters(
        self, rule: Rule, arrays: Sequence[tuple[Array, ...]], **options: Any
    ) -> None:
        elements, tasks, divisible = 0, [], hasattr(rule, "elementwise")
        for one in arrays:
            size = one[0].size
            elements += size
            tasks += _chunks(one) if size > tuning.UPDATE_ELEMENTS and divisible else [one]
        seconds = elements * PASSES * tuning.SECONDS_PER_PASS
        if seconds < tuning.THREAD_SECONDS:
            super().update_parameters(rule, tasks, **options)
            return
        self.workers.run(lambda one: rule(self.xp, *one, **options), tasks, seconds, blas=False)


def _chunks(arrays: tuple[Array, ...]) -> list[tuple[Array, ...]]:
    """The same pieces of arrays of one shape; themselves where one has gaps."""
    if not all(array.flags.c_contiguous for array in arrays):
        return [arrays]
    flat = [array.reshape(-1) for array in arrays]
    return [tuple(a[part] for a in flat) for part in cuts(arrays[0].size, tuning.UPDATE_ELEMENTS)]
