"""Pooling on the CPU: channels in chunks that stay in cache, on several threads."""

from functools import lru_cache

import numpy as np

from arraycnn.arrays import Array
from arraycnn.backends.cpu import tuning
from arraycnn.backends.cpu.device import CpuDevice, row_cuts
from arraycnn.backends.cpu.elementwise import as_bits, rectify
from arraycnn.backends.memory_format import buffer_of
from arraycnn.backends.reference.pooling import PoolingPrimitives, argmax_dtype
from arraycnn.geometry import Window


class CpuPooling(CpuDevice, PoolingPrimitives):
    """See the base class for what is computed."""

    def max_pool(self, x: Array, window: Window, relu: bool = False) -> Array:
        y = self.empty((*x.shape[:2], *window.output_size), x.dtype)
        source, target = self.padded(x, window, -np.inf), buffer_of(y)
        places = window.tap_places

        def pool(channels: slice) -> None:
            part, best = source[channels], target[channels]
            np.maximum(part[places[0]], part[places[-1]], out=best)  # may be one and the same
            for place in places[1:-1]:
                np.maximum(best, part[place], out=best)
            if relu:
                row = best.reshape(-1)
                rectify(row, row)

        seconds = 2 * source.size * tuning.SECONDS_PER_PASS
        self.workers.run(pool, row_cuts(source.shape[0], source.size), seconds, blas=False)
        return y

    def _argmax(self, x: Array, y: Array, window: Window, relu: bool) -> Array:
        # A NaN is equal to nothing, so it would not be found below.
        if not tiles_the_input(window) or not x.size or np.isnan(y.max()):
            return super()._argmax(x, y, window, relu)
        argmax = self.empty(y.shape, argmax_dtype(window))
        source, maximum, target = buffer_of(x), buffer_of(y), buffer_of(argmax)

        def count(channels: slice) -> None:
            """The maximum is as many taps from the first as are waited for in vain."""
            part, best, taps = source[channels], maximum[channels], target[channels]
            waits = self.scratch("waits", best.shape, bool)
            differs = self.scratch("mask", best.shape, bool)
            taps[...] = 0
            waits[...] = True
            for place in window.tap_places[:-1]:
                np.not_equal(part[place], best, out=differs)
                np.logical_and(waits, differs, out=waits)
                np.add(taps, waits.view(np.uint8), out=taps)
            if relu:  # then all are at least 0
                np.equal(best, 0, out=differs)
                none = np.multiply(differs.view(np.uint8), taps.dtype.type(window.taps))
                np.maximum(taps, none, out=taps)

        seconds = 2 * source.size * tuning.SECONDS_PER_PASS
        self.workers.run(count, row_cuts(source.shape[0], source.size), seconds, blas=False)
        return argmax

    def max_pool_grad(self, argmax: Array, grad_output: Array, window: Window) -> Array:
        if not tiles_the_input(window) or not argmax.size:
            return super().max_pool_grad(argmax, grad_output, window)
        grad = self.empty((*argmax.shape[:2], *window.input_size), grad_output.dtype)
        taps, delta, target = buffer_of(argmax), as_bits(buffer_of(grad_output)), buffer_of(grad)
        rest = slabs_outside(window)

        def route(channels: slice) -> None:
            out = as_bits(target)[channels]
            for slab in rest:
                out[slab] = 0
            wins = self.scratch("mask", taps[channels].shape, bool)
            for tap, place in enumerate(window.tap_places):
                np.equal(taps[channels], tap, out=wins)
                np.multiply(delta[channels], wins, out=out[place])

        seconds = 3 * target.size * tuning.SECONDS_PER_PASS
        self.workers.run(route, row_cuts(target.shape[0], target.size), seconds, blas=False)
        return grad


@lru_cache(maxsize=512)
def tiles_the_input(window: Window) -> bool:
    """Whether the windows lie side by side inside the input, none overlapping another."""
    return (
        window.stride == window.kernel_size
        and not any(before for before, _ in window.padding)
        and all(d == 1 for d in window.dilation)
        and all(
            o * k <= i
            for o, k, i in zip(
                window.output_size, window.kernel_size, window.input_size, strict=True
            )
        )
    )


@lru_cache(maxsize=512)
def slabs_outside(window: Window) -> list[tuple[slice, ...]]:
    """The rest of a buffer (C, *S, N) behind windows that tile it."""
    ends = [o * k for o, k in zip(window.output_size, window.kernel_size, strict=True)]
    return [
        ((slice(None),) * axis + (slice(end, None),))
        for axis, (end, i) in enumerate(zip(ends, window.input_size, strict=True), 1)
        if end < i
    ]
