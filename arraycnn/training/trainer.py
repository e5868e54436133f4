"""The training loop: epochs, evaluation, learning rate, history, and stopping in good order."""

import copy
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, TypeAlias

from arraycnn import functional as F
from arraycnn.arguments import as_count, as_real
from arraycnn.arrays import Array
from arraycnn.checkpoint import CheckpointInfo, load_checkpoint, save_checkpoint
from arraycnn.files import PathLike
from arraycnn.layers.layer import Layer, backward_to_parameters
from arraycnn.optim import Optimizer, clip_grad_norm
from arraycnn.registry import preferred
from arraycnn.schedules import Schedule
from arraycnn.training.captured import CapturedStep
from arraycnn.training.interrupts import interrupt_calls
from arraycnn.training.totals import LossNotFinite, Totals

Batches: TypeAlias = Iterable[tuple[Array, Array]]
Loss: TypeAlias = Callable[[Array, Array], tuple[Array, Array]]


class TrainingDivergedError(RuntimeError):
    """A loss became NaN or infinite.

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


class Callback:
    """What to do after each update, after each epoch and at the end; override what is needed.

    Whenever they are called the trainer is in a state to save, or to stop with `Trainer.stop`.
    """

    def on_step(self, trainer: "Trainer") -> None:
        """Called after every update."""

    def on_epoch(self, trainer: "Trainer") -> None:
        """Called when an epoch's record has been added to ``trainer.history``."""

    def on_end(self, trainer: "Trainer") -> None:
        """Called when `Trainer.fit` ends between two updates: not after an error."""


class Trainer:
    """Trains a model on batches of (images, labels) and keeps the history.

    Args:
        model: the network. optimizer: of its parameters (those left out are frozen).
        loss: ``loss(logits, labels) -> (mean loss of the batch, grad_logits)``.
        schedule: ``schedule(step) -> lr``, asked before each update; None leaves the optimizer's.
        callbacks: `Callback` objects, called in this order.
        clip_norm: limit of the gradients' norm, see `clip_grad_norm`; None for no limit.
        check_every: look at the losses after this many updates. Looking waits for the device: on
            a GPU a larger number is faster, and notices a NaN later.
        graph: replay forward, loss and backward as a CUDA graph, see `graphs.CapturedStep`; only
            for models on a CUDA backend.

    Attributes:
        epoch: epochs done. step: updates done, over all epochs. batch: updates in this epoch.
        history: one dict for each epoch with ``epoch``, ``step``, ``lr`` (of its last update),
            ``train_loss``, ``train_accuracy``, ``test_loss``, ``test_accuracy`` and ``seconds``
            (with evaluation and callbacks); JSON-able. The training figures are means over the
            batches as they were trained on, weighted by their numbers of labels. Accuracies are
            None where labels are not class indices, test figures where there is no test data.
        interrupted: whether the last `fit` was ended by Ctrl-C or SIGTERM. signal: by which.

    Raises:
        TypeError, ValueError: an argument is not as described.

    A training can be resumed exactly, at any update: with `save` and `load`, or from `state_dict`,
    the model's ``state_dict`` and ``random_state``, and the optimizer's ``state_dict``.
    """

    def __init__(
        self,
        model: Layer,
        optimizer: Optimizer,
        *,
        loss: Loss = F.softmax_cross_entropy,
        schedule: Schedule | None = None,
        callbacks: Iterable[Callback] = (),
        clip_norm: float | None = None,
        check_every: int = 1,
        graph: bool = False,
    ) -> None:
        _check_arguments(model, optimizer, loss, schedule)
        self.model = model
        self.optimizer = optimizer
        self.loss = loss
        self.schedule = schedule
        self.callbacks = list(callbacks)
        self.clip_norm = (
            None if clip_norm is None else as_real("clip_norm", clip_norm, positive=True)
        )
        self.check_every = as_count("check_every", check_every)
        self._captured = CapturedStep(model, loss) if graph else None
        self.epoch = self.step = self.batch = 0
        self.history: list[dict[str, Any]] = []
        self.interrupted = False
        self.signal: signal.Signals | None = None
        self._stopping = False
        self._totals = Totals()  # of this epoch
        self._seconds = 0.0  # of this epoch, up to _clock
        self._clock = 0.0
        self._loader_state: Any = None  # after the last update
        self._move_loader = False  # the next fit starts where _loader_state says

    @property
    def train_loss(self) -> float:
        """Mean loss of this epoch's batches so far, NaN before the first; waits for the device."""
        self._look()
        return self._totals.loss

    def fit(
        self,
        train_loader: Batches,
        epochs: int,
        *,
        test: Batches | tuple[Array, Array] | None = None,
    ) -> list[dict[str, Any]]:
        """Train until ``epochs`` epochs are done in all, from wherever this trainer stands.

        After an interruption, an error or `load_state_dict` it goes on at the next batch. For that
        the loader needs ``state_dict`` and ``load_state_dict``, as `DataLoader` has; one without
        is taken to give the same batches again.

        The first Ctrl-C or SIGTERM waits for the update or the evaluation in progress and then
        ends the training, with `interrupted` True. A second one does not wait: an update may then
        be half done, and ``on_end`` is not called.

        Args:
            train_loader: gives an epoch's (images, labels) each time it is iterated.
            epochs: epochs in all, those already done included.
            test: ``(images, labels)`` or batches of them, evaluated after each epoch.

        Returns:
            `history`.

        Raises:
            TrainingDivergedError: a loss became NaN or infinite. With ``check_every=1`` the
                parameters are those before that update. `history` is kept in any case.
            ValueError: ``epochs`` below 1, no batches. TypeError: ``epochs`` is not an int,
                ``train_loader`` is a pair of arrays.
        """
        epochs = as_count("epochs", epochs)
        if isinstance(train_loader, tuple):
            raise TypeError(
                "train_loader must give batches, got a tuple; use DataLoader(images, labels, "
                "batch_size, shuffle=True)"
            )
        test_batches = None if test is None else _as_batches(test)
        if self._move_loader and hasattr(train_loader, "load_state_dict"):
            train_loader.load_state_dict(self._loader_state)
        self.interrupted = self._stopping = False
        self.signal = None
        self._clock = time.perf_counter()
        self._drop_gradients()
        try:
            with interrupt_calls(self._interrupt):
                while self.epoch < epochs and not self._stopping:
                    if self._train_epoch(train_loader):
                        self._end_epoch(train_loader, test_batches)
                for callback in self.callbacks:
                    callback.on_end(self)
        except KeyboardInterrupt:
            self._interrupt(signal.SIGINT)
        finally:
            self._move_loader = self.batch > 0
            self._drop_gradients()
        return self.history

    def stop(self) -> None:
        """End `fit` after the update or the evaluation in progress."""
        self._stopping = True

    def evaluate(
        self, data: Batches | tuple[Array, Array], *, batch_size: int = 256
    ) -> dict[str, float | None]:
        """Mean loss and accuracy in inference: ``{"loss": ..., "accuracy": ...}``.

        Args:
            data: ``(images, labels)`` of shapes (N, C, *S) and (N, ...), or batches of them.
            batch_size: images at once, where ``data`` is two arrays.

        Raises:
            ValueError: no images, or another number of labels than of images.
            TrainingDivergedError: a loss is NaN or infinite.
        """
        return self._evaluate(_as_batches(data, as_count("batch_size", batch_size)))

    def state_dict(self) -> dict[str, Any]:
        """Where the training stands: counts, this epoch's sums, position in the loader, history.

        JSON-able, and a snapshot.
        """
        self._look()
        return {
            "epoch": self.epoch,
            "step": self.step,
            "batch": self.batch,
            "seconds": self._seconds,
            "totals": self._totals.state_dict(),
            "loader": copy.deepcopy(self._loader_state),
            "history": copy.deepcopy(self.history),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned; the next `fit` moves its loader there.

        Raises:
            ValueError, TypeError: entries missing or not as `state_dict` makes them; nothing is
                changed then.
        """
        missing = [key for key in self.state_dict() if key not in state]
        if missing:
            raise ValueError(f"state must come from Trainer.state_dict(), but it lacks {missing}")
        counts = {
            name: as_count(f"state[{name!r}]", state[name], minimum=0)
            for name in ("epoch", "step", "batch")
        }
        history = state["history"]
        records = isinstance(history, list) and all(isinstance(r, Mapping) for r in history)
        if not records or len(history) != state["epoch"]:
            raise ValueError(
                f"state['history'] must be a list of a record for each of {state['epoch']} epochs, "
                f"got {history!r:.80}"
            )
        totals = Totals()
        totals.load_state_dict(state["totals"])
        seconds = as_real("state['seconds']", state["seconds"])
        self._totals = totals
        vars(self).update(counts)
        self._seconds = seconds
        self.history = copy.deepcopy(history)
        self._loader_state = copy.deepcopy(state["loader"])
        self._move_loader = self._loader_state is not None

    def save(self, path: PathLike, *, extra: Mapping[str, Any] | None = None) -> None:
        """Save everything to go on from here exactly: model, optimizer, schedule and `state_dict`.

        Raises:
            OSError, TypeError, ValueError: as `save_checkpoint`. TrainingDivergedError: a loss
                that had not been looked at is not finite; nothing is saved then.
        """
        save_checkpoint(
            path,
            self.model,
            self.optimizer,
            schedule=self.schedule,
            loader=self,
            epoch=self.epoch,
            step=self.step,
            extra=extra,
        )

    def load(self, path: PathLike) -> CheckpointInfo:
        """Continue from what `save` saved; the next `fit` moves its loader there.

        Raises:
            CheckpointError: damaged, or of another model, optimizer or schedule; nothing is
                changed then. OSError: the file cannot be opened.
        """
        return load_checkpoint(
            path, self.model, self.optimizer, schedule=self.schedule, loader=self
        )

    def _train_epoch(self, loader: Any) -> bool:
        """Train on the rest of the epoch; False if it was stopped before the loader's end."""
        has_position = hasattr(loader, "state_dict")
        for images, labels in loader if has_position else islice(loader, self.batch, None):
            with preferred(self.model.backend):
                self._update(images, labels)
            if has_position:
                self._loader_state = loader.state_dict()
            self._tick()
            for callback in self.callbacks:
                callback.on_step(self)
            if self._stopping:
                return False
        if self.batch == 0:
            raise ValueError(
                "train_loader gave no batches; an epoch needs at least one, and a generator has "
                "none after its first: use a DataLoader"
            )
        return True

    def _update(self, images: Array, labels: Array) -> None:
        if self.schedule is not None:
            self.optimizer.lr = self.schedule(self.step)
        if self._captured is not None:
            loss, logits = self._captured(images, labels)
            self._add_to_totals(loss, logits, labels)
        else:
            logits, backward = self.model.forward(images)
            loss, grad = self.loss(logits, labels)
            self._add_to_totals(loss, logits, labels)
            backward_to_parameters(self.model, backward, grad)
        if self.clip_norm is not None:
            clip_grad_norm(self.optimizer.parameters, self.clip_norm)
        self.optimizer.step()
        self._drop_gradients()
        self.step += 1
        self.batch += 1

    def _add_to_totals(self, loss: Array, logits: Array, labels: Array) -> None:
        self._totals.add(self.step + 1, loss, logits, labels)
        if self._totals.pending >= self.check_every:
            self._look()

    def _end_epoch(self, loader: Any, test: Batches | None) -> None:
        self._look()
        tested = {"loss": None, "accuracy": None} if test is None else self._evaluate(test)
        self._tick()
        record = {
            "epoch": self.epoch + 1,
            "step": self.step,
            "lr": self.optimizer.lr,
            "train_loss": self._totals.loss,
            "train_accuracy": self._totals.accuracy,
            "test_loss": tested["loss"],
            "test_accuracy": tested["accuracy"],
            "seconds": self._seconds,
        }
        self.history.append(record)
        self.epoch += 1
        self.batch = 0
        self._seconds = 0.0
        self._totals.reset()
        if hasattr(loader, "state_dict"):
            self._loader_state = loader.state_dict()
        for callback in self.callbacks:
            callback.on_epoch(self)

    def _evaluate(self, batches: Batches) -> dict[str, float | None]:
        totals = Totals()
        for images, labels in batches:
            logits = self.model(images)
            loss, _ = self.loss(logits, labels)
            totals.add(self.step, loss, logits, labels)
        if not totals.pending:
            raise ValueError("there are no images to evaluate; give at least one")
        self._look(totals, "test loss")
        return {"loss": totals.loss, "accuracy": totals.accuracy}

    def _look(self, totals: Totals | None = None, what: str = "training loss") -> None:
        try:
            (totals or self._totals).look()
        except LossNotFinite as error:
            epoch, last_loss = self.epoch + 1, self._totals.last_loss
            raise TrainingDivergedError(
                f"the {what} became {error.loss} in epoch {epoch} at update {error.step} "
                f"(learning rate {self.optimizer.lr:g}, last finite training loss {last_loss}): "
                "lower the learning rate, limit the gradients with Trainer(clip_norm=1.0), or "
                "look for NaN and large values in the images",
                epoch=epoch,
                step=error.step,
                loss=error.loss,
                last_loss=last_loss,
            ) from None

    def _interrupt(self, number: signal.Signals) -> None:
        self.interrupted = True
        self.signal = number
        self.stop()

    def _drop_gradients(self) -> None:
        for parameter in self.model.parameters():  # also those that the optimizer does not have
            parameter.grad = None

    def _tick(self) -> None:
        now = time.perf_counter()
        self._seconds += now - self._clock
        self._clock = now


def _check_arguments(model: Any, optimizer: Any, loss: Any, schedule: Any) -> None:
    if not isinstance(model, Layer):
        raise TypeError(f"model must be a layer such as Sequential, got {type(model).__name__}")
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            "optimizer must be an optimizer such as SGD(model.parameters(), lr=0.1), got "
            f"{type(optimizer).__name__}"
        )
    if not {id(p) for p in optimizer.parameters} & {id(p) for p in model.parameters()}:
        raise ValueError(
            "optimizer has none of the parameters of model and cannot train it; make it with "
            "model.parameters()"
        )
    if not callable(loss):
        raise TypeError(f"loss must be a function of (logits, labels), got {loss!r}")
    if schedule is not None and not callable(schedule):
        raise TypeError(
            f"schedule must be a function of the step or None, got {schedule!r}; for a fixed rate "
            "set the optimizer's lr"
        )


def _as_batches(data: Any, batch_size: int = 256) -> Batches:
    """``data`` if it is batches already, else slices of its two arrays."""
    if not isinstance(data, tuple):
        return data  # type: ignore[no-any-return]
    if len(data) != 2 or len(data[0]) != len(data[1]):
        raise ValueError(
            f"data must be (images, labels) of equal lengths or batches of them, got a tuple of "
            f"lengths {[len(part) for part in data]}"
        )
    images, labels = data
    return [
        (images[i : i + batch_size], labels[i : i + batch_size])
        for i in range(0, len(images), batch_size)
    ]
