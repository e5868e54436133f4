"""Networks as graphs of layers: nodes with names, whose inputs are named."""

from collections.abc import Iterator, Mapping, Sequence
from heapq import heappop, heappush
from typing import Any, ClassVar

from arraycnn.arguments import owner_of, to_backend
from arraycnn.arrays import Array, Shape
from arraycnn.backends import Backend, BackendLike, backend_of
from arraycnn.layers.fusion import fused, hooked
from arraycnn.layers.layer import Backward, Layer, skips_input_grad
from arraycnn.layers.plan import Node, Plan, Source
from arraycnn.layers.state import Transaction, joined, place_and_seed
from arraycnn.registry import preferred

MOST_NAME = 200  # characters of a node's name


class Network(Layer):
    """A layer made of nodes; `Graph`, `Sequential` and `Residual` only differ in how they are made.

    Attributes:
        nodes: (name, layer, sources) in an order in which they can be run.
        inputs, outputs: the names of what goes in and what comes out.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[Source, ...]
    differs_in_inference = False  # by itself; its layers are asked
    _inline: ClassVar[frozenset[type]] = frozenset()  # whose nodes are run as a part of others

    def _build(
        self,
        nodes: Sequence[Node],
        inputs: Sequence[str],
        outputs: Sequence[Source],
        seed: int | None,
        backend: BackendLike | None,
    ) -> None:
        self.nodes, self.inputs, self.outputs = tuple(nodes), tuple(inputs), tuple(outputs)
        self._plans: dict[Any, Plan] = {}
        place_and_seed(self, seed, backend)

    @skips_input_grad
    def forward(self, *xs: Any) -> tuple[Any, Backward]:
        backend, arrays = self._enter(xs)
        plan = self._plan(inference=False)
        plan.enter(backend, arrays)
        with preferred(backend), Transaction():
            ys, runs = plan.forward(arrays)
        several = len(self.inputs) > 1

        def backward(*grads: Any, input_grad: bool = True) -> Any:
            given = self._grads(grads)
            with preferred(backend):
                found = plan.backward(backend, runs, given, input_grad)
            if not input_grad:
                return None
            return tuple(found) if several else found[0]

        return tuple(ys) if len(ys) > 1 else ys[0], backward

    def __call__(self, *xs: Any) -> Any:
        backend, arrays = self._enter(xs)
        plan = self._plan(inference=True)
        plan.enter(backend, arrays)
        with preferred(backend):
            ys = plan.infer(arrays)
        return tuple(ys) if len(ys) > 1 else ys[0]

    def children(self) -> Iterator[tuple[str, Layer]]:
        return ((name, layer) for name, layer, _ in self.nodes)

    def walk(self, *input_shapes: Shape) -> Iterator[tuple[str, Layer, tuple[Shape, ...]]]:
        for (name, layer, _), shapes, _ in self._shapes(input_shapes):
            for inner, leaf, some in layer.walk(*shapes):
                yield joined(name, inner), leaf, some

    def output_shape(self, *input_shapes: Shape) -> Any:
        known: dict[str, Any] = {}
        for (name, _, _), _, output in self._shapes(input_shapes):
            known[name] = output
        found = [_of(known, source) for source in self.outputs]
        return tuple(found) if len(found) > 1 else found[0]

    def multiply_adds(self, *input_shapes: Shape) -> int | None:
        counts = [leaf.multiply_adds(*shapes) for _, leaf, shapes in self.walk(*input_shapes)]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    def __getstate__(self) -> Any:
        attributes, slots = super().__getstate__()
        return {**attributes, "_plans": {}}, slots

    def _plan(self, *, inference: bool) -> Plan:
        """The plan for the layers as they are: with or without fusion, hooks respected."""
        key: Any = inference, fused.wanted
        plan = self._plans.get(key)
        if plan is None or not plan.is_current():
            hooks = frozenset(hooked(layer for _, layer in self.named_layers()))
            key = (*key, hooks) if hooks else key
            plan = self._plans.get(key)
            if plan is None:
                plan = self._plans[key] = Plan(
                    self, Network._inline, hooks, fusing=fused.wanted, inference=inference
                )
        return plan

    def _enter(self, xs: tuple[Any, ...]) -> tuple[Backend, list[Array]]:
        """The backend to work on, and the inputs on it."""
        if len(xs) == 1 and isinstance(xs[0], tuple | list) and len(self.inputs) > 1:
            xs = tuple(xs[0])
        if len(xs) != len(self.inputs):
            raise TypeError(
                f"this {type(self).__name__} takes {len(self.inputs)} inputs, "
                f"{', '.join(self.inputs)}, got {len(xs)}"
            )
        backend = self.backend
        if backend is None:
            for name, x in zip(self.inputs, xs, strict=True):
                owner_of(name, x)
            backend = backend_of(*xs)
        arrays = []
        for name, x in zip(self.inputs, xs, strict=True):
            arrays.append(x if backend.owns(x) else to_backend(backend, name, x))
        return backend, arrays

    def _grads(self, grads: tuple[Any, ...]) -> tuple[Any, ...]:
        """The gradients of the outputs, given one by one or as a tuple; None for no gradient."""
        count = len(self.outputs)
        if count > 1 and len(grads) == 1 and isinstance(grads[0], tuple | list):
            grads = tuple(grads[0])
        if len(grads) != count:
            raise TypeError(f"backward takes the gradients of {count} outputs, got {len(grads)}")
        return grads

    def _shapes(self, input_shapes: tuple[Shape, ...]) -> Iterator[tuple[Node, Any, Any]]:
        """(node, its input shapes, its output shape) in order."""
        if len(input_shapes) != len(self.inputs):
            raise TypeError(
                f"this {type(self).__name__} has {len(self.inputs)} inputs, "
                f"{', '.join(self.inputs)}, got {len(input_shapes)} shapes"
            )
        known: dict[str, Any] = {
            name: tuple(shape) for name, shape in zip(self.inputs, input_shapes, strict=True)
        }
        for node in self.nodes:
            shapes = [_of(known, source) for source in node.sources]
            known[node.name] = node.layer.output_shape(*shapes)
            yield node, shapes, known[node.name]


class Graph(Network):
    """Layers with names, each with the names of where its inputs come from.

    Args:
        nodes: name → ``(layer, *sources)`` in any order. A source is an input, another node, or
            ``(node, index)`` for one of several outputs of a node.
        inputs: the name of the input, or the names of several.
        outputs: the name of the output, or of several; None is the one node that no other uses.
        seed, backend: as for `Sequential`.

    `forward` and a call take as many arrays as there are inputs (or a tuple of them) and return a
    tuple where there are several outputs; then ``backward`` takes a gradient for each.

    Example:
        >>> import numpy as np, arraycnn as ac
        >>> net = ac.Graph({
        ...     "wide": (ac.Conv2d(3, 8, kernel_size=3, padding=1), "x"),
        ...     "narrow": (ac.Conv2d(3, 8, kernel_size=1), "x"),
        ...     "both": (ac.Concat(), "wide", "narrow"),
        ... }, seed=0)
        >>> net(np.zeros((2, 3, 5, 5), "float32")).shape
        (2, 16, 5, 5)

    Raises:
        TypeError: not as described. ValueError: a cycle, an unknown source, a name used twice, a
            node that nothing uses.
    """

    def __init__(
        self,
        nodes: Mapping[str, Sequence[Any]],
        *,
        inputs: str | Sequence[str] = "x",
        outputs: str | Sequence[Source] | None = None,
        seed: int | None = None,
        backend: BackendLike | None = None,
    ) -> None:
        input_names = _input_names(inputs)
        given = [_node(name, value) for name, value in _items(nodes)]
        _check_names(input_names, [node.name for node in given])
        known = {*input_names, *(node.name for node in given)}
        for node in given:
            for source in node.sources:
                _check_source(f"node {node.name!r}", source, known)
        in_order = _sorted(given, input_names)
        found = _output_names(outputs, given, known)
        _check_used(given, input_names, found)
        self._order = tuple(node.name for node in given)
        self._build(in_order, input_names, found, seed, backend)

    def __getitem__(self, name: str) -> Layer:
        """The layer of a node."""
        for node in self.nodes:
            if node.name == name:
                return node.layer
        raise KeyError(f"there is no node {name!r}; nodes are {', '.join(self._order)}")

    def children(self) -> Iterator[tuple[str, Layer]]:
        layers = {name: layer for name, layer, _ in self.nodes}
        return ((name, layers[name]) for name in self._order)  # as they were given

    def config(self) -> dict[str, Any]:
        nodes = {name: (layer, *sources) for name, layer, sources in self.nodes}
        several = len(self.outputs) > 1
        return {
            "nodes": {name: nodes[name] for name in self._order},
            "inputs": self.inputs if len(self.inputs) > 1 else self.inputs[0],
            "outputs": self.outputs if several else self.outputs[0],
        }

    def __repr__(self) -> str:
        nodes, inputs, outputs = self.config().values()
        lines = "".join(f"\n    {name!r}: {value!r}," for name, value in nodes.items())
        shown = "" if inputs == "x" else f", inputs={inputs!r}"
        return f"Graph({{{lines}\n}}{shown}, outputs={outputs!r})"


def _of(known: Mapping[str, Any], source: Source) -> Any:
    """What is known of a source."""
    if isinstance(source, str):
        return known[source]
    name, index = source
    found = known[name]
    return found[index] if isinstance(found[0], tuple) else found


def _input_names(inputs: Any) -> tuple[str, ...]:
    names = (inputs,) if isinstance(inputs, str) else inputs
    if not isinstance(names, Sequence) or not names or not all(isinstance(n, str) for n in names):
        raise TypeError(f"inputs must be a name or names such as ('x', 'y'), got {inputs!r}")
    return tuple(names)


def _items(nodes: Any) -> list[tuple[Any, Any]]:
    """The nodes as pairs; a list of pairs may name a node twice, which a dict cannot show."""
    if isinstance(nodes, Mapping):
        return list(nodes.items())
    if isinstance(nodes, list | tuple) and all(len(pair) == 2 for pair in nodes):
        return [tuple(pair) for pair in nodes]
    raise TypeError(f"nodes must map names to (layer, *sources), got {nodes!r:.80}")


def _node(name: Any, value: Any) -> Node:
    if not isinstance(name, str) or not all(name.split(".")) or "/" in name or "\0" in name:
        raise TypeError(f"a node's name must be a str such as 'conv1', without '/', got {name!r}")
    if len(name) > MOST_NAME:
        raise ValueError(f"a node's name may have {MOST_NAME} characters, got {len(name)}")
    if isinstance(value, Layer):
        raise TypeError(f"node {name!r} must be (layer, *sources), got a layer without sources")
    good = isinstance(value, tuple | list) and value and isinstance(value[0], Layer)
    if not good:
        raise TypeError(f"node {name!r} must be (layer, *sources), got {value!r:.80}")
    if len(value) < 2:
        raise ValueError(f"node {name!r} has no source; name at least one, e.g. (layer, 'x')")
    sources = tuple(tuple(s) if isinstance(s, list) else s for s in value[1:])
    return Node(name, value[0], sources)


def _check_names(inputs: tuple[str, ...], names: list[str]) -> None:
    if not names:
        raise ValueError("nodes is empty: a Graph needs at least one node")
    taken: set[str] = set()
    for name in (*inputs, *names):
        if name in taken:
            raise ValueError(f"the name {name!r} is used twice")
        taken.add(name)
    nodes = set(names)
    for name in names:
        parts = name.split(".")
        for length in range(1, len(parts)):
            above = ".".join(parts[:length])
            if above in nodes:
                raise ValueError(
                    f"the name {name!r} would be one of the parts of node {above!r}; rename one"
                )


def _check_source(user: str, source: Any, known: set[str]) -> None:
    name = source
    if isinstance(source, tuple):
        good = len(source) == 2 and type(source[1]) is int and source[1] >= 0
        name = source[0] if good else None
    if not isinstance(name, str):
        raise TypeError(f"a source of {user} must be a name or (name, index), got {source!r}")
    if name not in known:
        raise ValueError(
            f"{user} takes {name!r}, which is neither an input nor a node; there are "
            f"{', '.join(sorted(known)):.200}"
        )


def _name(source: Source) -> str:
    return source if isinstance(source, str) else source[0]


def _output_names(outputs: Any, nodes: list[Node], known: set[str]) -> tuple[Source, ...]:
    if outputs is None:
        used = {_name(source) for node in nodes for source in node.sources}
        free = [node.name for node in nodes if node.name not in used]
        if len(free) != 1:
            raise ValueError(
                f"outputs=None is the one node that no other uses, but there are "
                f"{', '.join(map(repr, free[:10]))}; name them, e.g. outputs={tuple(free[:2])!r}"
            )
        return (free[0],)
    if isinstance(outputs, str) or (len(outputs) == 2 and isinstance(outputs[1], int)):
        outputs = (outputs,)
    found = tuple(tuple(s) if isinstance(s, list) else s for s in outputs)
    if not found:
        raise ValueError("outputs is empty; name at least one node")
    names = {node.name for node in nodes}
    for source in found:
        _check_source("outputs", source, known)
        if _name(source) not in names:
            raise ValueError(f"outputs names {source!r}, which is an input; use Identity() on it")
    return found


def _check_used(nodes: list[Node], inputs: Sequence[str], outputs: Sequence[Source]) -> None:
    used = {_name(source) for node in nodes for source in node.sources}
    used |= {_name(source) for source in outputs}
    for kind, names in (("input", inputs), ("node", [node.name for node in nodes])):
        for name in names:
            if name not in used:
                raise ValueError(f"{kind} {name!r} is used by no node and is no output; remove it")


def _sorted(nodes: list[Node], inputs: Sequence[str]) -> list[Node]:
    """The nodes in an order in which each comes after its sources, else as they were given."""
    users: dict[str, list[int]] = {name: [] for name in (*inputs, *(node.name for node in nodes))}
    missing = []  # how many nodes each still waits for
    for number, node in enumerate(nodes):
        above = {_name(source) for source in node.sources} - set(inputs)
        missing.append(len(above))
        for name in above:
            users[name].append(number)
    ready = [number for number, count in enumerate(missing) if not count]  # a heap
    order = []
    while ready:
        node = nodes[heappop(ready)]
        order.append(node)
        for number in users[node.name]:
            missing[number] -= 1
            if not missing[number]:
                heappush(ready, number)
    if len(order) < len(nodes):
        waiting = ", ".join(node.name for node, count in zip(nodes, missing, strict=True) if count)
        raise ValueError(f"the nodes {waiting:.200} wait for each other in a cycle")
    return order
