"""The first argument of every optimizer: parameters, or groups with hyper-parameters of their own.

Groups are PyTorch's: ``[{"params": [...], "lr": 0.1}, {"params": [...], "weight_decay": 0.0}]``.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

from arraycnn.parameters import Parameter

Parameters: TypeAlias = Iterable[Parameter] | Iterable[Mapping[str, Any]]


class Group(NamedTuple):
    """Parameters and the hyper-parameters that differ for them from the optimizer's."""

    parameters: list[Parameter]
    own: dict[str, Any]


def groups_of(parameters: Any) -> list[Group]:
    """``parameters``, or groups of them, as groups; hyper-parameters are not looked at.

    Raises:
        TypeError: not parameters or groups. ValueError: none, one given twice, a group without
            the key ``"params"``.
    """
    given = _as_list("parameters", parameters)
    if any(isinstance(one, Mapping) for one in given):
        groups = [_group(f"parameters[{i}]", one) for i, one in enumerate(given)]
        names = [f"parameters[{i}]['params']" for i in range(len(groups))]
    else:
        groups, names = [Group(given, {})], ["parameters"]
    places: dict[int, str] = {}
    for name, group in zip(names, groups, strict=True):
        for i, parameter in enumerate(group.parameters):
            place = f"{name}[{i}]"
            if not isinstance(parameter, Parameter):
                raise TypeError(
                    f"{place} must be a Parameter, got {type(parameter).__name__}; pass "
                    "model.parameters()"
                )
            if id(parameter) in places:
                raise ValueError(
                    f"{place} is the same Parameter as {places[id(parameter)]} and would be "
                    "updated twice; pass each once"
                )
            places[id(parameter)] = place
    return groups


def parameter_list(parameters: Iterable[Parameter]) -> list[Parameter]:
    """``parameters`` as a list of at least one `Parameter`, each there once."""
    return [parameter for group in groups_of(parameters) for parameter in group.parameters]


def decay_groups(parameters: Iterable[Parameter]) -> list[dict[str, Any]]:
    """Two groups: weights, and without weight decay what has one dimension: biases and norms.

    Example:
        >>> import arraycnn as ac
        >>> from arraycnn.optim import SGD, decay_groups
        >>> model = ac.Sequential(ac.Conv2d(1, 4, 3), ac.BatchNorm(4), ac.Flatten(), ac.Dense(4, 2))
        >>> SGD(decay_groups(model.parameters()), lr=0.1, weight_decay=5e-4)
        SGD(6 parameters in 2 groups, lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.0005)
    """
    weights: list[Parameter] = []
    vectors: list[Parameter] = []
    for parameter in parameter_list(parameters):
        (weights if len(parameter.shape) > 1 else vectors).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": weights},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _group(name: str, group: Any) -> Group:
    if not isinstance(group, Mapping):
        raise TypeError(
            f"{name} must be a group, a dict with 'params', like the others, got "
            f"{type(group).__name__}"
        )
    own = dict(group)
    if "params" not in own:
        raise ValueError(
            f"{name} must have the key 'params', a list of parameters, got {list(own)}"
        )
    return Group(_as_list(f"{name}['params']", own.pop("params")), own)


def _as_list(name: str, parameters: Any) -> list[Any]:
    if isinstance(parameters, Parameter):
        raise TypeError(f"{name} must be a list of Parameter objects, got one; pass [parameter]")
    if isinstance(parameters, Mapping):
        raise TypeError(f"{name} must be a list of groups, got one dict; pass [group]")
    try:
        result = list(parameters)
    except TypeError:
        raise TypeError(
            f"{name} must be a list of Parameter objects such as model.parameters(), got "
            f"{type(parameters).__name__}"
        ) from None
    if not result:
        raise ValueError(
            f"{name} is empty: there is nothing to train; pass model.parameters() of a model with "
            "at least one convolution or dense layer"
        )
    return result
