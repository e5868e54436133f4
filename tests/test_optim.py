"""Optimizers and clipping against PyTorch's stored float64 trajectories, and their errors."""

import inspect
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import arraycnn as ac
from arraycnn import optim
from arraycnn.backends.cpu import CpuBackend
from arraycnn.optim.hyperparameters import Share
from arraycnn.parameters import Parameter

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
    @pytest.mark.parametrize(("n", "name", "arguments", "groups"), CASES)
    @pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-13), (np.float32, 2e-5)])
    def test_trajectory(self, n, name, arguments, groups, dtype, tolerance):
        parameters = make_parameters(dtype)
        given = [{"params": [parameters[i] for i in chosen], **own} for chosen, own in groups]
        optimizer = getattr(optim, name)(given or parameters, **arguments)
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

    def test_leaves_frozen_parameters_alone(self, kind):
        parameters = make_parameters()
        parameters[1].requires_grad = False
        optimizer = kind(parameters)
        run(optimizer, parameters, range(2, 5))
        np.testing.assert_array_equal(parameters[1].data, ORACLE["start/1"])
        assert optimizer.state_dict()["steps"] == [3, 0, 2]

    @pytest.mark.parametrize(
        ("spoil", "error", "match"),
        [
            (
                lambda p: p.data.setflags(write=False),
                ValueError,
                "data of parameter 2 is read-only",
            ),
            (lambda p: setattr(p, "grad", [1.0]), TypeError, "gradient of parameter 2 must be a N"),
            (lambda p: setattr(p, "data", p.data.astype("f4")), TypeError, "must be float32 like"),
            (
                lambda p: (setattr(p, "data", p.data[:1]), setattr(p, "grad", p.grad[:1])),
                ValueError,
                r"a parameter has the shape \(1, 3\) now, but its .* \(2, 3\)",
            ),
        ],
    )
    def test_what_cannot_be_updated_changes_nothing(self, kind, spoil, error, match):
        parameters = make_parameters()
        optimizer = kind(parameters)
        run(optimizer, parameters, range(2))
        before, data = optimizer.state_dict(), [p.data.copy() for p in parameters[:2]]
        set_gradients(parameters, 2)
        spoil(parameters[2])
        if "shape" in match and not before["slots"]:
            pytest.skip("keeps no slots")
        with pytest.raises(error, match=match):
            optimizer.step()
        for parameter, old in zip(parameters, data, strict=False):
            np.testing.assert_array_equal(parameter.data, old)
        assert [state.steps for state in optimizer._states] == before["steps"]

    def test_all_backends_that_own_the_array_are_heeded(self):
        class Counting(CpuBackend):
            calls = 0

            def update_parameters(self, *arguments, **options):
                self.calls += 1
                super().update_parameters(*arguments, **options)

        backend = Counting()
        parameter = Parameter(np.ones(3), backend)
        parameter.grad = np.ones(3)
        optim.SGD([parameter], 0.1).step()
        assert backend.calls == 1


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

    def test_nesterov_without_momentum_is_refused_at_once(self):
        optimizer = KINDS["momentum"](make_parameters())
        with pytest.raises(ValueError, match="nesterov needs a momentum above 0"):
            optimizer.momentum = 0.0
        with pytest.raises(TypeError, match="nesterov must be True or False, got 'no'"):
            optimizer.nesterov = "no"
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.nesterov = False
        optimizer.momentum = 0.0
        with pytest.raises(ValueError, match="nesterov needs"):
            optimizer.nesterov = True
        assert optimizer.hyperparameters["nesterov"] is False

    def test_slots_that_are_missing_change_nothing(self):
        parameters = make_parameters()
        optimizer = KINDS["adam"](parameters)
        run(optimizer, parameters, range(2, 3))
        state = optimizer.state_dict()
        optimizer.lr = 5.0
        del state["slots"]["second_moment"][2]
        with pytest.raises(ValueError, match=r"missing \[2\]"):
            optimizer.load_state_dict(state)
        assert optimizer.lr == 5.0

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


def make_groups(parameters):
    return [
        {"params": parameters[:1], "lr": 0.2},
        {"params": iter(parameters[1:]), "weight_decay": 0.03, "momentum": 0.0},
    ]


class TestGroups:
    def test_are_optimizers_of_their_own_to_the_bit(self, kind):
        grouped, apart = make_parameters(np.float32), make_parameters(np.float32)
        one = kind(grouped)
        optimizer = type(one)(
            [{"params": grouped[:1], "lr": 0.3}, {"params": grouped[1:], "weight_decay": 0.03}],
            **one.hyperparameters,
        )
        both = kind(apart[:1]), kind(apart[1:])
        both[0].lr, both[1].weight_decay = 0.3, 0.03
        assert optimizer.parameters == grouped
        for step in range(STEPS):
            set_gradients(grouped, step, np.float32)
            set_gradients(apart, step, np.float32)
            optimizer.step()
            for each in both:
                each.step()
        for parameter, other in zip(grouped, apart, strict=True):
            np.testing.assert_array_equal(parameter.data, other.data)

    def test_a_schedule_moves_all_groups(self):
        optimizer = optim.SGD(make_groups(make_parameters()), lr=0.1, momentum=0.9)
        optimizer.lr = 0.05
        assert [group["lr"] for group in optimizer.groups] == [0.1, 0.05]
        optimizer.lr = 0.0
        optimizer.lr = 0.1
        assert [group["lr"] for group in optimizer.groups] == [0.2, 0.1]
        assert [group["momentum"] for group in optimizer.groups] == [0.9, 0.0]
        assert repr(optimizer).startswith("SGD(3 parameters in 2 groups, lr=0.1, momentum=0.9")

    @pytest.mark.parametrize("interrupted_at", [0, 1, 4])
    def test_resume_bit_exactly(self, interrupted_at):
        def make(lr=0.1, weight_decay=0.0):
            parameters = make_parameters(np.float32)
            groups = make_groups(parameters)
            groups[1]["weight_decay"] += weight_decay
            return parameters, optim.SGD(groups, lr=lr, momentum=0.9)

        whole, optimizer = make()
        run(optimizer, whole, range(STEPS), np.float32)
        first, optimizer = make()
        run(optimizer, first, range(interrupted_at), np.float32)
        state = optimizer.state_dict()
        state = {**json.loads(json.dumps({**state, "slots": None})), "slots": state["slots"]}
        second, resumed = make(lr=0.7, weight_decay=0.5)
        for parameter, other in zip(second, first, strict=True):
            parameter.data = other.data.copy()
        resumed.load_state_dict(state)
        assert resumed.groups[1]["weight_decay"] == 0.03
        run(resumed, second, range(interrupted_at, STEPS), np.float32)
        for a, b in zip(whole, second, strict=True):
            np.testing.assert_array_equal(a.data, b.data)

    def test_state_of_other_groups_is_refused(self):
        parameters = make_parameters()
        plain = optim.SGD(parameters, 0.1)
        grouped = optim.SGD(make_groups(parameters), 0.1)
        other = optim.SGD([{"params": parameters[:2]}, {"params": parameters[2:]}], 0.1)
        with pytest.raises(ValueError, match=r"missing \['groups', 'base_lr'\]"):
            grouped.load_state_dict(plain.state_dict())
        with pytest.raises(ValueError, match="state has 2 groups of parameters, but this optim"):
            plain.load_state_dict(grouped.state_dict())
        with pytest.raises(ValueError, match=r"groups of \[1, 2\] parameters, and this .*\[2, 1\]"):
            other.load_state_dict(grouped.state_dict())

    def test_one_group_without_anything_of_its_own_is_no_group(self):
        state = optim.SGD([{"params": make_parameters()}], 0.1).state_dict()
        assert list(state) == ["kind", "hyperparameters", "steps", "slots"]

    def test_no_decay_of_biases_and_norms(self):
        model = ac.Sequential(ac.Conv2d(1, 2, 3), ac.BatchNorm(2), ac.Flatten(), ac.Dense(8, 2))
        optimizer = optim.AdamW(optim.decay_groups(model.parameters()), weight_decay=0.1)
        decays = {
            name: group["weight_decay"]
            for name, parameter in model.named_parameters()
            for group in optimizer.groups
            if any(parameter is one for one in group["params"])
        }
        assert decays == {
            "0.weight": 0.1, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0, "3.weight": 0.1,
            "3.bias": 0.0,
        }  # fmt: skip
        assert len(optim.decay_groups(model.layers[1].parameters())) == 1

    @pytest.mark.parametrize(
        ("change", "error", "match"),
        [
            ({"learning_rate": 1.0}, ValueError, r"parameters\[1\] has unknown keys \['learning"),
            ({"lr": -1}, ValueError, r"parameters\[1\]\['lr'\] must be a finite number"),
            ({"nesterov": 1}, TypeError, r"parameters\[1\]\['nesterov'\] must be True or False"),
            ({"nesterov": True}, ValueError, r"parameters\[1\]: nesterov needs a momentum"),
            ({"params": []}, ValueError, r"parameters\[1\]\['params'\] is empty"),
            ({"params": 3}, TypeError, r"parameters\[1\]\['params'\] must be a list of Param"),
            ({"params": [3]}, TypeError, r"parameters\[1\]\['params'\]\[0\] must be a Parameter"),
        ],
    )
    def test_wrong_group(self, change, error, match):
        first, second = make_groups(make_parameters())
        with pytest.raises(error, match=match):
            optim.SGD([first, {**second, **change}], lr=0.1, momentum=0.9)

    def test_wrong_groups(self):
        parameters = make_parameters()
        group = {"params": parameters}
        twice = (
            r"parameters\[1\]\['params'\]\[0\] is the same Parameter as .*\[0\]\['params'\]\[1\]"
        )
        with pytest.raises(ValueError, match=twice):
            optim.SGD([group, {"params": parameters[1:2]}], lr=0.1)
        with pytest.raises(ValueError, match=r"parameters\[0\] must have the key 'params'"):
            optim.SGD([{"parameters": parameters}], lr=0.1)
        with pytest.raises(TypeError, match=r"got one dict; pass \[group\]"):
            optim.SGD(group, lr=0.1)
        with pytest.raises(TypeError, match=r"parameters\[1\] must be a group"):
            optim.SGD([group, Parameter(np.ones(1))], lr=0.1)
        with pytest.raises(
            ValueError, match=r"lr must be above 0, got 0.0: parameters\[0\] has an"
        ):
            optim.SGD([{**group, "lr": 0.1}], lr=0.0)

    def test_assignment_that_does_not_go_with_a_group(self):
        first, second = make_groups(make_parameters())
        optimizer = optim.SGD([{**first, "nesterov": True}, second], lr=0.1, momentum=0.9)
        with pytest.raises(ValueError, match=r"parameters\[0\]: nesterov needs a momentum"):
            optimizer.momentum = 0.0
        assert optimizer.momentum == 0.9


class TestRules:
    def test_of_ones_own(self, backend):
        @dataclass(eq=False, repr=False)
        class Heavy(optim.Optimizer):
            decay: Share = 0.5

            @staticmethod
            def slots(**_):
                return {"average": 1.0}

            @staticmethod
            def update(xp, p, g, average, *, step, lr, decay):
                average *= decay
                p -= lr * step * xp.sign(g) * average

        parameter = Parameter(backend.asarray(np.ones(100_000)))
        optimizer = Heavy([parameter], 0.1)
        for _ in range(2):
            parameter.grad = backend.asarray(np.full(100_000, 3.0))
            optimizer.step()
        expected = 1 - 0.1 * 0.5 - 0.2 * 0.25
        np.testing.assert_allclose(backend.to_numpy(parameter.data), expected, rtol=1e-14)
        assert repr(optimizer) == "Heavy(1 parameters, lr=0.1, decay=0.5)"
        with pytest.raises(ValueError, match=r"decay must be a finite number .*below 1"):
            optimizer.decay = 1.0

    def test_rule_of_whole_arrays_is_not_given_pieces(self, backend):
        @dataclass(eq=False, repr=False)
        class Normed(optim.Optimizer):
            @staticmethod
            def update(xp, p, g, *, step, lr):
                p -= lr * g / xp.sqrt(xp.sum(g * g))

        parameter = Parameter(backend.asarray(np.zeros(1 << 18)))
        parameter.grad = backend.asarray(np.ones(1 << 18))
        Normed([parameter], 1.0).step()
        np.testing.assert_allclose(backend.to_numpy(parameter.data), -1 / 512, rtol=1e-12)

    def test_field_of_any_other_type_is_taken_as_it_is(self):
        @dataclass(eq=False, repr=False)
        class Named(optim.Optimizer):
            mode: str = "plain"

            @staticmethod
            def update(xp, p, g, *, step, lr, mode):
                assert mode == "fancy"

        parameter = Parameter(np.ones(1))
        parameter.grad = np.ones(1)
        Named([parameter], 0.1, "fancy").step()

    @pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad"])
    def test_signature_is_visible(self, name):
        signature = inspect.signature(getattr(optim, name))
        kinds = [p.kind for p in signature.parameters.values()]
        assert list(signature.parameters)[:2] == ["parameters", "lr"]
        assert kinds[:2] == [inspect.Parameter.POSITIONAL_OR_KEYWORD] * 2
        assert set(kinds[2:]) == {inspect.Parameter.KEYWORD_ONLY}
        hyperparameters = getattr(optim, name)(make_parameters(), lr=0.1).hyperparameters
        assert list(hyperparameters) == list(signature.parameters)[1:]

    def test_parameters_cannot_be_replaced(self):
        with pytest.raises(AttributeError):
            optim.SGD(make_parameters(), 0.1).parameters = []


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
