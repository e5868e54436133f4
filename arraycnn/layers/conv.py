"""Convolution and transposed convolution layers for 1, 2 and 3 dimensions."""

import math
from typing import Any, ClassVar

from arraycnn.arguments import Size, as_count, as_float_dtype, as_sizes, check_grad
from arraycnn.arrays import Array, Shape
from arraycnn.backends import Backend, BackendLike, get_backend
from arraycnn.geometry import (
    Padding,
    Window,
    check_conv_shapes,
    check_groups,
    check_transposed_shapes,
    conv_window,
    resolve_padding,
    transposed_window,
)
from arraycnn.initializers import check_init, initial_weight
from arraycnn.layers.config import short
from arraycnn.layers.layer import Backward, LayerWithRelu
from arraycnn.layers.normalization import BatchNorm
from arraycnn.parameters import Parameter
from arraycnn.rng import as_seed


class ConvBase(LayerWithRelu):
    """What convolutions and transposed convolutions share: kernels, bias and their gradients."""

    ndim: ClassVar[int]
    transposed: ClassVar[bool] = False
    backend: Backend

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        *,
        stride: Size,
        padding: Padding,
        dilation: Size,
        groups: int,
        bias: bool,
        init: str,
        seed: int | None,
        backend: BackendLike,
        dtype: Any,
    ) -> None:
        self.in_channels = as_count("in_channels", in_channels)
        self.out_channels = as_count("out_channels", out_channels)
        self.kernel_size = as_sizes("kernel_size", kernel_size, self.ndim)
        self.stride = as_sizes("stride", stride, self.ndim)
        self.padding = padding
        self.dilation = as_sizes("dilation", dilation, self.ndim)
        self.groups = check_groups(groups, self.in_channels, self.out_channels)
        check_init(init)
        self.init = init
        self.backend = get_backend(backend)
        dtype = as_float_dtype(dtype)
        sizes = self.kernel_size, self.kernel_size, self.stride, self.dilation
        resolve_padding(padding, *sizes)  # refuses what no input could make valid
        rows, columns = self.out_channels, self.in_channels
        if self.transposed:
            rows, columns = columns, rows
        shape = (rows, columns // self.groups, *self.kernel_size)
        self.weight = Parameter(self.backend.xp.empty(shape, dtype), self.backend)
        offsets = self.backend.xp.empty(self.out_channels, dtype)
        self.bias = Parameter(offsets, self.backend) if bias else None
        self.initialize(as_seed(seed))

    @property
    def dtype(self) -> Any:
        return self.weight.data.dtype

    def config(self) -> dict[str, Any]:
        values = {name: short(value) for name, value in super().config().items()}
        return values | {"bias": self.bias is not None}

    def initialize(self, seed: int) -> None:
        taps = math.prod(self.kernel_size)
        fan_in, fan_out = (
            channels // self.groups * taps for channels in (self.in_channels, self.out_channels)
        )
        weight = initial_weight(self.init, self.weight.shape, fan_in, fan_out, seed)
        self.weight.data[...] = self.backend.asarray(weight, self.weight.dtype)
        if self.bias is not None:
            self.bias.data[...] = 0


class Conv(ConvBase):
    """n-d convolution (cross-correlation) h = K v + b; see `functional.conv2d`.

    Args:
        in_channels, out_channels, kernel_size: of the weight (out, in // groups, *kernel).
        stride, padding, dilation, groups: as in `functional.conv2d`.
        bias: whether to add one value per output channel.
        init: initial weights, see `arraycnn.initializers`; the bias starts at 0.
        seed: of the initial weights; None draws a fresh one.
        backend, dtype: where the parameters live, and their float type.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        *,
        stride: Size = 1,
        padding: Padding = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        init: str = "he_normal",
        seed: int | None = None,
        backend: BackendLike = "cpu",
        dtype: Any = "float32",
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride=stride, padding=padding,
            dilation=dilation, groups=groups, bias=bias, init=init, seed=seed, backend=backend,
            dtype=dtype,
        )  # fmt: skip

    def _forward(self, x: Array, *, relu: bool) -> tuple[Array, Backward]:
        backend, x = self.check_input(x)
        window = self._window(x.shape)
        x = backend.batch_last(x)
        weight, bias, groups = self.weight, self.bias, self.groups
        h = backend.convolution(x, weight.data, bias and bias.data, window, groups, relu)
        shape, dtype, y = h.shape, h.dtype, h if relu else None

        def backward(grad_h: Array, *, input_grad: bool = True) -> Array | None:
            delta = check_grad(backend, grad_h, shape, dtype)
            if y is not None:
                delta = backend.relu_grad(y, delta)
            delta = backend.batch_last(delta)
            if bias is not None and bias.requires_grad:
                bias.add_grad(backend.channel_sum(delta), copy=False)
            grad_x = None
            if not weight.requires_grad:
                if input_grad:
                    return backend.convolution_input_grad(delta, weight.data, window, groups)
            elif input_grad:
                grad_x, grad = backend.convolution_grads(x, delta, weight.data, window, groups)
                weight.add_grad(grad, copy=False)
            else:
                grad = backend.convolution_weight_grad(x, delta, weight.shape, window, groups)
                weight.add_grad(grad, copy=False)
            return grad_x

        return h, backward

    def _infer(self, x: Array, *, relu: bool, norm: BatchNorm | None = None) -> Array:
        """Inference; with ``norm``, also that of the batch normalisation of its output.

        s·(K v + b) + t = (s·K) v + (s·b + t): scaling the kernels saves a pass over the output.
        """
        backend, x = self.check_input(x)
        window = self._window(x.shape)
        weight, bias = self.weight.data, self.bias and self.bias.data
        if norm is not None:
            scale, shift = norm.scale_and_shift()
            weight = weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))
            bias = shift if bias is None else scale * bias + shift
        return backend.convolution(backend.batch_last(x), weight, bias, window, self.groups, relu)

    def output_shape(self, input_shape: Shape) -> Shape:
        return (input_shape[0], self.out_channels, *self._window(input_shape).output_size)

    def multiply_adds(self, input_shape: Shape) -> int:
        return math.prod(self.output_shape(input_shape)) * math.prod(self.weight.shape[1:])

    def workspace_bytes(self, input_shape: Shape) -> int:
        window = self._window(input_shape)
        return self.backend.workspace_bytes(
            window, input_shape[0], self.weight.shape, self.groups, self.dtype
        )

    def _window(self, input_shape: Shape) -> Window:
        if len(input_shape) != self.ndim + 2 or input_shape[1] != self.in_channels:
            shape = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
            check_conv_shapes(input_shape, shape, self.groups, self.ndim)  # says what is wrong
        return conv_window(
            input_shape[2:], self.kernel_size, stride=self.stride, padding=self.padding,
            dilation=self.dilation,
        )  # fmt: skip


class ConvTranspose(ConvBase):
    """n-d transposed convolution; see `functional.conv_transpose2d`.

    Args:
        output_padding: extra size after the end, smaller than stride or dilation.
        others: as `Conv`; the weight is (in, out // groups, *kernel).
    """

    transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        *,
        stride: Size = 1,
        padding: Padding = 0,
        output_padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        init: str = "he_normal",
        seed: int | None = None,
        backend: BackendLike = "cpu",
        dtype: Any = "float32",
    ) -> None:
        self.output_padding = as_sizes("output_padding", output_padding, self.ndim, minimum=0)
        super().__init__(
            in_channels, out_channels, kernel_size, stride=stride, padding=padding,
            dilation=dilation, groups=groups, bias=bias, init=init, seed=seed, backend=backend,
            dtype=dtype,
        )  # fmt: skip

    def _forward(self, x: Array, *, relu: bool) -> tuple[Array, Backward]:
        backend, x = self.check_input(x)
        window = self._window(x.shape)
        x = backend.batch_last(x)
        weight, bias, groups = self.weight, self.bias, self.groups
        h = backend.convolution_input_grad(x, weight.data, window, groups)
        if bias is not None:
            h += bias.data.reshape(-1, *(1,) * self.ndim)
        if relu:
            backend.relu(h, out=h)
        shape, dtype, y = h.shape, h.dtype, h if relu else None

        def backward(grad_h: Array, *, input_grad: bool = True) -> Array | None:
            delta = check_grad(backend, grad_h, shape, dtype)
            if y is not None:
                delta = backend.relu_grad(y, delta)
            delta = backend.batch_last(delta)
            if weight.requires_grad:
                grad = backend.convolution_weight_grad(delta, x, weight.shape, window, groups)
                weight.add_grad(grad, copy=False)
            if bias is not None and bias.requires_grad:
                bias.add_grad(backend.channel_sum(delta), copy=False)
            if not input_grad:
                return None
            return backend.convolution(delta, weight.data, None, window, groups)

        return h, backward

    def output_shape(self, input_shape: Shape) -> Shape:
        return (input_shape[0], self.out_channels, *self._window(input_shape).input_size)

    def multiply_adds(self, input_shape: Shape) -> int:
        self._window(input_shape)
        return math.prod(input_shape) * math.prod(self.weight.shape[1:])

    def workspace_bytes(self, input_shape: Shape) -> int:
        window = self._window(input_shape)
        return self.backend.workspace_bytes(
            window, input_shape[0], self.weight.shape, self.groups, self.dtype
        )

    def _window(self, input_shape: Shape) -> Window:
        shape = (self.in_channels, self.out_channels // self.groups, *self.kernel_size)
        check_transposed_shapes(input_shape, shape, self.groups, self.ndim)
        return transposed_window(
            input_shape[2:], self.kernel_size, stride=self.stride, padding=self.padding,
            output_padding=self.output_padding, dilation=self.dilation,
        )  # fmt: skip


class Conv1d(Conv):
    __doc__ = Conv.__doc__
    ndim = 1


class Conv2d(Conv):
    __doc__ = Conv.__doc__
    ndim = 2


class Conv3d(Conv):
    __doc__ = Conv.__doc__
    ndim = 3


class ConvTranspose1d(ConvTranspose):
    __doc__ = ConvTranspose.__doc__
    ndim = 1


class ConvTranspose2d(ConvTranspose):
    __doc__ = ConvTranspose.__doc__
    ndim = 2


class ConvTranspose3d(ConvTranspose):
    __doc__ = ConvTranspose.__doc__
    ndim = 3
