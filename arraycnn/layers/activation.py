"""Activation layers: a function of every element, or of every row of classes, and its gradient."""

from collections.abc import Callable
from typing import Any, ClassVar

from arraycnn import functional as F
from arraycnn.arguments import as_any_real, check_choice, check_grad
from arraycnn.arrays import Array, Shape
from arraycnn.functional.activation import GELU_APPROXIMATIONS
from arraycnn.layers.layer import Backward, LayerWithoutParameters
from arraycnn.registry import preferred


class Activation(LayerWithoutParameters):
    """A layer that keeps the shape: ``function(x, *options)`` and ``gradient(x, Δ, *options)``."""

    function: ClassVar[Callable[..., Array]]
    gradient: ClassVar[Callable[..., Array]]

    def _options(self) -> tuple[Any, ...]:
        return ()

    def forward(self, x: Array) -> tuple[Array, Backward]:
        backend, x = self.check_input(x)
        gradient, options = type(self).gradient, self._options()
        with preferred(backend):
            y = type(self).function(x, *options)
        shape, dtype = y.shape, y.dtype

        def backward(grad_y: Array) -> Array:
            delta = check_grad(backend, grad_y, shape, dtype)
            with preferred(backend):
                return gradient(x, delta, *options)

        return y, backward

    def output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)


class ReLU(Activation):
    """max(x, 0)."""

    def forward(self, x: Array) -> tuple[Array, Backward]:
        backend, x = self.check_input(x)
        y = backend.relu(x)
        shape, dtype = y.shape, y.dtype
        return y, lambda grad_y: backend.relu_grad(y, check_grad(backend, grad_y, shape, dtype))


class LeakyReLU(Activation):
    """x where x > 0, else negative_slope·x."""

    function, gradient = F.leaky_relu, F.leaky_relu_grad

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = as_any_real("negative_slope", negative_slope)

    def _options(self) -> tuple[Any, ...]:
        return (self.negative_slope,)


class ELU(Activation):
    """x where x > 0, else α·(eˣ − 1)."""

    function, gradient = F.elu, F.elu_grad

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = as_any_real("alpha", alpha)

    def _options(self) -> tuple[Any, ...]:
        return (self.alpha,)


class SELU(Activation):
    """The self-normalising scaled ELU."""

    function, gradient = F.selu, F.selu_grad


class GELU(Activation):
    """x·Φ(x); ``approximate="tanh"`` for the faster approximation."""

    function, gradient = F.gelu, F.gelu_grad

    def __init__(self, approximate: str = "none") -> None:
        check_choice("approximate", approximate, GELU_APPROXIMATIONS)
        self.approximate = approximate

    def _options(self) -> tuple[Any, ...]:
        return (self.approximate,)


class Sigmoid(Activation):
    """1 / (1 + e⁻ˣ)."""

    function, gradient = F.sigmoid, F.sigmoid_grad


class Tanh(Activation):
    """The hyperbolic tangent."""

    function, gradient = F.tanh, F.tanh_grad


class Softplus(Activation):
    """log(1 + eˣ)."""

    function, gradient = F.softplus, F.softplus_grad


class Softmax(Activation):
    """Probabilities along axis 1. To train, prefer `functional.softmax_cross_entropy` on logits."""

    function, gradient = F.softmax, F.softmax_grad
