"""Pooling as a reduction over the taps of a window, and its gradients.

Every primitive walks over the taps (few) with one array operation for all output positions (many).
"""

import math
from collections.abc import Iterator

from arraycnn.backends.layout import Layout, batch_view, buffer_of
from arraycnn.geometry import Window
from arraycnn.types import Array, Shape


class PoolingPrimitives(Layout):
    """Max and sum pooling; arrays are (N, C, *S) in batch-last memory."""

    def max_pool(self, x: Array, window: Window) -> Array:
        """The largest element that each window sees (a NaN where it sees one) → (N, C, *out)."""
        padded = self.padded(x, window, -self.xp.inf)
        y = None
        for offset in window.tap_offsets():
            tap = padded[(slice(None), *window.tap_slices(offset))]
            if y is None:
                y = tap.copy()
            else:
                self.xp.maximum(y, tap, out=y)
        return batch_view(y)

    def max_pool_indices(self, x: Array, y: Array, window: Window) -> Array:
        """Where each maximum ``y`` of ``max_pool(x)`` stands: int64 indices into the flat plane."""
        xp = self.xp
        plane = xp.arange(window.input_positions).reshape(1, *window.input_size, 1)
        plane = self.padded(batch_view(plane), window)  # (1, *padded, 1)
        indices = xp.zeros(buffer_of(y).shape, xp.int64)
        for offset, winners in self._winning_taps(x, y, window):
            xp.copyto(indices, plane[(slice(None), *window.tap_slices(offset))], where=winners)
        return batch_view(indices)

    def max_pool_grad(self, x: Array, y: Array, grad_output: Array, window: Window) -> Array:
        """The gradient goes to the maximum of each window, to the first where several are equal."""
        delta = buffer_of(grad_output)  # (C, *out, N)
        grad = self.xp.zeros((x.shape[1], *window.padded_size, x.shape[0]), x.dtype)
        for offset, winners in self._winning_taps(x, y, window):
            place = (slice(None), *window.tap_slices(offset))
            grad[place] += self.xp.where(winners, delta, 0)
        return self.unpadded(grad, window)

    def sum_pool(self, x: Array, window: Window) -> Array:
        """The sum of what each window sees, padding counting as 0 → (N, C, *out)."""
        padded = self.padded(x, window)
        y = self.xp.zeros((x.shape[1], *window.output_size, x.shape[0]), x.dtype)
        for offset in window.tap_offsets():
            y += padded[(slice(None), *window.tap_slices(offset))]
        return batch_view(y)

    def sum_pool_grad(self, grad_output: Array, window: Window) -> Array:
        """The adjoint of `sum_pool`: each element collects from the windows that see it."""
        delta = buffer_of(grad_output)
        batch, channels = grad_output.shape[:2]
        grad = self.xp.zeros((channels, *window.padded_size, batch), grad_output.dtype)
        for offset in window.tap_offsets():
            grad[(slice(None), *window.tap_slices(offset))] += delta
        return self.unpadded(grad, window)

    def plane_sum(self, x: Array) -> Array:
        """The sum over all positions: (N, C, *S) → (N, C)."""
        buffer = buffer_of(x)
        planes = buffer.reshape(x.shape[1], math.prod(x.shape[2:]), x.shape[0])  # (C, L, N)
        return batch_view(planes.sum(axis=1))

    def _winning_taps(self, x: Array, y: Array, window: Window) -> Iterator[tuple[Shape, Array]]:
        """For each tap, the windows (C, *out, N) whose first maximum it is."""
        xp = self.xp
        padded, maximum = self.padded(x, window, -xp.inf), buffer_of(y)
        inside = None
        if not window.is_unpadded:  # −inf in the padding must not win over −inf in the input
            ones = xp.ones((1, *window.input_size, 1), bool)
            inside = self.padded(batch_view(ones), window)  # (1, *padded, 1)
        undecided = xp.ones(maximum.shape, bool)
        for offset in window.tap_offsets():
            place = (slice(None), *window.tap_slices(offset))
            tap = padded[place]
            winners = (tap == maximum) | (tap != tap)  # a NaN is the maximum of its window
            winners &= undecided
            if inside is not None:
                winners &= inside[place]
            undecided ^= winners
            yield offset, winners
