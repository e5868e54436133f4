"""Convolution as matrix multiplication, and its two adjoints.

For an input x, im2col writes what each output position sees into a column of v. With the kernels as
rows of K (Chellapilla, Puri & Simard, "High performance convolutional neural networks for document
processing", 2006):

    forward   h  = K v + b          (O, L·N) = (O, C·taps) (C·taps, L·N) + (O, 1)
    backward  δK = Δ vᴴ             (O, C·taps) = (O, L·N) (L·N, C·taps)
              δx = col2im(Kᴴ Δ)     each input element collects from the columns that saw it

where L counts output positions and Δ is the loss's gradient with respect to h. The transposes are
conjugated so that both maps are the adjoints for complex arrays too. Columns are made, multiplied
and forgotten in tiles, so that they never take more than the backend's ``workspace_limit``.
"""

import math
from collections.abc import Hashable, Iterator
from functools import lru_cache
from typing import Any

from arraycnn.arrays import Array, Shape
from arraycnn.backends.memory_format import MemoryFormat, buffer_of
from arraycnn.backends.reference.algorithm import Algorithm, Problem, im2col_seconds
from arraycnn.backends.reference.fourier import Fourier
from arraycnn.geometry import Window, tiles

Region = tuple[slice, ...]  # one slice per output dimension and one for the batch


class Im2col(Algorithm):
    """Columns of the input, multiplied by the kernels."""

    def __init__(self, backend: MemoryFormat, problem: Problem) -> None:
        super().__init__(backend, problem)
        self.seconds = im2col_seconds(problem)
        length = min(problem.window.positions * problem.batch, self._tile_length())
        pointwise = problem.window.is_pointwise  # nothing is copied
        self.workspace_bytes = 0 if pointwise else length * problem.column_bytes

    def forward(self, x: Array, weight: Array, bias: Array | None, relu: bool) -> Array | None:
        backend, groups = self.backend, self.problem.groups
        h = backend.empty((x.shape[0], weight.shape[0], *self.problem.window.output_size), x.dtype)
        rows = grouped(buffer_of(h), groups)  # (G, O/G, L·N)
        kernels = weight.reshape(groups, weight.shape[0] // groups, -1)  # (G, O/G, C/G·taps)
        offsets = None if bias is None else bias.reshape(groups, -1, 1)  # (G, O/G, 1)
        for run, columns in self._column_tiles(x):
            tile = rows[:, :, run]
            backend.xp.matmul(kernels, columns, out=tile)
            if offsets is not None:
                tile += offsets
            if relu:
                backend.xp.maximum(tile, 0, out=tile)
        return h

    def weight_grad(self, x: Array, grad_output: Array) -> Array | None:
        shape, groups = self.problem.weight_shape, self.problem.groups
        delta = grouped(buffer_of(grad_output), groups)  # (G, O/G, L·N)
        grad = self.backend.xp.zeros((groups, delta.shape[1], math.prod(shape[1:])), x.dtype)
        for run, columns in self._column_tiles(x):
            grad += delta[:, :, run] @ columns.conj().swapaxes(1, 2)
        return grad.reshape(shape)

    def input_grad(self, grad_output: Array, weight: Array) -> Array | None:
        backend, (window, batch, channels, _, groups, dtype) = self.backend, self.problem
        delta = grouped(buffer_of(grad_output), groups)  # (G, O/G, L·N)
        kernels = weight.reshape(groups, weight.shape[0] // groups, -1)
        adjoint = kernels.conj().swapaxes(1, 2)  # (G, C/G·taps, O/G)
        if window.is_pointwise:
            grad = backend.empty((batch, channels, *window.input_size), dtype)
            backend.xp.matmul(adjoint, delta, out=grouped(buffer_of(grad), groups))
            return grad
        padded = backend.xp.zeros((channels, *window.padded_size, batch), dtype)
        for region, run in self._runs():
            add_columns(padded, adjoint @ delta[:, :, run], window, region)
        return backend.unpadded(padded, window)

    def _column_tiles(self, x: Array) -> Iterator[tuple[slice, Array]]:
        """Runs of consecutive output elements and their columns (G, C/G·taps, run)."""
        window, groups = self.problem.window, self.problem.groups
        if window.is_pointwise:
            yield slice(None), grouped(buffer_of(x), groups)
            return
        patches = self.backend.patches(x, window)  # (C, *kernel, *out, N)
        scratch = None
        for region, run in self._runs():
            part = patches[(slice(None),) * (1 + window.ndim) + region]
            if scratch is None:  # the first run is the longest
                scratch = self.backend.xp.empty(part.size, x.dtype)
            columns = scratch[: part.size].reshape(part.shape)
            columns[...] = part
            yield run, columns.reshape(groups, -1, run.stop - run.start)

    def _runs(self) -> list[tuple[Region, slice]]:
        """Regions whose columns fit the workspace, and the runs they cover."""
        sizes = (*self.problem.window.output_size, self.problem.batch)
        return region_runs(sizes, self._tile_length())

    def _tile_length(self) -> int:
        """How many columns are made at a time."""
        return max(1, self.backend.workspace_limit // self.problem.column_bytes)


class ConvolutionPrimitives(MemoryFormat):
    """im2col, col2im and convolution; arrays are (N, C, *S) in batch-last memory."""

    def __init__(self, name: str, xp: Any, workspace_limit: int) -> None:
        super().__init__(name, xp, workspace_limit)
        self._chosen = lru_cache(maxsize=512)(self._choose)

    def algorithms(self, problem: Problem, method: str = "auto") -> tuple[Algorithm, ...]:
        """The algorithms to try for a problem, one after the other; the last never gives up.

        ``method``: "auto"; "fft", the Fourier transform; "im2col", anything else.
        """
        return self._chosen(problem, method, self._workspace_limit)

    def candidates(self, problem: Problem) -> list[Algorithm]:
        """The algorithms that apply to a problem, the one that never gives up last."""
        return [Fourier(self, problem), Im2col(self, problem)]

    def adjoint(self, problem: Problem) -> Problem | None:
        """The convolution that is to compute the input gradient, instead of the algorithms'
        own way; None where there is none, or nothing is gained."""
        return None

    def _choose(self, problem: Problem, method: str, *_: Hashable) -> tuple[Algorithm, ...]:
        if method == "fft":
            return (Fourier(self, problem),)
        *others, last = self.candidates(problem)
        faster = [one for one in others if one.seconds < last.seconds]
        if method == "im2col":
            faster = [one for one in faster if not isinstance(one, Fourier)]
        return (*sorted(faster, key=lambda one: one.seconds), last)

    def convolution(
        self, x: Array, weight: Array, bias: Array | None, window: Window, groups: int,
        relu: bool = False, method: str = "auto",
    ) -> Array:  # fmt: skip
        """h = K v + b: x (N, C, *S), weight (O, C/groups, *kernel), bias (O,) → (N, O, *out).

        With ``relu``, max(h, 0), applied while a tile of h is at hand.
        """
        problem = Problem(window, x.shape[0], x.shape[1], weight.shape[0], groups, x.dtype)
        for algorithm in self.algorithms(problem, method):
            h = algorithm.forward(x, weight, bias, relu)
            if h is not None:
                return h
        raise no_result(problem)

    def convolution_input_grad(
        self, grad_output: Array, weight: Array, window: Window, groups: int, method: str = "auto",
    ) -> Array:  # fmt: skip
        """δx = col2im(Kᴴ Δ): grad_output (N, O, *out), weight (O, C/groups, *kernel) → (N, C, *S).

        With ``grad_output`` for x this is the transposed convolution.
        """
        batch, outputs = grad_output.shape[:2]
        inputs = weight.shape[1] * groups
        problem = Problem(window, batch, inputs, outputs, groups, weight.dtype)
        adjoint = None if method == "fft" else self.adjoint(problem)
        if adjoint is not None:
            kernels = adjoint_kernels(weight, groups)
            return self.convolution(
                grad_output, kernels, None, adjoint.window, groups, False, method
            )
        for algorithm in self.algorithms(problem, method):
            grad = algorithm.input_grad(grad_output, weight)
            if grad is not None:
                return grad
        raise no_result(problem)

    def convolution_weight_grad(
        self, x: Array, grad_output: Array, weight_shape: Shape, window: Window, groups: int,
        method: str = "auto",
    ) -> Array:  # fmt: skip
        """δK = Δ vᴴ: x (N, C, *S), grad_output (N, O, *out) → ``weight_shape``."""
        problem = Problem(window, x.shape[0], x.shape[1], weight_shape[0], groups, x.dtype)
        for algorithm in self.algorithms(problem, method):
            grad = algorithm.weight_grad(x, grad_output)
            if grad is not None:
                return grad
        raise no_result(problem)

    def convolution_grads(
        self, x: Array, grad_output: Array, weight: Array, window: Window, groups: int,
        method: str = "auto",
    ) -> tuple[Array, Array]:  # fmt: skip
        """Both gradients of a convolution: δx and δK."""
        problem = Problem(window, x.shape[0], x.shape[1], weight.shape[0], groups, x.dtype)
        adjoint = self.adjoint(problem)
        if adjoint is not None and groups == 1 and self.algorithms(problem, method)[0].shares:
            kernels = adjoint_kernels(weight, 1)
            for algorithm in self.algorithms(adjoint, method):
                if not algorithm.shares:
                    break
                grads = algorithm.adjoint_grads(grad_output, x, kernels)
                if grads is not None:
                    return grads
        return (
            self.convolution_input_grad(grad_output, weight, window, groups, method),
            self.convolution_weight_grad(x, grad_output, weight.shape, window, groups, method),
        )

    def workspace_bytes(
        self, window: Window, batch: int, weight_shape: Shape, groups: int, dtype: Any
    ) -> int:
        """Bytes of the columns, or transforms, that `convolution` holds at a time."""
        outputs, inputs = weight_shape[0], weight_shape[1] * groups
        problem = Problem(window, batch, inputs, outputs, groups, dtype)
        return max(algorithm.workspace_bytes for algorithm in self.algorithms(problem))

    def im2col(self, x: Array, window: Window) -> Array:
        """What each output position sees: (N, C, *S) → columns (C·taps, L·N)."""
        patches = self.patches(x, window).copy()  # (C, *kernel, *out, N)
        return patches.reshape(x.shape[1] * window.taps, window.positions * x.shape[0])

    def col2im(self, columns: Array, window: Window, batch: int) -> Array:
        """The adjoint of `im2col`: columns (C·taps, L·N) are added where they came from."""
        channels = columns.shape[0] // window.taps
        padded = self.xp.zeros((channels, *window.padded_size, batch), columns.dtype)
        everything = tuple(slice(0, size) for size in (*window.output_size, batch))
        add_columns(padded, columns, window, everything)
        return self.unpadded(padded, window)


def add_columns(padded: Array, columns: Array, window: Window, region: Region) -> None:
    """Add a region's columns to the elements of the padded buffer (C, *padded, N) they saw."""
    sizes = [part.stop - part.start for part in region]
    columns = columns.reshape(padded.shape[0], window.taps, *sizes)
    for tap, place in enumerate(window.tap_slices(region[:-1])):
        padded[(*place, region[-1])] += columns[:, tap]


def grouped(buffer: Array, groups: int) -> Array:
    """A buffer (C, ...) as the matrices (groups, C/groups, rest)."""
    return buffer.reshape(groups, buffer.shape[0] // groups, math.prod(buffer.shape[1:]))


def adjoint_kernels(weight: Array, groups: int) -> Array:
    """Kernels (O, C/groups, *kernel) of the adjoint convolution: flipped, conjugated, (C, O/groups,
    *kernel)."""
    flip = (slice(None, None, -1),) * (weight.ndim - 2)
    kernels = weight.reshape(groups, -1, *weight.shape[1:]).swapaxes(1, 2)  # (G, C/G, O/G, *kernel)
    flipped = kernels[(slice(None),) * 3 + flip].conj()
    return flipped.reshape(weight.shape[1] * groups, -1, *weight.shape[2:])


def no_result(problem: Problem) -> RuntimeError:
    """The error of a backend whose last algorithm gave up."""
    return RuntimeError(f"no algorithm of this backend computes {problem}")


@lru_cache(maxsize=512)
def region_runs(sizes: Shape, length: int) -> list[tuple[Region, slice]]:
    """Regions of at most ``length`` elements of a row-major block, and the runs they cover."""
    if not math.prod(sizes):
        return []
    runs, start = [], 0
    for region in tiles(sizes, length):
        size = math.prod(part.stop - part.start for part in region)
        runs.append((region, slice(start, start + size)))
        start += size
    return runs
