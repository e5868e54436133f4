"""The backend: owner of the arrays, and every operation on them in plain NumPy-style code.

This is the readable reference. A subclass names its array module ``xp`` and overrides only what it
can do faster; it never changes what is computed.

Arrays come and go with the shape (N, C, *spatial) and, inside, live in a C-contiguous buffer
(C, *spatial, N): batch last. A convolution is then one matrix product whose result already is the
next layer's input, and flattening is a reshape.
"""

from abc import ABC, abstractmethod
from typing import Any, Self

from arraycnn.arguments import as_count
from arraycnn.arrays import Array
from arraycnn.backends.reference.convolution import ConvolutionPrimitives
from arraycnn.backends.reference.elementwise import PointwisePrimitives
from arraycnn.backends.reference.fourier import FourierPrimitives
from arraycnn.backends.reference.loss import LossPrimitives
from arraycnn.backends.reference.normalization import NormalizationPrimitives
from arraycnn.backends.reference.pooling import PoolingPrimitives
from arraycnn.backends.reference.updates import UpdatePrimitives
from arraycnn.registry import get_backend


class Backend(
    ConvolutionPrimitives,
    FourierPrimitives,
    PoolingPrimitives,
    NormalizationPrimitives,
    PointwisePrimitives,
    LossPrimitives,
    UpdatePrimitives,
    ABC,
):
    """Arrays of one device and the operations on them.

    Attributes:
        name: ``"cpu"``, ``"cuda:0"``, …
        xp: the array module, NumPy or CuPy.
        workspace_limit: bytes that the column matrix of a convolution may take; may be assigned.
    """

    def __init__(self, name: str, xp: Any, workspace_limit: int) -> None:
        self.name = name
        self.xp = xp
        self.workspace_limit = workspace_limit

    @property
    def workspace_limit(self) -> int:
        return self._workspace_limit

    @workspace_limit.setter
    def workspace_limit(self, limit: int) -> None:
        self._workspace_limit = as_count("workspace_limit", limit, maximum=None)

    @abstractmethod
    def owns(self, x: Any) -> bool:
        """Whether ``x`` is an array of this backend's device."""

    @abstractmethod
    def asarray(self, x: Any, dtype: Any = None) -> Array:
        """``x`` (an array or nested sequence) on this backend, not copied where it is there."""

    @abstractmethod
    def to_numpy(self, x: Array) -> Array:
        """``x`` as a NumPy array in host memory."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until all work given to the device is done."""

    @abstractmethod
    def describe(self) -> str:
        """One line on device and libraries, for people."""

    def select(self) -> None:
        """Make the device of this backend the current one, where there is such a thing."""

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copies of a network share the backend."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles of a network refer to the backend by name."""
        return get_backend, (self.name,)

    def __repr__(self) -> str:
        return f"<arraycnn backend {self.name!r}>"
