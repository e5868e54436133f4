"""Batch normalisation in compiled loops, see `kernels.TABLE`."""

import numpy as np

from arraycnn.arrays import Array
from arraycnn.backends.compiled.device import FLOAT32, CompiledDevice
from arraycnn.backends.cpu.normalization import CpuNormalization
from arraycnn.backends.reference.normalization import rows_of


class CompiledNormalization(CompiledDevice, CpuNormalization):
    """See the base class for what is computed."""

    def channel_moments(self, x: Array) -> tuple[Array, Array]:
        if not self.takes(x):
            return super().channel_moments(x)
        mean, var = np.empty((2, x.shape[1]), FLOAT32)
        self.run("channel_moments", rows_of(x), mean, var)
        return mean, var

    def channel_sum(self, x: Array) -> Array:
        if not self.takes(x):
            return super().channel_sum(x)
        total = np.empty(x.shape[1], FLOAT32)
        self.run("channel_sum", rows_of(x), total)
        return total

    def scale_shift(self, x: Array, scale: Array, shift: Array, relu: bool = False) -> Array:
        if not self.takes(x, scale, shift):
            return super().scale_shift(x, scale, shift, relu)
        y = self.empty(x.shape, FLOAT32)
        vectors = map(np.ascontiguousarray, (scale, shift))
        self.run("scale_shift", rows_of(x), *vectors, rows_of(y), relu)
        return y

    def batch_norm_grad(
        self, x: Array, mean: Array, inverse_std: Array, scale: Array, grad_output: Array,
        y: Array | None = None,
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        output = x if y is None else y
        if not self.takes(x, mean, inverse_std, scale, grad_output, output):
            return super().batch_norm_grad(x, mean, inverse_std, scale, grad_output, y)
        grad = self.empty(x.shape, FLOAT32)
        grad_scale, grad_shift = np.empty((2, x.shape[1]), FLOAT32)
        vectors = map(np.ascontiguousarray, (mean, inverse_std, scale))
        self.run(
            "batch_norm_grad", rows_of(x), *vectors, rows_of(grad_output), rows_of(output),
            y is not None, rows_of(grad), grad_scale, grad_shift,
        )  # fmt: skip
        return grad, grad_scale, grad_shift
