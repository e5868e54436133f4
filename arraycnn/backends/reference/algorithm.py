"""What an algorithm of convolution is: one way to compute it and its two adjoints."""

import math
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Any, NamedTuple

from arraycnn.arrays import Array, Shape
from arraycnn.backends.memory_format import MemoryFormat
from arraycnn.geometry import Window

# The speed of im2col on Zen 4 cores (NumPy with OpenBLAS, float32), to compare algorithms by.
NS_PER_COLUMN_ELEMENT = 0.12  # to copy one element into a column
NS_PER_MULTIPLY_ADD = 0.022  # of kernels and columns


class Problem(NamedTuple):
    """A convolution without its arrays: all that an algorithm is chosen by."""

    window: Window
    batch: int
    inputs: int  # channels of the input, C
    outputs: int  # channels of the output, O
    groups: int
    dtype: Any

    @property
    def weight_shape(self) -> Shape:
        return (self.outputs, self.inputs // self.groups, *self.window.kernel_size)

    @property
    def multiply_adds(self) -> int:
        return self.window.positions * self.batch * math.prod(self.weight_shape)

    @property
    def column_bytes(self) -> int:
        """Bytes of one column: what an output position sees of all channels."""
        return self.inputs * self.window.taps * int(self.dtype.itemsize)


class Algorithm(ABC):
    """One way to compute a convolution and its gradients, for one problem.

    The object knows what follows from the sizes and holds no arrays: backends keep it. A method
    returns None where it leaves the arrays to the next algorithm, e.g. because values so large
    make its result wrong.

    Attributes:
        seconds: roughly, on one core; the algorithm that takes least is tried first.
        workspace_bytes: of the columns, or transforms, that `forward` holds at a time.
        shares: whether `adjoint_grads` saves work.
    """

    seconds: float
    workspace_bytes: int
    shares = False

    def __init__(self, backend: MemoryFormat, problem: Problem) -> None:
        self.backend = backend
        self.problem = problem

    @abstractmethod
    def forward(self, x: Array, weight: Array, bias: Array | None, relu: bool) -> Array | None:
        """h = K v + b; with ``relu``, max(h, 0)."""

    @abstractmethod
    def input_grad(self, grad_output: Array, weight: Array) -> Array | None:
        """δx = col2im(Kᴴ Δ)."""

    @abstractmethod
    def weight_grad(self, x: Array, grad_output: Array) -> Array | None:
        """δK = Δ vᴴ."""

    def adjoint_grads(
        self, grad_output: Array, x: Array, kernels: Array
    ) -> tuple[Array, Array] | None:
        """(δx, δK) of the convolution of x whose input gradient this one computes with the flipped
        ``kernels``; only asked where the algorithm `shares` work between the two."""
        return None


@lru_cache(maxsize=512)
def adjoint_problem(problem: Problem) -> Problem | None:
    """The convolution with flipped kernels that computes the input gradient, if there is one."""
    window = problem.window.adjoint()
    if window is None:
        return None
    return problem._replace(window=window, inputs=problem.outputs, outputs=problem.inputs)


def im2col_seconds(problem: Problem, copied: float = 1.0) -> float:
    """Roughly, to make all columns, this part of which is ``copied``, and to multiply them."""
    elements = problem.window.positions * problem.batch * problem.inputs * problem.window.taps
    nanoseconds = copied * elements * NS_PER_COLUMN_ELEMENT
    return (nanoseconds + problem.multiply_adds * NS_PER_MULTIPLY_ADD) * 1e-9
