"""The dense product of a single sample in a compiled loop."""

import numpy as np

from arraycnn.arrays import Array
from arraycnn.backends.compiled.device import FLOAT32, CompiledDevice
from arraycnn.backends.cpu.dense import CpuDense


class CompiledDense(CompiledDevice, CpuDense):
    """See the base class for what is computed."""

    def dense(self, x: Array, weight: Array, bias: Array | None, relu: bool = False) -> Array:
        # One sample is too little work for setting BLAS to one thread.
        suits = x.shape[0] == 1 and x.dtype == FLOAT32 and weight.flags.c_contiguous
        if not suits or not weight.size or self.kernels is None:
            return super().dense(x, weight, bias, relu)
        h = np.empty(weight.shape[0], FLOAT32)
        offsets = np.zeros_like(h) if bias is None else np.ascontiguousarray(bias)
        sample = np.ascontiguousarray(x[0])
        self.kernels.dense_sample.compiled(weight, sample, offsets, h, relu)
        return h.reshape(1, -1)
