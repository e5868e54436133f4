"""Real-valued arguments: what is accepted, and what the errors say."""

import math
from fractions import Fraction

import numpy as np
import pytest

from arraycnn.arguments import as_real


@pytest.mark.parametrize("value", [0.5, Fraction(1, 2), np.float64(0.5), np.float32(0.5)])
def test_gives_a_python_float(value):
    assert type(as_real("lr", value)) is float
    assert as_real("lr", value) == 0.5


def test_integers_are_numbers():
    assert as_real("lr", 0) == 0.0
    assert as_real("lr", np.int64(3)) == 3.0
    assert as_real("fill", -1, minimum=-math.inf) == -1.0


@pytest.mark.parametrize("value", [True, "0.5", None, 1j, np.zeros(1), [0.5]])
def test_what_is_no_number(value):
    with pytest.raises(TypeError, match="lr must be a number, got "):
        as_real("lr", value)


@pytest.mark.parametrize(
    ("value", "limits", "match"),
    [
        (math.nan, {}, "lr must be a finite number of at least 0, got nan"),
        (math.inf, {}, "got inf"),
        (-1, {}, r"got -1\.0"),
        (1, {"below": 1.0}, "of at least 0 and below 1"),
        (0, {"positive": True}, "above 0"),
        (0.5, {"minimum": 1.0}, "of at least 1"),
    ],
)
def test_out_of_range(value, limits, match):
    with pytest.raises(ValueError, match=match):
        as_real("lr", value, **limits)
