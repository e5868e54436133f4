"""What all optimizers share: parameters, step counts, state arrays, saving and restoring them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from arraycnn.arguments import as_real
from arraycnn.arrays import Array
from arraycnn.backends import Backend, backend_of
from arraycnn.parameters import Parameter


class RealAttribute:
    """A hyper-parameter that is validated by `as_real` whenever it is assigned."""

    def __init__(self, *, below: float = math.inf, positive: bool = False) -> None:
        self._below = below
        self._positive = positive

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> float:
        value: float = vars(instance)[self._name]
        return value

    def __set__(self, instance: Any, value: Any) -> None:
        number = as_real(self._name, value, below=self._below, positive=self._positive)
        vars(instance)[self._name] = number


class Optimizer(ABC):
    """Parameters, learning rate and the slot arrays that an update rule keeps for each parameter.

    A parameter whose gradient is None is skipped, and its slots and its count of updates stay as
    they are. Every count, slot and hyper-parameter is in `state_dict`. Hyper-parameters may be
    assigned (``optimizer.lr = 0.01``) and are validated like constructor arguments.

    Slots are made at a parameter's first update and follow it to another backend or dtype.
    """

    lr = RealAttribute()

    def __init__(self, parameters: Iterable[Parameter], lr: float) -> None:
        self._parameters = parameter_list(parameters)
        self._steps = [0] * len(self._parameters)
        self._slots: dict[str, dict[int, Array]] = {}
        self.lr = lr

    @property
    @abstractmethod
    def hyperparameters(self) -> dict[str, Any]:
        """The constructor's keyword arguments as they are now, JSON-able."""

    @property
    @abstractmethod
    def slot_names(self) -> tuple[str, ...]:
        """Names of the arrays kept for each parameter."""

    @abstractmethod
    def _update(
        self,
        backend: Backend,
        parameters: Sequence[Array],
        gradients: Sequence[Array],
        slots: Sequence[Sequence[Array]],
        step: int,
    ) -> None:
        """Apply the rule in place; ``slots`` is in the order of `slot_names`, ``step`` from 1."""

    @property
    def parameters(self) -> list[Parameter]:
        """The parameters, in the order of the indices in `state_dict`."""
        return list(self._parameters)

    def step(self) -> None:
        """Update every parameter that has a gradient, in place.

        Gradient values are not inspected: a NaN gradient makes its parameter NaN.

        Raises:
            ValueError: a gradient that does not have its parameter's shape, arrays on different
                backends, or an eps that is zero in float16. TypeError: another dtype than the
                parameter's. Nothing has been changed then.
        """
        active = [(i, p.data, p.grad) for i, p in enumerate(self._parameters) if p.grad is not None]
        if not active:
            return
        eps = self.hyperparameters.get("eps")
        for i, data, grad in active:
            _check(i, data, grad, eps)
        backend = backend_of(*(array for _, data, grad in active for array in (data, grad)))
        for name in self._slots.keys() - set(self.slot_names):  # momentum was set to 0
            del self._slots[name]
        by_step: dict[int, list[tuple[int, Array, Array]]] = {}
        for entry in active:
            by_step.setdefault(self._steps[entry[0]] + 1, []).append(entry)
        for step, group in by_step.items():
            indices, parameters, gradients = zip(*group, strict=True)
            slots = [[self._slot(backend, name, i) for i in indices] for name in self.slot_names]
            self._update(backend, parameters, gradients, slots, step)
            for i in indices:
                self._steps[i] = step

    def zero_grad(self) -> None:
        """Drop every parameter's gradient (set it to None)."""
        for parameter in self._parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on, as a snapshot.

        ``kind``, ``hyperparameters`` and ``steps`` (updates so far, per parameter) are JSON-able;
        ``slots`` maps slot name to parameter index to a NumPy array of the parameter's shape, for
        the parameters that have been updated.
        """
        updated = [i for i, n in enumerate(self._steps) if n]
        return {
            "kind": type(self).__name__,
            "hyperparameters": self.hyperparameters,
            "steps": list(self._steps),
            "slots": {
                name: {i: self._host_slot(name, i) for i in updated} for name in self.slot_names
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, bit for bit, hyper-parameters included.

        Slots are copied to their parameter's backend.

        Raises:
            ValueError: another kind of optimizer, another number of parameters, slots missing,
                unexpected or of another shape, or invalid hyper-parameters. TypeError: slots of
                another dtype than their parameter. The optimizer is unchanged then.
        """
        _check_keys("state", state, ("kind", "hyperparameters", "steps", "slots"))
        if state["kind"] != type(self).__name__:
            raise ValueError(
                f"state is of the optimizer {state['kind']!r} and this one is "
                f"{type(self).__name__!r}; build the optimizer that was saved"
            )
        _check_keys("state['hyperparameters']", state["hyperparameters"], self.hyperparameters)
        restored = type(self)(self._parameters, **state["hyperparameters"])
        restored._steps = self._checked_steps(state["steps"])
        restored._slots = self._checked_slots(state["slots"], restored)
        vars(self).update(vars(restored))

    def _checked_steps(self, steps: Any) -> list[int]:
        count = len(self._parameters)
        if not isinstance(steps, Sequence) or len(steps) != count:
            raise ValueError(
                f"state['steps'] must be a list of {count} update counts, one for each parameter "
                f"of this optimizer, got {steps!r}"
            )
        if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in steps):
            raise ValueError(f"state['steps'] must be non-negative integers, got {steps!r}")
        return list(steps)

    def _checked_slots(
        self, slots: Mapping[str, Mapping[int, Array]], restored: "Optimizer"
    ) -> dict[str, dict[int, Array]]:
        updated = [i for i, n in enumerate(restored._steps) if n]
        _check_keys("state['slots']", slots, restored.slot_names)
        result: dict[str, dict[int, Array]] = {}
        for name in restored.slot_names:
            _check_keys(f"state['slots'][{name!r}]", slots[name], updated)
            result[name] = {}
            for i in updated:
                data, value = self._parameters[i].data, slots[name][i]
                where = f"state['slots'][{name!r}][{i}]"
                if tuple(value.shape) != tuple(data.shape):
                    raise ValueError(
                        f"{where} must have its parameter's shape {tuple(data.shape)}, got "
                        f"{tuple(value.shape)}"
                    )
                if value.dtype != data.dtype:
                    raise TypeError(f"{where} must be {data.dtype}, got {value.dtype}")
                result[name][i] = _slot_like(data, value)
        return result

    def _slot(self, backend: Backend, name: str, i: int) -> Array:
        slots = self._slots.setdefault(name, {})
        data = self._parameters[i].data
        if i not in slots:
            slots[i] = backend.xp.zeros_like(data)
        elif slots[i].dtype != data.dtype or not backend.owns(slots[i]):
            slots[i] = _slot_like(data, slots[i])
        return slots[i]

    def _host_slot(self, name: str, i: int) -> Array:
        backend = backend_of(self._parameters[i].data)
        return np.array(backend.to_numpy(self._slot(backend, name, i)), order="C")

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.hyperparameters.items())
        return f"{type(self).__name__}({len(self._parameters)} parameters, {arguments})"


def _check(i: int, data: Array, grad: Array, eps: float | None) -> None:
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
    if eps is not None and data.dtype.type(eps) == 0:
        raise ValueError(
            f"eps={eps!r} is zero in {data.dtype}, the dtype of parameter {i}, and a zero "
            "gradient would give NaN; set optimizer.eps to 1e-4, or use model.to(dtype="
            "'float32')"
        )


def parameter_list(parameters: Iterable[Parameter]) -> list[Parameter]:
    """``parameters`` as a list of at least one `Parameter`, each there once."""
    if isinstance(parameters, Parameter):
        raise TypeError("parameters must be a list of Parameter objects, got one; pass [parameter]")
    try:
        result = list(parameters)
    except TypeError:
        raise TypeError(
            f"parameters must be a list of Parameter objects such as model.parameters(), got "
            f"{type(parameters).__name__}"
        ) from None
    if not result:
        raise ValueError(
            "parameters is empty: the model has nothing to train; pass model.parameters() of a "
            "model with at least one convolution or dense layer"
        )
    first: dict[int, int] = {}
    for i, parameter in enumerate(result):
        if not isinstance(parameter, Parameter):
            raise TypeError(
                f"parameters[{i}] must be a Parameter, got {type(parameter).__name__}; pass "
                "model.parameters()"
            )
        if id(parameter) in first:
            raise ValueError(
                f"parameters[{i}] is the same Parameter as parameters[{first[id(parameter)]}] and "
                "would be updated twice; pass each once"
            )
        first[id(parameter)] = i
    return result


def _slot_like(data: Array, value: Array) -> Array:
    """A copy of ``value`` on the backend and in the dtype and memory order of ``data``."""
    backend = backend_of(data)
    slot = backend.xp.empty_like(data)
    slot[...] = backend.asarray(backend_of(value).to_numpy(value), dtype=data.dtype)
    return slot


def _check_keys(name: str, mapping: Any, expected: Iterable[Any]) -> None:
    if not isinstance(mapping, Mapping):
        raise ValueError(f"{name} must be a dict, got {type(mapping).__name__}")
    missing = [k for k in expected if k not in mapping]
    unexpected = [k for k in mapping if k not in set(expected)]
    if missing or unexpected:
        raise ValueError(f"{name}: missing {missing}, unexpected {unexpected}")
