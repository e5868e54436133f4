"""Batch normalisation: statistics, gradients, running averages, memory."""

from typing import Any

import numpy as np
import pytest
import reference
from hypothesis import assume, given
from hypothesis import strategies as st
from layouts import LAYOUTS
from numerics import assert_close, assert_derivative, put

from arraycnn import functional as F
from arraycnn.backends import Backend

shapes = st.lists(st.integers(1, 4), min_size=2, max_size=5).map(tuple)


def normalise(backend: Backend, *arrays: np.ndarray | None, **options: Any) -> np.ndarray:
    given_ = [None if a is None else put(backend, a) for a in arrays]
    return backend.to_numpy(F.batch_norm(*given_, **options))


def gradients(backend: Backend, *arrays: np.ndarray | None, **options: Any) -> list[np.ndarray]:
    given_ = [None if a is None else put(backend, a) for a in arrays]
    return [backend.to_numpy(part) for part in F.batch_norm_grad(*given_, **options)]


def channel_arrays(rng: np.random.Generator, channels: int) -> tuple[np.ndarray, ...]:
    """running mean, running variance, weight and bias."""
    mean, weight, bias = rng.standard_normal((3, channels))
    return mean, rng.random(channels) + 0.5, weight, bias


@given(shape=shapes, seed=st.integers(0, 1000), eps=st.sampled_from([1e-5, 0.1]))
def test_training_is_the_loops(shape, seed, eps, backend) -> None:
    assume(np.prod(shape) >= 2 * shape[1])
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    _, _, weight, bias = channel_arrays(rng, shape[1])
    y = normalise(backend, x, None, None, weight, bias, training=True, eps=eps)
    mean, var = reference.batch_statistics(x)
    assert_close(y, reference.batch_norm(x, mean, var, weight, bias, eps), 1e-10)


@given(shape=shapes, seed=st.integers(0, 1000), eps=st.sampled_from([1e-5, 0.1]))
def test_inference_is_the_loops(shape, seed, eps, backend) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    mean, var, weight, bias = channel_arrays(rng, shape[1])
    y = normalise(backend, x, mean, var, weight, bias, eps=eps)
    assert_close(y, reference.batch_norm(x, mean, var, weight, bias, eps), 1e-12)


@pytest.mark.parametrize("shape", [(6, 3), (4, 2, 5), (3, 2, 4, 3), (2, 2, 3, 2, 2)])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_gradients_by_finite_differences(shape, training, affine, backend, rng) -> None:
    x = rng.standard_normal(shape)
    mean, var, weight, bias = channel_arrays(rng, shape[1])
    if not affine:
        weight = bias = None
    options = {"training": training, "eps": 1e-3}
    assert_derivative(
        lambda x: normalise(backend, x, mean, var, weight, bias, **options),
        lambda x, g: gradients(backend, x, mean, var, weight, g, **options)[0],
        x,
        tolerance=1e-6,
    )
    if affine:
        assert_derivative(
            lambda weight: normalise(backend, x, mean, var, weight, bias, **options),
            lambda weight, g: gradients(backend, x, mean, var, weight, g, **options)[1],
            weight,
        )
        assert_derivative(
            lambda bias: normalise(backend, x, mean, var, weight, bias, **options),
            lambda bias, g: gradients(backend, x, mean, var, weight, g, **options)[2],
            bias,
        )


def test_output_has_mean_0_and_variance_1_whatever_the_input(backend, rng) -> None:
    x = rng.standard_normal((8, 3, 5, 5)) * np.array([0.1, 1, 50]).reshape(3, 1, 1) + 7
    y = normalise(backend, x, training=True, eps=1e-12)
    mean, var = reference.batch_statistics(y)
    assert_close(mean, np.zeros(3), 1e-10)
    assert_close(var, np.ones(3), 1e-8)
    assert_close(normalise(backend, 3 * x - 5, training=True, eps=1e-12), y, 1e-8)


def test_gradient_is_orthogonal_to_what_normalising_removes(backend, rng) -> None:
    """In training y does not change when a channel is shifted or scaled, so δx says so."""
    x, grad = rng.standard_normal((2, 4, 3, 5, 5))
    grad_x = gradients(backend, x, None, None, None, grad, training=True, eps=0.0)[0]
    assert_close(grad_x.sum(axis=(0, 2, 3)), np.zeros(3), 1e-10)
    assert_close((grad_x * x).sum(axis=(0, 2, 3)), np.zeros(3), 1e-10)


@pytest.mark.parametrize("momentum", [0.0, 0.1, 1.0])
def test_running_statistics_move_in_place(momentum, backend, rng) -> None:
    """r ← (1 − momentum)·r + momentum·batch, with the unbiased variance."""
    x = rng.standard_normal((5, 3, 2, 2))
    mean, var, _, _ = channel_arrays(rng, 3)
    running_mean, running_var = put(backend, mean), put(backend, var)
    F.batch_norm(put(backend, x), running_mean, running_var, training=True, momentum=momentum)
    batch_mean, batch_var = reference.batch_statistics(x)
    expected = (1 - momentum) * mean + momentum * batch_mean
    assert_close(backend.to_numpy(running_mean), expected, 1e-12)
    expected = (1 - momentum) * var + momentum * batch_var * 20 / 19
    assert_close(backend.to_numpy(running_var), expected, 1e-12)


def test_only_training_moves_the_running_statistics(backend, rng) -> None:
    x = rng.standard_normal((5, 3, 2, 2))
    mean, var, weight, _ = channel_arrays(rng, 3)
    running_mean, running_var = put(backend, mean), put(backend, var)
    F.batch_norm(put(backend, x), running_mean, running_var)
    for training in (True, False):
        arrays = (put(backend, x), running_mean, running_var, put(backend, weight))
        F.batch_norm_grad(*arrays, put(backend, x), training=training)
    np.testing.assert_array_equal(backend.to_numpy(running_mean), mean)
    np.testing.assert_array_equal(backend.to_numpy(running_var), var)


@pytest.mark.parametrize(
    "wrong",
    [{"weight": (4,)}, {"bias": (4,)}, {"running_var": (4,)}, {"x": (1, 3)}, {"x": (0, 3, 2)}],
)
def test_a_refused_batch_changes_nothing(wrong, backend) -> None:
    given_shapes = {"x": (4, 3), "running_mean": (3,), "running_var": (3,), "weight": (3,),
                    "bias": (3,)}  # fmt: skip
    arrays = {
        name: put(backend, np.ones(wrong.get(name, shape))) for name, shape in given_shapes.items()
    }
    with pytest.raises(ValueError, match=next(iter(wrong))):
        F.batch_norm(*arrays.values(), training=True)
    for array in arrays.values():
        assert (backend.to_numpy(array) == 1).all()


def test_a_large_mean_does_not_hide_a_small_spread(backend, rng) -> None:
    """Variance is not E[x²] − E[x]²: float32 pixels around 1000 keep their spread of 1."""
    x = (1000 + rng.standard_normal((64, 2, 4, 4))).astype("float32")
    y = normalise(backend, x, training=True)
    mean, var = reference.batch_statistics(x.astype("float64"))
    expected = reference.batch_norm(x.astype("float64"), mean, var, np.ones(2), np.zeros(2), 1e-5)
    assert_close(y, expected, 1e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("training", [True, False])
def test_strides_do_not_matter(layout, training, backend, rng) -> None:
    x, grad = rng.standard_normal((2, 4, 3, 5, 2))
    mean, var, weight, bias = channel_arrays(rng, 3)
    laid_x, laid_grad = put(backend, x, layout), put(backend, grad, layout)
    running = put(backend, mean), put(backend, var)
    laid_weight, laid_bias = put(backend, weight, layout), put(backend, bias, layout)
    y = F.batch_norm(laid_x, *running, laid_weight, laid_bias, training=training)
    grads = F.batch_norm_grad(laid_x, *running, laid_weight, laid_grad, training=training)
    plain = normalise(backend, x, mean, var, weight, bias, training=training)
    assert_close(backend.to_numpy(y), plain, 1e-13)
    for actual, expected in zip(
        grads,
        gradients(backend, x, *map(backend.to_numpy, running), weight, grad, training=training),
        strict=True,
    ):
        assert_close(backend.to_numpy(actual), expected, 1e-13)
    for laid, array in (
        (laid_x, x), (laid_grad, grad), (laid_weight, weight), (laid_bias, bias)
    ):  # fmt: skip
        np.testing.assert_array_equal(backend.to_numpy(laid), array)
    assert not backend.xp.shares_memory(y, laid_x)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("training", [True, False])
def test_dtype_is_kept(dtype, training, backend, rng) -> None:
    tolerance = {"float16": 1e-2, "float32": 1e-5, "float64": 1e-12}[dtype]
    x, grad = rng.standard_normal((2, 8, 3, 4, 4)).astype(dtype)
    arrays = [a.astype(dtype) for a in channel_arrays(rng, 3)]
    wide = [a.astype("float64") for a in arrays]
    y = normalise(backend, x, *arrays, training=training)
    assert y.dtype == dtype
    assert_close(y, normalise(backend, x.astype("float64"), *wide, training=training), tolerance)
    for part in gradients(backend, x, *arrays[:3], grad, training=training):
        assert part.dtype == dtype
