"""Batch-last memory: an array of shape (N, C, *S) in a C-contiguous (C, *S, N) buffer."""

from typing import Any

from arraycnn.arrays import Array, Shape
from arraycnn.backends.device import Device
from arraycnn.geometry import Window

# The orders of axes, for every number of them, that lead from (N, C, *S) to (C, *S, N) and back.
_ORDERS = [(*range(1, ndim), 0) if ndim else () for ndim in range(65)]
_BACK = [(ndim - 1, *range(ndim - 1)) if ndim else () for ndim in range(65)]

SMALL_BUFFER = 1 << 14  # elements; up to here filling all is faster than filling the border alone


def buffer_of(x: Array) -> Array:
    """The (C, *S, N) view of an (N, C, *S) array."""
    return x.transpose(_ORDERS[x.ndim])


def batch_view(buffer: Array) -> Array:
    """The (N, C, *S) view of a (C, *S, N) buffer."""
    return buffer.transpose(_BACK[buffer.ndim])


class MemoryFormat(Device):
    """Allocation, padding and patches in batch-last memory."""

    def new_buffer(self, shape: Shape, dtype: Any) -> Array:
        """Uninitialised memory for a buffer (C, *S, N)."""
        return self.xp.empty(shape, dtype)

    def empty(self, shape: Shape, dtype: Any) -> Array:
        """An uninitialised (N, C, *S) array in batch-last memory."""
        return batch_view(self.new_buffer((*shape[1:], *shape[:1]), dtype))

    def zeros(self, shape: Shape, dtype: Any) -> Array:
        """A zero (N, C, *S) array in batch-last memory."""
        x = self.empty(shape, dtype)
        x[...] = 0
        return x

    def batch_last(self, x: Array) -> Array:
        """``x`` itself where it is in batch-last memory, else a copy that is."""
        if x.transpose(_ORDERS[x.ndim]).flags.c_contiguous:
            return x
        copy = self.empty(x.shape, x.dtype)
        copy[...] = x
        return copy

    def padded(self, x: Array, window: Window, value: float = 0) -> Array:
        """The buffer (C, *padded, N) of ``x`` with its padding; ``x``'s own where there is none."""
        buffer = buffer_of(x)
        if window.is_unpadded:
            return buffer
        shape = (buffer.shape[0], *window.padded_size, buffer.shape[-1])
        padded = self.new_buffer(shape, x.dtype)
        inner = (slice(None), *window.inner_slices())
        if padded.size < SMALL_BUFFER:
            padded[...] = value
        else:
            for axis in range(1, len(inner)):  # the border, slab by slab
                inside = inner[axis]
                padded[(*inner[:axis], slice(0, inside.start))] = value
                padded[(*inner[:axis], slice(inside.stop, None))] = value
        padded[inner] = buffer
        return padded

    def unpadded(self, padded: Array, window: Window) -> Array:
        """The (N, C, *S) array inside a padded buffer (C, *padded, N)."""
        if window.is_unpadded:
            return batch_view(padded)
        x = self.empty((padded.shape[-1], padded.shape[0], *window.input_size), padded.dtype)
        buffer_of(x)[...] = padded[(slice(None), *window.inner_slices())]
        return x

    def patches(self, x: Array, window: Window) -> Array:
        """A view (C, *kernel, *out, N) of the padded input: element [c, tap, o, n] is what output
        position o sees through that tap."""
        padded = self.padded(x, window)
        channel, *spatial, sample = padded.strides
        shape = (x.shape[1], *window.kernel_size, *window.output_size, x.shape[0])
        taps = [step * d for step, d in zip(spatial, window.dilation, strict=True)]
        positions = [step * s for step, s in zip(spatial, window.stride, strict=True)]
        return self._strided(padded, shape, (channel, *taps, *positions, sample))

    def _strided(self, buffer: Array, shape: Shape, strides: Shape) -> Array:
        """A view of a contiguous array from its first element on."""
        return self.xp.lib.stride_tricks.as_strided(buffer, shape, strides)
