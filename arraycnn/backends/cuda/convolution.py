"""Convolution on CUDA: an implicit GEMM, or columns and cuBLAS, and which of them computes what."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from arraycnn.arrays import Array
from arraycnn.backends.cuda.columns import CudaColumns, collect, fill_columns
from arraycnn.backends.cuda.kernels import ELEMENTS
from arraycnn.backends.cuda.launch import Launching, accumulator, window_struct
from arraycnn.backends.memory_format import buffer_of
from arraycnn.backends.reference.algorithm import Algorithm, Problem, im2col_seconds
from arraycnn.backends.reference.convolution import ConvolutionPrimitives
from arraycnn.backends.reference.fourier import Fourier
from arraycnn.errors import BackendUnavailableError
from arraycnn.geometry import Window

TF32_CAPABILITY = 80  # compute capability 8.0
SHORTEST_SUM = 4  # slices of the summed dimension that are worth a block of their own

# Not yet measured on a device. The column matrix is written once and read once: 8 bytes for each of
# its float32 elements, which then takes part in 2·outputs operations, ``outputs`` those of a group.
# With 4 TB/s and 60 TFLOP/s the traffic costs as much as the arithmetic at about 60 outputs. cuBLAS
# may be expected to do the arithmetic in 0.7 of the time of our product, so that columns pay off
# only above 60 / (1/0.7 − 1) = 140 outputs; the next round number is
IMPLICIT_OUTPUTS = 128


class CudaConvolution(Launching, ConvolutionPrimitives):
    """The products of convolutions.

    Attributes:
        tf32: whether float32 convolutions are computed by tensor cores, which round the factors to
            10 bits of mantissa; False unless assigned.
    """

    def __init__(self, device: int) -> None:
        super().__init__(device)
        self._tf32 = False
        self._own_products = False

    @property
    def tf32(self) -> bool:
        return self._tf32

    @tf32.setter
    def tf32(self, wanted: bool) -> None:
        capability = str(self.device.compute_capability)
        if wanted and int(capability) < TF32_CAPABILITY:
            raise BackendUnavailableError(
                f"tf32 needs compute capability 8.0, an Ampere GPU or newer, but {self.name} has "
                f"{capability[:-1]}.{capability[-1]}; leave tf32 off"
            )
        self._tf32 = bool(wanted)

    @contextmanager
    def own_products(self) -> Iterator[None]:
        """Within the block no product is left to cuBLAS, as in a captured graph."""
        before, self._own_products = self._own_products, True
        try:
            yield
        finally:
            self._own_products = before

    def avoids_cublas(self) -> bool:
        return self._own_products or self._is_capturing()

    def algorithms(self, problem: Problem, method: str = "auto") -> tuple[Algorithm, ...]:
        conditions = self._workspace_limit, self._tf32, self.avoids_cublas()
        return self._chosen(problem, method, *conditions)

    def candidates(self, problem: Problem) -> list[Algorithm]:
        columns = CudaColumns(self, problem)
        if str(problem.dtype) not in ELEMENTS or not problem.batch:
            return [Fourier(self, problem), columns]
        if self.avoids_cublas():
            return [ImplicitGemm(self, problem)]
        outputs, single = problem.outputs // problem.groups, problem.dtype == "float32"
        # A 1×1 convolution has no columns to save; for float16 cuBLAS has tensor cores.
        saves = single and not problem.window.is_pointwise and outputs <= IMPLICIT_OUTPUTS
        implicit = saves or (single and self.tf32)
        return [Fourier(self, problem), ImplicitGemm(self, problem) if implicit else columns]

    def im2col(self, x: Array, window: Window) -> Array:
        count = window.positions * x.shape[0]
        columns = self.xp.empty((x.shape[1] * window.taps, count), x.dtype)
        fill_columns(self, buffer_of(self.batch_last(x)), columns, window, 0, count)
        return columns

    def col2im(self, columns: Array, window: Window, batch: int) -> Array:
        x = self.empty((batch, columns.shape[0] // window.taps, *window.input_size), columns.dtype)
        collect(self, columns, buffer_of(x), window, slice(0, window.positions * batch))
        return x


class Block(NamedTuple):
    """A tile of the result that one block of threads computes; sizes as in convolution.cu."""

    name: str
    rows: int
    columns: int
    depth: int
    threads: int


WIDE, SQUARE, FLAT = (
    Block("Wide", 128, 128, 8, 256),
    Block("Square", 64, 64, 16, 256),
    Block("Flat", 16, 64, 16, 128),
)
WIDE_TF32, SQUARE_TF32 = (
    Block("WideTf32", 128, 128, 16, 256),
    Block("SquareTf32", 64, 64, 16, 256),
)


class ImplicitGemm(Algorithm):
    """The product of kernels and columns, whose elements are read from the input when needed."""

    backend: CudaConvolution

    def __init__(self, backend: CudaConvolution, problem: Problem) -> None:
        super().__init__(backend, problem)
        self.outputs = problem.outputs // problem.groups
        self.seconds, self.workspace_bytes = im2col_seconds(problem), 0
        # An implicit input gradient with a stride multiplies by zero all but one in stride² of the
        # times, col2im never.
        self.columns = None
        strided = any(stride != 1 for stride in problem.window.stride)
        if strided and not backend.avoids_cublas() and not backend.tf32:
            self.columns = CudaColumns(backend, problem)

    def forward(self, x: Array, weight: Array, bias: Array | None, relu: bool) -> Array | None:
        window, batch, _, outputs, _, dtype = self.problem
        h = self.backend.empty((batch, outputs, *window.output_size), dtype)
        bias = None if bias is None else self.backend.xp.ascontiguousarray(bias)
        operands = buffer_of(x), self.backend.xp.ascontiguousarray(weight), bias
        size = self.outputs, window.positions * batch, math.prod(weight.shape[1:])
        self._product("convolution", size, h, operands, bias, relu)
        return h

    def input_grad(self, grad_output: Array, weight: Array) -> Array | None:
        window, batch, inputs, _, groups, dtype = self.problem
        if self.columns is not None:
            return self.columns.input_grad(grad_output, weight)
        grad = self.backend.empty((batch, inputs, *window.input_size), dtype)
        operands = buffer_of(grad_output), self.backend.xp.ascontiguousarray(weight)
        size = inputs // groups, window.input_positions * batch, self.outputs * window.taps
        self._product("convolution_input_grad", size, grad, operands)
        return grad

    def weight_grad(self, x: Array, grad_output: Array) -> Array | None:
        window, batch, _, _, _, dtype = self.problem
        shape = self.problem.weight_shape
        grad = self.backend.xp.empty(shape, dtype)
        size = self.outputs, math.prod(shape[1:]), window.positions * batch
        operands = buffer_of(x), buffer_of(grad_output)
        self._product("convolution_weight_grad", size, grad, operands)
        return grad

    def _product(
        self, kernel: str, size: tuple[int, int, int], result: Array,
        operands: tuple[Array | None, ...], bias: Array | None = None, relu: bool = False,
    ) -> None:  # fmt: skip
        """One of the three products into ``result``: size (rows, columns, summed) of a group."""
        backend, (window, batch, inputs, _, groups, dtype) = self.backend, self.problem
        rows, columns, depth = size
        element = ELEMENTS[str(dtype)]
        block = self._block(rows, columns)
        blocks = -(-columns // block.columns), -(-rows // block.rows)
        parts = self._parts(math.prod(blocks) * groups, depth, block, result)
        of_weight = kernel == "convolution_weight_grad"
        buffer = result if of_weight else buffer_of(result)
        workspace = None
        if parts > 1:
            workspace = backend.xp.empty((parts, result.size), accumulator(dtype))
        read = operands if of_weight else operands[:1]
        aligned = all(array is None or array.data.ptr % 16 == 0 for array in read)
        width = 4 if element == "float" and batch % 4 == 0 and aligned else 1
        extra = (int(relu),) if kernel == "convolution" else ()
        backend.kernels.launch(
            f"{kernel}<{element},{block.name},{width}>", (*blocks, groups * parts),
            (block.threads,), *operands, buffer, workspace, window_struct(window),
            inputs // groups, self.outputs, batch, parts, *extra,
        )  # fmt: skip
        if workspace is not None:
            backend.launch_elements(
                f"sum_parts<{element}>", result.size, workspace, bias, buffer, result.size, columns,
                parts, int(relu),
            )  # fmt: skip

    def _block(self, rows: int, columns: int) -> Block:
        """The largest tile that still gives every processor one, and wastes little on the edge."""
        single = self.problem.dtype == "float32"
        tf32 = self.backend.tf32 and single
        if rows <= 32 and not tf32:
            return FLAT
        wide = WIDE_TF32 if tf32 else WIDE
        tiles = -(-rows // wide.rows) * -(-columns // wide.columns) * self.problem.groups
        if single and rows > 64 and tiles >= self.backend.processors:
            return wide
        return SQUARE_TF32 if tf32 else SQUARE

    def _parts(self, blocks: int, depth: int, block: Block, result: Array) -> int:
        """Into how many parts to split the sum: so many that there are two blocks a processor."""
        slices = -(-depth // block.depth)
        wanted = min(2 * self.backend.processors // blocks, slices // SHORTEST_SUM)
        size = int(result.size) * int(accumulator(result.dtype).itemsize)
        return int(max(1, min(wanted, self.backend.workspace_limit // max(1, size))))
