"""LeCun's network of 1989, and the layers that it has and today's networks do not.

LeCun et al., "Backpropagation applied to handwritten zip code recognition", Neural Computation
1(4), 1989: weights are shared but biases are not, a feature map sees only some of the maps below,
the border is filled with the background's value, and the squashing function is a scaled tanh.
"""

import math
from collections.abc import Sequence
from typing import Any

from arraycnn import functional as F
from arraycnn.arguments import (
    Size,
    as_any_real,
    as_count,
    as_float_dtype,
    as_int,
    as_shape,
    as_sizes,
    check_grad,
    check_shape,
)
from arraycnn.arrays import Array, Shape
from arraycnn.backends import Backend, BackendLike, get_backend
from arraycnn.functional.activation import keeps_memory_order
from arraycnn.geometry import (
    Padding,
    Window,
    check_conv_shapes,
    check_rank,
    conv_window,
    resolve_padding,
)
from arraycnn.initializers import check_init, initial_weight
from arraycnn.layers.activation import Activation
from arraycnn.layers.config import short
from arraycnn.layers.conv import Conv2d
from arraycnn.layers.dense import Dense, Flatten
from arraycnn.layers.layer import Backward, Layer, LayerWithoutParameters, skips_input_grad
from arraycnn.layers.sequential import Sequential
from arraycnn.parameters import Parameter
from arraycnn.rng import as_seed


class ConstantPad2d(LayerWithoutParameters):
    """Puts a border of ``value`` around each plane.

    Args:
        padding: an int, one per dimension, or one (before, after) pair per dimension.
    """

    def __init__(self, padding: Padding, value: float = 0.0) -> None:
        self.padding = padding
        self.value = as_any_real("value", value)
        self._pairs = resolve_padding(padding, (1, 1), (1, 1))

    def forward(self, x: Array) -> tuple[Array, Backward]:
        backend, x = self.check_input(x)
        y = backend.empty(self.output_shape(x.shape), x.dtype)
        (top, _), (left, _) = self._pairs
        inner = (..., slice(top, top + x.shape[2]), slice(left, left + x.shape[3]))
        y[...] = self.value
        y[inner] = x
        shape, dtype = y.shape, y.dtype
        return y, lambda grad_y: check_grad(backend, grad_y, shape, dtype)[inner]

    def output_shape(self, input_shape: Shape) -> Shape:
        check_rank("x", input_shape, 2)
        sizes = zip(input_shape[2:], self._pairs, strict=True)
        return (*input_shape[:2], *(size + before + after for size, (before, after) in sizes))


class PartialConv2d(Layer):
    """A convolution in which each output channel sees only some input channels; no bias.

    The weight is (out_channels, sources, *kernel): only connections that exist are stored.

    Args:
        in_channels, kernel_size, stride: as `Conv2d`.
        connections: for each output channel the input channels it sees, equally many for all.
        init, seed, backend, dtype: as `Conv2d`.
    """

    backend: Backend

    def __init__(
        self,
        in_channels: int,
        kernel_size: Size,
        *,
        connections: Sequence[Sequence[int]],
        stride: Size = 1,
        init: str = "he_normal",
        seed: int | None = None,
        backend: BackendLike = "cpu",
        dtype: Any = "float32",
    ) -> None:
        self.in_channels = as_count("in_channels", in_channels)
        self.kernel_size = as_sizes("kernel_size", kernel_size, 2)
        self.stride = as_sizes("stride", stride, 2)
        self.connections = _connections(connections, self.in_channels)
        check_init(init)
        self.init = init
        self.backend = get_backend(backend)
        shape = (len(self.connections), len(self.connections[0]), *self.kernel_size)
        self.weight = Parameter(self.backend.xp.empty(shape, as_float_dtype(dtype)), self.backend)
        self.initialize(as_seed(seed))

    def initialize(self, seed: int) -> None:
        outputs, sources, *kernel = self.weight.shape
        fan_in, fan_out = sources * math.prod(kernel), outputs * math.prod(kernel)
        weight = initial_weight(self.init, self.weight.shape, fan_in, fan_out, seed)
        self.weight.data[...] = self.backend.asarray(weight, self.weight.dtype)

    @skips_input_grad
    def forward(self, x: Array) -> tuple[Array, Backward]:
        backend, x = self.check_input(x)
        window = self._window(x.shape)
        x = backend.batch_last(x)
        weight = self.weight
        outputs, _, *kernel = weight.shape
        full = backend.xp.zeros((outputs, self.in_channels, *kernel), weight.dtype)
        place = backend.asarray([[o] for o in range(outputs)]), backend.asarray(self.connections)
        full[place] = weight.data
        h = backend.convolution(x, full, None, window, 1)
        shape, dtype = h.shape, h.dtype

        def backward(grad_h: Array, *, input_grad: bool = True) -> Array | None:
            delta = backend.batch_last(check_grad(backend, grad_h, shape, dtype))
            grad = backend.convolution_weight_grad(x, delta, full.shape, window, 1)
            if weight.requires_grad:
                weight.add_grad(grad[place], copy=False)
            return backend.convolution_input_grad(delta, full, window, 1) if input_grad else None

        return h, backward

    def config(self) -> dict[str, Any]:
        return {
            name: value if name == "connections" else short(value)
            for name, value in super().config().items()
        }

    def output_shape(self, input_shape: Shape) -> Shape:
        return (input_shape[0], len(self.connections), *self._window(input_shape).output_size)

    def multiply_adds(self, input_shape: Shape) -> int:
        return math.prod(self.output_shape(input_shape)) * math.prod(self.weight.shape[1:])

    def workspace_bytes(self, input_shape: Shape) -> int:
        window = self._window(input_shape)
        shape = (len(self.connections), self.in_channels, *self.kernel_size)
        return self.backend.workspace_bytes(window, input_shape[0], shape, 1, self.dtype)

    def _window(self, input_shape: Shape) -> Window:
        shape = (len(self.connections), self.in_channels, *self.kernel_size)
        check_conv_shapes(input_shape, shape, 1, 2)
        return conv_window(input_shape[2:], self.kernel_size, stride=self.stride)


def _connections(connections: Sequence[Sequence[int]], in_channels: int) -> tuple[Shape, ...]:
    """The input channels of each output channel: as many for all, none twice, at least one."""
    try:
        rows = tuple(tuple(map(as_int, sources)) for sources in connections)
    except TypeError:
        rows = ()
    lengths = {len(sources) for sources in rows}
    exist = all(0 <= source < in_channels for sources in rows for source in sources)
    differ = all(len(set(sources)) == len(sources) for sources in rows)
    if len(lengths) != 1 or 0 in lengths or not exist or not differ:
        raise ValueError(
            f"connections must name, for each output channel, equally many different ones of the "
            f"{in_channels} input channels, e.g. [[0, 1], [1, 2]], got {connections!r:.200}"
        )
    return rows


class UnitBias(Layer):
    """y = x + b with a bias for every unit of (C, *S), not one per channel.

    Args:
        shape: (C, *S). backend, dtype: where the bias lives, and its float type.
    """

    backend: Backend

    def __init__(
        self, shape: Shape, *, backend: BackendLike = "cpu", dtype: Any = "float32"
    ) -> None:
        if not isinstance(shape, Sequence) or len(shape) < 1:
            raise ValueError(f"shape must be (C, *S), the shape of one sample, got {shape!r}")
        self.shape = as_shape("shape", shape, len(shape) if isinstance(shape, Sequence) else 1)
        self.backend = get_backend(backend)
        self.bias = Parameter(
            self.backend.xp.zeros(self.shape, as_float_dtype(dtype)), self.backend
        )

    def initialize(self, seed: int) -> None:
        self.bias.data[...] = 0

    @skips_input_grad
    def forward(self, x: Array) -> tuple[Array, Backward]:
        backend, x = self.check_input(x)
        self.output_shape(x.shape)
        bias = self.bias
        y = backend.xp.add(x, bias.data, out=backend.xp.empty_like(x))  # in the order of x
        shape, dtype = y.shape, y.dtype

        def backward(grad_y: Array, *, input_grad: bool = True) -> Array | None:
            delta = check_grad(backend, grad_y, shape, dtype)
            if bias.requires_grad:
                bias.add_grad(delta.sum(axis=0), copy=False)
            return delta if input_grad else None

        return y, backward

    def output_shape(self, input_shape: Shape) -> Shape:
        check_shape("x", input_shape[1:], self.shape, "behind the batch")
        return tuple(input_shape)


class ScaledTanh(Activation):
    """1.7159·tanh(2x / 3): ±1 are mapped to ±1, where its second derivative is largest."""

    AMPLITUDE, SLOPE = 1.7159, 2 / 3

    @staticmethod
    @keeps_memory_order
    def function(x: Array) -> Array:
        return F.tanh(x * ScaledTanh.SLOPE) * ScaledTanh.AMPLITUDE

    @staticmethod
    @keeps_memory_order
    def gradient(x: Array, grad_output: Array) -> Array:
        factor = ScaledTanh.AMPLITUDE * ScaledTanh.SLOPE
        return F.tanh_grad(x * ScaledTanh.SLOPE, grad_output) * factor


def lenet1(
    num_classes: int = 10, *, seed: int | None = None, backend: BackendLike | None = None
) -> Sequential:
    """The first convolutional network trained by backpropagation, for 16×16 images in [−1, 1].

    LeCun et al., "Backpropagation applied to handwritten zip code recognition", 1989: H1, 12 maps
    of 5×5 kernels with stride 2; H2, the same over 8 of the 12 maps each; H3, 30 units; then one
    unit per class; a background of −1 around the planes, one bias per unit, 1.7159·tanh(2x/3)
    everywhere, weights uniform in ±2.4 / fan_in. With 10 classes 9,760 parameters, as there.

    To be trained as there, on the mean squared error against targets of −1 and +1, one sample at a
    time. Not as in the paper, whose text does not say: which 8 maps each map of H2 sees (here 8
    neighbours in a ring) and where the border lies (here before and after: 1 and 2 pixels). Its
    pseudo-Newton training is not part of the network.
    """
    ring = [[(first + step) % 12 for step in range(8)] for first in range(12)]
    init = "lenet1_uniform"
    return Sequential(
        ConstantPad2d(((1, 2), (1, 2)), -1.0),
        Conv2d(1, 12, 5, stride=2, bias=False, init=init),
        UnitBias((12, 8, 8)),
        ScaledTanh(),
        ConstantPad2d(((1, 2), (1, 2)), -1.0),
        PartialConv2d(12, 5, connections=ring, stride=2, init=init),
        UnitBias((12, 4, 4)),
        ScaledTanh(),
        Flatten(),
        Dense(192, 30, init=init),
        ScaledTanh(),
        Dense(30, as_count("num_classes", num_classes), init=init),
        ScaledTanh(),
        seed=as_seed(seed),
        backend=backend,
    )
