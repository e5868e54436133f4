"""What a trainer takes: a model and its optimizer, and batches (inputs, targets) as data."""

from collections.abc import Iterable
from typing import Any, TypeAlias

from arraycnn.layers.layer import Layer
from arraycnn.optim import Optimizer

Batch: TypeAlias = tuple[Any, Any]  # arrays, or tuples of arrays where a network has several
Batches: TypeAlias = Iterable[Batch]


def check_model(model: Any, optimizer: Any) -> None:
    """Refuse an optimizer of other parameters than the model's."""
    if not isinstance(model, Layer):
        raise TypeError(f"model must be a layer such as Sequential, got {type(model).__name__}")
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            "optimizer must be an optimizer such as SGD(model.parameters(), lr=0.1), got "
            f"{type(optimizer).__name__}"
        )
    known = {id(parameter) for parameter in model.parameters()}
    strangers = [i for i, p in enumerate(optimizer.parameters) if id(p) not in known]
    if len(strangers) == len(optimizer.parameters):
        raise ValueError(
            "optimizer has none of the parameters of model and cannot train it; make it with "
            "model.parameters()"
        )
    if strangers:
        raise ValueError(
            f"optimizer has parameters that model does not have (numbers {strangers}), which would "
            "be updated without a gradient of their own; make it with model.parameters()"
        )


_FUNCTIONS = {
    "loss": "a function of (outputs, targets)",
    "step": "a function of (inputs, targets) or None",
    "schedule": "a function of the step or None; for a fixed rate set the optimizer's lr",
}


def check_functions(**functions: Any) -> None:
    """Refuse what cannot be called; the step and the schedule may be None."""
    for name, function in functions.items():
        if not callable(function) and (function is not None or name == "loss"):
            raise TypeError(f"{name} must be {_FUNCTIONS[name]}, got {function!r}")


def as_batches(name: str, data: Any, batch_size: int = 256) -> Batches:
    """``data`` if it is batches already, else slices of its two arrays.

    Raises:
        ValueError: arrays of unequal lengths. TypeError: nothing that gives batches.
    """
    if not isinstance(data, tuple):
        return check_loader(name, data)
    arrays = [array for part in data for array in (part if isinstance(part, tuple) else (part,))]
    lengths = [len(array) for array in arrays]
    if len(data) != 2 or len(set(lengths)) != 1:
        raise ValueError(
            f"{name} must be (inputs, targets) of equal lengths or batches of them, got a tuple "
            f"of lengths {lengths}"
        )
    return [
        (_cut(data[0], start, batch_size), _cut(data[1], start, batch_size))
        for start in range(0, lengths[0], batch_size)
    ]


def check_loader(name: str, loader: Any) -> Batches:
    """``loader`` if it can give batches."""
    if isinstance(loader, dict | tuple) or not hasattr(loader, "__iter__"):
        raise TypeError(
            f"{name} must give batches (inputs, targets), got {type(loader).__name__}; use "
            "DataLoader(images, labels, batch_size, shuffle=True)"
        )
    return loader  # type: ignore[no-any-return]


def check_batch(name: str, batch: Any) -> Batch:
    """``batch`` if it is one: inputs and targets."""
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch  # type: ignore[return-value]
    got = type(batch).__name__
    if isinstance(batch, tuple | list):
        got = f"a {got} of {len(batch)}"
    elif hasattr(batch, "shape"):
        got = f"one array of shape {tuple(batch.shape)}"
    raise TypeError(
        f"{name} must give batches (inputs, targets), got {got}; two arrays are given as a tuple, "
        "(images, labels), several inputs of a network as a tuple in the place of inputs"
    )


def _cut(part: Any, start: int, size: int) -> Any:
    if isinstance(part, tuple):
        return tuple(array[start : start + size] for array in part)
    return part[start : start + size]
