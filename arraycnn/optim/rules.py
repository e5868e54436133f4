"""The update rules as optimizers: hyper-parameters and slots. PyTorch's formulas and defaults."""

from dataclasses import KW_ONLY, dataclass
from typing import Any

from arraycnn.backends.reference import updates
from arraycnn.optim.hyperparameters import Flag, NonNegative, Positive, Share, Shares
from arraycnn.optim.optimizer import Optimizer


@dataclass(eq=False, repr=False)
class SGD(Optimizer):
    """Stochastic gradient descent with (Nesterov) momentum: p -= lr·v with v = momentum·v + g.

    Args:
        parameters: the model's, e.g. ``model.parameters()``, or groups of them, see `Optimizer`.
        lr: learning rate, finite and at least 0.
        momentum: in [0, 1). weight_decay: λ of an L2 penalty, g + λ·p, at least 0.

    Raises:
        ValueError, TypeError: an argument out of range or not a number, no parameters, or a
            parameter given twice.

    Source: Sutskever et al. 2013, in PyTorch's form.
    """

    _: KW_ONLY
    momentum: Share = 0.0
    nesterov: Flag = False
    weight_decay: NonNegative = 0.0

    update = staticmethod(updates.sgd)

    @staticmethod
    def slots(*, momentum: float, **_: Any) -> dict[str, float]:
        return {"velocity": 0.0} if momentum else {}

    @staticmethod
    def check(*, momentum: float, nesterov: bool, **_: Any) -> None:
        if nesterov and not momentum:
            raise ValueError(
                "nesterov needs a momentum above 0, got 0.0; use momentum=0.9, or nesterov=False"
            )


@dataclass(eq=False, repr=False)
class Adam(Optimizer):
    """Adaptive moments: p -= lr·m̂ / (√v̂ + eps), with weight decay as an L2 penalty.

    Args:
        parameters: the model's, or groups. lr: learning rate, finite and at least 0.
        betas: decay of the first and of the second moment, each in [0, 1).
        eps: above 0. weight_decay: at least 0.

    Raises:
        ValueError, TypeError: as for `SGD`.

    Source: Kingma & Ba 2015.
    """

    lr: NonNegative = 1e-3
    _: KW_ONLY
    betas: Shares = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0

    update = staticmethod(updates.adam)

    @staticmethod
    def slots(**_: Any) -> dict[str, float]:
        return {"first_moment": 0.0, "second_moment": 0.0}


@dataclass(eq=False, repr=False, kw_only=True)
class AdamW(Adam):
    """`Adam` whose weight decay shrinks the parameters directly: p *= 1 - lr·weight_decay.

    Arguments and errors are those of `Adam`. Source: Loshchilov & Hutter 2019.
    """

    weight_decay: NonNegative = 0.01

    update = staticmethod(updates.adamw)


@dataclass(eq=False, repr=False)
class RMSprop(Optimizer):
    """Gradients divided by a running root mean square: p -= lr·g / (√s + eps).

    Args:
        parameters: the model's, or groups. lr: learning rate, finite and at least 0.
        alpha: decay of the running mean of g², in [0, 1). eps: above 0.
        momentum: in [0, 1), applied to the divided gradient. weight_decay: at least 0.

    Raises:
        ValueError, TypeError: as for `SGD`.

    Source: Tieleman & Hinton 2012, in PyTorch's form (not centred).
    """

    lr: NonNegative = 1e-2
    _: KW_ONLY
    alpha: Share = 0.99
    eps: Positive = 1e-8
    momentum: Share = 0.0
    weight_decay: NonNegative = 0.0

    update = staticmethod(updates.rmsprop)

    @staticmethod
    def slots(*, momentum: float, **_: Any) -> dict[str, float]:
        return {"square_average": 0.0} | ({"velocity": 0.0} if momentum else {})


@dataclass(eq=False, repr=False)
class Adagrad(Optimizer):
    """Gradients divided by the root of their summed squares: p -= lr·g / (√s + eps).

    Args:
        parameters: the model's, or groups. lr: learning rate, finite and at least 0.
        lr_decay: update number n uses lr / (1 + (n-1)·lr_decay); at least 0.
        eps: above 0. weight_decay: at least 0.

    Raises:
        ValueError, TypeError: as for `SGD`.

    Source: Duchi et al. 2011.
    """

    lr: NonNegative = 1e-2
    _: KW_ONLY
    lr_decay: NonNegative = 0.0
    eps: Positive = 1e-10
    weight_decay: NonNegative = 0.0

    update = staticmethod(updates.adagrad)

    @staticmethod
    def slots(**_: Any) -> dict[str, float]:
        return {"square_sum": 0.0}
