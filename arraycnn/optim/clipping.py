"""Limits on gradients, applied between backward and the optimizer's step."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from arraycnn.arguments import as_real
from arraycnn.arrays import Array
from arraycnn.backends import backend_of
from arraycnn.optim.groups import parameter_list
from arraycnn.parameters import Parameter

SMALL = 1 << 16  # elements: gradients up to here are cheaper copied together than asked singly


def clip_grad_norm(parameters: Iterable[Parameter], max_norm: float) -> float:
    """Scale all gradients together so that their Euclidean norm is at most ``max_norm``.

    Returns the norm before scaling, over all parameters that have a gradient (0.0 if none has).
    It is accumulated in float64 and in a fixed order. If it is NaN or infinite the gradients are
    left as they are: look at the returned norm, and skip the update.

    Raises:
        ValueError, TypeError: ``max_norm`` is not a finite number above 0, or ``parameters`` are
            not distinct `Parameter` objects of one backend.
    """
    max_norm = as_real("max_norm", max_norm, positive=True)
    active = _with_gradients(parameters)
    if not active:
        return 0.0
    xp = backend_of(*(grad for _, grad in active)).xp
    squares = [xp.sum(xp.square(grad, dtype=np.float64)) for _, grad in active]
    norm = math.sqrt(float(xp.sum(xp.stack(squares))))
    if math.isfinite(norm) and norm > max_norm:
        for parameter, grad in active:
            parameter.grad = xp.asarray(grad * (max_norm / norm))
    return norm


def clip_grad_value(parameters: Iterable[Parameter], max_value: float) -> None:
    """Limit every element of every gradient to [-max_value, max_value]; a NaN stays NaN.

    Raises:
        ValueError, TypeError: ``max_value`` is not a finite number above 0, or ``parameters`` are
            not distinct `Parameter` objects of one backend.
    """
    max_value = as_real("max_value", max_value, positive=True)
    active = _with_gradients(parameters)
    if not active:
        return
    xp = backend_of(*(grad for _, grad in active)).xp
    for parameter, grad in active:
        parameter.grad = xp.asarray(xp.clip(grad, -max_value, max_value))


def gradient_square(parameters: Iterable[Parameter], *, exact: bool) -> Any:
    """The sum of the squares of all gradients, to see whether they are finite.

    Args:
        exact: leave the number on the device, computed so that no finite gradient overflows; else
            that is looked at, and computed again where it must be.
    """
    rows: list[Array] = []
    small: list[Array] = []
    for parameter in parameters:
        if parameter.grad is not None:
            (small if parameter.grad.size <= SMALL else rows).append(parameter.grad.reshape(-1))
    if small:
        rows.append(backend_of(small[0]).xp.concatenate(small))
    with np.errstate(all="ignore"):
        if not exact and math.isfinite(square := float(sum([row.dot(row) for row in rows]))):
            return square
        return sum([row.dot(row) for row in [row.astype(np.float64) for row in rows]])


def _with_gradients(parameters: Iterable[Parameter]) -> list[tuple[Parameter, Array]]:
    return [(p, p.grad) for p in parameter_list(parameters) if p.grad is not None]
