"""Networks and schedules as plain data and back: names from an allow-list, never an import.

{"class": "Conv2d", "config": {"in_channels": 1, …}}   an object and its constructor's arguments
{"again": 3}                                            the object begun as number 3, shared
{"float": "-inf"}                                       what JSON has no number for
{"items": [["conv", […]], …]}                           a dict, in its order
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from arraycnn import layers, models, schedules
from arraycnn.errors import CheckpointError
from arraycnn.layers.layer import Layer

MAX_OBJECTS = 10_000  # layers of a network, each counted as often as it stands in it
MAX_DEPTH = 90  # of what stands in what: three levels for a Sequential, six for a Graph
MAX_TEXT = 200  # characters of somebody else's message
PLACEMENT = ("seed", "backend", "dtype")  # arguments that a configuration does not hold

_SCHEDULES = {
    name: value
    for name, value in vars(schedules).items()
    if isinstance(value, type)
    and dataclasses.is_dataclass(value)
    and value.__module__ == schedules.__name__
}
_LAYERS = {
    name: value
    for room in (layers, models)
    for name in room.__all__
    if isinstance(value := getattr(room, name), type)
    and issubclass(value, Layer)
    and not inspect.isabstract(value)
}


def describe(thing: Any) -> dict[str, Any]:
    """A layer or schedule as plain data.

    Raises:
        TypeError, AttributeError: its configuration is not plain data. ValueError: it has more
            layers, or deeper ones, than may be loaded.
    """
    data: dict[str, Any] = _Encoder().encode(thing)
    _check_size(data)
    return data


def is_schedule(thing: Any) -> bool:
    """Whether `build_schedule` can rebuild it (but for the schedules inside it)."""
    return _SCHEDULES.get(type(thing).__name__) is type(thing)


def build_schedule(data: Any) -> Any:
    """The schedule that `describe` described.

    Raises:
        CheckpointError: not one of ours, or arguments that it refuses.
    """
    return _Decoder(_SCHEDULES, "schedule").decode_object(data)


def build_model(data: Any, classes: Iterable[type[Layer]] = ()) -> Layer:
    """The network that `describe` described, on the CPU, its parameters without values.

    Args:
        classes: the caller's own layers that may be built, by their names.

    Raises:
        CheckpointError: a class that is neither ours nor in ``classes``, or arguments that it
            refuses. TypeError, ValueError: ``classes`` are not layers, or named like one of ours.
    """
    allowed = dict(_LAYERS)
    for cls in classes:
        if not (isinstance(cls, type) and issubclass(cls, Layer)):
            raise TypeError(f"classes must be subclasses of Layer, got {cls!r}")
        if allowed.setdefault(cls.__name__, cls) is not cls:
            raise ValueError(f"classes has a second layer named {cls.__name__}; rename it")
    layer = _Decoder(allowed, "model").decode_object(data)
    if not isinstance(layer, Layer):
        raise CheckpointError(f"meta: model must be a layer, got {layer!r}")
    return layer


class _Encoder:
    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}

    def encode(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | str | int):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {"float": repr(float(value))}
        if isinstance(value, np.integer | np.floating):
            return self.encode(value.item())
        if isinstance(value, list | tuple):
            return [self.encode(item) for item in value]
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return {"items": [[key, self.encode(item)] for key, item in value.items()]}
        if isinstance(value, Layer):
            return self._object(value, value.config())
        if is_schedule(value):
            fields = [field.name for field in dataclasses.fields(value)]
            return self._object(value, {name: getattr(value, name) for name in fields})
        raise TypeError(f"{value!r} of type {type(value).__name__} is not plain data")

    def _object(self, value: Any, config: Mapping[str, Any]) -> dict[str, Any]:
        number = self._numbers.get(id(value))
        if number is not None:
            return {"again": number}
        self._numbers[id(value)] = len(self._numbers)
        encoded = {name: self.encode(item) for name, item in config.items()}
        return {"class": type(value).__name__, "config": encoded}


class _Decoder:
    def __init__(self, allowed: Mapping[str, type], what: str) -> None:
        self._allowed = allowed
        self._what = what
        self._objects: list[Any] = []

    def decode_object(self, data: Any) -> Any:
        if not isinstance(data, dict):
            raise self._error(f"must be an object, got {data!r:.80}")
        try:
            _check_size(data)
        except ValueError as error:
            raise self._error(str(error)) from None
        return self._decode(data)

    def _decode(self, data: Any) -> Any:
        if isinstance(data, list):
            return tuple(self._decode(item) for item in data)
        if not isinstance(data, dict):
            return data
        if data.keys() == {"class", "config"}:
            return self._object(data["class"], data["config"])
        if data.keys() == {"again"}:
            return self._again(data["again"])
        if data.keys() == {"float"} and data["float"] in ("inf", "-inf", "nan"):
            return float(data["float"])
        if data.keys() == {"items"}:
            return self._dict(data["items"])
        raise self._error(f"expected 'class' and 'config', got an object with {sorted(data)!r:.80}")

    def _object(self, name: Any, config: Any) -> Any:
        if not isinstance(name, str) or name not in self._allowed:
            raise self._error(
                f"the class {name!r:.80} is not allowed; if it is yours, pass it as "
                f"load_model(..., classes=(YourLayer,)). Known are {', '.join(self._allowed)}"
            )
        if not isinstance(config, dict):
            raise self._error(f"the config of {name} must be an object, got {config!r:.80}")
        number = len(self._objects)
        self._objects.append(None)
        arguments = {key: self._decode(item) for key, item in config.items()}
        try:
            self._objects[number] = built = _construct(self._allowed[name], arguments)
        except (TypeError, ValueError, ArithmeticError, MemoryError, RecursionError) as error:
            raise self._error(f"{name} cannot be built: {error!s:.{MAX_TEXT}}") from error
        return built

    def _dict(self, items: Any) -> dict[str, Any]:
        good = isinstance(items, list) and all(
            isinstance(item, list) and len(item) == 2 and isinstance(item[0], str) for item in items
        )
        if not good or len({key for key, _ in items}) != len(items):
            raise self._error(f"'items' must be pairs with different names, got {items!r:.80}")
        return {key: self._decode(item) for key, item in items}

    def _again(self, number: Any) -> Any:
        known = isinstance(number, int) and 0 <= number < len(self._objects)
        if not known or self._objects[number] is None:
            raise self._error(f"'again' must number a finished object, got {number!r:.80}")
        return self._objects[number]

    def _error(self, message: str) -> CheckpointError:
        return CheckpointError(f"meta: {self._what}: {message}")


def _check_size(data: Any) -> None:
    """Refuse a description of too many layers, or too deep ones, before any is built.

    A layer counts as often as it stands in the network: "again" doubles it with few bytes.
    """
    sizes: list[tuple[int, int]] = []  # of each object: the layers in it, how deep it is

    def size(data: Any) -> tuple[int, int]:
        if not isinstance(data, dict | list):
            return 0, 0
        if isinstance(data, dict) and data.keys() == {"again"}:
            number = data["again"]
            return sizes[number] if type(number) is int and 0 <= number < len(sizes) else (0, 0)
        built = isinstance(data, dict) and "class" in data
        number = len(sizes)
        sizes.extend([(0, 0)] * built)
        found = [size(part) for part in (data.values() if isinstance(data, dict) else data)]
        layers = built + sum(layers for layers, _ in found)
        depth = 1 + max((depth for _, depth in found), default=0)
        if layers > MAX_OBJECTS:
            raise ValueError(f"more than the {MAX_OBJECTS} layers allowed")
        if depth > MAX_DEPTH:
            raise ValueError(f"nested {depth} deep, {MAX_DEPTH} are allowed")
        if built:
            sizes[number] = layers, depth
        return layers, depth

    size(data)


def _construct(cls: type, arguments: dict[str, Any]) -> Any:
    parameters = inspect.signature(cls).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    any_name = inspect.Parameter.VAR_KEYWORD in kinds
    unknown = [
        name for name in arguments if name in PLACEMENT or not (any_name or name in parameters)
    ]
    if unknown:
        raise TypeError(f"unknown arguments {unknown!r:.80}")
    positional: list[Any] = []
    if inspect.Parameter.VAR_POSITIONAL in kinds:  # what stands before it must be positional too
        for name, parameter in parameters.items():
            if parameter.kind is parameter.VAR_POSITIONAL:
                positional += arguments.pop(name, ())
                break
            if name in arguments:
                positional.append(arguments.pop(name))
    if _LAYERS.get(cls.__name__) is not cls:
        return cls(*positional, **arguments)
    # Values come from the file, so none are drawn: that would take as long as a hostile
    # configuration likes, while memory that is never touched costs nothing.
    layer = _without_values(cls)(*positional, **arguments)
    object.__setattr__(layer, "__class__", cls)
    return layer


@functools.cache
def _without_values(cls: type) -> Any:
    return type(cls.__name__, (cls,), {"initialize": lambda self, seed: None})
