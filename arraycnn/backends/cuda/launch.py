"""What every CUDA primitive needs: element types, windows as structs, grids of threads."""

import math
from functools import lru_cache
from typing import Any

import numpy as np

from arraycnn.arrays import Array, Shape
from arraycnn.backends.cuda.device import CudaDevice
from arraycnn.backends.cuda.kernels import ELEMENTS, Kernels
from arraycnn.geometry import Window

THREADS = 256  # of a block, where the kernel does not say otherwise
SPREAD = 4096  # blocks that keep any device busy
ROW_CHUNK = 1024  # elements of a row that a block takes; as in pointwise.cu

WINDOW = np.dtype(
    [(name, np.int32, 3) for name in ("input", "kernel", "stride", "before", "dilation", "output")]
)
TABLE_SIZE = 48  # as in updates.cu
TENSOR_TABLE = np.dtype(
    [
        ("pointers", np.uint64, (4, TABLE_SIZE)),
        ("count", np.int64, TABLE_SIZE),
        ("first_block", np.int32, TABLE_SIZE + 1),
        ("tensors", np.int32),
    ],
    align=True,
)
STRUCTS = {"Window": WINDOW, "TensorTable": TENSOR_TABLE}


class Launching(CudaDevice):
    """A CUDA device with our kernels."""

    def __init__(self, device: int) -> None:
        super().__init__(device)
        self.kernels = Kernels(self.xp, STRUCTS)
        self.processors = int(self.device.attributes["MultiProcessorCount"])

    def _is_capturing(self) -> bool:
        """Whether a graph is being captured, in which CuPy refuses to call cuBLAS."""
        return bool(self.xp.cuda.get_current_stream().is_capturing())

    def element(self, *arrays: Array | None) -> str | None:
        """The kernels' name for the dtype of the arrays; None where kernels are not for it."""
        dtypes = {str(array.dtype) for array in arrays if array is not None}
        return ELEMENTS.get(dtypes.pop()) if len(dtypes) == 1 else None

    def launch_columns(self, instance: str, columns: int, channels: int, *args: Any) -> None:
        """Launch a kernel with one thread per column, each taking some of the channels."""
        blocks = -(-columns // THREADS)
        rows = min(channels, max(1, SPREAD // max(1, blocks)))
        self.kernels.launch(instance, (blocks, rows), (THREADS,), *args)

    def add_bias(self, rows: Array, bias: Array | None, relu: bool) -> None:
        """max(h + bias, 0) in place over rows (O, ...); without ``relu``, h + bias."""
        if bias is None and not relu:
            return
        bias = None if bias is None else self.xp.ascontiguousarray(bias)
        count = rows.shape[0]
        length = rows.size // max(1, count)
        chunks = -(-length // ROW_CHUNK)
        self.kernels.launch(
            f"bias_relu<{self.element(rows)}>", (count * chunks,), (256,), rows, bias, length,
            chunks, int(relu),
        )  # fmt: skip

    def launch_elements(self, instance: str, size: int, *args: Any) -> None:
        """Launch a kernel whose threads share ``size`` elements among them."""
        blocks = min(-(-size // THREADS), 16 * SPREAD)
        self.kernels.launch(instance, (blocks,), (THREADS,), *args)


def accumulator(dtype: Any) -> Any:
    """The dtype in which kernels sum: halves are only stored."""
    return np.dtype(np.float32) if dtype == np.float16 else np.dtype(dtype)


def chunks_of(length: int, chunk: int) -> int:
    """How many chunks cover a row; an empty row has one, so that its sum is written."""
    return max(1, -(-length // chunk))


@lru_cache(maxsize=1024)
def window_struct(window: Window) -> Array:
    """The window as kernels take it: three spatial dimensions, 32-bit sizes.

    Raises:
        ValueError: a size that 32 bits do not hold.
    """
    if max(*window.padded_size, math.prod(window.kernel_size)) >= 2**31:
        raise ValueError(
            f"backend 'cuda' takes padded inputs and kernels below 2**31 in every dimension, got "
            f"padded size {window.padded_size} and kernel size {window.kernel_size}"
        )
    struct = np.zeros(1, WINDOW)
    struct["input"] = _three(window.input_size)
    struct["kernel"] = _three(window.kernel_size)
    struct["stride"] = _three(window.stride)
    struct["before"] = _three(tuple(before for before, _ in window.padding), fill=0)
    struct["dilation"] = _three(window.dilation)
    struct["output"] = _three(window.output_size)
    struct.flags.writeable = False
    return struct


def _three(sizes: Shape, fill: int = 1) -> Shape:
    return (fill,) * (3 - len(sizes)) + sizes
