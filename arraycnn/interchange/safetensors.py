"""safetensors files: the format of Hugging Face's package ``safetensors``, an optional extra."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from arraycnn.arrays import Array
from arraycnn.errors import CheckpointError
from arraycnn.files import PathLike, atomic_file, open_regular


def write_safetensors(path: PathLike, arrays: Mapping[str, Array]) -> None:
    """Write host arrays by name; see `Layer.save_safetensors`."""
    data = _package().numpy.save({name: np.array(a, order="C") for name, a in arrays.items()})
    with atomic_file(path) as descriptor:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]


@contextmanager
def read_safetensors(path: PathLike) -> Iterator[dict[str, Array]]:
    """The arrays of a file by name; what the block then refuses is a `CheckpointError` of the file.

    See `Layer.load_safetensors`.
    """
    package = _package()
    with open_regular(path):
        pass  # the package's own error does not say which file
    try:
        state = package.numpy.load_file(os.fspath(path))
    except (KeyError, TypeError, ValueError, package.SafetensorError) as error:
        raise CheckpointError(f"{os.fspath(path)}: not readable as safetensors: {error}") from error
    try:
        yield state
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{os.fspath(path)}: {error}") from error


def _package() -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError(
            "safetensors files need the package safetensors: pip install 'arraycnn[safetensors]'"
        ) from None
    return safetensors
