"""Short forms of graphs, a chain and a body with a shortcut, and a part that is computed again."""

from collections.abc import Iterator
from typing import Any, overload

from arraycnn.arrays import Array, Shape
from arraycnn.backends import BackendLike
from arraycnn.layers.graph import Graph, Network
from arraycnn.layers.layer import Backward, Layer, RandomLayer, skips_input_grad
from arraycnn.layers.merge import ResidualAdd
from arraycnn.layers.plan import Node
from arraycnn.layers.state import Transaction, place_and_seed


class Sequential(Network):
    """Layers one after the other; backward goes through them in reverse.

    Args:
        layers: at least one. They become part of this network: moved to its backend.
        seed: if given, every parameter inside is drawn anew from it, and dropout seeded; the same
            seed gives the same network on every backend. None leaves the layers as they are.
        backend: where to move the layers; None leaves them where they are, if they agree.

    Example:
        >>> import arraycnn as ac
        >>> network = ac.Sequential(ac.Flatten(), ac.Dense(64, 10), seed=0)
        >>> network[1]
        Dense(64, 10)

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
        names = [*map(str, range(len(layers)))]
        nodes = map(Node, names, layers, [(source,) for source in ("x", *names)])
        self._build([*nodes], ("x",), names[-1:], seed, backend)

    @property
    def layers(self) -> tuple[Layer, ...]:
        return tuple(layer for _, layer, _ in self.nodes)

    def config(self) -> dict[str, Any]:
        return {"layers": self.layers}

    def __len__(self) -> int:
        return len(self.nodes)

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


class Residual(Network):
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
        nodes = [Node("body", body, ("x",))]
        if shortcut is not None:
            nodes.append(Node("shortcut", shortcut, ("x",)))
        branches = "body", "x" if shortcut is None else "shortcut"
        nodes.append(Node("add", ResidualAdd(), branches))
        self._build(nodes, ("x",), ("add",), seed, backend)

    @property
    def body(self) -> Layer:
        return self.nodes[0].layer

    @property
    def shortcut(self) -> Layer | None:
        return self.nodes[1].layer if len(self.nodes) > 2 else None

    def children(self) -> Iterator[tuple[str, Layer]]:
        return ((name, layer) for name, layer, _ in self.nodes[:-1])

    def config(self) -> dict[str, Any]:
        return {"body": self.body, "shortcut": self.shortcut}


class Recompute(Layer):
    """Saves the inputs of ``layer`` only and computes it again in backward, for less memory.

    The results are those without it, bit for bit: dropout draws the same masks again. Names of
    parameters are those of ``layer``.

    Source: Chen et al., "Training deep nets with sublinear memory cost", 2016.

    Example:
        >>> import arraycnn as ac
        >>> block = ac.Sequential(ac.Conv2d(8, 8, kernel_size=3, padding=1), ac.ReLU())
        >>> network = ac.Sequential(ac.Recompute(block), ac.GlobalAvgPool(), seed=0)
    """

    differs_in_inference = False

    def __init__(
        self, layer: Layer, *, seed: int | None = None, backend: BackendLike | None = None
    ) -> None:
        if not isinstance(layer, Layer):
            raise TypeError(f"layer must be a layer, got {layer!r}")
        self.layer = layer
        place_and_seed(self, seed, backend)

    @skips_input_grad
    def forward(self, *xs: Array) -> tuple[Array, Backward]:
        layer = self.layer
        drawing = [
            (one, one.counter)
            for _, one in layer.named_layers(remove_duplicate=True)
            if isinstance(one, RandomLayer)
        ]
        y, _ = layer.forward(*xs)

        def backward(*grads: Any, input_grad: bool = True) -> Any:
            counters = [one.counter for one, _ in drawing]
            try:
                for one, counter in drawing:
                    one.counter = counter
                with Transaction(keep=False):
                    _, again = layer.forward(*xs)
            finally:
                for (one, _), counter in zip(drawing, counters, strict=True):
                    one.counter = counter
            if input_grad or not getattr(layer.forward, "skips_input_grad", False):
                return again(*grads) if input_grad else None
            return again(*grads, input_grad=False)

        return y, backward

    def __call__(self, *xs: Array) -> Array:
        return self.layer(*xs)

    def initialize(self, seed: int) -> None:
        self.layer.initialize(seed)

    def children(self) -> Iterator[tuple[str, Layer]]:
        yield "", self.layer

    def walk(self, *input_shapes: Shape) -> Iterator[tuple[str, Layer, tuple[Shape, ...]]]:
        return self.layer.walk(*input_shapes)

    def output_shape(self, *input_shapes: Shape) -> Any:
        return self.layer.output_shape(*input_shapes)

    def multiply_adds(self, *input_shapes: Shape) -> int | None:
        return self.layer.multiply_adds(*input_shapes)


Network._inline = frozenset((Graph, Residual, Sequential))
