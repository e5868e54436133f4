"""One n-dimensional function, published for 1, 2 and 3 spatial dimensions."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def per_dimension(
    function: Callable[Concatenate[int, P], R],
) -> tuple[Callable[P, R], Callable[P, R], Callable[P, R]]:
    """``f_nd(ndim, ...)`` as ``f1d(...)``, ``f2d(...)`` and ``f3d(...)`` with its documentation."""

    def bind(ndim: int) -> Callable[P, R]:
        @functools.wraps(function)
        def bound(*args: P.args, **kwargs: P.kwargs) -> R:
            return function(ndim, *args, **kwargs)

        public: Any = bound
        public.__name__ = public.__qualname__ = function.__name__.replace("_nd", f"{ndim}d")
        public.__doc__ = (function.__doc__ or "").replace("{n}", str(ndim))
        signature = inspect.signature(function)
        public.__signature__ = signature.replace(parameters=[*signature.parameters.values()][1:])
        del public.__wrapped__
        return bound

    return bind(1), bind(2), bind(3)
