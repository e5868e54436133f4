"""Loss and accuracy summed over batches, left on the device until someone looks."""

import math
from typing import Any

from arraycnn.arrays import Array
from arraycnn.backends import Backend, backend_of
from arraycnn.metrics import count_correct


class LossNotFinite(ArithmeticError):
    """The loss ``loss`` of update ``step`` is NaN or infinite."""

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(f"the loss of update {step} is {loss}")
        self.step = step
        self.loss = loss


class Totals:
    """Sums over batches, weighted by their numbers of labels.

    Attributes:
        labels, loss_sum: Σ labels and Σ loss·labels of the batches looked at.
        correct: labels that had the highest score; None once labels were not class indices.
        last_loss: the latest loss looked at, None before the first.
    """

    def __init__(self) -> None:
        self.last_loss: float | None = None
        self.reset()

    def reset(self) -> None:
        """Start again with empty sums."""
        self.labels = 0
        self.loss_sum = 0.0
        self.correct: int | None = 0
        self._pending: list[tuple[int, int, Array, Array | None]] = []

    @property
    def pending(self) -> int:
        """Batches taken in but not looked at."""
        return len(self._pending)

    def add(self, step: int, loss: Array, logits: Array, labels: Array) -> None:
        """Take in the batch of update ``step`` without waiting for the device.

        Raises:
            ValueError: ``loss`` is not one number.
        """
        if loss.shape != ():
            raise ValueError(
                "loss must return one number, the mean over the batch, got an array of shape "
                f"{loss.shape}; use reduction='mean'"
            )
        backend = backend_of(logits)
        correct = None
        if labels.dtype.kind in "iu" and labels.shape == (len(logits), *logits.shape[2:]):
            correct = count_correct(backend, logits, backend.asarray(labels))
        self._backend = backend
        self._pending.append((step, labels.size, loss, correct))

    def look(self) -> None:
        """Fetch what is pending from the device, all at once, and add it to the sums.

        Raises:
            LossNotFinite: at the first such loss; it and those after it are dropped.
        """
        if not self._pending:
            return
        steps, labels, losses, corrects = zip(*self._pending, strict=True)
        self._pending = []
        fetched = (_on_host(self._backend, scalars) for scalars in (losses, corrects))
        for step, count, loss, correct in zip(steps, labels, *fetched, strict=True):
            if not math.isfinite(loss):
                raise LossNotFinite(step, loss)
            self.labels += count
            self.loss_sum += loss * count
            self.last_loss = loss
            if self.correct is not None:
                self.correct = None if correct is None else self.correct + correct

    @property
    def loss(self) -> float:
        """Mean loss; NaN before the first look."""
        return self.loss_sum / self.labels if self.labels else math.nan

    @property
    def accuracy(self) -> float | None:
        """Fraction of correct labels, None where there is no such thing."""
        return self.correct / self.labels if self.correct is not None and self.labels else None

    def state_dict(self) -> dict[str, Any]:
        """The sums, JSON-able, what was pending included."""
        self.look()
        return {name: vars(self)[name] for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: entries missing or unexpected; nothing is changed then.
        """
        if set(state) != set(_STATE):
            raise ValueError(
                f"totals must have the entries {list(_STATE)}, got {list(state)}; take the state "
                "from state_dict()"
            )
        self.reset()
        vars(self).update(state)


_STATE = ("labels", "loss_sum", "correct", "last_loss")


def _on_host(backend: Backend, scalars: tuple[Any, ...]) -> list[Any]:
    """0-d arrays as Python numbers, in one transfer; a None among them stands for all."""
    if any(scalar is None for scalar in scalars):
        return [None] * len(scalars)
    return list(backend.to_numpy(backend.xp.stack(scalars)).tolist())
