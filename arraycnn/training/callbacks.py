"""Checkpoints during training: the last few and the best, and going on from the last."""

import math
import re
from pathlib import Path
from typing import Any

from arraycnn.arguments import as_count
from arraycnn.checkpoint import CheckpointInfo
from arraycnn.errors import CheckpointDamagedError
from arraycnn.files import PathLike
from arraycnn.training.trainer import Callback, Trainer

BEST = "best.h5"

_NAME = re.compile(r"step-\d+\.h5")


class Checkpoints(Callback):
    """Saves ``step-<updates>.h5`` regularly and at the end, also when the end is a signal.

    ``best.h5`` is that of the epoch with the highest test accuracy, the lower test loss deciding
    between equals; without test data, with the lowest training loss.

    Args:
        folder: made if it is not there.
        every: updates from one checkpoint to the next; None saves after each epoch.
        keep: how many of the last to keep, besides the best.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """

    def __init__(self, folder: PathLike, *, every: int | None = None, keep: int = 3) -> None:
        self.folder = Path(folder)
        self.every = None if every is None else as_count("every", every)
        self.keep = as_count("keep", keep)
        self._saved: tuple[int, int] | None = None  # (epoch, step)

    def on_step(self, trainer: Trainer) -> None:
        if self.every is not None and trainer.step % self.every == 0:
            self._save(trainer)

    def on_epoch(self, trainer: Trainer) -> None:
        if self.every is None:
            self._save(trainer)
        if min(trainer.history, key=_rank) is trainer.history[-1]:
            self._write(trainer, BEST)

    def on_end(self, trainer: Trainer) -> None:
        if trainer.step and self._saved != (trainer.epoch, trainer.step):
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        path = self._write(trainer, f"step-{trainer.step:09d}.h5")
        self._saved = (trainer.epoch, trainer.step)
        for old in checkpoints_in(self.folder)[self.keep :]:
            if old != path:
                old.unlink(missing_ok=True)

    def _write(self, trainer: Trainer, name: str) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / name
        trainer.save(path)
        return path


def checkpoints_in(folder: PathLike) -> list[Path]:
    """The regular checkpoints in a folder, the one written last first."""
    found = [path for path in Path(folder).glob("step-*.h5") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)


def load_last(trainer: Trainer, folder: PathLike) -> tuple[Path, CheckpointInfo]:
    """Go on from the last checkpoint in ``folder`` that is intact.

    Raises:
        FileNotFoundError: there is none. CheckpointDamagedError: none is intact.
        CheckpointError: the last is intact but does not fit; see `Trainer.load`.
    """
    damage: CheckpointDamagedError | None = None
    for path in checkpoints_in(folder):
        try:
            return path, trainer.load(path)
        except CheckpointDamagedError as error:
            damage = damage or error
    if damage is not None:
        raise damage
    raise FileNotFoundError(f"there is no checkpoint in {Path(folder)}")


def _rank(record: dict[str, Any]) -> tuple[float, float]:
    """The smaller the better."""
    accuracy, loss = record["test_accuracy"], record["test_loss"]
    loss = record["train_loss"] if loss is None else loss
    return (0.0 if accuracy is None else -accuracy, math.inf if loss is None else loss)
