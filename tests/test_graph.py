"""Graphs of layers: against PyTorch, against their layers one by one, and what they refuse."""

import copy
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_networks import NETWORKS, unet
from layer_cases import build
from numerics import assert_close, put

import arraycnn as ac
from arraycnn.backends import Backend
from arraycnn.layers import Layer

STORED = np.load(Path(__file__).parent / "oracle" / "graphs.npz")
TOLERANCES = {"float64": 1e-11, "float32": 1e-4}

every_network = pytest.mark.parametrize("name", NETWORKS)


def stored(name: str, what: str) -> dict[str, np.ndarray]:
    start = f"{name}/{what}/"
    return {key.removeprefix(start): STORED[key] for key in STORED.files if key.startswith(start)}


def arrays(name: str, what: str, backend: Backend, dtype: str) -> list[Any]:
    return [put(backend, array.astype(dtype)) for array in stored(name, what).values()]


def load(name: str, backend: Backend, dtype: str) -> ac.Graph:
    network = NETWORKS[name][0]().to(backend, dtype=dtype)
    network.load_state_dict(stored(name, "state"))
    return network


def as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, tuple) else [value]


def assert_all(backend: Backend, found: Any, expected: dict[str, np.ndarray], tolerance: float):
    found = as_list(found)
    assert len(found) == len(expected)
    for one, truth in zip(found, expected.values(), strict=True):
        assert_close(backend.to_numpy(one), truth, tolerance)


@pytest.fixture(params=[True, False], ids=["fused", "one by one"])
def fusing(request: pytest.FixtureRequest):
    with ac.fused(request.param):
        yield request.param


class TestAgainstPyTorch:
    @every_network
    @pytest.mark.parametrize("dtype", TOLERANCES)
    def test_inference(self, name: str, dtype: str, backend: Backend, fusing: bool) -> None:
        network = load(name, backend, dtype)
        y = network(*arrays(name, "x", backend, dtype))
        assert_all(backend, y, stored(name, "inference"), TOLERANCES[dtype])

    @every_network
    @pytest.mark.parametrize("dtype", TOLERANCES)
    def test_training(self, name: str, dtype: str, backend: Backend, fusing: bool) -> None:
        network, tolerance = load(name, backend, dtype), TOLERANCES[dtype]
        y, backward = network.forward(*arrays(name, "x", backend, dtype))
        assert_all(backend, y, stored(name, "training"), tolerance)
        grad_x = backward(*arrays(name, "grad_output", backend, dtype))
        assert_all(backend, grad_x, stored(name, "grad_x"), tolerance)
        expected = stored(name, "grad")
        parameters = dict(network.named_parameters())
        assert parameters.keys() == expected.keys()
        for key, parameter in parameters.items():
            assert_close(backend.to_numpy(parameter.grad), expected[key], tolerance, key)
        for key, array in stored(name, "after").items():
            assert_close(backend.to_numpy(network.state_dict()[key]), array, tolerance, key)


@every_network
def test_gradients_agree_with_finite_differences(name: str, backend: Backend) -> None:
    make, shapes = NETWORKS[name]
    if name == "unet":  # fewer elements to move
        make, shapes = (lambda: unet((1, 2, 2))), ((1, 1, 8, 8),)
    network = make().to(backend, dtype="float64")
    network.initialize(1)
    rng = np.random.default_rng(0)
    ac.gradcheck(network, *(put(backend, rng.standard_normal(shape)) for shape in shapes))


@every_network
def test_a_graph_of_a_graph_is_the_same(name: str, backend: Backend) -> None:
    plain, xs = load(name, backend, "float64"), arrays(name, "x", backend, "float64")
    inner = copy.deepcopy(plain)
    names = inner.inputs
    several = len(inner.outputs) > 1
    nodes = {"inner": (inner, *names)}
    if several:
        nodes |= {f"out{i}": (ac.Identity(), ("inner", i)) for i in range(len(inner.outputs))}
    outputs = tuple(f"out{i}" for i in range(len(inner.outputs))) if several else None
    outer = ac.Graph(nodes, inputs=names, outputs=outputs)
    assert list(outer.state_dict()) == [f"inner.{key}" for key in plain.state_dict()]
    results = []
    for network in (plain, outer):
        y, backward = network.forward(*xs)
        grads = as_list(backward(*arrays(name, "grad_output", backend, "float64")))
        results.append([*as_list(y), *grads, *(p.grad for p in network.parameters()),
                        *as_list(network(*xs))])  # fmt: skip
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(backend.to_numpy(one), backend.to_numpy(two))


@every_network
def test_state_configuration_and_copies(name: str, tmp_path: Path) -> None:
    make, shapes = NETWORKS[name]
    network = make()
    network.initialize(3)
    rng = np.random.default_rng(0)
    xs = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    ac.save_checkpoint(tmp_path / "x.h5", network)
    network.save_safetensors(tmp_path / "x.safetensors")
    loaded = make()
    loaded.load_safetensors(tmp_path / "x.safetensors")
    others = {
        "checkpoint": ac.load_model(tmp_path / "x.h5"),
        "pickle": pickle.loads(pickle.dumps(network)),
        "deepcopy": copy.deepcopy(network),
        "safetensors": loaded,
    }
    for kind, other in others.items():
        assert repr(other) == repr(network), kind
        assert list(other.state_dict()) == list(network.state_dict()), kind
        for one, two in zip(as_list(network(*xs)), as_list(other(*xs)), strict=True):
            np.testing.assert_array_equal(one, two, err_msg=kind)
    if len({id(layer) for _, layer in network.children()}) == len(network.nodes):
        assert repr(build(repr(network))) == repr(network)
    other = make()
    other.initialize(3)
    np.testing.assert_array_equal(
        as_list(other(*xs))[0], as_list(network(*xs))[0]
    )  # whatever the order in which nodes can be run


@every_network
def test_output_shape_and_summary(name: str) -> None:
    make, shapes = NETWORKS[name]
    network = make()
    outputs = network(*(np.zeros(shape, np.float32) for shape in shapes))
    found = network.output_shape(*shapes)
    assert as_list(found if len(network.outputs) > 1 else (found,)) == [
        y.shape for y in as_list(outputs)
    ]
    table = ac.summary(network, *shapes)
    assert {row.name for row in table.rows} == {node.name for node in network.nodes}
    assert table.parameters == sum(p.size for p in network.parameters())
    assert table.multiply_adds == network.multiply_adds(*shapes) > 0
    assert table.input_shapes == shapes
    assert str(table)


class Split(Layer):
    """Two outputs: the first channels and the others."""

    def __init__(self, count: int) -> None:
        self.count = count

    def forward(self, x):
        k = self.count

        def backward(grads):
            assert isinstance(grads, tuple)
            zeros = [np.zeros_like(part) for part in (x[:, :k], x[:, k:])]
            given = [z if g is None else g for z, g in zip(zeros, grads, strict=True)]
            return np.concatenate(given, axis=1)

        return (x[:, :k], x[:, k:]), backward

    def output_shape(self, s):
        return (s[0], self.count, *s[2:]), (s[0], s[1] - self.count, *s[2:])


class TestSeveralOutputsOfANode:
    def make(self, outputs: Any = None) -> ac.Graph:
        return ac.Graph(
            {
                "split": (Split(1), "x"),
                "tanh": (ac.Tanh(), ("split", 0)),
                "twice": (ac.Add(), ("split", 1), ("split", 1)),
                "y": (ac.Multiply(), "tanh", "twice"),
            },
            outputs=outputs,
        )

    def test_each_is_named_by_its_index(self) -> None:
        x = np.random.default_rng(0).standard_normal((2, 2, 3))
        network = self.make()
        np.testing.assert_allclose(network(x), np.tanh(x[:, :1]) * 2 * x[:, 1:])
        assert network.output_shape(x.shape) == (2, 1, 3)
        ac.gradcheck(network, x)

    def test_what_is_not_used_gets_no_gradient(self) -> None:
        x = np.random.default_rng(0).standard_normal((2, 2, 3))
        network = ac.Graph({"split": (Split(1), "x"), "y": (ac.Tanh(), ("split", 1))})
        ac.gradcheck(network, x)

    def test_outputs_may_be_parts(self) -> None:
        x = np.random.default_rng(0).standard_normal((2, 3, 4))
        network = ac.Graph({"split": (Split(2), "x")}, outputs=[("split", 1), ("split", 0)])
        (second, first), backward = network.forward(x)
        np.testing.assert_array_equal(np.concatenate([first, second], axis=1), x)
        np.testing.assert_array_equal(backward((second, None))[:, :2], 0)
        assert network.output_shape(x.shape) == ((2, 1, 4), (2, 2, 4))


class TestValues:
    def test_a_value_used_twice_gets_both_gradients(self, backend: Backend) -> None:
        network = ac.Graph({
            "a": (ac.Tanh(), "x"), "b": (ac.Add(), "a", "a"), "c": (ac.Multiply(), "a", "b", "x"),
        })  # fmt: skip
        ac.gradcheck(network, put(backend, np.random.default_rng(0).standard_normal((2, 3, 4))))

    def test_gradients_given_and_returned_are_not_changed(self, backend: Backend) -> None:
        network = ac.Graph({"a": (ac.Add(), "x", "x"), "b": (ac.Add(), "a", "x", "a")})
        x = np.arange(6.0).reshape(2, 3)
        y, backward = network.forward(put(backend, x))
        grad = put(backend, np.ones((2, 3)))
        first = backward(grad)
        np.testing.assert_array_equal(backend.to_numpy(grad), 1)
        np.testing.assert_array_equal(backend.to_numpy(first), 5)
        np.testing.assert_array_equal(backend.to_numpy(backward(grad)), 5)
        np.testing.assert_array_equal(backend.to_numpy(y), 5 * x)

    def test_several_inputs_come_one_by_one_or_as_a_tuple(self, backend: Backend) -> None:
        network = load("two_by_two", backend, "float64")
        a, b = arrays("two_by_two", "x", backend, "float64")
        for one, two in zip(network(a, b), network((a, b)), strict=True):
            np.testing.assert_array_equal(backend.to_numpy(one), backend.to_numpy(two))
        y, backward = network.forward((a, b))
        together = backward(y)
        for one, two in zip(together, backward(*y), strict=True):
            np.testing.assert_array_equal(backend.to_numpy(one), backend.to_numpy(two))

    def test_an_output_without_a_gradient_counts_as_zero(self, backend: Backend) -> None:
        network = load("two_by_two", backend, "float64")
        y, backward = network.forward(*arrays("two_by_two", "x", backend, "float64"))
        some = backward(y[0], None)
        zero = backward(y[0], 0 * y[1])
        for one, two in zip(some, zero, strict=True):
            np.testing.assert_array_equal(backend.to_numpy(one), backend.to_numpy(two))

    def test_are_dropped_after_their_last_use(self) -> None:
        seen: list[Any] = []

        class Watch(Layer):
            def forward(self, x):
                seen.append([ref() is not None for ref in refs])
                y = x + 1
                refs.append(weakref.ref(y))
                return y, lambda grad: grad + 0

            def output_shape(self, s):
                return s

        import weakref

        refs: list[Any] = []
        network = ac.Graph({
            "a": (Watch(), "x"), "b": (Watch(), "a"), "c": (Watch(), "b"), "d": (Watch(), "c"),
            "y": (ac.Add(), "d", "a"),
        })  # fmt: skip
        network.forward(np.zeros((2, 3)))
        assert seen[3] == [True, False, True]  # a is used at the end, b no more

    def test_numpy_arrays_are_moved_to_the_network(self, backend: Backend) -> None:
        network = load("two_by_two", backend, "float32")
        a, b = (array.astype("float32") for array in stored("two_by_two", "x").values())
        assert all(backend.owns(y) for y in network(a, b))

    def test_skipping_the_input_gradient_leaves_the_others(self, backend: Backend) -> None:
        for name in NETWORKS:
            network = load(name, backend, "float64")
            _, backward = network.forward(*arrays(name, "x", backend, "float64"))
            grads = arrays(name, "grad_output", backend, "float64")
            assert backward(*grads, input_grad=False) is None
            for key, expected in stored(name, "grad").items():
                found = dict(network.named_parameters())[key].grad
                assert_close(backend.to_numpy(found), expected, 1e-11, key)


class TestOrder:
    def test_nodes_may_come_in_any_order(self) -> None:
        nodes = {"c": (ac.Add(), "a", "b"), "b": (ac.Tanh(), "a"), "a": (ac.ReLU(), "x")}
        network = ac.Graph(nodes)
        assert [node.name for node in network.nodes] == ["a", "b", "c"]
        assert [name for name, _ in network.children()] == ["c", "b", "a"]
        x = np.array([[1.0, -2.0]])
        np.testing.assert_allclose(network(x), np.maximum(x, 0) + np.tanh(np.maximum(x, 0)))
        assert isinstance(network["b"], ac.Tanh)
        with pytest.raises(KeyError, match="there is no node 'd'; nodes are c, b, a"):
            network["d"]


def relu(*sources: Any) -> tuple[Any, ...]:
    return (ac.ReLU(), *sources)


@pytest.mark.parametrize(
    ("nodes", "options", "error", "message"),
    [
        ({}, {}, ValueError, "nodes is empty"),
        (5, {}, TypeError, "nodes must map names to"),
        ({"a": (ac.Add(), "x", "b"), "b": relu("a")}, {"outputs": "b"}, ValueError, "a, b .*cycle"),
        ({"a": (ac.Add(), "x", "a")}, {"outputs": "a"}, ValueError, "a wait for each other in a c"),
        ({"a": relu("z")}, {}, ValueError, "node 'a' takes 'z', which is neither .*there are a, x"),
        ([("a", relu("x")), ("a", relu("a"))], {}, ValueError, "the name 'a' is used twice"),
        ({"x": relu("x")}, {}, ValueError, "the name 'x' is used twice"),
        ({"a": relu("x")}, {"inputs": ("x", "x")}, ValueError, "the name 'x' is used twice"),
        ({"a": relu("x"), "b": relu("x")}, {}, ValueError, r"there are 'a', 'b'; name them, e\.g"),
        ({"a": relu("x"), "b": relu("x")}, {"outputs": "a"}, ValueError, "node 'b' is used by no"),
        ({"a": relu("x")}, {"inputs": ("x", "y")}, ValueError, "input 'y' is used by no node"),
        ({"a": ac.ReLU()}, {}, TypeError, r"node 'a' must be \(layer, \*sources\), got a layer"),
        ({"a": (ac.ReLU, "x")}, {}, TypeError, r"node 'a' must be \(layer, \*sources\), got"),
        ({"a": (ac.ReLU(),)}, {}, ValueError, "node 'a' has no source"),
        ({"a": relu(3)}, {}, TypeError, "a source of node 'a' must be a name or"),
        ({"a": relu(("x", -1))}, {}, TypeError, "a source of node 'a' must be a name or"),
        ({3: relu("x")}, {}, TypeError, "a node's name must be a str such as 'conv1'"),
        ({"a..b": relu("x")}, {}, TypeError, "a node's name must be"),
        ({"a": relu("x"), "a.b": relu("a")}, {}, ValueError, "'a.b' would be one of the parts of"),
        ({"a": relu("x")}, {"outputs": "x"}, ValueError, "outputs names 'x', which is an input"),
        ({"a": relu("x")}, {"outputs": ()}, ValueError, "outputs is empty"),
        ({"a": relu("x")}, {"outputs": "q"}, ValueError, "outputs takes 'q', which is neither"),
        ({"a": relu("x")}, {"inputs": 3}, TypeError, "inputs must be a name or names"),
        ({"a": relu("x")}, {"inputs": ()}, TypeError, "inputs must be a name or names"),
        ({"a": relu("x")}, {"seed": -1}, ValueError, "seed must be at least 0"),
    ],
)
def test_mistakes_in_the_nodes(
    nodes: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ac.Graph(nodes, **options)


def test_mistakes_in_the_inputs() -> None:
    network = NETWORKS["two_by_two"][0]()
    a, b = (np.zeros(shape, np.float32) for shape in NETWORKS["two_by_two"][1])
    with pytest.raises(TypeError, match=r"this Graph takes 2 inputs, a, b, got 1"):
        network(a)
    with pytest.raises(TypeError, match=r"b must be a NumPy or CuPy array, got list"):
        network(a, [b])
    with pytest.raises(TypeError, match=r"this Graph has 2 inputs, a, b, got 1 shapes"):
        network.output_shape(a.shape)
    y, backward = network.forward(a, b)
    with pytest.raises(TypeError, match=r"backward takes the gradients of 2 outputs, got 1"):
        backward(y[0])
    with pytest.raises(ValueError, match=r"inner has 2 outputs; say which, e\.g\. \('inner', 0\)"):
        ac.Graph({"inner": (network, "a", "b"), "y": (ac.ReLU(), "inner")}, inputs=("a", "b"))(a, b)


class Wrong(Layer):
    """A layer whose forward or backward returns something else."""

    def __init__(self, forward: Any = None, backward: Any = None) -> None:
        self.result, self.gradient = forward, backward

    def forward(self, x):
        if self.result is not None:
            return self.result(x)
        return x * 1, self.gradient

    def output_shape(self, s):
        return s


class TestWrongLayers:
    @pytest.mark.parametrize(
        "result",
        [
            lambda x: x,
            lambda x: (x,),
            lambda x: (x, x),
            lambda x: (x, None),
            lambda x: [x, lambda grad: grad],
            lambda x: (None, lambda grad: grad),
            lambda x: (x, lambda grad: grad, 1),
        ],
    )
    @pytest.mark.parametrize("inside", [False, True])
    def test_a_forward_without_a_backward(self, result: Any, inside: bool) -> None:
        wrong: Layer = Wrong(result)
        x = np.ones((2, 3))
        message = r"Wrong\.forward must return \(y, backward\), an array and a function"
        if inside:
            network = ac.Sequential(ac.Tanh(), ac.Sequential(wrong), ac.Tanh())
            message = "1.0: " + message
            with pytest.raises(TypeError, match=message):
                network.forward(x)
        else:
            network = wrong
        with pytest.raises(TypeError, match=r"Wrong\.forward must return \(y, backward\)"):
            network(x)

    @pytest.mark.parametrize(
        ("gradient", "message"),
        [
            (lambda grad: None, "must return an array of shape (2, 3) and dtype float64, like its "
             "input, got None"),
            (lambda grad: grad[:1], "got an array of shape (1, 3)"),
            (lambda grad: grad.astype("float32"), "got an array of shape (2, 3) and dtype float32"),
            (lambda grad: (grad, grad), "returned 2 gradients for 1 inputs"),
            (lambda grad: 3.0, "got 3.0"),
        ],
    )  # fmt: skip
    def test_a_backward_of_another_kind(self, gradient: Any, message: str) -> None:
        network = ac.Sequential(ac.Tanh(), ac.Residual(Wrong(backward=gradient)), ac.Tanh())
        y, backward = network.forward(np.ones((2, 3)))
        with pytest.raises(TypeError, match=re.escape(message)) as caught:
            backward(y)
        assert str(caught.value).startswith("1.body: the backward of Wrong(")


class TestRecompute:
    def network(self, backend: Backend, recompute: bool) -> ac.Sequential:
        def part(*layers: Layer) -> Layer:
            inner = ac.Sequential(*layers)
            return ac.Recompute(inner) if recompute else inner

        return ac.Sequential(
            part(ac.Conv2d(1, 4, 3, padding=1), ac.BatchNorm(4), ac.ReLU(), ac.Dropout(0.3)),
            ac.MaxPool2d(2),
            ac.Residual(part(ac.Conv2d(4, 4, 3, padding=1), ac.Dropout(0.5), ac.Tanh())),
            ac.Flatten(),
            part(ac.Dense(36, 5)),
            seed=4,
            backend=backend,
        )

    @pytest.mark.parametrize("input_grad", [True, False])
    def test_gives_the_same_bits(self, backend: Backend, input_grad: bool) -> None:
        rng = np.random.default_rng(0)
        plain, frugal = self.network(backend, False), self.network(backend, True)
        assert list(plain.state_dict()) == list(frugal.state_dict())
        for _ in range(3):
            x = put(backend, rng.standard_normal((4, 1, 6, 6)).astype(np.float32))
            found = []
            for network in (plain, frugal):
                y, backward = network.forward(x)
                grad = backward(y, input_grad=input_grad)
                found.append([y, *([grad] if input_grad else []), network(x),
                              *(p.grad for p in network.parameters()),
                              *network.state_dict().values()])  # fmt: skip
                assert network.random_state() == plain.random_state()
            for one, two in zip(*found, strict=True):
                np.testing.assert_array_equal(backend.to_numpy(one), backend.to_numpy(two))

    def test_of_a_graph_with_several_inputs(self, backend: Backend) -> None:
        inner = load("two_by_two", backend, "float64")
        network = ac.Recompute(inner)
        xs = arrays("two_by_two", "x", backend, "float64")
        y, backward = network.forward(*xs)
        grad_x = backward(*arrays("two_by_two", "grad_output", backend, "float64"))
        assert_all(backend, y, stored("two_by_two", "training"), 1e-11)
        assert_all(backend, grad_x, stored("two_by_two", "grad_x"), 1e-11)
        assert list(network.state_dict()) == list(inner.state_dict())

    def test_takes_less_memory(self) -> None:
        code = (
            "import numpy as np, tracemalloc, arraycnn as ac\n"
            "def peak(wrap):\n"
            "    net = ac.Sequential(*(wrap(ac.Sequential(ac.Tanh(), ac.Sigmoid(), ac.Tanh()))\n"
            "                          for _ in range(6)))\n"
            "    tracemalloc.start()\n"
            "    y, backward = net.forward(np.ones((8, 4, 64, 64)))\n"
            "    backward(y)\n"
            "    found = tracemalloc.get_traced_memory()[1]\n"
            "    tracemalloc.stop()\n"
            "    return found\n"
            "print(peak(ac.Recompute) / peak(lambda layer: layer))\n"
        )
        import subprocess
        import sys

        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert float(done.stdout) < 0.7, done.stderr

    def test_refuses_what_is_no_layer(self) -> None:
        with pytest.raises(TypeError, match="layer must be a layer, got 3"):
            ac.Recompute(3)  # type: ignore[arg-type]
