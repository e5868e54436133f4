"""Reader of the IDX format, in which MNIST and its relatives are published.

An IDX file is two zero bytes, one byte for the type, one for the number of dimensions, one
big-endian uint32 per dimension, then the elements in C order, big-endian.
Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits".
"""

import gzip
import os
import sys
import zlib
from math import prod
from typing import Any, BinaryIO

import numpy as np

from arraycnn.arrays import Array

_DTYPES: dict[int, np.dtype[Any]] = {
    0x08: np.dtype(np.uint8),
    0x09: np.dtype(np.int8),
    0x0B: np.dtype(np.int16),
    0x0C: np.dtype(np.int32),
    0x0D: np.dtype(np.float32),
    0x0E: np.dtype(np.float64),
}
_MAX_DIMENSIONS = 64  # NumPy's limit
_CHUNK = 1 << 20


def read_idx(path: str | os.PathLike[str]) -> Array:
    """Read an IDX file, gzip-compressed or not (told by its content, not by its name).

    Returns a writable C-contiguous array in the machine's byte order: uint8, int8, int16, int32,
    float32 or float64, of the shape that the file declares. No more memory is taken than the
    file really fills, whatever its header claims.

    Raises:
        ValueError: the file is not IDX, is cut short, goes on after its data, or its gzip stream
            is damaged.
        OSError: the file cannot be opened.
    """
    name = os.fspath(path)
    with open(name, "rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not compressed:
            return _parse(name, file)
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                return _parse(name, unpacked)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(
                f"{name}: a whole gzip stream was expected, but it is damaged or cut short "
                f"({error}); download the file again"
            ) from error


def _parse(name: str, file: BinaryIO | gzip.GzipFile) -> Array:
    magic = bytes(_read_up_to(file, 4))
    dtype = _DTYPES.get(magic[2]) if len(magic) == 4 and magic[:2] == b"\0\0" else None
    if dtype is None or not 1 <= magic[3] <= _MAX_DIMENSIONS:
        found = " ".join(f"{byte:02x}" for byte in magic) or "an empty file"
        types = ", ".join(f"{code:02x}" for code in _DTYPES)
        raise ValueError(
            f"{name}: an IDX file was expected, which begins with 00 00, a type "
            f"({types}) and the number of dimensions (1 to {_MAX_DIMENSIONS}); found {found}; "
            "check that this is the right file and that it was downloaded whole"
        )
    ndim = magic[3]
    header = _read_up_to(file, 4 * ndim)
    if len(header) < 4 * ndim:
        raise ValueError(
            f"{name}: the IDX header should hold {ndim} sizes ({4 + 4 * ndim} bytes), but the data "
            f"ends after {4 + len(header)} bytes; download the file again"
        )
    shape = tuple(int(size) for size in np.frombuffer(header, dtype=">u4"))
    if prod(size for size in shape if size) * dtype.itemsize > sys.maxsize:
        raise ValueError(
            f"{name}: the IDX header declares shape {shape} of {dtype}, more than any file holds; "
            "download the file again"
        )

    declared = prod(shape) * dtype.itemsize
    content = _read_up_to(file, declared)
    if len(content) < declared:
        raise ValueError(
            f"{name}: the IDX header declares shape {shape} of {dtype}, {declared} bytes of data, "
            f"but only {len(content)} follow; download the file again"
        )
    if file.read(1):
        raise ValueError(
            f"{name}: the IDX header declares shape {shape} of {dtype}, {declared} bytes of data, "
            "but more follow; the file is damaged or its header is wrong: download it again"
        )
    array = np.frombuffer(content, dtype=dtype).reshape(shape)
    if sys.byteorder == "little" and dtype.itemsize > 1:
        array.byteswap(inplace=True)
    return array


def _read_up_to(file: BinaryIO | gzip.GzipFile, size: int) -> bytearray:
    """Read ``size`` bytes, or what is there; grows with the data, so a false size costs nothing."""
    content = bytearray()
    while len(content) < size:
        chunk = file.read(min(_CHUNK, size - len(content)))
        if not chunk:
            break
        content += chunk
    return content
