"""Losses: values, their gradients, reductions, label types, memory."""

from typing import Any

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from layouts import LAYOUTS
from numerics import assert_close, put

from arraycnn import functional as F
from arraycnn.backends import Backend

REDUCTIONS = ("mean", "sum", "none")


def evaluate(
    backend: Backend, name: str, *arrays: np.ndarray, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """(loss, gradient) as NumPy arrays."""
    options = {k: put(backend, v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    loss, grad = getattr(F, name)(*(put(backend, a) for a in arrays), **options)
    return backend.to_numpy(loss), backend.to_numpy(grad)


def assert_gradient(backend: Backend, name: str, x: np.ndarray, *rest: Any, **options: Any) -> None:
    """The returned gradient is the derivative of the returned loss (summed, if not reduced)."""
    grad, step = evaluate(backend, name, x, *rest, **options)[1], 1e-5
    assert grad.shape == x.shape
    for direction in np.random.default_rng(3).standard_normal((4, *x.shape)):
        ahead = evaluate(backend, name, x + step * direction, *rest, **options)[0].sum()
        behind = evaluate(backend, name, x - step * direction, *rest, **options)[0].sum()
        slope = (ahead - behind) / (2 * step)
        assert abs(slope - (grad * direction).sum()) <= 1e-7 * (1 + np.abs(grad * direction).sum())


# Softmax cross-entropy


@given(
    batch=st.integers(1, 5),
    classes=st.integers(1, 5),
    weighted=st.booleans(),
    label_smoothing=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    ignore_index=st.sampled_from([None, -100, 0, 2]),
    seed=st.integers(0, 1000),
)
def test_cross_entropy_is_the_loops(
    batch, classes, weighted, label_smoothing, ignore_index, seed, backend
) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = rng.standard_normal((batch, classes)), rng.integers(0, classes, batch)
    if ignore_index is not None:
        labels[rng.random(batch) < 0.3] = ignore_index
    options: dict[str, Any] = {"label_smoothing": label_smoothing, "ignore_index": ignore_index}
    if weighted:
        options["weight"] = rng.random(classes) + 0.5
    if ignore_index is not None and ignore_index >= 0:
        labels[labels >= classes] = classes - 1
    losses, norm = reference.cross_entropy(logits, labels, **options)
    name = "softmax_cross_entropy"
    loss, grad = evaluate(backend, name, logits, labels, reduction="none", **options)
    assert_close(loss, losses, 1e-12)
    total, summed = evaluate(backend, name, logits, labels, reduction="sum", **options)
    assert_close(total, losses.sum(), 1e-12)
    assert_close(summed, grad, 1e-12)
    mean, averaged = evaluate(backend, name, logits, labels, **options)
    if norm.any():
        assert_close(mean, losses.sum() / norm.sum(), 1e-12)
        assert_close(averaged, grad / norm.sum(), 1e-12)
    else:
        assert np.isnan(mean)
        assert not averaged.any()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("ignore_index", [None, 1, -1])
@pytest.mark.parametrize("spatial", [(), (2, 3)])
def test_cross_entropy_by_finite_differences(
    reduction, label_smoothing, ignore_index, spatial, backend, rng
) -> None:
    logits = rng.standard_normal((4, 5, *spatial))
    labels = rng.integers(0, 5, (4, *spatial))
    if ignore_index is not None:
        labels.reshape(-1)[1] = ignore_index
    assert_gradient(
        backend,
        "softmax_cross_entropy",
        logits,
        labels,
        weight=rng.random(5) + 0.5,
        reduction=reduction,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
    )


def test_cross_entropy_gradient_is_softmax_minus_one_hot(backend, rng) -> None:
    logits, labels = rng.standard_normal((6, 4)), np.array([0, 1, 2, 3, 0, 1])
    grad = evaluate(backend, "softmax_cross_entropy", logits, labels)[1]
    softmax = backend.to_numpy(F.softmax(put(backend, logits)))
    assert_close(grad, (softmax - np.eye(4)[labels]) / 6, 1e-13)


def test_cross_entropy_of_equal_logits_is_the_log_of_the_classes(backend) -> None:
    loss, grad = evaluate(
        backend, "softmax_cross_entropy", np.full((3, 10), 7.0), np.array([0, 4, 9])
    )
    assert_close(loss, np.asarray(np.log(10)), 1e-14)
    assert_close(grad.sum(axis=1), np.zeros(3), 1e-14)


@given(shift=st.floats(-1e3, 1e3), seed=st.integers(0, 100))
def test_cross_entropy_does_not_see_a_common_shift(shift, seed, backend) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = rng.standard_normal((4, 3)), rng.integers(0, 3, 4)
    for plain, shifted in zip(
        evaluate(backend, "softmax_cross_entropy", logits, labels),
        evaluate(backend, "softmax_cross_entropy", logits + shift, labels),
        strict=True,
    ):
        assert_close(shifted, plain, 1e-11)


def test_cross_entropy_of_images_is_that_of_their_pixels(backend, rng) -> None:
    logits, labels = rng.standard_normal((2, 3, 4, 5)), rng.integers(0, 3, (2, 4, 5))
    loss, grad = evaluate(backend, "softmax_cross_entropy", logits, labels)
    pixels = np.moveaxis(logits, 1, -1).reshape(-1, 3)
    flat_loss, flat_grad = evaluate(backend, "softmax_cross_entropy", pixels, labels.ravel())
    assert_close(loss, flat_loss, 1e-13)
    assert_close(np.moveaxis(grad, 1, -1).reshape(-1, 3), flat_grad, 1e-13)


@pytest.mark.parametrize("ignore_index", [-100, 255, 1])
def test_ignored_labels_are_as_if_left_out(ignore_index, backend, rng) -> None:
    logits = rng.standard_normal((6, 4))
    labels = np.array([0, ignore_index, 2, 3, ignore_index, 2])
    keep = labels != ignore_index
    weight = rng.random(4) + 0.5
    for options in ({}, {"weight": weight}, {"label_smoothing": 0.1}):
        loss, grad = evaluate(
            backend, "softmax_cross_entropy", logits, labels, ignore_index=ignore_index, **options
        )
        fewer, fewer_grad = evaluate(
            backend, "softmax_cross_entropy", logits[keep], labels[keep], **options
        )
        assert_close(loss, fewer, 1e-13)
        assert_close(grad[keep], fewer_grad, 1e-13)
        assert not grad[~keep].any()


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "uint32", "int64", "uint64"])
def test_every_integer_type_labels(dtype, backend, rng) -> None:
    logits, labels = rng.standard_normal((4, 3)).astype("float32"), np.array([0, 2, 1, 1])
    expected = evaluate(backend, "softmax_cross_entropy", logits, labels)
    actual = evaluate(backend, "softmax_cross_entropy", logits, labels.astype(dtype))
    for narrow, wide in zip(actual, expected, strict=True):
        assert narrow.dtype == np.float32
        np.testing.assert_array_equal(narrow, wide)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_confident_logits_stay_finite(dtype, backend) -> None:
    logits = np.array([[3e4, -3e4, 0.0], [-3e4, 3e4, 0.0]], dtype)
    loss, grad = evaluate(
        backend, "softmax_cross_entropy", logits, np.array([0, 1]), reduction="none"
    )
    np.testing.assert_array_equal(loss, [0, 0])
    assert np.isfinite(grad).all()


# Mean squared error


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 2, 2)])
def test_squared_error(reduction, shape, backend, rng) -> None:
    prediction, target = rng.standard_normal((2, *shape))
    squares = (prediction - target) ** 2
    loss, _ = evaluate(backend, "mse_loss", prediction, target, reduction=reduction)
    expected = {"mean": squares.mean(), "sum": squares.sum(), "none": squares}[reduction]
    assert_close(loss, np.asarray(expected), 1e-13)
    assert_gradient(backend, "mse_loss", prediction, target, reduction=reduction)


# Binary cross-entropy


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weight", [None, (4,), (3, 1), (3, 4)])
@pytest.mark.parametrize("pos_weight", [None, (4,), (1,)])
def test_binary_cross_entropy(reduction, weight, pos_weight, backend, rng) -> None:
    logits, targets = rng.standard_normal((3, 4)), rng.random((3, 4))
    options: dict[str, Any] = {"reduction": reduction}
    weights = {"weight": weight, "pos_weight": pos_weight}
    options |= {name: rng.random(shape) + 0.5 for name, shape in weights.items() if shape}
    p = 1 / (1 + np.exp(-logits))
    losses = -options.get("pos_weight", 1) * targets * np.log(p) - (1 - targets) * np.log(1 - p)
    losses = losses * options.get("weight", 1)
    loss, _ = evaluate(backend, "binary_cross_entropy_with_logits", logits, targets, **options)
    expected = {"mean": losses.mean(), "sum": losses.sum(), "none": losses}[reduction]
    assert_close(loss, np.asarray(expected), 1e-12)
    assert_gradient(backend, "binary_cross_entropy_with_logits", logits, targets, **options)


def test_binary_is_two_class_cross_entropy(backend, rng) -> None:
    logits, labels = rng.standard_normal(7), rng.integers(0, 2, 7)
    two = np.stack([np.zeros(7), logits], axis=1)
    loss, grad = evaluate(backend, "binary_cross_entropy_with_logits", logits, labels.astype(float))
    expected, grads = evaluate(backend, "softmax_cross_entropy", two, labels)
    assert_close(loss, expected, 1e-13)
    assert_close(grad, grads[:, 1], 1e-13)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_binary_cross_entropy_of_extreme_logits(dtype, backend) -> None:
    logits = np.array([3e4, -3e4, 3e4, -3e4], dtype)
    targets = np.array([1, 0, 0, 1], dtype)
    loss, grad = evaluate(
        backend, "binary_cross_entropy_with_logits", logits, targets, reduction="none"
    )
    np.testing.assert_allclose(loss, [0, 0, 3e4, 3e4], rtol=1e-3)
    np.testing.assert_array_equal(grad, [0, 0, 1, -1])


# Every loss

LOSSES = ("softmax_cross_entropy", "mse_loss", "binary_cross_entropy_with_logits")


def arguments(name: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    x = rng.standard_normal((3, 4, 2, 5))
    if name == "softmax_cross_entropy":
        return x, rng.integers(0, 4, (3, 2, 5))
    return x, rng.random((3, 4, 2, 5))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_dtype_is_kept(name, dtype, reduction, backend, rng) -> None:
    tolerance = {"float16": 1e-2, "float32": 1e-5, "float64": 1e-12}[dtype]
    wide = arguments(name, rng)
    narrow = [a.astype(dtype) if a.dtype.kind == "f" else a for a in wide]
    loss, grad = evaluate(backend, name, *narrow, reduction=reduction)
    assert loss.dtype == grad.dtype == dtype
    assert loss.ndim == (0 if reduction != "none" else narrow[1].ndim)
    expected = evaluate(backend, name, *wide, reduction=reduction)
    assert_close(loss, expected[0], tolerance)
    assert_close(grad, expected[1], tolerance)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_do_not_matter(name, layout, backend, rng) -> None:
    x, target = arguments(name, rng)
    laid_x, laid_target = put(backend, x, layout), put(backend, target, layout)
    loss, grad = getattr(F, name)(laid_x, laid_target)
    for actual, expected in zip((loss, grad), evaluate(backend, name, x, target), strict=True):
        assert_close(backend.to_numpy(actual), expected, 1e-14)
    np.testing.assert_array_equal(backend.to_numpy(laid_x), x)
    np.testing.assert_array_equal(backend.to_numpy(laid_target), target)
    assert not backend.xp.shares_memory(grad, laid_x)
