"""Training: the loop, its step, what is called on the way, and stopping in good order."""

from arraycnn.training.callbacks import Checkpoints, load_last
from arraycnn.training.captured import CapturedStep
from arraycnn.training.divergence import TrainingDivergedError
from arraycnn.training.step import EagerStep, Step
from arraycnn.training.trainer import Callback, Trainer

__all__ = [
    "Callback",
    "CapturedStep",
    "Checkpoints",
    "EagerStep",
    "Step",
    "Trainer",
    "TrainingDivergedError",
    "load_last",
]
