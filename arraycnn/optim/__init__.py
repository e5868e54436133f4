"""Optimizers with PyTorch's formulas and defaults, and gradient clipping.

The arithmetic is in `arraycnn.backends.reference.updates`.
"""

from arraycnn.optim.clipping import clip_grad_norm, clip_grad_value
from arraycnn.optim.groups import decay_groups
from arraycnn.optim.optimizer import Optimizer
from arraycnn.optim.rules import SGD, Adagrad, Adam, AdamW, RMSprop

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Optimizer",
    "RMSprop",
    "clip_grad_norm",
    "clip_grad_value",
    "decay_groups",
]
