"""`explain`: the matrices are those that the layer computes with."""

from typing import Any

import numpy as np
import pytest

import arraycnn as ac
from arraycnn import functional as F


def explained(conv: Any, shape: tuple[int, ...]) -> tuple[Any, Any, Any, Any]:
    rng = np.random.default_rng(3)
    x = rng.standard_normal(shape)
    h, backward = conv.forward(x)
    delta = rng.standard_normal(h.shape)
    return ac.explain(conv, x, delta), x, h, backward(delta)


def test_the_lectures_index_matrix() -> None:
    explanation = ac.explain(ac.Conv2d(1, 1, 2), np.zeros((1, 1, 3, 3), np.float32))
    assert explanation.index.tolist() == [[0, 1, 3, 4], [1, 2, 4, 5], [3, 4, 6, 7], [4, 5, 7, 8]]


@pytest.mark.parametrize(
    ("conv", "shape"),
    [
        (ac.Conv2d(1, 1, 2, dtype="float64"), (1, 1, 3, 3)),
        (ac.Conv2d(2, 3, 3, stride=2, padding=1, dtype="float64"), (1, 2, 5, 4)),
        (ac.Conv2d(4, 6, 2, groups=2, dilation=2, bias=False, dtype="float64"), (1, 4, 5, 5)),
        (ac.Conv1d(2, 3, 3, padding="same", dtype="float64"), (1, 2, 7)),
        (ac.Conv3d(1, 2, 2, dtype="float64"), (1, 1, 3, 3, 4)),
    ],
    ids=repr,
)
def test_every_matrix_is_the_layers(conv: Any, shape: tuple[int, ...]) -> None:
    explanation, x, h, grad_x = explained(conv, shape)
    outputs = h.shape[1]
    np.testing.assert_allclose(explanation.output.reshape(h.shape), h, atol=1e-12)
    np.testing.assert_allclose(explanation.grad_input, grad_x[0], atol=1e-12)
    if conv.bias is not None:
        np.testing.assert_allclose(explanation.grad_bias, conv.bias.grad, atol=1e-12)
    grad_kernel = explanation.grad_kernel
    rows, columns = outputs // conv.groups, grad_kernel.shape[1] // conv.groups
    for group in range(conv.groups):
        own = slice(group * rows, (group + 1) * rows)
        block = grad_kernel[own, group * columns : (group + 1) * columns]
        expected = conv.weight.grad[own].reshape(rows, -1)
        np.testing.assert_allclose(block, expected, atol=1e-12)
    settings = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}
    np.testing.assert_array_equal(explanation.columns, F.im2col(x, conv.kernel_size, **settings)[0])
    seen = np.append(x.ravel(), 0.0)[explanation.index]  # −1, padding, picks the 0
    np.testing.assert_array_equal(explanation.columns, seen)


def test_the_gradient_is_ones_by_default_and_the_layer_untouched() -> None:
    conv = ac.Conv2d(1, 2, 2)
    explanation = ac.explain(conv, np.ones((1, 1, 3, 3), np.float32))
    assert explanation.grad_bias.tolist() == [4, 4]
    assert explanation.grad_kernel.tolist() == [[4, 4, 4, 4]] * 2
    assert conv.weight.grad is None


def test_text_names_every_equation() -> None:
    text = str(ac.explain(ac.Conv2d(1, 1, 2, seed=0), np.eye(3, dtype=np.float32)[None, None]))
    for equation in ("(8) v = im2col(x)", "(9) h = K v + b", "(10) δK = Δ vᵀ", "(11) δb",
                     "(12) δv = Kᵀ Δ", "(13) δx = col2im(δv)"):  # fmt: skip
        assert equation in text
    assert "  0 1 3 4\n  1 2 4 5\n  3 4 6 7\n  4 5 7 8" in text
    assert str(ac.explain(ac.Conv2d(2, 2, 1, groups=2), np.ones((1, 2, 2, 2), np.float32))).count(
        "2 blocks for 2 groups"
    )


def test_drawing_shows_every_number_once() -> None:
    pytest.importorskip("matplotlib")
    figure = ac.explain(ac.Conv2d(1, 1, 2), np.ones((1, 1, 3, 3), np.float32)).draw()
    texts = [text.get_text() for text in figure.axes[0].texts]
    for label in ("x", "index", "K", "v", "b", "h", "Δ", "vᵀ", "δK", "δb", "Kᵀ", "δv", "δx"):
        assert label in texts


@pytest.mark.parametrize(
    ("conv", "x", "error", "message"),
    [
        (ac.Dense(4, 2), np.zeros((1, 4)), TypeError, "conv must be a Conv1d, Conv2d or Conv3d"),
        (ac.Conv2d(1, 1, 2), np.zeros((2, 1, 3, 3), np.float32), ValueError, "x must be one sam"),
        (ac.Conv2d(1, 1, 5), np.zeros((1, 1, 64, 64), np.float32), ValueError, "can be read"),
        (ac.Conv2d(2, 1, 2), np.zeros((1, 1, 3, 3), np.float32), ValueError, "x has 1 channels"),
    ],
)
def test_what_cannot_be_explained(conv: Any, x: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        ac.explain(conv, x)


def test_a_gradient_of_another_shape() -> None:
    with pytest.raises(ValueError, match="grad_output must have shape"):
        ac.explain(ac.Conv2d(1, 1, 2), np.zeros((1, 1, 3, 3), np.float32), np.ones((1, 1, 3, 3)))
