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
        lower = " above 0" if positive else f" of at least {minimum:g}"
        lower = lower if minimum > -math.inf else ""
        upper = f" and below {below:g}" if math.isfinite(below) else ""
        raise ValueError(f"{name} must be a finite number{lower}{upper}, got {number!r}")
    return number


def any_real(name: str, value: Any) -> float:
    """``value`` as a finite float of any sign; errors as `real_of`."""
    return real_of(name, value, minimum=-math.inf)


def probability(name: str, value: Any) -> float:
    """``value`` as a float in [0, 1]; errors as `real_of`."""
    number = real_of(name, value)
    if number > 1:
        raise ValueError(f"{name} must be a probability between 0 and 1, got {number!r}")
    return number
