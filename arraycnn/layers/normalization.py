"""Batch normalisation and dropout: the two layers whose inference differs from training."""

from functools import partial
from typing import Any

import numpy as np

from arraycnn.arguments import (
    as_bool,
    as_count,
    as_float_dtype,
    as_probability,
    as_real,
    check_grad,
)
from arraycnn.arrays import Array, Shape
from arraycnn.backends import Backend, BackendLike, get_backend
from arraycnn.functional.normalization import check_batch, update_running
from arraycnn.layers.layer import Backward, LayerWithRelu, RandomLayer
from arraycnn.layers.state import change, next_count
from arraycnn.parameters import Buffer, Parameter
from arraycnn.rng import as_seed


class BatchNorm(LayerWithRelu):
    """Normalises each channel of (N, C, ...) over batch and positions, any number of dimensions.

    `forward` uses the batch's statistics and moves the running ones towards them; inference uses
    the running ones. See `functional.batch_norm`.

    Args:
        num_features: C. eps: added to the variance. momentum: share of the new batch.
        frozen: whether `forward` uses the running statistics too, and leaves them as they are: for
            a part of a network that is not trained. May be assigned; see also `Layer.freeze`.
        backend, dtype: where the parameters live, and their float type.
    """

    backend: Backend
    differs_in_inference = True

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
        frozen: bool = False,
        backend: BackendLike = "cpu",
        dtype: Any = "float32",
    ) -> None:
        self.num_features = as_count("num_features", num_features)
        self.eps = as_real("eps", eps)
        self.momentum = as_probability("momentum", momentum)
        self.frozen = as_bool("frozen", frozen)
        self.backend = get_backend(backend)
        xp, dtype = self.backend.xp, as_float_dtype(dtype)
        empty = partial(xp.empty, self.num_features, dtype)
        self.weight = Parameter(empty(), self.backend)
        self.bias = Parameter(empty(), self.backend)
        self.running_mean = Buffer(empty(), self.backend)
        self.running_var = Buffer(empty(), self.backend)
        self.num_batches_tracked = Buffer(xp.empty((), np.int64), self.backend)
        self.initialize(0)

    @property
    def dtype(self) -> Any:
        return self.weight.data.dtype

    def initialize(self, seed: int) -> None:
        for one in (self.weight, self.running_var):
            one.data[...] = 1
        for zero in (self.bias, self.running_mean, self.num_batches_tracked):
            zero.data[...] = 0

    def _forward(self, x: Array, *, relu: bool) -> tuple[Array, Backward]:
        if self.frozen:
            return self._forward_frozen(x, relu=relu)
        backend, x = self.check_input(x)
        self.output_shape(x.shape)
        check_batch(x)
        x = backend.batch_last(x)
        weight, bias = self.weight, self.bias
        mean, var = backend.channel_moments(x)
        inverse_std = 1 / backend.xp.sqrt(var + self.eps)
        scale = weight.data * inverse_std
        y = backend.scale_shift(x, scale, bias.data - mean * scale, relu)
        change(partial(self._track, mean, var, x.size // self.num_features))
        shape, dtype, output = y.shape, y.dtype, y if relu else None

        def backward(grad_y: Array, *, input_grad: bool = True) -> Array | None:
            delta = backend.batch_last(check_grad(backend, grad_y, shape, dtype))
            grad_x, grad_weight, grad_bias = backend.batch_norm_grad(
                x, mean, inverse_std, weight.data, delta, output
            )
            if weight.requires_grad:
                weight.add_grad(grad_weight, copy=False)
            if bias.requires_grad:
                bias.add_grad(grad_bias, copy=False)
            return grad_x if input_grad else None

        return y, backward

    def _forward_frozen(self, x: Array, *, relu: bool) -> tuple[Array, Backward]:
        """y = scale·x + shift with the running statistics, which no gradient passes through."""
        backend, x = self.check_input(x)
        self.output_shape(x.shape)
        x = backend.batch_last(x)
        weight, bias, mean = self.weight, self.bias, self.running_mean.data
        scale, shift = self.scale_and_shift()
        inverse_std = 1 / backend.xp.sqrt(self.running_var.data + self.eps)
        y = backend.scale_shift(x, scale, shift, relu)
        shape, dtype, output = y.shape, y.dtype, y if relu else None
        trained = weight.requires_grad or bias.requires_grad
        kept = x if trained else None

        def backward(grad_y: Array, *, input_grad: bool = True) -> Array | None:
            delta = backend.batch_last(check_grad(backend, grad_y, shape, dtype))
            if output is not None:
                delta = backend.batch_last(backend.relu_grad(output, delta))
            if kept is not None:
                normalised = backend.scale_shift(kept, inverse_std, -mean * inverse_std)
                weight.add_grad(backend.channel_sum(delta * normalised), copy=False)
                bias.add_grad(backend.channel_sum(delta), copy=False)
            return backend.scale_shift(delta, scale, 0 * shift) if input_grad else None

        return y, backward

    def _infer(self, x: Array, *, relu: bool) -> Array:
        backend, x = self.check_input(x)
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

    def _track(self, mean: Array, var: Array, count: int) -> None:
        """Move the running statistics towards those of a batch with ``count`` values a channel."""
        running_mean, running_var = self.running_mean.data, self.running_var.data
        update_running(running_mean, running_var, mean, var, count, self.momentum)
        self.num_batches_tracked.data += 1


class Dropout(RandomLayer):
    """Zeroes elements with probability ``p`` in training; see `functional.dropout`.

    Args:
        p: probability of an element to be dropped.
        seed: of the masks; None draws a fresh one. Each `forward` uses the next mask.

    Attributes:
        frozen: whether `forward` drops nothing, as in inference; see `Layer.freeze`.
    """

    differs_in_inference = True
    frozen = False

    def __init__(self, p: float = 0.5, *, seed: int | None = None) -> None:
        self.p = as_probability("p", p)
        self.initialize(as_seed(seed))

    def initialize(self, seed: int) -> None:
        self.seed, self.counter = seed, 0

    def forward(self, x: Array) -> tuple[Array, Backward]:
        backend, x = self.check_input(x)
        shape, dtype = x.shape, x.dtype
        if self.frozen:
            return x, lambda grad_y: check_grad(backend, grad_y, shape, dtype)
        p, seed, counter = self.p, self.seed, next_count(self)
        y = backend.dropout(x, p, seed, counter)

        def backward(grad_y: Array) -> Array:
            return backend.dropout(check_grad(backend, grad_y, shape, dtype), p, seed, counter)

        return y, backward

    def __call__(self, x: Array) -> Array:
        return self.check_input(x)[1]

    def output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)
