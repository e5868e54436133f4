"""Batch normalisation and dropout: the two layers whose inference differs from training."""

from typing import Any

import numpy as np

from arraycnn.arguments import as_count, as_probability, as_real
from arraycnn.arrays import Array, Shape
from arraycnn.backends import Backend, BackendLike, get_backend
from arraycnn.functional.normalization import check_batch, update_running
from arraycnn.layers.layer import (
    Backward,
    RandomLayer,
    RectifiedLayer,
    as_float_dtype,
    kept,
    receive_grad,
    skips_input_grad,
)
from arraycnn.parameters import Buffer, Parameter
from arraycnn.rng import as_seed


class BatchNorm(RectifiedLayer):
    """Normalises each channel of (N, C, ...) over batch and positions, any number of dimensions.

    `forward` uses the batch's statistics and moves the running ones towards them; inference uses
    the running ones. See `functional.batch_norm`.

    Args:
        num_features: C. eps: added to the variance. momentum: share of the new batch.
        backend, dtype: where the parameters live, and their float type.
    """

    backend: Backend

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
        backend: BackendLike = "cpu",
        dtype: Any = "float32",
    ) -> None:
        self.num_features = as_count("num_features", num_features)
        self.eps = as_real("eps", eps)
        self.momentum = as_probability("momentum", momentum)
        self.backend = get_backend(backend)
        xp, dtype = self.backend.xp, as_float_dtype(dtype)
        self.weight = Parameter(xp.empty(self.num_features, dtype))
        self.bias = Parameter(xp.empty(self.num_features, dtype))
        self.running_mean = Buffer(xp.empty(self.num_features, dtype))
        self.running_var = Buffer(xp.empty(self.num_features, dtype))
        self.num_batches_tracked = Buffer(xp.empty((), np.int64))
        self.initialize(0)

    def initialize(self, seed: int) -> None:
        for one in (self.weight, self.running_var):
            one.data[...] = 1
        for zero in (self.bias, self.running_mean, self.num_batches_tracked):
            zero.data[...] = 0

    @skips_input_grad
    def forward(self, x: Array, *, relu: bool = False) -> tuple[Array, Backward]:
        backend, x = self.receive(x)
        self.output_shape(x.shape)
        check_batch(x)
        x = backend.batch_last(x)
        weight, bias = self.weight, self.bias
        mean, var = backend.channel_moments(x)
        inverse_std = 1 / backend.xp.sqrt(var + self.eps)
        scale = weight.data * inverse_std
        y = backend.scale_shift(x, scale, bias.data - mean * scale, relu)
        count = x.size // self.num_features
        update_running(
            self.running_mean.data, self.running_var.data, mean, var, count, self.momentum
        )
        self.num_batches_tracked.data += 1
        output = kept(y, relu)

        def backward(grad_y: Array, *, input_grad: bool = True) -> Array | None:
            delta = backend.batch_last(receive_grad(backend, grad_y, output))
            grad_x, grad_weight, grad_bias = backend.batch_norm_grad(
                x, mean, inverse_std, weight.data, delta, output if relu else None
            )
            weight.add_grad(grad_weight, copy=False)
            bias.add_grad(grad_bias, copy=False)
            return grad_x if input_grad else None

        return y, backward

    def __call__(self, x: Array, *, relu: bool = False) -> Array:
        backend, x = self.receive(x)
        self.output_shape(x.shape)
        return backend.scale_shift(backend.batch_last(x), *self.scale_and_shift(), relu)

    def scale_and_shift(self) -> tuple[Array, Array]:
        """What inference does to each channel, scale·x + shift: two arrays (C,)."""
        scale = self.weight.data / self.backend.xp.sqrt(self.running_var.data + self.eps)
        return scale, self.bias.data - self.running_mean.data * scale

    def output_shape(self, input_shape: Shape) -> Shape:
        if len(input_shape) < 2 or input_shape[1] != self.num_features:
            raise ValueError(
                f"BatchNorm({self.num_features}) expects (N, {self.num_features}, ...), got shape "
                f"{tuple(input_shape)}; num_features is the number of channels"
            )
        return tuple(input_shape)

    def config(self) -> dict[str, Any]:
        return {"num_features": self.num_features, "eps": self.eps, "momentum": self.momentum}


class Dropout(RandomLayer):
    """Zeroes elements with probability ``p`` in training; see `functional.dropout`.

    Args:
        p: probability of an element to be dropped.
        seed: of the masks; None draws a fresh one. Each `forward` uses the next mask.
    """

    def __init__(self, p: float = 0.5, *, seed: int | None = None) -> None:
        self.p = as_probability("p", p)
        self.initialize(as_seed(seed))

    def initialize(self, seed: int) -> None:
        self.seed, self.counter = seed, 0

    def forward(self, x: Array) -> tuple[Array, Backward]:
        backend, x = self.receive(x)
        p, seed, counter = self.p, self.seed, self.counter
        self.counter += 1
        y = backend.dropout(x, p, seed, counter)
        output = kept(y)

        def backward(grad_y: Array) -> Array:
            return backend.dropout(receive_grad(backend, grad_y, output), p, seed, counter)

        return y, backward

    def __call__(self, x: Array) -> Array:
        return self.receive(x)[1]

    def output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)
