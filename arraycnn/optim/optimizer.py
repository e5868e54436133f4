"""What all optimizers share: parameters in groups, hyper-parameters, slots, and their state.

A rule is a dataclass whose fields are its hyper-parameters, each of a type that says what it may
be, with two functions of one parameter: `Optimizer.slots` and `Optimizer.update`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import InitVar, dataclass
from typing import Any, NoReturn

import numpy as np

from arraycnn.arguments import as_real, owner_of
from arraycnn.arrays import Array
from arraycnn.backends import Backend
from arraycnn.optim.groups import Group, Parameters, groups_of
from arraycnn.optim.hyperparameters import NonNegative, checks_of
from arraycnn.optim.slots import State, copy_like, slots_like
from arraycnn.parameters import Parameter


@dataclass(eq=False, repr=False)
class _Arguments:
    """The first arguments of every optimizer."""

    parameters: InitVar[Parameters]
    lr: NonNegative


class Optimizer(_Arguments, ABC):
    """Parameters, hyper-parameters, and the slots that an update rule keeps for each parameter.

    A parameter is skipped whose gradient is None or whose ``requires_grad`` is False: its slots and
    its count of updates stay as they are. Every count, slot and hyper-parameter is in `state_dict`.
    Hyper-parameters may be assigned (``optimizer.lr = 0.01``) and are validated like constructor
    arguments.

    Parameters may come in groups, each with any hyper-parameters of its own, as PyTorch takes them:
    ``[{"params": [...], "lr": 0.1}, {"params": [...]}]``. A group's own ``lr`` keeps its ratio to
    the optimizer's, so that a schedule, which assigns ``optimizer.lr``, moves all groups.

    Slots are made at a parameter's first update and follow it to another backend or dtype.

    Example:
        >>> from dataclasses import dataclass
        >>> import arraycnn as ac
        >>> @dataclass(eq=False, repr=False)
        ... class SignSGD(ac.optim.Optimizer):
        ...     @staticmethod
        ...     def update(xp, p, g, *, step, lr):
        ...         p -= lr * xp.sign(g)
        >>> SignSGD(ac.Dense(2, 2).parameters(), lr=0.1)
        SignSGD(2 parameters, lr=0.1)
    """

    @staticmethod
    def slots(*_: Any, **hyperparameters: Any) -> dict[str, float]:
        """The arrays kept beside a parameter by name, and what fills them in the beginning."""
        return {}

    @staticmethod
    @abstractmethod
    def update(*arrays: Any, **options: Any) -> None:
        """Change one parameter: ``update(xp, p, g, *slots, step, **hyperparameters)``, in place.

        ``step`` is the number of this update, from 1. See `arraycnn.backends.reference.updates`.
        """

    @staticmethod
    def check(*_: Any, **hyperparameters: Any) -> None:
        """Refuse hyper-parameters that do not go together."""

    def __post_init__(self, parameters: Parameters) -> None:
        self._groups = [
            Group(group.parameters, self._checked(group.own, f"parameters[{i}]"))
            for i, group in enumerate(groups_of(parameters))
        ]
        self._base_lr = self.lr
        self._states = [State() for _ in self.parameters]
        self._check_groups(self._groups, self._values(), self.lr)

    def __setattr__(self, name: str, value: Any) -> None:
        check = checks_of(type(self)).get(name)
        if check is not None:
            value = check(name, value)
            if "_states" in vars(self):  # else it is being made
                self._check_groups(self._groups, self._values() | {name: value}, self._base_lr)
        super().__setattr__(name, value)

    @property
    def parameters(self) -> list[Parameter]:
        """All parameters, in the order of the indices in `state_dict`."""
        return [parameter for group in self._groups for parameter in group.parameters]

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The constructor's keyword arguments as they are now, JSON-able."""
        return _plain(self._values())

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The groups, each with all its hyper-parameters as they are now; copies."""
        values = self._values()
        return [
            {"params": list(group.parameters), **self._values_of(group, values, self._base_lr)}
            for group in self._groups
        ]

    def step(self) -> None:
        """Update every parameter that has a gradient, in place.

        Gradient values are not inspected: a NaN gradient makes its parameter NaN.

        Raises:
            ValueError: a gradient without its parameter's shape, or on another backend; a parameter
                that is read-only; an eps that is zero in float16. TypeError: a gradient of another
                dtype, or no array. Nothing has been changed then.
        """
        jobs: dict[tuple[int, int, Backend], list[tuple[Array, ...]]] = {}
        changes = []
        values, states = self._values(), iter(self._states)
        options = [self._values_of(group, values, self._base_lr) for group in self._groups]
        for number, group in enumerate(self._groups):
            start, eps = self.slots(**options[number]), options[number].get("eps")
            for parameter in group.parameters:
                state, data, grad = next(states), parameter.data, parameter.grad
                if grad is None or not parameter.requires_grad:
                    continue
                backend, slots = parameter.backend, state.slots
                dtype, shape, flags = data.dtype, data.shape, getattr(data, "flags", None)
                if (
                    (type(grad) is not type(data) and not backend.owns(grad))
                    or getattr(grad, "device", None) != getattr(data, "device", None)
                    or grad.shape != shape
                    or grad.dtype != dtype
                    or not getattr(flags, "writeable", True)  # only NumPy's may be read-only
                    or (eps is not None and not dtype.type(eps))
                ):
                    self._refuse(parameter, backend, eps)
                if (
                    backend is not state.backend
                    or dtype != state.dtype
                    or shape != state.shape
                    or slots.keys() != start.keys()
                ):
                    slots = slots_like(data, backend, start, slots)
                changes.append((state, slots, backend, dtype, shape))
                job = jobs.setdefault((number, state.steps + 1, backend), [])
                job.append((data, grad, *slots.values()))
        for (number, step, backend), arrays in jobs.items():
            backend.update_parameters(self.update, arrays, step=step, **options[number])
        for state, state.slots, state.backend, state.dtype, state.shape in changes:
            state.steps += 1

    def zero_grad(self) -> None:
        """Drop every parameter's gradient (set it to None)."""
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on, as a snapshot.

        ``kind``, ``hyperparameters`` and ``steps`` (updates so far, per parameter) are JSON-able;
        ``slots`` maps slot name to parameter index to a NumPy array of the parameter's shape, for
        the parameters that have been updated. Of groups there are also ``groups``, with the number
        of ``parameters`` and the own ``hyperparameters`` of each, and ``base_lr``, the lr that
        theirs are relative to.
        """
        start = self._start(self._groups, self._values(), self._base_lr)
        slots: dict[str, dict[int, Array]] = {name: {} for name in start}
        for i, (parameter, state) in enumerate(zip(self.parameters, self._states, strict=True)):
            if state.steps:
                backend = parameter.backend
                own = slots_like(parameter.data, backend, start, state.slots)
                for name, array in own.items():
                    slots[name][i] = np.array(backend.to_numpy(array), order="C")
        result: dict[str, Any] = {
            "kind": type(self).__name__,
            "hyperparameters": self.hyperparameters,
            "steps": [state.steps for state in self._states],
            "slots": slots,
        }
        if self._has_groups():
            result["groups"] = [
                {"parameters": len(group.parameters), "hyperparameters": _plain(group.own)}
                for group in self._groups
            ]
            result["base_lr"] = self._base_lr
        return result

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, bit for bit, hyper-parameters included.

        Slots are copied to their parameter's backend.

        Raises:
            ValueError: another kind of optimizer, another number of parameters, other groups, slots
                missing, unexpected or of another shape, or invalid hyper-parameters. TypeError:
                slots of another dtype than their parameter. The optimizer is unchanged then.
        """
        self.prepare_load(state)()

    def prepare_load(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Do all of `load_state_dict` that can fail; returns a function that does the rest."""
        keys = ["kind", "hyperparameters", "steps", "slots"]
        if self._has_groups():
            keys += ["groups", "base_lr"]
        elif "groups" in state:
            raise ValueError(
                f"state has {len(state['groups'])} groups of parameters, but this optimizer was "
                "made without; give it the groups that were saved"
            )
        _check_keys("state", state, keys)
        if state["kind"] != type(self).__name__:
            raise ValueError(
                f"state is of the optimizer {state['kind']!r} and this one is "
                f"{type(self).__name__!r}; build the optimizer that was saved"
            )
        _check_keys("state['hyperparameters']", state["hyperparameters"], checks_of(type(self)))
        values = self._checked(state["hyperparameters"], "state['hyperparameters']")
        base_lr = as_real("state['base_lr']", state.get("base_lr", values["lr"]))
        groups = self._loaded_groups(state["groups"]) if "groups" in state else self._groups
        self._check_groups(groups, values, base_lr)
        steps = self._loaded_steps(state["steps"])
        states = self._loaded_slots(state["slots"], steps, self._start(groups, values, base_lr))

        def commit() -> None:
            vars(self).update(values, _groups=groups, _base_lr=base_lr, _states=states)

        return commit

    def _values(self) -> dict[str, Any]:
        """The hyper-parameters of the optimizer, as they are kept."""
        own = vars(self)
        return {name: own[name] for name in checks_of(type(self))}

    def _values_of(self, group: Group, values: dict[str, Any], base_lr: float) -> dict[str, Any]:
        """The hyper-parameters of a group where those of the optimizer are ``values``."""
        result = values | group.own
        if "lr" in group.own:
            result["lr"] = group.own["lr"] * (values["lr"] / base_lr)
        return result

    def _start(
        self, groups: list[Group], values: dict[str, Any], base_lr: float
    ) -> dict[str, float]:
        """The slots of all groups, for a state to hold, and what fills them."""
        result: dict[str, float] = {}
        for group in groups:
            result |= self.slots(**self._values_of(group, values, base_lr))
        return result

    def _checked(self, values: Mapping[str, Any], where: str) -> dict[str, Any]:
        checks = checks_of(type(self))
        unknown = [name for name in values if name not in checks]
        if unknown:
            raise ValueError(
                f"{where} has unknown keys {unknown}; a group of {type(self).__name__} has "
                f"'params' and any of {list(checks)}"
            )
        return {name: checks[name](f"{where}[{name!r}]", v) for name, v in values.items()}

    def _check_groups(self, groups: list[Group], values: dict[str, Any], base_lr: float) -> None:
        """Refuse hyper-parameters of the optimizer that do not go with those of its groups."""
        for i, group in enumerate(groups):
            if "lr" in group.own and not base_lr:
                raise ValueError(
                    f"lr must be above 0, got 0.0: parameters[{i}] has an lr of its own, which "
                    "keeps its ratio to it; leave out parameters that are not to be trained"
                )
            try:
                self.check(**self._values_of(group, values, base_lr))
            except ValueError as error:
                where = f"parameters[{i}]: " if self._has_groups() else ""
                raise ValueError(f"{where}{error}") from None

    def _has_groups(self) -> bool:
        return len(self._groups) > 1 or bool(self._groups[0].own)

    def _refuse(self, parameter: Parameter, backend: Backend, eps: float | None) -> NoReturn:
        """Raise the error that says why a parameter cannot be updated."""
        i = next(i for i, other in enumerate(self.parameters) if other is parameter)
        data: Any = parameter.data
        grad: Any = parameter.grad
        if not backend.owns(grad):
            owner = owner_of(f"the gradient of parameter {i}", grad)
            raise ValueError(
                f"the gradient of parameter {i} is on {owner.name}, but the parameter on "
                f"{backend.name}; move the model with model.to(), which moves both"
            )
        if grad.shape != data.shape:
            raise ValueError(
                f"the gradient of parameter {i} must have its shape {tuple(data.shape)}, got "
                f"{tuple(grad.shape)}"
            )
        if grad.dtype != data.dtype:
            raise TypeError(
                f"the gradient of parameter {i} must be {data.dtype} like the parameter, got "
                f"{grad.dtype}; convert it with grad.astype({str(data.dtype)!r})"
            )
        if not getattr(getattr(data, "flags", None), "writeable", True):
            raise ValueError(
                f"the data of parameter {i} is read-only and cannot be updated; give the parameter "
                "a copy: parameter.data = parameter.data.copy()"
            )
        raise ValueError(
            f"eps={eps!r} is zero in {data.dtype}, the dtype of parameter {i}, and a zero "
            "gradient would give NaN; set optimizer.eps to 1e-4, or use model.to(dtype="
            "'float32')"
        )

    def _loaded_groups(self, stored: Any) -> list[Group]:
        for i, group in enumerate(stored):
            _check_keys(f"state['groups'][{i}]", group, ("parameters", "hyperparameters"))
        theirs = [group["parameters"] for group in stored]
        here = [len(group.parameters) for group in self._groups]
        if theirs != here:
            raise ValueError(
                f"state has groups of {theirs} parameters, and this optimizer of {here}; give it "
                "the groups that were saved"
            )
        return [
            Group(ours.parameters, self._checked(group["hyperparameters"], f"state['groups'][{i}]"))
            for i, (ours, group) in enumerate(zip(self._groups, stored, strict=True))
        ]

    def _loaded_steps(self, steps: Any) -> list[int]:
        count = len(self._states)
        if not isinstance(steps, Sequence) or len(steps) != count:
            raise ValueError(
                f"state['steps'] must be a list of {count} update counts, one for each parameter "
                f"of this optimizer, got {steps!r}"
            )
        if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in steps):
            raise ValueError(f"state['steps'] must be non-negative integers, got {steps!r}")
        return list(steps)

    def _loaded_slots(self, slots: Any, steps: list[int], names: Iterable[str]) -> list[State]:
        """The states of all parameters, of copies of ``slots``."""
        updated = [i for i, n in enumerate(steps) if n]
        states = [State(n) for n in steps]
        _check_keys("state['slots']", slots, names)
        for name in names:
            _check_keys(f"state['slots'][{name!r}]", slots[name], updated)
        for i in updated:
            parameter = self.parameters[i]
            for name in names:
                where, value = f"state['slots'][{name!r}][{i}]", slots[name][i]
                if tuple(value.shape) != parameter.shape:
                    raise ValueError(
                        f"{where} must have its parameter's shape {parameter.shape}, got "
                        f"{tuple(value.shape)}"
                    )
                if value.dtype != parameter.dtype:
                    raise TypeError(f"{where} must be {parameter.dtype}, got {value.dtype}")
            states[i].slots = {
                name: copy_like(parameter.data, parameter.backend, slots[name][i]) for name in names
            }
        return states

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.hyperparameters.items())
        count = f"{len(self._states)} parameters"
        groups = f" in {len(self._groups)} groups" if self._has_groups() else ""
        return f"{type(self).__name__}({count}{groups}, {arguments})"


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` as JSON holds them: pairs as lists."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


def _check_keys(name: str, mapping: Any, expected: Iterable[Any]) -> None:
    if not isinstance(mapping, Mapping):
        raise ValueError(f"{name} must be a dict, got {type(mapping).__name__}")
    missing = [k for k in expected if k not in mapping]
    unexpected = [k for k in mapping if k not in set(expected)]
    if missing or unexpected:
        raise ValueError(f"{name}: missing {missing}, unexpected {unexpected}")
