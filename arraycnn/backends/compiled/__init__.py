"""The CPU backend with loops that Numba compiles, for float32; everything else as without it.

The gain is in passes over memory and in convolution: sums stay in vector registers from the first
tap to the last (`cpu_vectors`), and the input is read where it lies: no columns, no padding.
"""

import importlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from arraycnn.arrays import Array, Shape
from arraycnn.backends.compiled.positions import plane_window, positions
from arraycnn.backends.compiled.winograd import CompiledFilters
from arraycnn.backends.cpu import CpuBackend
from arraycnn.backends.cpu.convolution import FLOPS, PARTIAL_SUMS
from arraycnn.backends.cpu.elementwise import SECONDS, is_partition
from arraycnn.backends.memory_format import batch_view, buffer_of
from arraycnn.backends.reference.convolution import ConvolutionPrimitives, adjoint_kernels
from arraycnn.backends.reference.normalization import rows_of
from arraycnn.backends.reference.pooling import winner_dtype
from arraycnn.backends.reference.updates import Rule, adam, adamw, sgd
from arraycnn.geometry import Window

VARIABLE = "ARRAYCNN_FAST"
FLOAT32 = np.dtype(np.float32)
RUN = 1 << 16  # elements that a kernel works on at a time
PRODUCT_LENGTH = 1024  # elements that a weight gradient sums up before it goes to memory
PARTS = 16  # that a convolution is cut into at most …
PART_FLOPS = 2_000_000  # … and multiply-adds that each of them is worth


def numba_is_wanted() -> bool:
    """Whether Numba is installed and ``$ARRAYCNN_FAST`` does not say 0."""
    wish = os.environ.get(VARIABLE, "1")
    if wish not in ("0", "1"):
        raise ValueError(f"{VARIABLE} must be 0 or 1, got {wish!r}")
    return wish == "1" and find_spec("numba") is not None


class CompiledBackend(CompiledFilters, CpuBackend):
    """`CpuBackend`, with Numba where the arrays are float32."""

    def __init__(self) -> None:
        super().__init__()
        self._loaded: Any = None

    @property
    def _kernels(self) -> Any:
        """The module of kernels, None where Numba is installed but does not work."""
        if self._loaded is None:
            try:  # Numba takes a while to import: not before it is needed
                self._loaded = importlib.import_module("arraycnn.backends.compiled.loops")
            except ImportError as error:
                print(f"arraycnn: Numba is not used, it says: {error}", file=sys.stderr)
                self._loaded = False
        return self._loaded or None

    def describe(self) -> str:
        alone = super().describe()
        if self._kernels is None:
            return alone
        return alone.replace("no Numba", f"Numba {self._kernels.VERSION}")

    def convolution(
        self,
        x: Array,
        weight: Array,
        bias: Array | None,
        window: Window,
        groups: int,
        relu: bool = False,
    ) -> Array:
        if not self._suits(x, others=(weight,)) or window.ndim > 2:
            return super().convolution(x, weight, bias, window, groups, relu)
        if groups == 1 and self._filters(window, x, weight.shape):
            y = self._filtered(x, weight, bias, window, relu)
            if y is not None:
                return y
        kernels = weight.reshape(groups, -1, *weight.shape[1:])  # (G, O/G, C/G, *kernel)
        return self._correlation(x, kernels, bias, window, False, relu)

    def convolution_input_grad(
        self, grad_output: Array, weight: Array, window: Window, groups: int
    ) -> Array:
        if not self._suits(grad_output, others=(weight,)) or window.ndim > 2:
            return super().convolution_input_grad(grad_output, weight, window, groups)
        direct = window.adjoint() if groups == 1 else None
        if direct and self._filters(direct, grad_output, weight.shape[1::-1]):
            grad = self._filtered(grad_output, adjoint_kernels(weight, 1), None, direct, False)
            if grad is not None:
                return grad
        kernels = weight.reshape(groups, -1, *weight.shape[1:]).swapaxes(1, 2)
        return self._correlation(grad_output, kernels, None, window, True, False)

    def convolution_weight_grad(
        self, x: Array, grad_output: Array, weight_shape: Shape, window: Window, groups: int
    ) -> Array:
        if not self._suits(x, grad_output) or window.ndim > 2:
            return super().convolution_weight_grad(x, grad_output, weight_shape, window, groups)
        if groups == 1 and self._filters(window, x, weight_shape):
            grad = self._filtered_weight_grad(x, grad_output, weight_shape, window, PARTIAL_SUMS)
            if grad is not None:
                return grad
        source, delta = _planes(x, window), _planes(grad_output, window)
        kernel, stride, padding, dilation = plane_window(window)
        numbers = np.array((*stride, *padding, *dilation))
        columns = max(1, PRODUCT_LENGTH // x.shape[0])
        parts = min(PARTIAL_SUMS, delta.shape[1] * -(-delta.shape[2] // columns))
        sums = np.zeros((parts, *weight_shape[:2], *kernel), FLOAT32)
        add_weight_grad = self._kernels.add_weight_grad.compiled

        def add(part: int) -> None:
            add_weight_grad(source, delta, sums[part], groups, numbers, columns, part, parts)

        flops = delta.size * math.prod(weight_shape[1:])
        self.workers.run(add, parts, flops / FLOPS, blas=False)
        return sums.sum(axis=0).reshape(weight_shape)

    def convolution_grads(
        self, x: Array, grad_output: Array, weight: Array, window: Window, groups: int
    ) -> tuple[Array, Array]:
        if not self._suits(x, grad_output, others=(weight,)) or window.ndim > 2:
            return super().convolution_grads(x, grad_output, weight, window, groups)
        return ConvolutionPrimitives.convolution_grads(self, x, grad_output, weight, window, groups)

    def _correlation(
        self,
        x: Array,
        kernels: Array,
        bias: Array | None,
        window: Window,
        adjoint: bool,
        relu: bool,
    ) -> Array:
        """A convolution, or its adjoint, with kernels (G, outputs/G, inputs/G, *kernel)."""
        groups, outputs = kernels.shape[:2]
        batch = x.shape[0]
        if batch < self._kernels.LANES and not adjoint and not window.is_unpadded:
            # A vector holds neighbouring columns then, and at a border they differ in their taps.
            x, window = batch_view(self.padded(x, window)), window.over_padded
        size = window.input_size if adjoint else window.output_size
        y = self.empty((batch, groups * outputs, *size), FLOAT32)
        source, target = _planes(x, window), _planes(y, window)
        packed = np.empty(kernels.size, FLOAT32)
        self._kernels.pack.compiled(kernels.reshape(groups, outputs, -1), packed, 0, groups)
        offsets = np.zeros(groups * outputs, FLOAT32) if bias is None else bias
        offsets = np.ascontiguousarray(offsets)
        rows, runs, kernel, steps = positions(window, batch, adjoint)
        parts = len(rows) * len(runs)
        flops = y.size * math.prod(kernels.shape[2:])
        each = -(-parts // min(PARTS, 1 + flops // PART_FLOPS))
        correlate = self._kernels.correlate.compiled

        def compute(part: int) -> None:
            start, stop = part * each, min(parts, part * each + each)
            correlate(
                source, packed, offsets, target, groups, rows, runs, kernel, steps, start, stop,
                relu,
            )  # fmt: skip

        self.workers.run(compute, -(-parts // each), flops / FLOPS, blas=False)
        return y

    def dense(self, x: Array, weight: Array, bias: Array | None, relu: bool = False) -> Array:
        # One sample is too little work for setting BLAS to one thread.
        if x.shape[0] != 1 or not self._in_line(x, weight) or not weight.size:
            return super().dense(x, weight, bias, relu)
        h = np.empty(weight.shape[0], FLOAT32)
        offsets = np.zeros_like(h) if bias is None else np.ascontiguousarray(bias)
        self._kernels.dense_sample.compiled(weight, x.reshape(-1), offsets, h, relu)
        return h.reshape(1, -1)

    def relu(self, x: Array, out: Array | None = None) -> Array:
        if x.dtype != FLOAT32 or not x.size or self._kernels is None:
            return super().relu(x, out)
        x = self.batch_last(x)
        y = self.empty(x.shape, FLOAT32) if out is None else out
        source, target = (buffer_of(a).reshape(-1) for a in (x, y))
        compiled = self._kernels.relu.compiled
        self._each_run(lambda *part: compiled(source, target, *part), x.size, passes=2)
        return y

    def relu_grad(self, y: Array, grad_output: Array) -> Array:
        floats = y.dtype == FLOAT32 and grad_output.dtype == FLOAT32
        if not floats or not y.size or self._kernels is None:
            return super().relu_grad(y, grad_output)
        y, grad_output = self.batch_last(y), self.batch_last(grad_output)
        grad = self.empty(y.shape, FLOAT32)
        output, source, target = (buffer_of(a).reshape(-1) for a in (y, grad_output, grad))
        compiled = self._kernels.relu_grad.compiled
        self._each_run(lambda *part: compiled(output, source, target, *part), y.size, passes=3)
        return grad

    def max_pool(self, x: Array, window: Window, relu: bool = False) -> Array:
        if not self._suits(x) or window.ndim > 2:
            return super().max_pool(x, window, relu)
        y = self.empty((*x.shape[:2], *window.output_size), FLOAT32)
        self._pool("max_pool", window, x, (x, y), passes=2, options=(relu,))
        return y

    def _winners(self, x: Array, y: Array, window: Window, relu: bool) -> Array:
        dtype = winner_dtype(window)
        if not self._suits(x, y) or window.ndim > 2 or dtype != np.uint8:
            return super()._winners(x, y, window, relu)
        winners = self.empty(y.shape, dtype)
        self._pool("max_pool_winners", window, x, (x, y, winners), passes=2, options=(relu,))
        return winners

    def max_pool_grad(self, winners: Array, grad_output: Array, window: Window) -> Array:
        contiguous = buffer_of(winners).flags.c_contiguous
        compact = winners.dtype == np.uint8 and contiguous and window.ndim <= 2
        if not compact or not self._suits(grad_output):
            return super().max_pool_grad(winners, grad_output, window)
        grad = self.empty((*winners.shape[:2], *window.input_size), FLOAT32)
        self._pool("max_pool_grad", window, grad, (winners, grad_output, grad), passes=3)
        return grad

    def _pool(
        self,
        name: str,
        window: Window,
        pooled: Array,
        arrays: tuple[Array, ...],
        passes: int,
        options: tuple[bool, ...] = (),
    ) -> None:
        """Run a pooling kernel, where it can the one for 2×2 elements, over channels."""
        planes = tuple(_planes(array, window) for array in arrays)
        pairs = _is_pairs(window)
        numbers = () if pairs else (_numbers(window),)
        compiled = getattr(self._kernels, f"{name}_of_pairs" if pairs else name).compiled
        self._each_row(
            lambda *part: compiled(*planes, *numbers, *options, *part),
            _planes(pooled, window),
            passes,
        )

    def channel_moments(self, x: Array) -> tuple[Array, Array]:
        if not self._suits(x):
            return super().channel_moments(x)
        rows = rows_of(x)  # (C, N·L)
        mean, var = np.empty((2, rows.shape[0]), FLOAT32)
        compiled = self._kernels.moments.compiled
        self._each_row(lambda *part: compiled(rows, mean, var, *part), rows, passes=2)
        return mean, var

    def scale_shift(self, x: Array, scale: Array, shift: Array, relu: bool = False) -> Array:
        if not self._suits(x, others=(scale, shift)):
            return super().scale_shift(x, scale, shift, relu)
        y = self.empty(x.shape, FLOAT32)
        source, target = rows_of(x), rows_of(y)
        scale, shift = np.ascontiguousarray(scale), np.ascontiguousarray(shift)
        compiled = self._kernels.scale_shift.compiled
        self._each_row(
            lambda *part: compiled(source, scale, shift, target, relu, *part), source, passes=2
        )
        return y

    def channel_sum(self, x: Array) -> Array:
        if not self._suits(x):
            return super().channel_sum(x)
        rows = rows_of(x)  # (C, N·L)
        total = np.empty(rows.shape[0], FLOAT32)
        compiled = self._kernels.row_sums.compiled
        self._each_row(lambda *part: compiled(rows, total, *part), rows, passes=1)
        return total

    def batch_norm_grad(
        self,
        x: Array,
        mean: Array,
        inverse_std: Array,
        scale: Array,
        grad_output: Array,
        y: Array | None = None,
    ) -> tuple[Array, Array, Array]:
        output = x if y is None else y
        if not self._suits(x, grad_output, output, others=(mean, inverse_std, scale)):
            return super().batch_norm_grad(x, mean, inverse_std, scale, grad_output, y)
        grad = self.empty(x.shape, FLOAT32)
        source, delta, target = rows_of(x), rows_of(grad_output), rows_of(grad)
        per_channel = [np.ascontiguousarray(a) for a in (mean, inverse_std, scale)]
        grad_scale, grad_shift = np.empty((2, source.shape[0]), FLOAT32)
        compiled = self._kernels.batch_norm_grad.compiled

        rectified, relu = rows_of(output), y is not None

        def differentiate(start: int, stop: int) -> None:
            compiled(
                source, *per_channel, delta, rectified, relu, target, grad_scale, grad_shift, start,
                stop,
            )  # fmt: skip

        self._each_row(differentiate, source, passes=4)
        return grad, grad_scale, grad_shift

    def update_parameters(
        self, rule: Rule, arrays: Sequence[tuple[Array, ...]], **options: Any
    ) -> None:
        name, columns, scalars = _FUSED.get(rule, ("", 0, dict))
        if not all(len(one) == columns and self._in_line(*one) for one in arrays):
            super().update_parameters(rule, arrays, **options)
            return
        compiled, numbers = getattr(self._kernels, name).compiled, scalars(**options)
        for one in arrays:
            compiled(*(array.reshape(-1) for array in one), *numbers)

    def _suits(self, *images: Array, others: tuple[Array, ...] = ()) -> bool:
        """Whether there are kernels for such arrays; images must be in batch-last memory."""
        for array in images + others:
            if array.dtype != FLOAT32 or not array.size:
                return False
        for image in images:
            if not buffer_of(image).flags.c_contiguous:
                return False
        return self._kernels is not None

    def _in_line(self, *arrays: Array) -> bool:
        """Whether arrays of any shape can be updated as rows of float32."""
        return (
            all(a.dtype == FLOAT32 and a.flags.c_contiguous for a in arrays)
            and self._kernels is not None
        )

    def _each_run(self, function: Callable[..., None], size: int, passes: int) -> None:
        """Call ``function`` for start and stop of runs of ``size`` elements."""
        self.workers.run(
            lambda index: function(index * RUN, min(size, (index + 1) * RUN)),
            -(-size // RUN),
            size * passes * SECONDS,
            blas=False,
        )

    def _each_row(self, function: Callable[..., None], buffer: Array, passes: int) -> None:
        """Call ``function`` for first and last index of runs of the first dimension."""
        rows = buffer.shape[0]
        step = max(1, RUN * rows // buffer.size)
        self.workers.run(
            lambda index: function(index * step, min(rows, (index + 1) * step)),
            -(-rows // step),
            buffer.size * passes * SECONDS,
            blas=False,
        )


def _planes(x: Array, window: Window) -> Array:
    """The buffer of x as (C, height, width, N); one row for what has one dimension.

    What a pointwise window is slid over counts as one row, too.
    """
    buffer = buffer_of(x)
    if window.is_pointwise or window.ndim == 1:
        return buffer.reshape(buffer.shape[0], 1, -1, buffer.shape[-1])
    return buffer


def _is_pairs(window: Window) -> bool:
    """Whether the windows are 2×2 elements side by side."""
    return window.kernel_size == (2, 2) and is_partition(window)


@lru_cache(maxsize=512)
def _numbers(window: Window) -> Array:
    return np.array([n for sizes in plane_window(window) for n in sizes])


# The scalar arguments of the kernels for updates.


def _sgd(
    *, step: int, lr: float, momentum: float, nesterov: bool, weight_decay: float
) -> tuple[float, ...]:
    return lr, momentum, weight_decay, nesterov


def _adam(
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    shrink: float = 1.0,
) -> tuple[float, ...]:
    beta1, beta2 = betas
    shares = 1 - beta1, beta2, 1 - beta2
    return lr / (1 - beta1**step), *shares, eps, math.sqrt(1 - beta2**step), weight_decay, shrink


def _adamw(*, lr: float, weight_decay: float, **rest: Any) -> tuple[float, ...]:
    return _adam(lr=lr, weight_decay=0.0, shrink=1 - lr * weight_decay, **rest)


# Kernel, arrays of each parameter (there is none for SGD without velocity), scalars.
_FUSED: dict[Rule, tuple[str, int, Callable[..., Any]]] = {
    sgd: ("sgd", 3, _sgd),
    adam: ("adam", 4, _adam),
    adamw: ("adam", 4, _adamw),
}
