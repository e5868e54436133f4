"""Checkpoints: HDF5 files that show their own damage, written so that a crash loses nothing.

The format is specified in docs/checkpoint-format.md. ``python -m arraycnn.checkpoint FILE`` prints
what is in a file and verifies it.
"""

from arraycnn.checkpoint.info import CheckpointInfo, read_checkpoint_info
from arraycnn.checkpoint.load import load_checkpoint, load_model
from arraycnn.checkpoint.save import save_checkpoint
from arraycnn.interchange.keras import load_keras_weights

__all__ = [
    "CheckpointInfo",
    "load_checkpoint",
    "load_keras_weights",
    "load_model",
    "read_checkpoint_info",
    "save_checkpoint",
]
