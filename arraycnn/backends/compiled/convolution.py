"""Convolution with compiled kernels: sums stay in vector registers from the first tap to the last.

The input is read where it lies: no columns, no padding.
"""

from functools import cached_property

import numpy as np

from arraycnn.arrays import Array, Shape
from arraycnn.backends.compiled.device import FLOAT32, CompiledDevice, planes
from arraycnn.backends.compiled.positions import plane_window, positions
from arraycnn.backends.compiled.winograd import CompiledWinograd, direct_seconds
from arraycnn.backends.cpu import tuning
from arraycnn.backends.cpu.convolution import CpuConvolution
from arraycnn.backends.cpu.device import cuts
from arraycnn.backends.memory_format import buffer_of
from arraycnn.backends.reference.algorithm import (
    Algorithm,
    Problem,
    adjoint_problem,
)
from arraycnn.backends.reference.fourier import Fourier


class CompiledConvolution(CompiledDevice, CpuConvolution):
    """As `CpuConvolution`, with two more algorithms for float32 in up to two dimensions."""

    def candidates(self, problem: Problem) -> list[Algorithm]:
        if not self._has_kernels_for(problem):
            return super().candidates(problem)
        found: list[Algorithm] = [Fourier(self, problem)]
        if CompiledWinograd.applies(problem, self.workspace_limit):
            found.append(CompiledWinograd(self, problem))
        return [*found, Direct(self, problem)]

    def adjoint(self, problem: Problem) -> Problem | None:
        if self._has_kernels_for(problem):
            return adjoint_problem(problem)
        return super().adjoint(problem)

    def _has_kernels_for(self, problem: Problem) -> bool:
        floats = problem.dtype == FLOAT32 and problem.batch > 0
        return floats and problem.window.ndim <= 2 and self.kernels is not None


class Direct(Algorithm):
    """The sum over taps for every output, in blocks of registers."""

    backend: CompiledDevice

    def __init__(self, backend: CompiledDevice, problem: Problem) -> None:
        super().__init__(backend, problem)
        self.seconds = direct_seconds(problem)
        self.work = problem.multiply_adds * tuning.SECONDS_PER_MULTIPLY_ADD
        self.tasks = min(
            tuning.COMPILED_TASKS, 1 + problem.multiply_adds // tuning.TASK_MULTIPLY_ADDS
        )
        window, batch = problem.window, problem.batch
        # With few samples a vector holds neighbouring columns, which at a border differ in taps.
        self.pads = batch < backend.kernels.LANES and not window.is_unpadded
        self.workspace_bytes = 0

    def forward(self, x: Array, weight: Array, bias: Array | None, relu: bool) -> Array | None:
        window, batch, _, outputs, groups, _ = self.problem
        h = self.backend.empty((batch, outputs, *window.output_size), FLOAT32)
        kernels = weight.reshape(groups, outputs // groups, -1)  # (G, O/G, C/G·taps)
        buffer = self.backend.padded(x, window) if self.pads else buffer_of(x)
        source, target = self._planes(buffer), self._planes(buffer_of(h))
        self._correlate(source, kernels, bias, target, self._positions, relu)
        return h

    def input_grad(self, grad_output: Array, weight: Array) -> Array | None:
        window, batch, inputs, _, groups, _ = self.problem
        grad = self.backend.empty((batch, inputs, *window.input_size), FLOAT32)
        kernels = weight.reshape(groups, -1, *weight.shape[1:]).swapaxes(1, 2)
        kernels = kernels.reshape(groups, inputs // groups, -1)  # (G, C/G, O/G·taps)
        source, target = self._planes(buffer_of(grad_output)), self._planes(buffer_of(grad))
        self._correlate(source, kernels, None, target, positions(window, batch, True), False)
        return grad

    def weight_grad(self, x: Array, grad_output: Array) -> Array | None:
        batch, groups = self.problem.batch, self.problem.groups
        source, delta = self._planes(buffer_of(x)), self._planes(buffer_of(grad_output))
        kernel, numbers = self._window_numbers
        columns = max(1, tuning.PRODUCT_LENGTH // batch)
        count = min(tuning.PARTIAL_SUMS, delta.shape[1] * -(-delta.shape[2] // columns))
        shape = self.problem.weight_shape
        sums = np.zeros((count, *shape[:2], *kernel), FLOAT32)
        add_weight_grad = self.backend.kernels.add_weight_grad.compiled

        def add(index: int) -> None:
            add_weight_grad(source, delta, sums[index], groups, numbers, columns, index, count)

        self.backend.workers.run(add, range(count), self.work, blas=False)
        return np.add.reduce(sums, axis=0).reshape(shape)

    def _correlate(
        self, source: Array, kernels: Array, bias: Array | None, target: Array,
        tables: tuple[Array, ...], relu: bool,
    ) -> None:  # fmt: skip
        """Write a convolution, or its adjoint, with kernels (G, outputs/G, inputs/G·taps)."""
        groups, outputs, _ = kernels.shape
        packed = np.empty(kernels.size, FLOAT32)
        self.backend.kernels.pack.compiled(kernels, packed, 0, groups)
        offsets = np.zeros(groups * outputs, FLOAT32) if bias is None else bias
        offsets = np.ascontiguousarray(offsets)
        correlate = self.backend.kernels.correlate.compiled

        def compute(part: slice) -> None:
            correlate(source, packed, offsets, target, groups, *tables, part.start, part.stop, relu)

        parts = tables[0].shape[0] * tables[1].shape[0]
        self.backend.workers.run(
            compute, cuts(parts, -(-parts // self.tasks)), self.work, blas=False
        )

    @cached_property
    def _positions(self) -> tuple[Array, ...]:
        window = self.problem.window
        return positions(window.over_padded if self.pads else window, self.problem.batch, False)

    @cached_property
    def _window_numbers(self) -> tuple[Shape, Array]:
        """The kernel, and stride, padding before and dilation as `add_weight_grad` takes them."""
        kernel, stride, padding, dilation = plane_window(self.problem.window)
        return kernel, np.array((*stride, *padding, *dilation))

    def _planes(self, buffer: Array) -> Array:
        return planes(buffer, self.problem.window)
