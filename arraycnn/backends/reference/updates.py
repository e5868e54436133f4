"""Optimizer updates in place, once for every backend: PyTorch's formulas on lists of arrays.

Every method changes the parameters and the state arrays where they lie and leaves the gradients
alone. Arrays at the same position of the lists have the same shape and dtype; hyper-parameters
are Python numbers, so float32 stays float32.
"""

import math
from collections.abc import Sequence

from arraycnn.arrays import Array
from arraycnn.backends.memory_format import MemoryFormat


class UpdatePrimitives(MemoryFormat):
    """The part of a backend that optimizers use."""

    def sgd_update(
        self, parameters: Sequence[Array], gradients: Sequence[Array], velocities: Sequence[Array],
        *, lr: float, momentum: float, nesterov: bool, weight_decay: float,
    ) -> None:  # fmt: skip
        """v = momentum·v + g, then p -= lr·v (Nesterov: p -= lr·(g + momentum·v)).

        ``velocities`` may be empty when ``momentum`` is 0. Source: Sutskever et al. 2013 in the
        form that PyTorch uses, with the learning rate outside of the velocity.
        """
        for i, (p, g) in enumerate(zip(parameters, gradients, strict=True)):
            if weight_decay:
                g = g + weight_decay * p
            if momentum:
                v = velocities[i]
                v *= momentum
                v += g
                g = g + momentum * v if nesterov else v
            p -= lr * g

    def adam_update(
        self, parameters: Sequence[Array], gradients: Sequence[Array],
        first_moments: Sequence[Array], second_moments: Sequence[Array], *, step: int, lr: float,
        beta1: float, beta2: float, eps: float, weight_decay: float, decoupled: bool,
    ) -> None:  # fmt: skip
        """m = β₁·m + (1-β₁)·g, v = β₂·v + (1-β₂)·g², then p -= lr·m̂ / (√v̂ + eps).

        m̂ and v̂ are corrected for their start at zero with ``step``, the number of this update
        counted from 1. Weight decay is added to the gradient, or when ``decoupled`` shrinks the
        parameter itself. Sources: Kingma & Ba 2015; Loshchilov & Hutter 2019.
        """
        step_size = lr / (1 - beta1**step)
        v_scale = math.sqrt(1 - beta2**step)
        for p, g, m, v in zip(parameters, gradients, first_moments, second_moments, strict=True):
            if weight_decay and decoupled:
                p *= 1 - lr * weight_decay
            elif weight_decay:
                g = g + weight_decay * p
            m += (1 - beta1) * (g - m)
            v *= beta2
            v += (1 - beta2) * g * g
            p -= step_size * m / (self.xp.sqrt(v) / v_scale + eps)

    def rmsprop_update(
        self, parameters: Sequence[Array], gradients: Sequence[Array],
        square_averages: Sequence[Array], velocities: Sequence[Array], *, lr: float, alpha: float,
        eps: float, momentum: float, weight_decay: float,
    ) -> None:  # fmt: skip
        """s = alpha·s + (1-alpha)·g², u = momentum·u + g / (√s + eps), then p -= lr·u.

        ``velocities`` may be empty when ``momentum`` is 0. Source: Tieleman & Hinton 2012.
        """
        for i, (p, g, s) in enumerate(zip(parameters, gradients, square_averages, strict=True)):
            if weight_decay:
                g = g + weight_decay * p
            s *= alpha
            s += (1 - alpha) * g * g
            g = g / (self.xp.sqrt(s) + eps)
            if momentum:
                u = velocities[i]
                u *= momentum
                u += g
                g = u
            p -= lr * g

    def adagrad_update(
        self, parameters: Sequence[Array], gradients: Sequence[Array],
        square_sums: Sequence[Array], *, step: int, lr: float, lr_decay: float, eps: float,
        weight_decay: float,
    ) -> None:  # fmt: skip
        """s = s + g², then p -= lr / (1 + (step-1)·lr_decay) · g / (√s + eps).

        ``step`` is the number of this update counted from 1. Source: Duchi et al. 2011.
        """
        step_size = lr / (1 + (step - 1) * lr_decay)
        for p, g, s in zip(parameters, gradients, square_sums, strict=True):
            if weight_decay:
                g = g + weight_decay * p
            s += g * g
            p -= step_size * g / (self.xp.sqrt(s) + eps)
