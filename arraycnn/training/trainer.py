"""The training loop: epochs, evaluation, learning rate, history, and stopping in good order."""

import math
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from arraycnn import functional as F
from arraycnn.arguments import as_count, as_real
from arraycnn.arrays import Array
from arraycnn.backends import Backend
from arraycnn.checkpoint import CheckpointInfo, load_checkpoint, save_checkpoint
from arraycnn.files import PathLike
from arraycnn.interrupts import interrupt_calls
from arraycnn.layers.layer import Layer
from arraycnn.optim import Optimizer, clip_grad_norm
from arraycnn.optim.clipping import gradient_square
from arraycnn.schedules import Schedule
from arraycnn.training.arguments import Batches, as_batches, check_functions, check_model
from arraycnn.training.captured import CapturedStep
from arraycnn.training.divergence import TrainingDivergedError, diverged
from arraycnn.training.freezing import frozen
from arraycnn.training.progress import Progress
from arraycnn.training.source import Source
from arraycnn.training.step import EagerStep, Loss, Step, checked_loss, evaluation
from arraycnn.training.totals import Figures, Totals, figures_of
from arraycnn.training.work import Work


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


_FUNCTIONS = {
    "step": "(inputs, targets)",
    "schedule": "the step, for a fixed rate set the optimizer's lr,",
}


class Trainer:
    """Trains a model on batches of (inputs, targets) and keeps the history.

    Args:
        model: the network; one with several inputs gets them as a tuple in the place of inputs.
        optimizer: of its parameters. Those left out are frozen: no gradients, and layers of which
            all are left out act as in inference, batch norm and dropout too.
        loss: ``loss(outputs, targets) -> (mean loss of the batch, grad_outputs)``; as a
            `functional.LossValue`, where the mean is not over all targets. None is that of
            ``step``, or `functional.softmax_cross_entropy`.
        step: ``step(inputs, targets) -> (loss, outputs)``, leaves gradients in the parameters;
            None is `EagerStep(model, loss)`.
        schedule: ``schedule(step) -> lr``, asked before each update; None leaves the optimizer's.
        callbacks: `Callback` objects, called in this order.
        clip_norm: limit of the gradients' norm, see `clip_grad_norm`; None for no limit.
        check_every: look at the losses and gradient norms after this many updates. Looking waits
            for the device: on a GPU a larger number is faster, and notices a NaN later.
        graph: short for ``step=CapturedStep(model, loss)``: replay forward, loss and backward as a
            CUDA graph.

    Attributes:
        epoch: epochs done. step: updates done, over all epochs. batch: updates in this epoch.
        history: one dict for each epoch with ``epoch``, ``step``, ``lr`` (of its last update),
            ``train_loss``, ``train_accuracy``, ``test_loss``, ``test_accuracy`` and ``seconds``
            (with evaluation and callbacks); JSON-able. The training figures are means over the
            batches as they were trained on; all means are over what the loss counts, so that they
            do not depend on the batch size. Accuracies leave out labels that the loss ignores, and
            are None where targets are not class indices; test figures where there is no test data.
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
        loss: Loss | None = None,
        step: Step | None = None,
        schedule: Schedule | None = None,
        callbacks: Iterable[Callback] = (),
        clip_norm: float | None = None,
        check_every: int = 1,
        graph: bool = False,
    ) -> None:
        check_model(model, optimizer)
        check_functions(step=step, schedule=schedule)
        if graph and step is not None:
            raise ValueError("graph=True makes a step of its own; leave it out, or step")
        loss = loss or getattr(step, "loss", None) or F.softmax_cross_entropy
        self._step: Any = step or (CapturedStep if graph else EagerStep)(model, loss)
        self.model = model
        self.optimizer = optimizer
        self.loss = loss
        self.schedule = schedule
        self.callbacks = list(callbacks)
        self.clip_norm = (
            None if clip_norm is None else as_real("clip_norm", clip_norm, positive=True)
        )
        self.check_every = as_count("check_every", check_every)
        self.interrupted = False
        self.signal: signal.Signals | None = None
        self._progress = Progress()
        self._rest: Callable[[bool], None] = _nothing  # see `frozen`
        self._stopping = False
        self._clock = 0.0
        self._move_loader = False  # the next fit starts where the progress says

    @property
    def loss(self) -> Loss:
        """The loss of training and evaluation; may be assigned."""
        return self._loss

    @loss.setter
    def loss(self, loss: Loss) -> None:
        check_functions(loss=loss)
        self._loss = loss
        if hasattr(self._step, "loss"):
            self._step.loss = loss

    @property
    def epoch(self) -> int:
        return self._progress.epoch

    @property
    def step(self) -> int:
        return self._progress.step

    @property
    def batch(self) -> int:
        return self._progress.batch

    @property
    def history(self) -> list[dict[str, Any]]:
        return list(self._progress.history)

    @property
    def train_loss(self) -> float:
        """Mean loss of this epoch's batches so far, NaN before the first; waits for the device."""
        self._look()
        return self._progress.totals.loss

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
            train_loader: gives an epoch's (inputs, targets) each time it is iterated.
            epochs: epochs in all, those already done included.
            test: ``(inputs, targets)`` or batches of them, evaluated after each epoch.

        Returns:
            `history`.

        Raises:
            TrainingDivergedError: a loss or a gradient became NaN or infinite. With
                ``check_every=1`` everything is as before that update: parameters, optimizer,
                statistics, random layers, counts; else the error may come later, but before
                anything is saved. `history` is kept in any case.
            ValueError: ``epochs`` below 1, no batches. TypeError: ``epochs`` is not an int,
                or ``train_loader`` does not give batches.
        """
        epochs = as_count("epochs", epochs)
        source = Source(train_loader)
        test_batches = None if test is None else as_batches("test", test)
        check_model(self.model, self.optimizer)
        work = Work(self.model, self.optimizer)
        if self._move_loader:
            source.move(self._progress.loader)
        self.interrupted = self._stopping = False
        self.signal = None
        self._clock = time.perf_counter()
        self._set(totals=self._progress.totals.looked_at(work.backend))
        work.drop_gradients()
        try:
            with interrupt_calls(self._interrupt), frozen(self.model, work.trained) as self._rest:
                while self.epoch < epochs and not self._stopping:
                    if self._train_epoch(source, work):
                        self._end_epoch(source, test_batches)
                for callback in self.callbacks:
                    callback.on_end(self)
        except KeyboardInterrupt:
            self._interrupt(signal.SIGINT)
        finally:
            self._rest = _nothing
            self._move_loader = self.batch > 0
            work.drop_gradients()
        return self.history

    def stop(self) -> None:
        """End `fit` after the update or the evaluation in progress."""
        self._stopping = True

    def evaluate(
        self, data: Batches | tuple[Array, Array], *, batch_size: int = 256
    ) -> dict[str, float | None]:
        """Mean loss and accuracy in inference: ``{"loss": ..., "accuracy": ...}``.

        They do not depend on the batch size, see `Trainer`.

        Args:
            data: ``(inputs, targets)`` of shapes (N, C, *S) and (N, ...), or batches of them.
            batch_size: images at once, where ``data`` is two arrays.

        Raises:
            ValueError: no images, no labels that count, or another number of labels than of images.
            TypeError: ``data`` does not give batches. TrainingDivergedError: a loss is NaN or
                infinite.
        """
        return self._evaluate("data", as_batches("data", data, as_count("batch_size", batch_size)))

    def state_dict(self) -> dict[str, Any]:
        """Where the training stands: counts, this epoch's sums, position in the loader, history.

        JSON-able, and a snapshot.
        """
        self._look()
        return self._progress.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned; the next `fit` moves its loader there.

        Raises:
            ValueError, TypeError: entries missing or not as `state_dict` makes them; nothing is
                changed then.
        """
        self._progress = Progress.from_state(state)
        self._move_loader = self._progress.loader is not None

    def save(self, path: PathLike, *, extra: Mapping[str, Any] | None = None) -> None:
        """Save everything to go on from here exactly: model, optimizer, schedule and `state_dict`.

        Raises:
            OSError, TypeError, ValueError: as `save_checkpoint`. TrainingDivergedError: a loss or
                gradient that had not been looked at is not finite; nothing is saved then.
        """
        self._rest(False)  # which is for this training, and no part of the network
        try:
            save_checkpoint(
                path, self.model, self.optimizer, schedule=self.schedule, loader=self,
                epoch=self.epoch, step=self.step, extra=extra,
            )  # fmt: skip
        finally:
            self._rest(True)

    def load(self, path: PathLike) -> CheckpointInfo:
        """Continue from what `save` saved; the next `fit` moves its loader there.

        Raises:
            CheckpointError: damaged, or of another model, optimizer or schedule (see
                `load_checkpoint`); nothing is changed then. OSError: the file cannot be opened.
        """
        return load_checkpoint(
            path, self.model, self.optimizer, schedule=self.schedule, loader=self
        )

    def _train_epoch(self, source: Source, work: Work) -> bool:
        """Train on the rest of the epoch; False if it was stopped before its end."""
        try:
            for (inputs, targets), position in source.rest(self.batch):
                self._update(inputs, targets, position, work)
                for callback in self.callbacks:
                    callback.on_step(self)
                if self._stopping:
                    return False
        except BaseException:
            if not self.batch:
                source.begin_again()
            raise
        if self.batch == 0:
            raise ValueError(
                "train_loader gave no batches; an epoch needs at least one, and a generator has "
                "none after its first: use a DataLoader"
            )
        return True

    def _update(self, inputs: Any, targets: Any, position: Any, work: Work) -> None:
        """One update, or none at all: an error leaves everything as it was.

        ``position`` is that of the loader afterwards.
        """
        progress, lr = self._progress, self.optimizer.lr
        undo = work.undo_point(statistics=self.check_every == 1)
        try:
            if self.schedule is not None:
                self.optimizer.lr = self.schedule(progress.step)
            value = checked_loss(self._step(inputs, targets))
            if self.clip_norm is None:
                norm = gradient_square(work.trained, exact=self.check_every > 1)
            else:
                norm = clip_grad_norm(work.trained, self.clip_norm)
            figures = figures_of(work.backend, progress.step + 1, value, targets, norm)
            totals = progress.totals.with_batch(figures)
            known = self.clip_norm is not None and not math.isfinite(norm)
            if known or len(totals.pending) >= self.check_every:
                totals = self._looked_at(totals, work.backend)
            self.optimizer.step()
        except BaseException:
            undo()
            self.optimizer.lr = lr
            raise
        finally:
            work.drop_gradients()
        done = {"step": progress.step + 1, "batch": progress.batch + 1}
        self._set(**done, seconds=self._seconds(), totals=totals, loader=position)

    def _end_epoch(self, source: Source, test: Batches | None) -> None:
        self._look()
        tested = {"loss": None, "accuracy": None}
        if test is not None:
            tested = self._evaluate("test", test)
        self._set(seconds=self._seconds(), loader=source.position())
        self._progress = self._progress.after_epoch(self.optimizer.lr, tested)
        for callback in self.callbacks:
            callback.on_epoch(self)

    def _evaluate(self, name: str, batches: Batches) -> dict[str, Any]:
        backend = self._backend()
        totals = evaluation(self.model, self.loss, name, batches, backend=backend, step=self.step)
        totals = self._looked_at(totals, backend, test=True)
        if not totals.labels:
            raise ValueError(
                f"there are no images to evaluate in {name}, or no label that counts; give at "
                "least one"
            )
        return {"loss": totals.loss, "accuracy": totals.accuracy}

    def _look(self) -> None:
        totals = self._progress.totals
        if totals.pending:
            self._set(totals=self._looked_at(totals, self._backend()))

    def _looked_at(self, totals: Totals, backend: Backend, *, test: bool = False) -> Totals:
        def error(batch: Figures) -> TrainingDivergedError:
            last_loss = self._progress.totals.last_loss
            return diverged(batch, self.epoch + 1, self.optimizer.lr, last_loss, test=test)

        return totals.looked_at(backend, error)

    def _interrupt(self, number: signal.Signals) -> None:
        self.interrupted = True
        self.signal = number
        self.stop()

    def _backend(self) -> Backend:
        return self.model.backend or self.optimizer.parameters[0].backend

    def _set(self, **changes: Any) -> None:
        self._progress = replace(self._progress, **changes)

    def _seconds(self) -> float:
        """The seconds of this epoch until now."""
        before, self._clock = self._clock, time.perf_counter()
        return self._progress.seconds + self._clock - before


def _nothing(wanted: bool) -> None:
    """Stands for `frozen` outside of a training."""
