"""The stored PyTorch cases: one line of JSON for each, and their numbers end to end in an .npz."""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent
FAMILIES = (
    "conv",
    "conv_complex",
    "conv_transpose",
    "columns",
    "pooling",
    "pooling_adaptive",
    "dense",
    "activation",
    "normalization",
    "loss",
)
STREAMS = {"float64": "floats", "complex128": "floats", "int64": "ints"}


@dataclass(frozen=True)
class StoredCase:
    """Inputs, options and what PyTorch answers; ``layout`` says how inputs lie in memory."""

    id: str
    op: str
    options: dict[str, Any]
    layout: str | None
    arrays: dict[str, np.ndarray]
    expect: dict[str, np.ndarray]


def tuples(value: Any) -> Any:
    """JSON's lists back as the tuples that they were."""
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def load(family: str) -> list[StoredCase]:
    with np.load(FOLDER / f"{family}.npz") as file:
        streams = {name: file[name] for name in file.files}

    def array(reference: list[Any]) -> np.ndarray:
        dtype, start, *shape = reference
        width = 2 if dtype == "complex128" else 1
        flat = streams[STREAMS[dtype]][start : start + prod(shape) * width]
        return flat.view(dtype).reshape(shape).copy()

    return [
        StoredCase(
            line["id"],
            line["op"],
            {key: tuples(value) for key, value in line["options"].items()},
            line["layout"],
            {name: array(reference) for name, reference in line["arrays"].items()},
            {name: array(reference) for name, reference in line["expect"].items()},
        )
        for line in json.loads((FOLDER / f"{family}.json").read_text())
    ]


class Writer:
    """Collects cases and writes them as ``load`` reads them."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.streams: dict[str, list[np.ndarray]] = {"floats": [], "ints": []}
        self.lengths = {"floats": 0, "ints": 0}

    def add(self, case: Any) -> None:
        line = {
            "id": case.id,
            "op": case.op,
            "options": case.options,
            "layout": case.layout,
            "arrays": {name: self._store(array) for name, array in case.arrays.items()},
            "expect": {name: self._store(array) for name, array in case.expect.items()},
        }
        self.lines.append(json.dumps(line))

    def _store(self, array: np.ndarray) -> list[Any]:
        stream = STREAMS[array.dtype.name]
        flat = np.ascontiguousarray(array).reshape(-1)
        flat = flat.view(np.float64 if stream == "floats" else np.int64)
        reference = [array.dtype.name, self.lengths[stream], *array.shape]
        self.streams[stream].append(flat)
        self.lengths[stream] += flat.size
        return reference

    def save(self, family: str) -> None:
        (FOLDER / f"{family}.json").write_text("[\n" + ",\n".join(self.lines) + "\n]\n")
        joined = {name: np.concatenate(parts) for name, parts in self.streams.items() if parts}
        np.savez_compressed(FOLDER / f"{family}.npz", **joined)
