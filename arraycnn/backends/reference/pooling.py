"""Pooling as a reduction over the taps of a window, and its gradients.

Every primitive walks over the taps (few) with one array operation for all output positions (many).
"""

import math
from typing import Any

import numpy as np

from arraycnn.arrays import Array
from arraycnn.backends.memory_format import MemoryFormat, batch_view, buffer_of
from arraycnn.geometry import Window


class PoolingPrimitives(MemoryFormat):
    """Max and sum pooling; arrays are (N, C, *S) in batch-last memory."""

    def max_pool(self, x: Array, window: Window, relu: bool = False) -> Array:
        """The largest element of each window (a NaN where there is one) → (N, C, *out); with
        ``relu``, of them and 0."""
        padded = self.padded(x, window, -self.xp.inf)
        first, *others = window.tap_places
        y = padded[first].copy()
        for tap in others:
            self.xp.maximum(y, padded[tap], out=y)
        if relu:
            self.xp.maximum(y, 0, out=y)
        return batch_view(y)

    def max_pool_argmax(self, x: Array, window: Window, relu: bool = False) -> tuple[Array, Array]:
        """`max_pool`, and for each window which of its taps is the (first) maximum.

        With ``relu`` that is ``window.taps``, so none of them, unless the maximum is above 0.
        """
        y = self.max_pool(x, window, relu)
        return y, self._argmax(x, y, window, relu)

    def max_pool_indices(self, argmax: Array, window: Window) -> Array:
        """Positions of the maxima: int64 indices into the flat plane."""
        xp = self.xp
        taps = buffer_of(argmax).astype(xp.int64)  # (C, *out, N)
        indices, stride = xp.zeros_like(taps), 1
        for axis in reversed(range(window.ndim)):
            start = xp.arange(window.output_size[axis]) * window.stride[axis]
            start -= window.padding[axis][0]
            tap = taps % window.kernel_size[axis]
            taps //= window.kernel_size[axis]
            start = start.reshape(-1, *(1,) * (window.ndim - axis))
            indices += (start + tap * window.dilation[axis]) * stride
            stride *= window.input_size[axis]
        return batch_view(indices)

    def max_pool_grad(self, argmax: Array, grad_output: Array, window: Window) -> Array:
        """Each window's gradient goes to its maximum."""
        delta, taps = buffer_of(grad_output), buffer_of(argmax)  # (C, *out, N)
        batch, channels = grad_output.shape[:2]
        grad = self.xp.zeros((channels, *window.padded_size, batch), grad_output.dtype)
        for tap, place in enumerate(window.tap_places):
            grad[place] += self.xp.where(taps == tap, delta, 0)
        return self.unpadded(grad, window)

    def sum_pool(self, x: Array, window: Window) -> Array:
        """The sum of each window, padding counting as 0 → (N, C, *out)."""
        padded = self.padded(x, window)
        y = self.xp.zeros((x.shape[1], *window.output_size, x.shape[0]), x.dtype)
        for place in window.tap_places:
            y += padded[place]
        return batch_view(y)

    def sum_pool_grad(self, grad_output: Array, window: Window) -> Array:
        """The adjoint of `sum_pool`: each element collects from the windows that see it."""
        delta = buffer_of(grad_output)
        batch, channels = grad_output.shape[:2]
        grad = self.xp.zeros((channels, *window.padded_size, batch), grad_output.dtype)
        for place in window.tap_places:
            grad[place] += delta
        return self.unpadded(grad, window)

    def global_sum_pool(self, x: Array) -> Array:
        """The sum over all positions: (N, C, *S) → (N, C)."""
        buffer = buffer_of(x)
        planes = buffer.reshape(x.shape[1], math.prod(x.shape[2:]), x.shape[0])  # (C, L, N)
        return batch_view(planes.sum(axis=1))

    def _argmax(self, x: Array, y: Array, window: Window, relu: bool) -> Array:
        """Which tap of each window is its first maximum, given the maxima y."""
        xp = self.xp
        argmax = xp.zeros(buffer_of(y).shape, argmax_dtype(window))
        padded, maximum = self.padded(x, window, -xp.inf), buffer_of(y)
        inside = None
        if not window.is_unpadded:  # −inf in the padding must not win over −inf in the input
            ones = xp.ones((1, *window.input_size, 1), bool)
            inside = self.padded(batch_view(ones), window)  # (1, *padded, 1)
        undecided = xp.ones(maximum.shape, bool)
        for tap, place in enumerate(window.tap_places):
            values = padded[place]
            wins = (values == maximum) | (values != values)  # a NaN is the maximum of its window
            wins &= undecided
            if inside is not None:
                wins &= inside[place]
            undecided ^= wins
            argmax += wins * argmax.dtype.type(tap)
        if relu:
            none = xp.logical_not(maximum > 0)
            xp.maximum(argmax, none * argmax.dtype.type(window.taps), out=argmax)
        return batch_view(argmax)


def argmax_dtype(window: Window) -> Any:
    """The smallest of two integer types that hold the taps of a window and how many they are."""
    return np.dtype(np.uint8 if window.taps < 256 else np.int32)
