"""How the nodes of a network are run: in order, forward and backward.

A plan is made once. Networks inside of a network are run node by node, as if their nodes were its
own, and neighbours are taken together where `fusion` knows how. A value is dropped after its last
use; where a value is used twice, its gradients are added.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

from arraycnn.arguments import check_forward
from arraycnn.arrays import Array
from arraycnn.backends import Backend
from arraycnn.layers.fusion import TABLE, Fused, fuse, hooked
from arraycnn.layers.layer import Backward, Layer, backward_to_parameters
from arraycnn.layers.state import joined

Source: TypeAlias = str | tuple[str, int]  # a name, or one of the several outputs of a node
Value: TypeAlias = tuple[str, int | None]  # the path of what makes it, and which of its outputs
Place: TypeAlias = tuple[int, int | None]  # the number of a value, and which of its parts


class Node(NamedTuple):
    """A layer of a network and where its inputs come from."""

    name: str
    layer: Layer
    sources: tuple[Source, ...]


class Nodes(Protocol):
    """What has nodes that can be run one by one."""

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[Source, ...]


class Step(NamedTuple):
    """Layers that are run at once: which values they take and make."""

    name: str
    layer: Layer  # whose forward it is, where nothing is fused
    fused: Callable[..., Any] | None
    members: tuple[Layer, ...]
    sources: tuple[Place, ...]
    target: int
    dropped: tuple[int, ...]  # values that nobody uses any more

    def trains(self) -> bool:
        """Whether there is a parameter that wants a gradient."""
        return any(p.requires_grad for one in self.members for _, p in one.named_parameters())

    def error(self, what: str) -> TypeError:
        """What is wrong with the layer's backward."""
        return TypeError(f"{self.name}: the backward of {self.layer!r} {what}")


class Run(NamedTuple):
    """A step that was run: its backward and, instead of its inputs, their shapes and dtypes."""

    step: Step
    backward: Backward
    inputs: list[tuple[Any, Any]]
    outputs: int  # how many, where they are a tuple, else 0


class Plan:
    """The steps of a network, for training or inference.

    Args:
        network: whose nodes to run.
        inline: which classes of layers are networks whose nodes are run one by one.
        hooks: ids of layers that are to be called as they are.
        fusing: whether to use the table of `fusion`.
    """

    def __init__(
        self,
        network: Nodes,
        inline: frozenset[type],
        hooks: frozenset[int],
        *,
        fusing: bool,
        inference: bool,
    ) -> None:
        self.watched: list[Layer] = []  # a method replaced on one of them would be passed over
        flat: list[_Item] = []
        inputs: list[Value] = [(name, None) for name in network.inputs]
        outputs = self._flatten(network, inputs, inline, hooks, flat)
        if fusing:
            flat = self._fuse(flat, outputs, hooks, inference)
        numbers = {name: number for number, name in enumerate(network.inputs)}
        numbers |= {item.path: number for number, item in enumerate(flat, len(numbers))}
        last = {path: index for index, item in enumerate(flat) for path, _ in item.sources}
        results = {path for path, _ in outputs}
        self.size = len(numbers)
        uses = Counter(path for item in flat for path, _ in item.sources)
        self.shared = [place for place, name in enumerate(network.inputs) if uses[name] > 1]
        self.outputs: list[Place] = [(numbers[path], which) for path, which in outputs]
        self.steps = [
            Step(
                name=item.path,
                layer=item.work.layer,
                fused=item.work.call(inference=inference),
                members=item.work.members,
                sources=tuple((numbers[path], which) for path, which in item.sources),
                target=numbers[item.path],
                dropped=tuple(
                    numbers[path]
                    for path in dict.fromkeys(path for path, _ in item.sources)
                    if last[path] == index and path not in results
                ),
            )
            for index, item in enumerate(flat)
        ]

    def is_current(self) -> bool:
        """Whether no method was replaced on a layer that this plan does not call by itself."""
        return not hooked(self.watched)

    def enter(self, backend: Backend, xs: list[Array]) -> None:
        """Bring inputs that are used more than once to batch-last memory, once for all."""
        for place in self.shared:
            xs[place] = backend.batch_last(xs[place])

    def infer(self, xs: Sequence[Array]) -> list[Array]:
        """The outputs of inference."""
        values: list[Any] = [*xs, *[None] * len(self.steps)]
        for step in self.steps:
            taken = []
            for number, part in step.sources:
                taken.append(values[number] if part is None else values[number][part])
            values[step.target] = (step.fused or step.layer)(*taken)
            for number in step.dropped:
                values[number] = None
        return [values[n] if part is None else values[n][part] for n, part in self.outputs]

    def forward(self, xs: Sequence[Array]) -> tuple[list[Array], list[Run]]:
        """The outputs of a training pass, and what backward needs."""
        values: list[Any] = [*xs, *[None] * len(self.steps)]
        runs = []
        for step in self.steps:
            taken, inputs = [], []
            for number, part in step.sources:
                x = values[number] if part is None else values[number][part]
                taken.append(x)
                inputs.append((x.shape, x.dtype))
            if step.fused is not None:
                y, backward = step.fused(*taken)
            else:
                result = step.layer.forward(*taken)
                y, backward = check_forward(f"{step.name}: {type(step.layer).__name__}", result)
            values[step.target] = y
            runs.append(Run(step, backward, inputs, len(y) if type(y) is tuple else 0))
            for number in step.dropped:
                values[number] = None
        return [values[n] if part is None else values[n][part] for n, part in self.outputs], runs

    def backward(
        self, backend: Backend, runs: list[Run], grads: Sequence[Any], input_grad: bool
    ) -> list[Array | None]:
        """The gradients of the inputs, None where there are none; adds those of parameters."""
        found: list[Any] = [None] * self.size  # gradients of values, dropped after their use
        wanted = [True] * self.size if input_grad else self._wanted()
        parts = {run.step.target: run.outputs for run in runs if run.outputs}
        for (number, part), grad in zip(self.outputs, grads, strict=True):
            _add(backend, found, number, part, grad, parts)
        for step, backward, inputs, outputs in reversed(runs):
            grad = found[step.target]
            if grad is None or not wanted[step.target]:
                continue
            found[step.target] = None
            if outputs:
                grad = tuple(grad)
            above = False
            for number, _ in step.sources:
                above = above or wanted[number]
            if not above:
                backward_to_parameters(step.layer, backward, grad)
                continue
            result = backward(grad)
            given = result if type(result) is tuple else (result,)
            if len(given) != len(inputs):
                raise step.error(f"returned {len(given)} gradients for {len(inputs)} inputs")
            for (number, part), (shape, dtype), one in zip(step.sources, inputs, given):  # noqa: B905 (as long as checked)
                if getattr(one, "shape", None) != shape or one.dtype != dtype:
                    raise step.error(
                        f"must return an array of shape {tuple(shape)} and dtype {dtype}, like its "
                        f"input, got {_described(one)}"
                    )
                if not wanted[number]:
                    continue
                if part is None and found[number] is None:
                    found[number] = one
                else:
                    _add(backend, found, number, part, one, parts)
        return found[: self.size - len(self.steps)]

    def _wanted(self) -> list[bool]:
        """For each value, whether its gradient leads to a parameter."""
        wanted = [False] * self.size
        for step in self.steps:
            for number, _ in step.sources:
                if wanted[number]:
                    wanted[step.target] = True
                    break
            else:
                wanted[step.target] = step.trains()
        return wanted

    def _flatten(
        self,
        network: Nodes,
        inputs: Sequence[Value],
        inline: frozenset[type],
        hooks: frozenset[int],
        flat: "list[_Item]",
        prefix: str = "",
    ) -> list[Value]:
        """Add the nodes to ``flat``, those of inner networks too; returns the outputs' values."""
        values: dict[str, list[Value]] = {
            name: [value] for name, value in zip(network.inputs, inputs, strict=True)
        }
        for name, layer, sources in network.nodes:
            taken = [_resolved(values, source) for source in sources]
            path = joined(prefix, name)
            if type(layer) in inline and id(layer) not in hooks:
                self.watched.append(layer)
                inner: Any = layer
                values[name] = self._flatten(inner, taken, inline, hooks, flat, path)
            else:
                flat.append(_Item(path, Fused(layer, members=(layer,)), taken))
                values[name] = [(path, None)]
        return [_resolved(values, source) for source in network.outputs]

    def _fuse(
        self,
        flat: "list[_Item]",
        outputs: Sequence[Value],
        hooks: frozenset[int],
        inference: bool,
    ) -> "list[_Item]":
        """Take neighbours together where the value between them has no other use."""
        uses = Counter(path for item in flat for path, _ in item.sources)
        uses.update(path for path, _ in outputs)
        for row in TABLE:
            if row.inference_only and not inference:
                continue
            left = {item.path: item for item in flat}
            for item in flat:
                (path, part), *others = item.sources
                first = left.get(path)
                if first is None or part is not None or others or uses[path] != 1:
                    continue
                members = first.work.members + item.work.members
                if hooks.isdisjoint(map(id, members)):
                    work = fuse(row, first.work, item.work)
                    if work is not None:
                        item.work, item.sources = work, first.sources
                        del left[path]
            flat = list(left.values())
        for item in flat:
            if len(item.work.members) > 1:
                self.watched += item.work.members
        return flat


@dataclass(slots=True)
class _Item:
    """A node on its way into a plan."""

    path: str
    work: Fused
    sources: list[Value]


def _resolved(values: dict[str, list[Value]], source: Source) -> Value:
    """The value that a source names."""
    name, which = (source, None) if isinstance(source, str) else source
    found = values[name]
    if which is None:
        if len(found) > 1:
            raise ValueError(f"{name} has {len(found)} outputs; say which, e.g. ({name!r}, 0)")
        return found[0]
    if len(found) > 1:
        return found[which]
    path, _ = found[0]
    return path, which


def _add(
    backend: Backend, found: list[Any], number: int, part: int | None, grad: Any, parts: Any
) -> None:
    """Add to the gradient of a value, or of one of its parts."""
    if part is not None:
        if found[number] is None:
            found[number] = [None] * parts[number]
        found, number = found[number], part
    old = found[number]
    found[number] = grad if old is None or grad is None else backend.add(old, grad)


def _described(value: Any) -> str:
    if not hasattr(value, "shape"):
        return f"{value!r:.80}"
    return f"an array of shape {tuple(value.shape)} and dtype {value.dtype}"
