"""Optimizer rules, PyTorch's formulas: how one parameter changes in one update.

A rule gets ``xp``, the parameter, its gradient and the slots that it keeps beside the parameter,
all of one shape and dtype. It changes parameter and slots where they lie and leaves the gradient
alone. Hyper-parameters are Python numbers, so float32 stays float32; ``step`` is the number of the
update, counted from 1.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from arraycnn.arrays import Array
from arraycnn.backends.memory_format import MemoryFormat

Rule: TypeAlias = Callable[..., None]


def elementwise(rule: Rule) -> Rule:
    """Mark a rule that treats every element alone, so that it may be applied to pieces."""
    rule.elementwise = True  # type: ignore[attr-defined]
    return rule


@elementwise
def sgd(
    xp: Any,
    p: Array,
    g: Array,
    velocity: Array | None = None,
    *,
    step: int,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
) -> None:
    """v = momentum·v + g, then p -= lr·v (Nesterov: p -= lr·(g + momentum·v)).

    There is no velocity where ``momentum`` is 0. Source: Sutskever et al. 2013 in the form that
    PyTorch uses, with the learning rate outside of the velocity.
    """
    if weight_decay:
        g = g + weight_decay * p
    if velocity is not None:
        velocity *= momentum
        velocity += g
        g = g + momentum * velocity if nesterov else velocity
    p -= lr * g


@elementwise
def adam(
    xp: Any,
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """m = β₁·m + (1-β₁)·g, v = β₂·v + (1-β₂)·g², then p -= lr·m̂ / (√v̂ + eps).

    m̂ and v̂ are corrected for their start at zero. Weight decay is added to the gradient. Source:
    Kingma & Ba 2015.
    """
    beta1, beta2 = betas
    if weight_decay:
        g = g + weight_decay * p
    m += (1 - beta1) * (g - m)
    v *= beta2
    v += (1 - beta2) * g * g
    step_size = lr / (1 - beta1**step)
    p -= step_size * m / (xp.sqrt(v) / math.sqrt(1 - beta2**step) + eps)


@elementwise
def adamw(
    xp: Any, p: Array, g: Array, m: Array, v: Array, *, lr: float, weight_decay: float, **rest: Any
) -> None:
    """p *= 1 - lr·weight_decay, then `adam` without weight decay: Loshchilov & Hutter 2019."""
    if weight_decay:
        p *= 1 - lr * weight_decay
    adam(xp, p, g, m, v, lr=lr, weight_decay=0.0, **rest)


@elementwise
def rmsprop(
    xp: Any,
    p: Array,
    g: Array,
    square_average: Array,
    velocity: Array | None = None,
    *,
    step: int,
    lr: float,
    alpha: float,
    eps: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """s = alpha·s + (1-alpha)·g², u = momentum·u + g / (√s + eps), then p -= lr·u.

    There is no velocity u where ``momentum`` is 0. Source: Tieleman & Hinton 2012.
    """
    if weight_decay:
        g = g + weight_decay * p
    square_average *= alpha
    square_average += (1 - alpha) * g * g
    g = g / (xp.sqrt(square_average) + eps)
    if velocity is not None:
        velocity *= momentum
        velocity += g
        g = velocity
    p -= lr * g


@elementwise
def adagrad(
    xp: Any,
    p: Array,
    g: Array,
    square_sum: Array,
    *,
    step: int,
    lr: float,
    lr_decay: float,
    eps: float,
    weight_decay: float,
) -> None:
    """s = s + g², then p -= lr / (1 + (step-1)·lr_decay) · g / (√s + eps): Duchi et al. 2011."""
    if weight_decay:
        g = g + weight_decay * p
    square_sum += g * g
    p -= lr / (1 + (step - 1) * lr_decay) * g / (xp.sqrt(square_sum) + eps)


class UpdatePrimitives(MemoryFormat):
    """The part of a backend that optimizers use."""

    def update_parameters(
        self, rule: Rule, arrays: Sequence[tuple[Array, ...]], **options: Any
    ) -> None:
        """Apply ``rule(xp, parameter, gradient, *slots, **options)`` to each tuple in ``arrays``.

        Parameters and slots are changed where they lie.
        """
        for one in arrays:
            rule(self.xp, *one, **options)
