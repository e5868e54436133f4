"""Activation layers. Where the derivative is simple in y, y is what backward keeps."""

from arraycnn import functional as F
from arraycnn.arguments import as_any_real, check_choice
from arraycnn.arrays import Array, Shape
from arraycnn.functional.activation import GELU_APPROXIMATIONS, keeps_memory_order
from arraycnn.layers.layer import Backward, Layer, receive_grad


class Activation(Layer):
    """An element-wise layer."""

    def output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)


class ReLU(Activation):
    """max(x, 0)."""

    def forward(self, x: Array) -> tuple[Array, Backward]:
        backend, x = self.receive(x)
        y = backend.relu(x)
        return y, lambda grad_y: backend.relu_grad(y, receive_grad(backend, grad_y, y))


class LeakyReLU(Activation):
    """x where x > 0, else negative_slope·x."""

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = as_any_real("negative_slope", negative_slope)

    def forward(self, x: Array) -> tuple[Array, Backward]:
        backend, x = self.receive(x)
        slope = self.negative_slope
        y = F.leaky_relu(x, slope)
        return y, lambda grad_y: F.leaky_relu_grad(x, receive_grad(backend, grad_y, y), slope)


class ELU(Activation):
    """x where x > 0, else α·(eˣ − 1)."""

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = as_any_real("alpha", alpha)

    def forward(self, x: Array) -> tuple[Array, Backward]:
        backend, x = self.receive(x)
        alpha = self.alpha
        y = F.elu(x, alpha)
        return y, lambda grad_y: F.elu_grad(x, receive_grad(backend, grad_y, y), alpha)


class SELU(Activation):
    """The self-normalising scaled ELU."""

    def forward(self, x: Array) -> tuple[Array, Backward]:
        backend, x = self.receive(x)
        y = F.selu(x)
        return y, lambda grad_y: F.selu_grad(x, receive_grad(backend, grad_y, y))


class GELU(Activation):
    """x·Φ(x); ``approximate="tanh"`` for the faster approximation."""

    def __init__(self, approximate: str = "none") -> None:
        check_choice("approximate", approximate, GELU_APPROXIMATIONS)
        self.approximate = approximate

    def forward(self, x: Array) -> tuple[Array, Backward]:
        backend, x = self.receive(x)
        kind = self.approximate
        y = F.gelu(x, kind)
        return y, lambda grad_y: F.gelu_grad(x, receive_grad(backend, grad_y, y), kind)


@keeps_memory_order
def _sigmoid_slope(y: Array, delta: Array) -> Array:
    return delta * y * (1 - y)


@keeps_memory_order
def tanh_slope(y: Array, delta: Array) -> Array:
    """The derivative of tanh where its value is y, times delta."""
    return delta * (1 - y * y)


class Sigmoid(Activation):
    """1 / (1 + e⁻ˣ)."""

    def forward(self, x: Array) -> tuple[Array, Backward]:
        backend, x = self.receive(x)
        y = F.sigmoid(x)
        return y, lambda grad_y: _sigmoid_slope(y, receive_grad(backend, grad_y, y))


class Tanh(Activation):
    """The hyperbolic tangent."""

    def forward(self, x: Array) -> tuple[Array, Backward]:
        backend, x = self.receive(x)
        y = F.tanh(x)
        return y, lambda grad_y: tanh_slope(y, receive_grad(backend, grad_y, y))


class Softplus(Activation):
    """log(1 + eˣ)."""

    def forward(self, x: Array) -> tuple[Array, Backward]:
        backend, x = self.receive(x)
        y = F.softplus(x)
        return y, lambda grad_y: F.softplus_grad(x, receive_grad(backend, grad_y, y))


class Softmax(Activation):
    """Probabilities along axis 1. To train, prefer `functional.softmax_cross_entropy` on logits."""

    def forward(self, x: Array) -> tuple[Array, Backward]:
        backend, x = self.receive(x)
        y = F.softmax(x)

        def backward(grad_y: Array) -> Array:
            delta = receive_grad(backend, grad_y, y)
            xp = backend.xp
            grad = xp.subtract(
                delta, (delta * y).sum(axis=1, keepdims=True), out=xp.empty_like(delta)
            )
            grad *= y
            return grad

        return y, backward
