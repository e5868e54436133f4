"""The update rules as optimizers: hyper-parameters and the slots that each rule needs."""

from collections.abc import Iterable, Sequence
from typing import Any

from arraycnn.arguments import as_real
from arraycnn.arrays import Array
from arraycnn.backends import Backend
from arraycnn.optim.optimizer import Optimizer, RealAttribute
from arraycnn.parameters import Parameter


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

    momentum = RealAttribute(below=1.0)
    weight_decay = RealAttribute()

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

    eps = RealAttribute(positive=True)
    weight_decay = RealAttribute()
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
        self._betas = tuple(as_real(f"betas[{i}]", b, below=1.0) for i, b in enumerate(betas))

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

    alpha = RealAttribute(below=1.0)
    eps = RealAttribute(positive=True)
    momentum = RealAttribute(below=1.0)
    weight_decay = RealAttribute()

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

    lr_decay = RealAttribute()
    eps = RealAttribute(positive=True)
    weight_decay = RealAttribute()

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


def _bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value
