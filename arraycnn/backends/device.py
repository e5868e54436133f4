"""The device: owner of arrays, whichever library with NumPy's API they come from."""

from abc import ABC, abstractmethod
from typing import Any, Self

from arraycnn.arguments import as_count
from arraycnn.arrays import Array
from arraycnn.registry import get_backend


class Device(ABC):
    """What every backend must say about its arrays; all else has a default in `reference`.

    Attributes:
        name: ``"cpu"``, ``"cuda:0"``, …
        xp: the array module, NumPy, CuPy or another one with their functions.
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

    def select(self) -> None:  # noqa: B027 (most have nothing to do)
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
