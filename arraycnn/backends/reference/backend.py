"""The reference on NumPy, nothing overridden: what every backend is compared with."""

from typing import Any

import numpy as np

from arraycnn.arrays import Array
from arraycnn.backends.backend import Backend


class ReferenceBackend(Backend):
    """NumPy arrays and the plain text of `reference`; not registered."""

    def __init__(self) -> None:
        super().__init__("reference", np, workspace_limit=64 << 20)

    def owns(self, x: Any) -> bool:
        return isinstance(x, np.ndarray)

    def asarray(self, x: Any, dtype: Any = None) -> Array:
        return np.asarray(x, dtype)

    def to_numpy(self, x: Array) -> Array:
        return np.asarray(x)

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def describe(self) -> str:
        return f"reference: NumPy {np.__version__} in plain steps"
