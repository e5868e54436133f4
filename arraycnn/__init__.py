"""Convolutional networks on plain arrays: NumPy on the CPU, CuPy on the GPU."""

from arraycnn import data, functional, initializers, layers, models, schedules
from arraycnn.backends import (
    Backend,
    BackendUnavailableError,
    available_backends,
    backend_of,
    get_backend,
    register,
)
from arraycnn.checkpoint import (
    CheckpointInfo,
    load_checkpoint,
    load_keras_weights,
    load_model,
    read_checkpoint_info,
    save_checkpoint,
)
from arraycnn.data import DataLoader, datasets
from arraycnn.errors import (
    CheckpointDamagedError,
    CheckpointError,
    DeviceMemoryError,
    GraphCaptureError,
)
from arraycnn.explain import Explanation, explain
from arraycnn.gradcheck import GradientError, gradcheck
from arraycnn.layers import *  # noqa: F403
from arraycnn.layers import __all__ as _layers
from arraycnn.metrics import accuracy, confusion_matrix, top_k_accuracy
from arraycnn.models import ConstantPad2d, PartialConv2d, ScaledTanh, UnitBias
from arraycnn.optim import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Optimizer,
    RMSprop,
    clip_grad_norm,
    clip_grad_value,
)
from arraycnn.summary import summary
from arraycnn.training import (
    Callback,
    Checkpoints,
    Trainer,
    TrainingDivergedError,
    load_last,
)
from arraycnn.version import __version__

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Backend",
    "BackendUnavailableError",
    "Callback",
    "CheckpointDamagedError",
    "CheckpointError",
    "CheckpointInfo",
    "Checkpoints",
    "DataLoader",
    "DeviceMemoryError",
    "Explanation",
    "GradientError",
    "GraphCaptureError",
    "Optimizer",
    "RMSprop",
    "Trainer",
    "TrainingDivergedError",
    "__version__",
    "ConstantPad2d",
    "PartialConv2d",
    "ScaledTanh",
    "UnitBias",
    "accuracy",
    "available_backends",
    "backend_of",
    "clip_grad_norm",
    "clip_grad_value",
    "confusion_matrix",
    "data",
    "datasets",
    "explain",
    "functional",
    "get_backend",
    "gradcheck",
    "initializers",
    "layers",
    "load_checkpoint",
    "load_keras_weights",
    "load_last",
    "load_model",
    "models",
    "read_checkpoint_info",
    "register",
    "save_checkpoint",
    "schedules",
    "summary",
    "top_k_accuracy",
    *_layers,
]
