"""Dropout: rate, reproducibility, and masks that depend on seed, counter and place alone."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layouts import LAYOUTS
from numerics import assert_close, put

from arraycnn import functional as F
from arraycnn.backends import Backend

WORD = 2**64 - 1


def drop(backend: Backend, x: np.ndarray, *arguments: Any, **options: Any) -> np.ndarray:
    return backend.to_numpy(F.dropout(put(backend, x), *arguments, **options))


def split_mix(z: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014)."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return z ^ (z >> 31)


def kept(count: int, p: float, seed: int, counter: int) -> np.ndarray:
    """Which of the first ``count`` elements survive, one Python integer at a time."""
    gamma = 0x9E3779B97F4A7C15
    key = split_mix((split_mix(seed) + counter * gamma) & WORD)
    numbers = [split_mix((key + i * gamma) & WORD) >> 32 for i in range(count)]
    return np.array([number >= round(p * 2**32) for number in numbers])


def test_split_mix_is_the_published_generator() -> None:
    """The first outputs of the reference implementation from state 1234567."""
    gamma = 0x9E3779B97F4A7C15
    outputs = [split_mix((1234567 + (i + 1) * gamma) & WORD) for i in range(3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple),
    p=st.floats(0, 1),
    seed=st.integers(0, 2**63),
    counter=st.integers(0, 2**40),
)
def test_masks_are_a_function_of_seed_counter_and_place(shape, p, seed, counter, backend) -> None:
    """Element i in (C, *S, N) order survives when the i-th number of the stream is at least p.

    Written out here so that masks stay the same on every backend and in every later version.
    """
    y = drop(backend, np.ones(shape), p, seed=seed, counter=counter)
    mask = kept(math.prod(shape), p, seed, counter).reshape(*shape[1:], shape[0])
    mask = np.moveaxis(mask, -1, 0)
    np.testing.assert_array_equal(y != 0, mask)
    if mask.any():
        assert_close(y[mask], np.full(mask.sum(), 1 / (1 - p)), 1e-12)


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_rate(p, seed, backend) -> None:
    """Within four standard deviations, over the whole, every row and every counter."""
    count = 40_000
    ones = np.ones((200, 200))
    y = drop(backend, ones, p, seed=seed)
    deviation = math.sqrt(p * (1 - p) / count)
    assert abs((y == 0).mean() - p) < 4 * deviation
    rows = (y == 0).mean(axis=1)
    assert np.abs(rows - p).max() < 6 * deviation * math.sqrt(200)
    firsts = [
        drop(backend, ones[:1, :20], p, seed=seed, counter=counter)[0] == 0
        for counter in range(500)
    ]
    assert abs(np.mean(firsts) - p) < 4 * math.sqrt(p * (1 - p) / 10_000)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"seed": 0}, {"seed": 1}),
        ({"seed": 0, "counter": 0}, {"seed": 0, "counter": 1}),
        ({"seed": 0, "counter": 1}, {"seed": 1, "counter": 0}),
        ({"seed": 5, "counter": 7}, {"seed": 7, "counter": 5}),
        ({"seed": 0}, {"seed": 2**32}),
        ({"seed": 0, "counter": 0}, {"seed": 0, "counter": 2**32}),
    ],
)
def test_other_seeds_and_counters_give_independent_masks(first, second, backend) -> None:
    """Two fair masks agree in half of their places, at every lag."""
    ones = np.ones(10_000)
    a, b = (drop(backend, ones, 0.5, **which) == 0 for which in (first, second))
    for lag in range(-3, 4):
        assert abs((a == np.roll(b, lag)).mean() - 0.5) < 5 * 0.5 / 100


def test_neighbours_are_independent(backend) -> None:
    y = drop(backend, np.ones((100, 100)), 0.5, seed=3) == 0
    for a, b in ((y[1:], y[:-1]), (y[:, 1:], y[:, :-1]), (y[1:, 1:], y[:-1, :-1])):
        assert abs((a == b).mean() - 0.5) < 5 * 0.5 / math.sqrt(a.size)


def test_expected_value_is_the_input(backend) -> None:
    mean = np.mean(
        [drop(backend, np.full(50, 3.0), 0.4, seed=1, counter=c) for c in range(2000)], axis=0
    )
    assert np.abs(mean - 3).max() < 5 * 3 * math.sqrt(0.4 / 0.6 / 2000)


def test_limits_of_p(backend, rng) -> None:
    x = rng.standard_normal((3, 4))
    np.testing.assert_array_equal(drop(backend, x, 0.0, seed=0), x)
    np.testing.assert_array_equal(drop(backend, x, 1.0, seed=0), np.zeros((3, 4)))
    np.testing.assert_array_equal(drop(backend, x, 0, seed=0), x)


def test_same_call_same_mask(backend, rng) -> None:
    x = rng.standard_normal((3, 4, 5, 5))
    first = drop(backend, x, 0.3, seed=4, counter=9)
    np.testing.assert_array_equal(first, drop(backend, x, 0.3, seed=4, counter=9))


def test_gradient_passes_where_the_input_did(backend, rng) -> None:
    x, grad = rng.standard_normal((2, 3, 4, 5, 5))
    y = drop(backend, x, 0.3, seed=4, counter=9)
    grad_x = backend.to_numpy(F.dropout_grad(put(backend, grad), 0.3, seed=4, counter=9))
    np.testing.assert_array_equal(grad_x == 0, y == 0)
    assert_close(grad_x[y != 0], grad[y != 0] / 0.7, 1e-12)
    assert abs((y * grad).sum() - (x * grad_x).sum()) < 1e-12 * np.abs(y * grad).sum()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("p", [0.0, 0.4])
def test_strides_do_not_move_the_mask(layout, p, backend, rng) -> None:
    x = rng.standard_normal((3, 4, 5, 2))
    laid = put(backend, x, layout)
    y = F.dropout(laid, p, seed=2, counter=1)
    np.testing.assert_array_equal(backend.to_numpy(y), drop(backend, x, p, seed=2, counter=1))
    np.testing.assert_array_equal(backend.to_numpy(laid), x)
    assert not backend.xp.shares_memory(y, laid)
    if layout == "batch_last":
        assert backend.xp.moveaxis(y, 0, -1).flags.c_contiguous


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_dtype_moves_no_mask_and_is_kept(dtype, backend) -> None:
    ones = np.ones((7, 3, 4))
    y = drop(backend, ones.astype(dtype), 0.25, seed=8)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y == 0, drop(backend, ones, 0.25, seed=8) == 0)


@pytest.mark.parametrize("shape", [(0, 3), (4, 0, 2), (1,), (1, 1, 1, 1)])
def test_smallest_arrays(shape, backend) -> None:
    assert drop(backend, np.ones(shape), 0.5, seed=0).shape == shape
