"""What a checkpoint holds: the metadata and the arrays of a model and an optimizer."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from arraycnn.arguments import as_count
from arraycnn.arrays import Array, Shape
from arraycnn.backends import backend_of
from arraycnn.checkpoint.config import describe, is_schedule
from arraycnn.checkpoint.hdf5 import TYPES, Entry
from arraycnn.checkpoint.metadata import plain
from arraycnn.errors import CheckpointError
from arraycnn.layers.layer import Layer
from arraycnn.layers.state import joined, set_part
from arraycnn.optim import Optimizer
from arraycnn.parameters import Parameter, Variable
from arraycnn.version import __version__

FORMAT = "arraycnn checkpoint"
MAX_NAME = 1000  # characters of a parameter's name
MAX_PARTS = 64  # between the dots of it
MOST_LISTED = 10  # names in a message

# What the metadata must have, and of which JSON types.
_FIELDS: dict[str, tuple[type, ...]] = {
    "format": (str,),
    "library": (str,),
    "model": (dict,),
    "dtype": (str, type(None)),
    "params": (dict,),
    "buffers": (dict,),
    "optimizer": (dict, type(None)),
    "schedule": (dict, type(None)),
    "epoch": (int,),
    "step": (int,),
    "loader": (dict, type(None)),
    "random": (dict,),
    "extra": (dict,),
}
_OPTIONAL: dict[str, tuple[type, ...]] = {"tied": (dict,)}
_OPTIMIZER_FIELDS: dict[str, tuple[type, ...]] = {
    "kind": (str,),
    "hyperparameters": (dict,),
    "parameters": (list,),
    "steps": (list,),
    "slots": (list,),
}
# Of an optimizer with groups of parameters, in the order of its parameters.
_GROUPS_FIELDS: dict[str, tuple[type, ...]] = {"groups": (list,), "base_lr": (int, float)}
_GROUP_FIELDS: dict[str, tuple[type, ...]] = {"parameters": (int,), "hyperparameters": (dict,)}


def tensors_of(model: Layer) -> dict[str, Variable]:
    """Parameters and buffers by name, a shared one under its first name only."""
    return dict(model.named_variables(remove_duplicate=True))


def ties_of(model: Layer) -> dict[str, str]:
    """The other names of parameters and buffers that different layers share, with the first."""
    first: dict[int, str] = {}
    ties = {}
    for path, layer in model.named_layers(remove_duplicate=True):
        for name, variable in layer.own_variables():
            full = joined(path, name)
            if first.setdefault(id(variable), full) != full:
                ties[full] = first[id(variable)]
    return ties


def tie(model: Layer, ties: Mapping[str, str]) -> None:
    """Let names stand for one variable again, as `ties_of` found them.

    Raises:
        CheckpointError: a name that is not there, or two of different shapes.
    """
    places = {
        joined(path, name): (layer, name)
        for path, layer in model.named_layers(remove_duplicate=True)
        for name, _ in layer.own_variables()
    }
    for name, first in ties.items():
        if name not in places or first not in places:
            raise CheckpointError(
                f"meta: tied: {name!r:.80} and {first!r:.80} must be in the model"
            )
        (layer, own), (other, its) = places[name], places[first]
        kept = dict(other.own_variables())[its]
        if dict(layer.own_variables())[own].shape != kept.shape:
            raise CheckpointError(f"meta: tied: {name} and {first} have different shapes")
        set_part(layer, own, kept)


def group_of(tensor: Variable) -> str:
    """The group of the file that holds ``tensor``."""
    return "params" if isinstance(tensor, Parameter) else "buffers"


def entry(group: str, name: str, dtype: Any, shape: Shape) -> Entry:
    """The entry for the array ``name`` (dotted)."""
    return Entry(f"{group}/{name.replace('.', '/')}", str(dtype), tuple(shape))


def entry_of(name: str, tensor: Variable) -> Entry:
    """The entry that ``tensor`` of a model needs."""
    return entry(group_of(tensor), name, tensor.dtype, tensor.shape)


def parameter_names(model: Layer, optimizer: Optimizer) -> list[str]:
    """The model's names for the optimizer's parameters, in the optimizer's order.

    Raises:
        ValueError: the optimizer has a parameter that the model does not have.
    """
    names = {id(tensor): name for name, tensor in tensors_of(model).items()}
    strangers = [i for i, p in enumerate(optimizer.parameters) if id(p) not in names]
    if strangers:
        raise ValueError(
            f"optimizer has parameters that model does not have (numbers {strangers}); make it "
            "of the parameters of this model"
        )
    return [names[id(parameter)] for parameter in optimizer.parameters]


def metadata_of(
    model: Layer,
    optimizer: Optimizer | None,
    optimizer_state: Mapping[str, Any] | None,
    *,
    schedule: Any,
    loader: Any,
    epoch: int,
    step: int,
    extra: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The metadata as `checked` accepts it.

    Raises:
        TypeError, ValueError: something that cannot be saved, by name.
    """
    index: dict[str, dict[str, Any]] = {"params": {}, "buffers": {}}
    for name, tensor in tensors_of(model).items():
        if str(tensor.dtype) not in TYPES:
            raise TypeError(f"{name} must be one of {', '.join(TYPES)}, got {tensor.dtype}")
        problem = _name_problem(name)
        if problem:
            raise ValueError(f"{name!r:.200} cannot be saved: {problem}")
        index[group_of(tensor)][name] = [str(tensor.dtype), list(tensor.shape)]
    optimizer_data = None
    if optimizer is not None and optimizer_state is not None:
        optimizer_data = {
            "kind": optimizer_state["kind"],
            "hyperparameters": plain(optimizer_state["hyperparameters"], "hyperparameters"),
            "parameters": parameter_names(model, optimizer),
            "steps": optimizer_state["steps"],
            "slots": list(optimizer_state["slots"]),
        }
        for name in _GROUPS_FIELDS.keys() & optimizer_state.keys():
            optimizer_data[name] = plain(optimizer_state[name], name)
    ties = ties_of(model)
    return {
        "format": FORMAT,
        "library": __version__,
        "model": model_data(model),
        **({"tied": ties} if ties else {}),
        "dtype": None if model.dtype is None else str(model.dtype),
        **index,
        "optimizer": optimizer_data,
        "schedule": schedule_data(schedule),
        "epoch": as_count("epoch", epoch, minimum=0),
        "step": as_count("step", step, minimum=0),
        "loader": None if loader is None else plain(loader.state_dict(), "loader.state_dict()"),
        "random": model.random_state(),
        "extra": {} if extra is None else plain(extra, "extra"),
    }


def model_data(model: Layer) -> dict[str, Any]:
    """The model's configuration, or why it has none."""
    try:
        return describe(model)
    except (AttributeError, TypeError, ValueError) as error:
        return {"problem": str(error)}


def schedule_data(schedule: Any) -> dict[str, Any] | None:
    """A schedule as data; of one that is not ours only the name."""
    if schedule is None:
        return None
    if is_schedule(schedule):
        try:
            return describe(schedule)
        except TypeError:  # a warm-up to a schedule of the user's
            pass
    return {"custom": getattr(schedule, "__name__", type(schedule).__name__)}


def checked(meta: dict[str, Any]) -> dict[str, Any]:
    """``meta`` if it has all fields and no others, of the right types.

    Raises:
        CheckpointError: otherwise; the message names the field.
    """
    fields = _FIELDS | {name: types for name, types in _OPTIONAL.items() if name in meta}
    _check_fields("meta", meta, fields)
    for name, first in meta.get("tied", {}).items():
        if not isinstance(first, str):
            raise CheckpointError(f"meta: tied: {name!r:.80} must be a name, got {first!r:.80}")
    if meta["format"] != FORMAT:
        raise CheckpointError(f"meta: format must be {FORMAT!r}, got {meta['format']!r:.80}")
    for name in ("epoch", "step"):
        if meta[name] < 0:
            raise CheckpointError(f"meta: {name} must be at least 0, got {meta[name]}")
    for group in ("params", "buffers"):
        for name, value in meta[group].items():
            _check_index(f"meta: {group}: {name!r:.80}", name, value)
    if meta["optimizer"] is not None:
        _check_optimizer(meta["optimizer"], meta["params"])
    return meta


def entries_of(meta: Mapping[str, Any]) -> dict[str, Entry]:
    """The model's arrays by name, as the index lists them."""
    return {
        name: entry(group, name, dtype, shape)
        for group in ("params", "buffers")
        for name, (dtype, shape) in meta[group].items()
    }


def slot_entries(meta: Mapping[str, Any]) -> Iterator[tuple[str, str, Entry]]:
    """(slot, parameter's name, entry) of the optimizer's arrays."""
    optimizer = meta["optimizer"]
    if optimizer is None:
        return
    for slot in optimizer["slots"]:
        for name, steps in zip(optimizer["parameters"], optimizer["steps"], strict=True):
            if steps:
                dtype, shape = meta["params"][name]
                yield slot, name, entry(f"optimizer/{slot}", name, dtype, shape)


def listed(names: Sequence[str], separator: str = ", ") -> str:
    """The first names, and how many more there are; what is not printable quoted."""
    shown = [(name if name.isprintable() else repr(name))[:200] for name in names[:MOST_LISTED]]
    more = len(names) - len(shown)
    return separator.join(shown) + (f" and {more} more" if more else "")


def host(array: Array) -> Array:
    """``array`` in host memory."""
    return backend_of(array).to_numpy(array)


def _check_fields(where: str, data: Any, fields: Mapping[str, tuple[type, ...]]) -> None:
    missing = [name for name in fields if name not in data]
    unexpected = [name for name in data if name not in fields]
    if missing or unexpected:
        raise CheckpointError(f"{where}: missing {missing}, unexpected {unexpected!r:.200}")
    for name, types in fields.items():
        value = data[name]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            expected = " or ".join(kind.__name__ for kind in types)
            raise CheckpointError(f"{where}: {name} must be {expected}, got {value!r:.80}")


def _name_problem(name: str) -> str | None:
    """What is wrong with the name of a parameter or buffer."""
    if not all(name.split(".")) or "/" in name or not name.isprintable():
        return "not a dotted name"
    if len(name) > MAX_NAME or name.count(".") >= MAX_PARTS:
        return f"names may have {MAX_NAME} characters and {MAX_PARTS} parts"
    return None


def _check_index(where: str, name: str, value: Any) -> None:
    problem = _name_problem(name)
    if problem:
        raise CheckpointError(f"{where}: {problem}")
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[1], list):
        raise CheckpointError(f"{where} must be [dtype, shape], got {value!r:.80}")
    dtype, shape = value
    if not isinstance(dtype, str) or dtype not in TYPES:
        raise CheckpointError(
            f"{where}: dtype must be one of {', '.join(TYPES)}, got {dtype!r:.80}"
        )
    if len(shape) > 32 or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape):
        raise CheckpointError(
            f"{where}: shape must be up to 32 sizes below 2**48, got {shape!r:.80}"
        )


def _check_optimizer(optimizer: dict[str, Any], params: Mapping[str, Any]) -> None:
    where = "meta: optimizer"
    grouped = "groups" in optimizer
    _check_fields(where, optimizer, _OPTIMIZER_FIELDS | (_GROUPS_FIELDS if grouped else {}))
    names, steps, slots = optimizer["parameters"], optimizer["steps"], optimizer["slots"]
    if not all(isinstance(name, str) and name in params for name in names):
        raise CheckpointError(f"{where}: parameters must be names of params, got {names!r:.200}")
    if len(set(names)) != len(names):
        raise CheckpointError(f"{where}: a parameter is listed twice")
    if len(steps) != len(names) or not all(type(n) is int and n >= 0 for n in steps):
        raise CheckpointError(f"{where}: steps must be {len(names)} counts, got {steps!r:.200}")
    if len(slots) > 16 or not all(isinstance(s, str) and s.isidentifier() for s in slots):
        raise CheckpointError(f"{where}: slots must be up to 16 names, got {slots!r:.200}")
    if len(set(slots)) != len(slots):
        raise CheckpointError(f"{where}: a slot is listed twice")
    if grouped:
        for i, group in enumerate(optimizer["groups"]):
            if not isinstance(group, dict):
                raise CheckpointError(f"{where}: groups[{i}] must be an object, got {group!r:.80}")
            _check_fields(f"{where}: groups[{i}]", group, _GROUP_FIELDS)
        sizes = [group["parameters"] for group in optimizer["groups"]]
        if not all(size > 0 for size in sizes) or sum(sizes) != len(names):
            raise CheckpointError(
                f"{where}: groups must share out {len(names)} parameters, got {sizes!r:.200}"
            )
