"""safetensors files: the format of Hugging Face's package ``safetensors``, an optional extra."""

import os
from typing import Any

import numpy as np

from arraycnn.checkpoint.atomic import PathLike, atomic_file
from arraycnn.checkpoint.contents import host
from arraycnn.checkpoint.envelope import open_regular
from arraycnn.errors import CheckpointError
from arraycnn.layers.layer import Layer


def save_safetensors(model: Layer, path: PathLike) -> None:
    """See `Layer.save_safetensors`."""
    arrays = {name: np.array(host(array), order="C") for name, array in model.state_dict().items()}
    data = _safetensors().numpy.save(arrays)
    with atomic_file(path) as descriptor:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]


def load_safetensors(model: Layer, path: PathLike, strict: bool = True) -> None:
    """See `Layer.load_safetensors`."""
    safetensors = _safetensors()
    with open_regular(path):
        pass  # the package's own error does not say which file
    try:
        state = safetensors.numpy.load_file(os.fspath(path))
    except (KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{os.fspath(path)}: not readable as safetensors: {error}") from error
    try:
        model.load_state_dict(state, strict)
    except ValueError as error:
        raise CheckpointError(f"{os.fspath(path)}: {error}") from error


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError(
            "safetensors files need the package safetensors: pip install 'arraycnn[safetensors]'"
        ) from None
    return safetensors
