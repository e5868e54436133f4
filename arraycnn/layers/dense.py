"""The dense layer and what leads to it."""

import math
from typing import Any

from arraycnn.arguments import as_count, as_float_dtype, check_grad
from arraycnn.arrays import Array, Shape
from arraycnn.backends import Backend, BackendLike, get_backend
from arraycnn.functional.dense import check_dense
from arraycnn.initializers import check_init, initial_weight
from arraycnn.layers.layer import Backward, LayerWithoutParameters, LayerWithRelu
from arraycnn.parameters import Parameter
from arraycnn.rng import as_seed


class Dense(LayerWithRelu):
    """h = K v + b for every sample v: (N, in_features) → (N, out_features).

    Args:
        in_features, out_features: of the weight (out_features, in_features).
        bias: whether to add one value per output feature.
        init: initial weights, see `arraycnn.initializers`; the bias starts at 0.
        seed: of the initial weights; None draws a fresh one.
        backend, dtype: where the parameters live, and their float type.
    """

    backend: Backend

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        init: str = "he_normal",
        seed: int | None = None,
        backend: BackendLike = "cpu",
        dtype: Any = "float32",
    ) -> None:
        self.in_features = as_count("in_features", in_features)
        self.out_features = as_count("out_features", out_features)
        check_init(init)
        self.init = init
        self.backend = get_backend(backend)
        dtype = as_float_dtype(dtype)
        xp, shape = self.backend.xp, (self.out_features, self.in_features)
        self.weight = Parameter(xp.empty(shape, dtype), self.backend)
        self.bias = Parameter(xp.empty(self.out_features, dtype), self.backend) if bias else None
        self.initialize(as_seed(seed))

    @property
    def dtype(self) -> Any:
        return self.weight.data.dtype

    def config(self) -> dict[str, Any]:
        return super().config() | {"bias": self.bias is not None}

    def initialize(self, seed: int) -> None:
        weight = initial_weight(
            self.init, self.weight.shape, self.in_features, self.out_features, seed
        )
        self.weight.data[...] = self.backend.asarray(weight, self.weight.dtype)
        if self.bias is not None:
            self.bias.data[...] = 0

    def _forward(self, x: Array, *, relu: bool) -> tuple[Array, Backward]:
        backend, v = self.check_input(x)
        weight, bias = self.weight, self.bias
        check_dense(v, weight.data)
        h = backend.dense(v, weight.data, bias and bias.data, relu)
        shape, dtype, y = h.shape, h.dtype, h if relu else None

        def backward(grad_h: Array, *, input_grad: bool = True) -> Array | None:
            delta = check_grad(backend, grad_h, shape, dtype)
            if y is not None:
                delta = backend.relu_grad(y, delta)
            if weight.requires_grad:
                weight.add_grad(backend.dense_weight_grad(v, delta), copy=False)
            if bias is not None and bias.requires_grad:
                bias.add_grad(backend.channel_sum(delta), copy=False)
            return backend.dense_input_grad(delta, weight.data) if input_grad else None

        return h, backward

    def output_shape(self, input_shape: Shape) -> Shape:
        if len(input_shape) != 2 or input_shape[1] != self.in_features:
            raise ValueError(
                f"Dense({self.in_features}, {self.out_features}) expects (N, {self.in_features}), "
                f"got {tuple(input_shape)}; flatten images first, and check in_features"
            )
        return (input_shape[0], self.out_features)

    def multiply_adds(self, input_shape: Shape) -> int:
        return math.prod(self.output_shape(input_shape)) * self.in_features


class Flatten(LayerWithoutParameters):
    """(N, C, *S) → (N, C·L); a view in batch-last memory."""

    def forward(self, x: Array) -> tuple[Array, Backward]:
        backend, x = self.check_input(x)
        shape, dtype = x.shape, x.dtype
        y = backend.batch_last(x).reshape(self.output_shape(shape))
        flat = y.shape

        def backward(grad_y: Array) -> Array:
            delta = check_grad(backend, grad_y, flat, dtype)
            return backend.batch_last(delta).reshape(shape)

        return y, backward

    def output_shape(self, input_shape: Shape) -> Shape:
        if len(input_shape) < 2:
            raise ValueError(f"Flatten expects (N, C, ...), got shape {tuple(input_shape)}")
        return (input_shape[0], math.prod(input_shape[1:]))
