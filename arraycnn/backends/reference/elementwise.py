"""Sums, ReLU, dropout masks and the error function, element by element."""

import math
from functools import lru_cache

import numpy as np

from arraycnn.arrays import Array
from arraycnn.backends.memory_format import MemoryFormat, batch_view, buffer_of
from arraycnn.rng import GAMMA, MULTIPLIERS, SHIFTS, stream_key


class ElementwisePrimitives(MemoryFormat):
    """Element-wise primitives; arrays of any memory order."""

    def add(self, a: Array, b: Array, relu: bool = False) -> Array:
        """a + b, of the same shape; with ``relu``, max(a + b, 0)."""
        y = a + b
        if relu:
            self.xp.maximum(y, 0, out=y)
        return y

    def relu(self, x: Array, out: Array | None = None) -> Array:
        """max(x, 0), in a new array of x's memory order or in ``out``, which may be x."""
        return self.xp.maximum(x, 0, out=self.xp.empty_like(x) if out is None else out)

    def relu_grad(self, y: Array, grad_output: Array) -> Array:
        """The gradient passes where the output y = max(x, 0) is positive."""
        return self.xp.where(y > 0, grad_output, 0)

    def dropout(self, x: Array, p: float, seed: int, counter: int) -> Array:
        """Zero each element with probability ``p`` and scale the rest by 1 / (1 − p).

        Element i of the batch-last buffer is dropped when the i-th number of the stream
        (seed, counter) is below p·2³²; the mask depends on nothing else.
        """
        xp = self.xp
        buffer = buffer_of(x)
        z = xp.arange(buffer.size, dtype=xp.uint64)
        z *= np.uint64(GAMMA)
        z += np.uint64(stream_key(seed, counter))
        for shift, multiplier in zip(SHIFTS, MULTIPLIERS, strict=False):
            z ^= z >> np.uint64(shift)
            z *= np.uint64(multiplier)
        z ^= z >> np.uint64(SHIFTS[-1])
        keep = ((z >> np.uint64(32)) >= np.uint64(round(p * 2**32))).reshape(buffer.shape)
        scale = x.dtype.type(1 / (1 - p) if p < 1 else 0)
        return batch_view(xp.where(keep, buffer * scale, 0))

    def erf(self, x: Array) -> Array:
        """The error function, to double precision: x·g(x²) with g expanded in Chebyshev series."""
        xp = self.xp
        limit = _ERF_LIMIT
        u = xp.clip(x, -limit, limit)
        t = u * u * (2 / limit**2) - 1  # [-1, 1]
        older, old = 0 * t, 0 * t
        for coefficient in _erf_series()[:0:-1]:  # Clenshaw's recurrence
            older, old = old, 2 * t * old - older + coefficient
        inside = u * (t * old - older + _erf_series()[0])
        return xp.where(xp.abs(x) < limit, inside, xp.sign(x))


_ERF_LIMIT = 6.0  # erf(6) is 1 in double precision


@lru_cache(maxsize=1)
def _erf_series() -> list[float]:
    """Chebyshev coefficients of erf(√v) / √v in v over [0, 36]."""

    def g(t: float) -> float:
        v = math.sqrt((t + 1) / 2) * _ERF_LIMIT
        return math.erf(v) / v if v else 2 / math.sqrt(math.pi)

    series = np.polynomial.chebyshev.chebinterpolate(np.vectorize(g), 60)
    return [float(coefficient) for coefficient in series]
