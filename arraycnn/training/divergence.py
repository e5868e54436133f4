"""The end of a training whose numbers are none any more."""

import math

from arraycnn.training.totals import Figures


class TrainingDivergedError(RuntimeError):
    """A loss, or the norm of the gradients, became NaN or infinite.

    Attributes:
        epoch, step: the epoch and the update, both counted from 1.
        loss: the loss there. last_loss: the last finite training loss, or None.
    """

    def __init__(
        self, message: str, *, epoch: int, step: int, loss: float, last_loss: float | None
    ) -> None:
        super().__init__(message)
        self.epoch = epoch
        self.step = step
        self.loss = loss
        self.last_loss = last_loss


def diverged(
    batch: Figures, epoch: int, lr: float, last_loss: float | None, *, test: bool
) -> TrainingDivergedError:
    """The error that says what happened to ``batch`` and what may help."""
    where = f"in epoch {epoch} at update {batch.step} (learning rate {lr:g}, last finite training "
    if test:
        message = (
            f"the test loss became {batch.loss} in epoch {epoch} after update {batch.step}, with a "
            f"last training loss of {last_loss}: look for NaN and large values in the test images; "
            "if the training loss is large too, lower the learning rate. The training stands where "
            "it was after that update"
        )
    elif math.isfinite(batch.loss) or not batch.weight:
        message = (
            f"the gradients became infinite or NaN {where}loss {last_loss}) with a loss of "
            f"{batch.loss}: look at the gradient that the loss returns, or lower the learning rate"
        )
    else:
        message = (
            f"the training loss became {batch.loss} {where}loss {last_loss}): lower the learning "
            "rate, limit the gradients with Trainer(clip_norm=1.0), or look for NaN and large "
            "values in the images"
        )
    return TrainingDivergedError(
        message, epoch=epoch, step=batch.step, loss=batch.loss, last_loss=last_loss
    )
