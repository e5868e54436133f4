"""Gradients checked against finite differences."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from arraycnn.backends import backend_of
from arraycnn.layers.base import Layer
from arraycnn.types import Array


class GradientError(AssertionError):
    """A gradient differs from the finite difference; the message says where and by how much."""


def gradcheck(
    function: Layer | Callable[..., Any],
    *inputs: Array,
    step: float = 1e-6,
    tolerance: float = 1e-5,
    seed: int = 0,
) -> None:
    """Check the gradients of a layer, or of a function that returns (y, backward).

    The directional derivative of ⟨y, r⟩ for a random r is compared with central differences in
    every input element and, for a layer, every parameter element.

    Args:
        function: a layer, or ``f(*inputs) → (y, backward)`` with ``backward(grad_y)`` returning the
            gradient of each input (one array, or a tuple).
        inputs: float64 arrays; a layer takes one, and its parameters must be float64 too.
        step, tolerance: of the difference, and on |difference| / max(1, |gradient|).
        seed: of r.

    Raises:
        GradientError: a gradient is wrong. TypeError: an array that is not float64.
    """
    parameters = list(function.named_parameters()) if isinstance(function, Layer) else []
    arrays = {f"input {i}": x for i, x in enumerate(inputs)}
    arrays |= {name: parameter.data for name, parameter in parameters}
    for name, array in arrays.items():
        if getattr(array, "dtype", None) != np.float64:
            raise TypeError(
                f"gradcheck needs float64 for accurate differences, but {name} is "
                f"{getattr(array, 'dtype', type(array).__name__)}; convert it with "
                "astype('float64'), a layer with .to(dtype='float64')"
            )
    backend = backend_of(*arrays.values())
    inputs = tuple(x.copy() for x in inputs)
    arrays |= {f"input {i}": x for i, x in enumerate(inputs)}
    run = function.forward if isinstance(function, Layer) else function
    random_state = function.random_state() if isinstance(function, Layer) else {}

    def forward() -> Any:
        if isinstance(function, Layer):
            function.load_random_state(random_state)  # the same dropout mask every time
        return run(*inputs)

    kept = [parameter.grad for _, parameter in parameters]
    for _, parameter in parameters:
        parameter.grad = None
    y, backward = forward()
    direction = backend.asarray(np.random.default_rng(seed).standard_normal(y.shape))
    gradients = backward(direction)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    exact = dict(zip((f"input {i}" for i in range(len(inputs))), gradients, strict=True))
    for (name, parameter), grad in zip(parameters, kept, strict=True):
        exact[name], parameter.grad = parameter.grad, grad
    for name, array in arrays.items():
        grad = exact[name]
        for index in np.ndindex(array.shape):
            value = float(array[index])
            array[index] = value + step
            above = float((forward()[0] * direction).sum())
            array[index] = value - step
            below = float((forward()[0] * direction).sum())
            array[index] = value
            found, expected = float(grad[index]), (above - below) / (2 * step)
            if not math.isclose(found, expected, rel_tol=tolerance, abs_tol=tolerance):
                raise GradientError(
                    f"the gradient of {name} at {index} is {found:.9g}, but finite differences "
                    f"give {expected:.9g}"
                )
