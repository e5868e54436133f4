"""Sums and ReLU on the CPU: few passes, in chunks that stay in cache, on several threads."""

from collections.abc import Callable, Sequence

import numpy as np

from arraycnn.arrays import Array
from arraycnn.backends.cpu import tuning
from arraycnn.backends.cpu.device import CpuDevice, cuts
from arraycnn.backends.cpu.memory import Scratch, zeros
from arraycnn.backends.memory_format import buffer_of
from arraycnn.backends.reference.elementwise import ElementwisePrimitives


class CpuElementwise(CpuDevice, ElementwisePrimitives):
    """See the base class for what is computed."""

    def add(self, a: Array, b: Array, relu: bool = False) -> Array:
        a, b = self.batch_last(a), self.batch_last(b)
        y = self.empty(a.shape, a.dtype)

        def sum_up(chunk: slice) -> None:
            np.add(first[chunk], second[chunk], out=target[chunk])
            if relu:
                rectify(target[chunk], target[chunk])

        first, second, target = in_rows(a, b, y)
        self._each_chunk(sum_up, a.size, passes=3)
        return y

    def relu(self, x: Array, out: Array | None = None) -> Array:
        y = self._empty_like(x) if out is None else out
        rows = in_rows(x, y)
        if not rows:
            return super().relu(x, y)
        source, target = rows
        self._each_chunk(lambda chunk: rectify(source[chunk], target[chunk]), x.size, passes=2)
        return y

    def relu_grad(self, y: Array, grad_output: Array) -> Array:
        grad = self._empty_like(y)
        if not in_rows(y, grad_output):
            grad[...] = grad_output  # in the order of y
            grad_output = grad
        rows = in_rows(y, grad_output, grad)
        if not rows:
            return super().relu_grad(y, grad_output)
        output, source, target = rows

        def select(chunk: slice) -> None:
            select_positive(self.scratch, output[chunk], source[chunk], target[chunk])

        self._each_chunk(select, y.size, passes=3)
        return grad

    def _each_chunk(self, function: Callable[[slice], None], size: int, passes: int) -> None:
        """Call ``function`` for slices that cover ``size`` elements."""
        seconds = size * passes * tuning.SECONDS_PER_PASS
        self.workers.run(function, cuts(size, tuning.CHUNK_ELEMENTS), seconds, blas=False)

    def _empty_like(self, x: Array) -> Array:
        """An uninitialised array of the memory order of ``x``."""
        if buffer_of(x).flags.c_contiguous:
            return self.empty(x.shape, x.dtype)
        return self.new_buffer(x.shape, x.dtype) if x.flags.c_contiguous else np.empty_like(x)


def in_rows(*arrays: Array) -> Sequence[Array]:
    """Each array as one row of its elements; none where they have gaps, or differ in order."""
    buffers = [*map(buffer_of, arrays)]
    for candidates in (buffers, arrays):
        for array in candidates:
            if not array.flags.c_contiguous:
                break
        else:
            return [array.reshape(-1) for array in candidates]
    return ()


def rectify(x: Array, out: Array) -> None:
    """max(x, 0) of elements in a row, against zeros that stay in cache."""
    whole = x.size // tuning.ZEROS * tuning.ZEROS
    row = zeros(tuning.ZEROS, x.dtype)
    if whole:
        np.maximum(
            x[:whole].reshape(-1, tuning.ZEROS), row, out=out[:whole].reshape(-1, tuning.ZEROS)
        )
    np.maximum(x[whole:], row[: x.size - whole], out=out[whole:])


def select_positive(scratch: Scratch, y: Array, delta: Array, out: Array) -> None:
    """What a ReLU lets through of ``delta``: that where its output y is above zero."""
    passes = scratch("mask", y.shape, bool)
    np.greater(y, 0, out=passes)
    np.multiply(as_bits(delta), passes, out=as_bits(out))


def as_bits(x: Array) -> Array:
    """The same memory as integers: times 0 or 1 they select exactly, infinities and NaNs too."""
    return x.view(f"i{x.dtype.itemsize}")
