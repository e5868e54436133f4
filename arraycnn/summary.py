"""A table of what a network consists of and costs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from arraycnn.arguments import as_shape
from arraycnn.arrays import Shape
from arraycnn.layers.layer import Layer


@dataclass(frozen=True)
class Row:
    """One layer: its output, parameters and cost for the given input shape."""

    name: str
    layer: str
    output_shape: Shape
    parameters: int
    multiply_adds: int | None
    activation_bytes: int
    workspace_bytes: int


@dataclass(frozen=True)
class Summary:
    """What `summary` returns; prints as a table.

    Attributes:
        rows: one per layer. input_shapes: for which sizes and costs hold; input_shape, the first.
        parameters: trained numbers in all, shared ones counted once.
        multiply_adds: of one forward pass; None where a layer of your own, made of layers, does
            not say. activation_bytes: of all outputs together.
        workspace_bytes: of the largest column matrix.
    """

    rows: tuple[Row, ...]
    input_shapes: tuple[Shape, ...]
    parameters: int

    @property
    def input_shape(self) -> Shape:
        return self.input_shapes[0]

    @property
    def multiply_adds(self) -> int | None:
        known = [row.multiply_adds for row in self.rows if row.multiply_adds is not None]
        return sum(known) if len(known) == len(self.rows) else None

    @property
    def activation_bytes(self) -> int:
        return sum(row.activation_bytes for row in self.rows)

    @property
    def workspace_bytes(self) -> int:
        return max((row.workspace_bytes for row in self.rows), default=0)

    def __str__(self) -> str:
        head = ("", "layer", "output shape", "parameters", "multiply-adds", "activations",
                "workspace")  # fmt: skip
        body = [
            (row.name, row.layer, str(row.output_shape), f"{row.parameters:,}",
             _count(row.multiply_adds), _bytes(row.activation_bytes), _bytes(row.workspace_bytes))
            for row in self.rows
        ]  # fmt: skip
        total = ("", "total", "", f"{self.parameters:,}", _count(self.multiply_adds),
                 _bytes(self.activation_bytes), _bytes(self.workspace_bytes))  # fmt: skip
        table = [head, *body, total]
        widths = [max(len(line[column]) for line in table) for column in range(len(head))]
        lines = [
            "  ".join(
                cell.ljust(width) if column < 3 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in table
        ]
        rule = "─" * max(map(len, lines))
        return "\n".join(
            [
                f"input {' and '.join(map(str, self.input_shapes))}",
                lines[0],
                rule,
                *lines[1:-1],
                rule,
                lines[-1],
            ]
        )


def summary(model: Layer, input_shape: Shape, *others: Shape) -> Summary:
    """Layer, output shape, parameters, multiply-adds, activation and workspace bytes of a network.

    Args:
        model: any layer. input_shape: (N, C, *S), batch included.
        others: the shapes of further inputs, where the network has several.

    Raises:
        ValueError: the shape does not fit; the message is the first failing layer's.
        TypeError: not a layer, or sizes that are no ints.
    """
    if not isinstance(model, Layer):
        raise TypeError(f"model must be a layer, got {model!r}")
    shapes = tuple(map(_input_shape, (input_shape, *others)))
    model.output_shape(*shapes)  # refuses what does not fit together
    itemsize = 4 if model.dtype is None else model.dtype.itemsize
    rows = []
    for name, layer, given in model.walk(*shapes):
        output = layer.output_shape(*given)
        rows.append(
            Row(
                name=name,
                layer=repr(layer),
                output_shape=output,
                parameters=sum(p.size for p in layer.parameters()),
                multiply_adds=layer.multiply_adds(*given),
                activation_bytes=_elements(output) * itemsize,
                workspace_bytes=layer.workspace_bytes(*given),
            )
        )
    return Summary(tuple(rows), shapes, sum(p.size for p in model.parameters()))


def _input_shape(shape: Shape) -> Shape:
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        raise TypeError(
            f"input_shape must be (N, C, *S), batch included, e.g. (1, 3, 32, 32), got {shape!r}"
        )
    return as_shape("input_shape", shape, len(shape))


def _elements(shape: Any) -> int:
    """Numbers in an output, or in several."""
    if shape and isinstance(shape[0], tuple):
        return sum(map(_elements, shape))
    return math.prod(shape)


def _count(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"


def _bytes(count: int) -> str:
    if count < 1 << 20:
        return f"{count / (1 << 10):.1f} KiB"
    return f"{count / (1 << 20):.1f} MiB"
