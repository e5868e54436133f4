"""Optimizers and clipping against PyTorch's stored float64 trajectories, and their errors."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from arraycnn import optim
from arraycnn.layers.layer import Parameter

ORACLE = dict(np.load(Path(__file__).parent / "oracle" / "optim.npz"))
CASES = [(n, *case) for n, case in enumerate(json.loads(str(ORACLE["cases"])))]
STEPS, COUNT = ORACLE["active"].shape
LR_CHANGE, LR_FACTOR = 6, 0.5

KINDS = {
    "sgd": lambda p: optim.SGD(p, 0.1),
    "momentum": lambda p: optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: optim.Adam(p, 0.01, weight_decay=0.01),
    "adamw": lambda p: optim.AdamW(p, 0.01),
    "rmsprop": lambda p: optim.RMSprop(p, 0.01, momentum=0.5),
    "adagrad": lambda p: optim.Adagrad(p, 0.1, lr_decay=0.1),
}


def make_parameters(dtype=np.float64):
    return [Parameter(ORACLE[f"start/{i}"].astype(dtype)) for i in range(COUNT)]


def set_gradients(parameters, step, dtype=np.float64):
    for i, parameter in enumerate(parameters):
        active = ORACLE["active"][step, i]
        parameter.grad = ORACLE[f"gradients/{i}"][step].astype(dtype) if active else None


def run(optimizer, parameters, steps, dtype=np.float64):
    for step in steps:
        set_gradients(parameters, step, dtype)
        optimizer.step()


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


class TestAgainstPyTorch:
    @pytest.mark.parametrize(("n", "name", "arguments"), CASES)
    @pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-13), (np.float32, 2e-5)])
    def test_trajectory(self, n, name, arguments, dtype, tolerance):
        parameters = make_parameters(dtype)
        optimizer = getattr(optim, name)(parameters, **arguments)
        for step in range(STEPS):
            if step == LR_CHANGE:
                optimizer.lr *= LR_FACTOR
            set_gradients(parameters, step, dtype)
            optimizer.step()
            for i, parameter in enumerate(parameters):
                expected = ORACLE[f"trajectory/{n}/{i}"][step]
                np.testing.assert_allclose(parameter.data, expected, rtol=tolerance, atol=tolerance)


class TestStep:
    def test_keeps_the_dtype_and_the_array(self, kind):
        parameters = make_parameters(np.float32)
        arrays = [p.data for p in parameters]
        optimizer = kind(parameters)
        optimizer.lr = np.float64(0.01)
        run(optimizer, parameters, range(2), np.float32)
        for parameter, array in zip(parameters, arrays, strict=True):
            assert parameter.data is array
            assert array.dtype == np.float32
        slots = optimizer.state_dict()["slots"]
        assert all(s.dtype == np.float32 for by_index in slots.values() for s in by_index.values())

    def test_leaves_gradients_alone(self, kind):
        parameters = make_parameters()
        set_gradients(parameters, 2)
        gradients = [p.grad.copy() for p in parameters]
        kind(parameters).step()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            np.testing.assert_array_equal(parameter.grad, gradient)

    def test_any_memory_order(self, kind):
        rng = np.random.default_rng(0)
        value, gradient = rng.standard_normal((2, 4, 3, 2))
        plain, strided = Parameter(value.copy()), Parameter(np.asfortranarray(value))
        for parameter, grad in ((plain, gradient), (strided, gradient[::-1].copy()[::-1])):
            optimizer = kind([parameter])
            for _ in range(3):
                parameter.grad = grad
                optimizer.step()
        np.testing.assert_array_equal(plain.data, strided.data)

    def test_without_gradients_changes_nothing(self, kind):
        parameters = make_parameters()
        kind(parameters).step()
        for i, parameter in enumerate(parameters):
            np.testing.assert_array_equal(parameter.data, ORACLE[f"start/{i}"])

    @pytest.mark.parametrize(
        ("grad", "error", "match"),
        [
            (np.zeros((3, 2)), ValueError, r"gradient of parameter 2 .*\(2, 3\), got \(3, 2\)"),
            (np.zeros((2, 3), np.float32), TypeError, "parameter 2 must be float64.*got float32"),
        ],
    )
    def test_a_wrong_gradient_changes_nothing(self, kind, grad, error, match):
        parameters = make_parameters()
        optimizer = kind(parameters)
        run(optimizer, parameters, range(2))
        before = optimizer.state_dict()
        data = [p.data.copy() for p in parameters]
        set_gradients(parameters, 2)
        parameters[2].grad = grad
        with pytest.raises(error, match=match):
            optimizer.step()
        assert_same_state(optimizer.state_dict(), before)
        for parameter, old in zip(parameters, data, strict=True):
            np.testing.assert_array_equal(parameter.data, old)

    def test_float16_refuses_an_eps_that_vanishes(self):
        parameter = Parameter(np.ones(2, np.float16))
        parameter.grad = np.array([0, 1], np.float16)
        optimizer = optim.Adam([parameter])
        with pytest.raises(ValueError, match=r"eps=1e-08 is zero in float16.*1e-4"):
            optimizer.step()
        optimizer.eps = 1e-4
        optimizer.step()
        assert np.isfinite(parameter.data).all()
        assert parameter.data.dtype == np.float16

    def test_slots_follow_a_change_of_dtype(self, kind):
        parameters = make_parameters(np.float32)
        optimizer = kind(parameters)
        run(optimizer, parameters, range(2), np.float32)
        for parameter in parameters:
            parameter.data = parameter.data.astype(np.float64)
        run(optimizer, parameters, range(2, 4))
        slots = optimizer.state_dict()["slots"]
        assert all(s.dtype == np.float64 for by_index in slots.values() for s in by_index.values())

    def test_zero_grad(self, kind):
        parameters = make_parameters()
        set_gradients(parameters, 2)
        kind(parameters).zero_grad()
        assert all(p.grad is None for p in parameters)


def assert_same_state(state, other):
    assert {k: state[k] for k in state if k != "slots"} == {
        k: other[k] for k in other if k != "slots"
    }
    assert state["slots"].keys() == other["slots"].keys()
    for name, slots in state["slots"].items():
        assert slots.keys() == other["slots"][name].keys()
        for i, slot in slots.items():
            np.testing.assert_array_equal(slot, other["slots"][name][i])


class TestState:
    @pytest.mark.parametrize("interrupted_at", [0, 1, 4])
    def test_resumes_bit_exactly(self, kind, interrupted_at):
        whole = make_parameters(np.float32)
        run(kind(whole), whole, range(STEPS), np.float32)

        first = make_parameters(np.float32)
        optimizer = kind(first)
        optimizer.lr = 0.02
        optimizer.lr = kind(first).lr
        run(optimizer, first, range(interrupted_at), np.float32)
        state = optimizer.state_dict()
        state = {**json.loads(json.dumps({**state, "slots": None})), "slots": state["slots"]}

        second = [Parameter(p.data.copy()) for p in first]
        resumed = type(optimizer)(second, lr=1.0)
        resumed.load_state_dict(state)
        run(resumed, second, range(interrupted_at, STEPS), np.float32)
        for a, b in zip(whole, second, strict=True):
            np.testing.assert_array_equal(a.data, b.data)

    def test_is_a_snapshot(self, kind):
        parameters = make_parameters()
        optimizer = kind(parameters)
        run(optimizer, parameters, range(3))
        state, again = optimizer.state_dict(), optimizer.state_dict()
        run(optimizer, parameters, range(3, 5))
        assert_same_state(state, again)

    def test_loaded_slots_are_copies(self):
        parameters = make_parameters()
        optimizer = KINDS["adam"](parameters)
        run(optimizer, parameters, range(3))
        state = optimizer.state_dict()
        optimizer.load_state_dict(state)
        state["slots"]["first_moment"][0][...] = 0
        assert optimizer.state_dict()["slots"]["first_moment"][0].any()

    def test_counts_updates_per_parameter(self):
        parameters = make_parameters()
        optimizer = KINDS["adam"](parameters)
        run(optimizer, parameters, range(STEPS))
        assert optimizer.state_dict()["steps"] == [10, 7, 9]

    def test_momentum_switched_off_and_on(self):
        parameters = make_parameters()
        optimizer = KINDS["momentum"](parameters)
        optimizer.nesterov = False
        run(optimizer, parameters, range(3))
        optimizer.momentum = 0.0
        run(optimizer, parameters, range(3, 4))
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.momentum = 0.5
        assert not optimizer.state_dict()["slots"]["velocity"][0].any()

    @pytest.mark.parametrize(
        ("change", "error", "match"),
        [
            ({"kind": "SGD"}, ValueError, "'SGD' and this one is 'Adam'"),
            ({"steps": [3, 3]}, ValueError, "3 update counts"),
            ({"steps": [3, 3, -1]}, ValueError, "non-negative"),
            ({"steps": [3, 3, 0]}, ValueError, r"unexpected \[2\]"),
            ({"slots": {"first_moment": {}}}, ValueError, "missing.*second_moment"),
            ({"hyperparameters": {"lr": 1.0}}, ValueError, "missing.*betas"),
            ({"extra": 1}, ValueError, r"unexpected \['extra'\]"),
        ],
    )
    def test_bad_state_changes_nothing(self, change, error, match):
        parameters = make_parameters()
        optimizer = KINDS["adam"](parameters)
        run(optimizer, parameters, range(2, 3))
        before = optimizer.state_dict()
        with pytest.raises(error, match=match):
            optimizer.load_state_dict({**optimizer.state_dict(), **change})
        assert_same_state(optimizer.state_dict(), before)

    @pytest.mark.parametrize(
        ("value", "error", "match"),
        [
            (np.zeros((2, 2)), ValueError, r"parameter's shape \(4,\), got \(2, 2\)"),
            (np.zeros(4, np.float32), TypeError, r"\['second_moment'\]\[1\] must be float64"),
        ],
    )
    def test_bad_slot_changes_nothing(self, value, error, match):
        parameters = make_parameters()
        optimizer = KINDS["adam"](parameters)
        run(optimizer, parameters, range(2, 3))
        before, state = optimizer.state_dict(), optimizer.state_dict()
        state["slots"]["second_moment"][1] = value
        state["hyperparameters"]["lr"] = 7.0
        with pytest.raises(error, match=match):
            optimizer.load_state_dict(state)
        assert_same_state(optimizer.state_dict(), before)


class TestArguments:
    @pytest.mark.parametrize("lr", [math.nan, math.inf, -math.inf, -0.1])
    def test_lr_out_of_range(self, lr):
        optimizer = optim.SGD(make_parameters(), 0.1)
        with pytest.raises(ValueError, match="lr must be a finite number of at least 0"):
            optim.SGD(make_parameters(), lr)
        with pytest.raises(ValueError, match="lr must be"):
            optimizer.lr = lr
        assert optimizer.lr == 0.1

    @pytest.mark.parametrize("lr", ["0.1", None, True, 1j, np.zeros(1)])
    def test_lr_no_number(self, lr):
        with pytest.raises(TypeError, match="lr must be a number"):
            optim.Adam(make_parameters(), lr)

    @pytest.mark.parametrize(
        ("kind", "arguments", "match"),
        [
            ("SGD", {"momentum": 1.0}, "momentum must be .*below 1, got 1.0"),
            ("SGD", {"momentum": -0.1}, "momentum"),
            ("SGD", {"weight_decay": math.nan}, "weight_decay"),
            ("SGD", {"nesterov": True}, "nesterov needs a momentum"),
            ("Adam", {"betas": (0.9, 1.0)}, r"betas\[1\] must be .*below 1"),
            ("Adam", {"betas": (-0.1, 0.9)}, r"betas\[0\]"),
            ("Adam", {"betas": (0.9,)}, "pair of numbers"),
            ("Adam", {"betas": 0.9}, "pair of numbers"),
            ("AdamW", {"eps": 0.0}, "eps must be a finite number above 0"),
            ("AdamW", {"weight_decay": -1}, "weight_decay"),
            ("RMSprop", {"alpha": 1.5}, "alpha"),
            ("RMSprop", {"momentum": math.inf}, "momentum"),
            ("Adagrad", {"lr_decay": -1}, "lr_decay"),
        ],
    )
    def test_hyperparameter_out_of_range(self, kind, arguments, match):
        with pytest.raises(ValueError, match=match):
            getattr(optim, kind)(make_parameters(), 0.1, **arguments)

    def test_nesterov_no_bool(self):
        with pytest.raises(TypeError, match="nesterov must be True or False, got 1"):
            optim.SGD(make_parameters(), 0.1, momentum=0.9, nesterov=1)

    def test_parameters_empty(self):
        with pytest.raises(ValueError, match="parameters is empty"):
            optim.SGD([], 0.1)

    def test_parameter_twice(self):
        parameters = make_parameters()
        with pytest.raises(ValueError, match=r"parameters\[3\] is the same Parameter as .*\[1\]"):
            optim.SGD([*parameters, parameters[1]], 0.1)

    @pytest.mark.parametrize(
        ("parameters", "match"),
        [
            (3, "list of Parameter objects"),
            ([np.zeros(3)], r"parameters\[0\] must be a Parameter, got ndarray"),
            ([("weight", None)], "got tuple"),
        ],
    )
    def test_no_parameters(self, parameters, match):
        with pytest.raises(TypeError, match=match):
            optim.SGD(parameters, 0.1)

    def test_single_parameter(self):
        with pytest.raises(TypeError, match=r"pass \[parameter\]"):
            optim.SGD(make_parameters()[0], 0.1)

    def test_generator_of_parameters(self):
        assert len(optim.SGD((p for p in make_parameters()), 0.1).parameters) == COUNT

    def test_repr_names_hyperparameters(self):
        optimizer = optim.SGD(make_parameters(), 0.1, momentum=0.9)
        assert repr(optimizer).startswith("SGD(3 parameters, lr=0.1, momentum=0.9,")


class TestClipping:
    def gradients(self, dtype=np.float64):
        parameters = [Parameter(np.zeros(2, dtype)), Parameter(np.zeros(3, dtype))]
        parameters.append(Parameter(np.zeros(1, dtype)))
        parameters[0].grad = np.array([3, 0], dtype)
        parameters[1].grad = np.array([0, -4, 0], dtype)
        return parameters

    def test_norm_over_all_parameters(self):
        parameters = self.gradients(np.float32)
        assert optim.clip_grad_norm(parameters, 1.0) == 5.0
        np.testing.assert_allclose(parameters[0].grad, [0.6, 0], rtol=1e-7)
        np.testing.assert_allclose(parameters[1].grad, [0, -0.8, 0], rtol=1e-7)
        assert parameters[0].grad.dtype == np.float32
        assert parameters[2].grad is None

    def test_norm_below_the_limit_changes_nothing(self):
        parameters = self.gradients()
        gradient = parameters[0].grad
        assert optim.clip_grad_norm(parameters, 5.0) == 5.0
        assert parameters[0].grad is gradient

    def test_large_float32_gradients_do_not_overflow(self):
        parameters = self.gradients(np.float32)
        for parameter in parameters[:2]:
            parameter.grad *= np.float32(1e30)
        assert optim.clip_grad_norm(parameters, 1.0) == pytest.approx(5e30)
        np.testing.assert_allclose(parameters[0].grad, [0.6, 0], rtol=1e-6)

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_norm_not_finite_leaves_gradients(self, bad):
        parameters = self.gradients()
        parameters[1].grad[0] = bad
        assert not math.isfinite(optim.clip_grad_norm(parameters, 1.0))
        np.testing.assert_array_equal(parameters[0].grad, [3, 0])

    def test_value(self):
        parameters = self.gradients(np.float32)
        parameters[1].grad[2] = math.nan
        optim.clip_grad_value(parameters, 2)
        np.testing.assert_array_equal(parameters[0].grad, [2, 0])
        np.testing.assert_array_equal(parameters[1].grad, [0, -2, math.nan])
        assert parameters[1].grad.dtype == np.float32

    def test_without_gradients(self):
        parameters = [Parameter(np.zeros(2))]
        assert optim.clip_grad_norm(parameters, 1.0) == 0.0
        optim.clip_grad_value(parameters, 1.0)
        assert parameters[0].grad is None

    @pytest.mark.parametrize("limit", [0, -1, math.nan, math.inf])
    def test_bad_limit(self, limit):
        parameters = self.gradients()
        with pytest.raises(ValueError, match="max_norm must be a finite number above 0"):
            optim.clip_grad_norm(parameters, limit)
        with pytest.raises(ValueError, match="max_value must be a finite number above 0"):
            optim.clip_grad_value(parameters, limit)
        np.testing.assert_array_equal(parameters[0].grad, [3, 0])
