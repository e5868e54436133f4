"""Schedules against PyTorch's stored rates, and their ends and errors."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from arraycnn import schedules
from arraycnn.schedules import Constant, Cosine, LinearWarmup, OneCycle, Step

ORACLE = dict(np.load(Path(__file__).parent / "oracle" / "optim.npz"))
CASES = [(n, *case) for n, case in enumerate(json.loads(str(ORACLE["schedules"])))]


@pytest.mark.parametrize(("n", "name", "arguments"), CASES)
def test_equals_pytorch(n, name, arguments):
    if name == "LinearWarmup":
        arguments = {**arguments, "after": Constant(arguments["lr"])}
        del arguments["lr"]
    schedule = getattr(schedules, name)(**arguments)
    rates = [schedule(step) for step in range(30)]
    np.testing.assert_allclose(rates, ORACLE[f"schedule/{n}"], rtol=1e-12)
    assert all(type(rate) is float for rate in rates)


ALL = [
    Constant(0.1),
    Step(0.1, 10),
    Step(0.1, (3, 20)),
    Cosine(0.1, 20, final_lr=0.01),
    LinearWarmup(Cosine(0.1, 10), 5),
    OneCycle(0.1, 20),
    OneCycle(0.1, 2),
    OneCycle(0.1, 1),
    OneCycle(0.1, 20, warmup=0),
]


@pytest.mark.parametrize("schedule", ALL, ids=repr)
class TestEvery:
    def test_stays_finite_and_not_negative(self, schedule):
        rates = [schedule(step) for step in range(50)]
        assert all(math.isfinite(rate) and 0 <= rate <= 0.1 + 1e-15 for rate in rates)

    def test_keeps_its_last_value(self, schedule):
        assert schedule(10**9) == schedule(10**6)

    def test_has_no_state(self, schedule):
        forwards = [schedule(step) for step in range(40)]
        assert [schedule(step) for step in reversed(range(40))] == forwards[::-1]

    def test_refuses_what_is_no_step(self, schedule):
        with pytest.raises(ValueError, match="step must be at least 0, got -1"):
            schedule(-1)
        with pytest.raises(TypeError, match=r"step must be an int, got 1\.5"):
            schedule(1.5)

    def test_repr_reconstructs(self, schedule):
        assert eval(repr(schedule), vars(schedules)) == schedule


def test_warmup_hands_over_to_the_schedule_from_its_start():
    schedule = LinearWarmup(Step(0.4, 10), 4, start_factor=0.25)
    assert [schedule(s) for s in range(5)] == pytest.approx([0.1, 0.175, 0.25, 0.325, 0.4])
    assert schedule(13) == 0.4
    assert schedule(14) == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: Constant(math.nan), ValueError, "lr must be a finite number"),
        (lambda: Constant("fast"), TypeError, "lr must be a number, got 'fast'"),
        (lambda: Step(0.1, 0), ValueError, "milestones must be at least 1, got 0"),
        (lambda: Step(0.1, ()), ValueError, "milestones must be increasing"),
        (lambda: Step(0.1, (5, 3)), ValueError, "milestones must be increasing"),
        (lambda: Step(0.1, 2.5), TypeError, "milestones must be an int"),
        (lambda: Step(0.1, 5, gamma=1.5), ValueError, "gamma must be at most 1"),
        (lambda: Step(0.1, 5, gamma=0), ValueError, "gamma must be a finite number above 0"),
        (lambda: Cosine(0.1, 0), ValueError, "steps must be at least 1"),
        (lambda: Cosine(0.1, 5, final_lr=-1), ValueError, "final_lr"),
        (lambda: LinearWarmup(0.1, 5), TypeError, r"after must be a schedule.*Constant\(0\.1\)"),
        (lambda: LinearWarmup(Constant(0.1), 0), ValueError, "steps must be at least 1"),
        (lambda: LinearWarmup(Constant(0.1), 5, 2.0), ValueError, "start_factor must be at most"),
        (lambda: OneCycle(0.1, 5, warmup=1), ValueError, "warmup must be .*below 1"),
        (lambda: OneCycle(0.1, 5, div_factor=0.5), ValueError, "div_factor .*at least 1"),
    ],
)
def test_bad_arguments(make, error, match):
    with pytest.raises(error, match=match):
        make()
