"""Layers made of layers."""

import inspect
from collections.abc import Iterable, Iterator
from typing import Any, overload

from arraycnn.arrays import Array, Shape
from arraycnn.backends import BackendLike, get_backend
from arraycnn.layers.activation import ReLU
from arraycnn.layers.conv import Conv
from arraycnn.layers.layer import (
    Backward,
    Layer,
    RectifiedLayer,
    backward_to_parameters,
    kept,
    receive_grad,
    skips_input_grad,
)
from arraycnn.layers.normalization import BatchNorm
from arraycnn.layers.pooling import MaxPool
from arraycnn.rng import as_seed


class Sequential(Layer):
    """Layers one after the other; backward goes through them in reverse.

    Args:
        layers: at least one. They become part of this network: moved to its backend.
        seed: if given, every parameter inside is drawn anew from it, and dropout seeded; the same
            seed gives the same network on every backend. None leaves the layers as they are.
        backend: where to move the layers; None leaves them where they are, if they agree.

    Raises:
        TypeError: something that is not a layer. ValueError: no layers, or on different backends.
    """

    def __init__(
        self, *layers: Layer, seed: int | None = None, backend: BackendLike | None = None
    ) -> None:
        for index, layer in enumerate(layers):
            if not isinstance(layer, Layer):
                raise TypeError(
                    f"Sequential takes layers, got {layer!r} at position {index}; pass them as "
                    "Sequential(a, b, ...), and instances, not classes"
                )
        if not layers:
            raise ValueError("Sequential needs at least one layer")
        self._layers = layers
        self._steps = tuple(_steps(layers))
        self._inference_steps = tuple(_with_norms(self._steps))
        adopt(self, seed, backend)

    @property
    def layers(self) -> tuple[Layer, ...]:
        return self._layers

    @skips_input_grad
    def forward(self, x: Array) -> tuple[Array, Backward]:
        _, y = self.receive(x)
        backwards: list[tuple[Layer, Backward]] = []
        for layer, relu in self._steps:
            y, backward = layer.forward(y, relu=True) if relu else layer.forward(y)
            backwards.append((layer, backward))

        def backward_all(grad_y: Array, *, input_grad: bool = True) -> Array | None:
            grad, first = grad_y, 0
            if not input_grad:  # below the first trained layer nobody needs a gradient
                trained = (i for i, (layer, _) in enumerate(backwards) if layer.parameters())
                first = next(trained, len(backwards))
            for index in reversed(range(first, len(backwards))):
                layer, backward = backwards[index]
                if input_grad or index > first:
                    grad = backward(grad)
                else:
                    backward_to_parameters(layer, backward, grad)
            return grad if input_grad else None

        return y, backward_all

    def __call__(self, x: Array) -> Array:
        _, y = self.receive(x)
        for layer, options in self._inference_steps:
            y = layer(y, **options)
        return y

    def children(self) -> Iterator[tuple[str, Layer]]:
        return ((str(index), layer) for index, layer in enumerate(self.layers))

    def leaves(self, input_shape: Shape) -> Iterator[tuple[str, Layer, Shape]]:
        for name, layer in self.children():
            for inner, leaf, shape in layer.leaves(input_shape):
                yield (f"{name}.{inner}" if inner else name), leaf, shape
            input_shape = layer.output_shape(input_shape)

    def output_shape(self, input_shape: Shape) -> Shape:
        for layer in self.layers:
            input_shape = layer.output_shape(input_shape)
        return tuple(input_shape)

    def multiply_adds(self, input_shape: Shape) -> int:
        return sum(leaf.multiply_adds(shape) for _, leaf, shape in self.leaves(input_shape))

    def config(self) -> dict[str, Any]:
        return {"layers": self.layers}

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    @overload
    def __getitem__(self, index: int) -> Layer: ...
    @overload
    def __getitem__(self, index: slice) -> "Sequential": ...
    def __getitem__(self, index: int | slice) -> "Layer | Sequential":
        """A layer, or a Sequential of a slice of them; the parameters are shared."""
        part = self.layers[index]
        return part if isinstance(part, Layer) else Sequential(*part)

    def __repr__(self) -> str:
        return f"Sequential({', '.join(map(repr, self.layers))})"


def _steps(layers: tuple[Layer, ...]) -> Iterator[tuple[Any, bool]]:
    """The layers, a ReLU taken together with the layer before it where that can do it.

    max(·, 0) is monotone, so it may come after a max pooling instead of before, where there is
    less to do: max(relu(x)) = relu(max(x)), and the gradients are the same.
    """
    order = list(layers)
    for index in range(1, len(order) - 1):
        if type(order[index]) is ReLU and type(order[index + 1]).forward is MaxPool.forward:
            order[index : index + 2] = order[index + 1], order[index]
    fused = False
    for layer, after in zip(order, [*order[1:], None], strict=True):
        if not fused:
            fused = type(after) is ReLU and _can_rectify(layer)
            yield layer, fused
        else:
            fused = False


def _can_rectify(layer: Layer) -> bool:
    """Whether a ReLU can be part of the layer; of a subclass's own methods, whether they say so."""
    methods = type(layer).forward, type(layer).__call__
    return isinstance(layer, RectifiedLayer) and all(
        "relu" in inspect.signature(method).parameters for method in methods
    )


def _with_norms(steps: Iterable[tuple[Any, bool]]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The layers and options of inference: a convolution does the batch norm after it as well."""
    rest = list(steps)
    while rest:
        layer, relu = rest.pop(0)
        options: dict[str, Any] = {"relu": True} if relu else {}
        norm, after = rest[0] if rest else (None, False)
        if (
            (type(layer).forward, type(layer).__call__) == (Conv.forward, Conv.__call__)
            and not relu
            and type(norm) is BatchNorm
            and norm.num_features == layer.out_channels
        ):
            options = {"relu": after, "norm": norm}
            del rest[0]
        yield layer, options


class Residual(RectifiedLayer):
    """y = body(x) + shortcut(x), by default x itself (He et al., "Deep residual learning", 2016).

    Args:
        body, shortcut: layers with outputs of the same shape; ``shortcut=None`` is the identity.
        seed, backend: as for `Sequential`.
    """

    def __init__(
        self,
        body: Layer,
        shortcut: Layer | None = None,
        *,
        seed: int | None = None,
        backend: BackendLike | None = None,
    ) -> None:
        for name, layer in (("body", body), ("shortcut", shortcut)):
            if not isinstance(layer, Layer) and not (name == "shortcut" and layer is None):
                raise TypeError(f"{name} must be a layer, got {layer!r}")
        self.body = body
        self.shortcut = shortcut
        adopt(self, seed, backend)

    @skips_input_grad
    def forward(self, x: Array, *, relu: bool = False) -> tuple[Array, Backward]:
        backend, x = self.receive(x)
        self._check(x.shape)
        x = backend.batch_last(x)
        y, body_backward = self.body.forward(x)
        branches = [(self.body, body_backward)]
        if self.shortcut is None:
            y = backend.add(y, x, relu)
        else:
            z, shortcut_backward = self.shortcut.forward(x)
            branches.append((self.shortcut, shortcut_backward))
            y = backend.add(y, z, relu)
        output = kept(y, relu)

        def backward(grad_y: Array, *, input_grad: bool = True) -> Array | None:
            delta = backend.batch_last(receive_grad(backend, grad_y, output, relu=relu))
            if not input_grad:
                for layer, branch in branches:
                    if layer.parameters():
                        backward_to_parameters(layer, branch, delta)
                return None
            grads = [branch(delta) for _, branch in branches]
            return backend.add(grads[0], grads[1] if len(grads) > 1 else delta)

        return y, backward

    def __call__(self, x: Array, *, relu: bool = False) -> Array:
        backend, x = self.receive(x)
        self._check(x.shape)
        x = backend.batch_last(x)
        return backend.add(self.body(x), x if self.shortcut is None else self.shortcut(x), relu)

    def leaves(self, input_shape: Shape) -> Iterator[tuple[str, Layer, Shape]]:
        for name, layer in self.children():
            for inner, leaf, shape in layer.leaves(input_shape):
                yield (f"{name}.{inner}" if inner else name), leaf, shape

    def output_shape(self, input_shape: Shape) -> Shape:
        return self._check(input_shape)

    def multiply_adds(self, input_shape: Shape) -> int:
        return sum(leaf.multiply_adds(shape) for _, leaf, shape in self.leaves(input_shape))

    def _check(self, input_shape: Shape) -> Shape:
        body = self.body.output_shape(input_shape)
        other = tuple(input_shape)
        if self.shortcut is not None:
            other = self.shortcut.output_shape(input_shape)
        if body != other:
            raise ValueError(
                f"Residual adds body and shortcut, but for x of shape {tuple(input_shape)} they "
                f"give {body} and {other}; give shortcut a layer that makes them equal, e.g. a "
                "1×1 convolution with the body's stride and channels"
            )
        return body


def adopt(container: Layer, seed: int | None, backend: BackendLike | None) -> None:
    """Bring a container's layers to one backend, and initialise them if there is a seed."""
    if seed is not None:
        seed = as_seed(seed)
    inner = [layer.backend for _, layer in container.named_layers() if layer.backend is not None]
    if backend is None:
        names = sorted({found.name for found in inner})
        if len(names) > 1:
            raise ValueError(
                f"the layers are on different backends, {' and '.join(names)}; say which one to "
                f"use, e.g. backend={names[0]!r}"
            )
        backend = inner[0] if inner else None
    else:
        backend = get_backend(backend)
    if backend is not None:
        container.to(backend)
    if seed is not None:
        container.initialize(seed)
