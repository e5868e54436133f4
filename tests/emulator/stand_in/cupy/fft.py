"""The Fourier transforms of ``cupy.fft`` that arraycnn uses; results are in C order."""

from typing import Any

import numpy as np

from cupy._array import apply, ndarray


def _transform(function: Any, a: ndarray, s: Any, axes: Any, norm: Any) -> ndarray:
    if not isinstance(a, ndarray):
        raise TypeError(f"Unsupported type {type(a)}")
    return apply(function, (a,), {"s": s, "axes": axes, "norm": norm})


def fftn(a: ndarray, s: Any = None, axes: Any = None, norm: Any = None) -> ndarray:
    return _transform(np.fft.fftn, a, s, axes, norm)


def ifftn(a: ndarray, s: Any = None, axes: Any = None, norm: Any = None) -> ndarray:
    return _transform(np.fft.ifftn, a, s, axes, norm)


def rfftn(a: ndarray, s: Any = None, axes: Any = None, norm: Any = None) -> ndarray:
    return _transform(np.fft.rfftn, a, s, axes, norm)


def irfftn(a: ndarray, s: Any = None, axes: Any = None, norm: Any = None) -> ndarray:
    return _transform(np.fft.irfftn, a, s, axes, norm)
