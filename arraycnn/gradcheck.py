"""Gradients checked against finite differences."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from arraycnn.arguments import as_real
from arraycnn.arrays import Array
from arraycnn.backends import backend_of
from arraycnn.layers.layer import Layer


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

    The directional derivative of ⟨y, r⟩ for a random r, summed over the outputs, is compared with
    central differences in every input element and, for a layer, every parameter element. The
    layer's state, gradients and random state are afterwards what they were.

    Args:
        function: a layer, or ``f(*inputs) → (y, backward)`` with ``backward(grad_y)`` returning the
            gradient of each input (one array, or a tuple).
        inputs: float64 arrays, and the parameters of a layer must be float64 too.
        step, tolerance: of the difference, and on |difference| / max(1, |gradient|).
        seed: of r.

    Raises:
        GradientError: a gradient is wrong, missing or misshapen. TypeError: no inputs, or an array
            that is not float64. ValueError: a step or tolerance that is not positive.
    """
    step = as_real("step", step, positive=True)
    tolerance = as_real("tolerance", tolerance, positive=True)
    if not inputs:
        raise TypeError("gradcheck needs at least one input, as gradcheck(function, x)")
    layer = function if isinstance(function, Layer) else None
    parameters = dict(layer.named_parameters()) if layer is not None else {}
    arrays = {f"input {i}": x for i, x in enumerate(inputs)}
    arrays |= {name: parameter.data for name, parameter in parameters.items()}
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
    state = (
        {name: array.copy() for name, array in layer.state_dict().items()}
        if layer is not None
        else {}
    )
    random_state = layer.random_state() if layer is not None else {}
    grads = [parameter.grad for parameter in parameters.values()]

    def forward() -> Any:
        if layer is None:
            return function(*inputs)
        layer.load_random_state(random_state)  # the same dropout mask every time
        return layer.forward(*inputs)

    try:
        for parameter in parameters.values():
            parameter.grad = None
        y, backward = forward()
        rng = np.random.default_rng(seed)
        several = isinstance(y, tuple)
        directions = [
            backend.asarray(rng.standard_normal(one.shape)) for one in (y if several else (y,))
        ]

        def product(y: Any) -> float:
            ys = y if several else (y,)
            return sum(float((one * r).sum()) for one, r in zip(ys, directions, strict=True))

        gradients = backward(tuple(directions)) if several else backward(directions[0])
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        if len(gradients) != len(inputs):
            raise GradientError(
                f"backward returned {len(gradients)} gradients for {len(inputs)} inputs"
            )
        exact = {f"input {i}": gradient for i, gradient in enumerate(gradients)}
        exact |= {name: parameter.grad for name, parameter in parameters.items()}
        for name, array in arrays.items():
            _check_shape(name, exact[name], array)
            for index in np.ndindex(array.shape):
                value = float(array[index])
                array[index] = value + step
                above = product(forward()[0])
                array[index] = value - step
                below = product(forward()[0])
                array[index] = value
                found, expected = float(exact[name][index]), (above - below) / (2 * step)
                if not math.isclose(found, expected, rel_tol=tolerance, abs_tol=tolerance):
                    raise GradientError(
                        f"the gradient of {name} at {index} is {found:.9g}, but finite differences "
                        f"give {expected:.9g}"
                    )
    finally:
        if layer is not None:
            layer.load_state_dict(state)
            layer.load_random_state(random_state)
        for parameter, grad in zip(parameters.values(), grads, strict=True):
            parameter.grad = grad


def _check_shape(name: str, gradient: Array | None, array: Array) -> None:
    if gradient is None:
        raise GradientError(f"{name} got no gradient from backward")
    if gradient.shape != array.shape:
        raise GradientError(
            f"the gradient of {name} has shape {tuple(gradient.shape)} instead of "
            f"{tuple(array.shape)}"
        )
