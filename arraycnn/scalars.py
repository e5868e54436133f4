"""Real-valued arguments: a plain Python float within an interval, or an error with a remedy."""

import math
from numbers import Real
from typing import Any


def real_of(
    name: str,
    value: Any,
    *,
    minimum: float = 0.0,
    below: float = math.inf,
    positive: bool = False,
) -> float:
    """``value`` as a float with ``minimum <= value < below``; ``positive`` excludes 0 as well.

    A Python float never promotes a float32 array, which a NumPy float64 scalar would.

    Raises:
        TypeError: not a real number (bools and arrays are not). ValueError: NaN, infinite or
            outside of the interval.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
    number = float(value)
    if not math.isfinite(number) or not minimum <= number < below or (positive and number <= 0):
        lower = "above 0" if positive else f"of at least {minimum:g}"
        upper = f" and below {below:g}" if math.isfinite(below) else ""
        raise ValueError(f"{name} must be a finite number {lower}{upper}, got {number!r}")
    return number
