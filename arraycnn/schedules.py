"""Learning-rate schedules: pure functions of the number of updates done so far.

``schedule(step)`` is the learning rate of the next update after ``step`` updates, so the first
update uses ``schedule(0)``. A schedule holds no state: a resumed run asks it for the same step and
gets the same rate. Any callable from int to float will do where a schedule is expected.

Formulas and defaults are PyTorch's (`StepLR`, `MultiStepLR`, `CosineAnnealingLR`, `LinearLR`,
`OneCycleLR`) with steps counted in updates; past its last step a schedule keeps its last value.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from arraycnn.arguments import as_count, as_real

Schedule: TypeAlias = Callable[[int], float]


@dataclass(frozen=True)
class Constant:
    """The same rate ``lr`` at every step."""

    lr: float

    def __post_init__(self) -> None:
        as_real("lr", self.lr)

    def __call__(self, step: int) -> float:
        _step(step)
        return float(self.lr)


@dataclass(frozen=True)
class Step:
    """``lr`` multiplied by ``gamma`` at every milestone.

    Args:
        lr: rate before the first milestone.
        milestones: increasing steps, or one int n for every n-th step.
        gamma: factor, in (0, 1].
    """

    lr: float
    milestones: int | tuple[int, ...]
    gamma: float = 0.1

    def __post_init__(self) -> None:
        as_real("lr", self.lr)
        if as_real("gamma", self.gamma, positive=True) > 1:
            raise ValueError(f"gamma must be at most 1, got {self.gamma!r}")
        if isinstance(self.milestones, list | tuple):
            steps = tuple(as_count("each of milestones", m) for m in self.milestones)
            if not steps or list(steps) != sorted(set(steps)):
                raise ValueError(f"milestones must be increasing steps, got {self.milestones!r}")
            object.__setattr__(self, "milestones", steps)
        else:
            object.__setattr__(self, "milestones", as_count("milestones", self.milestones))

    def __call__(self, step: int) -> float:
        step = _step(step)
        if isinstance(self.milestones, int):
            passed = step // self.milestones
        else:
            passed = sum(m <= step for m in self.milestones)
        return float(self.lr * self.gamma**passed)


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from ``lr`` at step 0 to ``final_lr`` at step ``steps``.

    Source: Loshchilov & Hutter 2017, without restarts.
    """

    lr: float
    steps: int
    final_lr: float = 0.0

    def __post_init__(self) -> None:
        as_real("lr", self.lr)
        as_real("final_lr", self.final_lr)
        as_count("steps", self.steps)

    def __call__(self, step: int) -> float:
        return _half_cosine(self.lr, self.final_lr, min(_step(step) / self.steps, 1.0))


@dataclass(frozen=True)
class LinearWarmup:
    """A straight line up to another schedule, which then starts from its own step 0.

    Args:
        after: the schedule that follows.
        steps: length of the ramp; step ``steps`` is the first of ``after``.
        start_factor: rate at step 0 as a fraction of ``after(0)``, in (0, 1].

    Source: Goyal et al. 2017.
    """

    after: Schedule
    steps: int
    start_factor: float = 1 / 3

    def __post_init__(self) -> None:
        if not callable(self.after):
            raise TypeError(
                f"after must be a schedule, got {self.after!r}; pass Constant({self.after!r})"
            )
        as_count("steps", self.steps)
        if as_real("start_factor", self.start_factor, positive=True) > 1:
            raise ValueError(f"start_factor must be at most 1, got {self.start_factor!r}")

    def __call__(self, step: int) -> float:
        step = _step(step)
        if step >= self.steps:
            return self.after(step - self.steps)
        return self.after(0) * (self.start_factor + (1 - self.start_factor) * step / self.steps)


@dataclass(frozen=True)
class OneCycle:
    """Half a cosine up from ``lr / div_factor`` to ``lr``, then one down to almost nothing.

    Args:
        lr: the highest rate.
        steps: length of the cycle in updates; the last of them has the lowest rate,
            ``lr / (div_factor · final_div_factor)``.
        warmup: fraction of ``steps`` spent going up, in [0, 1).
        div_factor, final_div_factor: at least 1.

    Momentum is not cycled. Source: Smith & Topin 2018.
    """

    lr: float
    steps: int
    warmup: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4

    def __post_init__(self) -> None:
        as_real("lr", self.lr)
        as_count("steps", self.steps)
        as_real("warmup", self.warmup, below=1.0)
        as_real("div_factor", self.div_factor, minimum=1.0)
        as_real("final_div_factor", self.final_div_factor, minimum=1.0)

    def __call__(self, step: int) -> float:
        step = _step(step)
        first, last = self.lr / self.div_factor, self.steps - 1
        peak = max(self.warmup * self.steps - 1, 0.0)
        if step < peak:
            return _half_cosine(first, self.lr, step / peak)
        part = (min(step, last) - peak) / (last - peak) if last > peak else 1.0
        return _half_cosine(self.lr, first / self.final_div_factor, part)


def _half_cosine(start: float, end: float, part: float) -> float:
    """From ``start`` at part 0 to ``end`` at part 1."""
    return float(end + (start - end) * (1 + math.cos(math.pi * part)) / 2)


def _step(step: int) -> int:
    return as_count("step", step, minimum=0, maximum=None)
