"""Activation functions and their gradients, element by element except softmax.

Each ``f`` stands beside ``f_grad(x, grad_output)``, its derivative at x times ``grad_output``.
All take float arrays of any shape and keep shape, dtype and memory order.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

from arraycnn.arguments import as_any_real, as_count, check_arrays, check_choice, check_shape
from arraycnn.arrays import Array
from arraycnn.backends.memory_format import batch_view, buffer_of

# Klambauer et al., "Self-normalizing neural networks", 2017: a fixed point at mean 0, variance 1.
SELU_ALPHA = 1.6732632423543772
SELU_SCALE = 1.0507009873554805
GELU_TAIL = 20.0  # beyond ±20, Φ is 0 or 1 in double precision
GELU_APPROXIMATIONS = ("none", "tanh")

T = TypeVar("T", bound=Callable[..., Any])


def keeps_memory_order(function: T) -> T:
    """Compute on the buffers of batch-last arrays: CuPy's functions return C order, whatever they
    are given, and the next layer would have to copy; NumPy's keep the order anyway."""

    @functools.wraps(function)
    def ordered(x: Array, *args: Any, **options: Any) -> Array:
        arrays = (x, *(arg for arg in args if hasattr(arg, "strides")))
        if not all(getattr(a, "shape", ()) == getattr(x, "shape", None) for a in arrays):
            return function(x, *args, **options)  # which explains what is wrong
        if x.ndim < 2 or not all(map(_is_batch_last, arrays)):
            return function(x, *args, **options)
        buffers = (buffer_of(arg) if hasattr(arg, "strides") else arg for arg in args)
        return batch_view(function(buffer_of(x), *buffers, **options))

    return ordered  # type: ignore[return-value]


def _is_batch_last(x: Array) -> bool:
    """Whether memory runs in the order (C, *S, N), gaps or not."""
    buffer = buffer_of(x)
    strides = [step for step, size in zip(buffer.strides, buffer.shape, strict=True) if size > 1]
    return strides == sorted(strides, reverse=True)


def relu(x: Array) -> Array:
    """max(x, 0)."""
    return check_arrays(x=x).relu(x)


def relu_grad(x: Array, grad_output: Array) -> Array:
    """1 where x > 0, else 0."""
    return _enter(x, grad_output).relu_grad(x, grad_output)


@keeps_memory_order
def leaky_relu(x: Array, negative_slope: float = 0.01) -> Array:
    """x where x > 0, else negative_slope·x."""
    xp = check_arrays(x=x).xp
    return xp.where(x > 0, x, x * as_any_real("negative_slope", negative_slope))


@keeps_memory_order
def leaky_relu_grad(x: Array, grad_output: Array, negative_slope: float = 0.01) -> Array:
    """1 where x > 0, else negative_slope."""
    xp = _enter(x, grad_output).xp
    slope = as_any_real("negative_slope", negative_slope)
    return xp.where(x > 0, grad_output, grad_output * slope)


@keeps_memory_order
def elu(x: Array, alpha: float = 1.0) -> Array:
    """x where x > 0, else α·(eˣ − 1) (Clevert et al., 2016)."""
    xp = check_arrays(x=x).xp
    return xp.where(x > 0, x, as_any_real("alpha", alpha) * xp.expm1(xp.minimum(x, 0)))


@keeps_memory_order
def elu_grad(x: Array, grad_output: Array, alpha: float = 1.0) -> Array:
    """1 where x > 0, else α·eˣ."""
    xp = _enter(x, grad_output).xp
    alpha = as_any_real("alpha", alpha)
    return xp.where(x > 0, grad_output, grad_output * alpha * xp.exp(xp.minimum(x, 0)))


@keeps_memory_order
def selu(x: Array) -> Array:
    """λ·elu(x, α) with the self-normalising constants."""
    return SELU_SCALE * elu(x, SELU_ALPHA)


@keeps_memory_order
def selu_grad(x: Array, grad_output: Array) -> Array:
    """λ times the derivative of elu."""
    return SELU_SCALE * elu_grad(x, grad_output, SELU_ALPHA)


@keeps_memory_order
def gelu(x: Array, approximate: str = "none") -> Array:
    """x·Φ(x), Φ the normal distribution (Hendrycks & Gimpel, 2016).

    ``approximate="tanh"`` replaces Φ by ½(1 + tanh(√(2/π)(x + 0.044715 x³))).
    """
    backend = check_arrays(x=x)
    check_choice("approximate", approximate, GELU_APPROXIMATIONS)
    if approximate == "tanh":
        xp = backend.xp
        return 0.5 * x * (1 + xp.tanh(_gelu_argument(xp.clip(x, -GELU_TAIL, GELU_TAIL))))
    return 0.5 * x * (1 + backend.erf(x * math.sqrt(0.5)))


@keeps_memory_order
def gelu_grad(x: Array, grad_output: Array, approximate: str = "none") -> Array:
    """Φ(x) + x·Φ′(x)."""
    backend = _enter(x, grad_output)
    xp = backend.xp
    check_choice("approximate", approximate, GELU_APPROXIMATIONS)
    x = xp.clip(x, -GELU_TAIL, GELU_TAIL)
    if approximate == "tanh":
        t = xp.tanh(_gelu_argument(x))
        inner = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)
        return grad_output * 0.5 * (1 + t + x * (1 - t * t) * inner)
    density = xp.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
    return grad_output * (0.5 * (1 + backend.erf(x * math.sqrt(0.5))) + x * density)


def _gelu_argument(x: Array) -> Array:
    return math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)


@keeps_memory_order
def sigmoid(x: Array) -> Array:
    """1 / (1 + e⁻ˣ), as eˣ / (1 + eˣ) where x < 0 so that nothing overflows or cancels."""
    xp = check_arrays(x=x).xp
    e = xp.exp(-xp.abs(x))
    return xp.where(x < 0, e, x.dtype.type(1)) / (1 + e)


@keeps_memory_order
def sigmoid_grad(x: Array, grad_output: Array) -> Array:
    """σ(x)·σ(−x)."""
    _enter(x, grad_output)
    return grad_output * sigmoid(x) * sigmoid(-x)


@keeps_memory_order
def tanh(x: Array) -> Array:
    """The hyperbolic tangent."""
    return check_arrays(x=x).xp.tanh(x)


@keeps_memory_order
def tanh_grad(x: Array, grad_output: Array) -> Array:
    """1 − tanh²(x)."""
    y = _enter(x, grad_output).xp.tanh(x)
    return grad_output * (1 - y * y)


@keeps_memory_order
def softplus(x: Array) -> Array:
    """log(1 + eˣ) = max(x, 0) + log(1 + e⁻ˡˣˡ), which does not overflow."""
    xp = check_arrays(x=x).xp
    return xp.maximum(x, 0) + xp.log1p(xp.exp(-xp.abs(x)))


@keeps_memory_order
def softplus_grad(x: Array, grad_output: Array) -> Array:
    """σ(x)."""
    _enter(x, grad_output)
    return grad_output * sigmoid(x)


def softmax(x: Array, axis: int = 1) -> Array:
    """eˣ / Σ eˣ along ``axis``, the classes; shifted by the maximum so that nothing overflows."""
    xp = check_arrays(x=x).xp
    axis = _axis(x, axis)
    if not x.size:
        return x.copy()
    y = xp.subtract(x, x.max(axis=axis, keepdims=True), out=xp.empty_like(x))
    xp.exp(y, out=y)
    y /= y.sum(axis=axis, keepdims=True)
    return y


def softmax_grad(x: Array, grad_output: Array, axis: int = 1) -> Array:
    """y·(Δ − Σ Δ·y) with y = softmax(x)."""
    _enter(x, grad_output)
    y = softmax(x, axis)
    y *= grad_output - (grad_output * y).sum(axis=axis, keepdims=True)
    return y


def log_softmax(x: Array, axis: int = 1) -> Array:
    """x − log Σ eˣ along ``axis``, the classes; accurate where softmax rounds to 0 or 1."""
    xp = check_arrays(x=x).xp
    axis = _axis(x, axis)
    if not x.size:
        return x.copy()
    y = xp.subtract(x, x.max(axis=axis, keepdims=True), out=xp.empty_like(x))
    y -= xp.log(xp.exp(y).sum(axis=axis, keepdims=True))
    return y


def log_softmax_grad(x: Array, grad_output: Array, axis: int = 1) -> Array:
    """Δ − softmax(x)·Σ Δ."""
    _enter(x, grad_output)
    y = softmax(x, axis)
    y *= -grad_output.sum(axis=axis, keepdims=True)
    y += grad_output
    return y


def _enter(x: Array, grad_output: Array) -> Any:
    backend = check_arrays(x=x, grad_output=grad_output)
    check_shape("grad_output", grad_output.shape, x.shape, "like x")
    return backend


def _axis(x: Array, axis: int) -> int:
    axis = as_count("axis", axis, minimum=None)
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(
            f"axis must be between {-x.ndim} and {x.ndim - 1} for x of shape {tuple(x.shape)}, got "
            f"{axis}"
        )
    return axis
