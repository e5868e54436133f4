"""Where a training stands, as one record."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arraycnn.arguments import as_count, as_real
from arraycnn.training.totals import NONE, Totals


@dataclass(frozen=True)
class Progress:
    """Never changed but replaced, as a whole, when an update or an epoch is done.

    Attributes:
        epoch: epochs done. step: updates done, over all epochs. batch: updates in this epoch.
        seconds: of this epoch. totals: of this epoch.
        loader: position of the loader after the last update, None if it has none.
        history: a record for each epoch done.
    """

    epoch: int = 0
    step: int = 0
    batch: int = 0
    seconds: float = 0.0
    totals: Totals = NONE
    loader: Any = None
    history: tuple[dict[str, Any], ...] = ()

    def state_dict(self) -> dict[str, Any]:
        """Everything, JSON-able, as a snapshot; nothing may be pending in the totals."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "batch": self.batch,
            "seconds": self.seconds,
            "totals": self.totals.state_dict(),
            "loader": copy.deepcopy(self.loader),
            "history": copy.deepcopy(list(self.history)),
        }

    def after_epoch(self, lr: float, tested: Mapping[str, Any]) -> "Progress":
        """The record with this epoch added to its history, at the beginning of the next."""
        record = {
            "epoch": self.epoch + 1,
            "step": self.step,
            "lr": lr,
            "train_loss": self.totals.loss if self.totals.labels else None,
            "train_accuracy": self.totals.accuracy,
            "test_loss": tested["loss"],
            "test_accuracy": tested["accuracy"],
            "seconds": self.seconds,
        }
        totals, history = Totals(last_loss=self.totals.last_loss), (*self.history, record)
        return Progress(self.epoch + 1, self.step, 0, 0.0, totals, self.loader, history)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Progress":
        """What `state_dict` returned, as a record.

        Raises:
            ValueError, TypeError: entries missing or not as `state_dict` makes them.
        """
        missing = [key for key in cls().state_dict() if key not in state]
        if missing:
            raise ValueError(f"state must come from Trainer.state_dict(), but it lacks {missing}")
        epoch, step, batch = (
            as_count(f"state[{name!r}]", state[name], minimum=0)
            for name in ("epoch", "step", "batch")
        )
        history = state["history"]
        records = isinstance(history, list) and all(isinstance(r, Mapping) for r in history)
        if not records or len(history) != epoch:
            raise ValueError(
                f"state['history'] must be a list of a record for each of {epoch} epochs, got "
                f"{history!r:.80}"
            )
        return cls(
            epoch,
            step,
            batch,
            as_real("state['seconds']", state["seconds"]),
            Totals.from_state(state["totals"]),
            copy.deepcopy(state["loader"]),
            tuple(copy.deepcopy(history)),
        )
