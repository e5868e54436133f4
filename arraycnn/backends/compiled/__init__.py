"""The CPU backend with loops that Numba compiles, for float32; everything else as without it.

The gain is in passes over memory and in convolution, whose sums stay in vector registers (`llvm`).
"""

import os
from importlib.util import find_spec

from arraycnn.backends.compiled.convolution import CompiledConvolution
from arraycnn.backends.compiled.dense import CompiledDense
from arraycnn.backends.compiled.elementwise import CompiledElementwise
from arraycnn.backends.compiled.normalization import CompiledNormalization
from arraycnn.backends.compiled.pooling import CompiledPooling
from arraycnn.backends.cpu import CpuBackend

VARIABLE = "ARRAYCNN_FAST"


def numba_is_wanted() -> bool:
    """Whether Numba is installed and ``$ARRAYCNN_FAST`` does not say 0."""
    wish = os.environ.get(VARIABLE, "1")
    if wish not in ("0", "1"):
        raise ValueError(f"{VARIABLE} must be 0 or 1, got {wish!r}")
    return wish == "1" and find_spec("numba") is not None


class CompiledBackend(
    CompiledConvolution,
    CompiledPooling,
    CompiledNormalization,
    CompiledDense,
    CompiledElementwise,
    CpuBackend,
):
    """`CpuBackend`, with Numba where the arrays are float32."""
