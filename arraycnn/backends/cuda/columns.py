"""im2col and col2im on CUDA, each in one launch, and convolution by them with cuBLAS."""

from collections.abc import Iterator

from arraycnn.arrays import Array
from arraycnn.backends.cuda.launch import Launching, window_struct
from arraycnn.backends.memory_format import buffer_of
from arraycnn.backends.reference.convolution import Im2col, grouped
from arraycnn.geometry import Window

# What im2col copies at a time: the CUDA type, and a dtype of that size.
WORDS = {
    16: ("uint4", "complex128"),
    8: ("uint2", "uint64"),
    4: ("unsigned int", "uint32"),
    2: ("unsigned short", "uint16"),
}


class CudaColumns(Im2col):
    """Columns in the workspace, multiplied by cuBLAS."""

    backend: Launching

    def forward(self, x: Array, weight: Array, bias: Array | None, relu: bool) -> Array | None:
        if self.backend.element(x, weight) is None or not x.size:
            return super().forward(x, weight, bias, relu)
        window, batch, _, outputs, groups, dtype = self.problem
        h = self.backend.empty((batch, outputs, *window.output_size), dtype)
        result = grouped(buffer_of(h), groups)  # (G, O/G, L·N)
        kernels = weight.reshape(groups, outputs // groups, -1)  # (G, O/G, C/G·taps)
        for run, columns in self._column_tiles(x):
            self.backend.xp.matmul(kernels, columns, out=result[:, :, run])
        self.backend.add_bias(buffer_of(h), bias, relu)
        return h

    def input_grad(self, grad_output: Array, weight: Array) -> Array | None:
        window, batch, channels, outputs, groups, dtype = self.problem
        kernels_fit = self.backend.element(grad_output, weight) is not None and grad_output.size
        if not kernels_fit or window.is_pointwise:
            return super().input_grad(grad_output, weight)
        grad = self.backend.empty((batch, channels, *window.input_size), dtype)
        delta = grouped(buffer_of(grad_output), groups)  # (G, O/G, L·N)
        adjoint = weight.reshape(groups, outputs // groups, -1).swapaxes(1, 2)  # (G, C/G·taps, O/G)
        for run in self._whole_runs():
            columns = self.backend.xp.matmul(adjoint, delta[:, :, run])  # (G, C/G·taps, run)
            collect(self.backend, columns, buffer_of(grad), window, run)
        return grad

    def _column_tiles(self, x: Array) -> Iterator[tuple[slice, Array]]:
        window, groups, scratch = self.problem.window, self.problem.groups, None
        if window.is_pointwise:
            yield from super()._column_tiles(x)
            return
        rows = self.problem.inputs * window.taps
        for run in self._whole_runs():
            count = run.stop - run.start
            if scratch is None:  # the first run is the longest
                scratch = self.backend.xp.empty(rows * count, x.dtype)
            columns = scratch[: rows * count].reshape(rows, count)
            fill_columns(self.backend, buffer_of(x), columns, window, run.start, count)
            yield run, columns.reshape(groups, -1, count)

    def _whole_runs(self) -> Iterator[slice]:
        """Runs of columns that fit into the workspace, whole rows of the batch where they can."""
        batch, length = self.problem.batch, self._tile_length()
        everything = self.problem.window.positions * batch
        if length > batch > 0:
            length -= length % batch
        for start in range(0, everything, length):
            yield slice(start, min(start + length, everything))


def fill_columns(
    backend: Launching, buffer: Array, columns: Array, window: Window, first: int, count: int
) -> None:
    """Write the columns from ``first`` on of a buffer (C, *S, N)."""
    item, batch = int(buffer.dtype.itemsize), buffer.shape[-1]
    extents = batch * item, first * item, count * item, buffer.data.ptr, columns.data.ptr
    word = next(size for size in WORDS if not any(extent % size for extent in extents))
    if not columns.size:
        return
    counts = (extent // word for extent in extents[:3])
    channels, (kind, dtype) = buffer.shape[0], WORDS[word]
    backend.launch_columns(
        f"im2col<{kind}>", count * item // word, channels, buffer.view(dtype),
        columns.view(dtype), window_struct(window), channels, *counts,
    )  # fmt: skip


def collect(backend: Launching, columns: Array, buffer: Array, window: Window, run: slice) -> None:
    """col2im of a run of columns, added to ``buffer`` (C, *S, N) unless it is the first."""
    first, count = run.start, run.stop - run.start
    columns = backend.xp.ascontiguousarray(columns)
    if columns.dtype.kind == "c":  # real and imaginary parts are two samples
        columns, buffer = columns.view(columns.real.dtype), buffer.view(columns.real.dtype)
        first, count = 2 * first, 2 * count
    channels, batch = buffer.shape[0], buffer.shape[-1]
    backend.launch_columns(
        f"col2im<{backend.element(columns)}>", window.input_positions * batch, channels, columns,
        buffer, window_struct(window), channels, batch, first, count, int(first > 0),
    )  # fmt: skip
