"""Checkpoints: what goes in comes out, bit for bit, or nothing changes and the message says why."""

import json
import shutil
import struct
import subprocess
import sys
import time
from unittest import mock

import h5py
import numpy as np
import pytest
from checkpoint_cases import make_model, make_optimizer, valid_bytes

import arraycnn as ac
from arraycnn import functional as F
from arraycnn import schedules
from arraycnn.checkpoint import metadata
from arraycnn.checkpoint.__main__ import main

OPTIMIZERS = {
    "sgd": lambda p: ac.SGD(p, 0.1),
    "momentum": lambda p: ac.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: ac.Adam(p, 0.01, betas=(0.8, 0.95)),
    "adamw": lambda p: ac.AdamW(p),
    "rmsprop": lambda p: ac.RMSprop(p, 0.01, momentum=0.5),
    "adagrad": lambda p: ac.Adagrad(p, 0.1, lr_decay=0.05),
}
EVERY_LAYER = ac.Sequential(
    ac.Conv1d(2, 4, 3, padding=((1, 2),), groups=2), ac.MaxPool1d(2), ac.AvgPool1d(2),
    ac.Sequential(ac.Conv3d(1, 2, (1, 2, 3)), ac.MaxPool3d(2), ac.AvgPool3d(2)),
    ac.ConvTranspose1d(2, 3, 2, stride=2), ac.ConvTranspose2d(2, 3, 2, output_padding=1, stride=2),
    ac.ConvTranspose3d(2, 3, 2), ac.Conv2d(1, 2, 3, padding="same", init="glorot_uniform"),
    ac.ConstantPad2d(((1, 2), (0, 1)), -1.0),
    ac.PartialConv2d(3, 3, connections=[[0, 1], [1, 2]]), ac.UnitBias((2, 3, 4)), ac.ScaledTanh(),
    ac.AdaptiveAvgPool2d((2, 3)), ac.AvgPool2d(3, stride=1), ac.MaxPool2d(2, padding=1),
    ac.ELU(0.5), ac.GELU("tanh"), ac.SELU(), ac.LeakyReLU(0.2), ac.Sigmoid(), ac.Softmax(),
    ac.Softplus(), ac.Tanh(), ac.ReLU(), ac.GlobalAvgPool(), ac.Flatten(), ac.Dropout(0.25),
    ac.Residual(ac.Dense(4, 4), ac.Dense(4, 4, bias=False)), ac.Residual(ac.BatchNorm(4, eps=1e-4)),
    ac.Recompute(ac.Graph({
        "b": (ac.Concat(axis=-1), "x", "a"), "a": (ac.Identity(), "x"), "c": (ac.Add(), "b", "b"),
        "d": (ac.Multiply(), "c", "b"),
    })),
    seed=1,
)  # fmt: skip


def train(model, optimizer, steps=2):
    rng = np.random.default_rng(4)
    for _ in range(steps):
        logits, backward = model.forward(rng.standard_normal((8, 1, 8, 8)).astype(np.float32))
        backward(F.softmax_cross_entropy(logits, np.arange(8) % 3)[1])
        optimizer.step()
        optimizer.zero_grad()


def copies(model):
    return {
        name: np.array(ac.backend_of(array).to_numpy(array))
        for name, array in model.state_dict().items()
    }


def assert_same(model, other):
    expected = copies(other)
    found = copies(model)
    assert list(found) == list(expected)
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name], strict=True)
    assert model.random_state() == other.random_state()


class TestRoundTrip:
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_training_goes_on_the_same(self, name, backend, tmp_path):
        path = tmp_path / "run.h5"
        model = make_model().to(backend)
        optimizer = OPTIMIZERS[name](model.parameters())
        train(model, optimizer)
        optimizer.lr = 0.123
        ac.save_checkpoint(path, model, optimizer, epoch=3, step=2, extra={"best": [0.5, None]})
        other = make_model().to(backend)
        other.initialize(77)
        other_optimizer = OPTIMIZERS[name](other.parameters())
        info = ac.load_checkpoint(path, other, other_optimizer)
        assert (info.epoch, info.step, info.extra) == (3, 2, {"best": [0.5, None]})
        assert_same(other, model)
        train(model, optimizer)
        train(other, other_optimizer)
        assert_same(other, model)
        assert other_optimizer.lr == 0.123

    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
    def test_every_bit_of_every_dtype(self, dtype, tmp_path):
        rng = np.random.default_rng(0)
        model = ac.Dense(33, 9, dtype=dtype)
        bits = rng.integers(0, 256, model.weight.data.nbytes, dtype=np.uint8)
        model.weight.data[...] = bits.view(dtype).reshape(9, 33)  # NaN payloads and infinities too
        ac.save_checkpoint(tmp_path / "x.h5", model)
        other = ac.Dense(33, 9, dtype=dtype)
        ac.load_checkpoint(tmp_path / "x.h5", other)
        rebuilt = ac.load_model(tmp_path / "x.h5")
        for found in (other, rebuilt):
            assert found.weight.data.dtype == dtype
            assert found.weight.data.tobytes() == model.weight.data.tobytes()

    def test_cpu_to_other_backend_and_back(self, backend, tmp_path):
        model = make_model()
        optimizer = make_optimizer(model)
        train(model, optimizer)
        ac.save_checkpoint(tmp_path / "a.h5", model, optimizer)
        there = make_model()
        there_optimizer = make_optimizer(there)
        ac.load_checkpoint(tmp_path / "a.h5", there, there_optimizer, backend=backend)
        assert all(backend.owns(array) for array in there.state_dict().values())
        ac.save_checkpoint(tmp_path / "b.h5", there, there_optimizer)
        assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
        again = ac.load_model(tmp_path / "b.h5", backend=backend)
        assert_same(again.to("cpu"), model)

    def test_same_state_gives_the_same_bytes(self, tmp_path):
        first = valid_bytes(tmp_path / "a.h5")
        time.sleep(1.1)  # HDF5 counts times in seconds
        assert valid_bytes(tmp_path / "b.h5") == first

    def test_frozen_parameters_and_part_of_the_model(self, tmp_path):
        """An optimizer of some of the parameters, in another order."""
        model, other = make_model(), make_model()
        optimizer = ac.Adam([model.layers[7].bias, model.layers[0].weight], 0.1)
        train(model, optimizer)
        ac.save_checkpoint(tmp_path / "x.h5", model, optimizer)
        other_optimizer = ac.Adam([other.layers[0].weight, other.layers[7].bias], 0.5)
        ac.load_checkpoint(tmp_path / "x.h5", other, other_optimizer)
        train(model, optimizer)
        train(other, other_optimizer)
        assert_same(other, model)

    def test_groups_of_parameters(self, backend, tmp_path):
        def make(weight_decay, reverse=False):
            model = make_model().to(backend)
            groups = ac.optim.decay_groups(model.parameters())
            groups[1]["lr"], groups[0]["weight_decay"] = 0.2, weight_decay
            if reverse:
                groups[0]["params"].reverse()
            return model, ac.SGD(groups, 0.1, momentum=0.9)

        model, optimizer = make(0.05)
        train(model, optimizer)
        optimizer.lr = 0.05
        ac.save_checkpoint(tmp_path / "x.h5", model, optimizer)
        other, other_optimizer = make(0.5, reverse=True)
        ac.load_checkpoint(tmp_path / "x.h5", other, other_optimizer)
        assert [g["lr"] for g in other_optimizer.groups] == [0.05, 0.1]
        assert [g["weight_decay"] for g in other_optimizer.groups] == [0.05, 0.0]
        train(model, optimizer)
        train(other, other_optimizer)
        assert_same(other, model)

    def test_file_without_groups_is_that_of_before(self, tmp_path):
        """And one group without anything of its own makes none."""
        for name, grouped in (("a.h5", False), ("b.h5", True)):
            model = make_model()
            given = [{"params": model.parameters()}] if grouped else model.parameters()
            optimizer = ac.SGD(given, 0.1, momentum=0.9)
            train(model, optimizer)
            ac.save_checkpoint(tmp_path / name, model, optimizer)
        assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
        info = ac.read_checkpoint_info(tmp_path / "a.h5")
        assert set(info.optimizer) == {"kind", "hyperparameters", "parameters", "steps", "slots"}

    def test_optimizer_that_has_not_stepped(self, tmp_path):
        model = make_model()
        ac.save_checkpoint(tmp_path / "x.h5", model, make_optimizer(model))
        ac.load_checkpoint(tmp_path / "x.h5", model, make_optimizer(model))

    def test_weights_without_the_optimizer(self, tmp_path):
        (tmp_path / "x.h5").write_bytes(valid_bytes(tmp_path / "x.h5"))
        ac.load_checkpoint(tmp_path / "x.h5", make_model())

    def test_position_in_the_data(self, tmp_path):
        def loader():
            images = np.arange(20, dtype=np.float32).reshape(20, 1, 1, 1)
            return ac.DataLoader(images, np.arange(20), 3, shuffle=True, seed=8)

        model, first, second = ac.Dense(1, 1), loader(), loader()
        batches = iter(first)
        for _ in range(3):
            next(batches)
        ac.save_checkpoint(tmp_path / "x.h5", model, loader=first)
        ac.load_checkpoint(tmp_path / "x.h5", model, loader=second)
        for (_, expected), (_, found) in zip(batches, second, strict=True):
            np.testing.assert_array_equal(found, expected)

    @pytest.mark.parametrize("schedule", [
        schedules.Constant(0.1), schedules.Step(0.1, (3, 5), 0.5), schedules.Step(0.1, 4),
        schedules.Cosine(0.1, 10, 0.001), schedules.OneCycle(0.1, 20),
        schedules.LinearWarmup(schedules.LinearWarmup(schedules.Cosine(0.1, 9), 3), 4, 0.2),
    ], ids=repr)  # fmt: skip
    def test_schedules(self, schedule, tmp_path):
        model = ac.Dense(1, 1)
        ac.save_checkpoint(tmp_path / "x.h5", model, schedule=schedule)
        assert ac.load_checkpoint(tmp_path / "x.h5", model, schedule=schedule).schedule == schedule
        with pytest.raises(ac.CheckpointError, match=r"the schedule is .* and Constant"):
            ac.load_checkpoint(tmp_path / "x.h5", model, schedule=schedules.Constant(0.7))

    def test_schedule_of_the_users(self, tmp_path):
        def mine(step):
            return 0.1 / (1 + step)

        for schedule in (mine, schedules.LinearWarmup(mine, 3)):
            ac.save_checkpoint(tmp_path / "x.h5", ac.Dense(1, 1), schedule=schedule)
            info = ac.load_checkpoint(tmp_path / "x.h5", ac.Dense(1, 1), schedule=schedule)
            assert info.schedule is None

    def test_model_without_parameters(self, tmp_path):
        ac.save_checkpoint(tmp_path / "x.h5", ac.Sequential(ac.ReLU(), ac.Flatten()))
        assert repr(ac.load_model(tmp_path / "x.h5")) == "Sequential(ReLU(), Flatten())"
        ac.load_checkpoint(tmp_path / "x.h5", ac.ReLU())

    def test_many_layers(self, tmp_path):
        """More than eight links, which HDF5 stores in another way."""
        model = ac.Sequential(*(ac.Dense(2, 2) for _ in range(300)), seed=0)
        ac.save_checkpoint(tmp_path / "x.h5", model)
        assert_same(ac.load_model(tmp_path / "x.h5"), model)


class TestLoadModel:
    def test_every_layer(self, backend, tmp_path):
        ac.save_checkpoint(tmp_path / "x.h5", EVERY_LAYER)
        model = ac.load_model(tmp_path / "x.h5", backend=backend)
        assert repr(model) == repr(EVERY_LAYER)
        assert all(layer.backend is backend for _, layer in model.named_layers())
        assert_same(model.to("cpu"), EVERY_LAYER)
        layers = {type(layer).__name__ for _, layer in EVERY_LAYER.named_layers()}
        rooms = (*vars(ac.layers).items(), *vars(ac.models).items())
        known = {name for name, value in rooms if isinstance(value, type)
                 and issubclass(value, ac.Layer) and value is not ac.Layer}  # fmt: skip
        assert layers == known

    @pytest.mark.parametrize("make", [
        ac.models.lenet1, ac.models.lenet5, ac.models.two_layer_cnn, ac.models.mlp,
        lambda **where: ac.models.resnet(8, **where),
    ])  # fmt: skip
    def test_every_network(self, make, tmp_path):
        model = make(seed=3)
        ac.save_checkpoint(tmp_path / "x.h5", model)
        other = ac.load_model(tmp_path / "x.h5")
        assert repr(other) == repr(model)
        assert all(type(a) is type(b) for (_, a), (_, b) in zip(
            model.named_layers(), other.named_layers(), strict=True))  # fmt: skip
        assert_same(other, model)

    def test_can_be_trained_and_drawn_anew(self, tmp_path):
        (tmp_path / "x.h5").write_bytes(valid_bytes(tmp_path / "x.h5"))
        model = ac.load_model(tmp_path / "x.h5")
        train(model, make_optimizer(model))
        model.initialize(5)
        assert_same(model, make_model())

    def test_shared_layers_stay_shared(self, tmp_path):
        dense = ac.Dense(4, 4, seed=0)
        model = ac.Sequential(dense, ac.ReLU(), dense, ac.Residual(dense))
        ac.save_checkpoint(tmp_path / "x.h5", model)
        other = ac.load_model(tmp_path / "x.h5")
        assert other.layers[0] is other.layers[2] is other.layers[3].body
        assert_same(other, model)
        assert list(ac.read_checkpoint_info(tmp_path / "x.h5").tensors) == ["0.bias", "0.weight"]

    def test_layers_of_different_dtypes(self, tmp_path):
        model = ac.Sequential(ac.Dense(2, 2), ac.Dense(2, 2, dtype="float64"))
        ac.save_checkpoint(tmp_path / "x.h5", model)
        assert_same(ac.load_model(tmp_path / "x.h5"), model)

    def test_layers_of_the_users(self, tmp_path):
        ac.save_checkpoint(tmp_path / "x.h5", ac.Sequential(Scale((3, -np.inf)), ac.Dense(2, 2)))
        with pytest.raises(ac.CheckpointError, match=r"the class 'Scale' is not allowed; if it is"):
            ac.load_model(tmp_path / "x.h5")
        model = ac.load_model(tmp_path / "x.h5", classes=[Scale])
        assert isinstance(model.layers[0], Scale)
        assert model.layers[0].factor == (3, -np.inf)

    def test_classes_that_are_none(self, tmp_path):
        ac.save_checkpoint(tmp_path / "x.h5", ac.Dense(2, 2))
        with pytest.raises(TypeError, match="classes must be subclasses of Layer, got <class 'int"):
            ac.load_model(tmp_path / "x.h5", classes=[int])
        dense = type("Dense", (ac.Dense,), {})
        with pytest.raises(ValueError, match="a second layer named Dense; rename it"):
            ac.load_model(tmp_path / "x.h5", classes=[dense])

    def test_configuration_that_is_no_data(self, tmp_path):
        model = ac.Sequential(Apply(np.sqrt), ac.Dense(2, 2))
        ac.save_checkpoint(tmp_path / "x.h5", model)
        with pytest.raises(ac.CheckpointError, match=r"could not be saved .*use load_chec"):
            ac.load_model(tmp_path / "x.h5", classes=[Apply])
        ac.load_checkpoint(tmp_path / "x.h5", model)

    def test_parameters_shared_by_hand_stay_shared(self, tmp_path):
        model = ac.Sequential(ac.Dense(3, 3), ac.ReLU(), ac.Dense(3, 3))
        model[2].weight = model[0].weight
        optimizer = ac.Adam(model.parameters())
        assert len(optimizer.parameters) == 3
        ac.save_checkpoint(tmp_path / "x.h5", model, optimizer)
        assert "2.weight" not in ac.read_checkpoint_info(tmp_path / "x.h5").tensors
        other = ac.load_model(tmp_path / "x.h5")
        assert other[2].weight is other[0].weight
        assert other[2].bias is not other[0].bias
        assert_same(other, model)
        ac.load_checkpoint(tmp_path / "x.h5", model, optimizer)
        untied = ac.Sequential(ac.Dense(3, 3), ac.ReLU(), ac.Dense(3, 3))
        with pytest.raises(ac.CheckpointError, match=r"missing in the file: 2\.weight"):
            ac.load_checkpoint(tmp_path / "x.h5", untied)

    @pytest.mark.parametrize(("ties", "message"), [
        ({"2.weight": "5.weight"}, "must be in the model"),
        ({"2.weight": "0.bias"}, "different shapes"),
        ({"2.weight": 3}, "must be a name"),
    ])  # fmt: skip
    def test_ties_that_do_not_fit_are_refused(self, tmp_path, ties, message):
        model = ac.Sequential(ac.Dense(3, 3), ac.ReLU(), ac.Dense(3, 3))
        model[2].weight = model[0].weight
        path = tmp_path / "x.h5"
        with mock.patch("arraycnn.checkpoint.contents.ties_of", return_value=ties):
            ac.save_checkpoint(path, model)
        with pytest.raises(ac.CheckpointError, match=message):
            ac.load_model(path)


class Scale(ac.layers.Layer):
    def __init__(self, factor):
        self.factor = factor

    def forward(self, x):
        return self.factor * x, lambda grad: self.factor * grad

    def output_shape(self, input_shape):
        return input_shape


class Apply(Scale):
    """Its argument is a function."""


class TestMismatch:
    @pytest.fixture
    def path(self, tmp_path):
        (tmp_path / "x.h5").write_bytes(valid_bytes(tmp_path / "x.h5"))
        return tmp_path / "x.h5"

    def refused(self, path, match, model, optimizer=None, **arguments):
        before = copies(model)
        state = None if optimizer is None else json.dumps(
            optimizer.state_dict(), default=lambda array: array.tolist())  # fmt: skip
        random = model.random_state()
        with pytest.raises(ac.CheckpointError, match=match) as caught:
            ac.load_checkpoint(path, model, optimizer, **arguments)
        assert str(caught.value).startswith(str(path))
        for name, array in copies(model).items():
            np.testing.assert_array_equal(array, before[name])
        assert model.random_state() == random
        if optimizer is not None:
            after = json.dumps(optimizer.state_dict(), default=lambda array: array.tolist())
            assert after == state
        return str(caught.value)

    def test_everything_at_once(self, path):
        model = ac.Sequential(
            ac.Conv2d(1, 4, 5), ac.ReLU(), ac.BatchNorm(4), ac.Dropout(0.2), ac.Flatten(),
            ac.Dense(144, 20, bias=False), ac.ReLU(), ac.Dense(20, 3, dtype="float64"),
        )  # fmt: skip
        message = self.refused(path, "it does not fit the model: missing in the file: 2.weight",
                               model)  # fmt: skip
        assert "unexpected in the file: 1." in message
        assert "1.num_batches_tracked" in message
        assert "5.bias" in message
        assert (
            "0.weight is a float32 parameter of shape (4, 1, 3, 3) in the file and a float32 "
            "parameter of shape (4, 1, 5, 5) in the model" in message
        )
        assert (
            "7.weight is a float32 parameter of shape (3, 20) in the file and a float64" in message
        )

    def test_another_kind_of_optimizer(self, path):
        model = make_model()
        optimizer = ac.SGD(model.parameters(), 0.1)
        self.refused(path, "optimizer: state is of the optimizer 'Adam'", model, optimizer)

    def test_optimizer_of_other_parameters(self, path):
        model = make_model()
        optimizer = ac.Adam(model.parameters()[1:])
        self.refused(path, r"differ in the parameters 0\.weight", model, optimizer)

    def test_optimizer_of_another_network(self, path):
        with pytest.raises(ac.CheckpointError, match=r"x\.h5: optimizer has parameters that mo"):
            ac.load_checkpoint(path, make_model(), make_optimizer(make_model()))

    def test_groups_that_are_others(self, path, tmp_path):
        def grouped(model, cut):
            parameters = model.parameters()
            return ac.Adam([{"params": parameters[:cut]}, {"params": parameters[cut:]}], 0.01)

        model = make_model()
        self.refused(path, r"missing \['groups', 'base_lr'\]", model, grouped(model, 2))
        ac.save_checkpoint(tmp_path / "g.h5", model, grouped(model, 2))
        self.refused(tmp_path / "g.h5", "made without; give it the groups that were saved", model,
                     make_optimizer(model))  # fmt: skip
        self.refused(tmp_path / "g.h5", r"groups of \[2, 6\] parameters, and this optimizer of \[3",
                     model, grouped(model, 3))  # fmt: skip
        parameters = model.parameters()
        swapped = ac.Adam([{"params": parameters[6:]}, {"params": parameters[:6]}], 0.01)
        self.refused(tmp_path / "g.h5", r"group 0 of the optimizer has the parameters 7\.bias, 7",
                     model, swapped)  # fmt: skip

    def test_read_only_array(self, path):
        model = make_model()
        optimizer = make_optimizer(model)
        optimizer.lr = 0.7
        model.layers[7].bias.data.flags.writeable = False
        self.refused(path, r"7\.bias of the model is read-only", model, optimizer)

    def test_loader_that_raises_only_in_earnest(self, tmp_path):
        class Busy:
            busy = False

            def state_dict(self):
                return {"a": 1}

            def load_state_dict(self, state):
                if self.busy:
                    raise RuntimeError("in use")
                assert state["b"]

            def __copy__(self):
                return Busy()

        model = make_model()
        ac.save_checkpoint(tmp_path / "x.h5", model, make_optimizer(model), loader=Busy())
        optimizer, loader = make_optimizer(model), Busy()
        self.refused(tmp_path / "x.h5", "loader: KeyError: 'b'", model, optimizer, loader=loader)
        Busy.load_state_dict = lambda self, state: 1 / (not self.busy)
        loader.busy = True
        self.refused(tmp_path / "x.h5", "loader: ZeroDivisionError", model, optimizer,
                     loader=loader)  # fmt: skip

    def test_no_optimizer_was_saved(self, tmp_path):
        model = make_model()
        ac.save_checkpoint(tmp_path / "x.h5", model)
        self.refused(tmp_path / "x.h5", "no optimizer was saved", model, make_optimizer(model))

    def test_no_position_was_saved(self, path):
        loader = ac.DataLoader(np.zeros((4, 1), np.float32), np.zeros(4, int), 2)
        self.refused(path, "no position of a loader was saved", make_model(), loader=loader)

    def test_position_of_another_loader(self, tmp_path):
        def loader(size):
            return ac.DataLoader(np.zeros((4, 1), np.float32), np.zeros(4, int), size)

        model = make_model()
        optimizer = make_optimizer(model)
        ac.save_checkpoint(tmp_path / "x.h5", model, optimizer, loader=loader(2))
        train(model, optimizer)
        other = loader(3)
        before = other.state_dict()
        self.refused(tmp_path / "x.h5", "loader: .*batch_size is 2 in the state and 3 here",
                     model, optimizer, loader=other)  # fmt: skip
        assert other.state_dict() == before

    def test_other_random_layers(self, path):
        layers = list(make_model().layers)
        layers[3] = ac.ReLU()
        self.refused(
            path, r"random layers are \['3'\] in the file and \[\]", ac.Sequential(*layers)
        )

    def test_optimizer_of_another_model_at_saving(self, tmp_path):
        with pytest.raises(ValueError, match=r"optimizer has parameters that model does not have"):
            ac.save_checkpoint(tmp_path / "x.h5", make_model(), make_optimizer(make_model()))
        assert list(tmp_path.iterdir()) == []


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "error", "match"),
        [
            ({"epoch": -1}, ValueError, "epoch must be at least 0, got -1"),
            ({"step": 1.5}, TypeError, "step must be an int, got 1.5"),
            (
                {"extra": {"a": np.zeros(2)}},
                TypeError,
                r"extra\['a'\] must be plain data .* ndarra",
            ),
            ({"extra": {"a": [1, {"b": float("nan")}]}}, ValueError, r"extra\['a'\]\[1\]\['b'\] m"),
            ({"extra": {1: 2}}, TypeError, "extra must have str keys, got 1"),
            ({"extra": {"a": b"x"}}, TypeError, "got bytes"),
            ({"extra": {"a": "\ud800"}}, ValueError, r"extra\['a'\] must be valid Unicode"),
            ({"extra": {"\ud800": 1}}, ValueError, "must be valid Unicode"),
            ({"extra": {"a": "x" * (17 << 20)}}, ValueError, "more than the 16777216 allowed"),
        ],
    )
    def test_what_cannot_be_saved(self, arguments, error, match, tmp_path):
        with pytest.raises(error, match=match):
            ac.save_checkpoint(tmp_path / "x.h5", ac.Dense(1, 1), **arguments)
        assert list(tmp_path.iterdir()) == []

    def test_deep_extra(self, tmp_path):
        deep = []
        for _ in range(150):
            deep = [deep]
        with pytest.raises(ValueError, match="nested 153 deep, 100 are allowed"):
            ac.save_checkpoint(tmp_path / "x.h5", ac.Dense(1, 1), extra={"deep": deep})

    def test_model_that_is_none(self, tmp_path):
        with pytest.raises(TypeError, match="model must be a layer, got dict"):
            ac.save_checkpoint(tmp_path / "x.h5", {"weight": 1})

    def test_dtype_of_a_buffer(self, tmp_path):
        model = ac.BatchNorm(2)
        model.num_batches_tracked.data = np.zeros((), np.int32)
        with pytest.raises(TypeError, match=r"num_batches_tracked must be one of .*, got int32"):
            ac.save_checkpoint(tmp_path / "x.h5", model)

    def test_extra_is_kept_exactly(self, tmp_path):
        extra = {"ä😀": [1, -0.0, 1e-300, 0.1, 2**80, True, None, '\n\0"\\[{'], "": {}}
        ac.save_checkpoint(tmp_path / "x.h5", ac.Dense(1, 1), extra=extra)
        assert ac.read_checkpoint_info(tmp_path / "x.h5").extra == extra

    def test_depth_ignores_strings(self):
        assert metadata.decode(b'{"a": "' + b"[{" * 500 + b'"}') == {"a": "[{" * 500}


class TestFiles:
    def test_missing(self, tmp_path):
        for load in (ac.load_model, ac.read_checkpoint_info):
            with pytest.raises(FileNotFoundError):
                load(tmp_path / "nothing.h5")

    def test_folder_and_pipe(self, tmp_path):
        import os

        os.mkfifo(tmp_path / "pipe")
        for name in ("", "pipe"):
            with pytest.raises(ac.CheckpointError, match="must be a regular file"):
                ac.load_model(tmp_path / name)

    def test_other_formats(self, tmp_path):
        with h5py.File(tmp_path / "plain.h5", "w") as file:
            file["x"] = 1
        np.save(tmp_path / "x.npy", np.zeros(1000))
        (tmp_path / "empty").touch()
        for name in ("plain.h5", "x.npy", "empty"):
            with pytest.raises(ac.CheckpointDamagedError, match="no arraycnn checkpoint"):
                ac.read_checkpoint_info(tmp_path / name)

    def test_later_version(self, tmp_path):
        data = bytearray(valid_bytes(tmp_path / "x.h5"))
        struct.pack_into("<I", data, 8, 2)
        (tmp_path / "x.h5").write_bytes(data)
        with pytest.raises(
            ac.CheckpointError, match="the format version is 2, this library reads 1"
        ):
            ac.read_checkpoint_info(tmp_path / "x.h5")

    def test_much_larger_than_the_model(self, tmp_path):
        ac.save_checkpoint(tmp_path / "x.h5", ac.Dense(3500, 3500))
        model = ac.Dense(1, 1)
        with pytest.raises(ac.CheckpointError, match=r"more than the \d+ that this model"):
            ac.load_checkpoint(tmp_path / "x.h5", model)

    def test_layout_is_as_specified(self, tmp_path):
        """Read with plain h5py and struct, as the specification tells."""
        import hashlib

        data = valid_bytes(tmp_path / "x.h5")
        magic, version, zero, length, digest = struct.unpack_from("<8sIIQ32s", data)
        assert (magic, version, zero) == (b"\x89ACNN\r\n\n", 1, 0)
        assert length == len(data) - 512
        assert digest == hashlib.sha256(data[512:]).digest()
        assert not any(data[56:512])
        with h5py.File(tmp_path / "x.h5") as file:
            meta = json.loads(file["meta"][...].tobytes())
            assert meta["epoch"] == 2
            assert sorted(file) == ["buffers", "meta", "optimizer", "params"]
            assert file["params/0/weight"].shape == (4, 1, 3, 3)
            assert file["buffers/1/num_batches_tracked"][()] == 1
            assert file["optimizer/second_moment/7/bias"].dtype == "<f4"
            datasets = []
            file.visititems(
                lambda name, node: datasets.append(node) if isinstance(node, h5py.Dataset) else None
            )
            assert len(datasets) == 1 + 8 + 3 + 16
            for dataset in datasets:
                assert dataset.chunks is None
                assert dataset.compression is None
                assert not dataset.attrs
            for dataset in datasets:
                if dataset.nbytes >= 1024:
                    assert dataset.id.get_offset() % 64 == 0

    @pytest.mark.skipif(not shutil.which("h5dump"), reason="hdf5-tools are not installed")
    def test_hdf5_tools_open_it(self, tmp_path):
        valid_bytes(tmp_path / "x.h5")
        listing = subprocess.run(
            ["h5ls", "-r", tmp_path / "x.h5"], capture_output=True, text=True, check=True
        ).stdout
        assert "/params/0/weight         Dataset {4, 1, 3, 3}" in listing
        dump = subprocess.run(
            ["h5dump", "-d", "/params/7/bias", tmp_path / "x.h5"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "H5T_IEEE_F32LE" in dump.stdout
        assert dump.stderr == ""


class TestCommand:
    def test_prints_what_is_in_it(self, tmp_path, capsys):
        valid_bytes(tmp_path / "x.h5")
        assert main([str(tmp_path / "x.h5")]) == 0
        output = capsys.readouterr().out
        assert "x.h5: intact, " in output
        assert "epoch 2, step 9, float32" in output
        assert "optimizer Adam(betas=[0.9, 0.999]" in output
        assert "0.weight                         float32  (4, 1, 3, 3)" in output
        assert 'extra note: "valid"' in output

    def test_says_what_is_wrong(self, tmp_path, capsys):
        data = bytearray(valid_bytes(tmp_path / "x.h5"))
        data[-1] ^= 1
        (tmp_path / "x.h5").write_bytes(data)
        assert main([str(tmp_path / "x.h5"), str(tmp_path / "nothing")]) == 1
        output = capsys.readouterr()
        assert output.out == ""
        assert "x.h5: the checksum does not match" in output.err
        assert "No such file" in output.err

    def test_all_there_is_to_print(self, tmp_path, capsys):
        model = ac.Sequential(Apply(np.sqrt), ac.Dense(1, 1))
        loader = ac.DataLoader(np.zeros((4, 1), np.float32), np.zeros(4, int), 2)
        ac.save_checkpoint(tmp_path / "x.h5", model, ac.SGD(model.parameters(), 1.0),
                           schedule=schedules.Constant(0.5), loader=loader,
                           extra={"long": "x" * 300})  # fmt: skip
        assert main([str(tmp_path / "x.h5")]) == 0
        output = capsys.readouterr().out
        for text in ("slots: none", "schedule Constant(lr=0.5)", '"batch_size": 2',
                     "network without configuration: ", "extra long: 302 characters"):  # fmt: skip
            assert text in output

    def test_as_a_module(self, tmp_path):
        valid_bytes(tmp_path / "x.h5")
        process = subprocess.run(
            [sys.executable, "-W", "error", "-m", "arraycnn.checkpoint", tmp_path / "x.h5"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert process.returncode == 0, process.stderr
        assert process.stderr == ""
