"""Type aliases shared by the whole package."""

from typing import Any, TypeAlias

# NumPy and CuPy share an interface but no base class, so an array is checked at run time.
Array: TypeAlias = Any
Shape: TypeAlias = tuple[int, ...]
