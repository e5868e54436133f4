"""Sequential and Residual: the same as their layers by hand, whatever the layers."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from layer_cases import build, randomize
from numerics import assert_close, put

import arraycnn as ac
from arraycnn.backends import Backend
from arraycnn.layers import Layer

RECTIFIED = [
    ("Conv2d(2, 3, 3, padding=1)", (3, 2, 4, 5)),
    ("Conv2d(2, 3, 1, bias=False)", (3, 2, 4, 5)),
    ("Conv2d(2, 4, 3, stride=2, groups=2)", (3, 2, 5, 5)),
    ("ConvTranspose2d(2, 3, 3, stride=2)", (3, 2, 3, 3)),
    ("BatchNorm(2)", (3, 2, 4, 5)),
    ("BatchNorm(5)", (4, 5)),
    ("Dense(6, 4)", (5, 6)),
    ("Dense(6, 4, bias=False)", (5, 6)),
    ("MaxPool2d(2)", (3, 2, 4, 5)),
    ("MaxPool2d(3, stride=2, padding=1)", (3, 2, 5, 5)),
    ("Residual(Conv2d(2, 2, 3, padding=1))", (3, 2, 4, 5)),
    ("Residual(Conv2d(2, 3, 1), shortcut=Conv2d(2, 3, 1))", (3, 2, 4, 5)),
]


def make(text: str, backend: Backend) -> Layer:
    layer = build(text).to(backend, dtype="float64")
    randomize(layer)
    return layer


def normal(backend: Backend, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return put(backend, np.random.default_rng(seed).standard_normal(shape))


def grads(backend: Backend, layer: Layer) -> list[np.ndarray]:
    """The gradients on the host, which are then reset."""
    found = [backend.to_numpy(parameter.grad) for parameter in layer.parameters()]
    for parameter in layer.parameters():
        parameter.grad = None
    return found


class TestSequential:
    @pytest.mark.parametrize(("text", "shape"), RECTIFIED)
    def test_a_relu_that_is_part_of_another_layer_is_a_relu(
        self, backend: Backend, text: str, shape: tuple[int, ...]
    ) -> None:
        layer, relu, x = make(text, backend), ac.ReLU(), normal(backend, shape)
        network = make(f"Sequential({text}, ReLU())", backend)
        h, layer_backward = layer.forward(x)
        y, relu_backward = relu.forward(h)
        grad_y = normal(backend, y.shape, seed=1)
        grad_x = layer_backward(relu_backward(grad_y))
        fused, backward = network.forward(x)
        np.testing.assert_array_equal(backend.to_numpy(fused), backend.to_numpy(y))
        assert_close(backend.to_numpy(backward(grad_y)), backend.to_numpy(grad_x), 1e-14)
        for one, two in zip(grads(backend, layer), grads(backend, network), strict=True):
            assert_close(two, one, 1e-14)
        for key, array in layer.state_dict().items():
            other = network.state_dict()[f"0.{key}"]
            np.testing.assert_array_equal(backend.to_numpy(other), backend.to_numpy(array))
        np.testing.assert_array_equal(
            backend.to_numpy(network(x)), backend.to_numpy(relu(layer(x)))
        )

    @pytest.mark.parametrize(("text", "shape"), RECTIFIED)
    def test_gradients_through_a_fused_relu(
        self, backend: Backend, text: str, shape: tuple[int, ...]
    ) -> None:
        network = make(f"Sequential({text}, ReLU(), ReLU(), Sigmoid())", backend)
        ac.gradcheck(network, normal(backend, shape))

    @pytest.mark.parametrize("pool", ["MaxPool2d(2)", "MaxPool2d(3, stride=1, padding=1)"])
    def test_a_relu_before_max_pooling_may_come_after_it(self, backend: Backend, pool: str) -> None:
        network = make(f"Sequential(Tanh(), ReLU(), {pool})", backend)
        x = np.random.default_rng(0).integers(-2, 3, (3, 2, 6, 6)).astype(float)  # with ties
        x[0, 0, 0, :4] = np.nan, -np.inf, np.inf, 0
        y, backward = network.forward(put(backend, x))
        grad_y = normal(backend, y.shape)
        expected, backwards = put(backend, x), []
        for layer in network:
            expected, one = layer.forward(expected)
            backwards.insert(0, one)
        grad = grad_y
        for one in backwards:
            grad = one(grad)
        for found in (y, network(put(backend, x))):
            np.testing.assert_array_equal(backend.to_numpy(found), backend.to_numpy(expected))
        np.testing.assert_array_equal(backend.to_numpy(backward(grad_y)), backend.to_numpy(grad))

    @pytest.mark.parametrize("relu", ["", ", ReLU()"])
    @pytest.mark.parametrize("conv", ["Conv2d(2, 4, 3, groups=2)", "Conv1d(2, 4, 3, bias=False)"])
    def test_inference_of_a_convolution_does_its_batch_norm_too(
        self, backend: Backend, conv: str, relu: str
    ) -> None:
        network = make(f"Sequential({conv}, BatchNorm(4){relu}, Tanh())", backend)
        shape = (3, 2, 5, 6)[: 2 + len(network[0].kernel_size)]
        for seed in range(2):  # the running statistics move
            x = normal(backend, shape, seed)
            expected = x
            for layer in network:
                expected = layer(expected)
            assert_close(backend.to_numpy(network(x)), backend.to_numpy(expected), 1e-13)
            network.forward(x)

    @pytest.mark.parametrize("base", [ac.Conv2d, ac.MaxPool2d])
    def test_the_own_methods_of_a_subclass_are_called(self, base: type[Layer]) -> None:
        def forward(self, x):
            return x + 1, lambda grad_y: grad_y

        def inference(self, x):
            return x + 2

        arguments = (1, 1, 3) if base is ac.Conv2d else (2,)
        x = np.zeros((2, 1, 4, 4), np.float32)
        for methods, inferred in (
            ({"forward": forward}, 1),
            ({"forward": forward, "__call__": inference}, 2),
        ):
            layer = type("Own", (base,), methods)(*arguments)
            assert (layer(x) == inferred).all()
            network = ac.Sequential(ac.ReLU(), layer, ac.ReLU(), layer, ac.BatchNorm(1))
            y, _ = ac.Sequential(*network[:4]).forward(x)
            assert (y == 2).all()
            assert (network[:4](x) == 2 * inferred).all()
            np.testing.assert_allclose(network(x), 2 * inferred, rtol=1e-4)

    def test_a_batch_norm_that_does_not_fit_its_convolution_says_so(self) -> None:
        network = ac.Sequential(ac.Conv2d(1, 4, 3), ac.BatchNorm(3))
        with pytest.raises(ValueError, match="num_features is the number of channels"):
            network(np.zeros((1, 1, 5, 5), np.float32))
        network = ac.Sequential(ac.Conv2d(1, 4, 3), ac.BatchNorm(4).to(dtype="float64"))
        with pytest.raises(TypeError, match="dtype of the parameters"):
            network(np.zeros((1, 1, 5, 5), np.float32))

    def test_backwards_of_two_forwards_do_not_disturb_each_other(self, backend: Backend) -> None:
        network = make("Sequential(Conv2d(1, 2, 2), ReLU(), MaxPool2d(2), Flatten())", backend)
        inputs = [normal(backend, (2, 1, 5, 5), seed) for seed in range(2)]
        expected = []
        for x in inputs:
            y, backward = network.forward(x)
            expected.append((backend.to_numpy(backward(y)), grads(backend, network)))
        (y0, backward0), (y1, backward1) = (network.forward(x) for x in inputs)
        for y, backward, (grad_x, parameters) in (
            (y1, backward1, expected[1]),
            (y0, backward0, expected[0]),
        ):
            np.testing.assert_array_equal(backend.to_numpy(backward(y)), grad_x)
            for one, two in zip(grads(backend, network), parameters, strict=True):
                np.testing.assert_array_equal(one, two)

    def test_a_layer_used_twice_adds_its_gradients_up(self, backend: Backend) -> None:
        shared = make("Conv2d(2, 2, 3, padding=1)", backend)
        twice = ac.Sequential(shared, ac.Tanh(), shared)
        copies = make("Sequential(Conv2d(2, 2, 3, padding=1), Tanh(), Conv2d(2, 2, 3, padding=1))",
                      backend)  # fmt: skip
        copies.load_state_dict(twice.state_dict())
        x = normal(backend, (2, 2, 4, 4))
        y, backward = twice.forward(x)
        z, other_backward = copies.forward(x)
        np.testing.assert_array_equal(backend.to_numpy(y), backend.to_numpy(z))
        np.testing.assert_array_equal(
            backend.to_numpy(backward(y)), backend.to_numpy(other_backward(z))
        )
        assert len(twice.parameters()) == 2
        assert [name for name, _ in twice.named_parameters()] == ["0.weight", "0.bias"]
        first_weight, first_bias, second_weight, second_bias = grads(backend, copies)
        weight, bias = grads(backend, twice)
        np.testing.assert_allclose(weight, first_weight + second_weight, rtol=1e-13)
        np.testing.assert_allclose(bias, first_bias + second_bias, rtol=1e-13)
        ac.gradcheck(twice, x)

    @pytest.mark.parametrize(
        "text",
        [
            "Sequential(Conv2d(1, 2, 2), ReLU(), Flatten(), Dense(18, 3))",
            "Sequential(AvgPool2d(1), Tanh(), Conv2d(1, 2, 2), BatchNorm(2), Flatten())",
            "Sequential(BatchNorm(1), ReLU(), Flatten())",
            "Sequential(Sequential(Sequential(Conv2d(1, 2, 2)), ReLU()), Flatten(), Dense(18, 3))",
            "Sequential(Flatten(), Sigmoid(), Dense(16, 3), ReLU())",
            "Sequential(Tanh(), Flatten())",
            "Sequential(Residual(Conv2d(1, 1, 3, padding=1)), Flatten(), Dense(16, 2))",
            "Sequential(Residual(ReLU(), Conv2d(1, 1, 1)), Flatten())",
            "Residual(Conv2d(1, 2, 1), Conv2d(1, 2, 3, padding=1))",
            "Residual(Sequential(BatchNorm(1), ReLU()))",
        ],
    )
    def test_skipping_the_input_gradient_leaves_the_others(
        self, backend: Backend, text: str
    ) -> None:
        network = make(text, backend)
        y, backward = network.forward(normal(backend, (2, 1, 4, 4)))
        grad_y = normal(backend, y.shape, seed=1)
        assert backward(grad_y).shape == (2, 1, 4, 4)
        full = grads(backend, network)
        assert backward(grad_y, input_grad=False) is None
        for one, two in zip(grads(backend, network), full, strict=True):
            assert_close(one, two, 1e-13)

    def test_indexing_shares_the_layers(self, backend: Backend) -> None:
        network = make("Sequential(Conv2d(1, 2, 2), ReLU(), Flatten(), Dense(18, 3))", backend)
        x = normal(backend, (2, 1, 4, 4))
        assert len(network) == 4
        assert list(network) == [network[index] for index in range(4)]
        assert network[-1] is network.layers[3]
        head, tail = network[:2], network[2:]
        np.testing.assert_array_equal(backend.to_numpy(tail(head(x))), backend.to_numpy(network(x)))
        assert head.parameters()[0] is network.parameters()[0]

    def test_inference_differs_from_training_all_the_way_down(self, backend: Backend) -> None:
        network = make(
            "Sequential(Residual(Sequential(BatchNorm(2), Dropout(p=0.5))), Dropout(p=0.5))",
            backend,
        )
        x = normal(backend, (3, 2, 4))
        y = backend.to_numpy(network(x))
        norm = network[0].body[0]
        np.testing.assert_array_equal(y, backend.to_numpy(norm(x) + x))
        assert {state["counter"] for state in network.random_state().values()} == {0}
        assert int(norm.num_batches_tracked.data) == 0
        network.forward(x)
        assert {state["counter"] for state in network.random_state().values()} == {1}
        assert int(norm.num_batches_tracked.data) == 1

    def test_nested_repr_reconstructs(self) -> None:
        text = (
            "Sequential(Conv2d(1, 2, 3, padding=1), Residual(Sequential(Conv2d(2, 2, 1), ReLU()), "
            "shortcut=BatchNorm(2)), Residual(ReLU()), Sequential(Flatten()))"
        )
        assert repr(build(text)) == text

    def test_dropping_the_closure_frees_every_activation(self, backend: Backend) -> None:
        network = ac.models.lenet5(seed=0, backend=backend)
        outputs: list[weakref.ref] = []

        class Probe(ac.layers.Layer):
            def forward(self, x):
                outputs.append(weakref.ref(x))
                return x, lambda grad_y: grad_y

            def output_shape(self, input_shape):
                return input_shape

        probed = ac.Sequential(*(part for layer in network for part in (layer, Probe())))
        gc.disable()
        try:
            y, backward = probed.forward(put(backend, np.ones((2, 1, 28, 28), np.float32)))
            assert any(ref() is not None for ref in outputs[1:-1])
            backward(y)
            del y, backward
            assert [ref() for ref in outputs] == [None] * len(network)
        finally:
            gc.enable()


class TestResidual:
    def test_adds_body_and_shortcut(self, backend: Backend) -> None:
        block = make("Residual(Conv2d(2, 3, 3, padding=1), shortcut=Conv2d(2, 3, 1))", backend)
        x = normal(backend, (2, 2, 4, 4))
        expected = backend.to_numpy(block.body(x)) + backend.to_numpy(block.shortcut(x))
        np.testing.assert_array_equal(backend.to_numpy(block(x)), expected)
        np.testing.assert_array_equal(backend.to_numpy(block.forward(x)[0]), expected)

    @pytest.mark.parametrize(
        "text",
        [
            "Residual(Conv2d(2, 2, 3, padding=1))",
            "Residual(Sequential(Conv2d(2, 3, 1), ReLU()), shortcut=Conv2d(2, 3, 1))",
            "Sequential(Residual(Conv2d(2, 2, 1)), ReLU(), Residual(Tanh()), Flatten())",
            "Residual(Residual(Sequential(BatchNorm(2), ReLU())))",
        ],
    )
    def test_gradients(self, backend: Backend, text: str) -> None:
        ac.gradcheck(make(text, backend), normal(backend, (2, 2, 3, 3)))

    def test_neither_input_nor_grad_output_is_changed(self, backend: Backend) -> None:
        block = make("Sequential(Residual(ReLU()), Residual(Flatten(), Flatten()))", backend)
        for layout in (None, "batch_last"):
            start = np.random.default_rng(0).standard_normal((2, 2, 3))
            x = put(backend, start, layout)
            y, backward = block.forward(x)
            grad_y = np.random.default_rng(1).standard_normal(y.shape)
            given = put(backend, grad_y, layout)
            backward(given)
            np.testing.assert_array_equal(backend.to_numpy(x), start)
            np.testing.assert_array_equal(backend.to_numpy(given), grad_y)

    def test_names_of_its_state(self) -> None:
        block = build("Residual(Sequential(Conv2d(1, 1, 1)), shortcut=Conv2d(1, 1, 1, bias=False))")
        assert list(block.state_dict()) == ["body.0.weight", "body.0.bias", "shortcut.weight"]


def test_forwards_in_threads_give_what_they_give_alone(backend: Backend) -> None:
    network = ac.Sequential(
        ac.Conv2d(1, 8, 3, padding=1), ac.ReLU(), ac.MaxPool2d(2),
        ac.Residual(ac.Conv2d(8, 8, 3, padding=1)), ac.Tanh(), ac.AvgPool2d(2),
        ac.Flatten(), ac.Dense(72, 10), ac.Softmax(),
        seed=0, backend=backend,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    batches = [rng.standard_normal((8, 1, 12, 12)).astype(np.float32) for _ in range(16)]

    def step(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y, backward = network.forward(x)
        return backend.to_numpy(y), backend.to_numpy(backward(y))

    alone = [step(x) for x in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(step, batches))
    for one, two in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one[0], two[0])
        np.testing.assert_array_equal(one[1], two[1])
