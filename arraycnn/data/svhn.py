"""Reader of the MATLAB files of the street view house numbers; SciPy reads them, if installed."""

import os
from typing import Any

import numpy as np

from arraycnn.arrays import Array


def read_svhn(path: str | os.PathLike[str]) -> tuple[Array, Array]:
    """Images (N, 3, 32, 32) uint8 and labels (N,) int64, 0 to 9, of one ``*_32x32.mat`` file.

    Raises:
        ImportError: SciPy is not installed. FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or no SVHN file in the format of cropped digits.
    """
    try:
        from scipy.io import loadmat
    except ImportError:
        raise ImportError(
            "the .mat files of SVHN are read with SciPy; install it with pip install scipy"
        ) from None
    with open(path, "rb") as file:
        try:
            content: dict[str, Any] = loadmat(file)
        except Exception as error:  # SciPy raises a dozen types for damaged files
            raise ValueError(
                f"{path}: not a readable MATLAB file (version 5): {error}; fetch it again"
            ) from error
    images, labels = content.get("X"), content.get("y")
    if images is None or labels is None:
        raise ValueError(f"{path}: X and y were expected, found {sorted(_names(content))}")
    count = labels.size
    if images.shape != (32, 32, 3, count) or images.dtype != np.uint8 or count == 0:
        raise ValueError(
            f"{path}: X of shape (32, 32, 3, N) and uint8 was expected for the {count} labels in "
            f"y, found {images.shape} of {images.dtype}; take the files of cropped digits, "
            "train_32x32.mat and test_32x32.mat"
        )
    labels = labels.reshape(-1)
    if labels.dtype.kind not in "uif" or not np.isin(labels, range(1, 11)).all():
        raise ValueError(f"{path}: labels from 1 to 10 were expected in y; put the right file here")
    digits = labels.astype(np.int64) % 10  # the file calls the digit zero 10
    return np.ascontiguousarray(images.transpose(3, 2, 0, 1)), digits


def _names(content: dict[str, Any]) -> list[str]:
    return [name for name in content if not name.startswith("__")]
