"""Types of hyper-parameters, each with what checks a value of it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, TypeAlias, get_type_hints

from arraycnn.arguments import as_bool, as_real


@dataclass(frozen=True)
class Real:
    """A finite number of at least 0, or above 0 where it must be ``positive``."""

    below: float = math.inf
    positive: bool = False

    def __call__(self, name: str, value: Any) -> float:
        return as_real(name, value, below=self.below, positive=self.positive)


def as_pair(name: str, value: Any) -> tuple[float, ...]:
    """Two numbers in [0, 1)."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise ValueError(f"{name} must be a pair of numbers such as (0.9, 0.999), got {value!r}")
    return tuple(as_real(f"{name}[{i}]", share, below=1.0) for i, share in enumerate(value))


NonNegative: TypeAlias = Annotated[float, Real()]
Positive: TypeAlias = Annotated[float, Real(positive=True)]
Share: TypeAlias = Annotated[float, Real(below=1.0)]
Shares: TypeAlias = Annotated[Sequence[float], as_pair]
Flag: TypeAlias = Annotated[bool, as_bool]


@cache
def checks_of(rule: type) -> dict[str, Callable[[str, Any], Any]]:
    """The hyper-parameters of a rule in order, each with its check: (name, value) → value.

    One of a type that is not above is taken as it is.
    """
    hints = get_type_hints(rule, include_extras=True)
    checks = {name: getattr(hint, "__metadata__", (_as_it_is,))[0] for name, hint in hints.items()}
    return {field.name: checks[field.name] for field in fields(rule)}


def _as_it_is(name: str, value: Any) -> Any:
    return value
