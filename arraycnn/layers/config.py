"""A layer's configuration: the arguments of its constructor, as they are now, and its repr."""

import inspect
from collections.abc import Callable
from functools import lru_cache
from numbers import Real
from typing import Any

PLACEMENT = ("seed", "backend", "dtype")  # arguments that say nothing about what is computed
UNKNOWN = type("Unknown", (), {"__repr__": lambda self: "..."})()


@lru_cache(maxsize=1024)
def constructor(layer_class: Any) -> dict[str, inspect.Parameter]:
    """The constructor's arguments but for seed and placement."""
    parameters = inspect.signature(layer_class).parameters
    return {name: item for name, item in parameters.items() if name not in PLACEMENT}


def no_arguments(name: str) -> Callable[[Any], None]:
    """The constructor of a layer without configuration."""

    def __init__(self: Any) -> None:
        pass

    __init__.__qualname__ = f"{name}.__init__"
    __init__.without_arguments = True  # type: ignore[attr-defined]
    return __init__


def is_ours(layer: Any) -> bool:
    """Whether a layer's class is this library's, which keeps arguments under their names."""
    return bool(layer.__class__.__module__.partition(".")[0] == __name__.partition(".")[0])


def config_of(layer: Any) -> dict[str, Any]:
    """The arguments that make a layer like this one.

    Of a class of the user's, what stands in an attribute of the argument's name counts if it is of
    the kind that was given, and else what was given: an argument may be kept under another name or
    in another form.
    """
    parameters = constructor(layer.__class__)
    if is_ours(layer):
        return {name: getattr(layer, name) for name in parameters}
    given = _given(layer)
    values: dict[str, Any] = {}
    for name, parameter in parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            values |= given.get(name, {})
            continue
        now, before = vars(layer).get(name, UNKNOWN), given.get(name, UNKNOWN)
        values[name] = now if _replaces(now, before) else before
    return values


def repr_of(layer: Any) -> str:
    """The expression that makes a layer like this one; an argument that is not known is ``...``."""
    parameters = constructor(layer.__class__)
    shown = []
    for name, value in layer.config().items():
        parameter = parameters.get(name)
        if parameter is None:
            shown.append(f"{name}={value!r}")
        elif parameter.kind is parameter.VAR_POSITIONAL:
            shown += [] if value is UNKNOWN else map(repr, value)
        elif parameter.default is parameter.empty and parameter.kind is not parameter.KEYWORD_ONLY:
            shown.append(repr(value))
        elif not _equal(value, parameter.default):
            shown.append(f"{name}={value!r}")
    return f"{type(layer).__name__}({', '.join(shown)})"


def short(sizes: Any) -> Any:
    """Equal sizes in every dimension as the one int that they were given as."""
    if isinstance(sizes, tuple) and len(set(sizes)) == 1 and isinstance(sizes[0], int):
        return sizes[0]
    return sizes


def _given(layer: Any) -> dict[str, Any]:
    """The constructor's arguments when the layer was made, by name; defaults included."""
    args, kwargs = layer._given
    try:
        bound = inspect.signature(layer.__class__).bind_partial(*args, **kwargs)
    except TypeError:  # the class has changed since
        return {}
    bound.apply_defaults()
    return bound.arguments


def _replaces(now: Any, given: Any) -> bool:
    """Whether an attribute may be the argument of its name, changed since or not."""
    if now is UNKNOWN or given is UNKNOWN or given is None or now is None:
        return now is not UNKNOWN
    numbers = isinstance(now, Real) and isinstance(given, Real)
    both_bool = isinstance(now, bool) == isinstance(given, bool)
    sequences = isinstance(now, list | tuple) and isinstance(given, list | tuple)
    return (numbers and both_bool) or sequences or isinstance(now, type(given))


def _equal(value: Any, default: Any) -> bool:
    try:
        return bool(value is default or value == default)
    except (TypeError, ValueError):  # arrays have no one truth
        return False
