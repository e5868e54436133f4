"""Convolution through the Fourier transform, for kernels with many taps, and its two adjoints.

The discrete Fourier transform F turns sums over windows into products, frequency by frequency
(conj is complex conjugation; without stride, dilation and padding, which come on top):

    forward   h[o]  = Σ_c,k K[o,c,k]·x[c,·+k]        F h  = conj F(conj K) · F x
    backward  δK    = Σ_n Δ[·]·conj x[·+k]           conj F(δK) → Σ conj F(Δ) · F x
              δx    = Σ_o,k conj K[o,c,k]·Δ[o,·−k]   F δx = F(conj K)ᵀ · F Δ

A product of transforms is a circular sum, so the input is cut into blocks that overlap by the
kernel's extent − 1: of each block the outputs that do not wrap around are kept (overlap-save); a
gradient's blocks are added up where they overlap (overlap-add). Memory does not depend on the size
of the input beyond that of the result, and all transforms of a block fit ``workspace_limit``,
unless those of a single kernel, sample and block of twice the kernel's extent do not.

Strides are computed as the stride 1 of which they are every s-th; dilated kernels are made explicit
with zeros. Rounding errors are relative to the largest values of a block, not of a window, and a
NaN or infinity reaches every output of its block.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from arraycnn.arrays import Array, Shape
from arraycnn.backends.memory_format import MemoryFormat, buffer_of
from arraycnn.backends.reference.algorithm import Algorithm, Problem
from arraycnn.geometry import Window

# Speeds on Zen 4 cores (NumPy with pocketfft, float32), to compare with those of columns.
NS_PER_BUTTERFLY = 0.7  # of a real transform, per element and binary digit of their number
NS_PER_SPECTRUM_PRODUCT = 0.14  # of kernel and input spectra, per element of a block
NS_PER_BLOCK = 70_000  # to call all that once

BLOCK_PER_EXTENT = 5  # longer blocks waste less on overlap, shorter ones stay in the cache
LARGEST_BLOCK = 1 << 21  # elements, where the workspace limit does not allow fewer
SHORTEST_BLOCK = 1 << 13  # elements; below, calls cost more than work


@dataclass(frozen=True, slots=True)
class _Block:
    """One block of the work along all spatial dimensions."""

    input: tuple[slice, ...]  # in the padded input
    output: tuple[slice, ...]  # in the output
    kept: tuple[slice, ...]  # those outputs among the block's stride-1 outputs


class Fourier(Algorithm):
    """Products of transforms, block by block."""

    def __init__(self, backend: MemoryFormat, problem: Problem) -> None:
        super().__init__(backend, problem)
        self.seconds = _seconds(problem)
        self._plan = plan = _Plan.of(backend.workspace_limit, problem)
        arrays = plan.outputs * plan.inputs + plan.samples * (plan.outputs + plan.inputs)
        element = 2 * _computed(problem.dtype).itemsize
        self.workspace_bytes = element * math.prod(plan.size) * arrays

    def forward(self, x: Array, weight: Array, bias: Array | None, relu: bool) -> Array | None:
        """F h = conj F(conj K) · F x."""
        backend, (window, batch, _, outputs, groups, dtype) = self.backend, self.problem
        h = backend.zeros((batch, outputs, *window.output_size), _computed(dtype))
        if bias is not None:
            h += bias.reshape(-1, *(1,) * window.ndim)
        padded, out = backend.padded(x, window), buffer_of(h)  # (C, *padded, N), (O, *out, N)
        for rows, inputs, kernels in self._plan.kernel_parts(weight, groups):
            spectrum = self._kernel_spectrum(kernels).conj()  # (freq, o, c)
            for block, samples in self._plan.blocks(window, batch):
                signal = self._spectrum(padded[(inputs, *block.input, samples)])
                result = self._signal(_matmul(spectrum, signal), h.dtype)
                out[(rows, *block.output, samples)] += result[(slice(None), *block.kept)]
        if relu:
            backend.xp.maximum(h, 0, out=h)
        return h.astype(dtype, copy=False)

    def weight_grad(self, x: Array, grad_output: Array) -> Array | None:
        """conj F(δK) = Σ conj F(Δ) · F x, summed over blocks before it is transformed back."""
        backend, (window, batch, _, _, groups, dtype) = self.backend, self.problem
        grad = backend.xp.empty(self.problem.weight_shape, dtype)
        padded, delta = backend.padded(x, window), buffer_of(grad_output)
        taps = tuple(slice(0, e, d) for e, d in zip(window.extent, window.dilation, strict=True))
        for outputs, inputs, kernels in self._plan.kernel_parts(grad, groups):
            total: Any = 0
            for block, samples in self._plan.blocks(window, batch):
                signal = self._spectrum(padded[(inputs, *block.input, samples)])
                slopes = self._spectrum(self._unit_stride(delta, outputs, block, samples)).conj()
                total += _matmul(slopes, signal.swapaxes(1, 2))  # (freq, o, n) (freq, n, c)
            if batch:
                summed = self._signal(total, _computed(dtype))  # (o, *block, c)
                kernels[...] = backend.xp.moveaxis(summed[(slice(None), *taps)], -1, 1).conj()
            else:
                kernels[...] = 0
        return grad

    def input_grad(self, grad_output: Array, weight: Array) -> Array | None:
        """F δx = F(conj K)ᵀ · F Δ."""
        backend, (window, batch, channels, _, groups, dtype) = self.backend, self.problem
        padded = backend.xp.zeros((channels, *window.padded_size, batch), _computed(dtype))
        delta = buffer_of(grad_output)
        for outputs, inputs, kernels in self._plan.kernel_parts(weight, groups):
            spectrum = self._kernel_spectrum(kernels).swapaxes(1, 2)
            for block, samples in self._plan.blocks(window, batch):
                slopes = self._spectrum(self._unit_stride(delta, outputs, block, samples))
                grad = self._signal(_matmul(spectrum, slopes), padded.dtype)  # (c, *block, n)
                sizes = (slice(0, part.stop - part.start) for part in block.input)
                padded[(inputs, *block.input, samples)] += grad[(slice(None), *sizes)]
        return backend.unpadded(padded, window).astype(dtype, copy=False)

    def _unit_stride(self, delta: Array, outputs: slice, block: _Block, samples: slice) -> Array:
        """A block's output gradients (o, *length, n) at stride 1: zeros where no output is."""
        part = delta[(outputs, *block.output, samples)]
        if all(kept.step == 1 for kept in block.kept):
            return part
        lengths = (kept.stop for kept in block.kept)
        explicit = self.backend.xp.zeros((part.shape[0], *lengths, part.shape[-1]), part.dtype)
        explicit[(slice(None), *block.kept)] = part
        return explicit

    def _kernel_spectrum(self, kernels: Array) -> Array:
        """F(conj K) of kernels (o, c, *kernel) with their dilation: (frequencies, o, c)."""
        xp, window = self.backend.xp, self.problem.window
        rows, columns = kernels.shape[:2]
        explicit = xp.zeros((rows, *window.extent, columns), kernels.dtype)
        taps = (slice(None, None, d) for d in window.dilation)
        explicit[(slice(None), *taps)] = xp.moveaxis(kernels, 1, -1).conj()
        return xp.ascontiguousarray(self._spectrum(explicit))

    def _spectrum(self, signal: Array) -> Array:
        """F of (a, *length, b), zero-padded to the block (a, *size, b): (frequencies, a, b)."""
        xp, size = self.backend.xp, self._plan.size
        signal = signal.astype(_computed(signal.dtype), copy=False)
        fft = xp.fft.fftn if signal.dtype.kind == "c" else xp.fft.rfftn
        spectrum = fft(signal, s=size, axes=tuple(range(1, 1 + len(size))))
        return spectrum.reshape(signal.shape[0], -1, signal.shape[-1]).swapaxes(0, 1)

    def _signal(self, spectrum: Array, dtype: Any) -> Array:
        """The signal of a block (a, *size, b) with the spectrum (frequencies, a, b)."""
        xp, size = self.backend.xp, self._plan.size
        real = dtype.kind != "c"
        frequencies = (*size[:-1], size[-1] // 2 + 1 if real else size[-1])
        _, rows, columns = spectrum.shape
        spectrum = spectrum.swapaxes(0, 1).reshape(rows, *frequencies, columns)
        inverse = xp.fft.irfftn if real else xp.fft.ifftn
        return inverse(spectrum, s=size, axes=tuple(range(1, 1 + len(size))))


@dataclass(frozen=True, slots=True)
class _Plan:
    """How the work is cut so that its transforms fit: block size, channels, samples at a time."""

    size: Shape  # of a block, per spatial dimension
    outputs: int
    inputs: int
    samples: int

    @classmethod
    def of(cls, workspace_limit: int, problem: Problem) -> "_Plan":
        """The plan whose transforms take no more than ``workspace_limit`` bytes."""
        element = 2 * _computed(problem.dtype).itemsize  # a spectrum, and the signal it is from
        limit = max(1, workspace_limit // element)
        size = block_size(problem.window, limit // 4)  # of one kernel, input, output, and a spare
        blocks = max(1, limit // math.prod(size))
        outputs, inputs = problem.weight_shape[:2]
        inputs = min(inputs, max(1, math.isqrt(blocks // 2)))
        outputs = min(outputs, max(1, blocks // 2 // inputs))
        samples = max(1, min(problem.batch, blocks // 2 // (inputs + outputs)))
        return cls(size, outputs, inputs, samples)

    def kernel_parts(self, weight: Array, groups: int) -> Iterator[tuple[slice, slice, Array]]:
        """Output channels, input channels and the kernels (o, c, *kernel) between them."""
        rows, columns = weight.shape[0] // groups, weight.shape[1]
        for group in range(groups):
            for outputs in _runs(rows, self.outputs, group * rows):
                for inputs in _runs(columns, self.inputs):
                    first = group * columns
                    shifted = slice(first + inputs.start, first + inputs.stop)
                    yield outputs, shifted, weight[outputs, inputs]

    def blocks(self, window: Window, batch: int) -> Iterator[tuple[_Block, slice]]:
        """The blocks of the work, each with a run of samples."""
        for parts in product(*map(self._cuts, *_geometry(window), self.size)):
            block = _Block(*zip(*parts, strict=True))
            for samples in _runs(batch, self.samples):
                yield block, samples

    @staticmethod
    def _cuts(
        output: int, stride: int, extent: int, size: int
    ) -> Iterator[tuple[slice, slice, slice]]:
        """A `_Block` along one dimension: ``size`` inputs give size − extent + 1 outputs at stride
        1, of which every stride-th is one."""
        for run in _runs(output, _outputs_of(size, stride, extent)):
            start, length = run.start * stride, (run.stop - run.start - 1) * stride + 1
            yield slice(start, start + length + extent - 1), run, slice(0, length, stride)


def block_size(window: Window, limit: int) -> Shape:
    """Elements of a block per dimension, at most ``limit`` in all unless the kernel needs more."""
    shortest = round(SHORTEST_BLOCK ** (1 / window.ndim))
    sizes = [
        min((o - 1) * s + e, max(BLOCK_PER_EXTENT * e, e + s, shortest))
        for o, s, e in zip(*_geometry(window), strict=True)
    ]
    least = [
        min(size, 2 * e + s - 2)
        for size, s, e in zip(sizes, window.stride, window.extent, strict=True)
    ]
    while math.prod(sizes) > limit and sizes != least:
        axis = max(range(window.ndim), key=lambda a: sizes[a] / least[a])
        sizes[axis] = max(least[axis], sizes[axis] // 2)
    return tuple(
        _even(size, o, s, e) for size, o, s, e in zip(sizes, *_geometry(window), strict=True)
    )


def _seconds(problem: Problem) -> float:
    """Roughly, on one core, from the sizes alone."""
    window, batch, inputs, outputs, groups, _ = problem
    size = block_size(window, LARGEST_BLOCK)
    cuts = zip(size, *_geometry(window), strict=True)
    blocks = math.prod(-(-o // _outputs_of(length, s, e)) for length, o, s, e in cuts)
    transforms = (inputs + outputs) * batch * blocks + outputs * inputs // groups
    products = outputs * inputs // groups * batch * blocks
    nanoseconds = blocks * NS_PER_BLOCK + math.prod(size) * (
        transforms * math.log2(math.prod(size)) * NS_PER_BUTTERFLY
        + products * NS_PER_SPECTRUM_PRODUCT
    )
    return nanoseconds * 1e-9


def _geometry(window: Window) -> tuple[Shape, Shape, Shape]:
    """Output size, stride and extent, each per spatial dimension."""
    return window.output_size, window.stride, window.extent


def _outputs_of(size: int, stride: int, extent: int) -> int:
    """Outputs of a block of ``size`` inputs."""
    return (size - extent) // stride + 1


def _even(size: int, output: int, stride: int, extent: int) -> int:
    """The size that cuts a dimension into as many blocks as ``size`` does, but equal ones."""
    pieces = -(-output // _outputs_of(size, stride, extent))
    return fast_length((-(-output // pieces) - 1) * stride + extent)


def fast_length(length: int) -> int:
    """The smallest number of at least ``length`` with no prime factor above 5."""
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return length
        length += 1


def _runs(count: int, length: int, first: int = 0) -> Iterator[slice]:
    """Consecutive slices of at most ``length`` that cover ``count`` indices from ``first`` on."""
    for start in range(first, first + count, length):
        yield slice(start, min(start + length, first + count))


def _matmul(a: Array, b: Array) -> Array:
    """a @ b for stacks of matrices; of a column and a row a plain product, which is faster."""
    return a * b if a.shape[-1] == 1 else a @ b


def _computed(dtype: Any) -> Any:
    """The dtype that transforms of ``dtype`` are computed in: float16 has none of its own."""
    return np.dtype("float32") if dtype.itemsize == 2 else dtype
