"""Layers that users write: found, trained, moved, saved and called like ours, and never by accident
part of something else."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numerics import put

import arraycnn as ac
from arraycnn import functional as F
from arraycnn.backends import Backend, register
from arraycnn.backends.cpu import CpuBackend
from arraycnn.layers import Layer

RNG = np.random.default_rng(0)
X = RNG.standard_normal((12, 3, 4, 4)).astype("f")
Y = np.arange(12) % 2


def net(seed: int = 0) -> ac.Sequential:
    return ac.Sequential(ac.Flatten(), ac.Dense(48, 2, seed=seed))


def fit(model: Layer, epochs: int = 1) -> Any:
    return ac.Trainer(model, ac.SGD(model.parameters(), 0.1)).fit([(X, Y)], epochs)


class Scale(Layer):
    """The example of the docs: one factor for each channel."""

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.factor = ac.Parameter(np.ones((channels, 1, 1), "float32"))

    def forward(self, x):
        def backward(grad_y):
            self.factor.add_grad((grad_y * x).sum(axis=(0, 2, 3))[:, None, None])
            return grad_y * self.factor.data

        return x * self.factor.data, backward

    def output_shape(self, input_shape):
        return input_shape


class TestFifteenLines:
    @pytest.mark.parametrize("place", ["first", "middle", "last", "whole", "residual"])
    def test_trains_wherever_it_stands(self, place: str, backend: Backend) -> None:
        scale = Scale(3)
        model = {
            "first": lambda: ac.Sequential(scale, net()),
            "middle": lambda: ac.Sequential(ac.Conv2d(3, 3, 1), scale, net()),
            "last": lambda: ac.Sequential(ac.Conv2d(3, 3, 1), ac.ReLU(), scale),
            "whole": lambda: scale,
            "residual": lambda: ac.Sequential(ac.Residual(scale), net()),
        }[place]().to(backend)
        if place in ("last", "whole"):
            optimizer = ac.SGD(model.parameters(), 0.1)
            trainer = ac.Trainer(model, optimizer, loss=lambda y, _: F.mse_loss(y, 0 * y))
            trainer.fit([(put(backend, X), Y)], 1)
        else:
            fit(model)
        assert backend.owns(scale.factor.data)
        assert not np.array_equal(backend.to_numpy(scale.factor.data), np.ones((3, 1, 1)))

    def test_saves_loads_and_is_summarised(self, tmp_path: Path) -> None:
        model = ac.Sequential(ac.Conv2d(3, 3, 1), Scale(3), ac.Sequential(Scale(3)), seed=0)
        model[1].factor.data[...] = 3
        ac.save_checkpoint(tmp_path / "x.h5", model)
        other = ac.load_model(tmp_path / "x.h5", classes=[Scale])
        np.testing.assert_array_equal(other(X), model(X))
        assert repr(other) == repr(model)
        table = ac.summary(model, X.shape)
        assert [row.parameters for row in table.rows] == [12, 3, 3]
        ac.gradcheck(Scale(2).to(dtype="float64"), np.random.default_rng(0).random((2, 2, 3, 3)))
        for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            np.testing.assert_array_equal(clone(X), model(X))


class Parts(Layer):
    """Keeps its layers and parameters in lists, tuples and dicts."""

    def __init__(self) -> None:
        self.blocks = [ac.Conv2d(3, 4, 3, seed=0), ac.Dropout(0.5, seed=1)]
        self.heads = {"a": (ac.Flatten(), ac.Dense(16, 2, seed=2))}
        self.offsets = [{"bias": ac.Parameter(np.zeros(2, "f"))}]

    def forward(self, x):
        layers = [*self.blocks, *self.heads["a"]]
        backwards = []
        for layer in layers:
            x, backward = layer.forward(x)
            backwards.insert(0, backward)
        bias = self.offsets[0]["bias"]

        def backward_all(grad):
            bias.add_grad(grad.sum(axis=0))
            for backward in backwards:
                grad = backward(grad)
            return grad

        return x + bias.data, backward_all

    def output_shape(self, s):
        return (s[0], 2)


NAMES = ["blocks.0.weight", "blocks.0.bias", "heads.a.1.weight", "heads.a.1.bias",
         "offsets.0.bias"]  # fmt: skip


class TestListsTuplesAndDicts:
    def test_are_walked(self, backend: Backend) -> None:
        parts = Parts()
        assert sorted(parts.state_dict()) == sorted(NAMES)
        assert list(parts.random_state()) == ["blocks.1"]
        assert ac.summary(parts, (1, 3, 4, 4)).parameters == 112 + 34 + 2
        parts.to(backend, dtype="float64")
        assert all(backend.owns(a) and a.dtype == np.float64 for a in parts.state_dict().values())
        assert parts.blocks[0].backend is parts.heads["a"][1].backend is backend
        parts.initialize(5)
        other = Parts().to(backend, dtype="float64")
        other.initialize(5)
        assert parts.random_state() == other.random_state()
        for name, array in parts.state_dict().items():
            found = backend.to_numpy(other.state_dict()[name])
            np.testing.assert_array_equal(found, backend.to_numpy(array))

    def test_train_and_drop_their_gradients(self) -> None:
        model = ac.Sequential(Parts())
        before = {name: array.copy() for name, array in model.state_dict().items()}
        fit(model, 2)
        for name, array in model.state_dict().items():
            assert not np.array_equal(array, before[name]), name
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_are_saved_and_loaded(self, tmp_path: Path) -> None:
        parts, other = Parts(), Parts()
        parts.initialize(3)
        ac.save_checkpoint(tmp_path / "x.h5", parts)
        ac.load_checkpoint(tmp_path / "x.h5", other)
        for name, array in parts.state_dict().items():
            np.testing.assert_array_equal(other.state_dict()[name], array)

    def test_wrong_gradients_in_them_are_found(self) -> None:
        class Wrong(Parts):
            def forward(self, x):
                y, backward = super().forward(x)

                def wrong(grad):
                    self.offsets[0]["bias"].add_grad(grad.sum(axis=0))
                    return backward(grad)

                return y, wrong

        with pytest.raises(ac.GradientError, match=r"offsets\.0\.bias"):
            ac.gradcheck(Wrong().to(dtype="float64"), X[:2].astype("d"))

    def test_a_layer_that_knows_its_parent_ends_no_walk(self) -> None:
        class Child(Scale):
            parent: Any = None

        child = Child(3)
        model = ac.Sequential(child, net())
        child.parent = model
        assert list(model.state_dict()) == ["0.factor", "1.1.weight", "1.1.bias"]


class TestTiedParameters:
    def test_are_counted_stepped_and_loaded_once(self) -> None:
        a, b = ac.Dense(4, 4, seed=0), ac.Dense(4, 4, seed=1)
        b.weight = a.weight
        model = ac.Sequential(a, ac.Tanh(), b)
        assert len(model.parameters()) == 3
        assert ac.summary(model, (1, 4)).parameters == 24
        state = {name: array.copy() for name, array in model.state_dict().items()}
        assert list(state) == ["0.weight", "0.bias", "2.weight", "2.bias"]
        model.load_state_dict(state)
        state["2.weight"] += 1
        with pytest.raises(ValueError, match=r"0\.weight and 2\.weight are one parameter here"):
            model.load_state_dict(state)
        del state["0.weight"]
        model.load_state_dict(state)
        np.testing.assert_array_equal(a.weight.data, state["2.weight"])
        ac.gradcheck(model.to(dtype="float64"), RNG.standard_normal((3, 4)))
        assert model[0].weight is model[2].weight
        assert copy.deepcopy(model)[0].weight.data.dtype == np.float64

    def test_a_tied_list_is_restored(self, tmp_path: Path) -> None:
        class Listed(Layer):
            def __init__(self) -> None:
                self.ws = [ac.Parameter(np.ones(2, "f")), ac.Parameter(np.ones(2, "f"))]

            def forward(self, x):
                return x * self.ws[0].data * self.ws[1].data, lambda grad: grad

            def output_shape(self, s):
                return s

        one = Listed()
        one.ws[1] = one.ws[0]
        ac.save_checkpoint(tmp_path / "x.h5", one)
        other = ac.load_model(tmp_path / "x.h5", classes=[Listed])
        assert other.ws[0] is other.ws[1]


class TestAddGrad:
    def test_keeps_what_the_caller_has(self) -> None:
        class Two(Layer):
            def __init__(self) -> None:
                self.a, self.b = (ac.Parameter(np.zeros(3, "f")) for _ in "ab")

            def forward(self, x):
                def backward(grad):
                    d = grad.sum(axis=0)
                    self.a.add_grad(d)
                    self.b.add_grad(d)
                    d *= 100
                    return grad

                return x + self.a.data + self.b.data, backward

            def output_shape(self, s):
                return s

        two = Two()
        ones = np.ones((1, 3), "f")
        for _ in range(2):
            two.forward(ones)[1](ones)
        np.testing.assert_array_equal(two.a.grad, 2)
        np.testing.assert_array_equal(two.b.grad, 2)

    def test_a_broadcast_view_and_a_number(self) -> None:
        vector, scalar = ac.Parameter(np.zeros(3, "f")), ac.Parameter(np.zeros((), "f"))
        for _ in range(2):
            vector.add_grad(np.broadcast_to(np.float32(1), 3))
            scalar.add_grad(np.ones(4, "f").sum())
        np.testing.assert_array_equal(vector.grad, 2)
        assert scalar.grad == 8
        ac.SGD([vector, scalar], 0.5).step()
        assert scalar.data == -4

    def test_of_another_shape_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"shape of its parameter, \(3,\), got \(2,\)"):
            ac.Parameter(np.zeros(3)).add_grad(np.zeros(2))


class Call(ac.MaxPool2d):
    def __call__(self, x):
        return super().__call__(x) - 10


class TestOwnMethods:
    """Faults 1a to 1c: subclasses and hooks are called as they are."""

    def test_a_subclass_that_overrides_the_call_only(self) -> None:
        model = ac.Sequential(ac.Conv2d(3, 4, 3, seed=0), ac.ReLU(), Call(2))
        expected = X
        for layer in model:
            expected = layer(expected)
        np.testing.assert_array_equal(model(X), expected)

    @pytest.mark.parametrize("when", ["before", "after"])
    @pytest.mark.parametrize("hooked", range(4))
    def test_a_replaced_forward_is_called(self, hooked: int, when: str) -> None:
        layers = [ac.Conv2d(3, 4, 3, seed=0), ac.BatchNorm(4), ac.ReLU(), ac.MaxPool2d(2)]
        expected, _ = ac.Sequential(*copy.deepcopy(layers)).forward(X)
        calls = []
        layer = layers[hooked]
        old = layer.forward
        model = ac.Sequential(*layers)
        if when == "after":
            model.forward(X)

        def hook(x):
            calls.append(x.shape)
            return old(x)

        layer.forward = hook  # type: ignore[method-assign]
        found, backward = model.forward(X)
        backward(found)
        assert len(calls) == 1
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        del layer.forward
        model.forward(X)
        assert len(calls) == 1

    def test_a_hook_on_an_inner_network_is_called(self) -> None:
        inner = ac.Sequential(ac.ReLU(), ac.Tanh())
        model = ac.Sequential(inner, ac.Tanh())
        model.forward(X)
        inner.forward = lambda x: (x, lambda grad: grad)  # type: ignore[method-assign]
        np.testing.assert_array_equal(model.forward(X)[0], np.tanh(X))

    def test_own_methods_of_every_fused_class(self) -> None:
        """Whatever is overridden, the network is its layers one after the other."""
        bases = {
            ac.Conv2d: (4, 4, 1), ac.ConvTranspose2d: (4, 4, 1), ac.BatchNorm: (4,),
            ac.MaxPool2d: (1,), ac.Residual: (ac.Conv2d(4, 4, 1),), ac.ReLU: (),
        }  # fmt: skip

        def call(self, x):
            return super(type(self), self).__call__(x) * 2 - 1

        def forward(self, x):
            y, backward = super(type(self), self).forward(x)
            return y * 2 - 1, lambda grad: backward(2 * grad)

        x = RNG.standard_normal((2, 4, 3, 3)).astype("f")
        for base, arguments in bases.items():
            for methods in ({"__call__": call}, {"__call__": call, "forward": forward}):
                own = type("Own", (base,), methods)(*arguments)
                layers = [ac.Conv2d(4, 4, 1), ac.ReLU(), own, ac.ReLU(), own, ac.BatchNorm(4),
                          ac.ReLU(), ac.MaxPool2d(1)]  # fmt: skip
                model = ac.Sequential(*layers)
                expected, trained = x, x
                for layer in layers:
                    expected = layer(expected)
                np.testing.assert_allclose(model(x), expected, rtol=1e-5, atol=1e-6)
                one_by_one = copy.deepcopy(layers)
                for layer in one_by_one:
                    trained, _ = layer.forward(trained)
                np.testing.assert_allclose(model.forward(x)[0], trained, rtol=1e-5, atol=1e-5)


class Container(Layer):
    """A U-Net's container, as users write it: with a forward only."""

    def __init__(self, *layers: Layer) -> None:
        self.layers = list(layers)

    def forward(self, x):
        backwards = []
        for layer in self.layers:
            x, backward = layer.forward(x)
            backwards.insert(0, backward)

        def backward_all(grad):
            for backward in backwards:
                grad = backward(grad)
            return grad

        return x, backward_all

    def output_shape(self, s):
        for layer in self.layers:
            s = layer.output_shape(s)
        return s


class TestInferenceNeverTrains:
    @pytest.mark.parametrize("layer", [ac.BatchNorm(3), ac.Dropout(0.5), Call(2),
                                       ac.Sequential(ac.Tanh(), ac.BatchNorm(3))])  # fmt: skip
    def test_a_container_that_cannot_know_is_told_to_say(self, layer: Layer) -> None:
        model = Container(ac.Conv2d(3, 3, 1), Container(layer))
        for network in (model, ac.Sequential(model)):
            with pytest.raises(TypeError, match=r"is made of layers.*define __call__\(self, x\)"):
                network(X)
        before = {name: array.copy() for name, array in model.state_dict().items()}
        counters = model.random_state()
        with pytest.raises(TypeError, match="__call__"):
            ac.Trainer(model, ac.SGD(model.parameters(), 0.1)).evaluate((X, Y))
        for name, array in model.state_dict().items():
            np.testing.assert_array_equal(array, before[name])
        assert model.random_state() == counters

    def test_one_whose_layers_are_the_same_in_both_is_called(self) -> None:
        model = Container(ac.Conv2d(3, 2, 1), ac.ReLU(), ac.Sequential(ac.MaxPool2d(2)))
        np.testing.assert_array_equal(model(X), model.forward(X)[0])
        np.testing.assert_allclose(model(X[:1]), model(X)[:1], rtol=1e-6)

    def test_one_that_says_is_called(self) -> None:
        class Says(Container):
            def __call__(self, x):
                for layer in self.layers:
                    x = layer(x)
                return x

        model = Says(ac.BatchNorm(3), ac.Dropout(0.5))
        model.forward(X)
        np.testing.assert_array_equal(model(X[:1]), model(X)[:1])
        np.testing.assert_array_equal(ac.Sequential(model, ac.ReLU())(X), np.maximum(model(X), 0))

    def test_a_subclass_of_a_layer_that_trains_says_too(self) -> None:
        class Noisy(ac.BatchNorm):
            def forward(self, x):
                return super().forward(x)

        with pytest.raises(TypeError, match=r"Noisy has a forward of its own.*define __call__"):
            Noisy(3)(X)

    def test_a_subclass_with_its_own_forward_infers_with_it(self) -> None:
        class Plus(ac.Conv2d):
            def forward(self, x):
                y, backward = super().forward(x)
                return y + 1, backward

        plus, conv = Plus(3, 2, 1, seed=0), ac.Conv2d(3, 2, 1, seed=0)
        np.testing.assert_allclose(plus(X), conv(X) + 1)


class TestFrozen:
    def test_batch_norm_acts_as_in_inference(self, backend: Backend) -> None:
        norm = ac.BatchNorm(3, frozen=True, backend=backend, dtype="float64")
        norm.running_mean.data[...] = 0.5
        norm.running_var.data[...] = 4
        norm.weight.data[...] = 3
        x = put(backend, X.astype("float64"))
        before = {name: backend.to_numpy(a).copy() for name, a in norm.state_dict().items()}
        y, _ = norm.forward(x)
        np.testing.assert_array_equal(backend.to_numpy(y), backend.to_numpy(norm(x)))
        for name, array in norm.state_dict().items():
            np.testing.assert_array_equal(backend.to_numpy(array), before[name])
        ac.gradcheck(norm, x[:2])
        ac.gradcheck(ac.Sequential(norm, ac.ReLU()), x[:2])
        assert repr(norm) == "BatchNorm(3, frozen=True)"

    def test_freeze_by_name(self) -> None:
        model = ac.Sequential(
            ac.Sequential(ac.Conv2d(3, 4, 1), ac.BatchNorm(4), ac.Dropout(0.5)),
            ac.Dropout(0.5), ac.Flatten(), ac.Dense(64, 2), seed=0,
        )  # fmt: skip
        assert model.freeze("0.*") is model
        wanted = {name: p.requires_grad for name, p in model.named_parameters()}
        assert wanted == {name: not name.startswith("0.") for name in wanted}
        assert [model[0][1].frozen, model[0][2].frozen, model[1].frozen] == [True, True, False]
        before = {name: array.copy() for name, array in model.state_dict().items()}
        features = model[0](X)
        y, backward = model.forward(X)
        np.testing.assert_allclose(model[0].forward(X)[0], features, rtol=1e-5, atol=1e-6)
        backward(y)
        grads = {name: p.grad is not None for name, p in model.named_parameters()}
        assert grads == wanted
        optimizer = ac.SGD(model.parameters(), 0.1)
        optimizer.step()
        for name, array in model.state_dict().items():
            assert np.array_equal(array, before[name]) == name.startswith("0."), name
        model.unfreeze()
        assert all(p.requires_grad for p in model.parameters())
        assert not model[0][1].frozen

    def test_input_gradients_pass_through_what_is_frozen(self) -> None:
        layers = "Conv2d(2, 3, 2)", "BatchNorm(3)", "ConvTranspose2d(3, 2, 2)", "ReLU()"
        model = ac.Sequential(*(eval(f"ac.{text}") for text in layers), seed=0)
        x = np.random.default_rng(0).standard_normal((2, 2, 4, 4)).astype("f")
        model[1].frozen = True
        y, backward = model.forward(x)
        expected = backward(y)
        for parameter in model.parameters():
            parameter.grad = None
        y, backward = model.freeze().forward(x)
        np.testing.assert_allclose(backward(y), expected, rtol=1e-5)
        assert all(parameter.grad is None for parameter in model.parameters())
        assert backward(y, input_grad=False) is None

    def test_a_name_of_nothing(self) -> None:
        with pytest.raises(ValueError, match=r"'body.\*' is the name of nothing; parameters are 1"):
            net().freeze("body.*")


class TestConfiguration:
    """Faults 15a and 15b: a configuration is what was given, and a repr never raises."""

    def check(self, layer: Layer, text: str, tmp_path: Path) -> None:
        assert repr(layer) == text
        model = ac.Sequential(layer)
        ac.save_checkpoint(tmp_path / "x.h5", model)
        (loaded,) = ac.load_model(tmp_path / "x.h5", classes=[type(layer)])
        assert repr(loaded) == text
        np.testing.assert_array_equal(loaded(np.ones(2, "f")), layer(np.ones(2, "f")))
        for clone in (copy.deepcopy(layer), copy.copy(layer)):
            assert repr(clone) == text

    def test_is_not_falsified(self, tmp_path: Path) -> None:
        class My(Layer):
            def __init__(self, channels, bias=0.0, *, sizes=(1, 1), flag=False):
                self.channels, self.bias, self.sizes, self.flag = channels, bias, sizes, flag

            def forward(self, x):
                return x + np.float32(self.bias), lambda grad: grad

            def output_shape(self, s):
                return s

        self.check(My((16, 16), bias=0.5), "My((16, 16), bias=0.5)", tmp_path)
        self.check(My((16,), sizes=(2, 2)), "My((16,), sizes=(2, 2))", tmp_path)
        self.check(My("a", flag=True), "My('a', flag=True)", tmp_path)
        layer = My(3, bias=0.5)
        layer.bias = 0.25
        self.check(layer, "My(3, bias=0.25)", tmp_path)

    def test_of_arguments_under_other_names(self, tmp_path: Path) -> None:
        class Hidden(Layer):
            def __init__(self, k, *rest, width=3, **more):
                self._k, self._sum = k, k + sum(rest) + width + more.get("depth", 0)
                self.rest = len(rest)
                self.k = ac.Dense(2, 2, seed=0)

            def forward(self, x):
                return x * self._sum, lambda grad: grad

            def output_shape(self, s):
                return s

        self.check(Hidden(3), "Hidden(3)", tmp_path)
        self.check(Hidden(3, 4, 5, width=6), "Hidden(3, 4, 5, width=6)", tmp_path)
        self.check(Hidden(3, depth=2), "Hidden(3, depth=2)", tmp_path)
        assert "Hidden(3)" in repr(ac.Sequential(Hidden(3)))
        assert ac.summary(ac.Sequential(Hidden(3)), (1, 2)).rows[0].layer == "Hidden(3)"

    def test_of_a_layer_that_is_not_made_by_its_constructor(self) -> None:
        class Odd(Layer):
            def __init__(self, k):
                self._k = k

            def forward(self, x):
                return x, lambda grad: grad

            def output_shape(self, s):
                return s

        assert repr(Odd.__new__(Odd)) == "Odd(...)"

    def test_what_is_not_known_is_marked_in_a_summary(self) -> None:
        model = Container(ac.Conv2d(3, 8, 3, padding=1), ac.ReLU())
        table = ac.summary(ac.Sequential(model, ac.Conv2d(8, 2, 1)), (1, 3, 8, 8))
        assert table.multiply_adds is None
        assert [row.multiply_adds for row in table.rows] == [None, 2 * 8 * 64]
        assert " ?" in str(table)
        assert table.parameters == 8 * 27 + 8 + 18


class Counting(CpuBackend):
    """A third party's: counts what is called on it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: set[str] = set()


COUNTED = {
    "convolution", "global_sum_pool", "sum_pool", "softmax_cross_entropy", "update_parameters",
    "erf",
}  # fmt: skip

for _name in COUNTED:

    def _counted(self, *args, _name=_name, **options):
        self.calls.add(_name)
        return getattr(CpuBackend, _name)(self, *args, **options)

    setattr(Counting, _name, _counted)


class TestOwnBackends:
    def model(self, backend: Any) -> ac.Sequential:
        return ac.Sequential(
            ac.Conv2d(3, 2, 2), ac.GELU(), ac.AdaptiveAvgPool2d(2), ac.GlobalAvgPool(),
            ac.Dense(2, 2), seed=0, backend=backend,
        )  # fmt: skip

    def test_every_primitive_of_a_network_is_called_on_its_backend(self) -> None:
        counting = Counting()
        counting.name = "mine"
        model = self.model(counting)
        fit(model)
        assert counting.calls == COUNTED
        counting.calls.clear()
        shapes = {ac.Conv2d: (2, 3, 4, 4), ac.Dense: (2, 2)}
        for layer in model:  # also each by itself
            layer(np.ones(shapes.get(type(layer), (2, 2, 4, 4)), "f"))
        assert counting.calls == {"convolution", "global_sum_pool", "sum_pool", "erf"}
        assert copy.deepcopy(model).backend is counting
        with pytest.raises(ValueError, match=r"'mine'"):
            pickle.loads(pickle.dumps(model))

    def test_a_registered_one_is_found_by_name(self, tmp_path: Path) -> None:
        register("counting", Counting)
        counting = ac.get_backend("counting")
        assert counting is ac.get_backend("counting")
        assert counting.name == "counting"
        assert "counting" in ac.available_backends()
        model = self.model("counting")
        assert model.backend is counting
        assert pickle.loads(pickle.dumps(model)).backend is counting
        ac.save_checkpoint(tmp_path / "x.h5", model)
        counting.calls.clear()
        loaded = ac.load_model(tmp_path / "x.h5", backend="counting")
        np.testing.assert_array_equal(loaded(X), model(X))
        assert "convolution" in counting.calls
        assert loaded.to("cpu").backend is ac.get_backend("cpu")

    def test_arrays_of_its_own_are_moved_there_and_back(self) -> None:
        class Box:
            def __init__(self, a):
                self.a, self.shape, self.dtype = a, a.shape, a.dtype

        class Boxes(ac.Backend):
            def __init__(self):
                super().__init__("boxes", np, 1 << 20)

            def owns(self, x):
                return isinstance(x, Box)

            def asarray(self, x, dtype=None):
                return x if isinstance(x, Box) else Box(np.asarray(x, dtype))

            def to_numpy(self, x):
                return x.a

            def synchronize(self):
                pass

            def describe(self):
                return "boxes"

        layer = ac.Conv2d(1, 1, 3, seed=0)
        weight = layer.weight.data.copy()
        boxes = Boxes()
        assert isinstance(layer.to(boxes).weight.data, Box)
        assert layer.weight.backend is boxes
        np.testing.assert_array_equal(layer.to("cpu").weight.data, weight)
        register("boxes", Boxes, lambda x: isinstance(x, Box))
        assert ac.backend_of(Box(weight)) is ac.get_backend("boxes")


class TestMistakesInRegistering:
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ((3, Counting), TypeError, "name must be a str"),
            (("auto", Counting), ValueError, "name must be a word other than 'auto'"),
            (("a:b", Counting), ValueError, "without a colon"),
            (("a", Counting()), TypeError, "factory must be callable"),
            (("a", Counting, 3), TypeError, "owns must be callable"),
        ],
    )
    def test_are_refused(self, arguments: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            register(*arguments)


class TestFusionCanBeTurnedOff:
    def test_for_a_block_or_for_good(self) -> None:
        model = ac.models.lenet5(seed=0)
        relus = []
        with pytest.MonkeyPatch.context() as patch:
            old = ac.ReLU.forward
            patch.setattr(ac.ReLU, "forward", lambda self, x: relus.append(1) or old(self, x))
            x = RNG.standard_normal((2, 1, 28, 28)).astype("f")
            together = model.forward(x)[0]
            assert not relus
            with ac.fused(False):
                alone = model.forward(x)[0]
            assert len(relus) == 4
            model.forward(x)
            assert len(relus) == 4
            ac.fused(False)
            model.forward(x)
            assert len(relus) == 8
            ac.fused(True)
            model.forward(x)
            assert len(relus) == 8
        np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-6)
