"""The gradient check catches what it is for, and leaves no trace."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from layer_cases import randomize
from numerics import put

import arraycnn as ac
from arraycnn.backends import Backend
from arraycnn.layers import Layer, Parameter


def cube(backward: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
    """y = x³ with the given backward(x, grad_y)."""
    return lambda x: (x**3, lambda grad_y: backward(x, grad_y))


class Affine(Layer):
    """y = a·x + b with some of its gradients wrong, by name."""

    def __init__(self, backend: Backend, wrong: str = "") -> None:
        self.backend = backend
        self.wrong = wrong
        self.a = Parameter(backend.asarray(np.array([2.0, -1.0])))
        self.b = Parameter(backend.asarray(np.array([0.5, 0.25])))

    def forward(self, x: Any) -> tuple[Any, Callable[[Any], Any]]:
        def backward(grad_y: Any) -> Any:
            self.a.add_grad((grad_y * (1 if self.wrong == "a" else x)).sum(axis=0))
            if self.wrong != "b":
                self.b.add_grad(grad_y.sum(axis=0))
            return grad_y * (1 if self.wrong == "x" else self.a.data)

        return self.a.data * x + self.b.data, backward

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        return input_shape


@pytest.fixture
def x(backend: Backend) -> Any:
    return put(backend, np.random.default_rng(0).standard_normal((3, 2)))


def test_a_right_gradient_passes(x: Any, backend: Backend) -> None:
    ac.gradcheck(cube(lambda x, grad_y: 3 * x**2 * grad_y), x)
    ac.gradcheck(Affine(backend), x)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, grad_y: 3 * x * grad_y,
        lambda x, grad_y: -3 * x**2 * grad_y,
        lambda x, grad_y: 3 * x**2 * grad_y * (1 + 1e-4),
        lambda x, grad_y: 3 * x**2 * grad_y[::-1],
        lambda x, grad_y: 0 * x,
        lambda x, grad_y: grad_y * float("nan"),
    ],
)
def test_a_wrong_gradient_is_caught(wrong: Callable[[Any, Any], Any], x: Any) -> None:
    with pytest.raises(ac.GradientError, match=r"gradient of input 0 at \(\d, \d\) is .* but"):
        ac.gradcheck(cube(wrong), x)


def test_one_wrong_element_is_caught(x: Any) -> None:
    def backward(x: Any, grad_y: Any) -> Any:
        grad = 3 * x**2 * grad_y
        grad[1, 1] += 0.1
        return grad

    with pytest.raises(ac.GradientError, match=r"input 0 at \(1, 1\)"):
        ac.gradcheck(cube(backward), x)


@pytest.mark.parametrize(("wrong", "message"), [("a", "of a at"), ("x", "of input 0 at"),
                                                ("b", "b got no gradient")])  # fmt: skip
def test_the_message_names_the_parameter(
    wrong: str, message: str, x: Any, backend: Backend
) -> None:
    with pytest.raises(ac.GradientError, match=message):
        ac.gradcheck(Affine(backend, wrong), x)


def test_a_layer_deep_inside_a_network_is_caught(x: Any, backend: Backend) -> None:
    network = ac.Sequential(ac.Tanh(), ac.Residual(Affine(backend, "a")), ac.Tanh())
    with pytest.raises(ac.GradientError, match=r"1\.body\.a"):
        ac.gradcheck(network, x)


def test_functions_of_several_inputs(x: Any) -> None:
    def product(a: Any, b: Any) -> Any:
        return a * b, lambda grad_y: (grad_y * b, grad_y * a)

    def wrong(a: Any, b: Any) -> Any:
        return a * b, lambda grad_y: (grad_y * b, grad_y * b)

    ac.gradcheck(product, x, x + 1)
    with pytest.raises(ac.GradientError, match="input 1"):
        ac.gradcheck(wrong, x, x + 1)


@pytest.mark.parametrize(
    ("gradients", "message"),
    [
        (lambda x: (x, x), "2 gradients for 1 inputs"),
        (lambda x: x[:1], r"gradient of input 0 has shape \(1, 2\) instead of \(3, 2\)"),
        (lambda x: x[..., None], r"shape \(3, 2, 1\) instead of \(3, 2\)"),
        (lambda x: None, "input 0 got no gradient"),
    ],
)
def test_gradients_of_the_wrong_kind_are_caught(
    gradients: Callable[[Any], Any], message: str, x: Any
) -> None:
    with pytest.raises(ac.GradientError, match=message):
        ac.gradcheck(lambda x: (x, gradients), x)


@pytest.mark.parametrize("wrong", [False, True])
def test_leaves_no_trace(wrong: bool, backend: Backend) -> None:
    network = ac.Sequential(
        ac.BatchNorm(2), ac.Dropout(0.5), ac.Dense(2, 2), *([Affine(backend, "a")] * wrong),
        seed=0, backend=backend,
    ).to(dtype="float64")  # fmt: skip
    randomize(network)
    x = np.random.default_rng(0).standard_normal((4, 2))
    given = put(backend, x, "read_only")
    grad = backend.asarray(np.ones((2, 2)))
    network[2].weight.grad = grad
    state = {name: backend.to_numpy(a).copy() for name, a in network.state_dict().items()}
    random_state = network.random_state()
    if wrong:
        with pytest.raises(ac.GradientError):
            ac.gradcheck(network, given)
    else:
        ac.gradcheck(network, given)
    np.testing.assert_array_equal(backend.to_numpy(given), x)
    for name, array in network.state_dict().items():
        np.testing.assert_array_equal(backend.to_numpy(array), state[name], err_msg=name)
    assert network.random_state() == random_state
    assert network[2].weight.grad is grad
    np.testing.assert_array_equal(backend.to_numpy(grad), 1)
    assert network[0].weight.grad is None


class TestMistakes:
    def test_float32_inputs_or_parameters(self, x: Any, backend: Backend) -> None:
        with pytest.raises(TypeError, match=r"input 0 is float32; convert it with astype"):
            ac.gradcheck(ac.ReLU(), x.astype("float32"))
        layer = ac.Dense(2, 2, backend=backend)
        with pytest.raises(TypeError, match=r"weight is float32; .*\.to\(dtype='float64'\)"):
            ac.gradcheck(layer, x)

    def test_lists(self) -> None:
        with pytest.raises(TypeError, match="input 0 is list"):
            ac.gradcheck(ac.ReLU(), [[1.0]])

    def test_nothing_to_check(self) -> None:
        with pytest.raises(TypeError, match="at least one input"):
            ac.gradcheck(lambda: None)

    @pytest.mark.parametrize("name", ["step", "tolerance"])
    @pytest.mark.parametrize("value", [0, -1e-6, float("nan"), float("inf")])
    def test_step_and_tolerance(self, name: str, value: float, x: Any) -> None:
        with pytest.raises(ValueError, match=f"{name} must be a finite number above 0"):
            ac.gradcheck(ac.Tanh(), x, **{name: value})
