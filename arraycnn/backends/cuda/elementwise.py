"""Element-wise work on CUDA; what the kernels are not made for goes to the base class."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from arraycnn.arrays import Array
from arraycnn.backends.cuda.launch import Launching
from arraycnn.backends.memory_format import batch_view, buffer_of
from arraycnn.backends.reference.elementwise import ElementwisePrimitives
from arraycnn.rng import stream_key


class CudaElementwise(Launching, ElementwisePrimitives):
    """Element-wise kernels over arrays that lie in memory without gaps."""

    def __init__(self, device: int) -> None:
        super().__init__(device)
        self._keys: dict[tuple[int, int], Array] | None = None

    @contextmanager
    def captured_keys(self) -> Iterator[dict[tuple[int, int], Array]]:
        """Within the block dropout reads its keys from device memory, for graphs to change them.

        Yields the arrays of one 64-bit key each, by (seed, counter).
        """
        self._keys = {}
        try:
            yield self._keys
        finally:
            self._keys = None

    def add(self, a: Array, b: Array, relu: bool = False) -> Array:
        if a.ndim > 1 and all(buffer_of(x).flags.c_contiguous for x in (a, b)):
            return batch_view(super().add(buffer_of(a), buffer_of(b), relu))
        return super().add(a, b, relu)

    def relu(self, x: Array, out: Array | None = None) -> Array:
        # CuPy's functions return C order.
        if out is None and x.ndim > 1 and buffer_of(x).flags.c_contiguous:
            return batch_view(super().relu(buffer_of(x)))
        return super().relu(x, out)

    def relu_grad(self, y: Array, grad_output: Array) -> Array:
        element = self.element(y, grad_output)
        flat = _flat(y, grad_output)
        if element is None or flat is None:
            return super().relu_grad(y, grad_output)
        y_flat, delta = flat
        grad = self.xp.empty(delta.shape, delta.dtype)
        self.launch_elements(f"relu_grad<{element}>", grad.size, y_flat, delta, grad, grad.size)
        return grad if y_flat is y else batch_view(grad)

    def dropout(self, x: Array, p: float, seed: int, counter: int) -> Array:
        x = self.batch_last(x)
        y = self.empty(x.shape, x.dtype)
        scale = x.dtype.type(1 / (1 - p) if p < 1 else 0)
        key = self._captured_key(seed, counter)
        self.launch_elements(
            f"dropout<{self.element(x)}>", x.size, buffer_of(x), buffer_of(y), x.size, key,
            stream_key(seed, counter), round(p * 2**32), float(scale),
        )  # fmt: skip
        return y

    def _captured_key(self, seed: int, counter: int) -> Array | None:
        """Where the device finds the key of a stream, if not among the kernel's arguments."""
        if self._keys is None:
            return None
        if (seed, counter) not in self._keys:
            self._keys[seed, counter] = self.xp.empty(1, np.uint64)
        return self._keys[seed, counter]


def _flat(*arrays: Array) -> tuple[Array, ...] | None:
    """The arrays, or their buffers, if they are all contiguous in the same order, else None."""
    if all(array.flags.c_contiguous for array in arrays):
        return arrays
    if arrays[0].ndim > 1:
        buffers = tuple(map(buffer_of, arrays))
        if all(buffer.flags.c_contiguous for buffer in buffers):
            return buffers
    return None
