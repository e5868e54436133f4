"""Max pooling in compiled loops, see `kernels.TABLE`."""

import numpy as np

from arraycnn.arrays import Array
from arraycnn.backends.compiled.device import FLOAT32, CompiledDevice, planes, window_numbers
from arraycnn.backends.cpu.pooling import CpuPooling, tiles_the_input
from arraycnn.backends.memory_format import buffer_of
from arraycnn.backends.reference.pooling import argmax_dtype
from arraycnn.geometry import Window


class CompiledPooling(CompiledDevice, CpuPooling):
    """See the base class for what is computed."""

    def max_pool(self, x: Array, window: Window, relu: bool = False) -> Array:
        if window.ndim > 2 or not self.takes(x):
            return super().max_pool(x, window, relu)
        y = self.empty((*x.shape[:2], *window.output_size), FLOAT32)
        source, target = planes(buffer_of(x), window), planes(buffer_of(y), window)
        if window.kernel_size == (2, 2) and tiles_the_input(window):
            self.run("max_pool_2x2", source, target, relu)  # 7 % of LeNet-5 on a single image
        else:
            self.run("max_pool", source, target, window_numbers(window), relu)
        return y

    def max_pool_argmax(self, x: Array, window: Window, relu: bool = False) -> tuple[Array, Array]:
        dtype = argmax_dtype(window)
        if window.ndim > 2 or dtype != np.uint8 or not self.takes(x):
            return super().max_pool_argmax(x, window, relu)
        y = self.empty((*x.shape[:2], *window.output_size), FLOAT32)
        argmax = self.empty(y.shape, dtype)
        arrays = [planes(buffer_of(array), window) for array in (x, y, argmax)]
        self.run("max_pool_argmax", *arrays, window_numbers(window), relu)
        return y, argmax

    def max_pool_grad(self, argmax: Array, grad_output: Array, window: Window) -> Array:
        bytes_in_order = argmax.dtype == np.uint8 and buffer_of(argmax).flags.c_contiguous
        if window.ndim > 2 or not bytes_in_order or not self.takes(grad_output):
            return super().max_pool_grad(argmax, grad_output, window)
        grad = self.empty((*argmax.shape[:2], *window.input_size), FLOAT32)
        arrays = [planes(buffer_of(array), window) for array in (grad, argmax, grad_output)]
        self.run("max_pool_grad", *arrays, window_numbers(window), tiles_the_input(window))
        return grad
