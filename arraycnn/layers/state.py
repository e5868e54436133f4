"""The state of a network: a walk over layers, lists, tuples and dicts, and changes made as one.

A layer may keep its parts in attributes, or in lists, tuples and dicts of them; a part's name is
the path to it, such as ``blocks.0.weight``. What stands at several places is one thing with several
names.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

import numpy as np

from arraycnn.arguments import as_count
from arraycnn.arrays import Array
from arraycnn.backends import Backend, BackendLike, get_backend
from arraycnn.parameters import Variable
from arraycnn.rng import as_seed

_LISTS = (list, tuple, dict)


@lru_cache(maxsize=4096)
def _is(kind: type, cls: type) -> bool:
    return issubclass(cls, kind)  # asking an abstract class itself takes ten times as long


def parts(owner: Any, kind: type) -> Iterator[tuple[str, Any]]:
    """The objects of a class in the attributes of ``owner``, or in lists, tuples and dicts there,
    by path."""
    for name, value in vars(owner).items():
        if _is(kind, value.__class__):
            yield name, value
        elif isinstance(value, _LISTS):
            yield from _inside(value, kind, name)


def _inside(value: Any, kind: type, path: str) -> Iterator[tuple[str, Any]]:
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if _is(kind, item.__class__):
            yield f"{path}.{key}", item
        elif isinstance(item, _LISTS):
            yield from _inside(item, kind, f"{path}.{key}")


def set_part(owner: Any, path: str, value: Any) -> None:
    """Put ``value`` where `parts` found something: in an attribute, a list or a dict.

    Raises:
        TypeError: it is in a tuple.
    """
    name, _, rest = path.partition(".")
    if not rest:
        setattr(owner, name, value)
        return
    holder, keys = getattr(owner, name), rest.split(".")
    for key in keys[:-1]:
        holder = holder[key] if isinstance(holder, dict) else holder[int(key)]
    if isinstance(holder, tuple):
        raise TypeError(f"{path} is in a tuple, which cannot be changed; use a list")
    holder[keys[-1] if isinstance(holder, dict) else int(keys[-1])] = value


def joined(prefix: str, name: str) -> str:
    """Two names as a dotted path; an empty one is left out."""
    return f"{prefix}.{name}" if prefix and name else prefix or name


def layers_in(
    layer: Any, remove_duplicate: bool, prefix: str = "", above: tuple[int, ...] = (),
    visited: set[int] | None = None,
) -> Iterator[tuple[str, Any]]:  # fmt: skip
    """A layer and all inside it, depth first, by path; see `Layer.named_layers`."""
    visited = set() if visited is None else visited
    if id(layer) in above or (remove_duplicate and id(layer) in visited):
        return
    visited.add(id(layer))
    yield prefix, layer
    for name, inner in layer.children():
        path = joined(prefix, name)
        yield from layers_in(inner, remove_duplicate, path, (*above, id(layer)), visited)


def unique(things: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """The named things, each under its first name only."""
    seen: set[int] = set()
    for name, thing in things:
        if id(thing) not in seen:
            seen.add(id(thing))
            yield name, thing


def host_copy(name: str, array: Any) -> Array:
    """A copy in host memory of our array or of anything that NumPy can read, of real numbers."""
    if hasattr(array, "detach"):  # a PyTorch tensor that requires a gradient refuses NumPy
        array = array.detach().cpu()
    if hasattr(array, "get"):
        array = array.get()
    else:
        array = np.asarray(array)
    if array.dtype.kind not in "fiub":
        raise TypeError(
            f"{name} must hold real numbers, got dtype {array.dtype}; convert it first, e.g. to "
            "float32"
        )
    return np.array(array)


def moved(array: Array, source: Backend, target: Backend, dtype: Any) -> Array:
    """The array of ``source`` on ``target``; of ``dtype`` unless that is None."""
    if not target.owns(array):
        array = target.asarray(source.to_numpy(array))
    return array if dtype is None else target.asarray(array, dtype)


def fitting(
    owner: str, variables: Mapping[str, Variable], state: Mapping[str, Any], strict: bool
) -> tuple[list[tuple[Variable, Array]], list[str], list[str]]:
    """The arrays to copy into variables, checked, and the missing and unexpected names.

    A variable with several names needs one of them; more than one must hold the same numbers.
    """
    if not isinstance(state, Mapping):
        raise TypeError(
            f"state must be a mapping of names to arrays, as state_dict() returns, got "
            f"{type(state).__name__}"
        )
    loaded = {name: host_copy(name, state[name]) for name in variables if name in state}
    found: dict[int, str] = {}
    problems = []
    for name, array in loaded.items():
        variable = variables[name]
        first = found.setdefault(id(variable), name)
        if array.shape != variable.shape:
            problems.append(f"{name} has shape {array.shape} instead of {variable.shape}")
        elif first != name and not np.array_equal(array, loaded[first], equal_nan=True):
            problems.append(f"{first} and {name} are one parameter here, but differ in the state")
        else:
            problems += _lost(name, array, variable)
    missing = [name for name, variable in variables.items() if id(variable) not in found]
    unexpected = [name for name in state if name not in variables]
    if strict:
        names = [("missing", missing), ("unexpected", unexpected)]
        problems = [f"{what}: {', '.join(some)}" for what, some in names if some] + problems
    if problems:
        raise ValueError(f"state does not fit this {owner}: {'; '.join(problems)}")
    copies = []
    for name in found.values():
        variable = variables[name]
        copies.append((variable, variable.backend.asarray(loaded[name], variable.dtype)))
    return copies, missing, unexpected


def _lost(name: str, array: Array, variable: Variable) -> list[str]:
    """What an array would lose by conversion: magnitude, or the digits after the point."""
    dtype = variable.dtype
    if dtype.kind == "f":
        largest = np.abs(array[np.isfinite(array)]).max(initial=0) if array.size else 0
        if largest > float(np.finfo(dtype).max):
            return [f"{name} has values up to {largest:g}, beyond {dtype}"]
    elif not np.array_equal(array, np.trunc(array)):
        return [f"{name} must be whole numbers for {dtype}, got {array!r:.80}"]
    return []


def write(copies: Iterable[tuple[Variable, Array]]) -> None:
    """Copy arrays into the arrays of variables, all or none.

    Raises:
        ValueError: an array is read-only; nothing is changed then.
    """
    copies = list(copies)
    for variable, _ in copies:
        flags = getattr(variable.data, "flags", None)
        if not getattr(flags, "writeable", True):
            raise ValueError(
                f"the array of {variable!r} is read-only; give it a writable one, e.g. "
                "parameter.data = parameter.data.copy()"
            )
    for variable, array in copies:
        variable.data[...] = array


def set_streams(layers: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Give random layers the seeds and counters of a random state, all or none."""
    if set(layers) != set(state):
        raise ValueError(
            f"random state is for the layers {sorted(state)}, but this network's random layers are "
            f"{sorted(layers)}"
        )
    streams = {name: _stream(name, state[name]) for name in layers}
    for name, layer in layers.items():
        layer.seed, layer.counter = streams[name]


def _stream(name: str, entry: Any) -> tuple[int, int]:
    """Seed and counter of one layer's entry in a random state."""
    if not isinstance(entry, Mapping) or set(entry) != {"seed", "counter"}:
        raise ValueError(
            f"the random state of layer {name!r} must be a seed and a counter, as random_state() "
            f"returns, got {entry!r}"
        )
    seed, counter = (
        as_count(f"{key} of layer {name!r}", entry[key], minimum=0) for key in ("seed", "counter")
    )
    return seed, counter


def set_frozen(network: Any, pattern: str, frozen: bool) -> None:
    """Freeze the parameters and layers whose names match, or undo it; see `Layer.freeze`."""
    parameters = [p for name, p in network.named_parameters() if fnmatchcase(name, pattern)]
    layers = [
        layer
        for name, layer in network.named_layers()
        if fnmatchcase(name, pattern) and hasattr(layer, "frozen")
    ]
    if not parameters and not layers:
        names = ", ".join(name for name, _ in network.named_parameters())
        raise ValueError(f"pattern {pattern!r} is the name of nothing; parameters are {names}")
    for parameter in parameters:
        parameter.requires_grad = not frozen
    for layer in layers:
        layer.frozen = frozen


def place_and_seed(network: Any, seed: int | None, backend: BackendLike | None) -> None:
    """Bring a network's layers to one backend, and initialise them if there is a seed."""
    if seed is not None:
        seed = as_seed(seed)
    layers = [layer for _, layer in network.named_layers(remove_duplicate=True)]
    inner = [layer.backend for layer in layers if layer.backend is not None]
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
        network.to(backend)
    if seed is not None:
        network.initialize(seed)


class Transaction:
    """A context in which forward passes change layers together, or not at all.

    Running statistics move at its end, unless the block raises or ``keep`` is False; counters of
    random streams move at once, and are moved back in these cases. Transactions inside of another
    one belong to it.
    """

    __slots__ = ("_token", "changes", "counters", "keep")

    def __init__(self, *, keep: bool = True) -> None:
        self.keep = keep
        self.changes: list[Callable[[], None]] = []
        self.counters: list[tuple[Any, int]] = []

    def __enter__(self) -> None:
        outer = _transaction.get()
        self._token = None if outer is not None and self.keep else _transaction.set(self)

    def __exit__(self, kind: Any, *_: object) -> None:
        if self._token is None:
            return
        _transaction.reset(self._token)
        if self.keep and kind is None:
            with _changing:
                for change in self.changes:
                    change()
            return
        with _changing:
            for layer, counter in reversed(self.counters):
                layer.counter = counter


_transaction: ContextVar[Transaction | None] = ContextVar("transaction", default=None)
_changing = threading.Lock()  # forward passes in several threads change a layer one by one


def change(function: Callable[[], None]) -> None:
    """Call ``function``, which changes a layer's state: at the end of the transaction, if any."""
    transaction = _transaction.get()
    if transaction is not None:
        transaction.changes.append(function)
    else:
        with _changing:
            function()


def next_count(layer: Any) -> int:
    """The number of a random layer's next draw, which is counted."""
    transaction = _transaction.get()
    with _changing:
        counter: int = layer.counter
        if transaction is not None:
            transaction.counters.append((layer, counter))
        layer.counter = counter + 1
    return counter
