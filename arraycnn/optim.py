"""Optimizers: the state that PyTorch's keep, the same formulas, and gradient clipping.

The arithmetic is in `arraycnn.backends.updates`; here are the hyper-parameters, the state arrays
("slots") and their validation.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from arraycnn.backends import Backend, backend_of
from arraycnn.layers.base import Parameter
from arraycnn.scalars import real_of
from arraycnn.types import Array


class _Real:
    """An attribute that is validated by `real_of` whenever it is assigned."""

    def __init__(self, *, below: float = math.inf, positive: bool = False) -> None:
        self._below = below
        self._positive = positive

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> float:
        value: float = vars(instance)[self._name]
        return value

    def __set__(self, instance: Any, value: Any) -> None:
        number = real_of(self._name, value, below=self._below, positive=self._positive)
        vars(instance)[self._name] = number


class Optimizer(ABC):
    """Parameters, learning rate and the slot arrays that an update rule keeps for each parameter.

    A parameter whose gradient is None is skipped, and its slots and its count of updates stay as
    they are. Every count, slot and hyper-parameter is in `state_dict`. Hyper-parameters may be
    assigned (``optimizer.lr = 0.01``) and are validated like constructor arguments.

    Slots are made at a parameter's first update and follow it to another backend or dtype.
    """

    lr = _Real()

    def __init__(self, parameters: Iterable[Parameter], lr: float) -> None:
        self._parameters = _parameter_list(parameters)
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
        by_step: dict[int, list[int]] = {}
        for i, parameter in enumerate(self._parameters):
            if parameter.grad is not None:
                self._check(i, parameter)
                by_step.setdefault(self._steps[i] + 1, []).append(i)
        active = [self._parameters[i] for indices in by_step.values() for i in indices]
        if not active:
            return
        backend = backend_of(*(p.data for p in active), *(p.grad for p in active))
        for name in self._slots.keys() - set(self.slot_names):  # momentum was set to 0
            del self._slots[name]
        for step, indices in by_step.items():
            slots = [[self._slot(backend, name, i) for i in indices] for name in self.slot_names]
            parameters = [self._parameters[i].data for i in indices]
            gradients = [self._parameters[i].grad for i in indices]
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

    def _check(self, i: int, parameter: Parameter) -> None:
        data, grad = parameter.data, parameter.grad
        if tuple(grad.shape) != tuple(data.shape):
            raise ValueError(
                f"the gradient of parameter {i} must have its shape {tuple(data.shape)}, got "
                f"{tuple(grad.shape)}"
            )
        if grad.dtype != data.dtype:
            raise TypeError(
                f"the gradient of parameter {i} must be {data.dtype} like the parameter, got "
                f"{grad.dtype}; convert it with grad.astype({str(data.dtype)!r})"
            )
        eps = self.hyperparameters.get("eps")
        if eps is not None and data.dtype.type(eps) == 0:
            raise ValueError(
                f"eps={eps!r} is zero in {data.dtype}, the dtype of parameter {i}, and a zero "
                "gradient would give NaN; set optimizer.eps to 1e-4, or use model.to(dtype="
                "'float32')"
            )

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.hyperparameters.items())
        return f"{type(self).__name__}({len(self._parameters)} parameters, {arguments})"


class SGD(Optimizer):
    """Stochastic gradient descent with (Nesterov) momentum: p -= lr·v with v = momentum·v + g.

    Args:
        parameters: the model's, e.g. ``model.parameters()``.
        lr: learning rate, finite and at least 0.
        momentum: in [0, 1). weight_decay: λ of an L2 penalty, g + λ·p, at least 0.

    Raises:
        ValueError, TypeError: an argument out of range or not a number, no parameters, or a
            parameter given twice.

    Source: Sutskever et al. 2013, in PyTorch's form.
    """

    momentum = _Real(below=1.0)
    weight_decay = _Real()

    def __init__(
        self,
        parameters: Iterable[Parameter],
        lr: float,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr)
        self.momentum = momentum
        self.nesterov = _bool("nesterov", nesterov)
        self.weight_decay = weight_decay
        if nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0, got 0.0; pass momentum=0.9")

    @property
    def hyperparameters(self) -> dict[str, Any]:
        return {
            "lr": self.lr,
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "weight_decay": self.weight_decay,
        }

    @property
    def slot_names(self) -> tuple[str, ...]:
        return ("velocity",) if self.momentum else ()

    def _update(
        self,
        backend: Backend,
        parameters: Sequence[Array],
        gradients: Sequence[Array],
        slots: Sequence[Sequence[Array]],
        step: int,
    ) -> None:
        velocities = slots[0] if self.momentum else ()
        backend.sgd_update(parameters, gradients, velocities, **self.hyperparameters)


class Adam(Optimizer):
    """Adaptive moments: p -= lr·m̂ / (√v̂ + eps), with weight decay as an L2 penalty.

    Args:
        parameters: the model's. lr: learning rate, finite and at least 0.
        betas: decay of the first and of the second moment, each in [0, 1).
        eps: above 0. weight_decay: at least 0.

    Raises:
        ValueError, TypeError: as for `SGD`.

    Source: Kingma & Ba 2015.
    """

    eps = _Real(positive=True)
    weight_decay = _Real()
    _decoupled = False

    def __init__(
        self,
        parameters: Iterable[Parameter],
        lr: float = 1e-3,
        *,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr)
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay

    @property
    def betas(self) -> Sequence[float]:
        """Decay of the first and of the second moment."""
        return self._betas

    @betas.setter
    def betas(self, betas: Sequence[float]) -> None:
        if not isinstance(betas, Sequence) or isinstance(betas, str) or len(betas) != 2:
            raise ValueError(f"betas must be a pair of numbers such as (0.9, 0.999), got {betas!r}")
        self._betas = tuple(real_of(f"betas[{i}]", b, below=1.0) for i, b in enumerate(betas))

    @property
    def hyperparameters(self) -> dict[str, Any]:
        return {
            "lr": self.lr,
            "betas": list(self.betas),
            "eps": self.eps,
            "weight_decay": self.weight_decay,
        }

    @property
    def slot_names(self) -> tuple[str, ...]:
        return ("first_moment", "second_moment")

    def _update(
        self,
        backend: Backend,
        parameters: Sequence[Array],
        gradients: Sequence[Array],
        slots: Sequence[Sequence[Array]],
        step: int,
    ) -> None:
        backend.adam_update(
            parameters,
            gradients,
            *slots,
            step=step,
            lr=self.lr,
            beta1=self.betas[0],
            beta2=self.betas[1],
            eps=self.eps,
            weight_decay=self.weight_decay,
            decoupled=self._decoupled,
        )


class AdamW(Adam):
    """`Adam` whose weight decay shrinks the parameters directly: p *= 1 - lr·weight_decay.

    Arguments and errors are those of `Adam`. Source: Loshchilov & Hutter 2019.
    """

    _decoupled = True

    def __init__(
        self,
        parameters: Iterable[Parameter],
        lr: float = 1e-3,
        *,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(parameters, lr, betas=betas, eps=eps, weight_decay=weight_decay)


class RMSprop(Optimizer):
    """Gradients divided by a running root mean square: p -= lr·g / (√s + eps).

    Args:
        parameters: the model's. lr: learning rate, finite and at least 0.
        alpha: decay of the running mean of g², in [0, 1). eps: above 0.
        momentum: in [0, 1), applied to the divided gradient. weight_decay: at least 0.

    Raises:
        ValueError, TypeError: as for `SGD`.

    Source: Tieleman & Hinton 2012, in PyTorch's form (not centred).
    """

    alpha = _Real(below=1.0)
    eps = _Real(positive=True)
    momentum = _Real(below=1.0)
    weight_decay = _Real()

    def __init__(
        self,
        parameters: Iterable[Parameter],
        lr: float = 1e-2,
        *,
        alpha: float = 0.99,
        eps: float = 1e-8,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr)
        self.alpha = alpha
        self.eps = eps
        self.momentum = momentum
        self.weight_decay = weight_decay

    @property
    def hyperparameters(self) -> dict[str, Any]:
        return {
            "lr": self.lr,
            "alpha": self.alpha,
            "eps": self.eps,
            "momentum": self.momentum,
            "weight_decay": self.weight_decay,
        }

    @property
    def slot_names(self) -> tuple[str, ...]:
        return ("square_average", "velocity") if self.momentum else ("square_average",)

    def _update(
        self,
        backend: Backend,
        parameters: Sequence[Array],
        gradients: Sequence[Array],
        slots: Sequence[Sequence[Array]],
        step: int,
    ) -> None:
        velocities = slots[1] if self.momentum else ()
        backend.rmsprop_update(parameters, gradients, slots[0], velocities, **self.hyperparameters)


class Adagrad(Optimizer):
    """Gradients divided by the root of their summed squares: p -= lr·g / (√s + eps).

    Args:
        parameters: the model's. lr: learning rate, finite and at least 0.
        lr_decay: update number n uses lr / (1 + (n-1)·lr_decay); at least 0.
        eps: above 0. weight_decay: at least 0.

    Raises:
        ValueError, TypeError: as for `SGD`.

    Source: Duchi et al. 2011.
    """

    lr_decay = _Real()
    eps = _Real(positive=True)
    weight_decay = _Real()

    def __init__(
        self,
        parameters: Iterable[Parameter],
        lr: float = 1e-2,
        *,
        lr_decay: float = 0.0,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr)
        self.lr_decay = lr_decay
        self.eps = eps
        self.weight_decay = weight_decay

    @property
    def hyperparameters(self) -> dict[str, Any]:
        return {
            "lr": self.lr,
            "lr_decay": self.lr_decay,
            "eps": self.eps,
            "weight_decay": self.weight_decay,
        }

    @property
    def slot_names(self) -> tuple[str, ...]:
        return ("square_sum",)

    def _update(
        self,
        backend: Backend,
        parameters: Sequence[Array],
        gradients: Sequence[Array],
        slots: Sequence[Sequence[Array]],
        step: int,
    ) -> None:
        backend.adagrad_update(parameters, gradients, *slots, step=step, **self.hyperparameters)


def clip_grad_norm(parameters: Iterable[Parameter], max_norm: float) -> float:
    """Scale all gradients together so that their Euclidean norm is at most ``max_norm``.

    Returns the norm before scaling, over all parameters that have a gradient (0.0 if none has).
    It is accumulated in float64 and in a fixed order. If it is NaN or infinite the gradients are
    left as they are: look at the returned norm, and skip the update.

    Raises:
        ValueError, TypeError: ``max_norm`` is not a finite number above 0, or ``parameters`` are
            not distinct `Parameter` objects of one backend.
    """
    max_norm = real_of("max_norm", max_norm, positive=True)
    active = _with_gradients(parameters)
    if not active:
        return 0.0
    backend = backend_of(*(p.grad for p in active))
    xp = backend.xp
    squares = [xp.sum(xp.square(p.grad, dtype=np.float64)) for p in active]
    norm = math.sqrt(float(xp.sum(xp.stack(squares))))
    if math.isfinite(norm) and norm > max_norm:
        for parameter in active:
            parameter.grad = xp.asarray(parameter.grad * (max_norm / norm))
    return norm


def clip_grad_value(parameters: Iterable[Parameter], max_value: float) -> None:
    """Limit every element of every gradient to [-max_value, max_value]; a NaN stays NaN.

    Raises:
        ValueError, TypeError: ``max_value`` is not a finite number above 0, or ``parameters`` are
            not distinct `Parameter` objects of one backend.
    """
    max_value = real_of("max_value", max_value, positive=True)
    active = _with_gradients(parameters)
    if not active:
        return
    xp = backend_of(*(p.grad for p in active)).xp
    for parameter in active:
        parameter.grad = xp.asarray(xp.clip(parameter.grad, -max_value, max_value))


def _parameter_list(parameters: Iterable[Parameter]) -> list[Parameter]:
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


def _with_gradients(parameters: Iterable[Parameter]) -> list[Parameter]:
    return [p for p in _parameter_list(parameters) if p.grad is not None]


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


def _bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value
