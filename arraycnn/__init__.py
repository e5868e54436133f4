"""Convolutional networks on plain arrays: NumPy on the CPU, CuPy on the GPU."""

from arraycnn import data, functional, init, layers, models, schedules
from arraycnn.backends import (
    Backend,
    BackendUnavailableError,
    available_backends,
    backend_of,
    get_backend,
)
from arraycnn.data import DataLoader, datasets
from arraycnn.gradcheck import GradientError, gradcheck
from arraycnn.layers import *  # noqa: F403
from arraycnn.layers import __all__ as _layers
from arraycnn.metrics import accuracy, confusion_matrix, top_k_accuracy
from arraycnn.optim import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    RMSprop,
    clip_grad_norm,
    clip_grad_value,
)
from arraycnn.summary import summary

__version__ = "0.1.0"

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Backend",
    "BackendUnavailableError",
    "DataLoader",
    "GradientError",
    "RMSprop",
    "accuracy",
    "available_backends",
    "backend_of",
    "clip_grad_norm",
    "clip_grad_value",
    "confusion_matrix",
    "data",
    "datasets",
    "functional",
    "get_backend",
    "gradcheck",
    "init",
    "layers",
    "models",
    "schedules",
    "summary",
    "top_k_accuracy",
    *_layers,
]
