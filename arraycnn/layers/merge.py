"""Layers with several inputs: sums, products and concatenations, where branches of a graph meet."""

import math
from itertools import zip_longest
from typing import Any

from arraycnn.arguments import as_count, check_grad
from arraycnn.arrays import Array, Shape
from arraycnn.backends import Backend
from arraycnn.backends.memory_format import batch_view, buffer_of
from arraycnn.layers.layer import Backward, LayerWithoutParameters, LayerWithRelu, skips_input_grad


class Identity(LayerWithoutParameters):
    """x itself: a name for a value, or a branch that does nothing."""

    def forward(self, x: Array) -> tuple[Array, Backward]:
        backend, x = self.check_input(x)
        shape, dtype = x.shape, x.dtype
        return x, lambda grad_y: check_grad(backend, grad_y, shape, dtype)

    def output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)


class Merge(LayerWithoutParameters):
    """A layer with at least two inputs of one dtype."""

    def check_inputs(self, xs: tuple[Array, ...]) -> tuple[Backend, list[Array]]:
        """The door of `forward`: see `Layer.check_input`."""
        name = type(self).__name__
        if len(xs) < 2:
            raise TypeError(f"{name} takes at least 2 inputs, got {len(xs)}")
        backend, first = self.check_input(xs[0])
        checked = [first]
        for x in xs[1:]:
            other, x = self.check_input(x)
            if other is not backend or x.dtype != first.dtype:
                raise TypeError(
                    f"{name} takes inputs of one dtype and backend, got {first.dtype} on "
                    f"{backend.name} and {x.dtype} on {other.name}"
                )
            checked.append(x)
        return backend, checked


class Elementwise(Merge):
    """An operation on elements at the same place.

    A size of 1 is stretched, and an input (N, C) stands for (N, C, 1, …): it meets every position.
    """

    def output_shape(self, *input_shapes: Shape) -> Shape:
        ndim = max(map(len, input_shapes))
        aligned = [_aligned(tuple(shape), ndim) for shape in input_shapes]
        columns = list(zip_longest(*aligned))  # the sizes of each dimension
        sizes = tuple(next((size for size in column if size != 1), 1) for column in columns)
        if any(not {*column} <= {size, 1} for column, size in zip(columns, sizes, strict=True)):
            raise ValueError(
                f"{type(self).__name__} takes inputs whose sizes agree or are 1, got shapes "
                f"{' and '.join(str(tuple(shape)) for shape in input_shapes)}; where one branch "
                "changes the image, the other needs a layer that does too, such as a 1×1 "
                "convolution with the same stride and channels"
            )
        return sizes


class Add(Elementwise, LayerWithRelu):
    """The sum of its inputs.

    Example:
        >>> import numpy as np, arraycnn as ac
        >>> x = np.ones((2, 3), "float32")
        >>> ac.Add()(x, x)[0]
        array([2., 2., 2.], dtype=float32)
    """

    @skips_input_grad
    def forward(self, *xs: Array) -> tuple[Array, Backward]:
        return self._forward(*xs, relu=False)

    def __call__(self, *xs: Array) -> Array:
        return self._infer(*xs, relu=False)

    differs_in_inference = False

    def _forward(self, *xs: Array, relu: bool) -> tuple[Array, Backward]:
        y = self._infer(*xs, relu=relu)
        backend, _ = self.check_input(y)
        shapes, shape, dtype, output = [x.shape for x in xs], y.shape, y.dtype, y if relu else None

        def backward(grad_y: Array, *, input_grad: bool = True) -> tuple[Array, ...] | None:
            delta = check_grad(backend, grad_y, shape, dtype)
            if output is not None:
                delta = backend.relu_grad(output, delta)
            delta = backend.batch_last(delta)
            return tuple(_collected(backend, delta, one) for one in shapes) if input_grad else None

        return y, backward

    def _infer(self, *xs: Array, relu: bool) -> Array:
        backend, (y, *others) = self.check_inputs(xs)
        shape = y.shape
        for index, x in enumerate(others):
            last = relu and index == len(others) - 1
            if y.shape == x.shape:
                y = backend.add(y, x, last)
                continue
            shape = self.output_shape(y.shape, x.shape)
            y = batch_view(_buffer(backend, y, shape) + _buffer(backend, x, shape))
            if last:
                y = backend.relu(y, out=y)
        return y


class ResidualAdd(Add):
    """The sum of a body and its shortcut, which must have the same shape."""

    def output_shape(self, *input_shapes: Shape) -> Shape:
        body, shortcut = map(tuple, input_shapes)
        if body != shortcut:
            raise ValueError(
                f"Residual adds body and shortcut, but they give {body} and {shortcut}; give "
                "shortcut a layer that makes them equal, e.g. a 1×1 convolution with the body's "
                "stride and channels"
            )
        return body


class Multiply(Elementwise):
    """The product of its inputs."""

    def forward(self, *xs: Array) -> tuple[Array, Backward]:
        backend, checked = self.check_inputs(xs)
        shape = self.output_shape(*(x.shape for x in checked))
        buffers = [_buffer(backend, x, shape) for x in checked]
        y = batch_view(math.prod(buffers[1:], start=buffers[0]))
        dtype = y.dtype

        def backward(grad_y: Array) -> tuple[Array, ...]:
            delta = buffer_of(backend.batch_last(check_grad(backend, grad_y, shape, dtype)))
            grads = []
            for index, x in enumerate(checked):
                others = (b for place, b in enumerate(buffers) if place != index)
                grad = batch_view(math.prod(others, start=delta))
                grads.append(_collected(backend, grad, x.shape))
            return tuple(grads)

        return y, backward


class Concat(Merge):
    """Its inputs side by side along ``axis``, by default the channels.

    Args:
        axis: 0 is the batch; a negative one counts from the end.

    Example:
        >>> import numpy as np, arraycnn as ac
        >>> ac.Concat()(np.zeros((2, 3, 4, 4), "float32"), np.zeros((2, 5, 4, 4), "float32")).shape
        (2, 8, 4, 4)
    """

    def __init__(self, axis: int = 1) -> None:
        self.axis = as_count("axis", axis, minimum=None)

    def forward(self, *xs: Array) -> tuple[Array, Backward]:
        backend, checked = self.check_inputs(xs)
        shape = self.output_shape(*(x.shape for x in checked))
        axis = self.axis % len(shape)
        y = backend.empty(shape, checked[0].dtype)
        places, start = [], 0
        for x in checked:
            places.append((*(slice(None),) * axis, slice(start, start + x.shape[axis])))
            start += x.shape[axis]
            y[places[-1]] = x
        dtype = y.dtype

        def backward(grad_y: Array) -> tuple[Array, ...]:
            delta = backend.batch_last(check_grad(backend, grad_y, shape, dtype))
            return tuple(delta[place] for place in places)

        return y, backward

    def output_shape(self, *input_shapes: Shape) -> Shape:
        first, *others = map(tuple, input_shapes)
        if not -len(first) <= self.axis < len(first):
            raise ValueError(
                f"Concat joins along axis {self.axis}, but its inputs have {len(first)} dimensions"
            )
        axis = self.axis % len(first)
        rest = [(*shape[:axis], *shape[axis + 1 :]) for shape in (first, *others)]
        if any(other != rest[0] for other in rest) or any(len(s) != len(first) for s in others):
            raise ValueError(
                f"Concat joins along axis {self.axis}, and the other sizes must agree, got shapes "
                f"{' and '.join(map(str, (first, *others)))}; pad or crop one of them"
            )
        total = sum(shape[axis] for shape in (first, *others))
        return (*first[:axis], total, *first[axis + 1 :])


def _aligned(shape: Shape, ndim: int) -> Shape:
    """A shape with as many dimensions as others have; (N, C) meets every position."""
    return shape + (1,) * (ndim - len(shape)) if len(shape) == 2 else shape


def _buffer(backend: Backend, x: Array, shape: Shape) -> Any:
    """The buffer (C, *S, N) of x with as many dimensions as ``shape`` has."""
    aligned = _aligned(x.shape, len(shape))
    return buffer_of(backend.batch_last(x.reshape(aligned) if aligned != x.shape else x))


def _collected(backend: Backend, grad: Array, shape: Shape) -> Array:
    """What an input of ``shape`` gets of a gradient: sums where it was stretched."""
    if grad.shape == shape:
        return grad
    aligned = _aligned(shape, grad.ndim)
    axes = tuple(a for a, (n, m) in enumerate(zip(aligned, grad.shape, strict=True)) if n != m)
    wide = "float32" if grad.dtype == "float16" else grad.dtype
    total = grad.sum(axis=axes, keepdims=True, dtype=wide).astype(grad.dtype, copy=False)
    return backend.batch_last(total.reshape(shape))
