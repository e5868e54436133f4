"""Pooling layers for 1, 2 and 3 dimensions, adaptive and global."""

from typing import Any, ClassVar

from arraycnn import functional as F
from arraycnn.arguments import Size, as_count, as_sizes, check_grad
from arraycnn.arrays import Array, Shape
from arraycnn.functional.pooling import average_factors
from arraycnn.geometry import Padding, Window, check_rank, pool_window, resolve_padding
from arraycnn.layers.config import short
from arraycnn.layers.layer import Backward, LayerWithoutParameters, LayerWithRelu
from arraycnn.registry import preferred


class Pool(LayerWithoutParameters):
    """What max and average pooling share: the window."""

    ndim: ClassVar[int]

    def __init__(
        self, kernel_size: Size, stride: Size | None, padding: Padding, dilation: Size,
        ceil_mode: bool,
    ) -> None:  # fmt: skip
        self.kernel_size = as_sizes("kernel_size", kernel_size, self.ndim)
        self.stride = self.kernel_size if stride is None else as_sizes("stride", stride, self.ndim)
        self.padding = padding
        self.dilation = as_sizes("dilation", dilation, self.ndim)
        self.ceil_mode = ceil_mode
        resolve_padding(padding, self.kernel_size, self.kernel_size, self.stride, self.dilation)

    def config(self) -> dict[str, Any]:
        values = {name: short(value) for name, value in super().config().items()}
        return values | ({"stride": None} if self.stride == self.kernel_size else {})

    def window(self, input_shape: Shape) -> Window:
        """The pooling window over an input of that shape; ValueError if none fits."""
        check_rank("x", input_shape, self.ndim)
        return pool_window(
            input_shape[2:], self.kernel_size, stride=self.stride, padding=self.padding,
            dilation=self.dilation, ceil_mode=self.ceil_mode,
        )  # fmt: skip

    def output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape[:2], *self.window(input_shape).output_size)


class MaxPool(Pool, LayerWithRelu):
    """The largest element of each window; see `functional.max_pool2d`.

    Args:
        kernel_size, padding, dilation, ceil_mode: of the window.
        stride: by default the kernel size.
    """

    def __init__(
        self,
        kernel_size: Size,
        *,
        stride: Size | None = None,
        padding: Padding = 0,
        dilation: Size = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode)

    def _forward(self, x: Array, *, relu: bool) -> tuple[Array, Backward]:
        backend, x = self.check_input(x)
        window = self.window(x.shape)
        y, argmax = backend.max_pool_argmax(backend.batch_last(x), window, relu)
        shape, dtype = y.shape, y.dtype

        def backward(grad_y: Array, *, input_grad: bool = True) -> Array | None:
            if not input_grad:
                return None
            delta = check_grad(backend, grad_y, shape, dtype)
            return backend.max_pool_grad(argmax, backend.batch_last(delta), window)

        return y, backward

    def _infer(self, x: Array, *, relu: bool) -> Array:
        backend, x = self.check_input(x)
        return backend.max_pool(backend.batch_last(x), self.window(x.shape), relu)


class AvgPool(Pool):
    """The mean of each window; see `functional.avg_pool2d`.

    Args:
        kernel_size, padding, ceil_mode: of the window. stride: by default the kernel size.
        count_include_pad: whether the padding's zeros count. divisor_override: divide by this.
    """

    def __init__(
        self,
        kernel_size: Size,
        *,
        stride: Size | None = None,
        padding: Padding = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        super().__init__(kernel_size, stride, padding, 1, ceil_mode)
        self.count_include_pad = count_include_pad
        if divisor_override is not None:
            divisor_override = as_count("divisor_override", divisor_override)
        self.divisor_override = divisor_override

    def forward(self, x: Array) -> tuple[Array, Backward]:
        backend, x = self.check_input(x)
        window = self.window(x.shape)
        factors = average_factors(
            backend, window, x.dtype, self.count_include_pad, self.divisor_override
        )
        y = backend.sum_pool(backend.batch_last(x), window)
        y *= factors
        shape, dtype = y.shape, y.dtype

        def backward(grad_y: Array) -> Array:
            delta = backend.batch_last(check_grad(backend, grad_y, shape, dtype))
            return backend.sum_pool_grad(delta * factors, window)

        return y, backward


class MaxPool1d(MaxPool):
    __doc__ = MaxPool.__doc__
    ndim = 1


class MaxPool2d(MaxPool):
    __doc__ = MaxPool.__doc__
    ndim = 2


class MaxPool3d(MaxPool):
    __doc__ = MaxPool.__doc__
    ndim = 3


class AvgPool1d(AvgPool):
    __doc__ = AvgPool.__doc__
    ndim = 1


class AvgPool2d(AvgPool):
    __doc__ = AvgPool.__doc__
    ndim = 2


class AvgPool3d(AvgPool):
    __doc__ = AvgPool.__doc__
    ndim = 3


class AdaptiveAvgPool2d(LayerWithoutParameters):
    """Average pooling to ``output_size``, whatever the input's; see `functional`."""

    def __init__(self, output_size: Size) -> None:
        self.output_size = as_sizes("output_size", output_size, 2)

    def config(self) -> dict[str, Any]:
        return {"output_size": short(self.output_size)}

    def forward(self, x: Array) -> tuple[Array, Backward]:
        backend, x = self.check_input(x)
        shape, size = x.shape, self.output_size
        with preferred(backend):
            y = F.adaptive_avg_pool2d(x, size)
        pooled, dtype = y.shape, y.dtype

        def backward(grad_y: Array) -> Array:
            delta = check_grad(backend, grad_y, pooled, dtype)
            with preferred(backend):
                return F.adaptive_avg_pool2d_grad(shape, size, delta)

        return y, backward

    def output_shape(self, input_shape: Shape) -> Shape:
        check_rank("x", input_shape, 2)
        return (*input_shape[:2], *self.output_size)


class GlobalAvgPool(LayerWithoutParameters):
    """The mean of each channel over all positions: (N, C, *S) → (N, C)."""

    def forward(self, x: Array) -> tuple[Array, Backward]:
        backend, x = self.check_input(x)
        shape = x.shape
        with preferred(backend):
            y = F.global_avg_pool(x)
        pooled, dtype = y.shape, y.dtype

        def backward(grad_y: Array) -> Array:
            delta = check_grad(backend, grad_y, pooled, dtype)
            with preferred(backend):
                return F.global_avg_pool_grad(shape, delta)

        return y, backward

    def output_shape(self, input_shape: Shape) -> Shape:
        if len(input_shape) < 3:
            raise ValueError(f"GlobalAvgPool expects (N, C, *S), got shape {tuple(input_shape)}")
        return tuple(input_shape[:2])
