"""The compiled kernels, by the primitive that they compute; importing this imports Numba."""

from typing import NamedTuple

from arraycnn.backends.compiled import loops
from arraycnn.backends.compiled.correlation import add_weight_grad as add_weight_grad
from arraycnn.backends.compiled.correlation import correlate as correlate
from arraycnn.backends.compiled.correlation import dense_sample as dense_sample
from arraycnn.backends.compiled.correlation import magnitude as magnitude
from arraycnn.backends.compiled.correlation import pack as pack
from arraycnn.backends.compiled.correlation import to_outputs as to_outputs
from arraycnn.backends.compiled.correlation import to_points as to_points
from arraycnn.backends.compiled.jit import VERSION as VERSION
from arraycnn.backends.compiled.jit import Kernel
from arraycnn.backends.compiled.llvm import LANES as LANES


class Row(NamedTuple):
    """A kernel and how often it passes over its first array, the largest.

    It takes that array, others, and numbers; then the range of the first dimension to work on.
    """

    kernel: Kernel
    passes: int


TABLE: dict[str, Row] = {
    # elements (L,) of arrays in the same memory order
    "relu": Row(loops.relu, 2),
    "relu_grad": Row(loops.relu_grad, 3),
    # planes (C, H, W, N)
    "max_pool": Row(loops.max_pool, 2),
    "max_pool_2x2": Row(loops.max_pool_2x2, 2),
    "max_pool_argmax": Row(loops.max_pool_argmax, 3),
    "max_pool_grad": Row(loops.max_pool_grad, 3),
    # rows (C, N·L) and vectors (C,)
    "channel_moments": Row(loops.moments, 2),
    "channel_sum": Row(loops.row_sums, 1),
    "scale_shift": Row(loops.scale_shift, 2),
    "batch_norm_grad": Row(loops.batch_norm_grad, 4),
}
