"""Convolution on CUDA: an implicit GEMM, or im2col in one pass and cuBLAS."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from arraycnn.arrays import Array, Shape
from arraycnn.backends.cuda.launch import ROW_CHUNK, Launching, accumulator, window_struct
from arraycnn.backends.memory_format import buffer_of
from arraycnn.backends.reference.convolution import ConvolutionPrimitives, grouped
from arraycnn.backends.reference.elementwise import PointwisePrimitives
from arraycnn.geometry import Window, conv_window

# What im2col copies at a time: the CUDA type, and a dtype of that size.
WORDS = {
    16: ("uint4", "complex128"),
    8: ("uint2", "uint64"),
    4: ("unsigned int", "uint32"),
    2: ("unsigned short", "uint16"),
}
SHORTEST_SUM = 4  # slices of the summed dimension that are worth a block of their own
POINT = conv_window(1, 1)  # a dense layer is a convolution at a single position


class Tile(NamedTuple):
    """A tile of the result that one block computes; the sizes are those in convolution.cu."""

    name: str
    rows: int
    columns: int
    depth: int
    threads: int


WIDE, SQUARE, FLAT = (
    Tile("Wide", 128, 128, 8, 256),
    Tile("Square", 64, 64, 16, 256),
    Tile("Flat", 16, 64, 16, 128),
)
WIDE_TF32, SQUARE_TF32 = Tile("WideTf32", 128, 128, 16, 256), Tile("SquareTf32", 64, 64, 16, 256)


def prefers_implicit_gemm(window: Window, outputs: int, dtype: Any, *, input_grad: bool) -> bool:
    """Whether a convolution should skip the column matrix. Not yet measured on a device.

    The column matrix is written once and read once: 8 bytes for each of its float32 elements, which
    then takes part in 2·outputs operations, ``outputs`` those of a group. On a device with 4 TB/s
    and 60 TFLOP/s the traffic costs as much as the arithmetic at about 60 outputs. cuBLAS may be
    expected to do the arithmetic in 0.7 of the time that our product needs, so that the columns pay
    off only above 60 / (1/0.7 − 1) = 140 outputs; the next round number is 128.

    The other cases need no such estimate. A 1×1 convolution has no columns to save. Only float32 is
    tuned here: cuBLAS uses tensor cores for float16. And an implicit input gradient with a stride
    multiplies by zero all but one in stride² of the times, col2im never.
    """
    if window.is_pointwise or dtype != "float32":
        return False
    if input_grad and any(stride != 1 for stride in window.stride):
        return False
    return outputs <= 128


class CudaConvolution(Launching, ConvolutionPrimitives, PointwisePrimitives):
    """The products of convolutions and dense layers."""

    processors: int
    tf32: bool
    _own_products: bool

    @contextmanager
    def own_products(self) -> Iterator[None]:
        """Within the block no product is left to cuBLAS, as in a captured graph."""
        before, self._own_products = self._own_products, True
        try:
            yield
        finally:
            self._own_products = before

    def _is_capturing(self) -> bool:
        """Whether a graph is being captured, in which CuPy refuses to call cuBLAS."""
        return bool(self.xp.cuda.get_current_stream().is_capturing())

    def _avoids_cublas(self) -> bool:
        return self._own_products or self._is_capturing()

    def convolution(
        self,
        x: Array,
        weight: Array,
        bias: Array | None,
        window: Window,
        groups: int,
        relu: bool = False,
    ) -> Array:
        element = self._element(x, weight)
        if element is None or not x.size:
            return super().convolution(x, weight, bias, window, groups, relu)
        batch, outputs = x.shape[0], weight.shape[0] // groups
        bias = None if bias is None else self.xp.ascontiguousarray(bias)
        h = self.empty((batch, weight.shape[0], *window.output_size), x.dtype)
        if self._is_implicit(window, outputs, x.dtype):
            rows, columns = outputs, window.positions * batch
            depth = weight.shape[1] * window.taps
            self._product(
                "convolution", element, (rows, columns, depth), groups, h, bias, relu, window,
                (buffer_of(x), self.xp.ascontiguousarray(weight), bias), weight.shape[1], outputs,
            )  # fmt: skip
            return h
        result = grouped(buffer_of(h), groups)  # (G, O/G, L·N)
        kernels = weight.reshape(groups, outputs, -1)  # (G, O/G, C/G·taps)
        for run, columns in self._column_tiles(x, window, groups):
            self.xp.matmul(kernels, columns, out=result[:, :, run])
        self._add_bias(buffer_of(h), bias, relu)
        return h

    def convolution_input_grad(
        self, grad_output: Array, weight: Array, window: Window, groups: int
    ) -> Array:
        element = self._element(grad_output, weight)
        outputs, batch = weight.shape[0] // groups, grad_output.shape[0]
        implicit = self._is_implicit(window, outputs, weight.dtype, input_grad=True)
        if element is None or not grad_output.size or (window.is_pointwise and not implicit):
            return super().convolution_input_grad(grad_output, weight, window, groups)
        channels = weight.shape[1] * groups
        grad = self.empty((batch, channels, *window.input_size), weight.dtype)
        if implicit:
            rows, columns = weight.shape[1], window.input_positions * batch
            self._product(
                "convolution_input_grad", element, (rows, columns, outputs * window.taps), groups,
                grad, None, False, window,
                (buffer_of(grad_output), self.xp.ascontiguousarray(weight)), rows, outputs,
            )  # fmt: skip
            return grad
        delta = grouped(buffer_of(grad_output), groups)  # (G, O/G, L·N)
        adjoint = weight.reshape(groups, outputs, -1).swapaxes(1, 2)  # (G, C/G·taps, O/G)
        for run in self._runs(window, batch, channels, weight.dtype):
            columns = self.xp.matmul(adjoint, delta[:, :, run])  # (G, C/G·taps, run)
            self._collect(columns, buffer_of(grad), window, run)
        return grad

    def convolution_weight_grad(
        self, x: Array, grad_output: Array, weight_shape: Shape, window: Window, groups: int
    ) -> Array:
        element = self._element(x, grad_output)
        outputs = weight_shape[0] // groups
        implicit = self._is_implicit(window, outputs, x.dtype)
        if element is None or not x.size or not implicit:
            return super().convolution_weight_grad(x, grad_output, weight_shape, window, groups)
        grad = self.xp.empty(weight_shape, x.dtype)
        rows, columns = outputs, weight_shape[1] * window.taps
        self._product(
            "convolution_weight_grad", element, (rows, columns, window.positions * x.shape[0]),
            groups, grad, None, False, window, (buffer_of(x), buffer_of(grad_output)),
            weight_shape[1], outputs,
        )  # fmt: skip
        return grad

    def im2col(self, x: Array, window: Window) -> Array:
        count = window.positions * x.shape[0]
        columns = self.xp.empty((x.shape[1] * window.taps, count), x.dtype)
        self._fill_columns(buffer_of(self.batch_last(x)), columns, window, 0, count)
        return columns

    def col2im(self, columns: Array, window: Window, batch: int) -> Array:
        x = self.empty((batch, columns.shape[0] // window.taps, *window.input_size), columns.dtype)
        self._collect(columns, buffer_of(x), window, slice(0, window.positions * batch))
        return x

    def dense(self, x: Array, weight: Array, bias: Array | None, relu: bool = False) -> Array:
        element = self._element(x, weight)
        if element is None:
            return super().dense(x, weight, bias, relu)
        bias = None if bias is None else self.xp.ascontiguousarray(bias)
        if self._avoids_cublas():
            point, kernels = self.batch_last(x)[:, :, None], weight[:, :, None]
            return self.convolution(point, kernels, bias, POINT, 1, relu)[:, :, 0]
        h = self.xp.matmul(weight, x.T)  # (O, N)
        self._add_bias(h, bias, relu)
        return h.T

    def dense_input_grad(self, grad_output: Array, weight: Array) -> Array:
        if not self._avoids_cublas():
            return super().dense_input_grad(grad_output, weight)
        delta = self.batch_last(grad_output)[:, :, None]
        return self.convolution_input_grad(delta, weight[:, :, None], POINT, 1)[:, :, 0]

    def dense_weight_grad(self, x: Array, grad_output: Array) -> Array:
        if not self._avoids_cublas():
            return super().dense_weight_grad(x, grad_output)
        x, delta = self.batch_last(x)[:, :, None], self.batch_last(grad_output)[:, :, None]
        shape = (delta.shape[1], x.shape[1], 1)
        return self.convolution_weight_grad(x, delta, shape, POINT, 1)[:, :, 0]

    def _is_implicit(
        self, window: Window, outputs: int, dtype: Any, *, input_grad: bool = False
    ) -> bool:
        if self._avoids_cublas() or (self.tf32 and dtype == "float32"):
            return True
        return prefers_implicit_gemm(window, outputs, dtype, input_grad=input_grad)

    def _product(
        self,
        kernel: str,
        element: str,
        size: tuple[int, int, int],
        groups: int,
        result: Array,
        bias: Array | None,
        relu: bool,
        window: Window,
        operands: tuple[Array, ...],
        channels: int,
        outputs: int,
    ) -> None:
        """One of the three implicit products into ``result``: size (rows, columns, summed)."""
        rows, columns, depth = size
        batch = operands[0].shape[-1]
        tile = self._tile(rows, columns, groups, element)
        tiles = -(-columns // tile.columns), -(-rows // tile.rows)
        parts = self._parts(math.prod(tiles) * groups, depth, tile, result)
        buffer = result if kernel == "convolution_weight_grad" else buffer_of(result)
        workspace = None
        if parts > 1:
            workspace = self.xp.empty((parts, result.size), accumulator(result.dtype))
        gathered = operands if kernel == "convolution_weight_grad" else operands[:1]
        vectors = batch % 4 == 0 and all(array.data.ptr % 16 == 0 for array in gathered)
        width = 4 if element == "float" and vectors else 1
        extra = (int(relu),) if kernel == "convolution" else ()
        self.kernels.launch(
            f"{kernel}<{element},{tile.name},{width}>", (*tiles, groups * parts), (tile.threads,),
            *operands, buffer, workspace, window_struct(window), channels, outputs, batch, parts,
            *extra,
        )  # fmt: skip
        if workspace is not None:
            self._launch_elements(
                f"sum_parts<{element}>", result.size, workspace, bias, buffer, result.size, columns,
                parts, int(relu),
            )  # fmt: skip

    def _tile(self, rows: int, columns: int, groups: int, element: str) -> Tile:
        """The largest tile that still gives every processor one, and wastes little on the edge."""
        tf32 = self.tf32 and element == "float"
        if rows <= 32 and not tf32:
            return FLAT
        wide = WIDE_TF32 if tf32 else WIDE
        tiles = -(-rows // wide.rows) * -(-columns // wide.columns) * groups
        if element == "float" and rows > 64 and tiles >= self.processors:
            return wide
        return SQUARE_TF32 if tf32 else SQUARE

    def _parts(self, tiles: int, depth: int, tile: Tile, result: Array) -> int:
        """Into how many parts to split the sum: so many that there are two blocks a processor."""
        slices = -(-depth // tile.depth)
        wanted = min(2 * self.processors // tiles, slices // SHORTEST_SUM)
        size = int(result.size) * int(accumulator(result.dtype).itemsize)
        return int(max(1, min(wanted, self.workspace_limit // max(1, size))))

    def _column_tiles(self, x: Array, window: Window, groups: int) -> Iterator[tuple[slice, Array]]:
        if window.is_pointwise:
            yield from super()._column_tiles(x, window, groups)
            return
        batch, channels = x.shape[:2]
        scratch = None
        for run in self._runs(window, batch, channels, x.dtype):
            count, rows = run.stop - run.start, channels * window.taps
            if scratch is None:  # the first run is the longest
                scratch = self.xp.empty(rows * count, x.dtype)
            columns = scratch[: rows * count].reshape(rows, count)
            self._fill_columns(buffer_of(x), columns, window, run.start, count)
            yield run, columns.reshape(groups, -1, count)

    def _runs(self, window: Window, batch: int, channels: int, dtype: Any) -> Iterator[slice]:
        """Runs of columns that fit into the workspace, whole rows of the batch where they can."""
        everything = window.positions * batch
        length = self._tile_length(channels * window.taps * dtype.itemsize)
        if length > batch > 0:
            length -= length % batch
        for start in range(0, everything, length):
            yield slice(start, min(start + length, everything))

    def _fill_columns(
        self, buffer: Array, columns: Array, window: Window, first: int, count: int
    ) -> None:
        item, batch = int(buffer.dtype.itemsize), buffer.shape[-1]
        extents = batch * item, first * item, count * item, buffer.data.ptr, columns.data.ptr
        word = next(size for size in WORDS if not any(extent % size for extent in extents))
        if not columns.size:
            return
        counts = (extent // word for extent in extents[:3])
        channels, (kind, dtype) = buffer.shape[0], WORDS[word]
        self._launch_columns(
            f"im2col<{kind}>", count * item // word, channels, buffer.view(dtype),
            columns.view(dtype), window_struct(window), channels, *counts,
        )  # fmt: skip

    def _collect(self, columns: Array, buffer: Array, window: Window, run: slice) -> None:
        """col2im of a run of columns, added to ``buffer`` (C, *S, N) unless it is the first."""
        first, count = run.start, run.stop - run.start
        columns = self.xp.ascontiguousarray(columns)
        if columns.dtype.kind == "c":  # real and imaginary parts are two samples
            columns, buffer = columns.view(columns.real.dtype), buffer.view(columns.real.dtype)
            first, count = 2 * first, 2 * count
        channels, batch = buffer.shape[0], buffer.shape[-1]
        self._launch_columns(
            f"col2im<{self._element(columns)}>", window.input_positions * batch, channels,
            columns, buffer, window_struct(window), channels, batch, first, count, int(first > 0),
        )  # fmt: skip

    def _add_bias(self, rows: Array, bias: Array | None, relu: bool) -> None:
        """max(h + bias, 0) in place over rows (O, ...); without ``relu``, h + bias."""
        if bias is None and not relu:
            return
        count = rows.shape[0]
        length = rows.size // max(1, count)
        chunks = -(-length // ROW_CHUNK)
        self.kernels.launch(
            f"bias_relu<{self._element(rows)}>", (count * chunks,), (256,), rows, bias, length,
            chunks, int(relu),
        )  # fmt: skip
