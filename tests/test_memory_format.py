"""Batch-last memory stays batch-last through whole networks, and any input strides will do."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from layer_cases import Case, every_layer
from layouts import LAYOUTS
from numerics import put

import arraycnn as ac
from arraycnn import models
from arraycnn.backends import Backend
from arraycnn.layers import Backward, Layer, Residual, Sequential

NETWORKS = {
    "lenet5": (lambda **options: models.lenet5(**options), (8, 1, 28, 28)),
    "lenet1": (lambda **options: models.lenet1(**options), (8, 1, 16, 16)),
    "two_layer_cnn": (lambda **options: models.two_layer_cnn(**options), (4, 1, 28, 28)),
    "resnet": (lambda **options: models.resnet(8, width=4, **options), (8, 3, 16, 16)),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def is_batch_last(x: Any) -> bool:
    return bool(x.transpose(*range(1, x.ndim), 0).flags.c_contiguous)


class Watch(Layer):
    """Passes everything through and notes whether it lies batch last."""

    def __init__(self, seen: list[tuple[str, bool]], name: str) -> None:
        self.seen = seen
        self.name = name

    def forward(self, x: Any) -> tuple[Any, Backward]:
        self.seen.append((f"output of {self.name}", is_batch_last(x)))

        def backward(grad_y: Any) -> Any:
            self.seen.append((f"gradient from above {self.name}", is_batch_last(grad_y)))
            return grad_y

        return x, backward

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        return input_shape


def watched(layer: Layer, seen: list[tuple[str, bool]]) -> Layer:
    """The same network with a watcher behind every layer, inside residual blocks too."""
    match layer:
        case Sequential():
            return Sequential(*(watched(part, seen) for part in layer))
        case Residual():
            shortcut = None if layer.shortcut is None else watched(layer.shortcut, seen)
            block = Residual(watched(layer.body, seen), shortcut)
            return Sequential(block, Watch(seen, "Residual"))
    return Sequential(layer, Watch(seen, repr(layer)))


def step(network: Layer, x: Any) -> tuple[Any, Any]:
    """The output of a training forward and the gradient of half its square in the input."""
    y, backward = network.forward(x)
    return y, backward(y)


@pytest.fixture
def counted(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the arrays that were copied for their layout."""
    copies: list[tuple[int, ...]] = []
    batch_last: Callable[[Any], Any] = backend.batch_last

    def counting(x: Any) -> Any:
        y = batch_last(x)
        if y is not x:
            copies.append(tuple(x.shape))
        return y

    monkeypatch.setattr(backend, "batch_last", counting)
    return copies


@every_layer
def test_every_layer_keeps_batch_last(case: Case, backend: Backend) -> None:
    layer, x = case.make(backend), put(backend, case.input(), "batch_last")
    y, backward = layer.forward(x)
    assert is_batch_last(y)
    assert is_batch_last(layer(x))
    grad = backward(put(backend, backend.to_numpy(y), "batch_last"))
    assert is_batch_last(grad) or "Pad" in case.text  # a plane without border is a slice


@every_network
def test_every_activation_and_gradient_is_batch_last(name: str, backend: Backend) -> None:
    make, shape = NETWORKS[name]
    seen: list[tuple[str, bool]] = []
    network = watched(make(seed=0, backend=backend), seen)
    x = put(backend, np.random.default_rng(0).random(shape, np.float32), "batch_last")
    step(network, x)
    leaves = sum(1 for _ in network.walk(shape))
    assert len(seen) >= leaves  # half of the leaves are watchers; each notes two arrays
    if name == "lenet1":  # the gradient inside a border is a part of a buffer
        seen = [entry for entry in seen if not entry[0].startswith("gradient from above Scaled")]
    assert [what for what, fine in seen if not fine] == []


@every_network
@pytest.mark.parametrize("through", ["fused", "watched"])
def test_only_the_first_activation_is_copied_for_its_layout(
    name: str, through: str, backend: Backend, counted: list[tuple[int, ...]]
) -> None:
    make, shape = NETWORKS[name]
    network = make(seed=0, backend=backend)
    if through == "watched":
        network = watched(network, [])
    x = np.random.default_rng(0).random(shape, np.float32)
    step(network, put(backend, x))
    assert counted == ([] if name == "lenet1" else [shape])  # a border is a copy of its own
    counted.clear()
    step(network, put(backend, x, "batch_last"))
    network(put(backend, x, "batch_last"))
    assert counted == []


def test_residual_blocks_pass_a_foreign_layout_on_once(
    backend: Backend, counted: list[tuple[int, ...]]
) -> None:
    network = ac.Sequential(
        *(ac.Residual(ac.Conv2d(3, 3, 3, padding=1)) for _ in range(4)), seed=0, backend=backend
    )
    shape = (8, 3, 6, 6)
    x, grad_y = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    _, backward = network.forward(put(backend, x))
    assert counted == [shape]
    counted.clear()
    backward(put(backend, grad_y))
    assert counted == [shape]


@every_network
def test_results_and_input_gradients_are_batch_last(name: str, backend: Backend) -> None:
    make, shape = NETWORKS[name]
    network = make(seed=0, backend=backend)
    x = put(backend, np.random.default_rng(0).random(shape, np.float32))
    y, grad = step(network, x)
    assert is_batch_last(y)
    assert is_batch_last(network(x))
    assert is_batch_last(grad) or name == "lenet1"


@pytest.mark.parametrize("shape", [(8, 10), (4, 5, 6, 7)])
def test_the_gradient_of_the_loss_is_batch_last(shape: tuple[int, ...], backend: Backend) -> None:
    logits = put(backend, np.random.default_rng(0).random(shape, np.float32), "batch_last")
    labels = put(backend, np.zeros((shape[0], *shape[2:]), np.int64))
    _, grad = ac.functional.softmax_cross_entropy(logits, labels)
    assert is_batch_last(grad)


@every_network
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_caller_s_strides_do_not_change_a_bit(name: str, layout: str, backend: Backend) -> None:
    make, shape = NETWORKS[name]
    images = np.random.default_rng(0).random(shape, np.float32)
    results = []
    for x in (put(backend, images), put(backend, images, layout)):
        network = make(seed=0, backend=backend)
        y, grad = step(network, x)
        arrays = [y, grad, *(p.grad for p in network.parameters()), network(x)]
        results.append([backend.to_numpy(array) for array in arrays])
        np.testing.assert_array_equal(backend.to_numpy(x), images)
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)


@every_network
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_strides_of_the_output_gradient_do_not_matter(
    name: str, layout: str, backend: Backend
) -> None:
    make, shape = NETWORKS[name]
    x = put(backend, np.random.default_rng(0).random(shape, np.float32))
    grad_y = np.random.default_rng(1).standard_normal((shape[0], 10)).astype(np.float32)
    results = []
    for given in (put(backend, grad_y), put(backend, grad_y, layout)):
        network = make(seed=0, backend=backend)
        _, backward = network.forward(x)
        arrays = [backward(given), *(parameter.grad for parameter in network.parameters())]
        results.append([backend.to_numpy(array) for array in arrays])
        np.testing.assert_array_equal(backend.to_numpy(given), grad_y)
    for one, two in zip(*results, strict=True):
        scale = np.abs(one).max()
        np.testing.assert_allclose(two, one, rtol=0, atol=1e-5 * scale)
