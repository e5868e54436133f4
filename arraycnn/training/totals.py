"""Loss and accuracy summed over batches, left on the device until someone looks."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from arraycnn.backends import Backend
from arraycnn.functional.loss import LossValue, Number
from arraycnn.metrics import count_correct


class Figures(NamedTuple):
    """The figures of one batch: numbers, or 0-d arrays that may still be on the device."""

    step: int  # number of its update
    loss: Number
    weight: Number  # what the loss was divided by; 0 if nothing in the batch counts
    correct: Number  # None or below 0 where targets are no class indices
    counted: Number  # labels that are classes
    norm: Number  # of the gradients, or its square


def figures_of(
    backend: Backend, step: int, value: LossValue, targets: Any, norm: Number
) -> Figures:
    """The figures of a batch from its loss, beside which are the outputs; waits for nothing."""
    loss, outputs = value
    weight = value.denominator
    if weight is None:
        weight = _size(targets)
    kind = getattr(getattr(targets, "dtype", None), "kind", "")
    shape: tuple[int, ...] = getattr(outputs, "shape", ())
    if kind not in ("i", "u") or len(shape) < 2 or targets.shape != (shape[0], *shape[2:]):
        return Figures(step, loss, weight, None, 0, norm)
    xp = np if isinstance(targets, np.ndarray) else backend.xp
    known = (targets >= 0) & (targets < max(shape[1], 2))
    to_count = targets.size
    if value.ignore_index is not None:
        counts = targets != value.ignore_index
        known &= counts
        to_count = xp.count_nonzero(counts)
    counted = xp.count_nonzero(known)
    correct = count_correct(
        backend, outputs, backend.asarray(targets), ignore_index=value.ignore_index
    )
    if shape[1] == 1:  # numbers other than 0 and 1 are no classes of a single logit
        correct = backend.xp.where(backend.xp.asarray(counted == to_count), correct, -1)
    return Figures(step, loss, weight, correct, counted, norm)


@dataclass(frozen=True)
class Totals:
    """Sums over batches; means weigh each by what its loss was divided by.

    Attributes:
        labels, loss_sum: Σ weight and Σ loss·weight of the batches looked at.
        counted, correct: labels that are classes, and those among them with the highest score;
            ``correct`` is None once targets were no class indices.
        last_loss: the latest loss looked at, None before the first.
        pending: batches taken in but not looked at.
    """

    labels: float = 0
    loss_sum: float = 0.0
    counted: int = 0
    correct: int | None = 0
    last_loss: float | None = None
    pending: tuple[Figures, ...] = ()

    def with_batch(self, figures: Figures) -> "Totals":
        """With a batch more to look at."""
        return replace(self, pending=(*self.pending, figures))

    def looked_at(
        self, backend: Backend, error: Callable[[Figures], Exception] | None = None
    ) -> "Totals":
        """With what is pending fetched from the device, all at once, and added to the sums.

        At the first batch whose loss or norm is not finite, raises what ``error`` makes of it;
        without ``error`` leaves it out, and the batches after it.
        """
        labels, loss_sum, last_loss = self.labels, self.loss_sum, self.last_loss
        counted, correct = self.counted, self.correct
        for batch in _on_host(backend, self.pending):
            if not math.isfinite(batch.norm) or (batch.weight and not math.isfinite(batch.loss)):
                if error is None:
                    break
                raise error(batch)
            if not batch.weight:
                continue  # the mean of nothing
            labels += batch.weight
            loss_sum += batch.loss * batch.weight
            last_loss = batch.loss
            counted += batch.counted
            known = batch.correct is not None and batch.correct >= 0
            correct = correct + batch.correct if known and correct is not None else None
        return Totals(labels, loss_sum, counted, correct, last_loss)

    @property
    def loss(self) -> float:
        """Mean loss; NaN before the first look."""
        return self.loss_sum / self.labels if self.labels else math.nan

    @property
    def accuracy(self) -> float | None:
        """Fraction of correct labels, None where there is no such thing."""
        return self.correct / self.counted if self.correct is not None and self.counted else None

    def state_dict(self) -> dict[str, Any]:
        """The sums, JSON-able; nothing may be pending."""
        state = {name: getattr(self, name) for name in _STATE}
        if self.correct is None or self.counted == self.labels:
            return state
        return state | {"counted": self.counted}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Totals":
        """What `state_dict` returned, as totals.

        Raises:
            ValueError: entries missing or unexpected.
        """
        if set(state) - {"counted"} != set(_STATE):
            raise ValueError(
                f"totals must have the entries {list(_STATE)}, got {list(state)}; take the state "
                "from state_dict()"
            )
        return cls(**{"counted": state["labels"], **state})


NONE = Totals()
_STATE = ("labels", "loss_sum", "correct", "last_loss")


def _size(targets: Any) -> int:
    """Elements of ``targets``, of the first of several."""
    while isinstance(targets, tuple | list) and targets and hasattr(targets[0], "__len__"):
        targets = targets[0]
    return math.prod(targets.shape) if hasattr(targets, "shape") else len(targets)


def _on_host(backend: Backend, pending: tuple[Figures, ...]) -> list[Figures]:
    """The same as Python numbers, the arrays of each kind fetched in one transfer."""
    if len(pending) == 1:
        numbers = [backend.to_numpy(n).item() if hasattr(n, "dtype") else n for n in pending[0]]
        return [Figures(*numbers)]
    columns = []
    for column in zip(*pending, strict=True):
        arrays = [backend.xp.asarray(number) for number in column if hasattr(number, "dtype")]
        fetched = iter(backend.to_numpy(backend.xp.stack(arrays)).tolist() if arrays else ())
        columns.append([next(fetched) if hasattr(number, "dtype") else number for number in column])
    return [Figures(*numbers) for numbers in zip(*columns, strict=True)]
