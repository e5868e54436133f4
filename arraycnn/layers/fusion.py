"""Neighbours that are computed together, in one table.

A row says which layer may be taken together with the one behind it. Types must be the same, no
subclasses: a layer of your own is never part of another one, nor is a layer whose methods were
replaced. What is fused computes what its layers compute one after the other: the same bits, but
where a convolution does its batch norm too, which rounds differently.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import Any, NamedTuple, Self, cast

from arraycnn.arrays import Array
from arraycnn.layers.activation import ReLU
from arraycnn.layers.conv import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
)
from arraycnn.layers.dense import Dense
from arraycnn.layers.layer import Layer
from arraycnn.layers.merge import Add, ResidualAdd
from arraycnn.layers.normalization import BatchNorm
from arraycnn.layers.pooling import MaxPool1d, MaxPool2d, MaxPool3d


class Fused(NamedTuple):
    """Layers that are computed together: ``layer`` does the norm and the ReLU behind it."""

    layer: Any
    norm: BatchNorm | None = None
    relu: bool = False
    members: tuple[Layer, ...] = ()

    def call(self, *, inference: bool) -> Callable[..., Any] | None:
        """What to call instead of the layer's forward, or of itself; None for a layer alone."""
        if len(self.members) == 1:
            return None
        if self.norm is not None:
            return self._infer_with_norm
        return partial(self.layer._infer if inference else self.layer._forward, relu=self.relu)

    def _infer_with_norm(self, x: Array) -> Array:
        layer, norm = self.layer, cast(BatchNorm, self.norm)
        fits = (norm.num_features, norm.backend) == (layer.out_channels, layer.backend)
        if fits and norm.dtype == layer.dtype:
            return layer._infer(x, relu=self.relu, norm=norm)
        return norm._infer(layer(x), relu=self.relu)  # which says what does not fit


def _with_relu(first: Fused, second: Fused) -> Fused:
    return first._replace(relu=True, members=first.members + second.members)


def _relu_behind(first: Fused, second: Fused) -> Fused:
    """max(relu(x)) = relu(max(x)), and the gradients are the same: there is less to do behind."""
    return second._replace(relu=True, members=first.members + second.members)


def _with_norm(first: Fused, second: Fused) -> Fused:
    return Fused(first.layer, second.layer, second.relu, first.members + second.members)


class Row(NamedTuple):
    """Which neighbours are taken together, and when."""

    first: frozenset[type]
    second: frozenset[type]
    fuse: Callable[[Fused, Fused], Fused]
    inference_only: bool = False


_CONVOLUTIONS = frozenset((Conv1d, Conv2d, Conv3d))
_TRANSPOSED = frozenset((ConvTranspose1d, ConvTranspose2d, ConvTranspose3d))
_MAX_POOLS = frozenset((MaxPool1d, MaxPool2d, MaxPool3d))
_RELU, _NORM = frozenset((ReLU,)), frozenset((BatchNorm,))
_BEFORE_RELU = _CONVOLUTIONS | _TRANSPOSED | _MAX_POOLS | _NORM | {Dense, Add, ResidualAdd}

TABLE = (  # an earlier row comes first
    Row(_RELU, _MAX_POOLS, _relu_behind),
    Row(_BEFORE_RELU, _RELU, _with_relu),
    Row(_CONVOLUTIONS, _NORM, _with_norm, inference_only=True),
)


def fuse(row: Row, first: Fused, second: Fused) -> Fused | None:
    """The two as one, if the row is made for them."""
    fits = type(first.layer) in row.first and type(second.layer) in row.second
    if not fits or first.relu or first.norm or second.norm:
        return None
    if second.relu and row.fuse is not _with_norm:
        return None
    return row.fuse(first, second)


@lru_cache(maxsize=1024)
def _methods(layer_class: type) -> frozenset[str]:
    return frozenset(name for name in dir(layer_class) if callable(getattr(layer_class, name)))


def hooked(layers: Iterable[Layer]) -> frozenset[int]:
    """The ids of layers of which an instance has a method of its own, such as a hook."""
    found = [id(layer) for layer in layers if not _methods(type(layer)).isdisjoint(vars(layer))]
    return frozenset(found)


class fused:
    """Turn fusion on or off for all networks, e.g. to debug; as a context only inside of it.

    Example:
        >>> import arraycnn as ac
        >>> with ac.fused(False):
        ...     pass  # every layer by itself
    """

    wanted = True

    def __init__(self, wanted: bool = True) -> None:
        self._before = fused.wanted
        fused.wanted = bool(wanted)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        fused.wanted = self._before
